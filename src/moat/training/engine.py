"""The training loop, the same for every method.

The data set is on the device as uint8, and all random numbers come from generators seeded by (seed, epoch, purpose,
batch). So a run that is killed, even inside an epoch, and started again continues with the same random numbers and ends
with bit-identical weights (on the same device, with the same number of threads).
"""

import copy
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from moat.attacks import for_attack, resolve
from moat.attacks.parts.setting import Attack, both_gradients
from moat.base.errors import ConfigError, Interrupted, MoatError, TrainingError
from moat.base.progress import progress
from moat.base.signals import Interruption
from moat.data.batches import Batches
from moat.data.datasets import Split
from moat.data.seeding import generator
from moat.kernels import for_training
from moat.machine.usage import Usage
from moat.methods.base import Method, Step
from moat.models.outputs import predicted_class
from moat.training.checkpoint import Checkpoints
from moat.training.images import training_batches
from moat.training.meters import Meter

log = logging.getLogger(__name__)

# How often the losses are checked: reading them from a GPU waits for it.
CHECK_EVERY_STEPS = 50
CHECKPOINT_EVERY_SECONDS = 300.0
# Incremented whenever the checkpoint's content changes; a checkpoint of another format is not resumed.
CHECKPOINT_FORMAT = 2
KEPT = "The last good checkpoint is kept"


class Engine:
    """Trains one method on one data set. The process may be killed at any time.

    Args:
        method: the method, with its model on ``device``.
        name: its registry name, for messages.
        recipe: epochs, batch_size, schedule, ema, validation; optionally augment and extra_images.
        train, validation: uint8 images and labels; the validation images are held out of the training set.
        extra: additional training images, mixed in according to the recipe's extra_images.
        augment: the data set's ``crop_padding`` and ``flip``.
        validation_attack: the attack setting that selects the best epoch; of a net with a router, by the worst of both
            gradients.
        checkpoints: where checkpoints are saved.
        identity: digests of recipe, data and the like that a checkpoint must share to be resumed.
    """

    def __init__(
        self,
        method: Method,
        *,
        name: str,
        recipe: Mapping[str, Any],
        seed: int,
        train: Split,
        validation: Split,
        extra: Split | None = None,
        augment: Mapping[str, Any],
        validation_attack: Mapping[str, Any],
        checkpoints: Checkpoints,
        identity: Mapping[str, Any],
        device: torch.device,
    ):
        self.method, self.name, self.recipe, self.seed, self.device = method, name, recipe, seed, device
        for_training(method.model)
        self.checkpoints, self.identity = checkpoints, dict(identity)
        size = recipe["batch_size"]
        self.batches = training_batches(train, extra, recipe, seed=seed, augment=augment, device=device)
        self.validation = Batches(
            validation.images, validation.labels, batch_size=size, seed=seed, device=device, shuffle=False
        )
        self.attack = resolve(recipe["validation"]["setting"], dict(validation_attack))
        if (why := self.attack.not_applicable_reason(method.model)) is not None:
            # Otherwise known after the first epoch only.
            raise ConfigError(f"method {name}: validation.setting {recipe['validation']['setting']!r}: {why}")
        ema = recipe.get("ema")
        self.averaged = (
            AveragedModel(method.model, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True) if ema else None
        )
        self.epoch, self.batch = 0, 0
        self.history: list[dict[str, Any]] = []
        self.best_accuracy, self.best_epoch, self.best_state = -1.0, 0, None
        self.seconds = self.epoch_seconds = 0.0
        self.usage = Usage()
        self.meter = Meter()
        self._clock = time.monotonic()
        self._saved_at = self._clock

    # -- the loop ------------------------------------------------------------
    def train(self, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train to the recipe's last epoch, resuming from the newest checkpoint if there is one.

        Raises:
            TrainingError: the loss is NaN or infinite; the last good checkpoint is kept.
            Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved first.
        """
        self._resume()
        with Interruption() as interruption:
            while self.epoch < self.recipe["epochs"]:
                self._train_epoch(interruption)
                row = self._end_epoch()
                on_epoch(row)
                self.save()

    def _train_epoch(self, interruption: Interruption) -> None:
        self.method.train_mode()
        self.method.begin_epoch(self.epoch)
        batches = progress(
            self.batches.epoch(self.epoch, start=self.batch),
            total=len(self.batches) - self.batch,
            description=f"{self.name} epoch {self.epoch + 1}/{self.recipe['epochs']}",
            unit="batch",
        )
        for x, y in batches:
            step = Step(self.seed, self.epoch, self.recipe["epochs"], self.batch, len(self.batches), self.device)
            self._set_learning_rates(step)
            try:
                metrics = self.method.update(x, y, step)
            except MoatError as error:
                # For example an attack whose gradient is NaN because the weights are.
                raise TrainingError(f"{self._where(self.batch + 1)}: {error}; stopped. {KEPT}") from error
            self.meter.add(self.batch, len(y), metrics)
            if self.averaged is not None:
                self.averaged.update_parameters(self.method.model)
            self.batch += 1
            if self.batch % CHECK_EVERY_STEPS == 0:
                self.meter.check(self.name, self.epoch)
                self._tick()
                batches.set_postfix_str(f"{self.meter.samples / self.epoch_seconds:.0f} images/s")
            if interruption.requested or time.monotonic() - self._saved_at > CHECKPOINT_EVERY_SECONDS:
                self.save()
            if interruption.requested:
                raise Interrupted(
                    f"stopped at epoch {self.epoch + 1}, batch {self.batch}; checkpoint in {self.checkpoints.folder}; "
                    "the same command continues from there"
                )
        self.check()

    def _end_epoch(self) -> dict[str, Any]:
        """Validate, keep the best weights, append a row to the history, and advance to the next epoch."""
        self._tick()
        train_seconds = self.epoch_seconds
        lr = next(iter(self.method.optimizers.values())).param_groups[0]["lr"]
        row: dict[str, Any] = {"epoch": self.epoch + 1, "lr": lr, **self.meter.means()}
        row.update(self.method.end_epoch(self.epoch, lambda attack: self.validate(attack)["validation_accuracy"]))
        every, last = self.recipe["validation"]["every"], self.epoch + 1 == self.recipe["epochs"]
        if last or (self.epoch + 1) % every == 0:
            row.update(self.validate(self.attack))
            if row["validation_accuracy"] > self.best_accuracy:
                self.best_accuracy, self.best_epoch = row["validation_accuracy"], self.epoch + 1
                self.best_state = copy.deepcopy(self.weights().state_dict())
        self._tick()
        row.update(images=self.meter.samples, train_seconds=train_seconds, seconds=self.epoch_seconds)
        self.history.append(row)
        self.epoch, self.batch, self.meter, self.epoch_seconds = self.epoch + 1, 0, Meter(), 0.0
        return row

    def validate(self, attack: Attack) -> dict[str, float]:
        """Accuracy on the validation images under an attack, with the same random starts in every epoch.

        The attack works where those of the training do.

        Returns:
            ``validation_accuracy``. For a net with a router it is the per-example worst of both gradients, and
            ``validation_accuracy_straight_through`` and ``validation_accuracy_detached`` are the two alone.
        """
        attack = attack.in_space(self.method.space)
        model = self.weights()
        model.eval()
        attacked, attacks = for_attack(model), both_gradients(attack, model)
        batches: dict[str, list[torch.Tensor]] = {gradient: [] for gradient in attacks}
        for number, (x, y) in enumerate(self.validation.epoch(0)):
            for gradient, each in attacks.items():
                x_adv = each(attacked, x, y, generator(self.seed, 0, "validation", number, self.device))
                with torch.no_grad():
                    batches[gradient].append(predicted_class(model(x_adv)) == y)
        self.method.train_mode()
        correct = {gradient: torch.cat(parts) for gradient, parts in batches.items()}
        counts = {"validation_accuracy": torch.stack(list(correct.values())).all(0).sum()}
        if len(correct) > 1:
            counts |= {f"validation_accuracy_{name.replace('-', '_')}": each.sum() for name, each in correct.items()}
        return {name: float(count) / self.validation.size for name, count in counts.items()}

    def weights(self) -> nn.Module:
        """The model to validate and to save: the moving average of the weights if the recipe asks for one."""
        return self.averaged.module if self.averaged is not None else self.method.model

    def _set_learning_rates(self, step: Step) -> None:
        for name, optimizer in self.method.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.method.learning_rate(name, step)

    def _tick(self) -> None:
        """Add the time since the last tick to the epoch and the run. Time lost to a kill is not counted."""
        now = time.monotonic()
        elapsed, self._clock = now - self._clock, now
        self.seconds += elapsed
        self.epoch_seconds += elapsed

    # -- state ---------------------------------------------------------------
    def save(self) -> None:
        """Write a checkpoint. Raises TrainingError instead if a recent loss or a weight is not finite."""
        self.check()
        self._tick()
        self.checkpoints.save(
            {
                "format": CHECKPOINT_FORMAT,
                "identity": self.identity,
                "epoch": self.epoch,
                "batch": self.batch,
                "model": self.method.model.state_dict(),
                "averaged": self.averaged.state_dict() if self.averaged is not None else None,
                "optimizers": {name: optimizer.state_dict() for name, optimizer in self.method.optimizers.items()},
                "method": self.method.state_dict(),
                "meter": self.meter.state_dict(),
                "history": self.history,
                "best": (self.best_accuracy, self.best_epoch, self.best_state),
                "seconds": (self.seconds, self.epoch_seconds),
                "usage": self.usage.record(),
            }
        )
        self._saved_at = time.monotonic()

    def check(self) -> None:
        """Check the losses since the last check, and the weights.

        Raises:
            TrainingError: one of them is NaN or infinite; the last checkpoint is from before that.
        """
        self.meter.check(self.name, self.epoch)
        weights = [tensor for tensor in self.method.model.state_dict().values() if tensor.is_floating_point()]
        if not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
            raise TrainingError(f"{self._where(self.batch)}: a weight is not finite; stopped. {KEPT}")

    def _where(self, batch: int) -> str:
        return f"method {self.name}, epoch {self.epoch + 1}, batch {batch}"

    def _resume(self) -> None:
        state = self.checkpoints.load(self.device)
        self._clock = self._saved_at = time.monotonic()
        if state is None:
            return
        if state.get("format") != CHECKPOINT_FORMAT or state["identity"]["run"] != self.identity["run"]:
            log.warning("%s is of another recipe, other data or an older moat; starting anew", self.checkpoints.newest)
            return
        self.identity = state["identity"]
        self.method.model.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        for name, optimizer in self.method.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.method.load_state_dict(state["method"])
        self.meter.load_state_dict(state["meter"])
        self.epoch, self.batch, self.history = state["epoch"], state["batch"], state["history"]
        self.best_accuracy, self.best_epoch, self.best_state = state["best"]
        self.seconds, self.epoch_seconds = state["seconds"]
        self.usage.add(**state["usage"])
        log.info("resumed at epoch %d, batch %d", self.epoch + 1, self.batch + 1)
