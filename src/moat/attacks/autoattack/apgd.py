"""APGD, L-infinity, that drops examples once they are misclassified. Source: Croce and Hein, arXiv 2003.01690, alg. 1.

All random numbers of a run are drawn at its start, and after it the examples are independent of each other: dropping
some changes nothing for the others. A misclassified example stays at its first success; the package goes on with it,
and returns its last success instead.
"""

from dataclasses import dataclass, fields

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.checks import check_zero_gradients
from torch.nn import functional as F

from moat.attacks.parts.steps import ball, input_gradient
from moat.models.outputs import predicted_class

# The name of the package's loss -> that of its method.
LOSSES = {"dlr": "dlr_loss", "dlr-targeted": "dlr_loss_targeted"}


@dataclass
class ApgdState:
    """One row for each example that is not misclassified yet; ``index``: its place in the batch."""

    index: torch.Tensor
    y: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    x_adv: torch.Tensor
    previous: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor
    best: torch.Tensor
    best_gradient: torch.Tensor
    best_loss: torch.Tensor
    step_size: torch.Tensor
    rises: torch.Tensor
    halved: torch.Tensor
    loss_at_check: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


class DropBrokenMixin:
    """``attack_single_run`` of the package's APGD, for L-infinity and one gradient per step."""

    def attack_single_run(self, x: torch.Tensor, y: torch.Tensor, x_init=None):
        """(examples, which of them still withstand, None, examples) as ``perturb`` of the package takes them.

        Each example is its first success, or else where its loss was highest.
        """
        noise = 2 * torch.rand(x.shape).to(x.device) - 1
        start = (x + self.eps * self.normalize(noise)).clamp_(0, 1)
        found, survived = start.clone(), torch.ones_like(y, dtype=torch.bool)
        state, period, since = self._initial_state(x, y, start), self.n_iter_2, 0
        for number in range(self.n_iter + 1):
            if number:
                _advance(state, momentum=0.25 if number > 1 else 0.0)
            misclassified = self._evaluate(state, first=number == 0)
            if misclassified.any():
                found[state.index[misclassified]] = state.x_adv[misclassified]
                survived[state.index[misclassified]] = False
                state.keep(~misclassified)
                if self.y_target is not None:
                    self.y_target = self.y_target[~misclassified]
            if not len(state.index):
                break
            since += number > 0
            if since == period:
                self._check_step_size(state, period)
                period, since = max(period - self.size_decr, self.n_iter_min), 0
        found[state.index] = state.best
        return found, survived, None, found

    def _initial_state(self, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> ApgdState:
        zero, image = torch.zeros(len(x), device=x.device), torch.zeros_like(x)
        step_size = torch.full((len(x), 1, 1, 1), 2.0 * self.eps, device=x.device)
        lower, upper = ball(x, self.eps)
        # Images are never written to: several names may stand for one tensor.
        return ApgdState(
            index=torch.arange(len(x), device=x.device), y=y, lower=lower, upper=upper, x_adv=start, previous=start,
            gradient=image, loss=zero, best=start, best_gradient=image, best_loss=zero, step_size=step_size,
            rises=zero, halved=torch.ones_like(zero, dtype=torch.bool), loss_at_check=zero,
        )  # fmt: skip

    def _evaluate(self, state: ApgdState, *, first: bool) -> torch.Tensor:
        """Loss and gradient at the current images; returns which are misclassified (B,)."""
        loss_of = _cross_entropy if self.loss == "ce" else getattr(self, LOSSES[self.loss])
        seen: dict[str, torch.Tensor] = {}

        def loss(logits: torch.Tensor) -> torch.Tensor:
            seen["logits"], seen["loss"] = logits.detach(), loss_of(logits, state.y)
            return seen["loss"]

        state.gradient = input_gradient(self.model, state.x_adv, loss)
        now = seen["loss"].detach()
        if first:
            state.best_gradient, state.best_loss, state.loss_at_check = state.gradient, now, now
            if self.loss != "ce":
                check_zero_gradients(state.gradient.flatten(1), logger=self.logger)
        else:
            # Before its first step the package takes the loss to be 0.
            state.rises = state.rises + (now > state.loss)
            state.loss = now
            better = now > state.best_loss
            chosen = better.view(-1, 1, 1, 1)
            state.best = torch.where(chosen, state.x_adv, state.best)
            state.best_gradient = torch.where(chosen, state.gradient, state.best_gradient)
            state.best_loss = torch.where(better, now, state.best_loss)
        return self._confirmed(state, predicted_class(seen["logits"]) != state.y)

    def _confirmed(self, state: ApgdState, misclassified: torch.Tensor) -> torch.Tensor:
        """``misclassified``; if gradients are computed in low precision, only what full precision confirms."""
        if not getattr(self.model, "low_precision", False) or not misclassified.any():
            return misclassified
        with torch.no_grad():
            wrong = predicted_class(self.model(state.x_adv[misclassified])) != state.y[misclassified]
        return misclassified.masked_scatter(misclassified, wrong)

    def _check_step_size(self, state: ApgdState, period: int) -> None:
        """Halve the step size of examples whose loss rises too seldom, or not at all, and restart from their best."""
        stuck = ~state.halved & (state.loss_at_check >= state.best_loss)
        halve = (state.rises <= period * self.thr_decr) | stuck
        state.halved, state.loss_at_check, state.rises = halve, state.best_loss, torch.zeros_like(state.rises)
        chosen = halve.view(-1, 1, 1, 1)
        state.step_size = torch.where(chosen, state.step_size / 2, state.step_size)
        state.x_adv = torch.where(chosen, state.best, state.x_adv)
        state.gradient = torch.where(chosen, state.best_gradient, state.gradient)


class Apgd(DropBrokenMixin, APGDAttack):
    """APGD on cross-entropy or DLR."""


class ApgdTargeted(DropBrokenMixin, APGDAttack_targeted):
    """APGD on the targeted DLR loss, one target class after the other."""


def _cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _advance(state: ApgdState, *, momentum: float) -> None:
    """A signed step, then on in the direction of the step before, both within the ball and [0,1]."""
    stepped = torch.addcmul(state.x_adv, state.step_size, state.gradient.sign())
    stepped = torch.clamp(stepped, state.lower, state.upper)
    # In this order, because rounding decides signs in the end.
    ahead = state.x_adv + (stepped - state.x_adv).mul_(1 - momentum)
    ahead += (state.x_adv - state.previous).mul_(momentum)
    state.previous, state.x_adv = state.x_adv, torch.clamp(ahead, state.lower, state.upper)
