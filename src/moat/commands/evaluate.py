"""Attack one model with a suite and write one row per (setting, example). Resumes at the part it was stopped in."""

import logging
from dataclasses import replace
from pathlib import Path

from moat.commands import evaluation_target
from moat.machine import devices

log = logging.getLogger(__name__)

HELP = "attack one run with a suite; resumable by attack"


def add_arguments(parser) -> None:
    parser.add_argument("--suite", required=True, help="name from config/suites.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="rows (.parquet); a .json comes beside")
    parser.add_argument("--work", type=Path, metavar="DIR", help="finished settings (default: work/ and --out's path)")
    parser.add_argument("--scale", help="its changes to attack settings apply (default: the run's scale)")
    parser.add_argument(
        "--transfer-from",
        action="append",
        default=[],
        metavar="[seed=|arch=]RUN",
        help="a run to transfer examples from: another seed (or method), or another net; may be given twice",
    )
    parser.add_argument("--robustbench", type=Path, metavar="FILE", help="also write a RobustBench entry (.json)")
    evaluation_target.add_arguments(parser)


def run(arguments) -> int:
    from moat.base.errors import ConfigError
    from moat.base.files import check_writable
    from moat.base.signals import exit_on_sigterm
    from moat.config.project import Project

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.out.suffix != ".parquet":
        raise ConfigError(f"--out {arguments.out}: the name must end in .parquet")
    project = Project(Path(arguments.project))
    project.suite(arguments.suite)
    if arguments.scale is not None:
        project.scale(arguments.scale)
    exit_on_sigterm("the same command continues with the attack setting it was in")
    check_writable(arguments.out)
    arguments.device = arguments.until_end.enter_context(devices.lease(arguments.device))
    subject = evaluation_target.load(arguments)
    _evaluate(arguments, project, subject)
    return 0


def _evaluate(arguments, project, subject) -> None:
    from moat.commands.train import work_folder
    from moat.evaluation.plan import make_plan
    from moat.provenance import staleness

    scale = arguments.scale or subject.run.get("scale")
    plan = make_plan(
        project,
        arguments.suite,
        scale if scale in project.names("scales") else None,
        subject.model,
        evaluation_target.load_transfer_models(arguments.transfer_from, subject),
    )
    plan = _with_corruptions(plan, subject)
    made_of = {"method": subject.run.get("class"), "arch": subject.run.get("arch")}
    attacks = staleness.attacks_of({"settings": plan.record})
    hashes = staleness.hash_parts(staleness.EVALUATION_PARTS, **made_of, attacks=attacks)
    parts = arguments.work or work_folder(arguments.out.with_suffix(""))
    measured = _measure(subject, plan, parts, hashes)
    content = _write(arguments, subject, plan, hashes, measured)
    if arguments.robustbench is not None:
        from moat.base.files import write_json
        from moat.evaluation.robustbench import entry

        method = project.method(subject.method) if subject.method else {}
        write_json(arguments.robustbench, entry(content, method))


def _with_corruptions(plan, subject):
    """Corruptions on published images where their prepared file lies beside the subject's data."""
    from moat.data.official_corruptions import OfficialCorruptions
    from moat.evaluation import corrupted

    if not any(map(corrupted.is_corruption, plan.settings.values())):
        return plan
    official = OfficialCorruptions.beside(Path(subject.data["path"]))
    if official and (lacking := official.lacks(subject.indices)):
        all_ = len(subject.indices)
        log.warning("%s lacks %d of %d images: corruptions are generated instead", official.path, lacking, all_)
        official = None
    settings = corrupted.prepared(plan.settings, official, labels=subject.y.tolist(), indices=subject.indices)
    record = {name: dict(attack.parameters) for name, attack in settings.items()}
    return replace(plan, settings=settings, record={**plan.record, **record})


def _measure(subject, plan, parts, sources) -> list:
    from moat.evaluation.records import evaluate_by_setting, summarize

    identity = {"model": subject.run["model_sha256"], "data": subject.data["sha256"], "sources": sources}
    for name, reason in plan.not_applicable.items():
        print(f"{name}: not applicable, {reason}", flush=True)
    measured = []
    for each in evaluate_by_setting(
        subject.model,
        subject.x,
        subject.y,
        plan.settings,
        batch_size=subject.batch_size,
        parts=parts,
        identity=identity,
        indices=subject.indices,
        worst_case=plan.worst_cases,
    ):
        found = summarize(each.rows, [each.name])[each.name]
        when = "measured before" if each.kept else f"{each.seconds:.1f} s"
        print(f"{each.name}: {100 * found['accuracy']:.2f} % of {found['n']} correct ({when})", flush=True)
        for flag, message in each.flags.items():
            print(f"{each.name}: flag {flag}: {message}", flush=True)
        measured.append(each)
    return measured


def _write(arguments, subject, plan, sources, measured) -> dict:
    import pandas as pd

    from moat.base.files import write_json
    from moat.evaluation import corrupted
    from moat.evaluation.records import describe_worst_cases, summarize, write_rows
    from moat.provenance import environment

    frame = pd.concat([each.rows for each in measured], ignore_index=True)
    seconds = {each.name: each.seconds for each in measured}
    total = sum(seconds.values())
    write_rows(arguments.out, frame)
    content = {
        "suite": arguments.suite,
        "settings": plan.record,
        "not_applicable": plan.not_applicable,
        "worst_case": describe_worst_cases(frame, plan),
        "run": subject.run,
        "n": len(subject.x),
        "accuracy": summarize(frame, list(seconds)),
        **corrupted.summary(frame, plan.settings),
        "flags": {each.name: dict(each.flags) for each in measured if each.flags},
        "seconds": round(total, 3),
        "seconds_per_setting": {name: round(value, 3) for name, value in seconds.items()},
        "images_per_second": round(len(frame) / total, 1),
        "batch_size": subject.batch_size,
        **environment.environment(),
        "sources": sources,
        "data": subject.data,
    }
    write_json(arguments.out.with_suffix(".json"), content)
    return content
