"""Our faster forms of the package's attacks against the package: the same numbers, the same verdicts, less work."""

import numpy as np
import pytest
import torch
from pyautoattack import fab_base, fab_projections
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack
from scipy.optimize import linprog
from torch import nn
from torch.nn import functional as F

from moat import attacks
from moat.attacks.autoattack.adapter import Attacked, FlagLogger
from moat.attacks.autoattack.apgd import Apgd, ApgdTargeted
from moat.attacks.autoattack.fab import Fab
from moat.attacks.autoattack.fab_projection import project_linf
from moat.attacks.autoattack.square import SquareSearch
from moat.attacks.parts.steps import frozen
from moat.kernels import for_attack

EPS = 12 / 255


def hyperplanes(rows, size, seed=0):
    """Points on and inside the box, and hyperplanes near, far, and out of reach."""
    torch.manual_seed(seed)
    points = (1.4 * torch.rand(rows, size) - 0.2).clamp(0, 1)
    w = torch.randn(rows, size) * torch.rand(rows, 1)
    offset = torch.linspace(-1.2, 1.2, rows)
    return points, w, (w * points).sum(1) + offset * w.abs().sum(1)


SPECIAL = {
    "no normal": (torch.full((2, 5), 0.5), torch.zeros(2, 5), torch.tensor([0.0, 1.0])),
    "all at bounds": (torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([[1.0, -1.0, 2.0]]), torch.tensor([-3.0])),
    "out of reach": (torch.full((2, 3), 0.25), torch.ones(2, 3), torch.tensor([9.0, -9.0])),
    "already on it": (torch.full((1, 4), 0.5), torch.ones(1, 4), torch.tensor([2.0])),
    "some components free": (torch.full((1, 3), 0.5), torch.tensor([[0.0, 1.0, -2.0]]), torch.tensor([-0.9])),
    "one after the other": (torch.tensor([[0.01, 0.1, 0.3, 1.0]]), torch.ones(1, 4), torch.tensor([0.2])),
}


@pytest.mark.parametrize(
    "case", [hyperplanes(40, 3072), hyperplanes(60, 7, 1), hyperplanes(30, 1, 2), *SPECIAL.values()]
)
def test_the_projection_is_the_packages_and_nearer_to_float64s(case):
    wide = [each.double() for each in case]
    exact = fab_projections.projection_linf(*wide)
    torch.testing.assert_close(project_linf(*wide), exact, rtol=0, atol=1e-12)
    torch.testing.assert_close(project_linf(*case), exact.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(project_linf(*case), fab_projections.projection_linf(*case), rtol=0, atol=1e-6)


def test_the_projection_solves_the_linear_programme():
    """min r subject to |d_i| <= r, <w, t + d> = b, 0 <= t + d <= 1; -1 where that is infeasible."""
    points, w, b = (each.double() for each in hyperplanes(24, 6, 3))
    found = project_linf(points, w, b)
    lengths, feasible = [], []
    for t, normal, offset in zip(points.numpy(), w.numpy(), b.numpy(), strict=True):
        box = np.vstack([np.hstack([sign * np.eye(6), -np.ones((6, 1))]) for sign in (1, -1)])
        bounds = [(-each, 1 - each) for each in t] + [(0, None)]
        equality = np.append(normal, 0.0)[None]
        solved = linprog(np.eye(7)[6], box, np.zeros(12), equality, [offset - normal @ t], bounds)
        lengths.append(solved.fun if solved.success else -1)
        feasible.append(solved.success)
    feasible, lengths = torch.tensor(feasible), torch.tensor(lengths, dtype=torch.float64)
    assert 5 < feasible.sum() < 20
    torch.testing.assert_close(found.abs().amax(1)[feasible], lengths[feasible], rtol=0, atol=1e-9)
    closed = (w * (points + found)).sum(1) - b
    assert closed[feasible].abs().max() < 1e-9 and (closed[~feasible].abs() > 1e-3).all()
    at = points + found
    assert ((at[~feasible].abs() < 1e-12) | ((at[~feasible] - 1).abs() < 1e-12)).all()


def test_a_normal_that_is_not_a_number_ends():
    points, w, b = hyperplanes(4, 9)
    w[1, 3] = float("nan")
    torch.testing.assert_close(project_linf(points, w, b), fab_projections.projection_linf(points, w, b))


def test_the_packages_own_fab_keeps_its_projection(defended, few):
    def breaks(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Fab(breaks, norm="Linf", eps=EPS).perturb(*few)
    assert fab_base.projection_linf is fab_projections.projection_linf
    assert FABAttack_PT.attack_single_run.__globals__["projection_linf"] is fab_projections.projection_linf
    assert Fab.attack_single_run.__globals__["projection_linf"] is project_linf


def both(theirs, ours, model, few, eps, **options):
    """What each makes of the examples that the model gets right, and which of these are robust to it."""
    with torch.no_grad():
        right = model(few[0]).argmax(1) == few[1]
    x, y = few[0][right], few[1][right]
    with frozen(model):
        found = [kind(Attacked(model), norm="Linf", eps=eps, **options).perturb(x, y) for kind in (theirs, ours)]
        with torch.no_grad():
            robust = [model(each).argmax(1) == y for each in found]
    limit = eps + 1e-6
    assert all((each - x).abs().max() <= limit for each in found) or theirs is FABAttack_PT
    return found, robust


NETS = ["defended", "resnet", "folded"]
RADII = [(0.5 * EPS, 0), (2 * EPS, 1), (3 * EPS, 2)]


@pytest.mark.brief(
    keep=lambda case: (
        case["seed"] == 1 and (case["name"] == "defended" or case["name"] == "resnet" and case["ours"] is Apgd)
    )
)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("eps", "seed"), RADII)
@pytest.mark.parametrize(
    ("theirs", "ours", "options"),
    [
        (APGDAttack, Apgd, {"loss": "ce", "n_iter": 12}),
        (APGDAttack, Apgd, {"loss": "dlr", "n_iter": 12, "n_restarts": 3}),
        (APGDAttack_targeted, ApgdTargeted, {"n_iter": 12, "n_target_classes": 4}),
        (SquareAttack, SquareSearch, {"n_queries": 60, "p_init": 0.8, "resc_schedule": False}),
    ],
)
def test_verdicts_are_the_packages(theirs, ours, options, eps, seed, name, in_double, few):
    if theirs is not SquareAttack:
        options = {**options, "logger": FlagLogger()}
    found, robust = both(theirs, ours, in_double[name], few, eps, seed=seed, **options)
    assert torch.equal(*robust), (robust[0].sum(), robust[1].sum())
    torch.testing.assert_close(found[0][robust[0]], found[1][robust[0]], rtol=0, atol=1e-6)


@pytest.mark.brief(keep=lambda case: case["name"] == "defended" and case["seed"] == 1 and "targeted" in case["options"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("eps", "seed"), RADII)
@pytest.mark.parametrize("options", [{"n_restarts": 2}, {"targeted": True, "n_target_classes": 4}])
def test_fab_succeeds_where_the_package_does(options, eps, seed, name, in_double, few):
    """Two projections in float32 differ in the last digits: what succeeds at the very radius may not be compared."""
    robust = {}
    for factor in (0.999, 1.001):
        _, (theirs, ours) = both(FABAttack_PT, Fab, in_double[name], few, factor * eps, seed=seed, n_iter=12, **options)
        robust[factor] = {"theirs": theirs, "ours": ours}
    for nearer, farther in (("theirs", "ours"), ("ours", "theirs")):
        assert not (robust[1.001][farther] & ~robust[0.999][nearer]).any()


@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize(("eps", "n_iter"), [(EPS, 1), (EPS, 2), (2 * EPS, 30), (1.5 * EPS, 100)])
def test_apgd_follows_the_packages_trajectory(loss, eps, n_iter, in_double, few):
    """Where the loss of an example that survives was highest, after all its steps, halvings and ways back."""
    results = []
    for kind in (APGDAttack, Apgd):
        model = Attacked(in_double["defended"])
        attack = kind(model, norm="Linf", eps=eps, loss=loss, n_iter=n_iter, logger=FlagLogger())
        attack.init_hyperparam(few[0])
        torch.manual_seed(5)
        results.append(attack.attack_single_run(*few))
    survived = results[0][1].bool()
    assert torch.equal(survived, results[1][1]) and survived.any()
    torch.testing.assert_close(results[0][0][survived], results[1][0][survived], rtol=0, atol=1e-6)


@pytest.mark.brief(keep=lambda case: case["name"] == "defended")
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("eps", "seed", "n_queries"), [(EPS, 0, 300), (3 * EPS, 1, 300), (0.6, 2, 5)])
def test_square_finds_the_packages_images(eps, seed, n_queries, name, in_double, few):
    """In float64, where no query is accepted or refused by rounding; the net itself, which is computed by patches."""
    net, (x, y) = in_double[name].net, few
    found = []
    for kind in (SquareAttack, SquareSearch):
        search = kind(Attacked(net), norm="Linf", eps=eps, n_queries=n_queries, resc_schedule=True)
        search.init_hyperparam(x)
        torch.manual_seed(seed)
        found.append(search.attack_single_run(x.double(), y)[1])
    assert 0 < (found[0] - x).abs().max() <= eps + 1e-6
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


class Counted(nn.Module):
    """A net that counts the images it has seen."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, 0

    def forward(self, x):
        self.seen += len(x)
        return self.net(x)


def test_a_net_without_defence_is_left_as_soon_as_all_is_broken(trained, few):
    model = Counted(trained)
    found = attacks.autoattack(model, *few, eps=0.3)
    with torch.no_grad():
        assert (trained(found).argmax(1) != few[1]).all()
    # Judged twice, checked seven times, attacked by a handful of the hundred steps of the first attack.
    assert model.seen < 30 * len(few[0]), model.seen / len(few[0])


def square(model, for_search, x, y, eps, n_queries=100):
    """Which examples withstand a Square that searches with a copy."""
    attacked = Attacked(model, for_search)
    search = SquareSearch(attacked, norm="Linf", eps=eps, seed=0, n_queries=n_queries, resc_schedule=False)
    with frozen(model), torch.no_grad():
        return model(search.perturb(x, y)).argmax(1) == y


@pytest.mark.long
def test_square_in_bf16_finds_what_float32_finds_within_noise(trained, digits):
    x, y = digits[0][1280:1380], digits[1][1280:1380]
    robust = [square(trained, copied, x, y, EPS) for copied in (None, for_attack(trained, dtype=torch.bfloat16))]
    assert 0.1 < robust[0].float().mean() < 0.9
    assert (robust[0] != robust[1]).float().mean() <= 0.1


@pytest.mark.long
def test_a_copy_that_takes_all_for_broken_does_not_end_the_search(trained, digits):
    """Low precision's word is not taken for it: it goes on until full precision confirms."""
    with torch.no_grad():
        right = trained(digits[0]).argmax(1) == digits[1]
    x, y = (each[right][:400] for each in digits)
    copied = for_attack(trained)
    # The class with most successes, and how many of them the start alone has.
    misclassified = ~square(trained, copied, x, y, 3 * EPS)
    label = int(y[misclassified].bincount(minlength=10).argmax())
    x, y = x[y == label], y[y == label]
    at_once = (~square(trained, copied, x, y, 3 * EPS, n_queries=1)).sum()
    found = (~square(trained, nn.Sequential(copied, Lowered(label)), x, y, 3 * EPS)).sum()
    assert found >= at_once + 3, (found, at_once, misclassified.sum())


class Lowered(nn.Module):
    """The logit of one class is less than all others."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, z):
        return z - 100 * F.one_hot(torch.tensor(self.label), z.shape[1])


@pytest.mark.long
def test_bf16_finds_what_float32_finds_within_noise(trained, digits):
    x, y = digits[0][1280:1380], digits[1][1280:1380]
    robust = {}
    for precision in ("float32", "bf16"):
        found = attacks.autoattack(
            trained, x, y, eps=EPS / 3, n_iter=10, n_targets=2, n_queries=20, precision=precision
        )
        with torch.no_grad():
            robust[precision] = trained(found).argmax(1) == y
        changed = (found != x).flatten(1).any(1)
        # What is returned changed is misclassified in float32, whatever the copy in bf16 says.
        assert not robust[precision][changed].any() and (found - x).abs().max() <= EPS / 3 + 1e-6
    assert 5 < robust["float32"].sum() < 95
    assert (robust["float32"] != robust["bf16"]).float().mean() <= 0.02
