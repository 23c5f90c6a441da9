"""Which cells of the tables a budget buys: the set of greatest worth whose jobs fit, shared jobs paid once.

An integer programme. Cells that need the same jobs become one item, jobs that are always bought together one lot:
the paper grid's thousands of cells and jobs shrink to some hundred of each.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from moat.base.errors import ConfigError, MoatError

#: The integer programme's modelling language and its solver. moat works without them, see :func:`missing_solver`.
SOLVER = ("pulp", "highspy")
INSTALL = "pip install -c envs/requirements.lock -e '.[workflow]'"
# How far the solver may exceed the budget by rounding; prices are estimates of far less precision.
TOLERANCE = 1e-6
# Sums of the same worths in another order differ by less.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Item:
    """One thing to buy.

    Attributes:
        worth: 0 or more.
        needs: all jobs that it needs, those that these start from included; jobs without a price are done.
    """

    name: Hashable
    worth: float
    needs: frozenset


@dataclass(frozen=True)
class Purchase:
    """What a budget buys.

    Attributes:
        items: names of the items whose jobs are all bought or done, in the given order.
        jobs: the jobs to pay for.
        worth: of the items.
        cost: of the jobs.
        bound: no purchase within the budget is worth more.
    """

    items: tuple
    jobs: frozenset
    worth: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much more a better purchase could be worth, relative to this one: 0 is proven optimal."""
        excess = (self.bound - self.worth) / max(self.worth, 1.0)
        return excess if excess > ROUNDING else 0.0


@dataclass(frozen=True)
class _Lots:
    """The problem after aggregation: item number -> jobs, worth and lots; lot number -> price."""

    bundles: list[frozenset]
    worth: list[float]
    lots: list[list[int]]
    price: list[float]


def buy(
    items: Iterable[Item], prices: Mapping[Hashable, float], budget: float, *, time_limit: float = 30.0
) -> Purchase:
    """The purchase of greatest worth within ``budget``, proven optimal unless ``time_limit`` (seconds) ends the search.

    Args:
        prices: job -> price, 0 or more, in the unit of the budget.

    Raises:
        ConfigError: a budget that is negative or not a number, or no solver is installed.
    """
    items = list(items)
    _check(budget)
    if missing := missing_solver():
        raise ConfigError(missing)
    problem = _aggregate(items, prices)
    chosen, bound = _solve(problem, budget, time_limit)
    at_least = _greedy(problem, budget)
    if _worth(problem, at_least) > _worth(problem, chosen):  # the search was cut short
        chosen = at_least
    return _purchase(items, prices, problem, chosen, bound)


def missing_solver() -> str | None:
    """What a budget needs and how to install it; None where it is installed."""
    missing = [name for name in SOLVER if importlib.util.find_spec(name) is None]
    return f"a budget needs {' and '.join(missing)}: {INSTALL}" if missing else None


def buy_greedily(items: Iterable[Item], prices: Mapping[Hashable, float], budget: float) -> Purchase:
    """A quick purchase: again and again the item with the most worth for what its unpaid jobs cost."""
    items = list(items)
    _check(budget)
    problem = _aggregate(items, prices)
    return _purchase(items, prices, problem, _greedy(problem, budget), sum(item.worth for item in items))


def _check(budget: float) -> None:
    if not budget >= 0:
        raise ConfigError(f"a budget of {budget}; allowed: 0 or more")


def _aggregate(items: list[Item], prices: Mapping[Hashable, float]) -> _Lots:
    worth: dict[frozenset, float] = defaultdict(float)
    for item in items:
        worth[_priced(item, prices)] += item.worth
    worth.pop(frozenset(), None)
    bundles = list(worth)
    users: dict[Hashable, list[int]] = defaultdict(list)
    for number, bundle in enumerate(bundles):
        for job in bundle:
            users[job].append(number)
    price: dict[tuple[int, ...], float] = defaultdict(float)
    for job in sorted(users, key=str):
        price[tuple(users[job])] += prices[job]
    lots: list[list[int]] = [[] for _ in bundles]
    for lot, used_by in enumerate(price):
        for number in used_by:
            lots[number].append(lot)
    return _Lots(bundles, [worth[bundle] for bundle in bundles], lots, list(price.values()))


def _priced(item: Item, prices: Mapping[Hashable, float]) -> frozenset:
    return frozenset(job for job in item.needs if job in prices)


def _solve(problem: _Lots, budget: float, time_limit: float) -> tuple[set[int], float]:
    """The chosen items and an upper bound of the worth."""
    import pulp  # an extra

    affordable = [n for n, lots in enumerate(problem.lots) if sum(problem.price[lot] for lot in lots) <= budget]
    if not affordable:
        return set(), 0.0
    model = pulp.LpProblem("budget", pulp.LpMaximize)
    take = {n: model.add_variable(f"item{n}", cat="Binary") for n in affordable}
    # Whole by themselves where the items are.
    needed = dict.fromkeys(lot for n in affordable for lot in problem.lots[n])
    pay = {lot: model.add_variable(f"lot{lot}", 0, 1) for lot in needed}
    model += pulp.lpSum(problem.worth[n] * take[n] for n in affordable)
    model += pulp.lpSum(problem.price[lot] * variable for lot, variable in pay.items()) <= budget
    for n in affordable:
        for lot in problem.lots[n]:
            model += take[n] <= pay[lot]
    solver = pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=0.0, threads=1)
    model.solve(solver)
    if model.status == pulp.LpStatusInfeasible:
        raise MoatError("the budget's programme has no solution, though buying nothing is one")
    bound = model.solverModel.getInfo().mip_dual_bound
    chosen = {n for n, variable in take.items() if (variable.value() or 0) > 0.5}
    fits = _cost(problem, chosen) <= budget * (1 + TOLERANCE) + TOLERANCE
    return (chosen if fits else set()), abs(bound)


def _greedy(problem: _Lots, budget: float) -> set[int]:
    chosen: set[int] = set()
    paid: set[int] = set()
    left = budget
    while True:
        best, best_rate, best_cost = None, 0.0, 0.0
        for number, lots in enumerate(problem.lots):
            cost = sum(problem.price[lot] for lot in lots if lot not in paid)
            rate = problem.worth[number] / cost if cost else float("inf")
            if number not in chosen and cost <= left and rate > best_rate:
                best, best_rate, best_cost = number, rate, cost
        if best is None:
            return chosen
        chosen.add(best)
        paid.update(problem.lots[best])
        left -= best_cost


def _worth(problem: _Lots, chosen: set[int]) -> float:
    return sum(problem.worth[number] for number in chosen)


def _cost(problem: _Lots, chosen: set[int]) -> float:
    return sum(problem.price[lot] for lot in {lot for number in chosen for lot in problem.lots[number]})


def _purchase(items, prices, problem: _Lots, chosen: set[int], bound: float) -> Purchase:
    """Everything whose jobs are paid for; what is done already costs nothing and is left out of the worth."""
    jobs = frozenset().union(*(problem.bundles[number] for number in chosen))
    bought = [item for item in items if (needed := _priced(item, prices)) and needed <= jobs]
    worth = sum(item.worth for item in bought)
    cost = sum(prices[job] for job in jobs)
    return Purchase(tuple(item.name for item in bought), jobs, worth, cost, max(bound, worth))
