"""How far a long piece of work has come: a bar on a terminal, a line about every tenth in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO


def progress(
    work: Iterable | int | None,
    *,
    description: str,
    unit: str = "it",
    initial: int = 0,
    total: int | None = None,
    stream: TextIO | None = None,
) -> Any:
    """Report on ``work`` to ``stream`` (standard error).

    Args:
        work: what to iterate over; or a total, or None for an unknown one, and ``update(n)`` is called.
        unit: what is counted; "B" prints kB, MB, ….
        initial: how much was done before.
        total: of an iterable without a length.

    Returns:
        A context manager and iterator with ``update(n)`` and ``set_postfix_str(text)``.
    """
    stream = sys.stderr if stream is None else stream
    iterable = None if work is None or isinstance(work, int) else work
    if isinstance(work, int):
        total = work
    elif total is None and hasattr(work, "__len__"):
        total = len(work)
    if stream.isatty():
        from tqdm import tqdm

        options = {"unit_scale": unit == "B", "dynamic_ncols": True, "leave": False, "initial": initial}
        return tqdm(iterable, desc=description, total=total, unit=unit, file=stream, **options)
    return _Lines(iterable, total, description, unit, initial, stream)


# A log gets a line no more often than this.
QUIET_SECONDS = 10.0


class _Lines:
    """The part of tqdm's face that moat uses, as lines in a log. Work that is soon over prints nothing."""

    def __init__(
        self, iterable: Iterable | None, total: int | None, description: str, unit: str, initial: int, stream: TextIO
    ):
        self.iterable, self.total, self.description, self.unit, self.stream = iterable, total, description, unit, stream
        self.n, self.postfix = initial, ""
        self._tenth = 10 * initial // total if total else 0
        self._started = self._printed = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def set_postfix_str(self, text: str) -> None:
        """Text to stand at the end of the next line."""
        self.postfix = text

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        # Without a total there are no tenths: a line every half minute then.
        due = 10 * self.n // self.total > self._tenth if self.total else now - self._printed >= 30
        if due and now - self._printed >= QUIET_SECONDS:
            self._print(now)

    def close(self) -> None:
        """End of the work; here nothing is left to do."""

    def _print(self, now: float) -> None:
        self._printed = now
        self._tenth = 10 * self.n // self.total if self.total else 0
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        share = f" of {self.total / scale:.0f} {unit} ({100 * self.n // self.total} %)" if self.total else f" {unit}"
        end = f", {self.postfix}" if self.postfix else ""
        text = f"{self.description}: {self.n / scale:.0f}{share}, {now - self._started:.0f} s{end}"
        print(text, file=self.stream, flush=True)
