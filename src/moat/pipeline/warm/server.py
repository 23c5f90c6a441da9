"""The warm process: started by the workflow (:mod:`moat.commands.warm_server`), ended by the end of its stdin."""

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from moat.base import plugins
from moat.base.files import visible
from moat.pipeline.warm.client import ACCEPTED, ENDED, REFUSED, surroundings
from moat.provenance import staleness

_PACKAGE = Path(__file__).parents[2]
_PARENT_DEATH_SIGNAL = 1


def main(path: str, run: Callable[[Sequence[str]], int], imported: Sequence[str]) -> int:
    """Serve on the socket ``path`` until stdin and the last job have ended.

    Args:
        run: runs one job in a fork: ``run(argv)``, which returns the exit code.
        imported: modules to import before the first fork, so that no job has to.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        # Before the imports: a job that comes early waits for them, which takes less than to import the same itself.
        listener.bind(path)
        listener.listen(128)
        try:
            for name in imported:
                importlib.import_module(name)
            # Every job hashes the sources that take part in its result.
            staleness.read_sources()
            gc.collect()
            # Forks share what is imported as long as nobody writes to it; the collector would.
            gc.freeze()
            job = Server(listener, run).serve()
        finally:
            if os.getpid() == _PROCESS:
                shutil.rmtree(Path(path).parent, ignore_errors=True)
    return 0 if job is None else job()


class Server:
    """Accepts jobs on ``listener``, forks for each, hands signals on, and tells how each ended."""

    def __init__(self, listener: socket.socket, run: Callable[[Sequence[str]], int]):
        self.listener, self.run = listener, run
        # Of the time when everything was imported.
        self.sources, self.surroundings = source_times(), surroundings()
        # The process of a job -> its connection, and back.
        self.connections: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.woken, waker = socket.socketpair()
        for end in (self.woken, waker):
            end.setblocking(False)
        self.waker = waker
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def serve(self):
        """None when all is over; in a fork the job, to be called once everything of the server's is closed."""
        self.selector.register(self.listener, selectors.EVENT_READ, self._accept)
        self.selector.register(self.woken, selectors.EVENT_READ, self._reap)
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._close)
        while self.listener.fileno() >= 0 or self.connections:
            for key, _ in self.selector.select():
                job = key.data()
                if job is not None:
                    return job
        return None

    def _accept(self):
        connection, _ = self.listener.accept()
        try:
            request, streams = receive(connection)
        except (OSError, ValueError):
            connection.close()
            return None
        if request.get("surroundings") != self.surroundings or source_times() != self.sources:
            connection.sendall(REFUSED)
            process = -1
        else:
            process = os.fork()
        if process == 0:
            return self._become(request, streams, connection)
        for stream in streams:
            os.close(stream)
        if process < 0:
            connection.close()
            return None
        connection.sendall(ACCEPTED)
        self.connections[process] = connection
        self.selector.register(connection, selectors.EVENT_READ, lambda: self._hand_on(process))
        return None

    def _become(self, request, streams, connection):
        """In the fork: let go of what is the server's, take over what is the command's."""
        die_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for held in (connection, self.listener, self.woken, self.waker, *self.connections.values()):
            held.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(request["folder"])
        os.umask(request["umask"])
        os.environ.clear()
        os.environ.update(request["environment"])
        sys.argv = ["moat", *request["argv"]]

        return functools.partial(self.run, request["argv"])

    def _hand_on(self, process: int) -> None:
        """The signals that a command got; where it is gone, so must its work be."""
        try:
            signals = self.connections[process].recv(64)
        except ConnectionError:
            signals = b""
        if not signals:
            self.selector.unregister(self.connections[process])
        with contextlib.suppress(ProcessLookupError):
            for number in signals or [signal.SIGKILL]:
                os.kill(process, number)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.woken.recv(4096)
        while self.connections:
            process, status = os.waitpid(-1, os.WNOHANG)
            if process == 0:
                return
            connection = self.connections.pop(process)
            with contextlib.suppress(KeyError):
                self.selector.unregister(connection)
            with contextlib.suppress(OSError):
                connection.sendall(ENDED + str(status).encode())
            connection.close()

    def _close(self) -> None:
        """The workflow has ended: no more jobs."""
        self.selector.unregister(sys.stdin.fileno())
        self.selector.unregister(self.listener)
        self.listener.close()


def receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """A job as the client sends it: its description, and the file numbers of its standard streams.

    Raises:
        ValueError: something else. OSError: the client is gone, or silent for seconds.
    """
    connection.settimeout(10)
    header, streams, _, _ = socket.recv_fds(connection, 8, 3)
    if len(header) != 8 or len(streams) != 3:
        raise ValueError("not a job")
    left, content = struct.unpack(">Q", header)[0], b""
    while len(content) < left:
        more = connection.recv(left - len(content))
        if not more:
            raise ValueError("not all of a job")
        content += more
    connection.settimeout(None)
    return json.loads(content), streams


def source_times() -> tuple[tuple[str, int], ...]:
    """The package's files, the project's plug-ins, and when each was written: what is imported is of these."""
    files = visible(_PACKAGE, "**/*.py")
    return (*((str(path), path.stat().st_mtime_ns) for path in files), *plugins.written())


def die_with_parent() -> None:
    """Where Linux is asked to, it kills this process when its parent has died, however that died."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)


_PROCESS = os.getpid()
