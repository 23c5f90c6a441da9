"""Reads what the runs of one scale left behind; every large file at most once."""

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moat import sources
from moat.config import paths
from moat.config.grid import Cell, Run
from moat.errors import DataError
from moat.evaluation.clusters import MeanAccuracy, mean_accuracy
from moat.evaluation.statistics import accuracy
from moat.files import read_json

Settings = tuple[str, ...]


def locate(root: str | Path, path) -> Path:
    """A path of :mod:`moat.config.paths` (below ``results/``) below the folder ``root`` instead."""
    return Path(root) / Path(path).relative_to("results")


@dataclass(eq=False)
class Results:
    """The finished results of one scale.

    Args:
        root: the folder of all scales, usually ``results``.
        wanted: what will be asked of each evaluation, (run, suite) -> settings; :meth:`expect` fills it, so
            that :meth:`counts` answers everything about a parquet file when it first opens it and keeps
            no rows.
    """

    root: Path
    scale: str
    wanted: dict[tuple[Run, str], dict[Settings, None]] = field(default_factory=lambda: defaultdict(dict))
    wanted_means: dict[tuple[Run, str], dict[Settings, None]] = field(default_factory=lambda: defaultdict(dict))
    _counts: dict[tuple[Run, str, Settings], tuple[int, int]] = field(default_factory=dict)
    _means: dict[tuple[Run, str, Settings], MeanAccuracy] = field(default_factory=dict)

    def __post_init__(self):
        self.root = Path(self.root)

    def file(self, path) -> Path:
        return locate(self.root, path)

    def expect(self, cells: Iterable[Cell], *, each_setting: bool = False) -> None:
        """Announce the cells that :meth:`counts` will be asked about; ``each_setting``: one by one as well."""
        for cell in cells:
            for run in cell.runs:
                if cell.aggregate == "mean":
                    self.wanted_means[run, cell.suite][cell.settings] = None
                    continue
                combinations = self.wanted[run, cell.suite]
                combinations[cell.settings] = None
                if each_setting:
                    combinations.update({(setting,): None for setting in cell.settings})

    # -- evaluations -------------------------------------------------------
    def evaluation_path(self, run: Run, suite: str) -> Path:
        return self.file(paths.evaluation(self.scale, run, suite))

    def has_evaluation(self, run: Run, suite: str) -> bool:
        return self.evaluation_path(run, suite).exists()

    def counts(self, run: Run, suite: str, settings: Sequence[str]) -> tuple[int, int]:
        """(correct under every one of ``settings``, number of examples) of an evaluation.

        Raises:
            DataError: the file is missing or damaged, or lacks a setting; names it.
        """
        key = (run, suite, tuple(settings))
        if key not in self._counts:
            self.wanted[run, suite][key[2]] = None
            self._read_counts(run, suite)
        return self._counts[key]

    def mean(self, run: Run, suite: str, settings: Sequence[str]) -> MeanAccuracy:
        """Mean accuracy over ``settings`` of an evaluation.

        Raises:
            DataError: as :meth:`counts`.
        """
        key = (run, suite, tuple(settings))
        if key not in self._means:
            self.wanted_means[run, suite][key[2]] = None
            self._read_counts(run, suite)
        return self._means[key]

    def _read_counts(self, run: Run, suite: str) -> None:
        path = self.evaluation_path(run, suite)
        frame = _read_rows(path)
        groups = dict(iter(frame.groupby("setting", observed=True, sort=False)))
        for settings in [*self.wanted[run, suite], *self.wanted_means[run, suite]]:
            missing = [setting for setting in settings if setting not in groups]
            if missing:
                raise DataError(
                    f"{path}: no rows for the setting {missing[0]!r}; it holds {', '.join(groups)}. Evaluate again"
                )
            if settings in self.wanted[run, suite]:
                self._counts[run, suite, settings] = _count(groups, settings, path)
            if settings in self.wanted_means[run, suite]:
                self._means[run, suite, settings] = mean_accuracy(frame, settings)

    @functools.cache  # noqa: B019 - one Results lives as long as its command
    def evaluation(self, run: Run, suite: str) -> dict[str, Any] | None:
        """The JSON beside an evaluation's rows, or None."""
        return self._json(self.evaluation_path(run, suite).with_suffix(".json"))

    # -- runs and gates ----------------------------------------------------
    @functools.cache  # noqa: B019
    def run(self, run: Run) -> dict[str, Any] | None:
        """The run.json of a run, or None."""
        return self._json(self.file(paths.run_dir(self.scale, run)) / "run.json")

    def history(self, run: Run):
        """One row per epoch of a finished run (DataFrame).

        Raises:
            DataError: there is no history.csv; names it.
        """
        import pandas as pd

        path = self.file(paths.run_dir(self.scale, run)) / "history.csv"
        if not path.exists():
            raise DataError(f"{path}: no such file; `moat train` leaves it beside the model")
        return pd.read_csv(path)

    @functools.cache  # noqa: B019
    def gates(self, run: Run) -> dict[str, Any] | None:
        """The gates' JSON of a run, or None."""
        return self._json(self.file(paths.gates(self.scale, run)))

    def failed_gates(self, run: Run, suite: str | None = None) -> list[str]:
        """Names of the gates that keep this run's numbers from being trusted.

        Beside the gates' own names: ``gates-not-run`` where none were checked, ``model-changed`` where the
        gates, or the evaluation of ``suite``, saw other weights than the run has now.
        """
        gates = self.gates(run)
        failed = list(gates["failed"]) if gates else ["gates-not-run"]
        if gates and not gates["passed"] and not failed:
            failed = ["gates"]
        seen = [gates, self.evaluation(run, suite) if suite else None]
        if any(self._of_other_model(run, content) for content in seen):
            failed.append("model-changed")
        return failed

    def _of_other_model(self, run: Run, content: dict[str, Any] | None) -> bool:
        now = (self.run(run) or {}).get("model_sha256")
        then = ((content or {}).get("run") or {}).get("model_sha256")
        return None not in (now, then) and now != then

    @staticmethod
    def _json(path: Path) -> dict[str, Any] | None:
        return read_json(path) if path.exists() else None


def stale_parts(content: dict[str, Any] | None) -> list[str]:
    """The parts of the package that have changed since they made a result (its JSON content)."""
    return sources.stale(content or {})


def _read_rows(path: Path):
    """setting (category), index, correct of an evaluation."""
    import pyarrow
    import pyarrow.parquet

    columns = ["setting", "index", "correct"]
    try:
        table = pyarrow.parquet.read_table(path, columns=columns, read_dictionary=["setting"])
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `moat evaluate … --out {path}` makes it") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return table.to_pandas()


def _count(groups, settings: Settings, path: Path) -> tuple[int, int]:
    import pandas as pd

    rows = groups[settings[0]] if len(settings) == 1 else pd.concat([groups[name] for name in settings])
    try:
        correct, n = accuracy(rows, settings)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if n == 0:
        raise DataError(f"{path}: no examples")
    return int(correct), int(n)
