"""Check that a model's robust accuracy can be trusted: run the checks and write what each of them found.

Exit code 0 whether or not the checks pass: the file says which failed, and tables mark the numbers of such a model.
With --strict it is 1 where a check fails.
"""

import contextlib
import logging
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.base.files import check_writable, write_json
from moat.base.numbers import parse_number
from moat.commands.options import FinishedRun, ForeignModel, TargetRequest, add_target_arguments, target_request
from moat.config import bands
from moat.config.project import Project
from moat.config.recipes import CHECKED_IMAGES, digest, resolve_checks
from moat.machine import devices
from moat.machine.usage import Usage
from moat.provenance import environment, staleness
from moat.training.run_record import read_run

RESUMES = "the same command starts the checks again"

# Below it, float32 knows no other pixels in the ball.
LEAST_EPS = 1e-6
# Held-out images that test images are compared with.
HELD_OUT = 1000


@dataclass(frozen=True)
class Request:
    """All checks on one model.

    Attributes:
        eps: radius in pixel units.
        budget: what may be spent on each example, as far as it was given, or the run's scale says: steps, queries.
        claims: the suite's settings that the checks examine: name -> setting.
        training: what is known about a finished run, for :class:`moat.evaluation.evidence.Origin`: its record, and the
            band of known accuracies or why there is none.
        transfer_from: a run whose adversarial examples are tried, too.
        recipe_digest: of all that decides the findings but the model.
        root: the project's folder.
        strict: whether a failed check is a failure of the command.
    """

    target: TargetRequest
    eps: float
    budget: Mapping[str, int]
    claims: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    transfer_from: FinishedRun | None
    recipe_digest: str
    out: Path
    root: Path
    strict: bool
    device: str
    threads: int


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the checks' findings (.json); folders are made"
    )
    parser.add_argument("--eps", default="8/255", help="radius in pixel units (default: 8/255)")
    parser.add_argument("--steps", type=int, metavar="N", help="PGD steps, doubled once (default: the scale's, or 10)")
    parser.add_argument(
        "--queries", type=int, metavar="N", help="of the black-box attack (default: the scale's or 1000)"
    )
    parser.add_argument("--suite", help="its attacks are checked, too: are they as strong as they should be?")
    parser.add_argument("--transfer-from", type=Path, metavar="DIR", help="another run, whose examples are tried")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a check fails, e.g. in CI")
    add_target_arguments(parser)


def request(arguments: Namespace) -> Request:
    eps = parse_number(arguments.eps, where="--eps")
    if not LEAST_EPS <= eps <= 1:
        raise ConfigError(f"--eps {arguments.eps}: allowed: {LEAST_EPS:g} to 1 (pixels are in [0, 1])")
    project = Project(arguments.project)
    target = target_request(arguments, project, at_most=CHECKED_IMAGES)
    of_scale = _checks_of_scale(project, target.record)
    if arguments.limit is None and of_scale:
        target = replace(target, limit=of_scale["limit"])
    training: dict[str, Any] = {}
    if target.record:
        band, reason = bands.find(project, target.record)
        training = {"run": target.record, "band": band, "no_band": reason}
    other = arguments.transfer_from
    given = {"steps": arguments.steps, "queries": arguments.queries}
    given = {key: value for key, value in given.items() if value is not None}
    budget = {key: of_scale[key] for key in ("steps", "queries") if key in of_scale} | given
    # As moat.config.recipes.resolve_checks has it; no scale asks for a suite's claims.
    asked = {"eps": eps, "limit": target.limit, "batch_size": target.batch_size, **budget}
    return Request(
        target=target,
        eps=eps,
        budget=budget,
        claims=_claims(project.attack_settings(arguments.suite) if arguments.suite else {}, eps),
        training=training,
        transfer_from=FinishedRun(other, "best", read_run(other)) if other else None,
        recipe_digest=digest({**asked, "suite": arguments.suite} if arguments.suite else asked),
        out=arguments.out,
        root=project.root,
        strict=arguments.strict,
        device=arguments.device,
        threads=arguments.threads,
    )


def _checks_of_scale(project: Project, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the scale of a run lets its checks spend; nothing of a run from elsewhere, whose scale is unknown here."""
    scale = record.get("scale")
    return resolve_checks(project, scale) if scale in project.names("scales") else {}


def _claims(settings: Mapping[str, Mapping[str, Any]], eps: float) -> dict[str, Mapping[str, Any]]:
    """The settings that are measured correctly, within eps, and on any model by itself."""
    return {
        name: setting
        for name, setting in settings.items()
        if setting.get("protocol", "correct") == "correct"
        and 0 < parse_number(setting.get("eps", 0), where=f"config/attacks.yaml: {name}") <= eps
        and not setting.get("requires")
        and not setting.get("transfer_from")
    }


@contextlib.contextmanager
def fresh_model(given: FinishedRun | ForeignModel, device: Any, threads: int) -> Iterator[Callable[[], Any]]:
    """A function that builds the model once more, as a context.

    In another process, unless all of its code is moat's own, which keeps nothing in classes and modules.
    """
    from moat.commands import evaluation_target, fresh_process

    if isinstance(given, FinishedRun) and plugins.is_own(given.record):
        yield lambda: evaluation_target.load_run(given, device)
        return
    with fresh_process.FreshProcess(given, device, threads, plugins.project_folder().parent) as anew:
        yield lambda: anew


def run(request: Request) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_writable(request.out)
    with devices.use(request.device, request.threads) as device:
        # Only now, because these import torch.
        from moat.commands import evaluation_target
        from moat.evaluation import verify
        from moat.evaluation.evidence import ATTACKS, Budget, Origin

        usage = Usage()
        # Before the model's code runs here, of which another process must know nothing.
        with fresh_model(request.target.model, device, request.threads) as fresh:
            target = evaluation_target.load(request.target, device)
            other = request.transfer_from and evaluation_target.load_run(request.transfer_from, device)
            origin = Origin(
                model_sha256=target.run["model_sha256"],
                data_sha256=target.data_sha256,
                held_out=evaluation_target.held_out_examples(target.data_path, HELD_OUT),
                **request.training,
            )
            started = time.perf_counter()
            report = verify(
                target.model,
                target.x,
                target.y,
                eps=request.eps,
                batch_size=target.batch_size,
                settings=request.claims,
                budget=Budget(**request.budget),
                origin=origin,
                transfer_from=other,
                fresh=fresh,
            )
            seconds = time.perf_counter() - started
    print(report, flush=True)
    attacks = sorted({*ATTACKS, *staleness.attacks_of({"settings": request.claims})})
    content = {
        "run": target.run,
        **report.to_dict(),
        "seconds": round(seconds, 3),
        **usage.record(),
        **environment.environment(),
        "attacks": attacks,
        "recipe_digest": request.recipe_digest,
        "sources": staleness.hash_job(staleness.CHECKS_PARTS, target.run, attacks=attacks),
        "data": target.data,
        "git_commit": environment.git_commit(request.root),
        "lock_sha256": environment.lock_hash(request.root),
    }
    write_json(request.out, content)
    return 1 if request.strict and not report.passed else 0
