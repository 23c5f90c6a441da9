"""``import moat``: what it gives, and that it loads nothing before it is asked."""

import functools
import importlib.util
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import moat

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
make_api = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_api)

PUBLIC = {"attacks", "data", "evaluate", "evaluation", "load", "methods", "models", "verify"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_moat_imports_nothing_beyond_the_standard_library():
    code = "import sys; before = set(sys.modules); import moat; dir(moat); print(*set(sys.modules) - before)"
    loaded = set(python(code).split())
    assert {name for name in loaded if name.partition(".")[0] not in sys.stdlib_module_names} == {"moat"}


CONTRACT = [
    *(f"moat.models.{name}" for name in ("build", "ChannelExpertConv2d", "build_moe_cnn", "build_mixture")),
    *(f"moat.methods.losses.{name}" for name in ("trades", "mart", "kl")),
    *(f"moat.attacks.{name}" for name in ("fgsm", "bim", "pgd", "cw_inf", "cw_l2", "autoattack", "for_attack")),
    "moat.data.corruptions.corrupt",
    "moat.evaluation.evaluate",
    "moat.evaluation.verify",
    "moat.evaluate",
    "moat.verify",
    "moat.load",
]


def test_the_contract_is_reached_from_a_plain_import():
    code = "import moat\n" + "\n".join(f"print({name!r}, callable({name}))" for name in CONTRACT)
    assert python(code).splitlines() == [f"{name} True" for name in CONTRACT]


def test_dir_lists_what_there_is_to_use():
    assert dir(moat) == sorted({"__doc__", "__version__", *PUBLIC})
    assert set(moat.__all__) == PUBLIC


def test_what_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'moat' has no attribute 'atacks'"):
        _ = moat.atacks


# The parameters that are promised, in this order where they are positional: name, * before keywords, = and the default.
SIGNATURES = {
    "models.build": "name, num_classes, *, width=1.0, image_size=32, normalize='cifar10'",
    "models.ChannelExpertConv2d": "in_channels, out_channels, kernel_size, *, experts, stride=1, padding=0",
    "models.ChannelExpertConv2d.forward": "self, x, route, gate=None",
    "models.build_moe_cnn": "arch, num_classes, *, experts=2, ratio=0.5, router='gap'",
    "models.build_mixture": "kind",
    "methods.losses.trades": "logits_clean, logits_adv, y, beta",
    "methods.losses.mart": "logits_clean, logits_adv, y, beta",
    "methods.losses.kl": "logits_p, logits_q",
    "attacks.fgsm": "model, x, y, *, eps",
    "attacks.bim": "model, x, y, *, eps",
    "attacks.pgd": "model, x, y, *, eps, step_size, steps, restarts=1, random_start=True, loss='ce', eot=1, "
    "generator=None",
    "attacks.cw_inf": "model, x, y, *",
    "attacks.cw_l2": "model, x, y, *",
    "attacks.autoattack": "model, x, y, *, eps, version='standard', seed=0",
    "attacks.for_attack": "model",
    "data.corruptions.corrupt": "images_uint8_NHWC, name, severity, *, seed, severities='cifar10-c'",
    "evaluation.evaluate": "model, x, y, settings, *, batch_size",
    "evaluation.verify": "model, x, y, *, eps=8/255",
    "evaluate": "model, x, y, settings, *, batch_size",
    "verify": "model, x, y, *, eps=8/255",
    "load": "run_dir, weights='best'",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_those_of_the_contract(name):
    positional, _, keywords = SIGNATURES[name].partition("*")
    found = inspect.signature(functools.reduce(getattr, name.split("."), moat)).parameters
    promised = [each.strip() for each in positional.split(",") if each.strip()]
    assert list(found)[: len(promised)] == [each.partition("=")[0] for each in promised]
    only_by_name = [each.strip() for each in keywords.split(",") if each.strip()]
    for each in [*promised, *only_by_name]:
        argument, given, default = each.partition("=")
        parameter = found[argument]
        assert (parameter.default is parameter.empty) is (not given), each
        assert not given or parameter.default == eval(default), each
        assert (parameter.kind is parameter.KEYWORD_ONLY) is (each in only_by_name), each


def test_every_promise_has_its_signature_and_its_entry_in_the_docs():
    assert {name.removeprefix("moat.") for name in CONTRACT} <= SIGNATURES.keys()
    listed = {name for names in make_api.LISTED.values() for name in names}
    assert {name for name in SIGNATURES if not name.startswith("evaluation.")} <= listed


# -- docs/api.md ------------------------------------------------------------------------
def test_the_page_is_that_of_the_docstrings():
    assert (DOCS / "api.md").read_text() == make_api.page(), "`python docs/make_api.py` makes docs/api.md again"


def test_a_docstring_becomes_markdown():
    said = "One line of :class:`~moat.x.Y`.\n\nArgs:\n    a, b: two\n        more.\n    c: ``d``"
    assert make_api.markdown(said) == ("One line of `moat.x.Y`.\n\n**Args**\n\n- `a`, `b`: two\n    more.\n- `c`: `d`")


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_example_prints_what_the_docs_say(capsys):
    runpy.run_path(str(DOCS / "example.py"))
    printed, expected = capsys.readouterr().out, (DOCS / "example.txt").read_text()
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    for found, wanted in zip(NUMBER.findall(printed), NUMBER.findall(expected), strict=True):
        # A few of 100 images may fall otherwise on another processor: accuracies, and the same in percent.
        assert float(found) == pytest.approx(float(wanted), abs=0.05 if float(wanted) < 1 else 5)
