"""The same computation on the CPU and on a pretended GPU."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
from pretended import pretended_gpu

from moat.kernels import packed, winograd

ON_CPU, ON_GPU = torch.device("cpu"), torch.device("cuda", 0)


@contextlib.contextmanager
def on(device: torch.device) -> Iterator[Counter]:
    """Computing there; gives the waits for the GPU.

    The pretended GPU draws the CPU's numbers and rounds as PyTorch's own operators on the CPU do, so that results must
    be equal once the CPU, too, leaves the compiled and the packed convolutions aside.
    """
    if device.type == "cuda":
        with pretended_gpu() as waits:
            yield waits
        return
    with mock.patch.object(winograd, "library", lambda: None), mock.patch.object(packed, "_types", set):
        yield Counter()


def both(compute) -> list:
    """What ``compute(device)`` gives on the CPU, and on the GPU."""
    found = []
    for device in (ON_CPU, ON_GPU):
        with on(device):
            found.append(compute(device))
    return found
