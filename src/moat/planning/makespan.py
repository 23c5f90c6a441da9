"""The makespan of a set of jobs on N machines: a list schedule of their dependency graph, and its critical path."""

import heapq
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from moat.base.errors import ConfigError

J = TypeVar("J", bound=Hashable)


@dataclass(frozen=True)
class Schedule:
    """A schedule of jobs on equal machines, each of which runs one job at a time.

    Attributes:
        makespan: seconds from the first start to the last end.
        starts: job -> its start in seconds.
        machines: job -> the number of its machine, from 0.
        critical_path: the longest chain of jobs, each of which needs the one before it.
        lower_bound: seconds that every schedule takes: the critical path, or all work spread evenly if that is longer.
    """

    makespan: float
    starts: Mapping[Hashable, float]
    machines: Mapping[Hashable, int]
    critical_path: tuple
    lower_bound: float


def schedule(seconds: Mapping[J, float], needs: Mapping[J, Iterable[J]], machines: int) -> Schedule:
    """List scheduling: whenever a machine is free, start the ready job with the longest remaining path.

    The makespan is less than twice the optimal one (Graham, 1966).

    Args:
        seconds: job -> duration, 0 or more.
        needs: job -> jobs that must end before it starts; those that are not in ``seconds`` are done.

    Raises:
        ConfigError: fewer than one machine, or jobs that need each other.
    """
    if machines < 1:
        raise ConfigError(f"{machines} machines; allowed: 1 or more")
    before = {job: [other for other in needs.get(job, ()) if other in seconds] for job in seconds}
    after: dict[J, list[J]] = {job: [] for job in seconds}
    for job, others in before.items():
        for other in others:
            after[other].append(job)
    order = _order(before, after)
    remaining: dict[J, float] = {}
    for job in reversed(order):
        remaining[job] = seconds[job] + max((remaining[other] for other in after[job]), default=0.0)
    starts, used = _run(seconds, before, after, remaining, order, machines)
    makespan = max((starts[job] + seconds[job] for job in seconds), default=0.0)
    longest = max(remaining.values(), default=0.0)
    bound = max(longest, sum(seconds.values()) / machines)
    return Schedule(makespan, starts, used, _critical(before, after, remaining), bound)


def _order(before: Mapping[J, list[J]], after: Mapping[J, list[J]]) -> list[J]:
    """All jobs in topological order."""
    missing = {job: len(others) for job, others in before.items()}
    order = [job for job, count in missing.items() if not count]
    for job in order:
        for other in after[job]:
            missing[other] -= 1
            if not missing[other]:
                order.append(other)
    if len(order) < len(before):
        stuck = [str(job) for job in before if job not in set(order)]
        raise ConfigError(f"these jobs need each other: {', '.join(stuck[:5])}")
    return order


def _run(seconds, before, after, remaining, order, machines) -> tuple[dict, dict]:
    """Simulate the schedule event by event; returns each job's start and machine."""
    rank = {job: number for number, job in enumerate(order)}
    missing = {job: len(others) for job, others in before.items()}
    ready = [(-remaining[job], rank[job]) for job in order if not missing[job]]
    heapq.heapify(ready)
    free, running = list(range(machines)), []
    starts, used, now = {}, {}, 0.0
    while ready or running:
        while ready and free:
            job, machine = order[heapq.heappop(ready)[1]], heapq.heappop(free)
            starts[job], used[job] = now, machine
            heapq.heappush(running, (now + seconds[job], rank[job]))
        now = running[0][0]
        while running and running[0][0] <= now:
            job = order[heapq.heappop(running)[1]]
            heapq.heappush(free, used[job])
            for other in after[job]:
                missing[other] -= 1
                if not missing[other]:
                    heapq.heappush(ready, (-remaining[other], rank[other]))
    return starts, used


def _critical(before, after, remaining) -> tuple:
    """Follow the longest remaining path from its first job on."""
    candidates = [job for job, others in before.items() if not others]
    path = []
    while candidates:
        path.append(max(candidates, key=remaining.__getitem__))
        candidates = after[path[-1]]
    return tuple(path)
