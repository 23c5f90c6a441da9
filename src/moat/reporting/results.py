"""Reads what the runs of one scale left behind; every large file at most once."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.numpy

from moat.base.errors import DataError
from moat.base.files import read_json
from moat.config import paths
from moat.config.grid import Cell, Run
from moat.config.project import Project
from moat.provenance import staleness
from moat.reporting import measures
from moat.reporting.rows import STATISTICS, Rows, Settings


def locate(root: str | Path, path) -> Path:
    """A path of :mod:`moat.config.paths` (below ``results/``) below the folder ``root`` instead."""
    return Path(root) / Path(path).relative_to("results")


@dataclass(eq=False)
class Results:
    """The finished results of one scale.

    Args:
        root: the folder of all scales, usually ``results``.
        wanted: the statistics that each evaluation will be asked for, (run, suite) -> (statistic, settings).
            :meth:`expect` fills it, so that :meth:`statistic` computes all of them when it first opens a parquet file
            and keeps no rows.
        project: the configuration whose methods a property of the code is looked up in.
    """

    root: Path
    scale: str
    wanted: dict[tuple[Run, str], dict[tuple[str, Settings], None]] = field(default_factory=lambda: defaultdict(dict))
    project: Project = field(default_factory=Project)
    _statistics: dict[tuple[str, Run, str, Settings], Any] = field(default_factory=dict)

    def __post_init__(self):
        self.root = Path(self.root)

    def file(self, path) -> Path:
        return locate(self.root, path)

    def expect(self, cells: Iterable[Cell], *, each_setting: bool = False) -> None:
        """Announce the cells that will be measured, also under their alternative protocols.

        ``each_setting``: the accuracy under every single setting will be asked for, too.
        """
        for cell in (each for one in cells for each in one.each()):
            asked = dict.fromkeys(measures.get(cell.measure).wanted(cell))
            if each_setting:
                asked.update({("worst", (setting,)): None for setting in cell.settings})
            for evaluation in cell.evaluations:
                self.wanted[evaluation.run, evaluation.suite].update(asked)

    # -- what a cell can be measured on --------------------------------------
    def finished(self, cell: Cell) -> list[Run]:
        """The runs of a cell that left behind what its measure reads."""
        exists = {
            "rows": lambda run: self.has_evaluation(run, cell.suite),
            "record": lambda run: self.run(run) is not None,
            "checks": lambda run: self.checks(run) is not None,
            "probe": lambda run: self.probe_path(run, cell.probe).exists(),
        }
        return [run for run in cell.runs if all(exists[what](run) for what in cell.reads)]

    # -- evaluations -------------------------------------------------------
    def evaluation_path(self, run: Run, suite: str) -> Path:
        return self.file(paths.evaluation(self.scale, run, suite))

    @functools.cache  # noqa: B019 - one Results lives as long as its command
    def has_evaluation(self, run: Run, suite: str) -> bool:
        return self.evaluation_path(run, suite).exists()

    def counts(self, run: Run, suite: str, settings: Sequence[str]) -> tuple[int, int]:
        """(correct under every one of ``settings``, number of examples) of an evaluation.

        Raises:
            DataError: the file is missing or damaged, or lacks a setting; names it.
        """
        return self.statistic("worst", run, suite, tuple(settings))

    def statistic(self, name: str, run: Run, suite: str, settings: Settings) -> Any:
        """A statistic of an evaluation's rows, by its name in :data:`moat.reporting.rows.STATISTICS`.

        Settings that do not apply to the model (see :meth:`not_applicable`) are left out.

        Raises:
            DataError: the file is missing or damaged, or lacks a setting; names it.
        """
        key = (name, run, suite, settings)
        if key not in self._statistics:
            self.wanted[run, suite][name, settings] = None
            rows, left_out = Rows(self.evaluation_path(run, suite)), self.not_applicable(run, suite)
            for statistic, asked in self.wanted[run, suite]:
                applicable = tuple(setting for setting in asked if setting not in left_out)
                if applicable:
                    self._statistics[statistic, run, suite, asked] = STATISTICS[statistic](rows, applicable)
        return self._statistics[key]

    def not_applicable(self, run: Run, suite: str) -> Mapping[str, str]:
        """The settings of a suite that do not apply to a run's model (attacks on a router it lacks) -> why."""
        listed = (self.evaluation(run, suite) or {}).get("not_applicable") or {}
        return listed if isinstance(listed, Mapping) else dict.fromkeys(listed, "the model has no router")

    @functools.cache  # noqa: B019
    def evaluation(self, run: Run, suite: str) -> dict[str, Any] | None:
        """The JSON beside an evaluation's rows, or None."""
        return self._json(self.evaluation_path(run, suite).with_suffix(".json"))

    # -- probes ------------------------------------------------------------
    def probe_path(self, run: Run, name: str) -> Path:
        return self.file(paths.probe(self.scale, run, name))

    def probe(self, run: Run, name: str) -> dict[str, Any]:
        """The arrays that a probe took from a run's model: name -> numpy array.

        Raises:
            DataError: the file is missing or damaged; names it.
        """
        path = self.probe_path(run, name)
        try:
            return safetensors.numpy.load_file(path)
        except (OSError, safetensors.SafetensorError) as error:
            raise DataError(f"{path}: no readable probe ({error}); `moat probe … --out {path}` makes it") from error

    @functools.cache  # noqa: B019
    def probe_record(self, run: Run, name: str) -> dict[str, Any] | None:
        """The JSON beside a probe's arrays, or None."""
        return self._json(self.probe_path(run, name).with_suffix(".json"))

    def is_probe_outdated(self, run: Run, name: str) -> bool:
        """Whether a probe saw other weights than the run has now."""
        return self._of_other_model(run, self.probe_record(run, name))

    # -- sources that have changed since -----------------------------------
    @functools.cache  # noqa: B019
    def stale_run(self, run: Run) -> list[str]:
        """The parts of the package that have changed since they trained a run."""
        return stale_parts(self.run(run))

    @functools.cache  # noqa: B019
    def stale_evaluation(self, run: Run, suite: str) -> list[str]:
        """The parts that have changed since an evaluation."""
        return stale_parts(self.evaluation(run, suite))

    @functools.cache  # noqa: B019
    def stale_checks(self, run: Run) -> list[str]:
        """The parts that have changed since a run's checks were checked."""
        return stale_parts(self.checks(run))

    def stale(self, cell: Cell) -> dict[str, list[str]]:
        """Stale results of a cell: ``run``, ``rows``, ``checks``, ``probe`` -> the parts that have changed."""
        found: dict[str, list[str]] = {}
        for run in self.finished(cell):
            made = {"run": self.stale_run(run)}
            if "rows" in cell.reads:
                made["rows"] = self.stale_evaluation(run, cell.suite)
            if cell.checks:
                made["checks"] = self.stale_checks(run)
            if "probe" in cell.reads:
                made["probe"] = stale_parts(self.probe_record(run, cell.probe))
            for what, parts in made.items():
                if parts:
                    found[what] = list(dict.fromkeys([*found.get(what, []), *parts]))
        return found

    # -- runs and checks ----------------------------------------------------
    @functools.cache  # noqa: B019
    def run(self, run: Run) -> dict[str, Any] | None:
        """The run.json of a run, or None."""
        return self._json(self.file(paths.run_dir(self.scale, run)) / "run.json")

    def history(self, run: Run) -> pd.DataFrame:
        """One row per epoch of a finished run.

        Raises:
            DataError: there is no history.csv; names it.
        """
        path = self.file(paths.run_dir(self.scale, run)) / "history.csv"
        if not path.exists():
            raise DataError(f"{path}: no such file; `moat train` leaves it beside the model")
        return pd.read_csv(path)

    @functools.cache  # noqa: B019
    def checks(self, run: Run) -> dict[str, Any] | None:
        """The checks' JSON of a run, or None."""
        return self._json(self.file(paths.checks(self.scale, run)))

    def failed_checks(self, run: Run, suite: str | None = None) -> list[str]:
        """Names of the checks that keep this run's numbers from being trusted.

        Beside the checks' own names: ``checks-not-run`` where none were checked, ``model-changed`` where the
        checks, or the evaluation of ``suite``, saw other weights than the run has now.
        """
        checks = self.checks(run)
        failed = list(checks["failed"]) if checks else ["checks-not-run"]
        if checks and not checks["passed"] and not failed:
            failed = ["checks"]
        if self._of_other_model(run, checks) or (suite and self.is_outdated(run, suite)):
            failed.append("model-changed")
        return failed

    def is_outdated(self, run: Run, suite: str) -> bool:
        """Whether an evaluation saw other weights than the run has now."""
        return self._of_other_model(run, self.evaluation(run, suite))

    def _of_other_model(self, run: Run, content: dict[str, Any] | None) -> bool:
        now = (self.run(run) or {}).get("model_sha256")
        then = ((content or {}).get("run") or {}).get("model_sha256")
        return None not in (now, then) and now != then

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        return read_json(path) if path.exists() else None


def stale_parts(content: dict[str, Any] | None) -> list[str]:
    """The parts of the package that have changed since they made a result (its JSON content)."""
    return staleness.stale(content or {})
