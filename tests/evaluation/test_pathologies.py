"""What each check is for: pathologies that must be caught, by which check, and honest models that must pass all.

All models are nets trained here on real digits; all checks are the real ones, on images that no net was trained on
(but for the model that is accused of just that).
"""

import copy
import functools
from dataclasses import dataclass, replace

import pytest
import torch
from double import double
from falsely_robust import (
    MEMORY,
    AntiAdversary,
    ImageSeededNoise,
    Memorises,
    OffGrid,
    OtherCopy,
    Quantises,
    Remembers,
    Ripples,
    SharesItsMemory,
    with_a_shared_memory,
    with_winners,
)
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from moat.attacks import pgd
from moat.attacks.parts.setting import Attack
from moat.base.errors import DataError
from moat.commands.fresh_process import FreshProcess
from moat.commands.options import ForeignModel
from moat.evaluation import evaluate, verify
from moat.evaluation.checks import registry
from moat.evaluation.checks.known_models import Linear
from moat.evaluation.evidence import Budget, Evidence, Origin
from moat.evaluation.fresh_judge import FreshJudge, fresh_copy
from moat.models import nets
from moat.models.moe import build_moe_cnn

EPS = 16 / 255
STATISTICS = ([0.3], [0.37])
BUDGET = Budget(steps=8, queries=300)
TRAIN, HELD_OUT, TEST = slice(0, 1400), slice(1400, 1700), slice(1700, 1797)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@functools.cache
def images():
    """Digits (1797, 3, 16, 16) in a random order, and their labels."""
    content = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(content.images / 16, dtype=torch.float32)[order, None].expand(-1, 3, -1, -1).contiguous()
    return F.interpolate(x, 16, mode="bilinear").clamp(0, 1), torch.tensor(content.target)[order]


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x), y)


@torch.enable_grad()
def train(model, part, *, epochs, attack=lambda model, x, y: x, loss=cross_entropy, lr=0.05, data=None):
    """In float64, so that every processor comes to the same net; returned in float32."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    x, y = (values[part] for values in data or images())
    x = x.double()
    draw = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=draw).split(50):
            attacked = attack(model, x[rows], y[rows])
            optimizer.zero_grad()
            loss(model.train(), attacked, y[rows]).backward()
            optimizer.step()
    return model.float().eval()


def some_pgd(model, x, y):
    return pgd(model, x, y, eps=EPS, step_size=EPS / 2, steps=2)


@double()
def dense():
    torch.manual_seed(0)
    return nets.build("lenet5", 10, image_size=16, normalize=STATISTICS)


@functools.cache
def undefended():
    return train(dense(), TRAIN, epochs=8)


@functools.cache
def defended():
    return train(dense(), TRAIN, epochs=8, attack=some_pgd)


@functools.cache
def memorising():
    """Trained on the test images alone."""
    return train(dense(), TEST, epochs=150, lr=0.02)


class Halved(nn.Module):
    """Images at half the size: a residual mixture takes its time."""

    def forward(self, x):
        return F.avg_pool2d(x, 2)


@functools.cache
def winners():
    """Every ReLU of it lets only the largest tenth pass."""
    with double():
        return train(with_winners(dense(), 0.1), TRAIN, epochs=8)


@functools.cache
def zeros_and_ones():
    """In black and white: as with MNIST, a net can tell them apart at a large radius."""
    x, y = images()
    chosen = y < 2
    return (x[chosen] > 0.5).float(), y[chosen]


@functools.cache
def robust_at_large_radius():
    def large_pgd(model, x, y):
        return pgd(model, x, y, eps=0.3, step_size=0.15, steps=3)

    torch.manual_seed(0)
    with double():
        model = nets.build("lenet5", 2, image_size=16, normalize=STATISTICS)
    x, y = zeros_and_ones()
    return train(model, slice(260), epochs=15, attack=large_pgd, data=(x, y))


@functools.cache
def ten_patterns():
    """Black and white images of ten random patterns, a twentieth of whose fields are turned round."""
    draw = torch.Generator().manual_seed(0)
    patterns = torch.randint(0, 2, (10, 1, 8, 8), generator=draw)
    y = torch.arange(700) % 10
    turned = torch.rand(700, 1, 8, 8, generator=draw) < 0.05
    x = (patterns[y] ^ turned.long()).float().expand(-1, 3, -1, -1)
    return F.interpolate(x, 16).contiguous(), y


@functools.cache
def robust_to_nearly_all():
    """As nets on MNIST are: of ten classes, and robust at 0.3, which it learns after 0.2."""
    model = dense()
    for eps, epochs in ((0.2, 4), (0.3, 8)):
        attack = functools.partial(pgd, eps=eps, step_size=eps / 2, steps=3)
        train(model.double(), slice(600), epochs=epochs, attack=attack, data=ten_patterns(), lr=0.02)
    return model


class Bfloat16(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).bfloat16()

    def forward(self, x):
        return self.net(x.bfloat16()).float()


@functools.cache
def routed():
    """A mixture of two experts whose router tells even from odd digits."""
    torch.manual_seed(0)
    with double():
        model = build_moe_cnn("resnet18", 10, width=1 / 16, image_size=8, normalize=STATISTICS)
    model.normalize = nn.Sequential(Halved(), model.normalize)
    model.router = nn.Sequential(Halved(), model.router)

    def loss(model, x, y):
        # As ADVMoE trains: the classification does not train the router, whose scores would run away.
        scores = model.route_logits(x)
        return F.cross_entropy(model.classify(x, scores.detach()), y) + F.cross_entropy(scores, y % 2)

    return train(model, TRAIN, epochs=4, loss=loss, lr=0.02)


# -- pathologies -----------------------------------------------------------------


class Around(nn.Module):
    """``before`` on the images, the net, ``after`` on the logits."""

    def __init__(self, net, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


class WithRouter(nn.Module):
    """A routed net whose router is called ``wrap``-ped, and reached by gradients only if ``follow``."""

    def __init__(self, net, wrap=lambda scores: scores, before=lambda x: x, follow=True):
        super().__init__()
        self.net, self.router = net, Around(net.router, before, wrap)
        self.follow = follow

    def route_logits(self, x):
        return self.router(x)

    def forward(self, x):
        scores = self.route_logits(x)
        return self.net.classify(x, scores if self.follow else scores.detach())


def quantise(x):
    return (x * 8).round() / 8


def noise(scores):
    return scores + 3 * torch.randn_like(scores)


def one_step(model, x, y, generator=None):
    return pgd(model, x, y, eps=EPS, step_size=2 / 255, steps=1, generator=generator)


def normalised_attack(model, x, y, generator=None, clip=False):
    """PGD-10 on images that the loader has normalised: eps counts in standard deviations."""
    mean, std = STATISTICS[0][0], STATISTICS[1][0]
    z = moved = (x - mean) / std
    for _ in range(10):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(moved * std + mean), y), moved)
        moved = torch.clamp(moved + EPS / 4 * slope.sign(), z - EPS, z + EPS)
    found = moved.detach() * std + mean
    return found.clamp(0, 1) if clip else found


def without_normalisation():
    model = dense().float()
    model.load_state_dict(defended().state_dict())
    model.normalize = nn.Identity()
    return model.eval()


@dataclass
class Case:
    """A model (or a claim about an honest one), and the checks that must fail at least."""

    model: object
    failing: set
    settings: dict | None = None
    origin: Origin = Origin()
    budget: Budget = BUDGET


def collapsed():
    return WithRouter(routed(), wrap=lambda scores: scores + torch.tensor([1e3, 0.0]))


PATHOLOGIES = {
    "hard routing that blocks gradients": Case(lambda: WithRouter(routed(), follow=False), {"gradient"}),
    "a router whose noise is left on": Case(lambda: WithRouter(routed(), noise), {"determinism", "autoattack-flags"}),
    "a quantised router": Case(lambda: WithRouter(routed(), before=quantise), {"gradient"}),
    "a NaN router": Case(lambda: WithRouter(routed(), lambda scores: scores * torch.nan), {"router"}),
    "a router that uses one expert": Case(collapsed, {"router"}),
    "logits x 1000": Case(lambda: Around(undefended(), after=lambda z: z * 1000), {"finite-logits", "gradient"}),
    "probabilities for logits": Case(lambda: Around(defended(), after=lambda z: z.softmax(1)), {"autoattack-flags"}),
    "an input-quantising defence": Case(lambda: Around(undefended(), quantise), {"gradient", "monotone-epsilon"}),
    "a gradient cut off": Case(
        lambda: Around(undefended(), lambda x: x.detach()), {"gradient", "monotone-epsilon", "black-box"}
    ),
    "a model trained on the test set": Case(memorising, {"provenance"}, origin="held out"),
    "one step called PGD-50": Case(defended, {"threat-model", "converged"}, {"pgd50": Attack(one_step, EPS, steps=50)}),
    "one step named pgd50": Case(
        undefended,
        {"threat-model", "converged"},
        {"pgd50": {"attack": "pgd", "eps": EPS, "step_size": 2 / 255, "steps": 1}},
    ),
    "an attack on normalised images": Case(
        undefended, {"threat-model"}, {"pgd10": Attack(normalised_attack, EPS, steps=10)}
    ),
    "an attack on normalised images, clipped": Case(
        undefended, {"converged"}, {"pgd10": Attack(functools.partial(normalised_attack, clip=True), EPS, steps=10)}
    ),
    "answers from a memory of earlier queries": Case(
        lambda: Remembers(undefended(), EPS), {"fresh-judge", "gradient-agreement"}
    ),
    "test and held-out images known by heart": Case(
        lambda: Memorises(undefended(), images()[0][1400:], EPS), {"gradient-agreement"}
    ),
    "an anti-adversary": Case(lambda: AntiAdversary(undefended()), {"gradient-agreement", "autoattack-flags"}),
    "an anti-adversary of two steps": Case(
        lambda: AntiAdversary(undefended(), 0.15, 2), {"gradient-agreement", "autoattack-flags"}
    ),
    "a copy with another net's gradients": Case(lambda: OtherCopy(undefended(), defended()), {"gradient-agreement"}),
    "noise that the image seeds": Case(lambda: ImageSeededNoise(undefended()), {"gradient-agreement"}),
    "ripples of a grey level": Case(lambda: Ripples(undefended(), 1 / 255), {"gradient-agreement"}),
    "ripples of two grey levels": Case(lambda: Ripples(defended(), 2 / 255), {"gradient-agreement"}),
    "k-winners-take-all": Case(winners, {"gradient-agreement"}),
    "noise under a constant on all logits": Case(
        lambda: Around(undefended(), after=lambda z: z + 0.3 * torch.randn_like(z) + 1e4), {"determinism"}
    ),
    "a model without its normalisation": Case(without_normalisation, {"provenance"}, origin="recorded"),
    "checks with too few steps": Case(undefended, {"calibration"}, budget=Budget(steps=1)),
    "checks with too few queries": Case(undefended, {"calibration"}, budget=Budget(steps=8, queries=100)),
    "suspiciously good": Case(
        defended,
        {"published-band"},
        origin=Origin(band={"clean": [0, 99], "pgd": [10, 40], "source": "a test"}),
    ),
}


def agreement(model):
    x, y = images()
    return registry.run("gradient-agreement", Evidence(model, x[TEST], y[TEST], EPS, 100, 0, budget=BUDGET)).value


@pytest.mark.parametrize(("grey_levels", "length"), [(1, 2), (2, 2), (1, 3), (2, 4)])
def test_ripples_are_seen_by_steps_and_not_by_half_a_grey_level(grey_levels, length):
    value = agreement(Ripples(undefended(), grey_levels / 255, length / 255))
    assert value["agreeing"] > 0.8 and value["agreeing_at_a_step"] < 0.1


@pytest.mark.brief(keep=lambda case: case["name"] == "routed")
@pytest.mark.parametrize("name", ["undefended", "defended", "routed"])
def test_honest_nets_are_far_from_the_limits_of_the_agreement(name):
    value = agreement(globals()[name]())
    assert value["agreeing"] > 0.9 and value["agreeing_at_a_step"] > 0.85
    # A step is two grey levels here, at an epsilon of 16.
    assert ("agreeing_straight_through" in value) == (name == "routed")


@pytest.mark.long
def test_a_function_that_differs_between_the_pixel_values_of_8_bits_is_caught():
    """One step of a whole number of grey levels stays among them; PGD, from a random start, does not."""
    x, y = images()
    x = (x[TEST] * 255).round() / 255
    model = OffGrid(undefended(), defended())
    result = registry.run("iterative-at-most-fgsm", Evidence(model, x, y[TEST], EPS, 100, 0, budget=BUDGET))
    assert result.state == "failed", result.message


def held_out():
    """Sorted by class, as folders of images are."""
    x, y = (values[HELD_OUT] for values in images())
    order = y.argsort()
    return x[order], y[order]


@functools.cache
def record():
    """A run.json's content for the defended net."""
    x, y = held_out()
    with torch.no_grad():
        accuracy = float((defended()(x).argmax(1) == y).float().mean())
    return {
        "model_sha256": "m",
        "last_sha256": "l",
        "data": {"sha256": "d", "validation_images": 300},
        "sources": {"nets": "n"},
        "lock_sha256": "k",
        "validation_attack": {"attack": "none"},
        "best_validation_accuracy": accuracy,
    }


ORIGINS = {
    "held out": lambda: Origin(held_out=held_out()),
    "recorded": lambda: Origin(run=record(), model_sha256="m", data_sha256="d", held_out=held_out()),
}


def verified(model, **options):
    x, y = images()
    return verify(model, x[TEST], y[TEST], eps=EPS, budget=BUDGET, **options)


# What another case of the same checks shows faster.
SLOW = {
    *("a router that uses one expert", "an input-quantising defence", "a model trained on the test set"),
    *("one step called PGD-50", "answers from a memory of earlier queries", "k-winners-take-all"),
    *("checks with too few steps", "an attack on normalised images, clipped"),
}


@pytest.mark.brief(keep=lambda case: case["name"] not in SLOW)
@pytest.mark.parametrize("name", PATHOLOGIES)
def test_each_pathology_is_caught(name):
    case = PATHOLOGIES[name]
    x, y = images()
    torch.manual_seed(0)
    origin = ORIGINS[case.origin]() if isinstance(case.origin, str) else case.origin
    model = case.model()
    judge = FreshJudge(copy.deepcopy(model), 0)
    evidence = Evidence(model, x[TEST], y[TEST], EPS, 100, 0, case.settings or {}, case.budget, origin, judge=judge)
    results = [registry.run(check, evidence) for check in sorted(case.failing)]
    assert {result.check: result.state for result in results} == dict.fromkeys(case.failing, "failed")
    assert not any("could not be measured" in result.message for result in results), results


@pytest.mark.brief(keep=lambda case: case["name"] == "undefended")
@pytest.mark.parametrize(
    ("name", "origin"), [("undefended", "held out"), ("defended", "recorded"), ("routed", "held out")]
)
def test_honest_models_pass_all(name, origin):
    report = verified(globals()[name](), origin=ORIGINS[origin]())
    assert report.passed, [(check.check, check.message) for check in report.checks if not check.passed]
    without_router = {"router", "router-aware"} if name != "routed" else set()
    assert set(report.not_applicable) == {"published-band"} | without_router


@pytest.mark.long
def test_a_net_of_ten_classes_that_is_robust_at_a_large_radius_passes_all():
    x, y = (values[600:] for values in ten_patterns())
    report = verify(robust_to_nearly_all(), x, y, eps=0.3, budget=BUDGET)
    assert report.passed, [(check.check, check.message) for check in report.checks if not check.passed]
    assert report.undecided == ["provenance"] and report.worst_case_accuracy > 0.5


@pytest.mark.brief(keep=lambda case: case["anew"])
@pytest.mark.parametrize("anew", [False, True])
def test_a_model_built_anew_does_not_share_what_its_copy_remembers(anew):
    x, y = (values[TEST][:40] for values in images())
    model = SharesItsMemory(undefended(), EPS)
    judge = FreshJudge(fresh_copy(model, (lambda: SharesItsMemory(undefended(), EPS)) if anew else None), 0)
    evidence = Evidence(model, x, y, EPS, 40, 0, budget=Budget(steps=4, queries=10), judge=judge)
    assert registry.run("fresh-judge", evidence).passed == (not anew)


@pytest.mark.long
@pytest.mark.parametrize("where", ["here", "in another process"])
def test_only_another_process_does_not_share_what_a_module_remembers(tmp_path, where):
    """Of a model that remembers nothing the other process thinks as this one does: see test_fresh_process.py."""
    x, y = (values[TEST][:40] for values in images())
    model = with_a_shared_memory()
    model.net.load_state_dict(undefended().state_dict())
    save_file(model.state_dict(), tmp_path / "net.safetensors")
    given = ForeignModel("falsely_robust:with_a_shared_memory", tmp_path / "net.safetensors")
    MEMORY.clear()
    with FreshProcess(given, torch.device("cpu"), 1, tmp_path) as anew:
        judge = FreshJudge(anew if where != "here" else copy.deepcopy(model.eval()), 0)
        evidence = Evidence(model, x, y, EPS, 40, 0, budget=Budget(steps=4, queries=10), judge=judge)
        found = registry.run("fresh-judge", evidence)
    assert found.passed == (where == "here") and found.value["judged"] > 0, found
    assert found.passed or "get another answer" in found.message


HARMLESS = {
    "inputs of 16 levels": lambda: Quantises(defended()),
    "bfloat16": lambda: Bfloat16(defended()),
    "log-probabilities": lambda: Around(defended(), after=lambda z: z.log_softmax(1)),
    "a constant on all logits": lambda: Around(defended(), after=lambda z: z + 1e3),
    "tiny logits": lambda: Around(defended(), after=lambda z: z * 1e-6),
    "a clamp of the pixels": lambda: Around(defended(), lambda x: x.clamp(0, 1)),
}


@pytest.mark.brief(keep=lambda case: case["name"] == "tiny logits")
@pytest.mark.parametrize("name", HARMLESS)
def test_what_only_looks_odd_passes(name):
    model = HARMLESS[name]()
    x, y = images()
    evidence = Evidence(model, x[TEST], y[TEST], EPS, 100, 0, budget=BUDGET, judge=FreshJudge(copy.deepcopy(model), 0))
    asked = ["determinism", "fresh-judge", "finite-logits", "gradient-agreement", "monotone-epsilon", "converged"]
    results = [registry.run(check, evidence) for check in [*asked, "autoattack-flags"]]
    assert {result.state for result in results} == {"passed"}, [(each.check, each.message) for each in results]


def robust_digits():
    x, y = (values[-100:] for values in zeros_and_ones())
    return robust_at_large_radius(), x, y, 0.3


def robust_in_closed_form():
    """Images 0.4 away from the decision boundary in every pixel."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randint(0, 2, (3, 8, 8), generator=draw) * 2.0 - 1
    y = torch.arange(100) % 2
    x = 0.5 + 0.4 * (2.0 * y - 1)[:, None, None, None] * weight
    return Linear(weight / 20), x, y, 0.1


def of_many_classes():
    """A linear model, with small logits, of 1,000 classes and 100 images that it is sure of."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randint(0, 2, (1000, 192), generator=draw) * 2.0 - 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000))
    model[1].weight.data, model[1].bias.data = directions / 192, -directions.sum(1) / 2 / 192
    y = torch.arange(100) * 7
    return model, (0.5 + 0.4 * directions[y]).view(-1, 3, 8, 8), y, 0.1


@pytest.mark.brief(keep=lambda case: case["make"] is not robust_digits)
@pytest.mark.parametrize("make", [robust_digits, robust_in_closed_form, of_many_classes])
def test_models_that_are_robust_at_64_of_255_are_believed(make):
    model, x, y, eps = make()
    evidence = Evidence(model, x, y, eps, 100, 0, budget=BUDGET)
    far = {"attack": "pgd", "eps": 64 / 255, "step_size": 16 / 255, "steps": 16}
    assert len(evidence.misclassified("far", far, torch.arange(len(x)).numpy())) < 0.5 * len(x)
    results = [registry.run(check, evidence) for check in ("gradient-agreement", "monotone-epsilon")]
    assert {result.state for result in results} == {"passed"}, [result.message for result in results]


def test_images_normalised_by_the_loader_are_refused():
    x, y = images()
    with pytest.raises(DataError, match="without normalisation"):
        verify(undefended(), (x[TEST] - 0.3) / 0.37, y[TEST], eps=EPS)


@pytest.mark.long
def test_the_defence_shows():
    worst = {name: verified(globals()[name]()).worst_case_accuracy for name in ("undefended", "defended")}
    assert worst["undefended"] + 0.1 < worst["defended"]


@pytest.mark.long
def test_the_accuracy_on_record_of_a_routed_net_is_the_worst_of_both_gradients():
    """A router whose scores are loud misleads the full gradient, by which the net would seem far better."""
    model = WithRouter(routed(), wrap=lambda scores: 1e3 * scores).eval()
    x, y = held_out()
    setting = {"attack": "pgd", "eps": EPS, "step_size": EPS / 4, "steps": 5}
    rows = evaluate(model, x, y, {"full": setting, "detached": {**setting, "view": "detached"}}, batch_size=100)
    correct = rows.pivot(index="index", columns="setting", values="correct")
    worst, full = float(correct.all(axis=1).mean()), float(correct["full"].mean())
    assert full > worst + 0.2
    x, y = images()
    for recorded, differs in ((worst, False), (full, True)):
        run = {**record(), "validation_attack": setting, "best_validation_accuracy": recorded}
        origin = replace(ORIGINS["recorded"](), run=run)
        result = registry.run("provenance", Evidence(model, x[TEST], y[TEST], EPS, 100, 0, origin=origin))
        assert ("validation accuracy" in result.message) == differs, result.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": "other", "last_sha256": "other"}, "weights"),
        ({"data": {"sha256": "other", "validation_images": 300}}, "data"),
        ({"data": {"sha256": "d", "validation_images": 0}}, "held-out"),
        ({"lock_sha256": None}, "lock_sha256"),
        ({"sources": {}}, "sources"),
        ({"best_validation_accuracy": 0.5}, "validation accuracy"),
    ],
)
def test_a_record_that_does_not_fit_fails_provenance(change, words):
    x, y = images()
    origin = replace(ORIGINS["recorded"](), run={**record(), **change})
    result = registry.run("provenance", Evidence(defended(), x[TEST], y[TEST], EPS, 100, 0, origin=origin))
    assert result.state == "failed" and words in result.message


@pytest.mark.parametrize(
    ("recipe", "state"), [({"attack_space": {"name": "normalised_noclip"}}, "passed"), ({}, "failed")]
)
def test_an_accuracy_recorded_in_a_training_space_is_measured_there_again(recipe, state):
    """A radius in standard deviations is a third of the same number in pixels."""
    setting, (x, y) = {"attack": "pgd", "eps": 0.15, "step_size": 0.05, "steps": 5}, held_out()
    std = STATISTICS[1][0]
    pixels = {"eps": 0.15 * std, "step_size": 0.05 * std, "steps": 5}
    x_adv = pgd(defended(), 0.25 + x / 2, y, **pixels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        accuracy = float((defended()(x_adv).argmax(1) == y).float().mean())
    change = {"recipe": recipe, "validation_attack": setting, "best_validation_accuracy": accuracy}
    origin = replace(ORIGINS["recorded"](), run={**record(), **change}, held_out=(0.25 + x / 2, y))
    tests = 0.25 + images()[0][TEST] / 2, images()[1][TEST]
    result = registry.run("provenance", Evidence(defended(), *tests, EPS, 100, 0, origin=origin))
    assert result.state == state, result.message


def test_an_accuracy_recorded_on_fewer_held_out_images_may_differ_more():
    """As where a scale lets validation cost less: 30 of the 300 chose the epoch."""
    x, y = images()
    states = {}
    for recorded_on in (300, 30):
        change = {"best_validation_accuracy": record()["best_validation_accuracy"] - 0.1}
        data = {"sha256": "d", "validation_images": recorded_on}
        origin = replace(ORIGINS["recorded"](), run={**record(), **change, "data": data})
        evidence = Evidence(defended(), x[TEST], y[TEST], EPS, 100, 0, origin=origin)
        states[recorded_on] = registry.run("provenance", evidence).state
    assert states == {300: "failed", 30: "passed"}
