"""The speed of hardware: measured by finished jobs or benchmarks/train.py --calibrate, otherwise config/planner.yaml's.

Rates are multiply-adds per second of training and evaluation, in float32 or bf16. They depend on the net, because a
narrow one does not fill a GPU. So a job is estimated by the measured net closest to its own, as long as that is at most
:data:`NEAR` times larger or smaller.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, MoatError, unknown_name
from moat.base.files import read_json
from moat.base.plugins import attack_passes
from moat.config.project import Project
from moat.planning.cost import knows_setting, knows_training, setting_passes, training_passes
from moat.planning.jobs import Job

CALIBRATION = Path("config") / "calibration"
NEAR = 4.0
# Per multiply-add.
FLOPS = 2


@dataclass(frozen=True)
class Observation:
    """A measured rate of ``kind`` "train" or "evaluate", of a method on a net with ``macs`` per forward pass.

    Attributes:
        assumed: the work behind it is assumed, as no cost is declared: it tells of the same method only.
    """

    kind: str
    precision: str
    method: str
    arch: str
    macs: int
    rate: float
    source: str
    assumed: bool = False


@dataclass(frozen=True)
class Rate:
    """Multiply-adds per second, and their source: "run", "calibration" or "shipped"."""

    value: float
    source: str


class Rates:
    """The rates of one piece of hardware.

    Args:
        hardware: a name of config/planner.yaml, or "auto" for this machine's.

    Raises:
        ConfigError: an unknown name, or "auto" on a GPU that no entry matches.
    """

    def __init__(self, project: Project, hardware: str = "auto"):
        self.planner = project.planner()
        known = self.planner["hardware"]
        self.name = detect(known) if hardware == "auto" else hardware
        if self.name not in known:
            raise ConfigError("--hardware: " + unknown_name(self.name, [*known, "auto"], what="hardware"))
        self.shipped = known[self.name]
        self.observations = [
            *_calibrated(project.root / CALIBRATION / f"{self.name}.json"),
            *_finished(project, self.shipped["match"]),
        ]

    def of(self, kind: str, job: Job) -> Rate:
        """The rate of ``job`` for its work of ``kind`` ("train" or "evaluate")."""
        precision = precision_of(job.precision, self.name) if kind == "train" else "float32"
        alike = [each for each in self.observations if (each.kind, each.precision) == (kind, precision)]
        alike = [each for each in alike if not each.assumed or each.method == job.run.method]
        near = [each for each in alike if _factor(each, job) <= NEAR]
        if not near:
            return Rate(self.shipped["sustained"][precision] * 1e12 / FLOPS, "shipped")
        best = min(_distance(each, job) for each in near)
        chosen = [each for each in near if _distance(each, job) == best]
        return Rate(statistics.median(each.rate for each in chosen), chosen[-1].source)

    def seconds(self, job: Job) -> tuple[float, str]:
        """A job's duration, and the source of the rate of the larger part of its work."""
        parts = []
        for kind, amount in (("train", job.work.train), ("evaluate", job.work.evaluate)):
            if amount:
                rate = self.of(kind, job)
                parts.append((amount / rate.value, rate.source))
        return self.planner["start_up"] + sum(seconds for seconds, _ in parts), max(parts, default=(0.0, "shipped"))[1]


def precision_of(wanted: str, hardware: str) -> str:
    """A recipe's precision on a piece of hardware: auto is bf16 on every GPU of config/planner.yaml."""
    return wanted if wanted != "auto" else "float32" if hardware == "cpu" else "bf16"


def _factor(observation: Observation, job: Job) -> float:
    return math.exp(abs(math.log(observation.macs / job.macs)))


def _distance(observation: Observation, job: Job) -> tuple[bool, bool, float, bool]:
    """Sort key: the same net first, then the same method, then the closest size, then runs before calibrations."""
    same_net = observation.arch == job.net.arch and observation.macs == job.macs
    factor = round(_factor(observation, job), 3)
    return not same_net, observation.method != job.run.method, factor, observation.source != "run"


def detect(known: Mapping[str, Any]) -> str:
    """The entry of ``known`` that matches this machine's GPU; "cpu" without a GPU."""
    device = _gpu_name()
    return match(device, known) if device else "cpu"


def match(device: str, known: Mapping[str, Any]) -> str:
    """The entry whose ``match`` is part of the device's name.

    Raises:
        ConfigError: there is none.
    """
    for name, entry in known.items():
        if any(part in device for part in entry["match"]):
            return name
    raise ConfigError(
        f"no entry of config/planner.yaml: hardware matches this device, {device!r}; add one, or name another "
        f"with --hardware; allowed: {', '.join(known)}"
    )


def _gpu_name(driver: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """The first GPU's name according to the driver, without importing torch."""
    for path in sorted(driver.glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return None


# -- where observations come from ---------------------------------------------
def _calibrated(path: Path) -> Iterator[Observation]:
    """The rates that benchmarks/train.py --calibrate wrote for a piece of hardware."""
    if not path.exists():
        return
    for row in read_json(path)["rows"]:
        about = (row[key] for key in ("kind", "precision", "method", "arch", "macs", "macs_per_second"))
        yield Observation(*about, "calibration")


def _finished(project: Project, matching: Iterable[str]) -> Iterator[Observation]:
    """The rates of finished runs and evaluations on this hardware. Records that lack a figure are skipped."""
    results, families = project.root / "results", attack_passes()
    records: dict[tuple, Mapping[str, Any]] = {}
    for path in sorted(results.glob("*/runs/*/*/*/seed*/run.json")):
        run = _read(path)
        if not run or not any(part in run.get("device", "") for part in matching):
            continue
        records[tuple(run[key] for key in ("scale", "dataset", "arch", "method", "seed"))] = run
        method = run["method"]
        if run.get("images_per_second") and method in project.names("methods"):
            recipe = {**run["recipe"], "cost": project.method(method).get("cost", {})}
            rate = run["images_per_second"] * training_passes(recipe) * run["macs_per_image"]
            precision = precision_of(recipe["precision"], "cpu" if run["device"] == "cpu" else "gpu")
            about = (method, run["arch"], run["macs_per_image"], rate, "run")
            yield Observation("train", precision, *about, assumed=not knows_training(recipe))
    for path in sorted(results.glob("*/evaluations/*/*/*/seed*/*.json")):
        evaluation = _read(path)
        about = evaluation.get("run", {})
        run = records.get(tuple(about.get(key) for key in ("scale", "dataset", "arch", "method", "seed")))
        hardware = [record.get("hardware", {}) for record in (evaluation, run or {})]
        same = all(hardware[0].get(key) == hardware[1].get(key) for key in ("cpu", "gpus"))
        if run and same and evaluation.get("seconds"):
            yield from _of_evaluation(evaluation, run, families)


def _of_evaluation(evaluation, run, families) -> Iterator[Observation]:
    settings, counts = evaluation["settings"], evaluation.get("accuracy", {})
    if not all(knows_setting(each, families) for each in settings.values()):
        return
    passes = sum(counts.get(name, evaluation)["n"] * setting_passes(each, families) for name, each in settings.items())
    rate = passes * run["macs_per_image"] / evaluation["seconds"]
    yield Observation("evaluate", "float32", run["method"], run["arch"], run["macs_per_image"], rate, "run")


def _read(path: Path) -> Mapping[str, Any]:
    """The record, or an empty one if it is damaged: a plan must not fail because of it."""
    try:
        content = read_json(path)
    except MoatError:
        return {}
    wanted = {"scale", "dataset", "arch", "method", "seed", "recipe", "macs_per_image"}
    complete = isinstance(content, dict) and ("run" in content or wanted <= content.keys())
    return content if complete else {}
