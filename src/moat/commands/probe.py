"""Extract from one model what figures need besides accuracies: weights, router scores, features or heat maps."""

import logging
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError
from moat.base.files import check_writable, write_bytes, write_json
from moat.commands.options import TargetRequest, add_target_arguments, target_request
from moat.config.project import Project
from moat.config.recipes import digest, resolve_probe
from moat.machine import devices
from moat.machine.usage import Usage
from moat.provenance import environment, staleness

RESUMES = "the same command starts the probe again"


@dataclass(frozen=True)
class Request:
    """One probe on one model.

    Attributes:
        probe: its entry in config/probes.yaml.
        attack: the attack setting that the entry names, at the run's scale; None where it names none.
        recipe_digest: of all that decides the arrays but the model; None without a scale.
        out: the arrays (.safetensors); their description (.json) is written beside.
    """

    target: TargetRequest
    name: str
    probe: Mapping[str, Any]
    attack: Mapping[str, Any] | None
    recipe_digest: str | None
    out: Path
    device: str
    threads: int

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        return {self.probe["setting"]: self.attack} if self.attack else {}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--probe", required=True, metavar="NAME", help="a name from config/probes.yaml")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help=".safetensors, a .json beside; folders are made"
    )
    add_target_arguments(parser)


def request(arguments: Namespace) -> Request:
    if arguments.out.suffix != ".safetensors":
        raise ConfigError(f"--out {arguments.out}: the name must end in .safetensors")
    project = Project(arguments.project)
    probe = project.probe(arguments.probe)
    target = target_request(arguments, project, at_most=probe.get("images"))
    scale, setting = target.record.get("scale"), probe.get("setting")
    where = f"config/probes.yaml: {arguments.probe}"
    scale = scale if scale in project.names("scales") else None
    asked = {"images": target.limit, "batch_size": target.batch_size}
    return Request(
        target=target,
        name=arguments.probe,
        probe=probe,
        attack=project.attack(setting, where=where, scale=scale) if setting else None,
        recipe_digest=digest({**resolve_probe(project, scale, arguments.probe), **asked}) if scale else None,
        out=arguments.out,
        device=arguments.device,
        threads=arguments.threads,
    )


def run(request: Request) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    check_writable(request.out)
    with devices.use(request.device, request.threads) as device:
        # Only now, because these import torch.
        import safetensors.numpy

        from moat.attacks import resolve
        from moat.commands import evaluation_target
        from moat.evaluation import probes

        usage = Usage()
        target = evaluation_target.load(request.target, device)
        setting = request.probe.get("setting")
        attack = resolve(setting, request.attack) if setting else None
        images = probes.Images(target.x, target.y, target.indices, target.batch_size, setting, attack)
        started = time.perf_counter()
        arrays = probes.collect(request.name, request.probe, target.model, images)
        seconds = time.perf_counter() - started
        write_bytes(request.out, safetensors.numpy.save(arrays))
        write_json(request.out.with_suffix(".json"), _record(request, target, seconds, usage))
    print(f"{request.out}: {', '.join(arrays)} of {len(target.x)} images ({seconds:.1f} s)")


def _record(request: Request, target, seconds: float, usage: Usage) -> dict[str, Any]:
    attacks = staleness.attacks_of({"settings": request.settings})
    return {
        "name": request.name,
        "probe": request.probe,
        "settings": request.settings,
        "run": target.run,
        "n": len(target.x),
        "seconds": round(seconds, 3),
        **usage.record(),
        **environment.environment(),
        "recipe_digest": request.recipe_digest,
        "sources": staleness.hash_job(staleness.PROBE_PARTS, target.run, probe=request.probe["probe"], attacks=attacks),
        "data": target.data,
        "classes": target.classes,
    }
