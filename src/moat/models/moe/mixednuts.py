"""MixedNUTS: an accurate and a robust net whose probabilities are mixed after a nonlinear map of the robust logits.

Source: Bai, Zhou, Patel and Sojoudi, MixedNUTS: Training-Free Accuracy-Robustness Balance via Nonlinearly Mixed
Classifiers, TMLR 2024, arXiv 2402.02263, as its released code computes it. Here in float64 throughout, because the map
saturates the softmax of float32.
"""

import torch
from torch import nn
from torch.nn import functional as F

from moat.models.moe import views
from moat.models.moe.constrained import constrained
from moat.models.moe.experts import build_experts
from moat.models.moe.mixed_fixed import MixedNets, log_mixture

PARAMETERS = {}
# Logits whose mean and variance count: the largest ones.
LARGEST = 250
# How the released adaptive attack weighs the robust net's own softmax against that of the map.
PLAIN_SHARE = 0.9
# The view ``temperature`` divides the map's scale by this.
COOLER = 100.0


def standardized(z: torch.Tensor) -> torch.Tensor:
    """Logits (B, K) minus mean, over standard deviation (unbiased), of each example's largest ones; in float64."""
    z = z.double()
    largest = z.topk(min(LARGEST, z.shape[1]), 1).values
    return (z - largest.mean(1, keepdim=True)) / (largest.var(1, keepdim=True) + 1e-8).sqrt()


def nonlinear(z: torch.Tensor, scale, power, shift) -> torch.Tensor:
    """M(z) = s sign(v) |v|^p, v = GELU(u + c) of the standardized logits u (B, K); s, p and c are scalars."""
    v = F.gelu(standardized(z) + shift)
    return scale * v.sign() * v.abs().pow(power)


def one_hot_log(z: torch.Tensor) -> torch.Tensor:
    """The log of a one-hot argmax of logits (B, K): 0 at the predicted class, -inf elsewhere. It has no gradient."""
    chosen = F.one_hot(z.argmax(1), z.shape[1]).bool()
    return torch.zeros_like(z, dtype=torch.float64).masked_fill(~chosen, -torch.inf)


class MixedNuts(MixedNets):
    """log((1 - alpha) onehot(g(x)) + alpha softmax(M(h(x)))): images (B, C, H, W) in [0, 1] to (B, K).

    ``alpha``, ``scale`` s, ``power`` p, ``shift`` c and ``plain_alpha``, the weight in a mixture without the map that
    attacks follow, are fitted, not learned.
    """

    def __init__(self, experts):
        super().__init__(experts)
        self.scale, self.power, self.shift, self.plain_alpha = (
            nn.Parameter(torch.tensor(value)) for value in (1.0, 1.0, 0.0, 0.5)
        )

    def mapped(self, robust: torch.Tensor, cooler: float = 1.0) -> torch.Tensor:
        """M of the robust net's logits (B, K), its scale divided by ``cooler``; float64."""
        scale, power, shift = (each.detach().double() for each in (self.scale, self.power, self.shift))
        return nonlinear(robust, scale / cooler, power, shift)

    def combine(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        return self._mixed(one_hot_log(standard), F.log_softmax(self.mapped(robust), 1)).to(robust.dtype)

    def _mixed(self, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
        return log_mixture(log_p, log_q, self.alpha.detach().double())

    # -- views -------------------------------------------------------------------------------------------------------
    def bypassed(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """The surrogate of the released adaptive attack: soft g, and h mostly without the map."""
        around, through = F.log_softmax(robust.double(), 1), F.log_softmax(self.mapped(robust), 1)
        log_q = log_mixture(through, around, torch.tensor(PLAIN_SHARE, dtype=torch.float64, device=robust.device))
        plain = self.plain_alpha.detach().double()
        return log_mixture(F.log_softmax(standard.double(), 1), log_q, plain).to(robust.dtype)

    def plain(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """Without the map, and g not rounded to one class."""
        log_p, log_q = (F.log_softmax(logits.double(), 1) for logits in (standard, robust))
        return log_mixture(log_p, log_q, self.plain_alpha.detach().double()).to(robust.dtype)

    def soft(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """The mixture itself, but for g, which is not rounded to one class."""
        log_q = F.log_softmax(self.mapped(robust), 1)
        return self._mixed(F.log_softmax(standard.double(), 1), log_q).to(robust.dtype)

    def cooled(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """Soft g, and the map at a scale at which its softmax is not saturated."""
        log_q = F.log_softmax(self.mapped(robust, COOLER), 1)
        return log_mixture(F.log_softmax(standard.double(), 1), log_q, self.plain_alpha.detach().double()).to(
            robust.dtype
        )

    def decisive(self, standard: torch.Tensor, robust: torch.Tensor) -> torch.Tensor:
        """g's logits, on the condition that h is undecided: then g decides. The lead of h counts before its map."""
        first, second = standardized(robust).topk(2, 1).values.unbind(1)
        return constrained(standard, first - second)

    def attack_views(self) -> dict[str, nn.Module]:
        of_logits = {
            "bypass": MixedNuts.bypassed,
            "plain": MixedNuts.plain,
            "soft_g": MixedNuts.soft,
            "temperature": MixedNuts.cooled,
            "decisive": MixedNuts.decisive,
        }
        computed = {
            name: views.Computed(self, lambda model, x, view=view: view(model, *model.answers(x)))
            for name, view in of_logits.items()
        }
        return computed | views.experts_alone(self)


def mixednuts(arch: str, num_classes: int, **net) -> MixedNuts:
    """Two nets ``arch``."""
    return MixedNuts(build_experts(2, arch, num_classes, net))


MIXTURE = mixednuts
