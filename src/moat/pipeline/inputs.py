"""What the rules of the workflow ask for: input files, options of commands, digests of what decides a result.

Everything here looks at the project's files, and changes none. Options are lists of words, which the rules quote one by
one (``{params.options:q}``): what a configuration file says is never read by a shell.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moat.base import plugins
from moat.config import paths, recipes
from moat.config.grid import Figure, Grid, Run, Table, build_grid, initial_runs
from moat.config.project import Project
from moat.config.records import Records, locate, result_files
from moat.config.transfer import transfer_kinds, transfer_runs
from moat.provenance import staleness

# The run of a path that is an output of a rule.
RUN_WILDCARDS = Run("{dataset}", "{arch}", "{method}", "{seed}")
# The same with either of its weights: {weights} is "", or "-last" for those of the last epoch.
MEASURED_WILDCARDS = Run("{dataset}", "{arch}", "{method}", "{seed}", "{weights}")


class Inputs:
    """The input, parameter and resource functions of the rules: of a rule's ``wildcards`` where nothing else is said.

    Args:
        config: the workflow's configuration, as ``config/config.yaml`` has it.
        results: where the results of all scales lie, seen from the working directory. Input files are given below
            ``results/`` all the same: where this is another folder, Snakemake puts it in their place.

    Raises:
        ConfigError: an unknown scale or study; here, because later it would be a missing input file.
    """

    def __init__(self, project: Project, config: Mapping[str, Any], results: Path = Path("results")):
        self.project, self.config, self.results = project, config, results
        project.scale(config["scale"])
        for study in config["studies"]:
            project.study(study)

    @functools.cache  # noqa: B019 - one lives as long as the workflow
    def grid(self, scale: str) -> Grid:
        return build_grid(self.project, scale, self.config["studies"])

    @functools.cache  # noqa: B019
    def scale(self, name: str) -> dict[str, Any]:
        return self.project.scale(name)

    @functools.cache  # noqa: B019
    def records(self, scale: str) -> Records:
        return Records(self.results, scale, self.project)

    # -- patterns ------------------------------------------------------------
    def wildcard_constraints(self) -> dict[str, str]:
        """For every wildcard a pattern that matches the names that there are."""
        project = self.project
        return {
            "scale": one_of(project.names("scales")),
            "dataset": one_of(project.names("datasets")),
            "arch": one_of(plugins.archs()),
            "method": one_of(project.names("methods")),
            "suite": one_of(project.suites()),
            "probe": one_of(project.probes()),
            "study": one_of(project.names("studies")),
            "seed": r"\d+",
            "weights": "(-last)?",
            "item": r"[A-Za-z0-9_]+",
        }

    @functools.cache  # noqa: B019
    def methods_of_role(self, role: str) -> list[str]:
        """The methods that are ``expert`` (others start from them) or ``method``."""
        project = self.project
        return [name for name in project.names("methods") if project.method(name).get("role", "method") == role]

    # -- trainings -----------------------------------------------------------
    def run_digest(self, wildcards) -> str:
        """Changes exactly when the resolved recipe of a run does: this, not a file's time, re-trains it."""
        return self.records(wildcards.scale).run_digest(run_of(wildcards))

    def data_digest(self, wildcards) -> str:
        return recipes.digest(recipes.resolve_data(self.project, wildcards.scale, wildcards.dataset))

    def initial_models(self, wildcards) -> list[Path]:
        """The models that a training starts from."""
        return [folder / "model.safetensors" for folder in self._initial_folders(wildcards).values()]

    def initialize_options(self, wildcards) -> list[str]:
        return self._named("--initialize-from", self._initial_folders(wildcards))

    def _initial_folders(self, wildcards) -> dict[str, Path]:
        runs = self._initial_runs(wildcards.scale, run_of(wildcards))
        return {name: paths.run_dir(wildcards.scale, run) for name, run in runs.items()}

    @functools.cache  # noqa: B019
    def _initial_runs(self, scale: str, run: Run) -> dict[str, Run]:
        starts = self.grid(scale).initialize_from.get(run)
        return initial_runs(self.project, scale, run) if starts is None else dict(starts)

    # -- evaluations, checks, probes -----------------------------------------
    def run_files(self, wildcards) -> dict[str, Path]:
        """The finished run that an evaluation, a check or a probe looks at."""
        run = run_of(wildcards)
        model = paths.weights(wildcards.scale, run)
        return {"model": model, "run": paths.run_dir(wildcards.scale, run) / "run.json"}

    def corrupted_images(self, wildcards) -> list[Path]:
        """The published corrupted images of the data set, if there are any and the suite asks for their severities.

        `moat evaluate` finds them beside the data set.
        """
        published = f"{wildcards.dataset}-c"
        asked = self.project.suite(wildcards.suite).get("corruptions") == "cifar10-c"
        there = asked and published in self.project.names("datasets")
        return [paths.prepared(wildcards.scale, published)] if there else []

    def evaluation_digest(self, wildcards) -> str:
        return recipes.digest(self._resolved(recipes.resolve_evaluation, wildcards.scale, wildcards.suite))

    def checks_digest(self, wildcards) -> str:
        return recipes.digest(self._resolved(recipes.resolve_checks, wildcards.scale))

    def probe_digest(self, wildcards) -> str:
        return recipes.digest(self._resolved(recipes.resolve_probe, wildcards.scale, wildcards.probe))

    @functools.cache  # noqa: B019
    def _resolved(self, resolve, *names: str) -> dict[str, Any]:
        return resolve(self.project, *names)

    def evaluation_options(self, wildcards) -> list[str]:
        evaluation = self.scale(wildcards.scale)["evaluation"]
        return [*_size(evaluation["limit"], evaluation["batch_size"]), *_weights(wildcards)]

    def check_options(self, wildcards) -> list[str]:
        """What the scale lets the checks spend."""
        checks = self._resolved(recipes.resolve_checks, wildcards.scale)
        spent = [[f"--{key}", str(checks[key])] for key in ("steps", "queries") if key in checks]
        return [*_size(checks["limit"], checks["batch_size"]), *itertools.chain(*spent), *_weights(wildcards)]

    def probe_options(self, wildcards) -> list[str]:
        probe = self._resolved(recipes.resolve_probe, wildcards.scale, wildcards.probe)
        return _size(probe["images"], probe["batch_size"])

    def suites(self, *, transfer: bool) -> list[str]:
        """The suites with examples that are made on another run, or those without: each kind has a rule of its own."""
        return [suite for suite in self.project.suites() if bool(self._transfer_kinds(suite)) == transfer]

    def transfer_files(self, wildcards) -> list[Path]:
        """Of the runs that the suite's transferred examples are made on. Only runs of the grid are asked for."""
        folders = self._transfers(wildcards).values()
        return [folder / name for folder in folders for name in ("model.safetensors", "run.json")]

    def transfer_options(self, wildcards) -> list[str]:
        return self._named("--transfer-from", self._transfers(wildcards))

    def _transfers(self, wildcards) -> dict[str, Path]:
        kinds = self._transfer_kinds(wildcards.suite)
        if not kinds:
            return {}
        shown = self.grid(wildcards.scale).checks
        found = transfer_runs(self.project, wildcards.suite, run_of(wildcards), shown, kinds)
        return {kind: paths.run_dir(wildcards.scale, run) for kind, run in found.items()}

    def _named(self, option: str, folders: Mapping[str, Path]) -> list[str]:
        """The option once for each name and folder."""
        pairs = ([option, f"{name}={locate(self.results, folder)}"] for name, folder in folders.items())
        return list(itertools.chain(*pairs))

    @functools.cache  # noqa: B019
    def _transfer_kinds(self, suite: str) -> tuple[str, ...]:
        return transfer_kinds(self.project, suite)

    # -- what is made again although it is there -------------------------------
    def why_again(self, kind: str, wildcards) -> str | None:
        """Why a result that is there must be made again: it was cut short; or, with ``refresh=stale``, it is stale.

        Args:
            kind: as :meth:`moat.config.records.Records.status` takes it.
        """
        status, reasons = self.records(wildcards.scale).status(kind, run_of(wildcards), name_of(wildcards))
        if status == "damaged":
            return "it was cut short"
        return staleness.describe(reasons) if reasons and self.config["refresh"] == "stale" else None

    # -- tables, figures, page -------------------------------------------------
    def table(self, wildcards) -> Table:
        return self.grid(wildcards.scale).table(wildcards.study, wildcards.item)

    def figure(self, wildcards) -> Figure:
        return self.grid(wildcards.scale).figure(wildcards.study, wildcards.item)

    def table_inputs(self, wildcards) -> list[Path]:
        return inputs_of(self.table(wildcards), wildcards.scale)

    def figure_inputs(self, wildcards) -> list[Path]:
        """As of a table, and what probes took from models; or the cells of all tables."""
        figure = self.figure(wildcards)
        return [paths.cells(wildcards.scale)] if figure.shows == "cells" else inputs_of(figure, wildcards.scale)

    def tables(self, wildcards) -> list[str]:
        scale = wildcards.scale
        return [f"{paths.table(scale, table.study, table.name)}.csv" for table in self.grid(scale).tables]

    def figures(self, wildcards) -> list[str]:
        scale = wildcards.scale
        return [f"{paths.figure(scale, figure.study, figure.name)}.png" for figure in self.grid(scale).figures]

    def shown_digest(self, wildcards) -> str:
        """Changes when what declares the tables and figures of a study changes, or the code that draws them."""
        studies = [wildcards.study] if hasattr(wildcards, "study") else self.config["studies"]
        declared: list[Any] = [(self.project.study(name), self.project.published(name)) for name in studies]
        declared += [self.project.claims(), self.scale(wildcards.scale), staleness.reporting_hash()]
        return recipes.digest(declared)

    def stale_of_table(self, wildcards) -> dict[str, list[str]]:
        return self.stale_of(self.table(wildcards), wildcards.scale)

    def stale_of_figure(self, wildcards) -> dict[str, list[str]]:
        return self.stale_of(self.figure(wildcards), wildcards.scale)

    def stale_of_page(self, wildcards) -> dict[str, list[str]]:
        return self.stale_of(self.grid(wildcards.scale), wildcards.scale)

    def stale_of(self, shown: Table | Figure | Grid, scale: str) -> dict[str, list[str]]:
        """What a table, a figure or the page marks as stale, and why: it is made again when that changes."""
        found = {}
        for kind, run, name in _results_of(shown):
            _, reasons = self.records(scale).status(kind, run, name)
            if reasons:
                found[str(result_files(kind, scale, run, name)[0])] = reasons
        return found

    # -- targets ---------------------------------------------------------------
    def all_prepared(self, scale: str) -> list[Path]:
        """The data of every run, and the published corrupted images that evaluations use."""
        grid = self.grid(scale)
        found = {paths.prepared(scale, dataset) for dataset in grid.datasets}
        for evaluation in grid.evaluations:
            asked = SimpleNamespace(scale=scale, dataset=evaluation.run.dataset, suite=evaluation.suite)
            found.update(self.corrupted_images(asked))
        return sorted(found)

    def all_runs(self, scale: str, role: str) -> list[Path]:
        methods = self.methods_of_role(role)
        return [paths.run_dir(scale, run) / "run.json" for run in self.grid(scale).runs if run.method in methods]

    def all_evaluated(self, scale: str) -> list[Path]:
        """Evaluations, checks and probes."""
        results = [each for each in _results_of(self.grid(scale)) if each[0] != "run"]
        return [result_files(kind, scale, run, name)[0] for kind, run, name in results]

    # -- resources -------------------------------------------------------------
    def prepare_memory(self, wildcards, attempt) -> int:
        """MB for preparing a data set: twice its arrays, and the downloaded files, where images are read from those."""
        spec = self.project.dataset(wildcards.dataset)
        side = max(spec["image_size"], self.scale(wildcards.scale)["data"]["image_size"] or 0)
        arrays = sum(spec.get("images", {}).values()) * side**2 * spec["channels"]
        files = sum(file.get("size", 0) for file in spec["files"])
        encoded = files if spec["format"] in ("image_folder", "tiny_imagenet") else 0
        return self._capped("mem_mb", max(2000, 500 + (2 * arrays + encoded) // 10**6), attempt)

    def scaled_with_attempt(self, rule: str, resource: str) -> Callable[..., int]:
        """What the scale gives a rule; twice and three times that for its first retries, which may have lacked it."""

        def asked_for(wildcards, attempt):
            return self._capped(resource, self.scale(wildcards.scale)["resources"][rule][resource], attempt)

        return asked_for

    def _capped(self, resource: str, amount: int, attempt: int) -> int:
        limit = self.config["max_resources"][resource] or float("inf")
        return min(limit, min(attempt, 3) * amount)


def run_of(wildcards) -> Run:
    weights = "last" if getattr(wildcards, "weights", "") == "-last" else "best"
    return Run(wildcards.dataset, wildcards.arch, wildcards.method, int(wildcards.seed), weights)


def name_of(wildcards) -> str:
    """Of the suite or the probe; "" where there is neither."""
    return getattr(wildcards, "suite", "") or getattr(wildcards, "probe", "")


def one_of(names: Iterable[str]) -> str:
    """A pattern that matches exactly these names."""
    return "|".join(sorted(map(re.escape, names), reverse=True)) or "(?!)"


def inputs_of(shown: Table | Figure, scale: str) -> list[Path]:
    """What a table or figure is made of: its runs' records, their evaluations, checks and probes."""
    folders = [paths.run_dir(scale, run) for run in shown.runs]
    records = [folder / name for folder in folders for name in ("run.json", "history.csv")]
    measured = [each for each in _results_of(shown) if each[0] != "run"]
    return records + [result_files(kind, scale, run, name)[0] for kind, run, name in measured]


def _results_of(shown: Table | Figure | Grid) -> Iterator[tuple[str, Run, str]]:
    """Kind, run and name of all results that a table, a figure or a whole grid rests on."""
    yield from (("run", run, "") for run in shown.runs)
    yield from (("evaluation", evaluation.run, evaluation.suite) for evaluation in shown.evaluations)
    yield from (("check", run, "") for run in shown.checks)
    yield from (("probe", probe.run, probe.name) for probe in getattr(shown, "probes", ()))


def _weights(wildcards) -> list[str]:
    return ["--weights", "last"] if run_of(wildcards).weights == "last" else []


def _size(limit: int | None, batch_size: int) -> list[str]:
    """Always with a limit: without one, a command takes the one that was in force when the run was trained."""
    return ["--batch-size", str(batch_size), "--limit", str(limit or "all")]
