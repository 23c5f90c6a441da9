"""Attack one model with a suite and write one row per (setting, example). Resumes with the attack it was stopped in."""

import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError
from moat.base.files import check_writable, write_json
from moat.commands.options import (
    FinishedRun,
    TargetRequest,
    add_target_arguments,
    in_work,
    target_request,
)
from moat.config.project import Project
from moat.config.recipes import digest, resolve_evaluation
from moat.machine import devices
from moat.machine.usage import Usage
from moat.provenance import staleness
from moat.training.run_record import read_run

# Corrupted images, made once for all evaluations of a data set.
CORRUPTED = Path("work") / "corrupted"
RESUMES = "the same command continues with the attack setting it was in"


@dataclass(frozen=True)
class Request:
    """An evaluation.

    Attributes:
        settings, worst_cases: the suite's, at the scale whose changes apply.
        weakened: setting -> what that scale changes of it, in words.
        transfer_from: "seed" or "arch" -> the run whose model examples are transferred from.
        out: the rows (.parquet); their description (.json) is written beside.
        journal: the file of what is measured so far.
        robustbench: also write a RobustBench entry there.
        recipe: of the run's method, for that entry; empty for a model from elsewhere.
        recipe_digest: of all that decides the evaluation but the model; None without a scale.
    """

    target: TargetRequest
    suite: str
    settings: Mapping[str, Mapping[str, Any]]
    weakened: Mapping[str, str]
    worst_cases: Mapping[str, Mapping[str, Mapping[str, Any]]]
    transfer_from: Mapping[str, FinishedRun]
    out: Path
    journal: Path
    robustbench: Path | None
    recipe: Mapping[str, Any]
    recipe_digest: str | None
    device: str
    threads: int


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--suite", required=True, help="a name from config/suites.yaml (`moat list suites`)")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="rows (.parquet), a .json beside; folders are made"
    )
    parser.add_argument(
        "--journal", type=Path, metavar="FILE", help="what is measured so far (default: work/ and the path of --out)"
    )
    parser.add_argument("--scale", help="its changes to attack settings apply (default: the run's scale)")
    parser.add_argument(
        "--transfer-from",
        action="append",
        default=[],
        metavar="[seed=|arch=]RUN",
        help="a run to transfer examples from: another seed (or method), or another net; may be given twice",
    )
    parser.add_argument("--robustbench", type=Path, metavar="FILE", help="also write a RobustBench entry (.json)")
    add_target_arguments(parser)


def request(arguments: Namespace) -> Request:
    if arguments.out.suffix != ".parquet":
        raise ConfigError(f"--out {arguments.out}: the name must end in .parquet")
    project = Project(arguments.project)
    project.suite(arguments.suite)
    if arguments.scale is not None:
        project.scale(arguments.scale)
    target = target_request(arguments, project, scale=arguments.scale)
    # The scale of a run from elsewhere may be unknown here: its suite is then as declared.
    scale = arguments.scale or target.record.get("scale")
    scale = scale if scale in project.names("scales") else None
    if scale:
        resolved = resolve_evaluation(project, scale, arguments.suite)
    else:
        settings, worst_cases = project.attack_settings(arguments.suite), project.worst_cases(arguments.suite)
        resolved = {"settings": settings, "worst_case": worst_cases}
    asked = {"limit": target.limit, "batch_size": target.batch_size}
    wants_recipe = arguments.robustbench is not None and target.record
    return Request(
        target=target,
        suite=arguments.suite,
        settings=resolved["settings"],
        weakened=_weakened(project, arguments.suite, scale) if scale else {},
        worst_cases=resolved.get("worst_case", {}),
        transfer_from=_transfer_from(arguments.transfer_from, target.record.get("arch")),
        out=arguments.out,
        journal=arguments.journal or in_work(arguments.out.with_suffix(".journal")),
        robustbench=arguments.robustbench,
        recipe=project.method(target.record["method"]) if wants_recipe else {},
        recipe_digest=digest({**resolved, **asked}) if scale else None,
        device=arguments.device,
        threads=arguments.threads,
    )


def _weakened(project: Project, suite: str, scale: str) -> dict[str, str]:
    """Setting -> ``limit 16, n_iter 10``: what a scale changes of the settings of a suite."""
    declared, scaled = project.attack_settings(suite), project.attack_settings(suite, scale)
    changed = {
        name: ", ".join(f"{key} {value}" for key, value in setting.items() if declared[name].get(key) != value)
        for name, setting in scaled.items()
    }
    return {name: told for name, told in changed.items() if told}


def _transfer_from(given: list[str], arch: str | None) -> dict[str, FinishedRun]:
    """The runs of ``--transfer-from`` by kind; one without a kind is an "arch" if its net is another one than ``arch``.

    Raises:
        ConfigError: two of a kind, or a kind that is neither.
        DataError: no finished run there.
    """
    found: dict[str, FinishedRun] = {}
    for text in given:
        kind, separator, folder = text.rpartition("=")
        run = FinishedRun(Path(folder), "best", read_run(folder))
        if not separator:
            kind = "seed" if run.record["arch"] == arch else "arch"
        if kind not in ("seed", "arch") or kind in found:
            raise ConfigError(f"--transfer-from {text}: write seed=DIR or arch=DIR, each at most once")
        found[kind] = run
    return found


def run(request: Request) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_writable(request.out)
    with devices.use(request.device, request.threads) as device:
        # Only now, because these import torch.
        from moat.commands import evaluation_target
        from moat.evaluation import corrupted, records, robustbench
        from moat.evaluation.plan import make_plan

        usage = Usage()
        target = evaluation_target.load(request.target, device)
        others = evaluation_target.load_transfer_models(request.transfer_from, device)
        plan = make_plan(request.suite, request.settings, request.worst_cases, target.model, others)
        plan = corrupted.with_images(plan, target, CORRUPTED, sources=staleness.corruptions_hash)
        for name, reason in plan.not_applicable.items():
            print(f"{name}: not applicable, {reason}", flush=True)
        attacks = staleness.attacks_of({"settings": plan.record})
        sources = staleness.hash_job(staleness.EVALUATION_PARTS, target.run, attacks=attacks)
        made_by = {"recipe_digest": request.recipe_digest, "sources": sources}
        measured = []
        for each in records.evaluate_suite(target, plan, journal=request.journal, sources=sources):
            measured.append(each)
            usage.add(each.earlier_cpu_seconds)
            _print(each.name, records.summarize(each.rows, [each.name])[each.name], each)
        content = records.write_evaluation(request.out, target, plan, measured, made_by, usage)
        for warning in content["warnings"].values():
            print(f"moat evaluate: warning: {warning}", file=sys.stderr, flush=True)
        if request.robustbench is not None:
            write_json(request.robustbench, robustbench.entry(content, request.recipe))
        _conclude(content, request.weakened)


def _print(name: str, found: Mapping[str, float], measured) -> None:
    when = "measured before" if measured.measured_before else f"{measured.seconds:.1f} s"
    print(f"{name}: {100 * found['accuracy']:.2f} % of {found['n']} correct ({when})", flush=True)
    for flag, message in measured.flags.items():
        print(f"{name}: flag {flag}: {message}", flush=True)


def _conclude(content: Mapping[str, Any], weakened: Mapping[str, str]) -> None:
    """Print what is to be reported: the widest worst case, or the lowest accuracy of a suite without one."""
    accuracy = content["accuracy"]
    worst = {name: group["of"] for name, group in content["worst_case"].items() if name in accuracy}
    if worst:
        name = max(worst, key=lambda name: len(worst[name]))
        what, of = f"{name} case of {len(worst[name])} attacks" if name == "worst" else name, worst[name]
    else:
        name = min(accuracy, key=lambda name: accuracy[name]["accuracy"])
        what, of = f"lowest of {len(accuracy)} settings, {name}", list(accuracy)
    found = accuracy[name]
    # By what they lack: the 95 settings of a suite of corruptions all lack the same.
    alike: dict[str, list[str]] = {}
    for each in of:
        if each in weakened:
            alike.setdefault(weakened[each], []).append(each)
    less = "; ".join(
        f"{', '.join(names) if len(names) < 4 else f'{len(names)} of them'}: {how}" for how, names in alike.items()
    )
    print(
        f"{what}: {found['accuracy']:.2%} [{found['low']:.2%}, {found['high']:.2%}] of {found['n']} images"
        f"{f' (weakened by the scale: {less})' if less else ''}",
        flush=True,
    )
