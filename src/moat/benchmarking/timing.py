"""Seconds of a call: warmed up, repeated, contenders taking turns; and what ran them."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from moat import provenance


def seconds(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int, device: torch.device, clock=time.perf_counter
) -> dict[str, list[float]]:
    """Name -> seconds of each repeat. The calls take turns, so that a busy machine slows all of them alike.

    Args:
        warm_up: rounds that are not counted.
        device: a GPU is waited for before the clock is read.
        clock: a function that gives seconds.
    """
    measured: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(warm_up + repeats):
        for name, call in calls.items():
            _wait(device)
            started = clock()
            call()
            _wait(device)
            if repeat >= warm_up:
                measured[name].append(clock() - started)
    return measured


def cpu_seconds(calls: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """As :func:`seconds`, but CPU seconds of this process: what others do on the machine hardly changes them."""
    return seconds(calls, repeats=repeats, warm_up=warm_up, device=torch.device("cpu"), clock=time.process_time)


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
    """Device, hardware and versions, as every benchmark's JSON begins."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, **provenance.environment()}


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large square matrix product: what this device does at best, in practice."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.rand(size, size, device=device).to(dtype)
    taken = seconds({"product": lambda: a @ a}, repeats=5, warm_up=2, device=device)["product"]
    return 2 * size**3 / statistics.median(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
