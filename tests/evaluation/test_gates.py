"""Honest nets pass every gate; each pathology fails the gate that looks for it."""

import json

import pytest
import torch
from torch import nn

from moat.attacks.suites import Attack
from moat.errors import ConfigError, DataError
from moat.evaluation import gates, statistics, verify
from moat.evaluation.runner import evaluate

GATES = [
    "threat-model",
    "determinism",
    "finite-logits",
    "gradient",
    "monotone-epsilon",
    "iterative-at-most-fgsm",
]


class Around(nn.Module):
    """A defended-looking net: ``before`` on the images, the net, ``after`` on the logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def only_for_gradients_nan(x):
    """The image itself, whose derivative is NaN."""
    return x + torch.sqrt((x - x.detach()).abs()) * 0


PATHOLOGIES = {
    "saturated": (lambda net: Around(net, after=lambda z: z * 1000), {"finite-logits", "gradient"}),
    "noisy": (lambda net: Around(net, before=lambda x: x + 0.1 * torch.randn_like(x)), {"determinism"}),
    "batch statistics": (lambda net: Around(net, after=lambda z: z - z.mean(0)), {"determinism"}),
    "quantised": (lambda net: Around(net, before=lambda x: (x * 8).round() / 8), {"gradient", "monotone-epsilon"}),
    "cut graph": (lambda net: Around(net, before=lambda x: x.detach()), {"gradient", "monotone-epsilon"}),
    "nan logits": (
        lambda net: Around(net, after=lambda z: z * torch.nan),
        {"finite-logits", "determinism", "gradient"},
    ),
    "infinite logits": (lambda net: Around(net, after=lambda z: z * torch.inf), {"finite-logits"}),
    "nan gradients": (lambda net: Around(net, before=only_for_gradients_nan), {"gradient", "monotone-epsilon"}),
}


def test_the_gates():
    assert gates.names() == GATES


@pytest.fixture(scope="module")
def few(test_images):
    """60 images."""
    return test_images[0][:60], test_images[1][:60]


@pytest.fixture(scope="module")
def reports(undefended, defended, few):
    return {"undefended": verify(undefended, *few), "defended": verify(defended, *few)}


@pytest.mark.parametrize("name", ["undefended", "defended"])
def test_honest_nets_pass(name, reports):
    report = reports[name]
    assert report.passed and report.failed == [], [gate.message for gate in report.gates if not gate.passed]
    assert [result.gate for result in report.gates] == GATES
    at_largest = next(gate for gate in report.gates if gate.gate == "monotone-epsilon").value["accuracy_at_largest"]
    assert at_largest <= 0.05


def test_defence_shows_in_the_worst_case(reports):
    undefended, defended = (reports[name].worst_case_accuracy for name in ("undefended", "defended"))
    assert undefended + 0.1 < defended


@pytest.mark.parametrize("name", sorted(PATHOLOGIES))
def test_pathologies_fail_their_gates(name, undefended, few):
    make, expected = PATHOLOGIES[name]
    torch.manual_seed(0)
    report = verify(make(undefended).eval(), *few)
    assert not report.passed and expected <= set(report.failed)
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_attack_that_leaves_the_ball_fails_the_threat_model(undefended, few):
    outside = Attack(lambda model, x, y: x - 0.05, eps=8 / 255, steps=1, takes_generator=False)
    report = verify(undefended, *few, settings={"outside": outside})
    assert report.failed == ["threat-model"]
    assert report.gates[0].value["outside_pixels"] == pytest.approx(0.05)
    assert report.gates[0].value["over_eps"] == pytest.approx(0.05 - 8 / 255)


def test_an_attack_weaker_than_one_step_is_noticed(undefended, few, monkeypatch):
    from moat.evaluation import evidence

    monkeypatch.setattr(evidence, "STEPS", 1)
    monkeypatch.setattr(evidence, "LARGEST_STEPS", 1)
    failed = verify(undefended, *few).failed
    assert "iterative-at-most-fgsm" in failed


def test_the_worst_case_is_that_of_the_rows(defended, few, reports):
    x, y = few
    report = reports["defended"]
    settings = {
        "clean": {"attack": "none"},
        "fgsm": {"attack": "fgsm", "eps": 8 / 255},
        "pgd": {"attack": "pgd", "eps": 8 / 255, "step_size": 2 / 255, "steps": 10},
    }
    frame = evaluate(defended, x, y, settings, batch_size=250)
    correct, n = statistics.accuracy(frame, list(settings))
    assert (report.worst_case_accuracy, report.n) == (correct / n, n)
    assert report.worst_case_interval == statistics.wilson(correct, n)


def test_further_attacks_count_in_the_worst_case(undefended, few, reports):
    # A copy of an image of the next class in the list, as far as the ball allows: misleads other examples than PGD.
    towards = Attack(lambda model, x, y: x + (x.roll(1, 0) - x).clamp(-8 / 255, 8 / 255), 8 / 255, 1, False)
    report = verify(undefended, *few, settings={"towards": towards})
    frame = evaluate(undefended, *few, {"towards": towards}, batch_size=60)
    assert report.worst_case_accuracy <= min(frame["correct"].mean(), reports["undefended"].worst_case_accuracy)


def test_the_report_as_json(reports):
    content = json.loads(json.dumps(reports["defended"].to_dict(), allow_nan=False))
    assert set(content) == {"passed", "failed", "worst_case_accuracy", "worst_case_interval", "eps", "n", "gates"}
    assert content["n"] == 60 and content["eps"] == 8 / 255 and content["passed"] is True
    assert all(set(gate) == {"gate", "passed", "value", "limit", "message"} for gate in content["gates"])
    assert all(set(gate["value"]) == set(gate["limit"]) for gate in content["gates"])


def test_the_model_is_left_as_it_was(undefended, test_images):
    gradients = [parameter.grad for parameter in undefended.parameters()]
    undefended.train()
    verify(undefended, test_images[0][:5], test_images[1][:5])
    assert all(module.training for module in undefended.modules())
    assert all(parameter.requires_grad for parameter in undefended.parameters())
    assert all(parameter.grad is grad for parameter, grad in zip(undefended.parameters(), gradients, strict=True))
    undefended.eval()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"eps": 8}, ConfigError, ["eps", "8", "8/255"]),
        ({"batch_size": 0}, ConfigError, ["batch size 0"]),
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
