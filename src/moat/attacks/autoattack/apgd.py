"""APGD, L-infinity, which lets an example go once it is broken. Source: Croce and Hein, arXiv 2003.01690, algorithm 1.

All random numbers of a run are drawn at its start, and after it examples do not know of each other: leaving some out
changes nothing for the others. A broken example stays as it was when it broke; the package walks on with it, and
returns the last of its successes instead of the first.
"""

from dataclasses import dataclass, fields

import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.checks import check_zero_gradients
from torch.nn import functional as F

from moat.attacks.parts.steps import input_gradient

# The name of the package's loss -> that of its method.
LOSSES = {"dlr": "dlr_loss", "dlr-targeted": "dlr_loss_targeted"}


@dataclass
class _Walk:
    """What belongs to the examples that are not broken yet, one row each; ``at``: their places in the batch."""

    at: torch.Tensor
    y: torch.Tensor
    lower: torch.Tensor
    upper: torch.Tensor
    now: torch.Tensor
    before: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor
    best: torch.Tensor
    best_gradient: torch.Tensor
    best_loss: torch.Tensor
    step: torch.Tensor
    rises: torch.Tensor
    halved: torch.Tensor
    loss_at_check: torch.Tensor

    def keep(self, rows: torch.Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


class _LetsGo:
    """``attack_single_run`` of the package's APGD, for L-infinity and one gradient per step."""

    def attack_single_run(self, x: torch.Tensor, y: torch.Tensor, x_init=None):
        """(examples, which were not broken, None, examples) as ``perturb`` of the package takes them.

        An example is as it was when it broke, or where its loss was highest.
        """
        noise = 2 * torch.rand(x.shape).to(x.device) - 1
        start = (x + self.eps * self.normalize(noise)).clamp_(0, 1)
        found, survived = start.clone(), torch.ones_like(y, dtype=torch.bool)
        walk, period, since = self._begin(x, y, start), self.n_iter_2, 0
        for number in range(self.n_iter + 1):
            if number:
                _advance(walk, momentum=0.25 if number > 1 else 0.0)
            broken = self._look(walk, first=number == 0)
            if broken.any():
                found[walk.at[broken]] = walk.now[broken]
                survived[walk.at[broken]] = False
                self._let_go(walk, ~broken)
            if not len(walk.at):
                break
            since += number > 0
            if since == period:
                self._check_step_size(walk, period)
                period, since = max(period - self.size_decr, self.n_iter_min), 0
        found[walk.at] = walk.best
        return found, survived, None, found

    def _begin(self, x: torch.Tensor, y: torch.Tensor, start: torch.Tensor) -> _Walk:
        zero, image = torch.zeros(len(x), device=x.device), torch.zeros_like(x)
        step = torch.full((len(x), 1, 1, 1), 2.0 * self.eps, device=x.device)
        lower, upper = (x - self.eps).clamp_(0, 1), (x + self.eps).clamp_(0, 1)
        # Images are never written to: several names may stand for one tensor.
        return _Walk(
            at=torch.arange(len(x), device=x.device), y=y, lower=lower, upper=upper, now=start, before=start,
            gradient=image, loss=zero, best=start, best_gradient=image, best_loss=zero, step=step, rises=zero,
            halved=torch.ones_like(zero, dtype=torch.bool), loss_at_check=zero,
        )  # fmt: skip

    def _look(self, walk: _Walk, *, first: bool) -> torch.Tensor:
        """Loss and gradient where the examples are now; return which are broken."""
        loss_of = _cross_entropy if self.loss == "ce" else getattr(self, LOSSES[self.loss])
        seen: dict[str, torch.Tensor] = {}

        def loss(logits: torch.Tensor) -> torch.Tensor:
            seen["logits"], seen["loss"] = logits.detach(), loss_of(logits, walk.y)
            return seen["loss"]

        walk.gradient = input_gradient(self.model, walk.now, loss)
        now = seen["loss"].detach()
        if first:
            walk.best_gradient, walk.best_loss, walk.loss_at_check = walk.gradient, now, now
            if self.loss != "ce":
                check_zero_gradients(walk.gradient.flatten(1), logger=self.logger)
        else:
            # Before its first step the package takes the loss to be 0.
            walk.rises = walk.rises + (now > walk.loss)
            walk.loss = now
            better = now > walk.best_loss
            chosen = better.view(-1, 1, 1, 1)
            walk.best = torch.where(chosen, walk.now, walk.best)
            walk.best_gradient = torch.where(chosen, walk.gradient, walk.best_gradient)
            walk.best_loss = torch.where(better, now, walk.best_loss)
        return self._confirmed(walk, seen["logits"].argmax(1) != walk.y)

    def _confirmed(self, walk: _Walk, broken: torch.Tensor) -> torch.Tensor:
        """``broken``, but where gradients are computed in low precision only what full precision gets wrong, too."""
        if not getattr(self.model, "low_precision", False) or not broken.any():
            return broken
        with torch.no_grad():
            wrong = self.model(walk.now[broken]).argmax(1) != walk.y[broken]
        return broken.masked_scatter(broken, wrong)

    def _let_go(self, walk: _Walk, left: torch.Tensor) -> None:
        walk.keep(left)
        if self.y_target is not None:
            self.y_target = self.y_target[left]

    def _check_step_size(self, walk: _Walk, period: int) -> None:
        """Halve the step of examples that rise too seldom, or have not since the last check, and send them back."""
        stuck = ~walk.halved & (walk.loss_at_check >= walk.best_loss)
        halve = (walk.rises <= period * self.thr_decr) | stuck
        walk.halved, walk.loss_at_check, walk.rises = halve, walk.best_loss, torch.zeros_like(walk.rises)
        chosen = halve.view(-1, 1, 1, 1)
        walk.step = torch.where(chosen, walk.step / 2, walk.step)
        walk.now = torch.where(chosen, walk.best, walk.now)
        walk.gradient = torch.where(chosen, walk.best_gradient, walk.gradient)


class Apgd(_LetsGo, APGDAttack):
    """APGD on cross-entropy or DLR."""


class ApgdTargeted(_LetsGo, APGDAttack_targeted):
    """APGD on the targeted DLR loss, one target class after the other."""


def _cross_entropy(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _advance(walk: _Walk, *, momentum: float) -> None:
    """A signed step, then on in the direction of the step before, both within the ball and [0,1]."""
    stepped = torch.addcmul(walk.now, walk.step, walk.gradient.sign())
    stepped = torch.clamp(stepped, walk.lower, walk.upper)
    # In this order, as rounding decides signs in the end.
    ahead = walk.now + (stepped - walk.now).mul_(1 - momentum)
    ahead += (walk.now - walk.before).mul_(momentum)
    walk.before, walk.now = walk.now, torch.clamp(ahead, walk.lower, walk.upper)
