"""PGD and FGSM against foolbox's on the same model and start; CW-L2 and targeted PGD against plain loops."""

import foolbox
import pytest
import torch
from torch import nn

from moat import attacks
from moat.attacks.parts.steps import draw
from moat.base.errors import ConfigError
from moat.data.seeding import generator


@pytest.fixture(scope="module")
def smooth():
    """A net without kinks, in float64, where rounding turns no gradient's sign around."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 10)).double().eval()


@pytest.fixture(scope="module")
def grey():
    """Images away from black and white, and the labels that the net gives or misses."""
    x = torch.rand(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    return x, torch.arange(12) % 10


def as_foolbox(model):
    return foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")


def test_fgsm_is_foolboxes(smooth, grey):
    x, y = grey
    expected, _, _ = foolbox.attacks.FGSM(random_start=False)(as_foolbox(smooth), x, y, epsilons=0.03)
    torch.testing.assert_close(attacks.fgsm(smooth, x, y, eps=0.03), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("eps", [0.03, 0.3])
def test_pgd_is_foolboxes(smooth, grey, eps, random_start):
    x, y = grey
    options = {"eps": eps, "step_size": eps / 4, "steps": 7}
    found = attacks.pgd(smooth, x, y, **options, random_start=random_start, generator=torch.Generator().manual_seed(3))
    attack = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=7, random_start=random_start)
    if random_start:
        # The same start: foolbox's own comes from the global numbers.
        noise = draw(x, torch.rand, torch.Generator().manual_seed(3)) * 2 - 1
        attack.get_random_start = lambda x0, epsilon: x0 + epsilon * type(x0)(noise)
    expected, _, _ = attack(as_foolbox(smooth), x, y, epsilons=eps)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def carlini(model, x, y, c, kappa, lr, steps):
    """One image: Adam written out on w, x' = (tanh(w) + 1) / 2; the nearest misclassified image of all steps."""
    w = torch.atanh((2 * x - 1) * 0.999999)
    first, second = torch.zeros_like(w), torch.zeros_like(w)
    best, nearest = x, torch.inf
    for step in range(1, steps + 1):
        w.requires_grad_(True)
        z = (w.tanh() + 1) / 2
        logits = model(z[None])[0]
        others = torch.cat([logits[:y], logits[y + 1 :]])
        distance = ((z - x) ** 2).sum()
        (slope,) = torch.autograd.grad(distance + c * max(logits[y] - others.max(), torch.tensor(-kappa)), w)
        if others.max() > logits[y] and distance < nearest:
            best, nearest = z.detach(), distance.item()
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        rate = lr / (1 - 0.9**step)
        w = w.detach() - rate * first / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return best


@pytest.mark.parametrize(("c", "kappa", "lr"), [(1.0, 0.0, 0.01), (5.0, 0.0, 0.02), (5.0, 0.3, 0.05)])
def test_cw_l2_is_the_papers_example_by_example(smooth, grey, c, kappa, lr):
    x, y = grey
    found = attacks.cw_l2(smooth, x, y, c=c, kappa=kappa, steps=40, lr=lr)
    expected = torch.stack([carlini(smooth, x[i], y[i], c, kappa, lr, 40) for i in range(len(x))])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    moved = (found != x).flatten(1).any(1)
    with torch.no_grad():
        right, still_right = (smooth(z).argmax(1) == y for z in (x, found))
    assert not still_right[moved].any() and (moved | right).all()


def test_cw_l2_moves_black_and_white_pixels(smooth):
    x = (torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    with torch.no_grad():
        y = smooth(x).argmax(1)
    found = attacks.cw_l2(smooth, x, y, c=10.0, steps=60, lr=0.5)
    with torch.no_grad():
        assert (smooth(found).argmax(1) != y).any()
    assert found.min() >= 0 and found.max() <= 1


def test_cw_inf_is_pgd_on_the_margin_until_kappa(smooth, grey):
    x, y = grey
    options = {"eps": 0.1, "step_size": 0.02, "steps": 8}

    def run(attack, **more):
        return attack(smooth, x, y, **options, **more, generator=torch.Generator().manual_seed(0))

    margin = run(attacks.pgd, loss="margin")
    assert torch.equal(run(attacks.cw_inf), margin)
    bounded = run(attacks.cw_inf, kappa=0.0)
    labelled = torch.nn.functional.one_hot(y, 10).bool()

    def lead(z):
        with torch.no_grad():
            logits = smooth(z)
        return logits.masked_fill(labelled, -torch.inf).amax(1) - logits[labelled]

    assert (lead(bounded) > 0).tolist() == (lead(margin) > 0).tolist()
    assert lead(bounded).max() < lead(margin).max()


# -- targeted ------------------------------------------------------------------


def towards(model, x, y, target, start, eps, step_size, steps):
    z = start.clone()
    for _ in range(steps):
        z.requires_grad_(True)
        logits = model(z[None])[0]
        (slope,) = torch.autograd.grad(logits[target] - logits[y], z)
        z = (z.detach() + step_size * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1)
    return z.detach()


def test_targeted_pgd_takes_the_nearest_wrong_class_first(smooth, grey):
    """Example by example: classes in the order of their clean logits until one succeeds, else the highest margin."""
    x, y = grey
    options = {"eps": 0.02, "step_size": 0.005, "steps": 5}
    draws = [generator(0, 0, "targeted", batch=i) for i in range(len(x))]
    found = attacks.pgd_targeted(smooth, x, y, **options, targets=3, generator=draws)
    draws = [generator(0, 0, "targeted", batch=i) for i in range(len(x))]
    for i in range(len(x)):
        with torch.no_grad():
            order = [k for k in smooth(x[i : i + 1])[0].argsort(descending=True).tolist() if k != y[i]]
        best, highest = None, -torch.inf
        for target in order[:3]:
            noise = torch.rand(x[i].shape, dtype=x.dtype, generator=draws[i]) * 2 - 1
            start = (x[i] + options["eps"] * noise).clamp(0, 1)
            z = towards(smooth, x[i], y[i], target, start, **options)
            with torch.no_grad():
                logits = smooth(z[None])[0]
            lead = max(logits[k] for k in order) - logits[y[i]]
            if lead > highest:
                best, highest = z, lead
            if lead > 0:
                break
        torch.testing.assert_close(found[i], best, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [3, "random"])
def test_other_targets(target, smooth, grey):
    x, y = grey
    found = attacks.pgd_targeted(smooth, x, y, eps=0.3, step_size=0.1, steps=10, target=target)
    assert (found - x).abs().max() <= 0.3 + 1e-6
    with torch.no_grad():
        predicted = smooth(found).argmax(1)
    if target == 3:
        assert torch.equal(found[y == 3], x[y == 3])
        assert (predicted[y != 3] == 3).float().mean() > 0.8
    else:
        assert (predicted != y).float().mean() > 0.8 and len(predicted.unique()) > 3


@pytest.mark.parametrize(
    ("attack", "options", "words"),
    [
        ("pgd_targeted", {"target": "worst"}, ["target", "'worst'", "ordered"]),
        ("pgd_targeted", {"target": 10}, ["target", "10", "0 to 9"]),
        ("pgd_targeted", {"targets": 0}, ["targets", "0"]),
        ("cw_inf", {"kappa": -1.0}, ["kappa", "-1"]),
        ("cw_inf", {"eps": 2}, ["eps", "2"]),
        ("cw_l2", {"c": -1.0}, ["c", "-1"]),
        ("cw_l2", {"steps": 0}, ["steps", "0"]),
        ("square", {"n_queries": 0}, ["n_queries", "0"]),
    ],
)
def test_refused_parameters(attack, options, words, smooth, grey):
    defaults = {} if attack == "cw_l2" else {"eps": 0.1}
    defaults |= {"step_size": 0.01, "steps": 2} if attack == "pgd_targeted" else {}
    with pytest.raises(ConfigError) as caught:
        attacks.get(attack)(smooth, *grey, **defaults | options)
    assert all(word in str(caught.value) for word in words)
