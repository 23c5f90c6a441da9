"""Attack one model with a suite and write one row per (setting, example). Resumes at the setting it was stopped in."""

from pathlib import Path

from moat import subjects

HELP = "attack one run with a suite; resumable by attack"


def add_arguments(parser) -> None:
    parser.add_argument("--suite", required=True, help="name from config/suites.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="rows (.parquet); a .json comes beside")
    parser.add_argument("--work", type=Path, metavar="DIR", help="finished settings (default: work/ and --out's path)")
    subjects.add_arguments(parser)


def run(arguments) -> int:
    import logging

    from moat.commands.train import work_folder
    from moat.config.project import Project
    from moat.errors import ConfigError
    from moat.files import check_writable
    from moat.interruption import exit_on_sigterm

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if arguments.out.suffix != ".parquet":
        raise ConfigError(f"--out {arguments.out}: the name must end in .parquet")
    suite = Project(Path(arguments.project)).attack_settings(arguments.suite)
    exit_on_sigterm("the same command continues with the attack setting it was in")
    check_writable(arguments.out)

    from moat import sources
    from moat.attacks.suites import resolve

    settings = {name: resolve(name, setting) for name, setting in suite.items()}
    subject = subjects.load(arguments)
    settings = _with_corruptions(settings, subject)
    made_of = {"method": subject.method, "arch": subject.run.get("arch")}
    attacks = sources.attacks_of({"settings": suite})
    hashes = sources.hash_parts(sources.EVALUATION_PARTS, **made_of, attacks=attacks)
    parts = arguments.work or work_folder(arguments.out.with_suffix(""))
    measured = _measure(subject, settings, parts, hashes)
    _write(arguments, subject, settings, hashes, measured)
    return 0


def _with_corruptions(settings, subject) -> dict:
    """Corruptions on published images where their prepared file lies beside the subject's data."""
    from moat.data.official_corruptions import OfficialCorruptions
    from moat.evaluation import corrupted

    if not any(map(corrupted.is_corruption, settings.values())):
        return settings
    official = OfficialCorruptions.beside(Path(subject.data["path"]))
    return corrupted.prepared(settings, official, labels=subject.y.tolist(), indices=subject.indices)


def _measure(subject, settings, parts, sources) -> list:
    from moat.evaluation.records import evaluate_by_setting, summarize

    identity = {"model": subject.run["model_sha256"], "data": subject.data["sha256"], "sources": sources}
    measured = []
    for each in evaluate_by_setting(
        subject.model,
        subject.x,
        subject.y,
        settings,
        batch_size=subject.batch_size,
        parts=parts,
        identity=identity,
        indices=subject.indices,
    ):
        found = summarize(each.rows, [each.name])[each.name]
        when = "measured before" if each.kept else f"{each.seconds:.1f} s"
        print(f"{each.name}: {100 * found['accuracy']:.2f} % of {found['n']} correct ({when})", flush=True)
        measured.append(each)
    return measured


def _write(arguments, subject, settings, sources, measured) -> None:
    import pandas as pd

    from moat import provenance
    from moat.evaluation import corrupted
    from moat.evaluation.records import summarize, write_rows
    from moat.files import write_json

    frame = pd.concat([each.rows for each in measured], ignore_index=True)
    seconds = {each.name: each.seconds for each in measured}
    total = sum(seconds.values())
    write_rows(arguments.out, frame)
    write_json(
        arguments.out.with_suffix(".json"),
        {
            "suite": arguments.suite,
            "settings": {name: dict(attack.parameters) for name, attack in settings.items()},
            "run": subject.run,
            "n": len(subject.x),
            "accuracy": summarize(frame, list(settings)),
            **corrupted.summary(frame, settings),
            "seconds": round(total, 3),
            "seconds_per_setting": {name: round(value, 3) for name, value in seconds.items()},
            "images_per_second": round(len(frame) / total, 1),
            "batch_size": subject.batch_size,
            **provenance.environment(),
            "sources": sources,
            "data": subject.data,
        },
    )
