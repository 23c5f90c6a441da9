"""The surrogate of a transfer attack: the other run of the grid on which its examples are made."""

from collections.abc import Iterable

from moat.base.errors import ConfigError, unknown_name
from moat.config.grid_types import Run
from moat.config.project import Project


def transfer_kinds(project: Project, suite: str) -> tuple[str, ...]:
    """The values of ``transfer_from`` among the suite's settings: "seed", "arch"."""
    groups = [project.attack_settings(suite), *project.worst_cases(suite).values()]
    kinds = {setting.get("transfer_from") for settings in groups for setting in settings.values()}
    return tuple(sorted(kinds - {None}))


def transfer_runs(
    project: Project, suite: str, run: Run, runs: Iterable[Run], kinds: Iterable[str] | None = None
) -> dict[str, Run]:
    """Kind -> the run to transfer from, out of ``runs``, which are trained anyway; a kind without one is left out.

    "seed": the next seed of the same method; if there is only one, the same seed of the first other method in the
    suite's ``transfer_methods``. "arch": the same method and seed on the first other net.

    Args:
        kinds: those of the suite, where they are known already.

    Raises:
        ConfigError: ``transfer_methods`` names a method that does not exist.
    """
    kinds = transfer_kinds(project, suite) if kinds is None else kinds
    if not kinds:
        return {}
    best = (other for other in runs if other.weights == "best")
    runs = [other for other in best if other.dataset == run.dataset and other != run.training]
    same = [other for other in runs if (other.method, other.seed) == (run.method, run.seed)]
    candidates = {
        "seed": _siblings(project, suite, run, runs),
        "arch": [other for other in same if other.arch != run.arch],
    }
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
    others = [other for method in methods for other in same_net if (other.method, other.seed) == (method, run.seed)]
    return [*later, *seeds, *(other for other in others if other.method != run.method)]
