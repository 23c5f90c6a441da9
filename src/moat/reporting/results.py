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
from moat.config import paths
from moat.config.grid import Cell, Run
from moat.config.records import Records
from moat.provenance.staleness import RUN
from moat.reporting import measures
from moat.reporting.rows import STATISTICS, Rows, Settings


@dataclass(eq=False)
class Results(Records):
    """The finished results of one scale: records, and what they vouch for.

    Args:
        wanted: the statistics that each evaluation will be asked for, (run, suite) -> (statistic, settings).
            :meth:`expect` fills it, so that :meth:`statistic` computes all of them when it first opens a parquet file
            and keeps no rows.
    """

    wanted: dict[tuple[Run, str], dict[tuple[str, Settings], None]] = field(default_factory=lambda: defaultdict(dict))
    _statistics: dict[tuple[str, Run, str, Settings], Any] = field(default_factory=dict)

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
            known = {*(self.measured_settings(run, suite) or rows.correct), *left_out}
            for statistic, asked in self.wanted[run, suite]:
                # Others' settings that the suite did not have yet: their cells are not run.
                if (statistic, asked) != (name, settings) and not known.issuperset(asked):
                    continue
                applicable = tuple(setting for setting in asked if setting not in left_out)
                if applicable:
                    self._statistics[statistic, run, suite, asked] = STATISTICS[statistic](rows, applicable)
        return self._statistics[key]

    def not_applicable(self, run: Run, suite: str) -> Mapping[str, str]:
        """The settings of a suite that do not apply to a run's model (attacks on a router it lacks) -> why."""
        listed = (self.evaluation(run, suite) or {}).get("not_applicable") or {}
        return listed if isinstance(listed, Mapping) else dict.fromkeys(listed, "the model has no router")

    def measured_settings(self, run: Run, suite: str) -> Mapping[str, Any]:
        """The settings and worst cases that an evaluation has rows for, according to its record; empty without one."""
        return (self.evaluation(run, suite) or {}).get("accuracy") or {}

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

    def is_probe_outdated(self, run: Run, name: str) -> bool:
        """Whether a probe saw other weights than the run has now."""
        return self.is_other_model(run, (self.probe_record(run, name) or {}).get("run"))

    def stale(self, cell: Cell) -> dict[str, list[str]]:
        """Stale results of a cell: ``run``, ``rows``, ``checks``, ``probe`` -> why."""
        found: dict[str, list[str]] = {}
        for run in self.finished(cell):
            made = {"run": self.stale_run(run)}
            if "rows" in cell.reads:
                made["rows"] = self.stale_evaluation(run, cell.suite)
            if cell.checks:
                made["checks"] = self.stale_checks(run)
            if "probe" in cell.reads:
                made["probe"] = self.stale_probe(run, cell.probe)
            for what, reasons in made.items():
                # Of a stale run it is said once.
                if own := [reason for reason in reasons if reason != RUN]:
                    found[what] = list(dict.fromkeys([*found.get(what, []), *own]))
        return found

    # -- runs and checks ----------------------------------------------------
    def history(self, run: Run) -> pd.DataFrame:
        """One row per epoch of a finished run.

        Raises:
            DataError: there is no history.csv; names it.
        """
        path = self.file(paths.run_dir(self.scale, run)) / "history.csv"
        if not path.exists():
            raise DataError(f"{path}: no such file; `moat train` leaves it beside the model")
        return pd.read_csv(path)

    def failed_checks(self, run: Run, suite: str | None = None) -> list[str]:
        """Names of the checks that keep this run's numbers from being trusted.

        Besides the checks' own names: ``checks-not-run`` where they have not run, ``model-changed`` where the
        checks, or the evaluation of ``suite``, saw other weights than the run has now.
        """
        checks = self.checks(run)
        failed = list(checks["failed"]) if checks else ["checks-not-run"]
        if checks and not checks["passed"] and not failed:
            failed = ["checks"]
        if self.is_other_model(run, (checks or {}).get("run")) or (suite and self.is_outdated(run, suite)):
            failed.append("model-changed")
        return failed

    def is_outdated(self, run: Run, suite: str) -> bool:
        """Whether an evaluation saw other weights than the run has now."""
        return self.is_other_model(run, (self.evaluation(run, suite) or {}).get("run"))
