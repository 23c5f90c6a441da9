"""Which other run of the grid the transferred examples of an evaluation are made on."""

from collections.abc import Iterable

from moat.base.errors import ConfigError, unknown_name
from moat.config.grid_types import Run
from moat.config.project import Project


def transfer_kinds(project: Project, suite: str) -> tuple[str, ...]:
    """The values of ``transfer_from`` among the suite's settings: "seed", "arch"."""
    groups = [project.attack_settings(suite), *project.worst_cases(suite).values()]
    kinds = {setting.get("transfer_from") for settings in groups for setting in settings.values()}
    return tuple(sorted(kinds - {None}))


def transfer_runs(project: Project, suite: str, run: Run, runs: Iterable[Run]) -> dict[str, Run]:
    """Kind -> the run to transfer from, of the ``runs`` that are trained anyway; a kind without one is left out.

    "seed": the next seed of the same method; where there is a single one, the same seed of the first method in the
    suite's ``transfer_methods`` that is another one. "arch": the same method and seed on the first other net.

    Raises:
        ConfigError: ``transfer_methods`` names a method that does not exist.
    """
    kinds = transfer_kinds(project, suite)
    if not kinds:
        return {}
    runs = [other for other in runs if other.dataset == run.dataset and other != run]
    candidates = {"seed": _siblings(project, suite, run, runs), "arch": _other_nets(run, runs)}
    return {kind: candidates[kind][0] for kind in kinds if candidates[kind]}


def _siblings(project: Project, suite: str, run: Run, runs: list[Run]) -> list[Run]:
    same_net = [other for other in runs if other.arch == run.arch]
    seeds = sorted(other for other in same_net if other.method == run.method)
    later = [other for other in seeds if other.seed > run.seed]
    methods = project.suite(suite).get("transfer_methods", [])
    for method in methods:
        if method not in project.names("methods"):
            what = unknown_name(method, project.names("methods"), what="method")
            raise ConfigError(f"config/suites.yaml: {suite}: transfer_methods: {what}")
    stand_ins = [other for method in methods for other in same_net if (other.method, other.seed) == (method, run.seed)]
    return [*later, *seeds, *(other for other in stand_ins if other.method != run.method)]


def _other_nets(run: Run, runs: list[Run]) -> list[Run]:
    return [other for other in runs if (other.method, other.seed) == (run.method, run.seed) and other.arch != run.arch]
