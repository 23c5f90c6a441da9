"""A model built anew in a process of its own, which is given images and nothing else.

A copy in the same process shares what the model keeps in its module or class: answers to earlier queries, say. The
process is started before the model is first loaded, and builds it when it is first asked. What a model keeps on disk is
out of reach.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from moat.base import plugins
from moat.base.errors import MoatError
from moat.commands import evaluation_target
from moat.commands.options import FinishedRun, ForeignModel
from moat.evaluation.fresh_judge import fresh_copy
from moat.evaluation.scoring import classify, images
from moat.machine import devices
from moat.models.guard import guarded, in_one_line
from moat.pipeline.warm.server import die_with_parent
from moat.training.run_record import read_run

# How long an answer may take; the first one includes the imports and the loading of the model.
SECONDS = 600
# What begins a question: to a copy that has seen nothing, or to the one that answered the last question.
_ANEW, _AGAIN = b"N", b"A"
# What begins an answer.
_LOGITS, _FAILED = b"L", b"F"
_LENGTH = struct.Struct(">Q")
_WHAT = "the model, built anew in a process of its own,"
# -P and the caller's own search path: a file in the working directory must not take the place of Python's modules.
_PROGRAM = (
    "import json, sys; given = json.loads(sys.argv.pop()); sys.path[:] = given.pop('path'); "
    "from moat.commands.fresh_process import main; main(**given)"
)


# -- where the model is asked ------------------------------------------------------
class FreshProcess(nn.Module):
    """Images to logits, by the model in the process; a context, at whose end the process ends.

    A deep copy of this is the same process, in which another copy of the model answers: one that has seen nothing.

    Args:
        given: the model to build.
        device: where; see :class:`Answers`.
        threads: of the process, which computes only while this one waits.
        root: the project's folder.
        seconds: how long an answer may take.

    Raises (when called):
        MoatError: the process could not be started, has ended, or gives no answer in time; or the model there fails.
    """

    def __init__(
        self,
        given: FinishedRun | ForeignModel,
        device: torch.device,
        threads: int,
        root: Path,
        seconds: float = SECONDS,
    ):
        super().__init__()
        if isinstance(given, FinishedRun):
            model = {"run": str(given.folder), "weights": given.weights}
        else:
            model = {"factory": given.factory, "weights": given.weights and str(given.weights)}
        told = {"model": model, "device": str(device), "threads": threads, "root": str(root)}
        told["path"] = [each for each in sys.path if isinstance(each, str)]
        self._seconds, self._anew = seconds, True
        self._process: subprocess.Popen | None = None
        self._failure, self._socket = "", None
        try:
            self._socket, other = socket.socketpair()
            with other:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-c", _PROGRAM, json.dumps(told)],
                    stdin=other,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            self._socket.settimeout(seconds)
        except OSError as error:
            self._failure = f"no process can be started in which the model is built anew ({error})"

    def __enter__(self) -> "FreshProcess":
        return self

    def __exit__(self, *_) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __deepcopy__(self, memo) -> "FreshProcess":
        self._anew = True
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._failure:
            raise MoatError(self._failure)
        try:
            question = safetensors.torch.save({"x": x.detach().cpu().contiguous()})
            _send(self._socket, (_ANEW if self._anew else _AGAIN) + question)
            answer = _receive(self._socket)
            if answer[:1] == _LOGITS:
                self._anew = False
                return safetensors.torch.load(answer[1:])["logits"].to(x.device)
            self._failure = f"{_WHAT} fails: {answer[1:].decode(errors='replace')}"
        except TimeoutError:
            self._failure = f"{_WHAT} gave no answer within {self._seconds:g} s"
        except (OSError, EOFError):
            self._failure = f"{_WHAT} ended it{self._end()}"
        except (safetensors.SafetensorError, LookupError):
            self._failure = f"{_WHAT} gave an answer that is none"
        raise MoatError(self._failure)

    def _end(self) -> str:
        """`` (exit code 3)``, `` (signal SIGSEGV)``; "" where it has only closed its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(10)
            return f" (exit code {code})" if code >= 0 else f" (signal {signal.Signals(-code).name})"
        return ""


# -- the process -------------------------------------------------------------------
def main(model: dict[str, str | None], device: str, threads: int, root: str) -> None:
    """Answer the questions that come through stdin's socket until it is closed."""
    die_with_parent()
    # Ctrl-C is for the command, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = ["moat"]
    answers: Answers | None = None
    with socket.socket(fileno=os.dup(0)) as asked, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                question = _receive(asked)
                try:
                    if answers is None:
                        plugins.use_project(root)
                        answers = Answers(model, devices.select(device, threads))
                    x = safetensors.torch.load(question[1:])["x"]
                    logits = answers(x, anew=question[:1] == _ANEW).contiguous()
                    answer = _LOGITS + safetensors.torch.save({"logits": logits})
                except MoatError as error:
                    answer = _FAILED + str(error).encode()
                except Exception as error:
                    answer = _FAILED + in_one_line(error).encode()
                _send(asked, answer)


class Answers:
    """Logits on the CPU for images, by copies of a model that is built on ``device``.

    On the CPU instead where the GPU is another process's alone, as its compute mode may say, or has no memory left:
    torch keeps what the attacks have freed for the process that runs them.
    """

    def __init__(self, model: dict[str, str | None], device: torch.device):
        self.model = model
        try:
            torch.zeros(1, device=device)
            self._build(device)
        except RuntimeError:
            if device.type == "cpu":
                raise
            self._build(torch.device("cpu"))

    def _build(self, device: torch.device) -> None:
        if "run" in self.model:
            folder = Path(self.model["run"])
            given: FinishedRun | ForeignModel = FinishedRun(folder, self.model["weights"], read_run(folder))
        else:
            weights = self.model["weights"]
            given = ForeignModel(self.model["factory"], None if weights is None else Path(weights))
        self.device = device
        self.built = self.answering = guarded(evaluation_target.load_model(given, device), given.option)

    def __call__(self, x: torch.Tensor, *, anew: bool) -> torch.Tensor:
        try:
            if anew:
                self.answering = fresh_copy(self.built) or self.built
            return classify(self.answering, images(x, self.device)).cpu()
        except torch.OutOfMemoryError:
            if self.device.type == "cpu":
                raise
            self._build(torch.device("cpu"))
            return self(x, anew=True)


# -- what goes to and fro ----------------------------------------------------------
def _send(to: socket.socket, content: bytes) -> None:
    to.sendall(_LENGTH.pack(len(content)) + content)


def _receive(connection: socket.socket) -> bytes:
    """The next message.

    Raises:
        EOFError: there is none. OSError: the connection is broken, or, as TimeoutError, silent for too long.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    content = bytearray()
    while len(content) < length:
        more = connection.recv(min(length - len(content), 2**20))
        if not more:
            raise EOFError
        content += more
    return bytes(content)
