"""SIGTERM as an error like any other, for commands that have nothing to save at that moment."""

import signal

from moat.errors import Interrupted


def exit_on_sigterm(message: str) -> None:
    """From now on SIGTERM raises :class:`Interrupted`, which ends the command with exit code 75 and ``message``."""

    def stop(number, frame):
        raise Interrupted(f"stopped; {message}")

    signal.signal(signal.SIGTERM, stop)
