"""The measurements on one model that the checks share, each made once, on first use."""

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
from moat.evaluation.fresh_judge import FreshJudge
from moat.evaluation.measurement import EXAMPLES_COMPARED
from moat.evaluation.protocols import refuse_replicas
from moat.evaluation.runner import as_attack, classify, device_of, evaluate, images
from moat.evaluation.statistics import accuracy
from moat.kernels import attack_copy
from moat.models.moe.detached import can_detach_router, detached_router

# Radii of the sweep as multiples of eps, and the largest one in pixel units, at which every image is within reach.
SWEEP_FACTORS = (0.5, 2.0)
LARGEST_EPS = 1.0
# At the largest radius the budget's steps are doubled, up to this number.
LARGEST_STEPS = 20
# The attack families that the checks use by name.
ATTACKS = ("fgsm", "moe_adaptive", "none", "pgd", "square")
# A weaker attack may leave this much less accuracy than a stronger one, or two examples.
ACCURACY_SLACK = 0.01

# The suffix of attacks that detach the router from the gradient.
DETACHED = ", router detached"


def has_router(model: nn.Module) -> bool:
    """Whether the model's router is a module of its own, so that its scores can be detached."""
    return can_detach_router(model)


def on_detached(setting: Mapping[str, Any]) -> Attack:
    """A PGD setting with the router detached from the gradient."""
    parameters = {key: value for key, value in setting.items() if key != "attack"}

    def attack(model, x, y, generator=None):
        return pgd(detached_router(model), x, y, **parameters, generator=generator)

    return Attack(attack, parameters["eps"], parameters["steps"])


@dataclass(frozen=True)
class Budget:
    """What the checks may spend on each example.

    Attributes:
        steps: of PGD and of every attack that it is compared with; doublings start from this number.
        queries: forward passes of the black-box attack.
    """

    steps: int = 10
    queries: int = 1000


@dataclass(frozen=True)
class Origin:
    """Where a model and its examples come from, as far as that is known.

    Attributes:
        run: the content of the training's run.json.
        model_sha256, data_sha256: the current hashes of the weights and of the prepared data set.
        band: the known range of such models' accuracies, from :func:`moat.config.bands.find`.
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
    """A model, the examples to check it on, and the measurements that several checks share.

    Attributes:
        extra: name -> attack with which the model's robustness was measured elsewhere.
        transfer_from: another model, whose adversarial examples are tried on this one.
        judge: judges whatever the attacks find again.
        stages: the results of :mod:`moat.evaluation.checks.stages` so far.
        found: the results of checks that other checks have asked for, by name.
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
    judge: FreshJudge | None = None
    stages: dict[str, Any] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def settings(self) -> dict[str, Attack]:
        """The settings that every example is attacked with: at eps, over the sweep, and the claimed ones."""
        settings = {"clean": {"attack": "none"}, "fgsm": {"attack": "fgsm", "eps": self.eps}}
        settings |= {name: self._pgd(eps) for name, eps in self.sweep.items()}
        if has_router(self.model):
            # A straight-through gradient may mislead at every radius, and would hide how the accuracy falls.
            settings |= {name: on_detached(settings[name]) for name in self.sweep if name != "pgd"}
            settings["pgd" + DETACHED] = on_detached(settings["pgd"])
        return {name: as_attack(name, setting) for name, setting in settings.items()} | self.claims

    @functools.cached_property
    def claims(self) -> dict[str, Attack]:
        """The caller's settings, renamed where they have the name of one of ours."""
        ours = {"clean", "fgsm", *self.sweep, "pgd" + DETACHED}
        claims = {name: as_attack(name, setting) for name, setting in self.extra.items()}
        refuse_replicas(claims, "settings")
        return {f"{name} (given)" if name in ours else name: attack for name, attack in claims.items()}

    @functools.cached_property
    def sweep(self) -> dict[str, float]:
        """The PGD settings of growing radius: name -> eps."""
        radii = {"pgd": self.eps} | {f"pgd x{factor:g}": self.eps * factor for factor in SWEEP_FACTORS}
        radii = {name: eps for name, eps in radii.items() if eps < LARGEST_EPS} | {"pgd largest": LARGEST_EPS}
        return dict(sorted(radii.items(), key=lambda item: item[1])) | ({} if "pgd" in radii else {"pgd": self.eps})

    def _pgd(self, eps: float) -> dict[str, Any]:
        steps = self.budget.steps
        if eps >= LARGEST_EPS:
            steps = max(steps, min(LARGEST_STEPS, 2 * steps))
        # The margin, because a loss that saturates would stop far from the goal.
        loss = "margin" if eps >= LARGEST_EPS else "ce"
        return {"attack": "pgd", "eps": eps, "step_size": eps / 4, "steps": steps, "loss": loss}

    @property
    def within_eps(self) -> list[str]:
        """The settings whose results lie within the eps-ball."""
        claimed = [name for name, attack in self.claims.items() if attack.eps is not None and attack.eps <= self.eps]
        return ["clean", "fgsm", *self.at_eps, *claimed]

    @property
    def at_eps(self) -> list[str]:
        """PGD at eps: with the model's full gradient and, if it has a router, with that detached."""
        return ["pgd", "pgd" + DETACHED] if has_router(self.model) else ["pgd"]

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        return evaluate(
            self.model,
            self.x,
            self.y,
            self.settings,
            batch_size=self.batch_size,
            seed=self.seed,
            observe=self.judge,
        )

    @functools.cached_property
    def attacked(self) -> nn.Module:
        """The model as attacks see it: its fast copy, if it has one."""
        return attack_copy(self.model, images(self.x[:EXAMPLES_COMPARED], device_of(self.model)))

    def accuracy(self, *settings: str) -> float:
        """Per-example worst-case accuracy over some of :attr:`settings`, as a fraction."""
        correct, n = accuracy(self.frame, settings)
        return correct / n

    def survivors(self, *settings: str) -> np.ndarray:
        """The positions of the examples that are correct under all of ``settings``."""
        rows = self.frame[self.frame["setting"].isin(settings)]
        correct = rows.groupby("index")["correct"].all()
        return correct.index[correct].to_numpy(copy=True)

    def misclassified(self, name: str, attack: Mapping[str, Any] | Attack, among: np.ndarray) -> np.ndarray:
        """Attack the examples ``among`` (positions), and return those that are then misclassified."""
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
            observe=self.judge,
        )
        return rows.loc[~rows["correct"], "index"].to_numpy(copy=True)

    @functools.cached_property
    def logits(self) -> torch.Tensor:
        """Clean logits (N, K) on the CPU."""
        return self.classify(range(len(self.x)), self.batch_size)

    def classify(self, order: Iterable[int], batch_size: int) -> torch.Tensor:
        """Classify the examples in another order and batch size; the logits are in the original order."""
        order = torch.as_tensor(list(order))
        logits = torch.cat(
            [
                classify(self.model, images(self.x[part], device_of(self.model))).cpu()
                for part in order.split(batch_size)
            ]
        )
        return torch.empty_like(logits).index_copy_(0, order, logits)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, range]]:
        """Batches of images and labels on the model's device, and their positions."""
        device = device_of(self.model)
        for start in range(0, len(self.x), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(self.x)))
            part = slice(indices.start, indices.stop)
            yield images(self.x[part], device), self.y[part].to(device, torch.int64), indices

    @property
    def slack(self) -> float:
        """How much less accuracy than a stronger attack a weaker one may leave."""
        return max(ACCURACY_SLACK, 2 / len(self.x))
