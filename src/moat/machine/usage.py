"""What a job has used of the machine: CPU seconds and peak memory, of its own process and of those that it started.

Snakemake's benchmarks sample what a rule's shell started: a thin client, where jobs are forked from a warm process. So
each job writes down what it used itself.
"""

import resource
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """User and system time of this process so far, and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def peak_memory_bytes() -> int:
    """The most memory (resident set) that this process, or one of its children that have ended, has had so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return 1024 * max(_own_peak(), children)


def _own_peak(status: Path = Path("/proc/self/status")) -> int:
    """In KiB. Linux' ru_maxrss survives exec: it may be that of the process which started this one."""
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Usage:
    """What a job uses from now on: begun after the imports, the same after a warm start and a cold one."""

    def __init__(self):
        self._started = cpu_seconds()
        self._before, self._peak = 0.0, 0

    def add(self, cpu_seconds: float, peak_host_memory_bytes: int = 0) -> None:
        """Count an attempt that was stopped, and whose work this one continues."""
        self._before += cpu_seconds
        self._peak = max(self._peak, peak_host_memory_bytes)

    def record(self) -> dict[str, Any]:
        """``cpu_seconds`` (of all threads) and ``peak_host_memory_bytes``, for the job's record."""
        used = cpu_seconds() - self._started + self._before
        return {"cpu_seconds": round(used, 3), "peak_host_memory_bytes": max(peak_memory_bytes(), self._peak)}
