"""What the checks look at: measurements on one model, each made once and on first use."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from moat.attacks import pgd
from moat.attacks.parts.setting import Attack
from moat.evaluation.protocols import refuse_replicas
from moat.evaluation.runner import as_attack, classify, device_of, evaluate, images
from moat.evaluation.statistics import accuracy
from moat.models.moe.detached import detached_router

# Radii of the sweep as multiples of eps, and the largest one in pixel units, where nothing can hold.
SWEEP_FACTORS = (0.5, 2.0)
LARGEST_EPS = 64 / 255
# At the largest radius, steps beyond the budget's.
LARGEST_STEPS = 20
# The attack families that the checks use by name.
ATTACKS = ("fgsm", "moe_adaptive", "none", "pgd", "square")
# Accuracies of different attacks on the same examples may cross by this much, or by two examples.
ACCURACY_SLACK = 0.01


# How the names of attacks end that cut the gradient through the router.
DETACHED = ", router detached"


def has_router(model: nn.Module) -> bool:
    """Whether the model has a router as a module of its own, whose scores can be cut off from the gradient."""
    return isinstance(getattr(model, "router", None), nn.Module)


def on_detached(setting: Mapping[str, Any]) -> Attack:
    """A setting of PGD that does not follow the gradient through the router."""
    parameters = {key: value for key, value in setting.items() if key != "attack"}

    def attack(model, x, y, generator=None):
        return pgd(detached_router(model), x, y, **parameters, generator=generator)

    return Attack(attack, parameters["eps"], parameters["steps"])


@dataclass(frozen=True)
class Budget:
    """What the checks may spend on each example.

    Attributes:
        steps: of PGD, and of every attack that is compared with it; its doubling takes twice as many.
        queries: forward passes of the black-box attack.
    """

    steps: int = 10
    queries: int = 100


@dataclass(frozen=True)
class Origin:
    """What is known about where a model and its examples come from; everything may be unknown.

    Attributes:
        run: content of the run.json that describes the training.
        model_sha256, data_sha256: of the weights and of the prepared data set, as read now.
        band: the known accuracies of such models, as :func:`moat.config.bands.find` returns it.
        no_band: why there is none.
        held_out: images and labels that are neither training nor test examples.
    """

    run: Mapping[str, Any] | None = None
    model_sha256: str | None = None
    data_sha256: str | None = None
    band: Mapping[str, Any] | None = None
    no_band: str = "nothing is known about the training"
    held_out: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass
class Evidence:
    """A model and the examples to judge it on; what several checks need is measured once, on first use.

    Attributes:
        extra: name -> attack that somebody claims to measure this model's robustness with.
        transfer_from: another model, whose adversarial examples are tried on this one.
        stages: what :mod:`moat.evaluation.checks.stages` has measured so far.
    """

    model: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    eps: float
    batch_size: int
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = Budget()
    origin: Origin = Origin()
    transfer_from: nn.Module | None = None
    stages: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def settings(self) -> dict[str, Attack]:
        """The settings that every example is attacked with: within eps, over the sweep, and the claimed ones."""
        settings = {"clean": {"attack": "none"}, "fgsm": {"attack": "fgsm", "eps": self.eps}}
        settings |= {name: self._pgd(eps) for name, eps in self.sweep.items()}
        if has_router(self.model):
            # A straight-through gradient may lead astray at every radius, and would hide how accuracy falls.
            settings |= {name: on_detached(settings[name]) for name in self.sweep if name != "pgd"}
            settings["pgd" + DETACHED] = on_detached(settings["pgd"])
        return {name: as_attack(name, setting) for name, setting in settings.items()} | self.claims

    @functools.cached_property
    def claims(self) -> dict[str, Attack]:
        """The caller's own settings. One with the name of one of ours gets another name."""
        ours = {"clean", "fgsm", *self.sweep, "pgd" + DETACHED}
        claims = {name: as_attack(name, setting) for name, setting in self.extra.items()}
        refuse_replicas(claims, "settings")
        return {f"{name} (given)" if name in ours else name: attack for name, attack in claims.items()}

    @functools.cached_property
    def sweep(self) -> dict[str, float]:
        """PGD settings of growing radius: name -> eps."""
        radii = {"pgd": self.eps} | {f"pgd x{factor:g}": self.eps * factor for factor in SWEEP_FACTORS}
        radii = {name: eps for name, eps in radii.items() if eps < LARGEST_EPS} | {"pgd largest": LARGEST_EPS}
        return dict(sorted(radii.items(), key=lambda item: item[1])) | ({} if "pgd" in radii else {"pgd": self.eps})

    def _pgd(self, eps: float) -> dict[str, Any]:
        steps = self.budget.steps
        if eps >= LARGEST_EPS:
            steps = max(steps, min(LARGEST_STEPS, 2 * steps))
        return {"attack": "pgd", "eps": eps, "step_size": eps / 4, "steps": steps}

    @property
    def within_eps(self) -> list[str]:
        """The settings whose results lie in the eps-ball."""
        claimed = [name for name, attack in self.claims.items() if attack.eps is not None and attack.eps <= self.eps]
        return ["clean", "fgsm", *self.at_eps, *claimed]

    @property
    def at_eps(self) -> list[str]:
        """PGD at eps: by the model's own gradient, and without that of its router if it has one."""
        return ["pgd", "pgd" + DETACHED] if has_router(self.model) else ["pgd"]

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        return evaluate(self.model, self.x, self.y, self.settings, batch_size=self.batch_size, seed=self.seed)

    def accuracy(self, *settings: str) -> float:
        """Worst-case accuracy over settings that all examples were attacked with, as a fraction."""
        correct, n = accuracy(self.frame, settings)
        return correct / n

    def survivors(self, *settings: str) -> np.ndarray:
        """Positions of the examples that are correct under all of ``settings``."""
        rows = self.frame[self.frame["setting"].isin(settings)]
        correct = rows.groupby("index")["correct"].all()
        return correct.index[correct].to_numpy(copy=True)

    def broken(self, name: str, attack: Mapping[str, Any] | Attack, among: np.ndarray) -> np.ndarray:
        """The positions of ``among`` that an attack breaks; only these examples are attacked."""
        if not len(among):
            return among
        part = torch.tensor(among)
        rows = evaluate(
            self.model,
            self.x[part],
            self.y[part],
            {name: attack},
            batch_size=self.batch_size,
            seed=self.seed,
            indices=among.tolist(),
        )
        return rows.loc[~rows["correct"], "index"].to_numpy(copy=True)

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
