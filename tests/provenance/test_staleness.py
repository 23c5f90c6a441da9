"""Content hashes of the sources: what counts as a change, and what does not."""

import pytest

from moat.provenance import staleness

NET = '''"""A net."""

NETS = {"net": 1}


def f(x):
    """Doc."""
    return x + 1  # plus one
'''
METHOD = """from moat.methods import base, losses
from moat.attacks import pgd
import moat.models.moe.layer
"""


@pytest.fixture
def package(tmp_path):
    files = {
        "nets/other.py": 'NETS = {"other": 1}\n',
        "nets/net.py": 'NETS = {"net": 1}\n"""A net."""\n\n\ndef f(x):\n    """Doc."""\n    return x + 1  # plus one\n',
        "moe/layer.py": "X = 1\n",
        "moe/layer.cpp": "// Fast.\nint x = 1;\n",
        "attacks/pgd.py": "STEPS = 10\n",
        "attacks/fgsm.py": "from moat.attacks.parts.steps import step\n",
        "attacks/steps.py": "STEP = 1\n",
        "attacks/square.py": "QUERIES = 1\n",
        "methods/base.py": "BASE = 1\n",
        "methods/losses.py": "LOSS = 1\n",
        "methods/trades.py": METHOD,
        "methods/pgd_at.py": "from moat.methods.trades import helper\n",
        "training/engine.py": "LOOP = 1\n",
        "data/batches.py": "B = 1\n",
        "data/seeding.py": "S = 1\n",
        "evaluation/runner.py": "R = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def recorded(package, method):
    made_of = {"method": method, "arch": "net"}
    hashes = staleness.hash_parts(staleness.TRAINING_PARTS, **made_of, attacks=["fgsm"], package=package)
    return {**made_of, "validation_attack": {"attack": "fgsm", "eps": "8/255"}, "sources": hashes}


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("nets/net.py", "# plus one", "# plus 1", []),
        ("nets/net.py", '"""Doc."""', '"""Documented\n\n    at length.\n    """', []),
        ("nets/net.py", "\n\n\ndef", "\n\n\n\n\n# x\ndef", []),
        ("nets/net.py", "x + 1", "x + 2", ["nets"]),
        ("nets/net.py", "return x + 1", 'return x + len("#")', ["nets"]),
        ("moe/layer.py", "X = 1", "X = 2", ["nets"]),
        # What is compiled belongs to the module of its name.
        ("moe/layer.cpp", "x = 1", "x = 2", ["nets"]),
        ("moe/layer.cpp", "// Fast.", "// Very fast.", []),
        ("attacks/pgd.py", "10", "20", ["attacks"]),
        # Used by name, and imported by what was used by name.
        ("attacks/fgsm.py", "step\n", "step\nX = 1\n", ["attacks"]),
        ("attacks/steps.py", "1", "2", ["attacks"]),
        # Took no part.
        ("attacks/square.py", "1", "2", []),
        ("nets/other.py", "1", "2", []),
        ("methods/base.py", "1", "2", ["method"]),
        ("methods/trades.py", "layer\n", "layer\nY = 1\n", ["method"]),
        ("training/engine.py", "1", "2", ["engine"]),
        ("data/seeding.py", "1", "2", ["engine"]),
        ("evaluation/runner.py", "1", "2", []),
    ],
)
@pytest.mark.parametrize("method", ["trades", "pgd-at"])
def test_a_change_makes_stale_the_part_it_is_in(package, file, old, new, stale, method):
    """pgd-at imports from trades, so a change there is a change of both."""
    record = recorded(package, method)
    path = package / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert staleness.stale(record, package=package) == stale


def test_another_method_is_not_concerned(package):
    record = recorded(package, "trades")
    (package / "methods/pgd_at.py").write_text("X = 2\n")
    assert staleness.stale(record, package=package) == []


def test_a_new_file_that_takes_no_part_is_no_change_and_a_deleted_one_that_did_is(package):
    record = recorded(package, "trades")
    (package / "nets/new.py").write_text("X = 1\n")
    assert staleness.stale(record, package=package) == []
    (package / "moe/layer.py").unlink()
    assert staleness.stale(record, package=package) == ["nets"]


def test_a_missing_record_is_not_stale(tmp_path):
    assert staleness.stale_file(tmp_path / "run.json") == []
