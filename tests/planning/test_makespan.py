"""The list schedule: hand-made graphs, and what every schedule must keep, on random ones."""

import itertools
import random

import pytest

from moat.base.errors import ConfigError
from moat.planning.makespan import schedule

DIAMOND = ({"a": 1, "b": 5, "c": 2, "d": 1}, {"b": ["a"], "c": ["a"], "d": ["b", "c"]})


@pytest.mark.parametrize(
    ("seconds", "needs", "machines", "makespan", "path", "bound"),
    [
        ({}, {}, 2, 0, (), 0),
        ({"a": 3, "b": 4}, {}, 1, 7, ("b",), 7),
        ({"a": 3, "b": 4}, {}, 5, 4, ("b",), 4),
        (*DIAMOND, 1, 9, ("a", "b", "d"), 9),
        (*DIAMOND, 2, 7, ("a", "b", "d"), 7),
        # The short job that a long one waits for starts first, though a longer one is ready.
        ({"expert": 1, "other": 4, "mixture": 6}, {"mixture": ["expert"]}, 1, 11, ("expert", "mixture"), 11),
        ({"expert": 1, "other": 4, "mixture": 6}, {"mixture": ["expert"]}, 2, 7, ("expert", "mixture"), 7),
        # What is needed but not listed is done.
        ({"a": 2}, {"a": ["gone"]}, 1, 2, ("a",), 2),
    ],
)
def test_schedules(seconds, needs, machines, makespan, path, bound):
    made = schedule(seconds, needs, machines)
    assert (made.makespan, made.critical_path, made.lower_bound) == (makespan, path, bound)


@pytest.mark.parametrize("seed", range(20))
def test_every_schedule_is_possible_and_at_most_twice_the_best(seed):
    draw = random.Random(seed)
    seconds = {n: draw.choice([0, 1, 2.5, 7]) for n in range(40)}
    needs = {n: draw.sample(range(n), min(n, draw.randint(0, 3))) for n in seconds}
    machines = draw.randint(1, 5)
    made = schedule(seconds, needs, machines)
    assert made.starts.keys() == seconds.keys()
    ends = {job: start + seconds[job] for job, start in made.starts.items()}
    assert max(ends.values()) == made.makespan
    assert all(made.starts[job] >= ends[need] for job in seconds for need in needs[job])
    assert set(made.machines.values()) <= set(range(machines))
    for a, b in itertools.combinations(seconds, 2):
        if made.machines[a] == made.machines[b] and seconds[a] and seconds[b]:
            assert ends[a] <= made.starts[b] or ends[b] <= made.starts[a], "two jobs on one machine at once"
    path = made.critical_path
    assert all(before in needs[after] for before, after in itertools.pairwise(path))
    assert sum(seconds[job] for job in path) <= made.lower_bound <= made.makespan <= 2 * made.lower_bound


def test_jobs_that_need_each_other_are_named():
    with pytest.raises(ConfigError, match="these jobs need each other: a, b"):
        schedule({"a": 1, "b": 1, "c": 1}, {"a": ["b"], "b": ["a"]}, 1)


def test_no_machine_is_refused():
    with pytest.raises(ConfigError, match="0 machines; allowed: 1 or more"):
        schedule({"a": 1}, {}, 0)
