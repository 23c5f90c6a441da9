"""What a budget buys: against brute force on small grids, and on one as large as the papers'."""

import itertools
import random

import pytest

from moat.base.errors import ConfigError
from moat.planning.budget import Item, buy, buy_greedily


def grid(seed, items=9, jobs=10):
    """Random items that share jobs; prices and worths are small whole numbers, so that ties and exact fits occur."""
    draw = random.Random(seed)
    prices = {f"job{n}": draw.randint(0, 6) for n in range(jobs)}
    names = [*prices, "done already"]
    return [
        Item(n, draw.choice([0, 1, 1, 2, 5]), frozenset(draw.sample(names, draw.randint(0, 4)))) for n in range(items)
    ], prices


def best(items, prices, budget):
    """The greatest worth of any set of items, all of them tried."""
    worths = [0]
    for size in range(len(items) + 1):
        for chosen in itertools.combinations(items, size):
            jobs = frozenset().union(*(item.needs for item in chosen))
            if sum(prices.get(job, 0) for job in jobs) <= budget:
                worths.append(sum(item.worth for item in chosen if item.needs & prices.keys()))
    return max(worths)


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("budget", [0, 7, 15, 1000])
def test_no_other_purchase_is_worth_more(seed, budget):
    items, prices = grid(seed)
    bought = buy(items, prices, budget)
    assert bought.worth == best(items, prices, budget)
    assert bought.gap == 0
    _check(bought, items, prices, budget)


@pytest.mark.parametrize("seed", range(25))
def test_the_greedy_answer_fits_and_is_never_better(seed):
    items, prices = grid(seed, items=40, jobs=30)
    for budget in (5, 20, 60):
        greedy = buy_greedily(items, prices, budget)
        _check(greedy, items, prices, budget)
        assert greedy.worth <= buy(items, prices, budget).worth


def _check(bought, items, prices, budget):
    by_name = {item.name: item for item in items}
    assert bought.cost == sum(prices[job] for job in bought.jobs) <= budget
    assert bought.worth == sum(by_name[name].worth for name in bought.items)
    assert all((by_name[name].needs & prices.keys()) <= bought.jobs for name in bought.items)
    assert bought.bound >= bought.worth


def test_greed_can_lose_to_the_programme():
    items = [Item("cheap", 3, frozenset("a")), Item("dear", 10, frozenset("b"))]
    prices = {"a": 1, "b": 10}
    assert buy_greedily(items, prices, 10).items == ("cheap",)
    assert buy(items, prices, 10).items == ("dear",)


def test_shared_jobs_are_paid_once_and_what_is_done_costs_nothing():
    items = [Item(n, 1, frozenset({"experts", "done", f"own{n}"})) for n in range(4)]
    prices = {"experts": 6, **{f"own{n}": 1 for n in range(4)}}
    assert buy(items, prices, 10).items == (0, 1, 2, 3)
    assert len(buy(items, prices, 9).items) == 3
    assert buy(items, prices, 6).items == ()
    assert buy(items, {}, 0).jobs == frozenset()


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ConfigError, match=f"a budget of {budget}; allowed: 0 or more"):
        buy([], {}, budget)


def paper_grid():
    """About the papers' size: 5 studies, 3 nets, 3 data sets, 15 methods, 5 seeds, two suites, experts of a mixture."""
    draw = random.Random(7)
    prices, items = {}, []
    for study, arch, data, method in itertools.product(range(5), range(3), range(3), range(15)):
        runs = set()
        for seed in range(5):
            runs |= {(arch, data, method, seed)}
            if method == 0:
                runs |= {(arch, data, "expert", 9 * seed + n) for n in range(9)}
        for run in runs:
            prices.setdefault(run, 0.2 * (1 + arch) ** 3 * (1 + data) * draw.uniform(0.5, 3))
        suite = {(*run, "suite", study % 2) for run in runs if run[2] != "expert"}
        prices.update(dict.fromkeys(suite, 0.02 * (1 + arch) ** 3))
        cells = draw.randint(1, 10)
        items += [Item((study, arch, data, method, n), 1 + (study == 0), frozenset(runs | suite)) for n in range(cells)]
    return items, prices


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_a_grid_as_large_as_the_papers_is_solved_to_optimality(share):
    items, prices = paper_grid()
    assert len(items) > 3000 and len(prices) > 2000
    budget = share * sum(prices.values())
    bought = buy(items, prices, budget, time_limit=30)
    assert bought.gap == 0
    assert buy_greedily(items, prices, budget).worth <= bought.worth
    assert bought.cost <= budget * (1 + 1e-6)
