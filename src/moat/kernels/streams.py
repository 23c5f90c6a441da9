"""Independent parts of a network side by side: while a CUDA graph captures them, on streams of their own.

One network of a mixture fills a GPU only with large batches; several at once fill it better. Launch by launch nothing
would be gained, because the launches come one after the other.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch

Result = TypeVar("Result")

_STREAMS: ContextVar[int] = ContextVar("streams", default=1)
# The number of calls of each time, where somebody counts.
_COUNTED: ContextVar[list[int] | None] = ContextVar("counted", default=None)


@contextlib.contextmanager
def forked(count: int) -> Iterator[None]:
    """Within it :func:`side_by_side` uses so many streams. Only for what is captured."""
    before = _STREAMS.set(count)
    try:
        yield
    finally:
        _STREAMS.reset(before)


def most_at_once(call: Callable[[], object]) -> int:
    """How many calls it makes side by side at most; 1 where it makes none."""
    counted: list[int] = [1]
    before = _COUNTED.set(counted)
    try:
        call()
    finally:
        _COUNTED.reset(before)
    return max(counted)


def side_by_side(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of calls that need nothing of one another, in their order."""
    counted, count = _COUNTED.get(), min(_STREAMS.get(), len(calls))
    if counted is not None:
        counted.append(len(calls))
    if count < 2:
        return [call() for call in calls]
    streams = new_streams(count)
    with joined(streams):
        return [on_stream(stream, call) for stream, call in zip(itertools.cycle(streams), calls, strict=False)]


# -- what is CUDA's ----------------------------------------------------------
def new_streams(count: int) -> list[torch.cuda.Stream]:
    return [torch.cuda.Stream() for _ in range(count)]


@contextlib.contextmanager
def joined(streams: list[torch.cuda.Stream]) -> Iterator[None]:
    """They begin after what the current stream has to do, which goes on after all of them."""
    here = torch.cuda.current_stream()
    for stream in streams:
        stream.wait_stream(here)
    yield
    for stream in streams:
        here.wait_stream(stream)


def on_stream(stream: torch.cuda.Stream, call: Callable[[], Result]) -> Result:
    with torch.cuda.stream(stream):
        return call()
