"""A plan as JSON, and that JSON as text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moat.config.grid import Grid, Table
from moat.config.project import Project
from moat.planning.budget import missing_solver, select_jobs
from moat.planning.estimate import Estimate, items_of, snakemake_targets
from moat.provenance import staleness

# Hours; who has only a CPU does not wait longer than a month.
LONGEST_ON_A_CPU = 24 * 30
# Descriptions of the sources of a rate.
SOURCES = {
    "run": "finished jobs on this hardware",
    "calibration": "benchmarks/train.py --calibrate",
    "shipped": "figures that are shipped",
}


def describe(grid: Grid, made: Estimate, *, studies: Sequence[str], machines: int) -> dict[str, Any]:
    """The plan of a grid: every job with its status and cost, totals, makespan and critical path.

    GPU-hours are those of the missing jobs; on a CPU they are hours of one thread.
    """
    missing = made.costs()
    timed = made.schedule(missing, machines)
    jobs, by_source, unknown = [], Counter(), set()
    for entry in map(dict, made.entries):
        # Tables and figures take no time.
        if (path := entry["path"]) in made.jobs:
            entry |= {"gpu_hours": made.seconds[path] / 3600, "estimated_from": made.sources[path]}
            entry["unknown_cost"] = bool(made.jobs[path].work.unknown)
            # What is done costs nothing any more.
            unknown |= made.jobs[path].work.unknown if entry["status"] != "done" else set()
        jobs.append(entry)
    for path, hours in missing.items():
        by_source[made.sources[path]] += hours
    return {
        "scale": grid.scale,
        "studies": list(studies),
        "hardware": made.hardware,
        "basis": made.basis,
        "machines": machines,
        "jobs": jobs,
        "gpu_hours": sum(missing.values()),
        "stale_gpu_hours": sum(made.costs(["stale"]).values()),
        "rests_on": {source: by_source[source] for source in SOURCES if source in by_source},
        "unknown_costs": sorted(unknown),
        "makespan_hours": timed.makespan / 3600,
        "lower_bound_hours": timed.lower_bound / 3600,
        "critical_path": [{"path": path, "hours": made.seconds[path] / 3600} for path in timed.critical_path],
    }


def describe_budget(project: Project, grid: Grid, made: Estimate, *, machines: int, hours: float) -> dict[str, Any]:
    """The part of a plan that fits a budget: cells gained and left, optimality gap, Snakemake targets."""
    costs = made.costs()
    items = items_of(project, grid, made.jobs)
    selected = select_jobs(items, costs, hours)
    done = [item.name for item in items if not any(job in costs for job in item.needs)]
    timed = made.schedule(selected.jobs, machines)
    counts = _count(items, set(selected.items), set(done))
    return {
        "gpu_hours": hours,
        "spent_gpu_hours": selected.cost,
        "priority": selected.priority,
        "bound": selected.bound,
        "gap": selected.gap,
        "jobs": len(selected.jobs),
        "makespan_hours": timed.makespan / 3600,
        "gained": sum(each["gained"] for each in counts if each["kind"] == "table"),
        "left": sum(each["left"] for each in counts if each["kind"] == "table"),
        "by_item": counts,
        "targets": snakemake_targets(grid, selected.items, done),
    }


def _count(items, selected, done) -> list[dict[str, Any]]:
    """Per table and figure: the cells done, gained and left (a figure counts as one cell)."""
    counts: dict[Any, dict[str, Any]] = {}
    for item in items:
        shown, _ = item.name
        kind = "table" if isinstance(shown, Table) else "figure"
        entry = {"kind": kind, "study": shown.study, "name": shown.name, "done": 0, "gained": 0, "left": 0}
        count = counts.setdefault((kind, shown.study, shown.name), entry)
        count["gained" if item.name in selected else "done" if item.name in done else "left"] += 1
    return list(counts.values())


# -- as text ---------------------------------------------------------------------
def lines(planned: Mapping[str, Any]) -> Iterator[str]:
    """The plan as text: what it comes to, and then everything in it."""
    yield from _totals(planned)
    if "budget" in planned:
        yield ""
        yield from _budget(planned["budget"], planned["hardware"])
    elif missing := missing_solver():
        yield f"budget        not available: {missing}"
    yield ""
    for entry in planned["jobs"]:
        why = f" ({staleness.describe(entry['stale'])})" if entry["stale"] else ""
        cost = duration(entry["gpu_hours"]) if "gpu_hours" in entry and entry["status"] != "done" else ""
        cost += "?" if cost and entry["unknown_cost"] else ""
        yield f"{entry['status']:8} {entry['kind']:10} {cost:>10}  {entry['path']}{why}"


def _totals(planned: Mapping[str, Any]) -> Iterator[str]:
    counts = Counter((entry["kind"], entry["status"]) for entry in planned["jobs"])
    hours: Counter = Counter()
    for entry in planned["jobs"]:
        if entry["status"] == "missing":
            hours[entry["kind"]] += entry.get("gpu_hours", 0.0)
    for kind in dict.fromkeys(entry["kind"] for entry in planned["jobs"]):
        parts = [f"{counts[kind, s]} {s}" for s in ("done", "stale", "missing") if counts[kind, s]]
        cost = f"; missing: {duration(hours[kind])}" if hours[kind] else ""
        yield f"{kind.removesuffix('s') + 's':13} {', '.join(parts)}{cost}"
    # Thousands of GPU-hours are a budget; of a CPU they are years.
    amount = duration if (on_cpu := planned["hardware"] == "cpu") else "{:.2f}".format
    unit = "of one thread" if on_cpu else "GPU-hours"
    yield f"total         {amount(planned['gpu_hours'])} {unit} on {planned['hardware']}"
    if planned["stale_gpu_hours"]:
        yield f"{'':13} {amount(planned['stale_gpu_hours'])} more to make what is stale again (--config refresh=stale)"
    for source, hours_from in planned["rests_on"].items():
        basis = f" ({planned['basis']})" if source == "shipped" else ""
        yield f"{'':13} {amount(hours_from)} of it estimated from {SOURCES[source]}{basis}"
    if planned["unknown_costs"]:
        names = ", ".join(planned["unknown_costs"])
        where = "cost: of a recipe, steps of an attack setting, or PASSES of its family"
        yield f"unknown cost  assumed, marked with ?, because nothing declares it ({where}): {names}"
    if on_cpu and planned["makespan_hours"] > LONGEST_ON_A_CPU:
        yield (
            f"not feasible  on a CPU: {planned['machines']} at once would take {duration(planned['makespan_hours'])}; "
            "--hardware plans for a GPU, another --scale for less"
        )
    elif planned["gpu_hours"]:
        yield (
            f"makespan      {duration(planned['makespan_hours'])} on {planned['machines']} at once; "
            f"no schedule is shorter than {duration(planned['lower_bound_hours'])}"
        )
        chain = " -> ".join(f"{each['path']} ({duration(each['hours'])})" for each in planned["critical_path"])
        yield f"longest chain {chain}"


def _budget(budget: Mapping[str, Any], hardware: str) -> Iterator[str]:
    yield (
        f"budget        {budget['gpu_hours']:g} h: {budget['gained']} table cells gained, {budget['left']} left; "
        f"{budget['jobs']} jobs, {budget['spent_gpu_hours']:.2f} h, done after {duration(budget['makespan_hours'])}"
    )
    proven = "optimal" if budget["gap"] == 0 else f"at most {100 * budget['gap']:.2g} % more is possible"
    yield f"priority      {budget['priority']:g} ({proven})"
    for each in budget["by_item"]:
        what = f"{each['kind']} {each['study']}-{each['name']}"
        yield f"  {what:42} {each['done']} done, {each['gained']} gained, {each['left']} left"
    yield f"command       {budget['command'] or 'nothing to run'}"


def duration(hours: float) -> str:
    """Format hours as 3.2 h, 4.5 min or 12 s; from two days or years on in these."""
    for unit, long in (("years", 24 * 365), ("days", 24)):
        if hours >= 2 * long:
            return f"{hours / long:,.1f} {unit}"
    for unit, factor in (("h", 1), ("min", 60)):
        if hours * factor >= 1:
            return f"{hours * factor:.1f} {unit}"
    return f"{hours * 3600:.0f} s"
