"""Square Attack, L-infinity, where a query computes no more than its square changes. Source: arXiv 1912.00049.

The squares of a run are the same for all examples and depend on none of them: they are drawn ahead, and examples are
searched a few at a time, so that little is cached.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pyautoattack.square import SquareAttack

from moat.attacks.autoattack.patches import Window, evaluator
from moat.attacks.parts.steps import ball

# Pixels of the examples that are searched together on a CPU: overhead dominates with fewer, memory traffic with more.
PIXELS_AT_ONCE = 2**16
# Misclassified examples stay in the batch until they are this fraction of it: moving the others has a cost, too.
IDLE_FRACTION = 1 / 8


class Square(NamedTuple):
    """A query: where, and what is added to each channel (C, 1, 1)."""

    window: Window
    move: torch.Tensor


class SquareSearch(SquareAttack):
    """The package's Square with the margin as its loss; ``predict`` is an ``adapter.Attacked``."""

    def attack_single_run(self, x: torch.Tensor, y: torch.Tensor) -> tuple[None, torch.Tensor]:
        """(None, each example at the lowest margin found); the package uses the second only, too."""
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            channels, height, width = x.shape[1:]
            found = (x + self.eps * self.random_choice([len(x), channels, 1, width])).clamp_(0, 1)
            squares = self._draw(channels, height, width)
            at_once = max(1, PIXELS_AT_ONCE // (height * width)) if x.device.type == "cpu" else len(x)
            for rows in torch.arange(len(x), device=x.device).split(at_once):
                found[rows] = self._search(x[rows], y[rows], found[rows], squares)
        return None, found

    def _draw(self, channels: int, height: int, width: int) -> list[Square]:
        """The squares of all queries. The corners are read from a GPU all at once."""
        sides, corners, moves = [], [], []
        for number in range(self.n_queries):
            side = max(round(math.sqrt(self.p_selection(number) * (channels * height * width) / channels)), 1)
            sides.append(min(side, height, width))
            corners.append(self.random_int(0, height - sides[-1]))
            corners.append(self.random_int(0, width - sides[-1]))
            moves.append(2.0 * self.eps * self.random_choice([channels, 1, 1]))
        corners = torch.cat(corners).view(-1, 2).tolist()
        windows = [Window(top, left, side, side) for side, (top, left) in zip(sides, corners, strict=True)]
        return [Square(*each) for each in zip(windows, moves, strict=True)]

    def _search(self, x, y, start: torch.Tensor, squares: Sequence[Square]) -> torch.Tensor:
        """Queries on a few examples until all are misclassified or the squares are used up."""
        found, index = start.clone(), torch.arange(len(x), device=x.device)
        lower, upper = ball(x, self.eps)
        searched = self.predict.searched
        values = evaluator(searched, searched.net, start, smallest=squares[-1].window)
        margin = self._confirmed(_margins(values.logits, y), values.images, y)
        for window, move in squares:
            idle = margin <= 0
            count = int(idle.sum())
            if count >= max(1, IDLE_FRACTION * len(index)):
                found[index] = values.images
                if count == len(index):
                    return found
                left = torch.nonzero(~idle)[:, 0]
                index, y, lower, upper, margin = (each[left] for each in (index, y, lower, upper, margin))
                values.keep(left)
            patch = torch.clamp(window.of(values.images) + move, window.of(lower), window.of(upper))
            proposed = _margins(values.propose(window, patch), y)
            rows = torch.nonzero((proposed < margin) & (margin > 0))[:, 0]
            if len(rows):
                values.accept(rows)
                margin[rows] = self._confirmed(proposed[rows], values.images[rows], y[rows])
        found[index] = values.images
        return found

    def _confirmed(self, margin: torch.Tensor, images: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The margins (B,) found in low precision, but full precision's where they say "misclassified"."""
        misclassified = margin <= 0
        if not self.predict.low_precision or not misclassified.any():
            return margin
        return margin.masked_scatter(misclassified, _margins(self.predict(images[misclassified]), y[misclassified]))


def _margins(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The label's logit minus the highest other (B,); negative where the example is misclassified."""
    label = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf)
    return label[:, 0] - others.amax(1)
