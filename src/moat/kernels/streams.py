"""Runs independent parts of a network concurrently while a CUDA graph captures them, each on its own stream.

One network of a mixture fills a GPU only with large batches; several at once fill it better. Outside of a capture
nothing is gained: the launches follow each other anyway.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch

Result = TypeVar("Result")

_STREAMS: ContextVar[int] = ContextVar("streams", default=1)
# The number of calls of every `run_concurrently`, while `max_concurrency` counts.
_COUNTS: ContextVar[list[int] | None] = ContextVar("counts", default=None)


@contextlib.contextmanager
def use_streams(count: int) -> Iterator[None]:
    """Let :func:`run_concurrently` use ``count`` streams inside the block. For captures only."""
    before = _STREAMS.set(count)
    try:
        yield
    finally:
        _STREAMS.reset(before)


def max_concurrency(call: Callable[[], object]) -> int:
    """The largest number of calls that ``call`` passes to one :func:`run_concurrently`; 1 if it passes none."""
    counts: list[int] = [1]
    before = _COUNTS.set(counts)
    try:
        call()
    finally:
        _COUNTS.reset(before)
    return max(counts)


def run_concurrently(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of independent calls, in order."""
    counts, count = _COUNTS.get(), min(_STREAMS.get(), len(calls))
    if counts is not None:
        counts.append(len(calls))
    if count < 2:
        return [call() for call in calls]
    streams = new_streams(count)
    with joined(streams):
        return [on_stream(stream, call) for stream, call in zip(itertools.cycle(streams), calls, strict=False)]


# -- CUDA only ---------------------------------------------------------------
def new_streams(count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(count)]


@contextlib.contextmanager
def joined(streams: list[torch.cuda.Stream]) -> Iterator[None]:
    """The streams start after the current stream's pending work; the current stream continues after all of them."""
    here = torch.cuda.current_stream()
    for stream in streams:
        stream.wait_stream(here)
    yield
    for stream in streams:
        here.wait_stream(stream)


def on_stream(stream: torch.cuda.Stream, call: Callable[[], Result]) -> Result:
    with torch.cuda.stream(stream):
        return call()
