"""What every attack setting must do, whatever its family; the settings are those of config/attacks.yaml."""

import doctest
import inspect
import math
import sys
from pathlib import Path

import pytest
import torch

from moat import attacks
from moat.attacks import resolve
from moat.attacks.parts.arguments import check_parameters
from moat.base import plugins
from moat.base.errors import ConfigError
from moat.config import attack_schema, schema
from moat.config.method_schema import in_json_schema
from moat.config.project import Project
from moat.evaluation import evaluate
from project_copy import copy_project

PROJECT = Project(Path(__file__).parents[2])
ALL = PROJECT.attacks()
# Settings that differ from these in radius or number of steps only are left out: test_every_suite_resolves has
# them. The longest ones are tried with few steps for their restarts, averaging and margin.
TRIED = ("clean", "fgsm", "fgsm_e01", "bim", "pgd10", "pgd20_trades", "pgd10_e1", "pgd10_e64")
SETTINGS = {name: ALL[name] for name in TRIED} | {
    "cw_inf": {**ALL["cw_inf"], "steps": 10},
    "pgd100_ms": {**ALL["pgd100_ms"], "steps": 5},
    "pgd100_eot": {**ALL["pgd100_eot"], "steps": 5, "eot": 2},
    "trades": {
        "attack": "pgd",
        "eps": "8/255",
        "step_size": "2/255",
        "steps": 5,
        "loss": "kl",
        "random_start": "normal",
    },
}
ATTACKS = {name: resolve(name, setting) for name, setting in SETTINGS.items()}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=sorted(ATTACKS))
def attack(request):
    return ATTACKS[request.param]


# What does not depend on the parameters is tried with one setting of each family, and without an attack.
one_of_each_family = pytest.mark.brief(keep=lambda case: case["attack"] in ("clean", "fgsm", "pgd10", "cw_inf"))


def test_stays_in_the_ball_and_in_the_pixels(attack, trained, batch):
    x, y = batch
    x_adv = attack(trained, x, y, seeded())
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= attack.eps + 1e-6
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@one_of_each_family
def test_leaves_the_model_and_the_batch_as_they_were(attack, trained, batch):
    x, y = batch
    before, copies = {key: value.clone() for key, value in trained.state_dict().items()}, (x.clone(), y.clone())
    grad, trained.head.bias.grad = trained.head.bias.grad, torch.full((10,), 7.0)
    trained.train()
    trained.trunk.stem.eval()
    trained.head.weight.requires_grad_(False)
    modes = [module.training for module in trained.modules()]
    try:
        attack(trained, x, y, seeded())
        assert [module.training for module in trained.modules()] == modes
        required = {name: parameter.requires_grad for name, parameter in trained.named_parameters()}
        assert required.pop("head.weight") is False and all(required.values())
        assert torch.equal(trained.head.bias.grad, torch.full((10,), 7.0))
        assert all(p.grad is None for name, p in trained.named_parameters() if name != "head.bias")
    finally:
        trained.head.weight.requires_grad_(True)
        trained.head.bias.grad = grad
        trained.eval()
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert torch.equal(x, copies[0]) and torch.equal(y, copies[1])


@one_of_each_family
def test_equal_generators_give_equal_results(attack, trained, batch):
    first, second = (attack(trained, *batch, seeded(3)) for _ in range(2))
    assert torch.equal(first, second)


@one_of_each_family
def test_keeps_channels_last(attack, trained, batch):
    x, y = batch
    x_adv = attack(trained, x.to(memory_format=torch.channels_last), y, seeded())
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert not attack(trained, x, y, seeded()).is_contiguous(memory_format=torch.channels_last)


def test_misleads_an_undefended_net(attack, trained, batch):
    x, y = batch
    with torch.no_grad():
        wrong = (trained(attack(trained, x, y, seeded())).argmax(1) != y).sum()
    if attack.steps == 0:
        assert wrong == 0
    elif attack.eps >= 64 / 255:
        assert wrong >= 0.9 * len(x)
    elif attack.eps >= 4 / 255:
        assert wrong > 0


@one_of_each_family
def test_works_in_the_callers_no_grad_and_autocast(attack, trained, batch):
    x, y = batch
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x_adv = attack(trained, x, y, seeded())
    assert x_adv.dtype == torch.float32 and (attack.steps == 0) == torch.equal(x_adv, x)


@pytest.mark.parametrize("name", ["fgsm", "pgd10", "trades"])
def test_restores_after_an_exception(name, trained, batch):
    x, y = batch
    trained.train()
    handle = trained.head.register_forward_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            ATTACKS[name](trained, x, y, seeded())
        assert all(module.training for module in trained.modules())
        assert all(parameter.requires_grad for parameter in trained.parameters())
    finally:
        handle.remove()
        trained.eval()


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.rand(2, 3, 16, 16) * 2 - 1, torch.zeros(2, dtype=torch.long), ["[0,1]", "normalised"]),
        (torch.full((2, 3, 16, 16), torch.nan), torch.zeros(2, dtype=torch.long), ["nan", "[0,1]"]),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.long), ["uint8", "floating"]),
        (torch.rand(2, 3, 16, 16), torch.zeros(3, dtype=torch.long), ["(3,)", "(2,)"]),
        (torch.rand(2, 3, 16, 16), torch.zeros(2), ["float32", "whole numbers"]),
    ],
)
@pytest.mark.parametrize("name", ["clean", "fgsm", "bim", "pgd10"])
def test_refuses_wrong_batches(name, x, y, words, trained):
    with pytest.raises(ValueError) as caught:
        ATTACKS[name](trained, x, y, seeded())
    assert all(word in str(caught.value) for word in words)


def test_an_empty_batch_is_no_error(attack, trained):
    assert attack(trained, torch.zeros(0, 3, 16, 16), torch.zeros(0, dtype=torch.long), seeded()).shape == (
        0,
        3,
        16,
        16,
    )


UNBOUNDED = ("corruption", "cw_l2")


@pytest.mark.parametrize("suite", sorted(PROJECT.suites()))
def test_every_suite_resolves(suite):
    settings = PROJECT.attack_settings(suite)
    resolved = [resolve(name, setting) for name, setting in settings.items()]
    bounded = [attack for attack in resolved if attack.parameters["attack"] not in UNBOUNDED]
    assert "clean" in settings and all(0 <= attack.eps <= 64 / 255 for attack in bounded)
    assert all(attack.eps is None for attack in resolved if attack not in bounded)


@pytest.mark.parametrize(
    ("name", "eps", "steps"),
    [
        ("clean", 0, 0),
        ("fgsm", 8 / 255, 1),
        ("fgsm_e07", 0.07, 1),
        ("bim", 8 / 255, 10),
        ("pgd50", 8 / 255, 50),
        ("pgd20_trades", 0.031, 20),
        ("pgd100_ms", 8 / 255, 100),
        ("cw_inf", 8 / 255, 30),
        ("pgd10_e64", 64 / 255, 10),
    ],
)
def test_settings_mean_what_their_names_say(name, eps, steps):
    attack = resolve(name, ALL[name])
    assert (attack.eps, attack.steps) == (pytest.approx(eps, abs=1e-12), steps)


def test_the_sweep_steps_by_a_quarter_of_its_radius():
    sweep = PROJECT.attack_settings("epsilon")
    parameters = [resolve(name, setting).parameters for name, setting in sweep.items() if name != "clean"]
    assert [round(each["eps"] * 255) for each in parameters] == [1, 2, 4, 8, 12, 16, 32, 64]
    assert all(each["step_size"] == pytest.approx(each["eps"] / 4) for each in parameters)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"attack": "pgdd"}, ["'mine'", "'pgdd'", "did you mean 'pgd'", "fgsm"]),
        ({"eps": "8/255"}, ["'mine'", "'attack'", "missing"]),
        ({"attack": "fgsm", "eps": "8/255", "steps": 3}, ["'mine'", "fgsm", "'steps'", "allowed: eps"]),
        ({"attack": "pgd", "eps": "8/255", "step_size": 0.01}, ["'mine'", "pgd", "'steps'", "missing"]),
        ({"attack": "pgd", "eps": "8/0", "step_size": 0.01, "steps": 3}, ["'mine'", "eps", "'8/0'"]),
        ({"attack": "pgd", "eps": 0.1, "step_size": 0.01, "steps": 3.0}, ["'mine'", "steps", "3.0", "whole"]),
        ({"attack": "pgd", "eps": 0.1, "step_size": 0.01, "steps": 3, "generator": 1}, ["'generator'", "allowed"]),
    ],
)
def test_resolve_names_setting_key_and_allowed(setting, words):
    with pytest.raises(ConfigError) as caught:
        resolve("mine", setting)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.1}, ["in x", "'epsilon'", "did you mean 'eps'", "pgd.py: PARAMETERS"]),
        ({"eps": "eight"}, ["x.eps", "eight", "8/255"]),
        ({"eps": 8}, ["x.eps", "8", "from 0 to 1"]),
        ({"steps": 0}, ["x.steps", "0", "a whole number from 1"]),
        ({"steps": None}, ["x.steps", "None", "integer"]),
        ({"loss": "hinge"}, ["x.loss", "'hinge'", "margin"]),
        # Of another family, and of none.
        ({"n_queries": 5}, ["in x", "'n_queries'", "pgd.py: PARAMETERS"]),
        ({"generator": 1}, ["in x", "'generator'"]),
        ({"requires": "gate"}, ["x.requires", "'gate'", "experts, router"]),
        ({"limit": 0}, ["x.limit", "0", "null for all"]),
        ({"protocol": "wrong"}, ["x.protocol", "'wrong'", "normalised-noclip"]),
        ({"attack": "pgdd"}, ["x.attack", "'pgdd'", "did you mean 'pgd'"]),
        ({"attack": 3}, ["x.attack", "3", "string"]),
        ({"attack": "none"}, ["in x", "'eps'"]),
    ],
)
def test_the_schema_is_closed(change, words):
    setting = {"attack": "pgd", "eps": "8/255", "step_size": 0.01, "steps": 3, **change}
    with pytest.raises(ConfigError) as caught:
        attack_schema.check({"x": setting}, PROJECT.root, source="config/attacks.yaml")
    assert all(word in str(caught.value) for word in ["config/attacks.yaml: ", *words]), caught.value


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"x": {"eps": 0.1}}, ["in x", "'attack'", "missing"]),
        ({"x": {"attack": "pgd", "eps": 0.1, "step_size": 0.1}}, ["in x", "'steps'", "missing"]),
        ({"x": 3}, ["x: 3", "object"]),
        ({}, ["non-empty"]),
        ({"X": {"attack": "none"}}, ["'X'", "small letters"]),
    ],
)
def test_incomplete_settings_are_refused(settings, words):
    with pytest.raises(ConfigError) as caught:
        attack_schema.check(settings, PROJECT.root, source="config/attacks.yaml")
    assert all(word in str(caught.value) for word in ["config/attacks.yaml: ", *words]), caught.value


# -- families ------------------------------------------------------------------


@pytest.mark.parametrize("family", attacks.names())
def test_a_family_declares_the_keywords_of_its_function(family):
    """In their order; a generator and a space are for callers, not for settings. Defaults are allowed by it."""
    keywords = [
        parameter
        for parameter in inspect.signature(attacks.get(family)).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("generator", "space")
    ]
    declared = plugins.attack_parameters(family)
    assert list(declared) == [parameter.name for parameter in keywords]
    assert all(each.allowed["description"] for each in declared.values())
    required = {parameter.name for parameter in keywords if parameter.default is parameter.empty}
    assert {name for name, each in declared.items() if each.allowed["required"]} == required
    defaults = {parameter.name: parameter.default for parameter in keywords if parameter.name not in required}
    check_parameters({name: declared[name].allowed for name in defaults}, **defaults)


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        ({"type": "boolean"}, [True, False], [1, "true", None]),
        ({"type": "number", "minimum": 0, "maximum": 2}, [0, 0.5, 2], [-1, 2.5, math.nan, "1"]),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1]),
        ({"type": "integer", "maximum": 4}, [-3, 4], [5, 1.0, True]),
        ({"type": ["integer", "null"], "minimum": 1}, [1, None], [0, "1"]),
        ({"type": "distance"}, [0, 8 / 255, 1], [-0.1, 8]),
        ({"type": "count"}, [1, 100], [0, 1.0]),
        ({"type": "string", "pattern": "^a"}, ["ab"], ["ba", 1]),
        ({"enum": ["up", 2]}, ["up", 2], ["down"]),
        ({"type": "array", "items": {"type": "count"}, "minItems": 1, "maxItems": 2}, [[1], [1, 2]], [[], [0], 1]),
        ({"type": "object", "properties": {"low": {"type": "number"}}}, [{"low": 1}], [{}, {"lo": 1}, {"low": "1"}]),
    ],
    ids=str,
)
def test_a_plan_and_the_function_read_a_declaration_alike(allowed, good, bad):
    shared = schema.read_yaml(PROJECT.root / "workflow/schemas/attacks.schema.yaml")
    planned = schema.validator(in_json_schema(allowed, shared["$defs"], "a test"))
    for value in good:
        check_parameters({"it": allowed}, it=value)
    for value in bad:
        with pytest.raises(ConfigError, match="it: .* is not allowed; ."):
            check_parameters({"it": allowed}, it=value)
    assert all(map(planned.is_valid, good)) and not any(map(planned.is_valid, bad))


def test_the_manuals_examples_run():
    examples = doctest.DocTestParser().get_doctest(attacks.__doc__, {}, "moat.attacks", None, None)
    assert len(examples.examples) > 8
    assert doctest.DocTestRunner(verbose=False).run(examples).failed == 0


SHIFT = """
from moat.attacks.parts.arguments import attack

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the ball"},
    "direction": {"enum": ["up", "down"], "description": "brighter or darker"},
}
PASSES = 1


@attack(PARAMETERS)
def shift(model, x, y, *, eps, direction="up"):
    return x + (eps if direction == "up" else -eps)
"""


@pytest.fixture
def project(tmp_path):
    """A project with an attack of its own, in one file and one entry of attacks.yaml."""
    copy_project(tmp_path)
    (tmp_path / "plugins" / "attacks").mkdir(parents=True, exist_ok=True)
    (tmp_path / "plugins" / "attacks" / "shift.py").write_text(SHIFT)
    with open(tmp_path / "config" / "attacks.yaml", "a") as stream:
        stream.write('darker: {attack: shift, eps: "16/255", direction: down}\n')
    yield Project(tmp_path)
    plugins.use_project(PROJECT.root)
    sys.modules.pop("moat.attacks.shift", None)


def test_an_attack_of_a_projects_own_is_one_file_and_one_entry(project, trained, batch):
    setting = project.attack("darker", where="a test")
    assert "shift" in attacks.names() and plugins.attack_passes()["shift"] == 1
    rows = evaluate(trained, *batch, {"darker": setting}, batch_size=64)
    darkened = torch.clamp(batch[0] - 16 / 255, 0, 1)
    with torch.no_grad():
        assert rows["predicted"].tolist() == trained(darkened).argmax(1).tolist()
    assert resolve("darker", setting).parameters == {"attack": "shift", "eps": 16 / 255, "direction": "down"}
    assert attacks.shift is attacks.get("shift")
    for wrong, words in (({"direction": "left"}, ["x.direction", "'left'"]), ({"steps": 3}, ["'steps'", "shift.py"])):
        with pytest.raises(ConfigError) as caught:
            attack_schema.check({"x": {**setting, **wrong}}, project.root, source="config/attacks.yaml")
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def shift(model, x, y, *, eps):\n    return x\n", ["plugins/attacks/shift.py", "PARAMETERS", "missing"]),
        (SHIFT.replace('"direction": {', '"way": {'), ["plugins/attacks/shift.py", "'way'", "shift"]),
        (SHIFT.replace('["up", "down"]', "list('ud')"), ["plugins/attacks/shift.py", "literal"]),
        (SHIFT.replace('"enum"', '"oneof"'), ["plugins/attacks/shift.py", "'oneof'", "enum"]),
    ],
)
def test_a_wrong_declaration_is_named(source, words, project):
    (project.root / "plugins" / "attacks" / "shift.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        project.attacks()
    assert all(word in str(caught.value) for word in words), caught.value
