"""What the checks report, on residual nets; the table of pathologies is test_pathologies.py."""

import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import frozen
from moat.base.errors import ConfigError, DataError
from moat.evaluation import checks, statistics, verify
from moat.evaluation.checks import CheckReport, CheckResult, chance, registry, stages
from moat.evaluation.evidence import Budget, Evidence, Origin
from moat.evaluation.runner import evaluate

CHECKS = [
    "threat-model",
    "determinism",
    "fresh-judge",
    "finite-logits",
    "router",
    "router-aware",
    "gradient",
    "gradient-agreement",
    "monotone-epsilon",
    "iterative-at-most-fgsm",
    "converged",
    "black-box",
    "autoattack-flags",
    "published-band",
    "provenance",
    "calibration",
]
NOT_HERE = ["router", "router-aware", "published-band"]
BUDGET = Budget(steps=8, queries=300)


@pytest.mark.parametrize(
    ("states", "interval", "said", "table"),
    [
        (
            ["passed"],
            (0.25, 0.75),
            "passed; worst case 50.0% [25.0%, 75.0%] at eps 0.03137, n = 8",
            "1 of 1 checks passed",
        ),
        (["passed", "failed"], None, "failed: c1; worst case not measured at eps 0.03137, n = 8", "FAILED  c1  m1"),
        (["not-applicable", "passed"], (0, 1), "passed; worst case", "1 of 1 checks passed; 1 not applicable"),
        (
            ["passed", "not-enough-examples", "not-enough-queries", "unknown"],
            (0, 1),
            "passed; worst case",
            "1 of 1 checks passed; 0 not applicable; undecided: c1, c2, c3",
        ),
        (["not-enough-examples"], (0, 1), "passed; worst case", "too few c0  m0"),
    ],
)
def test_a_report_is_a_short_repr_and_prints_as_a_table(states, interval, said, table):
    results = tuple(CheckResult(f"c{n}", state, {}, {}, f"m{n}") for n, state in enumerate(states))
    report = CheckReport(results, 0.5 if interval else None, interval, 8 / 255, 8, Budget())
    assert said in repr(report) and "\n" not in repr(report)
    lines = str(report).splitlines()
    assert len(lines) == len(states) + 2 and any(table in line for line in lines)


class Around(nn.Module):
    """``before`` on the images, the net, ``after`` on the logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def only_for_gradients_nan(x):
    """The image itself, whose derivative is NaN."""
    return x + torch.sqrt((x - x.detach()).abs()) * 0


PATHOLOGIES = {
    "batch statistics": (lambda net: Around(net, after=lambda z: z - z.mean(0)), {"determinism"}),
    "nan logits": (
        lambda net: Around(net, after=lambda z: z * torch.nan),
        {"finite-logits", "determinism", "gradient", "converged", "black-box"},
    ),
    "infinite logits": (lambda net: Around(net, after=lambda z: z * torch.inf), {"finite-logits"}),
    "nan gradients": (lambda net: Around(net, before=only_for_gradients_nan), {"gradient", "monotone-epsilon"}),
}


@pytest.mark.parametrize("n", [chance.ENOUGH - 1, chance.ENOUGH])
def test_few_examples_pass_nothing_that_chance_may_excuse(n):
    few_or_enough = "not-enough-examples" if n < chance.ENOUGH else "passed"
    values, limits = {"fooled": 0.0}, {"fooled": chance.upper_limit(n, 0.005)}
    assert registry.judged(values, limits, n=n) == few_or_enough
    assert registry.judged(values, limits) == "passed"
    assert registry.judged({"fooled": 0.5}, limits, n=n) == "failed"
    assert (limits["fooled"] <= 0.05) == (n >= chance.ENOUGH)


def test_the_checks():
    assert checks.names() == CHECKS


@pytest.fixture(scope="module")
def few(test_images):
    """40 images."""
    return test_images[0][:40], test_images[1][:40]


@pytest.fixture(scope="module")
def reports(request, few):
    """The report on one of the nets, made when it is first asked for: training the defended one takes long."""
    return functools.cache(lambda name: verify(request.getfixturevalue(name), *few, budget=BUDGET))


@pytest.mark.brief(keep=lambda case: case["name"] == "undefended")
@pytest.mark.parametrize("name", ["undefended", "defended"])
def test_honest_nets_pass(name, reports):
    report = reports(name)
    assert report.passed and report.failed == [], [check.message for check in report.checks if not check.passed]
    assert [result.check for result in report.checks] == CHECKS
    at_largest = next(check for check in report.checks if check.check == "monotone-epsilon").value[
        "accuracy_at_largest"
    ]
    assert at_largest <= 0.05
    assert report.not_applicable == NOT_HERE
    assert all(check.passed and not check.value for check in report.checks if check.state == "not-applicable")


@pytest.mark.long
def test_defence_shows_in_the_worst_case(reports):
    undefended, defended = (reports(name).worst_case_accuracy for name in ("undefended", "defended"))
    assert undefended + 0.1 < defended


@pytest.mark.brief(keep=lambda case: case["name"] == "nan gradients")
@pytest.mark.parametrize("name", sorted(PATHOLOGIES))
def test_pathologies_fail_their_checks(name, undefended, few):
    make, expected = PATHOLOGIES[name]
    torch.manual_seed(0)
    report = verify(make(undefended).eval(), *few, budget=BUDGET)
    assert not report.passed and expected <= set(report.failed)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.fixture(scope="module")
def asked(request, few):
    """One check's result on one of the nets."""

    def ask(check, net="undefended", settings=None, **options):
        model = request.getfixturevalue(net)
        evidence = Evidence(model, *few, 8 / 255, 40, 0, settings or {}, **{"budget": BUDGET, **options})
        with frozen(model):
            return registry.run(check, evidence)

    return ask


def test_an_attack_that_leaves_the_ball_fails_the_threat_model(asked):
    outside = Attack(lambda model, x, y: x - 0.05, eps=8 / 255, steps=1, takes_generator=False)
    result = asked("threat-model", settings={"outside": outside})
    assert result.state == "failed"
    assert result.value["outside_pixels"] == pytest.approx(0.05)
    assert result.value["over_eps"] == pytest.approx(0.05 - 8 / 255)


@pytest.mark.brief(keep=lambda case: case["name"] == "pgd50")
@pytest.mark.parametrize(
    ("name", "steps", "made", "missing"),
    [("mine", 50, 1, 49), ("pgd50", 1, 1, 49), ("PGD-50", 50, 50, 0), ("bim10", 10, 4, 6), ("mine", 1, 1, 0)],
)
def test_steps_that_are_claimed_are_counted(asked, name, steps, made, missing):
    def passes(model, x, y):
        for _ in range(made):
            model(x)
        return x

    attack = Attack(passes, eps=8 / 255, steps=steps, takes_generator=False)
    result = asked("threat-model", settings={name: attack})
    assert result.value["missing_steps"] == missing and (result.state == "failed") == (missing > 0)


@pytest.mark.long
def test_a_claim_with_the_name_of_ours_does_not_replace_it(asked):
    weak = {"attack": "pgd", "eps": 8 / 255, "step_size": 1 / 255, "steps": 1}
    weakest = asked("iterative-at-most-fgsm", settings={"pgd": weak}).message
    assert weakest == asked("iterative-at-most-fgsm").message


def test_an_attack_weaker_than_one_step_is_noticed(asked):
    assert asked("iterative-at-most-fgsm", budget=Budget(steps=1, queries=100)).state == "failed"


@pytest.mark.long
@pytest.mark.parametrize(
    ("band", "state"),
    [
        ({"clean": [0, 99], "pgd": [0, 99]}, "passed"),
        ({"clean": [0, 50]}, "failed"),
        ({"clean": [0, 99], "pgd": [5, 20]}, "failed"),
        ({"pgd": [99, 100]}, "passed"),
        ({"pgd": [5, 20], "eps": 8 / 255}, "failed"),
        ({"pgd": [5, 20], "eps": 4 / 255}, "failed"),
        ({"clean": [0, 99], "pgd": [5, 20], "eps": 9 / 255}, "passed"),
        (None, "not-applicable"),
    ],
)
def test_suspiciously_good_is_above_the_band_by_its_whole_interval(asked, band, state):
    origin = Origin(band=None if band is None else {**band, "source": "a test"}, no_band="a reason")
    result = asked("published-band", "defended", origin=origin)
    assert result.state == state
    assert ("a reason" if band is None else "a test") in result.message
    assert ("(below)" in result.message) == (band == {"pgd": [99, 100]})


@pytest.mark.long
def test_a_band_at_a_larger_radius_alone_does_not_apply(asked):
    band = {"pgd": [5, 20], "eps": 9 / 255, "source": "a test"}
    result = asked("published-band", "defended", origin=Origin(band=band))
    assert result.state == "not-applicable" and "9/255" in result.message


@pytest.mark.long
@pytest.mark.parametrize(
    ("queries", "n", "state"),
    [
        (100, 60, "not-enough-queries"),
        (300, 60, "passed"),
        (100, 40, "not-enough-queries"),
        (300, 40, "not-enough-examples"),
    ],
)
def test_queries_that_would_not_notice_an_undefended_net_decide_nothing(defended, test_images, queries, n, state):
    x, y = (values[:n] for values in test_images)
    with frozen(defended):
        result = registry.run(
            "black-box", Evidence(defended, x, y, 8 / 255, n, 0, budget=Budget(steps=8, queries=queries))
        )
    assert result.state == state and result.passed, result.message
    assert ("decide nothing" in result.message) == (queries == 100)


@pytest.mark.long
def test_examples_of_another_model_are_tried(asked, defended, undefended):
    result = asked("black-box", "defended", transfer_from=undefended)
    assert set(result.value) - {"square_on_a_masked_net"} == {"square", "transfer"} == set(result.limit)


@pytest.mark.parametrize(
    ("n", "share", "most"), [(60, 0.005, 3 / 60), (100, 0.005, 0.04), (1000, 0.005, 0.013), (50, 0.0, 0.0)]
)
def test_the_allowance_for_chance_is_that_of_the_binomial_test(n, share, most):
    from scipy.stats import binomtest

    assert chance.upper_limit(n, share) == most
    assert binomtest(round(most * n) + 1, n, share or 1e-12, alternative="greater").pvalue < chance.FALSE_ALARMS
    if most:
        assert binomtest(round(most * n), n, share, alternative="greater").pvalue >= chance.FALSE_ALARMS


@pytest.mark.parametrize(
    ("n", "share", "least"), [(24, 0.05, 1 / 24), (1000, 0.05, 0.03), (10_000, 0.05, 0.0434), (1, 0.5, 1.0)]
)
def test_so_few_may_be_chance_but_none_never_are(n, share, least):
    from scipy.stats import binomtest

    assert chance.lower_limit(n, share) == least
    if least * n > 1:
        assert binomtest(round(least * n) - 1, n, share, alternative="less").pvalue < chance.FALSE_ALARMS


@pytest.mark.long
def test_the_worst_case_is_that_of_all_attacks(defended, few, reports):
    x, y = few
    report = reports("defended")
    pgd = {"attack": "pgd", "eps": 8 / 255, "step_size": 2 / 255, "steps": 8}
    settings = {
        "clean": {"attack": "none"},
        "fgsm": {"attack": "fgsm", "eps": 8 / 255},
        "pgd": pgd,
        "margin": {**pgd, "loss": "margin"},
        "pgd, 2 times the steps": {**pgd, "steps": 16},
        "margin, 2 times the steps": {**pgd, "steps": 16, "loss": "margin"},
        "pgd, another start": {**pgd, "steps": 16},
        "margin, another start": {**pgd, "steps": 16, "loss": "margin"},
    }
    assert next(check for check in report.checks if check.check == "converged").value["steps"] == 16
    frame = evaluate(defended, x, y, settings, batch_size=250)
    correct, n = statistics.accuracy(frame, list(settings))
    # Square, whose numbers the batch can move, may add to that.
    assert (correct - 1) / n <= report.worst_case_accuracy <= correct / n and report.n == n
    assert report.worst_case_interval == statistics.wilson(round(report.worst_case_accuracy * n), n)


def test_steps_are_doubled_until_that_changes_little(undefended, few):
    """A step so small that every doubling reaches further: it never converges, and that is said."""
    x, y = few
    evidence = Evidence(undefended, x, y, 40 / 255, 40, 0, budget=BUDGET)
    tiny = {"attack": "pgd", "eps": 40 / 255, "step_size": 1 / 255, "steps": 5}
    with pytest.MonkeyPatch.context() as patch, frozen(undefended):
        patch.setattr(stages, "_white_box", lambda evidence, factor: {"pgd": {**tiny, "steps": 5 * factor}})
        patch.setattr(Evidence, "within_eps", ["clean"])
        found = stages.stage(evidence, "doubled")
    doublings = [name for name in found.misclassified if "times" in name]
    assert doublings == [f"pgd, {factor} times the steps" for factor in (2, 4, 8)]
    sizes = [len(found.misclassified[name]) for name in doublings]
    assert min(sizes) > 0 and len(set(np.concatenate([found.misclassified[name] for name in doublings]))) == sum(sizes)


@pytest.mark.long
def test_claimed_attacks_count_in_the_worst_case(undefended, few, reports):
    # A copy of an image of the next class in the list, as far as the ball allows: misleads other examples than PGD.
    towards = Attack(lambda model, x, y: x + (x.roll(1, 0) - x).clamp(-8 / 255, 8 / 255), 8 / 255, 1, False)
    report = verify(undefended, *few, settings={"towards": towards}, budget=BUDGET)
    frame = evaluate(undefended, *few, {"towards": towards}, batch_size=40)
    assert report.worst_case_accuracy <= min(frame["correct"].mean(), reports("undefended").worst_case_accuracy)


def test_the_report_as_json(reports):
    content = json.loads(json.dumps(reports("undefended").to_dict(), allow_nan=False))
    states = {"passed", "failed", "not_applicable"}
    assert set(content) == states | {"worst_case_accuracy", "worst_case_interval", "eps", "n", "budget", "checks"}
    assert content["n"] == 40 and content["eps"] == 8 / 255 and content["passed"] is True
    assert content["budget"] == {"steps": 8, "queries": 300}
    assert all(set(check) == {"check", "state", "passed", "value", "limit", "message"} for check in content["checks"])
    assert all(set(check["limit"]) <= set(check["value"]) for check in content["checks"])


@pytest.mark.long
def test_the_model_is_left_as_it_was(undefended, test_images):
    gradients = [parameter.grad for parameter in undefended.parameters()]
    undefended.train()
    verify(undefended, test_images[0][:5], test_images[1][:5], budget=Budget(steps=1, queries=1))
    assert all(module.training for module in undefended.modules())
    assert all(parameter.requires_grad for parameter in undefended.parameters())
    assert all(parameter.grad is grad for parameter, grad in zip(undefended.parameters(), gradients, strict=True))
    undefended.eval()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"eps": 8}, ConfigError, ["eps", "8", "8/255"]),
        ({"batch_size": 0}, ConfigError, ["batch size 0"]),
        ({"budget": Budget(steps=0)}, ConfigError, ["steps", "0"]),
        ({"budget": Budget(queries=0)}, ConfigError, ["queries", "0"]),
        ({"settings": {"mine": {"attack": "nope"}}}, ConfigError, ["'mine'", "'nope'"]),
        ({"y": torch.tensor([12])}, DataError, ["12", "10 classes"]),
        ({"x": torch.full((1, 3, 16, 16), 2.0)}, DataError, ["[0,1]"]),
    ],
)
def test_wrong_arguments_are_no_findings(options, error, words, undefended):
    arguments = {"x": torch.rand(1, 3, 16, 16), "y": torch.zeros(1, dtype=torch.long), **options}
    with pytest.raises(error) as caught:
        verify(undefended, **arguments)
    assert all(word in str(caught.value) for word in words)
