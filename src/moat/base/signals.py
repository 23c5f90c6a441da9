"""How a command ends on SIGTERM and Ctrl-C: at once, where it can repeat its work, or once its state is saved."""

import os
import signal
from types import FrameType

from moat.base.errors import Interrupted


class Stopped(SystemExit):
    """SIGTERM ends the process: not an exit that a user's code asked for."""


def exit_on_sigterm(message: str) -> None:
    """Make SIGTERM end the process with ``message`` and the exit code of :class:`Interrupted`, 75."""

    def stop(number, frame):
        # Not through sys.stderr, which may be in the middle of a line; and SystemExit, because any other exception
        # raised inside a logging handler would be printed and swallowed.
        os.write(2, f"moat: stopped; {message}\n".encode())
        raise Stopped(Interrupted.exit_code)

    signal.signal(signal.SIGTERM, stop)


class Interruption:
    """A context in which the first SIGTERM or SIGINT only sets :attr:`requested`; the second acts as usual."""

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
