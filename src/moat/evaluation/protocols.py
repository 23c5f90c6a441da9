"""Flawed ways of measuring robustness that may explain a published number, each next to the correct one.

An attack setting with ``protocol: <name>`` is measured by that replica: the same signed gradient steps on the same
losses, but in the replica's space and with its objective. Its rows say what was measured so, never how robust a model
is; ``linf`` is in the units of that space. The correct protocol attacks pixels in [0,1], keeps them there, and
maximizes a loss of the final logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from moat.attacks.parts.cascade import with_restarts
from moat.attacks.parts.objectives import cross_entropy, make_objective
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.spaces import PIXELS, Space, normalised_space
from moat.attacks.parts.steps import Randomness, ascend
from moat.base.errors import ConfigError, unknown_name
from moat.models.guard import class_name
from moat.models.nets.normalize import STATISTICS

CORRECT = "correct"
# Attacks that are signed gradient steps, and so can be replayed in another space.
REPLAYED = ("fgsm", "bim", "pgd")


@dataclass(frozen=True)
class Protocol:
    """A replica.

    Attributes:
        description: what is wrong with it and where it was met.
        space: model -> the space that the attack works in.
        router_weight: weight of the cross-entropy between the router's scores and "label modulo experts" in what the
            attack maximizes, for models with a router.
    """

    description: str
    space: Callable[[nn.Module], Space]
    router_weight: float = 0.0

    def measure(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: Attack, generator: Randomness = None
    ) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model to score on, and clean and attacked images, all three in the replica's space.

        Raises:
            ConfigError: an attack or a model that the protocol cannot be applied to.
            MoatError: a gradient that is not a number.
        """
        options = attack.parameters
        space = self.space(model)
        view, z = space.view(model), space.encode(x)
        if options.get("attack") == "none":
            return view, z, z
        if options.get("attack") not in REPLAYED:
            raise ConfigError(f"attack {options.get('attack')!r} has no replica; allowed: none, {', '.join(REPLAYED)}")
        if attack.view is not None or attack.transfer_from is not None:
            raise ConfigError("view and transfer_from: not with a protocol, which attacks the model itself")
        eps, loss = options["eps"], options.get("loss", "ce")
        step = {"step_size": options.get("step_size", eps), "steps": options.get("steps", 1)}

        def single_run(z: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            start = space.start(z, eps, options.get("random_start", False), generator)
            function, objective = self._with_router(view, make_objective(loss, view, z, y), y)
            return ascend(function, start, objective, space.bounds(z, eps), **step, eot=options.get("eot", 1))

        return view, z, with_restarts(single_run, options.get("restarts", 1), view, z, y, loss, generator)

    def _with_router(self, view: nn.Module, of_logits: Callable[[torch.Tensor], torch.Tensor], y: torch.Tensor):
        """A function of the images and the objective of what it returns; with the router's loss if it has a weight."""
        if not (self.router_weight and hasattr(view, "route_logits")):
            return view, of_logits

        def objective(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            logits, scores = outputs
            return of_logits(logits) + self.router_weight * cross_entropy(y % scores.shape[1])(scores)

        return lambda z: (view(z), view.route_logits(z)), objective


@dataclass(frozen=True)
class HarderSeverities:
    """A replica that differs from the correct measurement by the parameters of the corruptions alone."""

    description: str
    severities: str

    def measure(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: Attack, generator: Randomness = None
    ) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model, and clean and corrupted images in [0,1].

        Raises:
            ConfigError: a setting that does not corrupt with these severities.
        """
        given = attack.parameters.get("severities")
        if given != self.severities:
            raise ConfigError(f"severities: {given!r} is not what the protocol measures; allowed: {self.severities}")
        return model, x, attack(model, x.clone(), y.clone(), generator).clamp(0, 1)


def _routed_pixels(model: nn.Module) -> Space:
    if not hasattr(model, "route_logits"):
        raise ConfigError(f"advmoe-released: {class_name(model)} has no router whose loss could be maximized")
    return PIXELS


def _in_pixels(statistics: str) -> str:
    """What a radius of 8/255 standard deviations is in pixel units, the mean over the channels: ``2.0/255``."""
    _, std = STATISTICS[statistics]
    return f"{8 * sum(std) / len(std):.1f}/255"


PROTOCOLS: Mapping[str, Protocol | HarderSeverities] = {
    "advmoe-released": Protocol(
        "The attack maximizes CE(F(x), y) + 6 CE(G(x), y mod experts): most of its budget goes into the router. "
        "The released evaluation of ADVMoE.",
        _routed_pixels,
        router_weight=6.0,
    ),
    "normalised-noclip": Protocol(
        "The normalised image is attacked, eps counts in standard deviations, and nothing keeps pixels in [0,1]: on "
        f"CIFAR-10, 8/255 is {_in_pixels('cifar10')}. Near the undefended rows of the DWF paper, whose equations have "
        "no clamp.",
        lambda model: normalised_space(model, clip="none"),
    ),
    # The printed numbers are SVHN's. For SVHN the paper prints (0.2023, 0.1994, 0.2010), within 2.2 % of SVHN's own.
    "normalised-noclip-printed": Protocol(
        "As normalised-noclip, by the standard deviations (0.1980, 0.2010, 0.1970) that the DWF paper prints for "
        f"CIFAR-10: 8/255 is {_in_pixels('svhn')}.",
        lambda model: normalised_space(model, clip="none", statistics="svhn"),
    ),
    "normalised-clip01": Protocol(
        "The normalised image is attacked and clipped to [0,1]: everything darker than the mean becomes the mean.",
        lambda model: normalised_space(model, clip="unit"),
    ),
    "tiny-released": Protocol(
        "As normalised-clip01, by ImageNet's statistics, maximizing the router's loss as advmoe-released does where "
        "there is a router. What the released code of ADVMoE does for Tiny ImageNet.",
        lambda model: normalised_space(model, clip="unit", statistics="imagenet"),
        router_weight=6.0,
    ),
    "eps-normalised": Protocol(
        "Valid images, but eps counts in standard deviations. The hybrid paper's 'normalized scale'.",
        lambda model: normalised_space(model, clip="image"),
    ),
    "imagenet-c-severities": HarderSeverities(
        "Corruptions with ImageNet-C's parameters, made for 224x224 pixels, on small images. Fits the table of the "
        "MoCSE paper where the published CIFAR-10-C does not.",
        "imagenet-c",
    ),
}


def refuse_replicas(attacks: Mapping[str, Attack], where: str) -> None:
    """Only correct measurements may count as robustness.

    Raises:
        ConfigError: an attack that is measured otherwise; names it and ``where``.
    """
    for name, attack in attacks.items():
        if attack.protocol != CORRECT:
            raise ConfigError(
                f"{where}: {name!r} is measured by the flawed protocol {attack.protocol}, which says nothing about "
                f"robustness; allowed: settings whose protocol is {CORRECT}"
            )


def names() -> list[str]:
    """The replicas, sorted; without ``correct``."""
    return sorted(PROTOCOLS)


def get(name: str) -> Protocol | HarderSeverities:
    """A replica by name.

    Raises:
        ConfigError: unknown ``name``.
    """
    if name not in PROTOCOLS:
        raise ConfigError(unknown_name(name, [CORRECT, *names()], what="protocol"))
    return PROTOCOLS[name]
