"""Progress of long work: a bar on a terminal, a line for about every tenth of it in a log."""

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
    """Report the progress of ``work``.

    Args:
        work: an iterable to pass through; or a total (None if unknown), for work that calls ``update(n)`` itself.
        unit: the unit counted; "B" is printed as kB, MB, ….
        initial: units done before, by an earlier process.
        total: the length of an iterable that does not know its own.
        stream: default: standard error.

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
        from tqdm import tqdm  # Here, because most commands run without a terminal or are over at once.

        options = {"unit_scale": unit == "B", "dynamic_ncols": True, "leave": False, "initial": initial}
        return tqdm(iterable, desc=description, total=total, unit=unit, file=stream, **options)
    return _Lines(iterable, total, description, unit, initial, stream)


# The least time between two lines of a log.
QUIET_SECONDS = 10.0
# The time between two lines where the total is unknown.
SECONDS_WITHOUT_TOTAL = 30.0


class _Lines:
    """The part of tqdm's interface that moat uses, as lines in a log. Short work prints nothing."""

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
        """Append ``text`` to the lines from now on."""
        self.postfix = text

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        waited = now - self._printed
        due = 10 * self.n // self.total > self._tenth if self.total else waited >= SECONDS_WITHOUT_TOTAL
        if due and waited >= QUIET_SECONDS:
            self._print(now)

    def close(self) -> None:
        """For tqdm's interface; a log needs no last line."""

    def _print(self, now: float) -> None:
        self._printed = now
        self._tenth = 10 * self.n // self.total if self.total else 0
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        share = f" of {self.total / scale:.0f} {unit} ({100 * self.n // self.total} %)" if self.total else f" {unit}"
        end = f", {self.postfix}" if self.postfix else ""
        text = f"{self.description}: {self.n / scale:.0f}{share}, {now - self._started:.0f} s{end}"
        print(text, file=self.stream, flush=True)
