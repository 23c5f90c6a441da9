"""The command's side of a warm start. Imports nothing but what every start of Python has."""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from moat.pipeline.warm import COMMANDS, VARIABLE

# What is handed on to the fork. A stop (Ctrl-Z) is not: it stops the command, and the fork works on.
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
# The server's answers; the status of :func:`os.waitpid` follows the second.
ACCEPTED, ENDED, REFUSED = b"+", b"=", b"-"


def run_warm(argv: Sequence[str]) -> int | None:
    """Have a fork of the warm process run ``moat`` with ``argv``; None where it must be run here.

    Returns the exit code. A fork that a signal has killed kills this process by the same signal.
    """
    # Taken out: what a job starts itself does not ask again.
    path = os.environ.pop(VARIABLE, None)
    # The workflow puts this option first where it works in another folder.
    command = list(argv[2:] if argv[:1] == ["--project"] else argv)
    if not path or not command or command[0] not in COMMANDS:
        return None
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
    except OSError:
        return None
    with connection:
        # From here on a signal must reach the fork, or end this process before there is one.
        signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            if not _ask(connection, argv):
                return None
            for number in FORWARDED:
                signal.signal(number, lambda number, frame: _hand_on(connection, number))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        return _wait(connection)


def _ask(connection: socket.socket, argv: Sequence[str]) -> bool:
    """Hand over the job; whether the server took it."""
    job = {"argv": list(argv), "folder": os.getcwd(), "environment": dict(os.environ), "umask": _umask()}
    job["surroundings"] = surroundings()
    content = json.dumps(job).encode()
    try:
        socket.send_fds(connection, [len(content).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(content)
        return connection.recv(1) == ACCEPTED
    except OSError:
        return False


def surroundings() -> dict[str, object]:
    """What a fork takes from the warm process and not from its command: where it differs, the job is not handed over.

    The files of the package, the interpreter, the installed libraries with their versions, the process's limits, and
    the file system that it sees, which in a container is another one.
    """
    folders = [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
    # The names of these folders have the versions: nothing is imported for them.
    installed = {name for folder in folders for name in _listed(folder) if name.endswith((".dist-info", ".egg-info"))}
    kinds = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {
        "package": os.path.realpath(__file__),
        "interpreter": [sys.prefix, sys.version],
        "libraries": sorted(installed),
        "limits": {name: list(resource.getrlimit(getattr(resource, name))) for name in kinds},
        "niceness": os.nice(0),
        "processors": sorted(os.sched_getaffinity(0)),
        "namespace": _link("/proc/self/ns/mnt"),
        "control group": _content("/proc/self/cgroup"),
    }


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _content(path: str) -> str:
    try:
        with open(path) as stream:
            return stream.read()
    except OSError:
        return ""


def _hand_on(connection: socket.socket, number: int) -> None:
    # It may just have ended.
    with contextlib.suppress(OSError):
        connection.send(bytes([number]))


def _wait(connection: socket.socket) -> int:
    try:
        answer = connection.recv(64)
    except OSError:
        answer = b""
    if not answer.startswith(ENDED):
        # The server was killed, and its forks with it.
        return 128 + signal.SIGKILL
    code = os.waitstatus_to_exitcode(int(answer[1:]))
    if code < 0:
        # There is no such thing as another way to take SIGKILL.
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
