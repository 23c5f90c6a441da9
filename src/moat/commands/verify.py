"""Check that a model's robust accuracy can be trusted: run the checks and write what each of them found.

Exit code 0 whether or not the checks pass: the file says which failed, and the tables print what it says.
"""

from pathlib import Path

from moat.commands import evaluation_target
from moat.machine import devices

HELP = "the checks: can this run's robust accuracy be trusted?"

# Enough to find what the checks look for; they cost about 100 gradients an example.
AT_MOST = 1000
# Held-out images that test images are compared with.
HELD_OUT = 1000


def add_arguments(parser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the checks' findings (.json)")
    parser.add_argument("--eps", default="8/255", help="radius in pixel units (default: 8/255)")
    parser.add_argument("--steps", type=int, metavar="N", help="PGD steps (default: 10; doubled once)")
    parser.add_argument("--queries", type=int, metavar="N", help="of the black-box attack (default: 100)")
    parser.add_argument("--suite", help="its attacks are checked, too: are they as strong as they say?")
    parser.add_argument("--transfer-from", type=Path, metavar="DIR", help="another run, whose examples are tried")
    evaluation_target.add_arguments(parser)


def run(arguments) -> int:
    import logging
    import time

    from moat.base.files import check_writable, write_json
    from moat.base.signals import exit_on_sigterm
    from moat.config.project import Project

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    eps = _radius(arguments.eps)
    project = Project(Path(arguments.project))
    claims = _claims(project, arguments.suite, eps)
    exit_on_sigterm("the same command starts the checks again")
    check_writable(arguments.out)
    arguments.device = arguments.until_end.enter_context(devices.lease(arguments.device))

    from moat.evaluation import verify
    from moat.evaluation.evidence import ATTACKS, Budget
    from moat.provenance import staleness

    subject = evaluation_target.load(arguments, at_most=AT_MOST)
    made_of = {"method": subject.run.get("class"), "arch": subject.run.get("arch")}
    families = sorted({*ATTACKS, *staleness.attacks_of({"settings": claims})})
    started = time.perf_counter()
    report = verify(
        subject.model,
        subject.x,
        subject.y,
        eps=eps,
        batch_size=subject.batch_size,
        settings=claims,
        budget=Budget(**_given(steps=arguments.steps, queries=arguments.queries)),
        origin=_origin(arguments, project, subject),
        transfer_from=_other_model(arguments, subject),
    )
    seconds = time.perf_counter() - started
    for result in report.checks:
        state = "FAILED" if result.state == "failed" else result.state
        print(f"{state}  {result.check}: {result.message}", flush=True)
    hashes = staleness.hash_parts(staleness.CHECKS_PARTS, **made_of, attacks=families)
    made_by = {"attacks": families, "sources": hashes, "data": subject.data}
    write_json(arguments.out, _content(subject, report, seconds, made_by, project.root))
    return 0


def _content(subject, report, seconds: float, made_by: dict, root: Path) -> dict:
    from moat.provenance import environment

    return {
        "run": subject.run,
        **report.to_dict(),
        "seconds": round(seconds, 3),
        **environment.environment(),
        **made_by,
        "git_commit": environment.git_commit(root),
        "lock_sha256": environment.lock_hash(root),
    }


def _radius(text: str) -> float:
    from moat.base.errors import ConfigError
    from moat.base.numbers import parse_number

    eps = parse_number(text, where="--eps")
    if not 0 < eps <= 1:
        raise ConfigError(f"--eps {text}: allowed: above 0, at most 1 (pixels are in [0, 1])")
    return eps


def _given(**options) -> dict:
    return {key: value for key, value in options.items() if value is not None}


def _claims(project, suite: str | None, eps: float) -> dict:
    """The settings of a suite that are measured correctly, within eps, and on any model by itself."""
    from moat.base.numbers import parse_number

    settings = project.attack_settings(suite) if suite is not None else {}
    return {
        name: setting
        for name, setting in settings.items()
        if setting.get("protocol", "correct") == "correct"
        and 0 < parse_number(setting.get("eps", 0), where=f"config/attacks.yaml: {name}") <= eps
        and not setting.get("needs")
        and not setting.get("transfer_from")
    }


def _origin(arguments, project, subject):
    """What is known about the model's making: its run.json, today's hashes, the band, held-out images."""
    from moat.config import bands
    from moat.evaluation.evidence import Origin
    from moat.training.models import read_run

    known = {
        "model_sha256": subject.run["model_sha256"],
        "data_sha256": subject.data["sha256"],
        "held_out": _held_out(Path(subject.data["path"])),
    }
    if arguments.run_dir is None:
        return Origin(**known)
    described = read_run(arguments.run_dir)
    band, reason = bands.find(project, described)
    return Origin(run=described, band=band, no_band=reason, **known)


def _held_out(path: Path):
    """Images and labels of the split ``val``: of the training set, but not trained with. None where there is none."""
    from moat.base.errors import DataError
    from moat.data import datasets

    try:
        split = datasets.load(path, splits=("val",)).splits["val"]
    except DataError:
        return None
    return (split.images[:HELD_OUT], split.labels[:HELD_OUT]) if len(split.labels) else None


def _other_model(arguments, subject):
    """The model of ``--transfer-from``, on the device of the one that is judged."""
    if arguments.transfer_from is None:
        return None
    from moat.evaluation.runner import device_of
    from moat.training.models import load_model

    return load_model(arguments.transfer_from, "best", device_of(subject.model))
