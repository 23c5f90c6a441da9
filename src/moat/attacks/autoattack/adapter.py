"""What it takes to call the package ``pyautoattack`` as a well-behaved function.

It seeds torch's global random numbers, warns through a logger, and expects a model that always returns float32.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from moat.attacks.parts.flags import flag
from moat.models.guard import behind
from moat.models.outputs import with_gradient

# The examples on which a model is tested for dependence between examples.
COMPARED = 2
# Relative to the largest logit: what other kernels for another batch size may change.
TOLERANCE = 1e-3
# The start of a warning of the package -> the flag's name.
WARNINGS = {
    "it seems to be a randomized": "randomized",
    "it seems that the output is a probability": "probabilities",
    "it seems to be a dynamic": "dynamic",
    "there are": "zero-gradient",
}


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Global random numbers from ``seed`` inside the block; their earlier state is restored after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class Attacked:
    """A model as a function to logits in float32, which may be written to, whatever precision surrounds it.

    Attributes:
        model: the module that scores.
        dtype: of the images that it takes, where that is not the type of those that the package gives it.
        low_precision: whether gradients, and :attr:`searched`, use the copy ``for_search``; all else, verdicts above
            all, uses ``model``.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        for_search: torch.nn.Module | None = None,
        *,
        dtype: torch.dtype | None = None,
    ):
        self.model, self.for_search, self.dtype = model, for_search, dtype
        self.low_precision = for_search is not None

    @property
    def searched(self) -> "Attacked":
        """What a search without gradients queries."""
        return Attacked(self.for_search, dtype=self.dtype) if self.low_precision else self

    @property
    def net(self) -> torch.nn.Module | None:
        """``net`` of :func:`moat.attacks.autoattack.patches.evaluator`, which computes in float32."""
        return behind(self.model) if self.dtype in (None, torch.float32) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            differentiated = self.low_precision and x.requires_grad and torch.is_grad_enabled()
            z = (self.for_search if differentiated else self.model)(x if self.dtype is None else x.to(self.dtype))
        z = z.float()
        if z.requires_grad:
            return z
        return with_gradient(z, x) if torch.is_grad_enabled() and x.requires_grad else z.clone()


def examples_are_independent(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> bool:
    """Whether the model draws no random numbers and computes an example's logits independently of the others.

    Only then can an example be left out, or its numbers be drawn earlier, with the same outcome for all others.
    """
    few = x[:COMPARED]
    with torch.no_grad(), own_random_numbers(x.device, 0):
        before = _random_states(x.device)
        together = model(few)
        alone = torch.cat([model(one) for one in few.split(1)])
        drawn = any(not torch.equal(*pair) for pair in zip(before, _random_states(x.device), strict=True))
    tolerance = TOLERANCE * float(together.abs().amax().clamp(min=1))
    return not drawn and torch.allclose(together, alone, rtol=0, atol=tolerance)


def _random_states(device: torch.device) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


class FlagLogger(logging.Logger):
    """A logger whose warnings become flags; everything else is dropped."""

    def __init__(self):
        super().__init__("moat.attacks.autoattack.adapter", logging.WARNING)
        self.addHandler(_FlagHandler())
        self.propagate = False

    def isEnabledFor(self, level: int) -> bool:
        # Whoever switches logging off (logging.disable) does not mean the flags of a measurement.
        return level >= self.level


class _FlagHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = re.sub(r"\s*See \S+ for details\.", "", record.getMessage()).strip()
        name = next((name for start, name in WARNINGS.items() if message.startswith(start)), "autoattack")
        flag(name, message)
