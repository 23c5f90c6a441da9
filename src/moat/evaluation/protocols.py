"""Flawed ways of measuring robustness that may explain a published number, each next to the correct one.

An attack setting with ``protocol: <name>`` is measured by that replica: the same signed gradient steps on the same
losses, but in the replica's space, within its bounds and up its objective. Its rows say what was measured so, never
how robust a model is; ``linf`` is in the units of that space. The correct protocol attacks pixels in [0,1], keeps
them there, and climbs a loss of the final logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from moat.attacks.parts.objectives import cross_entropy, make_objective
from moat.attacks.parts.restarts import worst_of
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import NORMAL_START_SCALE, Randomness, draw, input_gradient
from moat.base.errors import ConfigError, MoatError, unknown_name
from moat.evaluation.protocol_spaces import (
    Bounds,
    Space,
    clipped_to_one,
    normalised,
    normalised_as_imagenet,
    routed_pixels,
    within_image,
    without_clip,
)

CORRECT = "correct"
# Attacks that are signed gradient steps, and so can be replayed in another space.
REPLAYED = ("fgsm", "bim", "pgd")


@dataclass(frozen=True)
class Protocol:
    """A replica.

    Attributes:
        description: what is wrong with it and where it was met.
        space: from the model to the model in the coordinates that the attack works in.
        bounds: from (space, clean images z there, eps) to the least and the greatest value of each pixel.
        router_weight: how much cross-entropy of the router's scores with "label modulo experts" the attack climbs.
    """

    description: str
    space: Callable[[nn.Module], Space]
    bounds: Callable[[Space, torch.Tensor, float], Bounds]
    router_weight: float = 0.0

    def measure(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, attack: Attack, generator: Randomness = None
    ) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        """The model to judge by, and clean and attacked images, all three in the replica's space.

        Raises:
            ConfigError: an attack or a model that the protocol cannot be applied to.
            MoatError: a gradient that is not a number.
        """
        options = attack.parameters
        space = self.space(model)
        z = space.encode(x)
        if options.get("attack") == "none":
            return space, z, z
        if options.get("attack") not in REPLAYED:
            raise ConfigError(f"attack {options.get('attack')!r} has no replica; allowed: none, {', '.join(REPLAYED)}")
        if attack.view is not None or attack.transfer_from is not None:
            raise ConfigError("view and transfer_from: not with a protocol, which attacks the model itself")
        loss = options.get("loss", "ce")

        def once(z: torch.Tensor, y: torch.Tensor, generator: Randomness) -> torch.Tensor:
            return self._ascend(space, z, y, loss, options, generator)

        return space, z, worst_of(once, options.get("restarts", 1), space, z, y, loss, generator)

    def _ascend(self, space, z, y, loss, options, generator) -> torch.Tensor:
        """As :func:`moat.attacks.parts.steps.ascend`, within the protocol's bounds."""
        eps, steps = options["eps"], options.get("steps", 1)
        lower, upper = self.bounds(space, z, eps)
        function, objective = self._climbed(space, z, y, loss)
        moved = _start(z, eps, options.get("random_start", False), generator, lower, upper)
        bad = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        for _ in range(steps):
            gradient = input_gradient(function, moved, objective, options.get("eot", 1))
            bad |= gradient.isnan().flatten(1).any(1)
            moved = torch.clamp(moved + options.get("step_size", eps) * gradient.sign(), min=lower, max=upper)
        if bad.any():
            raise MoatError(f"the attack's gradient is not a number for {int(bad.sum())} of {len(bad)} examples")
        return moved

    def _climbed(self, space: Space, z: torch.Tensor, y: torch.Tensor, loss: str):
        """A function of the images, and the objective of what it returns."""
        of_logits = make_objective(loss, space, z, y)
        if not (self.router_weight and hasattr(space, "route_logits")):
            return space, of_logits

        def with_router(outputs: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            logits, scores = outputs
            return of_logits(logits) + self.router_weight * cross_entropy(y % scores.shape[1])(scores)

        return lambda z: (space(z), space.route_logits(z)), with_router


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


def _start(z, eps, kind, generator, lower, upper) -> torch.Tensor:
    """As :func:`moat.attacks.parts.steps.random_start_point`, within bounds; without a random start, z as it is."""
    if kind is False:
        return z
    if kind == "normal":
        noise = draw(z, torch.randn, generator).mul_(NORMAL_START_SCALE).clamp_(-eps, eps)
    else:
        noise = draw(z, torch.rand, generator).mul_(2).sub_(1).mul_(eps)
    return torch.clamp(z + noise, min=lower, max=upper)


PROTOCOLS: Mapping[str, Protocol | HarderSeverities] = {
    "advmoe-released": Protocol(
        "The attack climbs CE(F(x), y) + 6 CE(G(x), y mod experts): most of its budget goes into the router. "
        "The released evaluation of ADVMoE.",
        routed_pixels,
        within_image,
        router_weight=6.0,
    ),
    "normalised-noclip": Protocol(
        "The normalised image is attacked, eps counts in standard deviations, and nothing keeps pixels in [0,1]: "
        "8/255 is about 1.6/255. Fits the undefended rows of the DWF paper, whose equations have no clamp.",
        normalised,
        without_clip,
    ),
    "normalised-clip01": Protocol(
        "The normalised image is attacked and clipped to [0,1]: everything darker than the mean becomes the mean.",
        normalised,
        clipped_to_one,
    ),
    "tiny-released": Protocol(
        "As normalised-clip01, by ImageNet's statistics, climbing the router's loss as advmoe-released does where "
        "there is a router. What the released code of ADVMoE does for Tiny ImageNet.",
        normalised_as_imagenet,
        clipped_to_one,
        router_weight=6.0,
    ),
    "eps-normalised": Protocol(
        "Valid images, but eps counts in standard deviations. The hybrid paper's 'normalized scale'.",
        normalised,
        within_image,
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
