"""The evidence of a scale: the small files that git keeps below ``results/evidence/<scale>``.

Rows and records say what was measured; tables, figures and the page are made from them again. Weights are large: those
of a few headline nets at most.
"""

import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from moat.base.errors import ConfigError, unknown_name
from moat.base.files import atomic_path, write_json, write_text
from moat.config import paths
from moat.config.grid import Grid, Run
from moat.config.records import EVIDENCE_RECORD, Records, locate
from moat.provenance import environment

#: Bytes that one scale's evidence may have, and how many nets' weights may be among it.
LIMIT, HEADLINES = 60 * 10**6, 6
# What is copied. Other files beside it, such as the README, are the user's.
_MEASURED = ("runs", "evaluations", "checks", "probes")


def headline_runs(grid: Grid, names: Iterable[str]) -> list[Run]:
    """The runs of these names, ``<dataset>/<arch>/<method>/seed<k>``.

    Raises:
        ConfigError: the scale has no such run, or they are more than :data:`HEADLINES`.
    """
    known, names = {paths.run_name(run): run for run in grid.runs}, list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            raise ConfigError(unknown_name(name, known, what=f"run of scale {grid.scale}"))
    if len(names) > HEADLINES:
        raise ConfigError(f"{len(names)} nets' weights to be published: allowed: at most {HEADLINES}")
    return [known[name] for name in names]


def files_of(grid: Grid, weights: Collection[Run]) -> list[Path]:
    """The rows and records of a grid as paths below ``results/<scale>``, and the weights of some runs."""
    scale, found = grid.scale, []
    for run in grid.runs:
        folder = paths.run_dir(scale, run)
        found += [folder / "run.json", folder / "history.csv"]
        found += [paths.weights(scale, run)] if run in weights else []
    for evaluation in grid.evaluations:
        rows = paths.evaluation(scale, evaluation.run, evaluation.suite)
        found += [rows, rows.with_suffix(".json")]
    found += [paths.checks(scale, run) for run in grid.checks]
    for probe in grid.probes:
        arrays = paths.probe(scale, probe.run, probe.name)
        found += [arrays, arrays.with_suffix(".json")]
    return found


def copy(results: Records, grid: Grid, weights: Collection[Run], evidence: Path, *, allow_missing: bool) -> list[Path]:
    """Copy rows, records and some weights to ``evidence/<scale>``; remove there what the grid no longer asks for.

    Returns:
        What the grid asks for and is not there.

    Raises:
        ConfigError: published rows or records would be lost or headline weights are missing, without
            ``allow_missing``; or the size exceeds :data:`LIMIT`. Nothing was written.
    """
    asked = files_of(grid, weights)
    there = [path for path in asked if results.file(path).exists()]
    missing = [path for path in asked if path not in set(there)]
    lacking = [str(path) for path in missing if path.suffix == ".safetensors" and "runs" in path.parts]
    if lacking and not allow_missing:
        raise ConfigError(
            f"weights to be published are not there: {', '.join(lacking)}; --allow-missing publishes without them"
        )
    published = [path for path in missing if locate(evidence, path).exists()]
    if published and not allow_missing:
        raise ConfigError(
            f"{locate(evidence, published[0])} is published and has no successor in {results.file(published[0])}"
            f"{more(published)}: the evidence would lose results; --allow-missing publishes without them"
        )
    _check_size(grid.scale, {path: results.file(path).stat().st_size for path in there})
    folder = locate(evidence, paths.results(grid.scale))
    for path in there:
        target = locate(evidence, path)
        if not _is_same(results.file(path), target):
            with atomic_path(target) as temporary:
                shutil.copyfile(results.file(path), temporary)
    kept = {locate(evidence, path) for path in there}
    for path in (each for part in _MEASURED for each in (folder / part).rglob("*")):
        if path.is_file() and path not in kept:
            path.unlink()
    return missing


def finish(grid: Grid, studies: Iterable[str], evidence: Path, project_root: Path) -> int:
    """Write the record, and a README where there is none; return the evidence's size in bytes.

    Raises:
        ConfigError: with tables, figures and page it exceeds :data:`LIMIT`.
    """
    folder, scale = locate(evidence, paths.results(grid.scale)), grid.scale
    write_json(folder / EVIDENCE_RECORD, {"scale": scale, "studies": list(studies)})
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", _readme(scale, environment.git_commit(project_root)))
    sizes = {
        paths.results(scale) / path.relative_to(folder): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file()
    }
    _check_size(scale, sizes)
    return sum(sizes.values())


def more(items: Collection) -> str:
    """`` and 3 more``, after the first of them."""
    return f" and {len(items) - 1} more" if len(items) > 1 else ""


def _is_same(source: Path, target: Path) -> bool:
    return target.exists() and source.read_bytes() == target.read_bytes()


def _check_size(scale: str, sizes: dict[Path, int]) -> None:
    """
    Raises:
        ConfigError: more than :data:`LIMIT`; with a table of what takes how much.
    """
    total = sum(sizes.values())
    if total <= LIMIT:
        return
    parts: dict[str, int] = {}
    for path, size in sizes.items():
        name = path.relative_to(paths.results(scale)).parts[0]
        name = "weights" if path.name == paths.WEIGHTS["best"] and name == "runs" else name
        parts[name] = parts.get(name, 0) + size
    table = [f"  {name:12} {size / 10**6:8.1f} MB" for name, size in sorted(parts.items(), key=lambda part: -part[1])]
    said = f"the evidence of {scale} would have {total / 10**6:.1f} MB; allowed: {LIMIT / 10**6:.0f} MB, because git"
    raise ConfigError("\n".join([f"{said} keeps it: fewer weights, examples or suites", *table]))


def _readme(scale: str, commit: str | None) -> str:
    made = f" at commit {commit}" if commit else ""
    return (
        f"# The evidence of scale `{scale}`\n\n"
        f"Published by `moat publish --scale {scale}`{made}: one row per attack setting and image\n"
        "(`evaluations/`), the records and histories of the trainings (`runs/`), the checks, and the tables, figures\n"
        "and page made from them.\n"
        f"`moat report --results {paths.evidence()}/{scale}` renders the page again.\n"
    )
