"""SIGTERM as an orderly end, for commands that have nothing to save at that moment."""

import os
import signal

from moat.errors import Interrupted


def exit_on_sigterm(message: str) -> None:
    """From now on SIGTERM ends the command with :class:`moat.errors.Interrupted`'s exit code 75 and ``message``."""

    def stop(number, frame):
        # Not through sys.stderr, which may be in the middle of a line. And no error that `except Exception` catches:
        # one raised while a log message is written would be printed by logging and forgotten.
        os.write(2, f"moat: stopped; {message}\n".encode())
        raise SystemExit(Interrupted.exit_code)

    signal.signal(signal.SIGTERM, stop)
