"""Take from one model what figures need beside accuracies: weights, routing scores, features or heat maps."""

from pathlib import Path

from moat.commands import evaluation_target
from moat.machine import devices

HELP = "take weights, routing scores, features or heat maps from one run, for figures"


def add_arguments(parser) -> None:
    parser.add_argument("--probe", required=True, metavar="NAME", help="name from config/probes.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help=".safetensors; a .json comes beside")
    evaluation_target.add_arguments(parser)


def run(arguments) -> int:
    import logging
    import time

    from moat.base.errors import ConfigError
    from moat.base.files import check_writable
    from moat.base.signals import exit_on_sigterm
    from moat.config.project import Project

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.out.suffix != ".safetensors":
        raise ConfigError(f"--out {arguments.out}: the name must end in .safetensors")
    project = Project(Path(arguments.project))
    probe = project.probe(arguments.probe)
    exit_on_sigterm("the same command starts the probe again")
    check_writable(arguments.out)
    arguments.device = arguments.until_end.enter_context(devices.lease(arguments.device))

    from moat.attacks.parts.setting import resolve
    from moat.evaluation import probes

    subject = evaluation_target.load(arguments, at_most=probe.get("images"))
    setting, where = probe.get("setting"), f"config/probes.yaml: {arguments.probe}"
    scale = subject.run["scale"] if subject.run.get("scale") in project.names("scales") else None
    attack = project.attack(setting, where=where, scale=scale) if setting else None
    resolved = resolve(setting, attack) if setting else None
    images = probes.Images(subject.x, subject.y, subject.indices, subject.batch_size, setting, resolved)
    started = time.perf_counter()
    arrays = probes.collect(arguments.probe, probe, subject.model, images)
    seconds = time.perf_counter() - started
    _write(arguments, subject, probe, attack, arrays, seconds)
    print(f"{arguments.out}: {', '.join(arrays)} of {len(subject.x)} images ({seconds:.1f} s)")
    return 0


def _write(arguments, subject, probe, attack, arrays, seconds) -> None:
    import safetensors.numpy

    from moat.base.files import write_bytes, write_json
    from moat.data import datasets
    from moat.provenance import environment, staleness

    settings = {probe["setting"]: attack} if attack else {}
    made_of = {"method": subject.run.get("class"), "arch": subject.run.get("arch"), "probe": probe["probe"]}
    hashes = staleness.hash_parts(
        staleness.PROBE_PARTS, **made_of, attacks=staleness.attacks_of({"settings": settings})
    )
    write_bytes(arguments.out, safetensors.numpy.save(arrays))
    content = {
        "name": arguments.probe,
        "probe": probe,
        "settings": settings,
        "run": subject.run,
        "n": len(subject.x),
        "seconds": round(seconds, 3),
        **environment.environment(),
        "sources": hashes,
        "data": subject.data,
        "classes": datasets.load(Path(subject.data["path"]), splits=()).classes,
    }
    write_json(arguments.out.with_suffix(".json"), content)
