"""The jobs of a grid that need a GPU (runs, evaluations, checks and probes), and the work of each."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base import plugins
from moat.base.errors import DataError
from moat.base.plugins import attack_passes
from moat.config import paths
from moat.config.grid import Evaluation, Grid, Probe, Run
from moat.config.project import Project
from moat.config.recipes import resolve_recipe
from moat.config.transfer import transfer_kinds, transfer_runs
from moat.planning.cost import (
    Work,
    checks_passes,
    fit_passes,
    knows_setting,
    knows_training,
    setting_passes,
    training_passes,
    validation_passes,
)
from moat.planning.macs import Net, macs_of, net_of
from moat.planning.status import plan


@dataclass(frozen=True)
class Job:
    """One run, evaluation, set of checks or probe.

    Attributes:
        path: its main output, which identifies it.
        kind: "run", "evaluation", "check" or "probe".
        status: "done", "stale" or "missing": whatever the workflow makes, again or for the first time.
        needs: paths of the jobs that it depends on.
        work: multiply-adds.
        precision: the recipe's, for training: "float32", "bf16" or "auto".
        net: its net; ``macs``: multiply-adds of one forward pass of one image.
    """

    path: str
    kind: str
    status: str
    run: Run
    suite: str | None
    needs: tuple[str, ...]
    work: Work
    precision: str
    net: Net
    macs: int


class Workload:
    """The work of the jobs of one scale. Recipes, nets and settings are read only once."""

    def __init__(self, project: Project, scale: str):
        self.project, self.name, self.scale = project, scale, project.scale(scale)
        self.planner = project.planner()
        self.families: Mapping[str, float] = attack_passes()

    @functools.cache  # noqa: B019 - the object lives until the command ends
    def recipe(self, method: str) -> dict[str, Any]:
        return resolve_recipe(self.project, self.name, method)

    @functools.cache  # noqa: B019
    def net(self, dataset: str, arch: str, method: str) -> Net:
        return net_of(self.project, self.name, Run(dataset, arch, method, 0), self.recipe(method))

    @functools.cache  # noqa: B019
    def images(self, dataset: str) -> dict[str, int]:
        """The number of images (train, val, test) that the prepared file has, or will have."""
        prepared = self.project.root / paths.prepared(self.name, dataset)
        if prepared.exists():
            return prepared_images(prepared)
        spec, limits = self.project.dataset(dataset), self.scale["data"]
        if "images" not in spec:
            where = f"config/datasets/{dataset}.yaml"
            raise DataError(f"{where}: says no images: {{train, test}}, and {prepared} does not exist either")
        held_out = spec["validation"] if limits["validation"] is None else limits["validation"]
        train = spec["images"]["train"] - held_out
        return {
            "train": min(train, limits["train_limit"] or train),
            "val": held_out,
            "test": min(spec["images"]["test"], limits["test_limit"] or spec["images"]["test"]),
        }

    @functools.cache  # noqa: B019
    def training(self, dataset: str, method: str) -> Work:
        """The work of one run, in passes: multiply it by the net's multiply-adds."""
        recipe, images = self.recipe(method), self.images(dataset)
        validation = recipe["validation"]["setting"]
        where = f"config/methods/{method}.yaml: validation.setting"
        attack = self.project.attack(validation, where=where)
        # Of a net with a router, both gradients are measured.
        routed = plugins.mixture_of(recipe["class"], recipe.get("model", {})) and attack["attack"] != "none"
        return Work(
            train=recipe["epochs"] * images["train"] * training_passes(recipe),
            evaluate=recipe["epochs"]
            * min(images["val"], recipe["validation"].get("images") or images["val"])
            * validation_passes(recipe, attack, self.families)
            * (2 if routed else 1)
            + fit_passes(recipe, images["val"]),
            unknown=frozenset([] if knows_training(recipe) else [f"method {method}"])
            | self._unknown({validation: attack}),
        )

    def _unknown(self, settings: Mapping[str, Mapping[str, Any]]) -> frozenset[str]:
        """Those of the attack settings of which nothing tells how many passes they take."""
        return frozenset(f"attack {name}" for name, each in settings.items() if not knows_setting(each, self.families))

    @functools.cache  # noqa: B019
    def evaluation(self, dataset: str, suite: str, method: str) -> Work:
        """The work of one evaluation, in passes. Settings for experts cost nothing if the method has none."""
        examples = self._examples(dataset)
        recipe = self.recipe(method)
        mixture = plugins.mixture_of(recipe["class"], recipe.get("model", {}))
        settings = self.project.attack_settings(suite, self.name)
        for members in self.project.worst_cases(suite, self.name).values():
            settings |= members
        settings = {name: setting for name, setting in settings.items() if mixture or "requires" not in setting}
        passes = sum(
            min(examples, setting.get("limit") or examples) * setting_passes(setting, self.families)
            for setting in settings.values()
        )
        return Work(evaluate=passes, unknown=self._unknown(settings))

    @functools.cache  # noqa: B019
    def transfer_kinds(self, suite: str) -> tuple[str, ...]:
        return transfer_kinds(self.project, suite)

    def checks(self, dataset: str) -> Work:
        """The work of the checks on one model, in passes."""
        checks, budget = self.planner["checks"], self.scale.get("checks", {})
        test = self.images(dataset)["test"]
        own = budget["limit"] or test if "limit" in budget else min(checks["examples"], self._examples(dataset))
        examples = min(own, test)
        return Work(evaluate=checks_passes(checks, budget) * examples)

    def probe(self, dataset: str, name: str) -> Work:
        """The work of a probe, in passes. Only its attack is counted; a probe without one looks at weights."""
        probe = self.project.probe(name)
        if "setting" not in probe:
            return Work()
        examples = self._examples(dataset)
        where = f"config/probes.yaml: {name}.setting"
        setting = self.project.attack(probe["setting"], where=where, scale=self.name)
        return Work(
            evaluate=min(examples, probe.get("images", examples)) * setting_passes(setting, self.families),
            unknown=self._unknown({probe["setting"]: setting}),
        )

    def _examples(self, dataset: str) -> int:
        test = self.images(dataset)["test"]
        return min(test, self.scale["evaluation"]["limit"] or test)


def prepared_images(path: Path) -> dict[str, int]:
    """Images per split of a prepared file, read from its header.

    Raises:
        DataError: not a prepared data set.
    """
    try:
        with open(path, "rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
        return {
            split: header[f"{split}.images"]["shape"][0] if f"{split}.images" in header else 0
            for split in ("train", "val", "test")
        }
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError, RecursionError) as error:
        raise DataError(f"{path}: not a prepared data set ({error}); `moat prepare` makes it") from error


def jobs_of(project: Project, grid: Grid, entries: Iterable[Mapping[str, Any]] | None = None) -> dict[str, Job]:
    """Path -> job, in topological order.

    Args:
        entries: of :func:`moat.planning.status.plan`, where they are at hand.

    Raises:
        ConfigError, DataError: a job whose cost cannot be estimated; names the file.
    """
    load = Workload(project, grid.scale)
    entries = plan(project, grid) if entries is None else entries
    status = {entry["path"]: "missing" if entry["again"] else entry["status"] for entry in entries}
    found = list(_passes(load, grid))
    macs = macs_of(load.net(run.dataset, run.arch, run.method) for _, _, run, _, _, _ in found)
    jobs = {}
    for path, kind, run, suite, needs, passes in found:
        net = load.net(run.dataset, run.arch, run.method)
        work = Work(passes.train * macs[net], passes.evaluate * macs[net], passes.unknown)
        precision = load.recipe(run.method)["precision"]
        jobs[path] = Job(path, kind, status[path], run, suite, needs, work, precision, net, macs[net])
    return jobs


def _passes(load: Workload, grid: Grid) -> Iterator[tuple]:
    scale = grid.scale
    for run in grid.runs:
        needs = tuple(run_path(scale, other) for other in grid.initialize_from[run].values())
        yield run_path(scale, run), "run", run, None, needs, load.training(run.dataset, run.method)
    for each in grid.evaluations:
        work = load.evaluation(each.run.dataset, each.suite, each.run.method)
        kinds = load.transfer_kinds(each.suite)
        surrogates = transfer_runs(load.project, each.suite, each.run, grid.checks, kinds).values()
        needs = tuple(run_path(scale, run) for run in (each.run, *surrogates))
        yield evaluation_path(scale, each), "evaluation", each.run, each.suite, needs, work
    for run in grid.checks:
        yield check_path(scale, run), "check", run, None, (run_path(scale, run),), load.checks(run.dataset)
    for probe in grid.probes:
        work = load.probe(probe.run.dataset, probe.name)
        yield probe_path(scale, probe), "probe", probe.run, None, (run_path(scale, probe.run),), work


def run_path(scale: str, run: Run) -> str:
    return str(paths.run_dir(scale, run) / "run.json")


def evaluation_path(scale: str, evaluation: Evaluation) -> str:
    return str(paths.evaluation(scale, evaluation.run, evaluation.suite))


def check_path(scale: str, run: Run) -> str:
    return str(paths.checks(scale, run))


def probe_path(scale: str, probe: Probe) -> str:
    return str(paths.probe(scale, probe.run, probe.name))
