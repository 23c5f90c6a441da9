"""Content hashes of the sources: what counts as a change, and what does not."""

import re
import shutil
from pathlib import Path

import pytest

from moat.base import plugins, remembered
from moat.provenance import behaviour, staleness

METHOD = '''"""TRADES."""

from moat.attacks import pgd
from moat.methods import base, losses
from moat.models.moe.layer import X


def step(x):
    """Doc."""
    return losses.kl(x, base.BASE) + pgd.STEPS * X
'''
FILES = {
    "models/nets/other.py": 'NETS = {"other": 1}\n',
    "models/nets/net.py": 'NETS = {"net": 1}\n\n\ndef f(x):\n    """Doc."""\n    return x + 1  # plus one\n',
    "models/moe/layer.py": "import torch\nimport torch.nn.functional as F\n\nX = F.relu(torch.ones(1))\n",
    "models/moe/layer.cpp": "// Fast.\nint x = 1;\n",
    "attacks/__init__.py": '"""Attacks."""\n\nfrom moat.attacks.parts.steps import step\n\n__all__ = ["step"]\n',
    "attacks/pgd.py": "STEPS = 10\n",
    "attacks/fgsm.py": "from moat.attacks import step\n\nONE = step(1)\n",
    "attacks/parts/steps.py": "def step(x):\n    return x + 1\n",
    "attacks/square.py": "QUERIES = 1\n",
    "methods/base.py": "BASE = 1\n",
    "methods/losses.py": "def kl(p, q):\n    return p - q\n",
    "methods/trades.py": METHOD,
    "methods/pgd_at.py": "from moat.methods.trades import step\n\nTWICE = step(step(1))\n",
    "training/engine.py": "from moat.base.files import read\nfrom moat.data import batches, seeding\n\n"
    "LOOP = read(1) + batches.B + seeding.S\n",
    "data/batches.py": "B = 1\n",
    "data/seeding.py": "S = 1\n",
    "base/files.py": "def read(x):\n    return x\n",
    "evaluation/runner.py": "R = 1\n",
}


# Of the classes of the package itself.
MIXTURES = {"dramoe": "moe-cnn", "advmoe": "moe-cnn", "sramoe": "sramoe", "dwf": "dwf"}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def recorded(package, method, arch="net", attacks=("fgsm",)):
    run = {"class": method, "arch": arch, "mixture": MIXTURES.get(method)}
    made_of = staleness.made_of(run)
    hashes = staleness.hash_parts(staleness.TRAINING_PARTS, **made_of, attacks=attacks, package=package)
    return {**run, "attacks": attacks, "sources": hashes}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("models/nets/net.py", "# plus one", "# plus 1", []),
        ("models/nets/net.py", '"""Doc."""', '"""Documented\n\n    at length.\n    """', []),
        ("models/nets/net.py", "\n\n\ndef", "\n\n\n\n\n# x\ndef", []),
        ("models/nets/net.py", "return x + 1", "return (\n        x + 1\n    )", []),
        ("models/nets/net.py", "x + 1", "x + 2", ["nets"]),
        ("models/nets/net.py", "x + 1", "x - 1", ["nets"]),
        ("models/nets/net.py", "return x + 1", 'return x + len("#")', ["nets"]),
        ("models/nets/net.py", "def f(x):", "def f(x=1):", ["nets"]),
        ("models/moe/layer.py", "ones(1)", "ones(2)", ["nets"]),
        # Another way to import the same.
        ("models/moe/layer.py", "import torch.nn.functional as F", "from torch.nn import functional as F", []),
        ("models/moe/layer.py", "F.relu", "torch.nn.functional.relu", []),
        ("models/moe/layer.py", "F.relu", "F.gelu", ["nets"]),
        ("models/moe/layer.py", "import torch.nn.functional as F", "import torch.special as F", ["nets"]),
        # What is compiled belongs to the module of its name.
        ("models/moe/layer.cpp", "x = 1", "x = 2", ["nets"]),
        ("models/moe/layer.cpp", "// Fast.", "// Very fast.", []),
        ("attacks/pgd.py", "10", "20", ["attacks"]),
        # A cost that is declared for plans.
        ("attacks/fgsm.py", "ONE = ", "PASSES = 2\nONE = ", []),
        ("attacks/fgsm.py", "ONE = ", "PASSED = 2\nONE = ", ["attacks"]),
        # Used by name, and imported by what was used by name.
        ("attacks/fgsm.py", "step(1)", "step(2)", ["attacks"]),
        ("attacks/parts/steps.py", "+", "-", ["attacks"]),
        ("attacks/__init__.py", '"step"', '"step", "more"', []),
        # Took no part.
        ("attacks/square.py", "1", "2", []),
        ("models/nets/other.py", "1", "2", []),
        ("methods/base.py", "1", "2", ["method"]),
        ("methods/trades.py", "STEPS * X", "STEPS / X", ["method"]),
        ("training/engine.py", "(1)", "(2)", ["engine"]),
        ("data/seeding.py", "1", "2", ["engine"]),
        ("evaluation/runner.py", "1", "2", []),
        # Of no part: files are read and errors are named so, which changes no number.
        ("base/files.py", "return x", "return x  or x", []),
    ],
)
@pytest.mark.parametrize("method", ["trades", "pgd-at"])
def test_a_change_makes_stale_the_part_it_is_in(package, file, old, new, stale, method):
    """pgd-at imports from trades, so a change there is a change of both."""
    record = recorded(package, method)
    edit(package / file, old, new)
    assert staleness.stale(record, package=package) == stale


def test_another_method_is_not_concerned(package):
    record = recorded(package, "trades")
    (package / "methods/pgd_at.py").write_text("X = 2\n")
    assert staleness.stale(record, package=package) == []


def test_a_new_file_that_takes_no_part_is_no_change_and_a_deleted_one_that_did_is(package):
    record = recorded(package, "trades")
    (package / "models/nets/new.py").write_text("X = 1\n")
    assert staleness.stale(record, package=package) == []
    (package / "models/moe/layer.py").unlink()
    assert staleness.stale(record, package=package) == ["nets"]


@pytest.mark.parametrize(
    ("source", "target", "edits"),
    [
        # A module is renamed, and what it is called by.
        (
            "methods/losses.py",
            "methods/divergences.py",
            [
                ("methods/trades.py", "base, losses", "base, divergences"),
                ("methods/trades.py", "losses.kl", "divergences.kl"),
            ],
        ),
        ("methods/losses.py", "methods/losses/__init__.py", []),
        # To another part, and what passes it on follows.
        (
            "attacks/parts/steps.py",
            "models/moe/stepping.py",
            [("attacks/__init__.py", "moat.attacks.parts.steps", "moat.models.moe.stepping")],
        ),
        (
            "attacks/parts/steps.py",
            "attacks/parts/steps.py",
            [("attacks/fgsm.py", "moat.attacks import", "moat.attacks.parts.steps import")],
        ),
        (
            "models/moe/layer.py",
            "models/layers/moe.py",
            [("methods/trades.py", "from moat.models.moe.layer import X", "from moat.models.layers.moe import X")],
        ),
        ("base/files.py", "base/reading.py", [("training/engine.py", "moat.base.files", "moat.base.reading")]),
    ],
)  # fmt: skip
def test_a_renamed_or_moved_module_makes_nothing_stale_and_a_change_in_it_does(package, source, target, edits):
    records = [recorded(package, method) for method in ("trades", "pgd-at")]
    (package / target).parent.mkdir(exist_ok=True)
    text = (package / source).read_text()
    (package / source).unlink()
    (package / target).parent.mkdir(exist_ok=True)
    (package / target).write_text(text)
    if source == "models/moe/layer.py":
        (package / "models/moe/layer.cpp").rename(package / "models/layers/moe.cpp")
    for file, old, new in edits:
        edit(package / file, old, new)
    assert [staleness.stale(record, package=package) for record in records] == [[], []]
    if not source.startswith("base/"):
        (package / target).write_text(text + "EXTRA = 1\n")
        assert all(staleness.stale(record, package=package) for record in records)


def test_the_same_name_from_another_module_is_a_change(package):
    """Both modules take part before and after: only who uses which one has changed."""
    for name, text in {"p": "p - q", "q": "p * q"}.items():
        (package / f"methods/{name}.py").write_text(f"def kl(p, q):\n    return {text}\n")
    text = "from moat.methods.p import kl\nfrom moat.methods.q import kl as other\n\nBOTH = kl(1, other(1, 2))\n"
    (package / "methods/trades.py").write_text(text)
    record = recorded(package, "trades")
    (package / "methods/trades.py").write_text(
        text.replace("p import", "x import").replace("q ", "p ").replace("x ", "q ")
    )
    assert staleness.stale(record, package=package) == ["method"]


def test_a_record_without_sources_is_not_stale():
    assert staleness.stale({}) == []


@pytest.mark.parametrize(("file", "stale"), [("methods/mine.py", ["method"]), ("attacks/_shared.py", ["attacks"])])
def test_the_plug_ins_of_a_project_take_part(tmp_path, monkeypatch, file, stale):
    monkeypatch.setattr(plugins, "_project", tmp_path)
    texts = {"methods/mine.py": "from moat.attacks._shared import A\n\nMINE = A + 1\n", "attacks/_shared.py": "A = 1\n"}
    for name, text in texts.items():
        (tmp_path / "plugins" / name).parent.mkdir(parents=True)
        (tmp_path / "plugins" / name).write_text(text)
    made_of = {"arch": "lenet5", "attacks": ["fgsm"]}
    record = {
        "class": "mine",
        **made_of,
        "sources": staleness.hash_parts(staleness.TRAINING_PARTS, method="mine", **made_of),
    }
    assert staleness.stale(record) == []
    edit(tmp_path / "plugins" / file, "1\n", "2\n")
    staleness._hash_parts_once.cache_clear()
    assert staleness.stale(record) == stale


def test_sources_that_were_read_before_are_not_read_for_a_hash():
    staleness.read_sources()
    before = behaviour._read_once.cache_info().misses
    made_of = {"method": "dramoe", "arch": "resnet18", "attacks": ["pgd"]}
    assert len(set(staleness.hash_parts(staleness.TRAINING_PARTS, **made_of).values())) == 4
    assert behaviour._read_once.cache_info().misses == before


# -- the package itself -------------------------------------------------------------
KINDS = [
    ("standard", "lenet5", ["none"]),
    ("trades", "resnet18", ["pgd"]),
    ("trades", "resnet18", ["pgd", "square"]),
    ("dramoe", "resnet18", ["pgd"]),
    ("advmoe", "vgg16", ["pgd", "fgsm"]),
    ("sramoe", "wrn-28-10", ["autoattack"]),
    ("dwf", "resnet18", ["pgd"]),
]
MOE = {("dramoe", "pgd"), ("advmoe", "pgd fgsm")}
EVERYTHING = {(method, " ".join(attacks)) for method, _, attacks in KINDS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A copy of the package."""
    copy = tmp_path_factory.mktemp("whole") / "moat"
    shutil.copytree(staleness.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
    return copy


def move(package: Path, source: str, target: str) -> None:
    """Move a module, and rewrite the imports of it, as a person would."""
    (package / target).parent.mkdir(exist_ok=True)
    (package / source).rename(package / target)
    old, new = ("moat." + name.removesuffix(".py").replace("/", ".") for name in (source, target))
    (parent, name), (new_parent, new_name) = old.rsplit(".", 1), new.rsplit(".", 1)
    alone = re.compile(rf"^( *)from {re.escape(parent)} import {name}$", re.MULTILINE)
    for path in package.rglob("*.py"):
        text = alone.sub(rf"\1from {new_parent} import {new_name} as {name}", path.read_text())
        path.write_text(re.sub(rf"{re.escape(old)}\b", new, text))


@pytest.mark.brief(keep=lambda case: case["source"] == "attacks/square.py")
@pytest.mark.parametrize(
    ("source", "target", "used_by"),
    [
        ("methods/_moe.py", "methods/_routing.py", MOE),
        ("methods/_moe.py", "training/alternating.py", MOE),
        ("attacks/square.py", "attacks/square.py", {("trades", "pgd square")}),
        ("attacks/parts/steps.py", "models/ascent.py", EVERYTHING),
        ("models/moe/routing.py", "models/dispatch.py", EVERYTHING),
        # A mixture is built by name.
        ("models/moe/mlp_router.py", "models/moe/gating.py", {("dwf", "pgd")}),
        ("training/engine.py", "training/loop/__init__.py", EVERYTHING),
    ],
)
def test_of_the_package_a_move_makes_nothing_stale_and_another_operator_just_what_used_it(
    whole, tmp_path, source, target, used_by
):
    package = tmp_path / "moat"
    shutil.copytree(whole, package)
    records = [recorded(package, *kind) for kind in KINDS]
    move(package, source, target)
    assert [staleness.stale(record, package=package) for record in records] == [[]] * len(KINDS)
    module = package / target
    changed, count = re.subn(r"(?<=[\w)]) (\+|\*) (?=[\w(])", " - ", module.read_text())
    assert count, f"no operator to change in {source}"
    module.write_text(changed)
    stale = {(r["class"], " ".join(r["attacks"])) for r in records if staleness.stale(r, package=package)}
    assert stale == used_by


@pytest.fixture
def parsed(tmp_path, monkeypatch):
    """The sources that are parsed; each call of it stands for a new process."""
    names, parse = [], behaviour._parse
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remembered, "SETTLED", -(10**18))
    monkeypatch.setattr(behaviour, "_parse", lambda path, *more: (names.append(path.name), parse(path, *more))[1])

    def begin():
        for cached in (behaviour._read_once, behaviour._remembered):
            cached.cache_clear()
        del names[:]
        return names

    yield begin
    begin()


RUN = {"class": "trades", "arch": "net", "mixture": None}


def test_sources_are_parsed_once_for_all_jobs(parsed):
    run = {"class": "dramoe", "arch": "resnet18", "mixture": "moe-cnn"}
    names = parsed()
    first = staleness.hash_job(staleness.EVALUATION_PARTS, run, attacks=["pgd", "autoattack"])
    assert {"apgd.py", "winograd.cpp", "runner.py"} <= set(names)
    names = parsed()
    assert staleness.hash_job(staleness.EVALUATION_PARTS, run, attacks=["pgd", "autoattack"]) == first
    assert names == []
    # Looking reads what jobs have left, too.
    assert staleness.stale({"run": run, "sources": first, "attacks": ["pgd", "autoattack"]}) == [] and names == []


@pytest.mark.parametrize(
    ("file", "text", "again"),
    [
        ("methods/losses.py", "def kl(p, q):\n    return p + q\n", ["losses.py"]),
        # A package's strings may name its modules.
        ("attacks/steps.py", "X = 1\n", ["__init__.py"]),
    ],
)
def test_what_has_changed_is_parsed_again(package, parsed, file, text, again):
    def hashed():
        made_of = staleness.made_of(RUN)
        hashes = staleness.hash_parts(staleness.TRAINING_PARTS, **made_of, attacks=["fgsm"], package=package)
        behaviour.remember()
        return hashes

    parsed()
    first = hashed()
    (package / file).write_text(text)
    names = parsed()
    second = hashed()
    assert names == again
    assert (second != first) == (file == "methods/losses.py")


def test_looking_remembers_nothing(package, parsed, tmp_path):
    parsed()
    staleness.hash_parts(staleness.TRAINING_PARTS, **staleness.made_of(RUN), package=package)
    assert not list((tmp_path / "work").iterdir())
