"""The records that the runs of a scale left, and what of them is stale today: one answer for plans, tables and page."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moat.base.damage import is_damaged
from moat.base.files import read_json
from moat.base.remembered import hash_once, key_of
from moat.config import paths, recipes
from moat.config.grid import Run, initial_runs
from moat.config.project import Project
from moat.provenance import staleness
from moat.provenance.staleness import BUDGET, DATA, INITIAL_RUN, MODEL, PROBE, RECIPE, RUN, SUITE

#: Lies beside published evidence, and says which scale and studies it is of.
EVIDENCE_RECORD = "evidence.json"


def locate(root: str | Path, path) -> Path:
    """A path of :mod:`moat.config.paths` (below ``results/``) below the folder ``root`` instead."""
    return Path(root) / Path(path).relative_to("results")


def result_files(kind: str, scale: str, run: Run, name: str = "") -> list[Path]:
    """The files that a run, an evaluation, a check or a probe leaves; the first stands for them."""
    if kind == "run":
        folder = paths.run_dir(scale, run)
        return [folder / "run.json", folder / "history.csv", *(folder / name for name in paths.WEIGHTS.values())]
    if kind == "check":
        return [paths.checks(scale, run)]
    measured = paths.evaluation(scale, run, name) if kind == "evaluation" else paths.probe(scale, run, name)
    return [measured, measured.with_suffix(".json")]


def evidence_record(folder: Path) -> dict[str, Any] | None:
    """``scale`` and ``studies`` of the evidence in ``folder``; None where none was published there."""
    path = folder / EVIDENCE_RECORD
    return read_json(path) if path.exists() else None


def record_file(kind: str, scale: str, run: Run, name: str = "") -> Path:
    """The JSON of a result, which is another one where the result is."""
    return next(path for path in result_files(kind, scale, run, name) if path.suffix == ".json")


@dataclass(eq=False)
class Records:
    """Reads each record once, and again when it has changed.

    Why a result is stale is a list for :func:`moat.provenance.staleness.describe`; an empty one where it is current, or
    not there.

    Args:
        root: the folder of all scales, usually ``results``.
        project: whose configuration of today the records are compared with.
    """

    root: Path
    scale: str
    project: Project = field(default_factory=Project)

    def __post_init__(self):
        self.root = Path(self.root)

    def file(self, path) -> Path:
        return locate(self.root, path)

    @property
    def is_evidence(self) -> bool:
        """Whether this is published evidence, which keeps neither prepared data nor most weights."""
        return self.root.name == paths.evidence().name

    # -- what was recorded -------------------------------------------------
    def run(self, run: Run) -> dict[str, Any] | None:
        """The run.json of a run, or None."""
        return self.json(paths.run_dir(self.scale, run) / "run.json")

    def evaluation(self, run: Run, suite: str) -> dict[str, Any] | None:
        """The JSON beside an evaluation's rows, or None."""
        return self.json(paths.evaluation(self.scale, run, suite).with_suffix(".json"))

    def checks(self, run: Run) -> dict[str, Any] | None:
        """The checks' JSON of a run, or None."""
        return self.json(paths.checks(self.scale, run))

    def probe_record(self, run: Run, name: str) -> dict[str, Any] | None:
        """The JSON beside a probe's arrays, or None."""
        return self.json(paths.probe(self.scale, run, name).with_suffix(".json"))

    def json(self, path: Path) -> dict[str, Any] | None:
        """The JSON in a file below ``results/``, or None where there is none."""
        file = self.file(path)
        try:
            status = file.stat()
        except FileNotFoundError:
            return None
        return _read_once(file, status.st_mtime_ns, status.st_size)

    # -- whether it stands -------------------------------------------------
    def status(self, kind: str, run: Run, name: str = "") -> tuple[str, list[str]]:
        """``missing``, ``damaged`` (cut short), ``stale`` or ``done``, and why it is stale.

        Args:
            kind: ``run``, ``evaluation``, ``check`` or ``probe``; ``name``: of the suite or the probe.
        """
        files = [self.file(path) for path in result_files(kind, self.scale, run, name)]
        if self.is_evidence:
            files = [file for file in files if file.suffix != ".safetensors" or file.exists()]
        if not all(file.exists() for file in files):
            return "missing", []
        if any(map(is_damaged, files)):
            return "damaged", []
        stale = {"run": self.stale_run, "evaluation": self.stale_evaluation, "check": self.stale_checks}
        reasons = stale.get(kind, self.stale_probe)(run, *filter(None, [name]))
        return ("stale" if reasons else "done"), reasons

    # -- why it is stale ---------------------------------------------------
    def stale_run(self, run: Run) -> list[str]:
        """Why a run is stale."""
        record = self.run(run)
        if record is None:
            return []
        started_from = record.get("initialize_from") or {}
        today = initial_runs(self.project, self.scale, run) if started_from else {}
        models = [(start, started_from.get(name)) for name, start in today.items()]
        found = self._reasons(run.dataset, record, RECIPE, lambda: self.run_digest(run), models)
        return [*found, INITIAL_RUN] if any(map(self.stale_run, today.values())) else found

    def stale_evaluation(self, run: Run, suite: str) -> list[str]:
        """Why an evaluation is stale."""
        return self._stale_measurement(run, self.evaluation(run, suite), SUITE, recipes.resolve_evaluation, suite)

    def stale_checks(self, run: Run) -> list[str]:
        """Why a run's checks are stale."""
        return self._stale_measurement(run, self.checks(run), BUDGET, recipes.resolve_checks)

    def stale_probe(self, run: Run, name: str) -> list[str]:
        """Why what a probe took from a run's model is stale."""
        return self._stale_measurement(run, self.probe_record(run, name), PROBE, recipes.resolve_probe, name)

    def _stale_measurement(
        self, run: Run, record: Mapping[str, Any] | None, told: str, resolve, *name: str
    ) -> list[str]:
        if record is None:
            return []
        models = [(run, record.get("run"))]
        for setting in record.get("settings", {}).values():
            source = setting.get("source")
            # The run that examples were transferred from; of a corruption it is where its images are from.
            if isinstance(source, Mapping) and source["scale"] == self.scale:
                models.append((_run_of(source), source))
        found = self._reasons(run.dataset, record, told, lambda: self._digest(resolve, *name), models)
        return [*found, RUN] if self.stale_run(run) else found

    def _reasons(
        self,
        dataset: str,
        record: Mapping[str, Any],
        told: str,
        told_digest: Callable[[], str],
        models: Iterable[tuple[Run, Mapping[str, Any] | None]],
    ) -> list[str]:
        """Of what a record says itself: sources, what it was told, data, models (each a run and what was recorded)."""
        found = staleness.stale(record)
        # A record without one is of a model from elsewhere, which no recipe made.
        if record.get("recipe_digest") and record["recipe_digest"] != told_digest():
            found.append(told)
        if self.is_other_data(dataset, record):
            found.append(DATA)
        if any(self.is_other_model(run, then) for run, then in models):
            found.append(MODEL)
        return found

    def is_other_data(self, dataset: str, record: Mapping[str, Any]) -> bool:
        """Whether a data set is described otherwise than for a record, or prepared with other content."""
        described, used = record.get("data_digest"), (record.get("data") or {}).get("sha256")
        if described and described != self.data_digest(dataset):
            return True
        prepared = self.file(paths.prepared(self.scale, dataset))
        return bool(used) and prepared.exists() and _hash_once(prepared, tuple(key_of(prepared))) != used

    def is_other_model(self, run: Run, then: Mapping[str, Any] | None) -> bool:
        """Whether a run has other weights now than those whose ``model_sha256`` was recorded."""
        then, now = (then or {}).get("model_sha256"), (self.run(run) or {}).get(paths.SHA256[run.weights])
        return None not in (then, now) and then != now

    # -- today's configuration ----------------------------------------------
    def run_digest(self, run: Run) -> str:
        """The digest of a run's resolved recipe."""
        place = {"dataset": run.dataset, "arch": run.arch, "method": run.method, "seed": run.seed}
        return recipes.digest({**self._recipe_of(run.method), **place})

    @functools.cache  # noqa: B019 - one lives as long as its command
    def data_digest(self, dataset: str) -> str:
        """The digest of what of a data set changes numbers."""
        return recipes.digest(recipes.resolve_content(self.project, dataset))

    # Thousands of runs are of a few dozen recipes.
    @functools.cache  # noqa: B019 - one lives as long as its command
    def _recipe_of(self, method: str) -> dict[str, Any]:
        return recipes.resolve_run(self.project, self.scale, dataset="", arch="", method=method, seed=0)

    @functools.cache  # noqa: B019
    def _digest(self, resolve, *name: str) -> str:
        return recipes.digest(resolve(self.project, self.scale, *name))


@functools.cache
def _hash_once(path: Path, key: tuple[int, ...]) -> str:
    return hash_once(path)


@functools.cache
def _read_once(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    return read_json(path)


def _run_of(named: Mapping[str, Any]) -> Run:
    return Run(*(named[key] for key in ("dataset", "arch", "method", "seed")))
