"""Losses of adversarial training on logits (B, K), each a scalar: the mean over the batch.

Gradients flow through every argument but the labels. All are computed from ``log_softmax``, in float32 or
wider, and stay finite with finite gradients for any finite logits.
"""

import torch
from torch.nn import functional as F

from moat.models.precision import at_least_float32


def kl(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of KL(p || q) = sum_k p_k (log p_k - log q_k).

    ``F.kl_div`` with a differentiable target is no substitute: its derivative is NaN where p underflows to 0.
    """
    return kl_per_example(logits_p, logits_q).mean()


def kl_per_example(logits_p: torch.Tensor, logits_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) of each example (B,)."""
    log_p, log_q = _log_softmax(logits_p), _log_softmax(logits_q)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def divergence(logits_clean: torch.Tensor, logits_adv: torch.Tensor, order: str) -> torch.Tensor:
    """KL between p(x) and p(x') of each example (B,): "clean_adv" is KL(p(x) || p(x')), "adv_clean" the reverse."""
    pair = {"clean_adv": (logits_clean, logits_adv), "adv_clean": (logits_adv, logits_clean)}[order]
    return kl_per_example(*pair)


def trades(
    logits_clean: torch.Tensor, logits_adv: torch.Tensor, y: torch.Tensor, beta: float, *, order: str = "clean_adv"
) -> torch.Tensor:
    """CE(F(x), y) + beta * KL(p(x) || p(x')), labels ``y`` (B,). Source: Zhang et al., arXiv 1901.08573, eq. 5.

    ``order`` "adv_clean" has KL(p(x') || p(x)) instead (:func:`divergence`).
    """
    return F.nll_loss(_log_softmax(logits_clean), y) + beta * divergence(logits_clean, logits_adv, order).mean()


def mart(logits_clean: torch.Tensor, logits_adv: torch.Tensor, y: torch.Tensor, beta: float) -> torch.Tensor:
    """Boosted CE on x' plus beta times the KL from clean to adversarial, weighted by 1 - p_y(x).

    With q = p(x'), c = p(x): mean[-log q_y - log(1 - max_{k != y} q_k)] + beta * mean[KL(c || q) (1 - c_y)].
    Source: Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020,
    eq. 9 and 11. Where the paper's code adds small constants inside its logarithms, this uses exact log-space forms.
    """
    log_q = _log_softmax(logits_adv)
    labelled = F.one_hot(y, log_q.shape[1]).bool()
    runner_up = log_q.masked_fill(labelled, -torch.inf).argmax(1, keepdim=True)
    # log(1 - q_k) is the log of the other classes' sum, which does not cancel as q_k approaches 1.
    others = torch.zeros_like(labelled).scatter(1, runner_up, True)
    log_rest = log_q.masked_fill(others, -torch.inf).logsumexp(1)
    boosted = -log_q.gather(1, y[:, None])[:, 0] - log_rest
    log_c = _log_softmax(logits_clean)
    weight = -torch.expm1(log_c.gather(1, y[:, None])[:, 0])
    return boosted.mean() + beta * (kl_per_example(logits_clean, logits_adv) * weight).mean()


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return F.log_softmax(at_least_float32(logits), 1)
