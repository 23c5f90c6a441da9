"""A training method: a model, its optimizers, and one update per batch.

The engine owns everything else: epochs, learning rates, checkpoints, validation, logs, precision.
"""

import contextlib
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from moat import models
from moat.attacks import AttackCopy
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.spaces import PIXELS, Space, training_space
from moat.base.numbers import parse_number
from moat.data.seeding import generator
from moat.methods.schedules import learning_rate_factor
from moat.models.outputs import predicted_class
from moat.models.precision import at_least_float32


@dataclass(frozen=True)
class Step:
    """The position of a batch in the training, and the source of its random numbers."""

    seed: int
    epoch: int
    epochs: int
    batch: int
    batches: int
    device: torch.device

    @property
    def progress(self) -> float:
        """The finished fraction of the training, in [0, 1)."""
        return (self.epoch + self.batch / self.batches) / self.epochs

    def generator(self, purpose: str) -> torch.Generator:
        """A generator for one purpose, derived from seed, epoch and batch, so that resuming needs no saved state."""
        return generator(self.seed, self.epoch, purpose, self.batch, self.device)


class Method:
    """Base class of all methods. A subclass implements :meth:`update` and overrides whatever else differs.

    Args:
        model: from :meth:`build`, already on its device.
        recipe: the resolved recipe: the keys of ``workflow/schemas/method.schema.yaml`` and of :attr:`PARAMETERS`.
        autocast: a context manager factory for the forward passes (mixed precision), or None.
    """

    #: The recipe keys of this class, in addition to those of every recipe and of its base classes: key, dotted inside a
    #: mapping ("loss.beta") -> what is allowed, as JSON Schema. ``type`` may also be a name of ``$defs`` in
    #: ``method.schema.yaml``. A key without ``default`` or ``"required": False`` is mandatory. A literal, because plans
    #: and checks of recipes read it from the source without importing torch.
    PARAMETERS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    #: The mixture that :meth:`build` builds, whose parameters are recipe keys below ``model``; also a literal. If it is
    #: None, a recipe can choose one as ``model.mixture``.
    MIXTURE: ClassVar[str | None] = None

    #: The recipe key of each optimizer, and of the norm that its gradient is clipped to (default: gradient_clip).
    optimizer_keys: ClassVar[Mapping[str, str]] = {"model": "optimizer"}
    clip_keys: ClassVar[Mapping[str, str]] = {}

    #: Where all attacks of a training work, those of its validation included.
    space: Space = PIXELS

    def __init__(self, model: nn.Module, recipe: Mapping[str, Any], *, autocast=None):
        self.model = model
        self.recipe = recipe
        self.autocast = autocast or contextlib.nullcontext
        self.attack = _numbers(recipe.get("attack", {}))
        self.loss_weights = dict(recipe.get("loss", {}))
        self._attack_copy: AttackCopy | None = None
        self.optimizers = {
            name: build_optimizer(self.parameters_of(name), recipe[key]) for name, key in self.optimizer_keys.items()
        }

    @classmethod
    def build(cls, *, arch: str, num_classes: int, options: Mapping[str, Any]) -> nn.Module:
        """A freshly initialised model, both for training and for loading a trained one.

        Args:
            options: keywords of :func:`moat.models.build`, or those of the mixture.
        """
        net = dict(options)
        mixture = cls.MIXTURE or net.pop("mixture", None)
        if mixture is None:
            return models.build(arch, num_classes, **net)
        return models.build_mixture(mixture, arch, num_classes, **net)

    # -- what a method may change -------------------------------------------
    def initialize(self, runs: Mapping[str, Path]) -> None:
        """Called once before training, but not when a trained model is loaded; a checkpoint is restored after it.

        Args:
            runs: the finished runs that the recipe's ``initialize_from`` names, name -> folder. Copy their weights
                into the parameters in place, because the optimizers already hold these.
        """

    def parameters_of(self, optimizer: str) -> list[nn.Parameter]:
        """The parameters that an optimizer updates."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def update(self, x: torch.Tensor, y: torch.Tensor, step: Step) -> dict[str, torch.Tensor]:
        """One update on a batch of images ``x`` (B, C, H, W) in [0, 1] with labels ``y`` (B,).

        Returns:
            Detached scalars, averaged over the batch, among them ``loss``; they become columns of history.csv.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update()")

    def learning_rate(self, optimizer: str, step: Step) -> float:
        """An optimizer's learning rate at a step: the recipe's, times its schedule."""
        base = self.recipe[self.optimizer_keys[optimizer]]["lr"]
        return base * learning_rate_factor(self.recipe["schedule"], step.progress)

    def train_mode(self) -> None:
        """Switch the model to the mode that :meth:`update` expects."""
        self.model.train()

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch (0, 1, …), and again when a run resumes inside it; must depend on ``epoch`` alone."""

    def end_epoch(self, epoch: int, accuracy: Callable[[Attack], float]) -> dict[str, float]:
        """Called after an epoch's last batch; returns further columns of history.csv.

        Args:
            accuracy: the model's accuracy in [0, 1] on the held-out images under an attack.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state, besides model and optimizers, that the method carries across epochs: plain values and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""

    # -- for subclasses ------------------------------------------------------
    def attacked(self) -> nn.Module:
        """The current model as a fast copy for attacks: frozen, in evaluation mode, its batch norm folded.

        Call this once per attack: each call updates the same copy.
        """
        if self._attack_copy is None:
            self._attack_copy = AttackCopy(self.model)
        return self._attack_copy.refresh()

    def logits(self, x: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        """Logits, float32 or wider, of the model (or of ``model``), computed in the recipe's precision."""
        with self.autocast():
            return at_least_float32((self.model if model is None else model)(x))

    def minimize(self, loss: torch.Tensor, optimizer: str = "model") -> None:
        """One optimizer step on ``loss``, with the gradient clipped as the recipe says."""
        self.optimizers[optimizer].zero_grad(set_to_none=True)
        loss.backward()
        clip = self.recipe.get(self.clip_keys.get(optimizer, "gradient_clip"))
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters_of(optimizer), clip)
        self.optimizers[optimizer].step()


class AdversarialMethod(Method):
    """A method that attacks the images it trains on, in the space that its recipe names: every attack gets it."""

    PARAMETERS = {
        "attack_space": {
            "type": "space",
            "required": False,
            "description": "where all attacks of the training work, those of its validation, too; pixel if not given",
        },
    }

    @functools.cached_property
    def space(self) -> Space:
        return training_space(model=self.model, **self.recipe.get("attack_space", {"name": "pixel"}))


def build_optimizer(parameters: list[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that a recipe describes, in its fused implementation."""
    return torch.optim.SGD(
        parameters,
        lr=options["lr"],
        momentum=options["momentum"],
        weight_decay=options["weight_decay"],
        nesterov=options.get("nesterov", False),
        fused=True,
    )


def accuracy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Fraction of the batch that is classified correctly, as a scalar tensor."""
    return (predicted_class(logits) == y).float().mean()


def _numbers(attack: Mapping[str, Any]) -> dict[str, Any]:
    numeric = ("eps", "step_size")
    return {k: parse_number(v, where=f"attack.{k}") if k in numeric else v for k, v in attack.items()}
