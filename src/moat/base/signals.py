"""SIGTERM and Ctrl-C as an orderly end."""

import os
import signal
from types import FrameType

from moat.base.errors import Interrupted


def exit_on_sigterm(message: str) -> None:
    """From now on SIGTERM ends the command with ``message`` and the exit code 75 of :class:`Interrupted`."""

    def stop(number, frame):
        # Not through sys.stderr, which may be in the middle of a line. And no error that `except Exception` catches:
        # one raised while a log message is written would be printed by logging and forgotten.
        os.write(2, f"moat: stopped; {message}\n".encode())
        raise SystemExit(Interrupted.exit_code)

    signal.signal(signal.SIGTERM, stop)


class Interruption:
    """While entered, SIGTERM and SIGINT set :attr:`requested`; a second one kills as usual."""

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)
