"""Fixed mix and MixedNUTS: textbook formulas, how their numbers are fitted, and the views that attacks follow."""

import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from tiny_methods import begin
from torch.nn import functional as F

from moat.attacks import for_attack
from moat.attacks.parts.objectives import cross_entropy, margin
from moat.attacks.parts.steps import input_gradient
from moat.attacks.parts.views import views_of
from moat.methods import mixednuts
from moat.methods.mixednuts import LARGEST_THRESHOLD, Fit, probability_margin, search, smallest_margin, threshold
from moat.models.moe import build_mixture
from moat.models.moe.constrained import constrained, shortfall_of_lead
from moat.models.moe.mixed_fixed import log_mixture
from moat.models.moe.mixednuts import nonlinear, one_hot_log, standardized

SIZE = 8


def draw(*shape, seed=0, scale=3.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(count=12):
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tiny(kind, **numbers):
    torch.manual_seed(0)
    model = build_mixture(kind, "resnet18", 10, width=1 / 16, image_size=SIZE).double().eval()
    with torch.no_grad():
        for expert in model.experts:
            # Confident, as trained nets are.
            expert.head.weight.mul_(300)
        for name, value in numbers.items():
            getattr(model, name).fill_(value)
    return model


# -- formulas ----------------------------------------------------------------
def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.99875, 1.0])
def test_the_fixed_mixture_is_the_log_of_mixed_probabilities(alpha):
    g, h = draw(7, 10), draw(7, 10, seed=1)
    expected = np.log((1 - alpha) * softmax(g.numpy()) + alpha * softmax(h.numpy()))
    found = log_mixture(F.log_softmax(g, 1), F.log_softmax(h, 1), torch.tensor(alpha, dtype=torch.float64))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-12)


def textbook_map(z, s, p, c, k=250):
    """Layer norm by the k largest logits, GELU of the shifted ones, a power with its sign, a scale."""
    rows = []
    for row in np.asarray(z):
        largest = np.sort(row)[::-1][: min(k, len(row))]
        u = (row - largest.mean()) / np.sqrt(largest.var(ddof=1) + 1e-8)
        v = (u + c) * 0.5 * (1 + erf((u + c) / math.sqrt(2)))
        rows.append(s * np.sign(v) * np.abs(v) ** p)
    return np.stack(rows)


@pytest.mark.parametrize("classes", [10, 300])
@pytest.mark.parametrize(("s", "p", "c"), [(5.0, 4.0, -1.1), (0.6116, 3.571, -2.143), (1.0, 1.0, 0.0)])
def test_mixednuts_is_its_formula(classes, s, p, c):
    g, h, alpha = draw(6, classes), draw(6, classes, seed=1), 0.97
    found = nonlinear(h, s, p, c)
    np.testing.assert_allclose(found.numpy(), textbook_map(h, s, p, c), rtol=1e-9, atol=1e-12)
    q = softmax(textbook_map(h, s, p, c))
    expected = alpha * q
    expected[np.arange(6), g.argmax(1)] += 1 - alpha
    mixed = log_mixture(one_hot_log(g), F.log_softmax(found, 1), torch.tensor(alpha, dtype=torch.float64))
    np.testing.assert_allclose(mixed.exp().numpy(), expected, rtol=1e-9, atol=1e-300)


def test_the_map_keeps_the_robust_nets_class_where_its_logit_stands_out():
    """GELU falls below -0.75: where the largest standardized logit is below -c, the order may change."""
    z = draw(500, 10)
    kept = nonlinear(z, 5.0, 4.0, -1.1).argmax(1) == z.argmax(1)
    stands_out = standardized(z).amax(1) >= 1.1
    assert kept[stands_out].all() and not kept[~stands_out].all()


def test_a_confident_image_saturates_the_softmax_of_float32():
    """One logit far above nine equal ones: standardized 2.846, mapped to 39.4, whose softmax is 1 in float32."""
    z = torch.zeros(1, 10, dtype=torch.float64)
    z[0, 0] = 20.0
    assert float(standardized(z).max()) == pytest.approx(2.846, abs=1e-3)
    mapped = nonlinear(z, 5.0, 4.0, -1.1)
    assert float(mapped.max()) == pytest.approx(39.4, abs=0.3)
    assert float(mapped.float().softmax(1).max()) == 1.0


def test_at_alpha_one_a_mixture_is_its_robust_net():
    x = images()
    for kind in ("mixed-fixed", "mixednuts"):
        model = tiny(kind, alpha=1.0)
        assert torch.equal(model(x).argmax(1), model.experts[1](x).argmax(1))


@pytest.mark.parametrize("alpha", [0.5, 0.6, 0.9])
def test_a_wide_margin_of_the_robust_net_decides_whatever_the_other_net_says(alpha):
    """For alpha from 1/2: where h's margin in probability is at least (1 - alpha) / alpha."""
    g, h = draw(4000, 10, scale=5), draw(4000, 10, seed=1, scale=2)
    mixed = log_mixture(F.log_softmax(g, 1), F.log_softmax(h, 1), torch.tensor(alpha, dtype=torch.float64))
    sure = probability_margin(h) >= (1 - alpha) / alpha
    agrees = mixed.argmax(1) == h.argmax(1)
    assert sure.any() == (alpha > 0.5) and agrees[sure].all() and not agrees[~sure].all()


# -- views ------------------------------------------------------------------
NUTS = {"alpha": 0.99, "scale": 5.0, "power": 4.0, "shift": -1.1, "plain_alpha": 0.95}
VIEWS = {
    "mixed-fixed": {"straight-through", "average", "expert0", "expert1"},
    "mixednuts": {*("straight-through", "bypass", "plain", "soft_g", "temperature", "decisive", "expert0", "expert1")},
}


@pytest.mark.parametrize("kind", VIEWS)
def test_the_views_are_there_and_have_gradients(kind):
    model, x = tiny(kind, **(NUTS if kind == "mixednuts" else {"alpha": 0.7})), images()
    y = model(x).argmax(1)
    views = views_of(model)
    assert set(views) == VIEWS[kind]
    for name in VIEWS[kind] - {"straight-through"}:
        gradient = input_gradient(views[name].module, x, cross_entropy(y))
        assert gradient.isfinite().all() and (gradient.abs().amax((1, 2, 3)) > 0).all(), name


def test_the_surrogate_of_the_adaptive_attack_is_its_formula():
    model, x = tiny("mixednuts", **NUTS), images()
    g, h = (expert(x).detach().numpy() for expert in model.experts)
    through = softmax(textbook_map(h, *(float(getattr(model, name).detach()) for name in ("scale", "power", "shift"))))
    plain = float(model.plain_alpha.detach())
    expected = np.log((1 - plain) * softmax(g) + plain * (0.9 * softmax(h) + 0.1 * through))
    found = model.attack_views()["bypass"](x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_a_constrained_view_adds_its_condition_to_the_gradient(objective):
    logits, scores, y = draw(5, 10).requires_grad_(), draw(5, 4, seed=2).requires_grad_(), torch.arange(5)
    lead = scores[:, 2] - torch.stack([scores[:, e] for e in (0, 1, 3)], 1).amax(1) - 1e-3
    expected = F.cross_entropy(logits, y, reduction="sum") + 10 * lead.clamp(max=0).sum()
    wanted = torch.autograd.grad(expected, (logits, scores))
    value = objective(y)(constrained(logits, shortfall_of_lead(scores, 2))).sum()
    for gradient, right in zip(torch.autograd.grad(value, (logits, scores)), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-9, atol=1e-12)
    assert float(wanted[1].abs().max()) > 0


@pytest.mark.parametrize("kind", VIEWS)
def test_the_fast_copy_is_the_mixture(kind):
    model, x = tiny(kind, **(NUTS if kind == "mixednuts" else {"alpha": 0.7})), images()
    copied = for_attack(model, x)
    assert copied is not model
    torch.testing.assert_close(copied(x), model(x), rtol=1e-4, atol=1e-5)


# -- the fit ----------------------------------------------------------------
def test_the_threshold_is_a_percentile_of_the_margins():
    margins = torch.linspace(0, 1, 201, dtype=torch.float64)
    assert threshold(margins, 98.5) == pytest.approx(np.percentile(margins.numpy(), 1.5))
    assert threshold(margins + 1, 98.5) == LARGEST_THRESHOLD == threshold(margins[:0], 98.5)


@pytest.mark.long
def test_the_search_is_a_search_over_the_whole_grid():
    successes, errors, kept = draw(60, 10, scale=2), draw(20, 10, seed=1, scale=1.5), 95.0
    best, at = None, {}
    for s in np.logspace(math.log10(0.05), math.log10(5), 8):
        for p in np.linspace(1, 4, 8):
            for c in np.linspace(-1.1, 0, 8):
                of = []
                for z in (successes, errors):
                    top = np.sort(softmax(textbook_map(z, s, p, c)), 1)
                    of.append(top[:, -1] - top[:, -2])
                t = min(np.percentile(of[0], 100 - kept), 1 - 1e-9)
                at[round(s, 6), round(p, 6), round(c, 6)] = (of[1] >= t).mean(), t
                best = min(best or (2, 0), ((of[1] >= t).mean(), -t))
    found = search(successes, errors, kept)
    share, t = at[round(found.scale, 6), round(found.power, 6), round(found.shift, 6)]
    assert found.objective == pytest.approx(share) == pytest.approx(best[0])
    assert found.threshold == pytest.approx(t) and t == pytest.approx(-best[1], rel=1e-6)


@pytest.mark.parametrize(
    ("point", "edge"), [((5.0, 2.0, -0.5), True), ((1.0, 1.5, -0.5), False), ((1.0, 2.0, 0.0), True)]
)
def test_an_optimum_on_the_edge_of_the_grid_is_said(point, edge):
    assert Fit(*point, threshold=0.1, objective=0.0).on_edge == edge


def test_the_smallest_margin_is_kept_also_of_images_that_withstand():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, 10)).double().requires_grad_(False)
    x = images(20)
    y, fit = net(x).argmax(1), {"eps": 0.004, "step_size": 0.001, "steps": 6, "targets": 9}
    found = smallest_margin(net, x, y, torch.Generator().manual_seed(0), fit)

    def margins(images):
        z = standardized(net(images))
        labelled = F.one_hot(y, 10).bool()
        return z[labelled] - z.masked_fill(labelled, -torch.inf).amax(1)

    assert float((found - x).abs().max()) <= 0.004 + 1e-12
    assert (margins(found) < margins(x)).all() and (margins(found) > 0).any()
    one = smallest_margin(net, x, y, torch.Generator().manual_seed(0), {**fit, "targets": 1})
    assert (margins(found) <= margins(one) + 1e-12).all()


def test_fixed_mix_takes_the_smallest_weight_that_keeps_the_robust_nets_accuracy(tiny_mixture):
    method, row = tiny_mixture("mixed-fixed")
    allowed = row["robust_net_attacked"] - method.recipe["fit"]["max_loss"]
    kept = [a for a in method.recipe["fit"]["alphas"] if row[f"attacked_at_{a:g}"] >= allowed]
    assert row["alpha"] == min(kept, default=max(method.recipe["fit"]["alphas"]))
    assert float(method.model.alpha.detach()) == pytest.approx(row["alpha"])


def test_mixednuts_is_fitted_and_nothing_is_trained(tiny_mixture):
    method, row = tiny_mixture("mixednuts")
    model = method.model
    assert float(model.alpha.detach()) == pytest.approx(1 / (1 + row["threshold"]))
    assert row["threshold_low"] <= row["threshold"] <= row["threshold_high"]
    assert row["errors"] + row["robust_net_accuracy"] * row["held_out_images"] == pytest.approx(row["held_out_images"])
    assert [name for name, each in model.named_parameters() if each.requires_grad] == [
        *("alpha", "scale", "power", "shift", "plain_alpha")
    ]
    assert mixednuts.METHOD.MIXTURE == "mixednuts"


@pytest.fixture
def tiny_mixture(tiny):
    """A method after its first epoch on the tiny digits, and the row that it logs."""

    def make(name):
        method, (x, y) = tiny.method(name), tiny.batch()
        begin(method, 0)
        before = {key: value.clone() for key, value in method.model.experts.state_dict().items()}

        def accuracy(attack):
            attack(method.model, x, y)
            return 0.0

        row = method.end_epoch(0, accuracy)
        assert method.end_epoch(1, accuracy) == {}
        after = method.model.experts.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before)
        return method, row

    return make
