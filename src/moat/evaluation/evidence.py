"""What the gates look at: measurements on one model, each made once and on first use."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import nn

from moat.attacks.suites import Attack
from moat.evaluation.runner import as_attack, classify, device_of, evaluate, images
from moat.evaluation.statistics import accuracy

# Radii of the sweep as multiples of eps, and the largest one in pixel units, where nothing can hold.
SWEEP_FACTORS = (0.5, 2.0)
LARGEST_EPS = 64 / 255
STEPS = 10
LARGEST_STEPS = 20
# The attack families that the gates use by name.
ATTACKS = ("fgsm", "none", "pgd")
# Accuracies of different attacks on the same examples may cross by this much, or by two examples.
ACCURACY_SLACK = 0.01


@dataclass
class Evidence:
    """A model and the examples to judge it on; what several gates need is measured once, on first use."""

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    eps: float
    batch_size: int
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def settings(self) -> dict[str, Attack]:
        """The settings that the gates measure: within eps, over the sweep, and those that the caller added."""
        settings = {"clean": {"attack": "none"}, "fgsm": {"attack": "fgsm", "eps": self.eps}}
        settings |= {name: _pgd(eps) for name, eps in self.sweep.items()}
        return {name: as_attack(name, setting) for name, setting in {**settings, **self.extra}.items()}

    @functools.cached_property
    def sweep(self) -> dict[str, float]:
        """PGD settings of growing radius: name -> eps."""
        radii = {"pgd": self.eps} | {f"pgd x{factor:g}": self.eps * factor for factor in SWEEP_FACTORS}
        radii = {name: eps for name, eps in radii.items() if eps < LARGEST_EPS} | {"pgd largest": LARGEST_EPS}
        return dict(sorted(radii.items(), key=lambda item: item[1])) | ({} if "pgd" in radii else {"pgd": self.eps})

    @property
    def within_eps(self) -> list[str]:
        """The settings whose results lie in the eps-ball."""
        return ["clean", "fgsm", "pgd", *self.extra]

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        return evaluate(self.model, self.x, self.y, self.settings, batch_size=self.batch_size, seed=self.seed)

    def accuracy(self, *settings: str) -> float:
        """Worst-case accuracy over settings, as a fraction."""
        correct, n = accuracy(self.frame, settings)
        return correct / n

    @functools.cached_property
    def logits(self) -> torch.Tensor:
        """Clean logits (N, K) on the CPU."""
        return self.classify(range(len(self.x)), self.batch_size)

    def classify(self, order: Iterable[int], batch_size: int) -> torch.Tensor:
        """Logits of the examples in ``order``, in batches of ``batch_size``, put back into the original order."""
        order = torch.as_tensor(list(order))
        logits = torch.cat(
            [
                classify(self.model, images(self.x[part], device_of(self.model))).cpu()
                for part in order.split(batch_size)
            ]
        )
        return torch.empty_like(logits).index_copy_(0, order, logits)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, range]]:
        """Images and labels on the device, and their indices."""
        device = device_of(self.model)
        for start in range(0, len(self.x), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self.x)))
            part = slice(indices.start, indices.stop)
            yield images(self.x[part], device), self.y[part].to(device, torch.int64), indices

    @property
    def slack(self) -> float:
        return max(ACCURACY_SLACK, 2 / len(self.x))


def _pgd(eps: float) -> dict[str, Any]:
    steps = LARGEST_STEPS if eps >= LARGEST_EPS else STEPS
    return {"attack": "pgd", "eps": eps, "step_size": eps / 4, "steps": steps}
