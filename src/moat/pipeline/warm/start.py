"""The workflow's side of a warm start."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from moat.pipeline.warm import VARIABLE

# Held as long as this process lives: the end of its stdin ends the server.
# Bytes of a socket's path on Linux.
_LONGEST = 107
_servers: list[subprocess.Popen] = []


def start() -> bool:
    """Start the warm process for the jobs that this process starts from now on; whether there is one.

    Jobs that start before it has imported everything wait for it. It ends when this process does, after the last job.
    Only on Linux: elsewhere a process that has imported torch must not fork.
    """
    if not sys.platform.startswith("linux"):
        return False
    path = _socket_path()
    if path is None:
        return False
    command = [sys.executable, "-m", "moat.commands.warm_server", str(path)]
    # A session of its own: Ctrl-C reaches the jobs through their commands, once.
    _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))
    os.environ[VARIABLE] = str(path)
    return True


def _socket_path() -> Path | None:
    """A path in a new folder that only this user can enter; None where no folder's is short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        # The folder's name has 18 characters.
        if len(os.fsencode(parent)) + 26 <= _LONGEST:
            try:
                return Path(tempfile.mkdtemp(prefix="moat-warm-", dir=parent), "socket")
            except OSError:
                continue
    return None
