"""``import moat``: what it gives, and that it loads nothing before it is asked."""

import inspect
import subprocess
import sys

import pytest

import moat

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


@pytest.mark.parametrize(
    ("function", "begins"),
    [
        (moat.evaluate, ["model", "x", "y", "settings", "batch_size"]),
        (moat.verify, ["model", "x", "y", "eps"]),
        (moat.load, ["run_dir", "weights"]),
    ],
    ids=["evaluate", "verify", "load"],
)
def test_signatures(function, begins):
    assert list(inspect.signature(function).parameters)[: len(begins)] == begins
