"""What the rules of the workflow ask for: input files, options of commands, digests of what decides a result.

Everything here looks at the project's files, and changes none. Options are lists of words, which the rules quote one by
one (``{params.options:q}``): what a configuration file says is never read by a shell.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from moat.base import plugins
from moat.config import paths, recipes
from moat.config.grid import Figure, Grid, Run, Table, build_grid, initial_runs
from moat.config.project import Project
from moat.config.records import Records, locate, result_files
from moat.config.shown import Shown, of_cells, of_figure, of_page, of_table, results_of, select, selection_of
from moat.config.status import Statuses, all_files
from moat.config.transfer import transfer_kinds, transfer_runs
from moat.pipeline.attempts import failures
from moat.provenance import staleness

# The run of a path that is an output of a rule.
RUN_WILDCARDS = Run("{dataset}", "{arch}", "{method}", "{seed}")
# The same with either of its weights: {weights} is "", or "-last" for those of the last epoch.
MEASURED_WILDCARDS = Run("{dataset}", "{arch}", "{method}", "{seed}", "{weights}")
# Where the jobs of a rule say what they do.
_NET = "{dataset}/{arch}/{method}/seed{seed}"
LOGS = {
    "prepare": "logs/{scale}/prepare/{dataset}.log",
    "train": f"logs/{{scale}}/train/{_NET}.log",
    "evaluate": f"logs/{{scale}}/evaluate/{_NET}{{weights}}/{{suite}}.log",
    "verify": f"logs/{{scale}}/verify/{_NET}{{weights}}.log",
    "probe": f"logs/{{scale}}/probe/{_NET}/{{probe}}.log",
}
# Added to the priority of what the page's first table shows: more than the trainings of other tables are ahead of it.
_FIRST = 6
# How an attempt may have ended that lacked a resource. A training goes on from where it was: time is nothing it lacks.
_LACKED = {"mem_mb": ("memory", "killed"), "runtime": ("time", "killed")}


class Inputs:
    """The input, parameter and resource functions of the rules: of a rule's ``wildcards`` where nothing else is said.

    Args:
        config: the workflow's configuration, as ``config/config.yaml`` has it.
        results: where the results of all scales lie, seen from the working directory. Input files are given below
            ``results/`` all the same: where this is another folder, Snakemake puts it in their place.
        logs: the same of the rules' logs.

    Raises:
        ConfigError: an unknown scale or study; here, because later it would be a missing input file.
    """

    def __init__(
        self, project: Project, config: Mapping[str, Any], results: Path = Path("results"), logs: Path = Path("logs")
    ):
        self.project, self.config, self.results, self.logs = project, config, results, logs
        project.scale(config["scale"])
        for study in config["studies"]:
            project.study(study)
        self.selection = selection_of(project, config["studies"])

    @functools.cache  # noqa: B019 - one lives as long as the workflow
    def grid(self, scale: str) -> Grid:
        return select(build_grid(self.project, scale, self.config["studies"]), self.selection)

    @functools.cache  # noqa: B019
    def statuses(self, scale: str) -> Statuses:
        config = self.config
        return Statuses(self.records(scale), self.grid(scale), config["studies"], self.selection, config["refresh"])

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
        return self._digest(recipes.resolve_data, wildcards.scale, wildcards.dataset)

    def initial_models(self, wildcards) -> list[Path]:
        """The finished runs that a training starts from."""
        starts = self._initial_runs(wildcards.scale, run_of(wildcards)).values()
        return [path for run in starts for path in self._finished(wildcards.scale, run)]

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
        record, *weights = self._finished(wildcards.scale, run_of(wildcards))
        return {"run": record, **({"weights": weights} if weights else {})}

    def _finished(self, scale: str, run: Run) -> list[Path]:
        """The record of a run, which has the sha256 of its weights; and the weights only where they were lost.

        Snakemake compares the content of inputs, several times each: of a record, that takes no time. Before the run is
        made its weights are no input either: the list must be the same once they are there, because a workflow that
        takes this one as a module may make again whatever has another list of inputs.
        """
        record, weights = paths.run_dir(scale, run) / "run.json", paths.weights(scale, run)
        file = self.records(scale).file
        lost = file(record).exists() and not file(weights).exists()
        return [record, *([weights] if lost else [])]

    def corrupted_images(self, wildcards) -> list[Path]:
        """The published corrupted images of the data set, if there are any and the suite asks for their severities.

        `moat evaluate` finds them beside the data set.
        """
        published = f"{wildcards.dataset}-c"
        asked = self.project.suite(wildcards.suite).get("corruptions") == "cifar10-c"
        there = asked and published in self.project.names("datasets")
        return [paths.prepared(wildcards.scale, published)] if there else []

    def evaluation_digest(self, wildcards) -> str:
        return self._digest(recipes.resolve_evaluation, wildcards.scale, wildcards.suite)

    def checks_digest(self, wildcards) -> str:
        return self._digest(recipes.resolve_checks, wildcards.scale)

    def probe_digest(self, wildcards) -> str:
        return self._digest(recipes.resolve_probe, wildcards.scale, wildcards.probe)

    @functools.cache  # noqa: B019 - thousands of jobs ask for the digests of a few dozen suites
    def _digest(self, resolve, *names: str) -> str:
        return recipes.digest(self._resolved(resolve, *names))

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
        runs = self._transfers(wildcards).values()
        return [path for run in runs for path in self._finished(wildcards.scale, run)]

    def transfer_options(self, wildcards) -> list[str]:
        runs = self._transfers(wildcards)
        return self._named("--transfer-from", {kind: paths.run_dir(wildcards.scale, run) for kind, run in runs.items()})

    def _transfers(self, wildcards) -> dict[str, Run]:
        kinds = self._transfer_kinds(wildcards.suite)
        if not kinds:
            return {}
        shown = self.grid(wildcards.scale).checks
        return transfer_runs(self.project, wildcards.suite, run_of(wildcards), shown, kinds)

    def _named(self, option: str, folders: Mapping[str, Path]) -> list[str]:
        """The option once for each name and folder."""
        pairs = ([option, f"{name}={locate(self.results, folder)}"] for name, folder in folders.items())
        return list(itertools.chain(*pairs))

    @functools.cache  # noqa: B019
    def _transfer_kinds(self, suite: str) -> tuple[str, ...]:
        return transfer_kinds(self.project, suite)

    # -- order -----------------------------------------------------------------
    def priority(self, kind: str, otherwise: int) -> Callable[[Any], int]:
        """A priority function: ``otherwise``, and more for the results of the table that the page begins with.

        Args:
            kind: "run", "evaluation" or "check".
        """
        return lambda wildcards: (
            otherwise + _FIRST * ((kind, run_of(wildcards), name_of(wildcards)) in self._first_results(wildcards.scale))
        )

    @functools.cache  # noqa: B019
    def _first_results(self, scale: str) -> frozenset[tuple[str, Run, str]]:
        return frozenset(result for table in self.grid(scale).tables[:1] for result in results_of(table))

    # -- what is made again although it is there -------------------------------
    def why_again(self, kind: str, wildcards) -> str | None:
        """Why what is there must be made again, as far as times and parameters do not tell Snakemake; or None.

        A result: it was cut short, was told or made of something else, or is stale and ``refresh`` asks for that. What
        shows results: its record says that it was made of something else.

        Args:
            kind: as :meth:`moat.config.records.Records.status` takes it, or one of :class:`moat.config.shown.Shown`.
        """
        statuses = self.statuses(wildcards.scale)
        if kind in ("table", "figure", "cells", "page"):
            shown = self.shown(kind, wildcards)
            there = self.records(wildcards.scale).file(shown.path).exists()
            return staleness.describe(statuses.outdated(shown)) or None if there else None
        found = statuses.of_result(kind, run_of(wildcards), name_of(wildcards))
        if found.damaged:
            return "it was cut short"
        return staleness.describe(statuses.own_reasons(found)) or None

    def made_again(self, kind: str, wildcards) -> Path:
        """The file that stands for what a job of this kind makes, where it lies."""
        if kind in ("table", "figure", "cells", "page"):
            return locate(self.results, self.shown(kind, wildcards).path)
        return locate(self.results, result_files(kind, wildcards.scale, run_of(wildcards), name_of(wildcards))[0])

    # -- tables, figures, page -------------------------------------------------
    def table(self, wildcards) -> Table:
        return self.grid(wildcards.scale).table(wildcards.study, wildcards.item)

    def figure(self, wildcards) -> Figure:
        return self.grid(wildcards.scale).figure(wildcards.study, wildcards.item)

    def shown(self, kind: str, wildcards) -> Shown:
        """What a job of the rules tabulate, draw, cells or page makes."""
        grid, studies = self.grid(wildcards.scale), self.config["studies"]
        if kind == "table":
            return of_table(grid.scale, self.table(wildcards))
        if kind == "figure":
            return of_figure(grid, studies, self.figure(wildcards))
        return {"cells": of_cells, "page": of_page}[kind](grid, studies, self.selection)

    def shown_inputs(self, kind: str) -> Callable[[Any], list[Path]]:
        """An input function: what such a job reads."""
        return lambda wildcards: inputs_of(self.shown(kind, wildcards), wildcards.scale)

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
        runs = [run for run in self.grid(scale).runs if run.method in methods]
        return [path for run in runs for path in result_files("run", scale, run)]

    def all_evaluated(self, scale: str) -> list[Path]:
        """Evaluations, checks and probes."""
        results = [each for each in results_of(self.grid(scale)) if each[0] != "run"]
        return [path for kind, run, name in results for path in result_files(kind, scale, run, name)]

    def everything(self, scale: str) -> list[Path]:
        """All that the studies promise: weights and records of runs, evaluations, checks, tables, figures, the page."""
        return all_files(self.grid(scale), self.statuses(scale).shown)

    # -- resources -------------------------------------------------------------
    def prepare_memory(self, wildcards, attempt) -> int:
        """MB for preparing a data set: twice its arrays, and the downloaded files, where images are read from those."""
        spec = self.project.dataset(wildcards.dataset)
        side = max(spec["image_size"], self.scale(wildcards.scale)["data"]["image_size"] or 0)
        arrays = sum(spec.get("images", {}).values()) * side**2 * spec["channels"]
        files = sum(file.get("size", 0) for file in spec["files"])
        encoded = files if spec["format"] in ("image_folder", "tiny_imagenet") else 0
        return self._capped("prepare", "mem_mb", max(2000, 500 + (2 * arrays + encoded) // 10**6), wildcards, attempt)

    def resource(self, rule: str, resource: str) -> Callable[..., int]:
        """What the scale gives a rule; twice and three times that where earlier attempts may have lacked it."""
        given = "evaluate" if rule == "probe" else rule

        def asked_for(wildcards, attempt):
            amount = self.scale(wildcards.scale)["resources"][given][resource]
            return self._capped(rule, resource, amount, wildcards, attempt)

        return asked_for

    def _capped(self, rule: str, resource: str, amount: int, wildcards, attempt: int) -> int:
        limit = self.config["max_resources"][resource] or float("inf")
        return min(limit, amount * (1 + self._times_lacked(rule, resource, wildcards, attempt)))

    def _times_lacked(self, rule: str, resource: str, wildcards, attempt: int) -> int:
        """How many of the earlier attempts of this call may have failed for lack of a resource; 2 at most."""
        if attempt == 1 or (rule, resource) == ("train", "runtime"):
            return 0
        log = self.logs / Path(LOGS[rule].format(**vars(wildcards))).relative_to("logs")
        lacked = [failure in _LACKED[resource] for failure in failures(log)[1 - attempt :]]
        return min(2, sum(lacked))


def run_of(wildcards) -> Run:
    weights = "last" if getattr(wildcards, "weights", "") == "-last" else "best"
    return Run(wildcards.dataset, wildcards.arch, wildcards.method, int(wildcards.seed), weights)


def name_of(wildcards) -> str:
    """Of the suite or the probe; "" where there is neither."""
    return getattr(wildcards, "suite", "") or getattr(wildcards, "probe", "")


def one_of(names: Iterable[str]) -> str:
    """A pattern that matches exactly these names."""
    return "|".join(sorted(map(re.escape, names), reverse=True)) or "(?!)"


def inputs_of(shown: Shown, scale: str) -> list[Path]:
    """What a table, a figure, the cells or the page are made of: records and histories, rows, and what else it needs.

    The page reads the figures' pictures, and the points beside them.
    """
    read = [path for kind, run, name in shown.results for path in result_files(kind, scale, run, name)]
    return [*(path for path in read if path.name not in paths.WEIGHTS.values()), *shown.needs]


def _weights(wildcards) -> list[str]:
    return ["--weights", "last"] if run_of(wildcards).weights == "last" else []


def _size(limit: int | None, batch_size: int) -> list[str]:
    """Always with a limit: without one, a command takes the one that was in force when the run was trained."""
    return ["--batch-size", str(batch_size), "--limit", str(limit or "all")]
