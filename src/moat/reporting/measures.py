"""Measures: how the number of a cell is computed from what its runs left behind.

To add one: a function here, its entry in :data:`MEASURES`, and in :data:`READS` what it looks at.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moat.base.errors import ConfigError, DataError, unknown_name
from moat.config import paths
from moat.config.grid_types import Cell, Run
from moat.reporting import stated
from moat.reporting.formatting import quantity
from moat.reporting.intervals import (
    NORMAL_QUANTILE,
    over_seeds,
    paired_difference,
    same_number,
    summarise,
    summarise_means,
)
from moat.reporting.rows import Settings

#: What each measure looks at: ``rows`` (an evaluation), ``record`` (run.json), ``checks``, ``probe``; the code alone
#: where it is empty. A literal, because the configuration reads it without importing this module.
READS = {
    "accuracy": ("rows",),
    "attack_property": (),
    "checks_passed": ("checks",),
    "code_property": (),
    "confidence": ("rows",),
    "expert0_fraction": ("probe",),
    "experts_property": (),
    "gpu_hours": ("record",),
    "gradient_agreement": ("checks",),
    "history": ("record",),
    "images_per_second": ("record",),
    "macs": ("record",),
    "parameters": ("record",),
    "peak_memory": ("record",),
    "probe": ("probe",),
    "recipe_property": (),
    "robustness_gap": ("rows",),
    "training_hours": ("record",),
    "weight_kurtosis": ("probe",),
}


# The states of checks that say something about the model. A failed one has no other.
DECIDED = ("passed", "failed")


@dataclass(frozen=True)
class Measure:
    """How one kind of number is computed, printed and compared.

    Attributes:
        compute: (cell, its finished runs, results) -> measured, measured_std, ci_low, ci_high and n; None where a
            record lacks the number.
        show: the number as it is printed; ``unit`` follows it where there is room.
        wanted: which statistics of an evaluation it will ask for, (statistic, settings) pairs.
        text: the whole cell, from its row, where the number alone says too little.
        incomparable: why a published number cannot be compared with this one, beyond what holds for every measure.
    """

    compute: Callable[[Cell, Sequence[Run], Any], dict[str, Any] | None]
    show: Callable[[Any], str]
    unit: str = ""
    wanted: Callable[[Cell], list[tuple[str, Settings]]] = lambda cell: []
    text: Callable[[Mapping[str, Any]], str] | None = None
    incomparable: Callable[[Cell, Sequence[Run], Any], list[str]] = lambda cell, runs, results: []


def get(name: str) -> Measure:
    """
    Raises:
        ConfigError: there is no such measure; lists those that there are.
    """
    if name not in MEASURES:
        raise ConfigError(unknown_name(name, MEASURES, what="measure"))
    return MEASURES[name]


# -- from an evaluation's rows -------------------------------------------------
def accuracy(cell: Cell, runs, results) -> dict[str, Any]:
    """Accuracy in percent: of the examples classified correctly under all settings, or the mean over the settings."""
    found = [results.statistic(cell.aggregate, run, cell.suite, cell.settings) for run in runs]
    return (summarise if cell.aggregate == "worst" else summarise_means)(found, where=_place(cell))


def confidence(cell: Cell, runs, results) -> dict[str, Any]:
    """Mean confidence in percent: the largest softmax value of each attacked example, correct or not."""
    moments = [results.statistic("confidence", run, cell.suite, cell.settings) for run in runs]
    n = same_number([n for *_, n in moments], where=_place(cell))
    means = [mean for mean, _, _ in moments]
    centre = math.fsum(means) / len(means)
    # The examples are the same for every seed and count once.
    half = NORMAL_QUANTILE * math.sqrt(math.fsum(variance for _, variance, _ in moments) / len(moments) / n)
    return over_seeds(means, (centre - half, centre + half), n=n)


def robustness_gap(cell: Cell, runs, results) -> dict[str, Any]:
    """Accuracy under the first setting minus accuracy under the second, in points, on the same examples."""
    wanted = _gap_statistics(cell)
    counts = [[results.statistic(name, run, cell.suite, settings) for name, settings in wanted] for run in runs]
    n = same_number([n for *_, (_, n) in counts], where=_place(cell))
    found = [paired_difference(both, first, second, n) for (first, _), (second, _), (both, _) in counts]
    values = [value for value, _ in found]
    mean = math.fsum(values) / len(values)
    # Every seed sees the same examples: average the widths of the intervals, each around its own seed's value.
    low = mean - math.fsum(value - low for value, (low, _) in found) / len(found)
    high = mean + math.fsum(high - value for value, (_, high) in found) / len(found)
    return over_seeds(values, (low, high), n=n, limits=(-1.0, 1.0))


def _gap_statistics(cell: Cell) -> list[tuple[str, Settings]]:
    if len(cell.settings) != 2:
        where = f"config/studies/{cell.study}.yaml: {cell.table}: {cell.row} x {cell.column}"
        raise ConfigError(f"{where}: settings {list(cell.settings)}: a robustness_gap is between two")
    first, second = cell.settings
    return [("worst", (first,)), ("worst", (second,)), ("worst", (first, second))]


def _place(cell: Cell) -> str:
    return f"{cell.study}-{cell.table}: {cell.row} x {cell.column}"


# -- from the records of the runs ------------------------------------------------
def checks_passed(cell: Cell, runs, results) -> dict[str, Any] | None:
    """How many checks passed of the n that could decide; with several seeds, those of the worst one."""
    passed = []
    for run in runs:
        checks = [check for check in results.checks(run)["checks"] if check.get("state", "passed") in DECIDED]
        passed.append((sum(bool(check["passed"]) for check in checks), len(checks)))
    if not passed:
        return None
    worst, n = min(passed, key=lambda pair: pair[0] - pair[1])
    return {"measured": worst, "measured_std": None, "ci_low": worst, "ci_high": worst, "n": n}


def gradient_agreement(run: Run, results) -> float | None:
    """At how many percent of the points the gradient that plain attacks follow predicts how the margin changes."""
    found = next((each for each in results.checks(run)["checks"] if each["check"] == "gradient-agreement"), None)
    if found is None or "agreeing" not in found["value"]:
        return None
    # With a router, plain attacks go straight through it.
    return 100 * found["value"].get("agreeing_straight_through", found["value"]["agreeing"])


def over_records(read: Callable[[Run, Any], float | None]):
    """The measure that reads one number of each run, with no interval but the one between seeds."""

    def compute(cell: Cell, runs, results) -> dict[str, Any] | None:
        values = [read(run, results) for run in runs]
        if not values or None in values:
            return None
        mean = sum(values) / len(values)
        return over_seeds(values, (mean, mean), n=None, limits=(0.0, math.inf), unit=1.0)

    return compute


def recorded(key: str, unit: float = 1.0) -> Callable[[Run, Any], float | None]:
    """A number of run.json, in multiples of ``unit``."""

    def read(run: Run, results) -> float | None:
        value = (results.run(run) or {}).get(key)
        return value if value is None or unit == 1.0 else value / unit

    return read


def hours(key: str) -> Callable[[Run, Any], float | None]:
    """Hours of training, including all the runs that this one starts from (experts, a dense net to prune).

    Args:
        key: the seconds of run.json: ``wall_seconds``, or ``gpu_seconds``, of which a run on a CPU has none.
    """

    def read(run: Run, results) -> float | None:
        seconds: dict[Run, float | None] = {}
        todo = [run]
        while todo:
            # Where two runs start from the same one, it was trained once.
            if (run := todo.pop()) in seconds:
                continue
            record = results.run(run)
            if record is None:
                raise DataError(f"{paths.run_name(run)}: no run.json, but another run started from it")
            seconds[run] = record.get(key) or None
            for start in (record.get("initialize_from") or {}).values():
                dataset, arch, method, seed = Path(start["path"]).parts[-4:]
                todo.append(Run(dataset, arch, method, int(seed.removeprefix("seed"))))
        return None if None in seconds.values() else sum(seconds.values()) / 3600

    return read


def other_hardware(cell: Cell, runs: Sequence[Run], results) -> list[str]:
    """A published cost is compared only with one measured on the same hardware (part of a device's name: A100)."""

    def devices(record: Mapping[str, Any]) -> list[str]:
        device = str(record.get("device") or "")
        return [device, *([] if device == "cpu" else (record.get("hardware") or {}).get("gpus") or [])]

    def same(run: Run) -> bool:
        return any(cell.hardware.lower() in str(name).lower() for name in devices(results.run(run) or {}))

    return [] if cell.hardware is None or all(map(same, runs)) else ["other-hardware"]


# -- from probes ---------------------------------------------------------------------
def expert0_fraction(cell: Cell, runs, results) -> dict[str, Any]:
    """Percentage of the probe's images, ``clean`` or ``attacked`` by property, to which expert 0 contributes most."""
    known = ("clean", "attacked")
    if cell.code_property not in known:
        where = f"config/studies/{cell.study}.yaml: {_place(cell)}"
        raise ConfigError(f"{where}: " + unknown_name(cell.code_property, known, what="property of expert0_fraction"))
    scores = [results.probe(run, cell.probe)[cell.code_property] for run in runs]
    return summarise([(int((each.argmax(1) == 0).sum()), len(each)) for each in scores], where=_place(cell))


def weight_kurtosis(cell: Cell, runs, results) -> dict[str, Any]:
    """Excess kurtosis of the weights of the probe's layer: 0 for a normal distribution, more for a sharper peak.

    The interval is the jackknife's over the layer's filters, because the weights of one filter are not independent.
    """
    found = [_kurtosis(results.probe(run, cell.probe)["weights"].astype(np.float64)) for run in runs]
    values = [value for value, _ in found]
    centre = math.fsum(values) / len(values)
    half = NORMAL_QUANTILE * math.sqrt(math.fsum(variance for _, variance in found)) / len(found)
    return over_seeds(values, (centre - half, centre + half), n=None, limits=(-2.0, math.inf), unit=1.0)


def _kurtosis(weights: np.ndarray) -> tuple[float, float]:
    """Excess kurtosis of all weights, and its variance by leaving out each filter (the first dimension) in turn."""
    filters = weights.reshape(len(weights), -1)
    filters = filters - filters.mean()
    powers = np.stack([(filters**power).sum(1) for power in range(5)])
    total = powers.sum(1, keepdims=True)

    def excess(sums: np.ndarray) -> np.ndarray:
        count, first, second, third, fourth = sums
        mean, square = first / count, second / count
        variance = square - mean**2
        central = fourth / count - 4 * mean * third / count + 6 * mean**2 * square - 3 * mean**4
        return central / np.maximum(variance, 1e-24) ** 2 - 3

    without, n = excess(total - powers), len(filters)
    return float(excess(total)[0]), float((n - 1) / n * ((without - without.mean()) ** 2).sum())


# -- of the code, and of figures ---------------------------------------------------
def code_property(cell: Cell, runs, results) -> dict[str, Any]:
    """What kind of mixture a method is, found by inspecting its model: no run is needed."""
    # Imports torch and every method: only tables with such a column wait for it.
    from moat.reporting.properties import describe

    word = describe(results.project, cell.method, cell.code_property)
    return {**no_number(cell, runs, results), "measured": word}


def attack_property(cell: Cell, runs, results) -> dict[str, Any]:
    """How attack settings are described, or what their attacker knows: no run is needed."""
    word = stated.attack_property(results.project, cell.settings, cell.code_property)
    return {**no_number(cell, runs, results), "measured": word}


def recipe_property(cell: Cell, runs, results) -> dict[str, Any]:
    """A setting of a recipe, before any scale changes it."""
    word = stated.recipe_property(results.project, cell.method, cell.code_property)
    return {**no_number(cell, runs, results), "measured": word}


def experts_property(cell: Cell, runs, results) -> dict[str, Any]:
    """A setting of the recipes that a mixture's experts are trained by, alone and then with it."""
    word = stated.experts_property(results.project, cell.method, cell.code_property)
    return {**no_number(cell, runs, results), "measured": word}


def differs_in_code(cell: Cell, runs, results) -> list[str]:
    measured = get(cell.measure).compute(cell, runs, results)["measured"]
    return [] if stated.same(measured, cell.published) else ["differs-in-code"]


def no_number(cell: Cell, runs, results) -> dict[str, None]:
    """For lines of figures that show a training's history or a probe."""
    return dict.fromkeys(("measured", "measured_std", "ci_low", "ci_high", "n"))


_ONE_DECIMAL, _PLAIN = "{:.1f}".format, "{:g}".format
MEASURES = {
    "accuracy": Measure(accuracy, _ONE_DECIMAL, "%", wanted=lambda cell: [(cell.aggregate, cell.settings)]),
    "attack_property": Measure(attack_property, str, incomparable=differs_in_code),
    "checks_passed": Measure(checks_passed, _PLAIN, text=lambda row: f"{row['measured']:g} of {row['n']}"),
    "code_property": Measure(code_property, str, incomparable=differs_in_code),
    "confidence": Measure(confidence, _ONE_DECIMAL, "%", wanted=lambda cell: [("confidence", cell.settings)]),
    "expert0_fraction": Measure(expert0_fraction, _ONE_DECIMAL, "%"),
    "experts_property": Measure(experts_property, str, incomparable=differs_in_code),
    "gpu_hours": Measure(over_records(hours("gpu_seconds")), "{:.3g}".format, "GPU-hours", incomparable=other_hardware),
    "gradient_agreement": Measure(over_records(gradient_agreement), _ONE_DECIMAL, "%"),
    "history": Measure(no_number, _PLAIN),
    "images_per_second": Measure(
        over_records(recorded("images_per_second")), quantity, "images/s", incomparable=other_hardware
    ),
    "macs": Measure(over_records(recorded("macs_per_image")), quantity),
    "parameters": Measure(over_records(recorded("parameters")), quantity),
    "peak_memory": Measure(
        over_records(recorded("peak_memory_bytes", unit=1e9)), "{:.2f}".format, "GB", incomparable=other_hardware
    ),
    "probe": Measure(no_number, _PLAIN),
    "recipe_property": Measure(recipe_property, str, incomparable=differs_in_code),
    "robustness_gap": Measure(robustness_gap, _ONE_DECIMAL, "points", wanted=_gap_statistics),
    "training_hours": Measure(over_records(hours("wall_seconds")), "{:.3g}".format, "h", incomparable=other_hardware),
    "weight_kurtosis": Measure(weight_kurtosis, "{:.2f}".format),
}
assert MEASURES.keys() == READS.keys()
