"""The jobs that a budget pays for: against brute force on small grids, and on one as large as the papers'."""

import itertools
import random

import pytest

from moat.base.errors import ConfigError
from moat.planning import budget as planner
from moat.planning.budget import Item, select_jobs


def grid(seed, items=9, jobs=10):
    """Random items that share jobs; costs and priorities are small whole numbers, so that ties and exact fits occur."""
    draw = random.Random(seed)
    costs = {f"job{n}": draw.randint(0, 6) for n in range(jobs)}
    names = [*costs, "done already"]
    return [
        Item(n, draw.choice([0, 1, 1, 2, 5]), frozenset(draw.sample(names, draw.randint(0, 4)))) for n in range(items)
    ], costs


def best(items, costs, budget):
    """The greatest priority of any set of items, all of them tried."""
    priorities = [0]
    for size in range(len(items) + 1):
        for chosen in itertools.combinations(items, size):
            jobs = frozenset().union(*(item.needs for item in chosen))
            if sum(costs.get(job, 0) for job in jobs) <= budget:
                priorities.append(sum(item.priority for item in chosen if item.needs & costs.keys()))
    return max(priorities)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("budget", [0, 7, 15, 1000])
def test_no_other_selection_has_a_greater_priority(seed, budget):
    items, costs = grid(seed)
    selected = select_jobs(items, costs, budget)
    assert selected.priority == best(items, costs, budget)
    assert selected.gap == 0
    _check(selected, items, costs, budget)


def select_greedily(items, costs, budget):
    """What remains if the search is cut short at once."""
    problem = planner._JobGroups(items, costs)
    return problem.selection(planner._choose_greedily(problem, budget), sum(item.priority for item in items))


@pytest.mark.parametrize("seed", range(25))
def test_the_greedy_answer_fits_and_is_never_better(seed):
    items, costs = grid(seed, items=40, jobs=30)
    for budget in (5, 20, 60):
        greedy = select_greedily(items, costs, budget)
        _check(greedy, items, costs, budget)
        assert greedy.priority <= select_jobs(items, costs, budget).priority


def _check(selected, items, costs, budget):
    by_name = {item.name: item for item in items}
    assert selected.cost == sum(costs[job] for job in selected.jobs) <= budget
    assert selected.priority == sum(by_name[name].priority for name in selected.items)
    assert all((by_name[name].needs & costs.keys()) <= selected.jobs for name in selected.items)
    assert selected.bound >= selected.priority


def test_greed_can_lose_to_the_integer_program():
    items = [Item("cheap", 3, frozenset("a")), Item("dear", 10, frozenset("b"))]
    costs = {"a": 1, "b": 10}
    assert select_greedily(items, costs, 10).items == ("cheap",)
    assert select_jobs(items, costs, 10).items == ("dear",)


def test_shared_jobs_are_paid_once_and_what_is_done_costs_nothing():
    items = [Item(n, 1, frozenset({"experts", "done", f"own{n}"})) for n in range(4)]
    costs = {"experts": 6, **{f"own{n}": 1 for n in range(4)}}
    assert select_jobs(items, costs, 10).items == (0, 1, 2, 3)
    assert len(select_jobs(items, costs, 9).items) == 3
    assert select_jobs(items, costs, 6).items == ()
    assert select_jobs(items, {}, 0).jobs == frozenset()


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ConfigError, match=f"a budget of {budget}; allowed: 0 or more"):
        select_jobs([], {}, budget)


def paper_grid():
    """About the papers' size: 5 studies, 3 nets, 3 data sets, 15 methods, 5 seeds, two suites, experts of a mixture."""
    draw = random.Random(7)
    costs, items = {}, []
    for study, arch, data, method in itertools.product(range(5), range(3), range(3), range(15)):
        runs = set()
        for seed in range(5):
            runs |= {(arch, data, method, seed)}
            if method == 0:
                runs |= {(arch, data, "expert", 9 * seed + n) for n in range(9)}
        for run in runs:
            costs.setdefault(run, 0.2 * (1 + arch) ** 3 * (1 + data) * draw.uniform(0.5, 3))
        suite = {(*run, "suite", study % 2) for run in runs if run[2] != "expert"}
        costs.update(dict.fromkeys(suite, 0.02 * (1 + arch) ** 3))
        cells = draw.randint(1, 10)
        items += [Item((study, arch, data, method, n), 1 + (study == 0), frozenset(runs | suite)) for n in range(cells)]
    return items, costs


@pytest.mark.brief(keep=lambda case: case["share"] > 0.3)
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_grid_as_large_as_the_papers_is_solved_to_optimality(share):
    items, costs = paper_grid()
    assert len(items) > 3000 and len(costs) > 2000
    budget = share * sum(costs.values())
    selected = select_jobs(items, costs, budget, time_limit=30)
    assert selected.gap == 0
    assert select_greedily(items, costs, budget).priority <= selected.priority
    assert selected.cost <= budget * (1 + 1e-6)
