"""Seconds of a call: warmed up, repeated, contenders taking turns; and the machine that ran them."""

import contextlib
import functools
import os
import statistics
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import torch

from moat.base.errors import MoatError
from moat.machine import devices
from moat.provenance import environment


def seconds(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int, device: torch.device
) -> dict[str, list[float]]:
    """Name -> seconds of each repeat. The calls take turns, so that a busy machine slows all of them alike.

    Args:
        warm_up: rounds that are not counted.
        device: a GPU is waited for before the clock is read.
    """

    def timed(call: Callable[[], Any]) -> float:
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        return time.perf_counter() - started

    return _in_turns({name: functools.partial(timed, call) for name, call in calls.items()}, repeats, warm_up)


def cpu_seconds(calls: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """As :func:`seconds`, but CPU seconds, and each call in a process of its own: a fork of this one, of one thread.

    Other work on the machine hardly changes CPU time. In one process the contenders would share a heap: memory that one
    has freed would spare the next the page faults that its users have.
    """
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_Worker(call)) for name, call in calls.items()}
        return _in_turns({name: worker.cpu_seconds for name, worker in workers.items()}, repeats, warm_up)


def as_in_jobs(call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` in a process set up like those of moat's commands (:mod:`moat.machine.devices`)."""

    def made() -> Any:
        devices.keep_freed_memory()
        return call()

    return made


def _in_turns(timed: Mapping[str, Callable[[], float]], repeats: int, warm_up: int) -> dict[str, list[float]]:
    """The answers of each, round by round, without the first ``warm_up`` rounds."""
    rounds = [{name: call() for name, call in timed.items()} for _ in range(warm_up + repeats)]
    return {name: [taken[name] for taken in rounds[warm_up:]] for name in timed}


class _Worker:
    """A fork that makes the call on request and reports how long it took."""

    def __init__(self, call: Callable[[], Any]):
        self.call = call

    def __enter__(self) -> "_Worker":
        asked, self.ask = os.pipe()
        self.told, tell = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            # Otherwise the fork would hold its own pipe open and outlive its parent.
            os.close(self.ask)
            _serve(self.call, asked, tell)
        os.close(asked)
        os.close(tell)
        return self

    def __exit__(self, *_) -> None:
        os.close(self.ask)
        os.close(self.told)
        os.waitpid(self.pid, 0)

    def cpu_seconds(self) -> float:
        """CPU seconds of one call.

        Raises:
            MoatError: it failed; the process has printed why.
        """
        os.write(self.ask, b"?")
        answer = os.read(self.told, 8)
        if len(answer) < 8:
            raise MoatError("a call that was to be timed failed; see its traceback above")
        return struct.unpack("d", answer)[0]


def _serve(call: Callable[[], Any], asked: int, tell: int) -> None:
    """Never returns: a fork must not run its parent's clean-up."""
    code = 1
    try:
        while os.read(asked, 1):
            started = time.process_time()
            call()
            os.write(tell, struct.pack("d", time.process_time() - started))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """How many times faster we are, round by round: the median, the range and the number of rounds."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    found = summary(ratios)
    return {
        "ratio": round(found["median"], 3),
        **{key: round(found[key], 3) for key in ("low", "high")},
        "n": len(ratios),
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median, range and number of repeats."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def machine(device: torch.device) -> dict[str, Any]:
    """Device, hardware and versions, at the head of every benchmark's JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, **environment.environment()}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product: the best that this device does in practice."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.rand(size, size, device=device).to(dtype)
    taken = seconds({"product": lambda: a @ a}, repeats=5, warm_up=2, device=device)["product"]
    return 2 * size**3 / statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
