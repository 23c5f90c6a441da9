"""Select the table cells of greatest total priority whose jobs fit a budget; shared jobs count once.

This is an integer program. Cells that need the same jobs are merged into one item, and jobs that are only ever selected
together into one group, which reduces the thousands of cells and jobs of the papers' grid to some hundred of each.
"""

import importlib.util
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from moat.base.errors import ConfigError, MoatError

#: The modelling language and the solver of the integer program. moat works without them, see :func:`missing_solver`.
SOLVER = ("pulp", "highspy")
INSTALL = "pip install -c envs/requirements.lock -e '.[workflow]'"
# How far the solver may exceed the budget by rounding; the costs are far less precise estimates.
TOLERANCE = 1e-6
# Sums of the same priorities in another order differ by less.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Item:
    """Something that a budget may pay for, such as a table cell.

    Attributes:
        priority: 0 or more.
        needs: all jobs that it needs, directly or indirectly; jobs without a cost are done.
    """

    name: Hashable
    priority: float
    needs: frozenset


@dataclass(frozen=True)
class Selection:
    """The items and jobs that fit a budget.

    Attributes:
        items: names of the items whose jobs are all selected or done, in the given order.
        jobs: the selected jobs.
        priority: the items' total priority.
        cost: the jobs' total cost.
        bound: an upper bound of the priority of any selection within the budget.
    """

    items: tuple
    jobs: frozenset
    priority: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much better, relative to this one, another selection could be; 0: this one is proven optimal."""
        excess = (self.bound - self.priority) / max(self.priority, 1.0)
        return excess if excess > ROUNDING else 0.0


def select_jobs(
    items: Iterable[Item], costs: Mapping[Hashable, float], budget: float, *, time_limit: float = 30.0
) -> Selection:
    """The best selection within ``budget``, proven optimal unless ``time_limit`` (seconds) ends the search.

    Args:
        costs: job -> cost, 0 or more, in the unit of the budget.

    Raises:
        ConfigError: a budget that is negative or not a number, or no solver is installed.
    """
    if not budget >= 0:
        raise ConfigError(f"a budget of {budget}; allowed: 0 or more")
    if missing := missing_solver():
        raise ConfigError(missing)
    problem = _JobGroups(list(items), costs)
    chosen, bound = _solve(problem, budget, time_limit)
    greedy = _choose_greedily(problem, budget)
    if problem.priority(greedy) > problem.priority(chosen):  # The search was cut short.
        chosen = greedy
    return problem.selection(chosen, bound)


def missing_solver() -> str | None:
    """What a budget lacks and how to install it; None if nothing is missing."""
    missing = [name for name in SOLVER if importlib.util.find_spec(name) is None]
    return f"a budget needs {' and '.join(missing)}: {INSTALL}" if missing else None


class _JobGroups:
    """The problem after aggregation: items with the same missing jobs are one, and so are jobs of the same items.

    Attributes:
        jobs: number of an aggregated item -> its missing jobs; ``priorities``: -> its priority; ``groups``: -> the
            numbers of its job groups.
        costs: number of a job group -> its cost.
    """

    def __init__(self, items: list[Item], costs: Mapping[Hashable, float]):
        self._items, self._job_costs = items, costs
        merged: dict[frozenset, float] = defaultdict(float)
        for item in items:
            merged[self._missing(item)] += item.priority
        merged.pop(frozenset(), None)
        self.jobs, self.priorities = list(merged), list(merged.values())
        users: dict[Hashable, list[int]] = defaultdict(list)
        for number, jobs in enumerate(self.jobs):
            for job in jobs:
                users[job].append(number)
        cost_by_users: dict[tuple[int, ...], float] = defaultdict(float)
        for job in sorted(users, key=str):
            cost_by_users[tuple(users[job])] += costs[job]
        self.costs = list(cost_by_users.values())
        self.groups: list[list[int]] = [[] for _ in self.jobs]
        for group, used_by in enumerate(cost_by_users):
            for number in used_by:
                self.groups[number].append(group)

    def _missing(self, item: Item) -> frozenset:
        return frozenset(job for job in item.needs if job in self._job_costs)

    def priority(self, chosen: set[int]) -> float:
        return sum(self.priorities[number] for number in chosen)

    def cost(self, chosen: set[int]) -> float:
        return sum(self.costs[group] for group in {group for number in chosen for group in self.groups[number]})

    def selection(self, chosen: set[int], bound: float) -> Selection:
        """All items whose missing jobs are among those of the chosen ones. Items that are done do not count."""
        jobs = frozenset().union(*(self.jobs[number] for number in chosen))
        selected = [item for item in self._items if (missing := self._missing(item)) and missing <= jobs]
        priority = sum(item.priority for item in selected)
        cost = sum(self._job_costs[job] for job in jobs)
        return Selection(tuple(item.name for item in selected), jobs, priority, cost, max(bound, priority))


def _solve(problem: _JobGroups, budget: float, time_limit: float) -> tuple[set[int], float]:
    """The chosen items and an upper bound of the total priority."""
    import pulp  # Installed with the extra "workflow" only.

    affordable = [number for number in range(len(problem.jobs)) if problem.cost({number}) <= budget]
    if not affordable:
        return set(), 0.0
    model = pulp.LpProblem("budget", pulp.LpMaximize)
    take = {number: model.add_variable(f"item{number}", cat="Binary") for number in affordable}
    # Continuous, because they are integral wherever the items are.
    needed = dict.fromkeys(group for number in affordable for group in problem.groups[number])
    pay = {group: model.add_variable(f"group{group}", 0, 1) for group in needed}
    model += pulp.lpSum(problem.priorities[number] * take[number] for number in affordable)
    model += pulp.lpSum(problem.costs[group] * variable for group, variable in pay.items()) <= budget
    for number in affordable:
        for group in problem.groups[number]:
            model += take[number] <= pay[group]
    solver = pulp.HiGHS(msg=False, timeLimit=time_limit, gapRel=0.0, threads=1)
    model.solve(solver)
    if model.status == pulp.LpStatusInfeasible:
        raise MoatError("the solver calls the budget infeasible, although selecting nothing is a solution")
    bound = model.solverModel.getInfo().mip_dual_bound
    chosen = {number for number, variable in take.items() if (variable.value() or 0) > 0.5}
    fits = problem.cost(chosen) <= budget * (1 + TOLERANCE) + TOLERANCE
    return (chosen if fits else set()), abs(bound)


def _choose_greedily(problem: _JobGroups, budget: float) -> set[int]:
    chosen: set[int] = set()
    paid: set[int] = set()
    left = budget
    while True:
        best, best_rate, best_cost = None, 0.0, 0.0
        for number, groups in enumerate(problem.groups):
            cost = sum(problem.costs[group] for group in groups if group not in paid)
            rate = problem.priorities[number] / cost if cost else float("inf")
            if number not in chosen and cost <= left and rate > best_rate:
                best, best_rate, best_cost = number, rate, cost
        if best is None:
            return chosen
        chosen.add(best)
        paid.update(problem.groups[best])
        left -= best_cost
