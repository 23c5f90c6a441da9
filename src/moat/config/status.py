"""What of a grid is done, stale or missing, and what the workflow makes again: one answer, for the workflow's dry run,
``moat plan``, ``moat doctor`` and the page."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moat.base.files import hash_file, write_json
from moat.base.remembered import key_of
from moat.config import recipes
from moat.config.grid import Grid, Run
from moat.config.records import Records, record_file, result_files
from moat.config.shown import Shown, results_of, shown_of
from moat.config.transfer import transfer_kinds, transfer_runs
from moat.provenance import staleness
from moat.provenance.staleness import DECLARED, MARKS, MISSING, RESULTS, RUN, TOLD


class Status(NamedTuple):
    """``status``: ``done``, ``stale`` (there, but it would be another one today; ``reasons`` says why) or ``missing``.

    ``again``: the workflow makes it again, or for the first time. What only the code has made stale is kept, unless
    ``refresh`` is ``stale``. ``damaged``: it was cut short, which counts as missing.
    """

    status: str
    reasons: list[str]
    again: bool
    damaged: bool = False


class Statuses:
    """The status of every result of a scale and of what shows it.

    Args:
        grid: of the studies; decides what runs start from and which run examples are transferred from.
        selection: see :func:`moat.config.shown.selection_of`.
        refresh: as in config/config.yaml: "never" or "stale".
    """

    def __init__(
        self, records: Records, grid: Grid, studies: Sequence[str], selection: str = "", refresh: str = "never"
    ):
        self.records, self.grid, self.refresh = records, grid, refresh
        self.studies = tuple(studies)
        self.shown = shown_of(grid, studies, selection)
        self._shown_by_path = {each.path: each for each in self.shown}
        self._found: dict[Path, Status] = {}

    # -- results -------------------------------------------------------------
    @functools.cache  # noqa: B019 - one lives as long as its command
    def of_result(self, kind: str, run: Run, name: str = "") -> Status:
        """Of a run, an evaluation, a check or a probe (``name``: of the suite or the probe)."""
        status, reasons = self.records.status(kind, run, name)
        if status in ("missing", "damaged"):
            return Status("missing", [], True, status == "damaged")
        sources = [self.of_result("run", source) for source in self._sources(kind, run, name)]
        if any(source.again for source in sources):
            lacking = any(source.status == "missing" for source in sources)
            return Status("stale", [*reasons, *([MISSING] if lacking else [] if reasons else [RUN])], True)
        return Status(status, reasons, self._is_again(reasons))

    def own_reasons(self, found: Status) -> list[str]:
        """Why a result is made again, but for what it was made of being missing; empty where it is not."""
        reasons = [reason for reason in found.reasons if reason != MISSING]
        return reasons if self._is_again(reasons) else []

    def _is_again(self, reasons: list[str]) -> bool:
        return bool(TOLD.intersection(reasons)) or (bool(reasons) and self.refresh == "stale")

    def _sources(self, kind: str, run: Run, name: str) -> Iterable[Run]:
        """The runs whose models a result was made from."""
        if kind == "run":
            return self.grid.initialize_from.get(run, {}).values()
        found = [run.training]
        if kind == "evaluation" and (kinds := self._transfer_kinds(name)):
            found += transfer_runs(self.records.project, name, run, self.grid.checks, kinds).values()
        return found

    @functools.cache  # noqa: B019
    def _transfer_kinds(self, suite: str) -> tuple[str, ...]:
        return transfer_kinds(self.records.project, suite)

    # -- what shows them ---------------------------------------------------------
    def of_shown(self, shown: Shown) -> Status:
        """Of a table, a figure, the cells or the page."""
        if shown.path not in self._found:
            self._found[shown.path] = self._of_shown(shown)
        return self._found[shown.path]

    def _of_shown(self, shown: Shown) -> Status:
        if not all(self.records.file(path).exists() for path in shown.files):
            return Status("missing", [], True)
        below = [self.of_result(*each) for each in shown.results]
        below += [self.of_shown(self._shown_by_path[path]) for path in shown.needs]
        reasons = [MISSING] if any(each.status == "missing" for each in below) else []
        reasons += [RESULTS] if any(each.again for each in below) and not reasons else []
        reasons = reasons or self.outdated(shown)
        return Status("stale" if reasons else "done", reasons, bool(reasons))

    def outdated(self, shown: Shown) -> list[str]:
        """Why something that is there, whatever it was made of, would be another one today."""
        recorded = self.records.json(shown.record) or {}
        return [why for why, digest in self._made_of(shown).items() if recorded.get(why) != digest]

    def _made_of(self, shown: Shown) -> dict[str, str]:
        """Digests of what decides the content: declarations and code, the results, and which of them are stale."""
        project = self.records.project
        declared: list[Any] = [(project.study(name), project.published(name)) for name in shown.studies]
        declared += [project.claims(), self._scale(), staleness.reporting_hash()]
        results = {str(record_file(kind, self.grid.scale, *each)): (kind, *each) for kind, *each in shown.results}
        hashes = {path: self._hash(Path(path)) for path in results}
        hashes |= {str(path): self._hash(path) for path in shown.needs}
        marks = {path: self.of_result(*each).reasons for path, each in results.items()}
        return {
            DECLARED: recipes.digest(declared),
            RESULTS: recipes.digest(hashes),
            MARKS: recipes.digest({path: reasons for path, reasons in marks.items() if reasons}),
        }

    def write_record(self, shown: Shown) -> None:
        """Record what ``shown`` was made of, after its other files."""
        write_json(self.records.file(shown.record), self._made_of(shown))

    @functools.cache  # noqa: B019
    def _scale(self) -> dict[str, Any]:
        return self.records.project.scale(self.grid.scale)

    def _hash(self, path: Path) -> str | None:
        file = self.records.file(path)
        return _hash_small(file, tuple(key_of(file))) if file.exists() else None


@functools.cache
def _hash_small(path: Path, key: tuple[int, ...]) -> str:
    return hash_file(path)


def all_files(grid: Grid, shown: Iterable[Shown]) -> list[Path]:
    """Every file of every result of a grid and of what shows them."""
    measured = [path for kind, run, name in results_of(grid) for path in result_files(kind, grid.scale, run, name)]
    return [*measured, *(path for each in shown for path in each.files)]
