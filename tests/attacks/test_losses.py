"""TRADES, MART and KL against formulas written out, and their gradients where textbook code gives NaN."""

import pytest
import torch
from torch.nn import functional as F

from moat.methods import losses


def logits(seed, n=5, k=4, scale=2.0):
    return (
        torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    ).requires_grad_()


Y = torch.tensor([0, 3, 1, 2, 2])


def test_kl_is_the_definition():
    p, q = logits(1).softmax(1), logits(2).softmax(1)
    expected = sum(p[i, k] * (p[i, k].log() - q[i, k].log()) for i in range(5) for k in range(4)) / 5
    torch.testing.assert_close(losses.kl(logits(1), logits(2)), expected)
    torch.testing.assert_close(losses.kl(logits(1), logits(2)), F.kl_div(q.log(), p, reduction="batchmean"))
    assert losses.kl(logits(1), logits(1)).item() == 0


@pytest.mark.parametrize(
    ("p", "q"), [([200.0, -200.0], [199.0, -199.0]), ([1e4, -1e4], [-1e4, 1e4]), ([1e4, 0.0], [0.0, 0.0])]
)
@pytest.mark.parametrize("loss", ["kl", "trades", "mart"])
def test_extreme_logits_give_finite_values_and_gradients(p, q, loss):
    p, q = (torch.tensor([values], requires_grad=True) for values in (p, q))
    y = torch.tensor([1])
    value = losses.kl(p, q) if loss == "kl" else getattr(losses, loss)(p, q, y, 6.0)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(p.grad).all() and torch.isfinite(q.grad).all()


def test_trades_by_hand_with_gradients_through_both_arguments():
    clean, adv = logits(1), logits(2)
    value = losses.trades(clean, adv, Y, 6.0)
    c, q = clean.softmax(1), adv.softmax(1)
    expected = -c[range(5), Y].log().mean() + 6 * (c * (c / q).log()).sum() / 5
    torch.testing.assert_close(value, expected)
    found = torch.autograd.grad(value, (clean, adv))
    wanted = torch.autograd.grad(expected, (clean, adv))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
        assert a.abs().sum() > 0


def test_mart_by_hand():
    clean, adv = logits(1), logits(2)
    value = losses.mart(clean, adv, Y, 5.0)
    c, q = clean.softmax(1), adv.softmax(1)
    expected = 0
    for i, label in enumerate(Y.tolist()):
        runner_up = max(q[i, k] for k in range(4) if k != label)
        divergence = sum(c[i, k] * (c[i, k] / q[i, k]).log() for k in range(4))
        expected = expected - q[i, label].log() - (1 - runner_up).log() + 5 * divergence * (1 - c[i, label])
    torch.testing.assert_close(value, expected / 5)


def test_mart_on_two_classes_by_hand():
    # q = (1/4, 3/4), label 0: boosted cross-entropy is -log(1/4) - log(1 - 3/4); c = (1/2, 1/2) weighs KL by 1/2.
    adv, clean = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 1.0]])
    adv[0, 1] = torch.log(torch.tensor(3.0))
    quarter, half = torch.tensor(0.25), torch.tensor(0.5)
    divergence = half * (half / quarter).log() + half * (half / 0.75).log()
    expected = -2 * quarter.log() + 5 * divergence * half
    torch.testing.assert_close(losses.mart(clean, adv, torch.tensor([0]), 5.0), expected)


def test_marts_gradient_reaches_the_clean_logits_through_its_weight():
    clean, adv = logits(1), logits(2)
    (through,) = torch.autograd.grad(losses.mart(clean, adv, Y, 5.0), clean)
    c, q = clean.softmax(1), adv.softmax(1).detach()
    divergence = (c * (c / q).log()).sum(1)
    weighted = (5 * divergence * (1 - c[range(5), Y])).mean()
    torch.testing.assert_close(through, torch.autograd.grad(weighted, clean)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    assert losses.kl(logits(1).to(dtype), logits(2).to(dtype)).dtype == torch.float32
