"""What it takes to call the package ``pyautoattack`` as a well-behaved function.

It seeds torch's global random numbers, warns through a logger, and expects a model that always returns float32.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from moat.attacks.flags import flag

# The start of a warning of the package -> the flag's name.
WARNINGS = {
    "it seems to be a randomized": "randomized",
    "it seems that the output is a probability": "probabilities",
    "it seems to be a dynamic": "dynamic",
    "there are": "zero-gradient",
}


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Global random numbers from ``seed`` inside the block; those of before after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def as_attacked(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model as a function to logits in float32, which may be written to, whatever precision surrounds it."""

    def logits(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            z = model(x)
        z = z.float()
        return z if z.requires_grad else z.clone()

    return logits


class FlagLogger(logging.Logger):
    """A logger whose warnings become flags; everything else it is told is dropped."""

    def __init__(self):
        super().__init__("moat.attacks.package", logging.WARNING)
        self.addHandler(_FlagHandler())
        self.propagate = False


class _FlagHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        message = re.sub(r"\s*See \S+ for details\.", "", record.getMessage()).strip()
        name = next((name for start, name in WARNINGS.items() if message.startswith(start)), "autoattack")
        flag(name, message)
