"""Check that a model's robust accuracy can be trusted: run the gates and write what each of them found.

Exit code 0 whether or not the gates pass: the file says which failed, and the tables print what it says.
"""

from pathlib import Path

from moat import devices, subjects

HELP = "the gates: can this run's robust accuracy be trusted?"

# Enough to find what the gates look for; they cost about 60 gradients an example.
AT_MOST = 1000


def add_arguments(parser) -> None:
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the gates' findings (.json)")
    parser.add_argument("--eps", default="8/255", help="radius in pixel units (default: 8/255)")
    subjects.add_arguments(parser)


def run(arguments) -> int:
    import logging
    import time

    from moat.config.numbers import parse_number
    from moat.errors import ConfigError
    from moat.files import check_writable, write_json
    from moat.interruption import exit_on_sigterm

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    eps = parse_number(arguments.eps, where="--eps")
    if not 0 < eps <= 1:
        raise ConfigError(f"--eps {arguments.eps}: allowed: above 0, at most 1 (pixels are in [0, 1])")
    exit_on_sigterm("the same command starts the gates again")
    check_writable(arguments.out)
    devices.lease(arguments)

    from moat import provenance, sources
    from moat.evaluation import verify
    from moat.evaluation.evidence import ATTACKS

    subject = subjects.load(arguments, at_most=AT_MOST)
    started = time.perf_counter()
    report = verify(subject.model, subject.x, subject.y, eps=eps, batch_size=subject.batch_size)
    seconds = time.perf_counter() - started
    for result in report.gates:
        print(f"{'passed' if result.passed else 'FAILED'}  {result.gate}: {result.message}", flush=True)
    made_of = {"method": subject.method, "arch": subject.run.get("arch")}
    content = {
        "run": subject.run,
        **report.to_dict(),
        "seconds": round(seconds, 3),
        **provenance.environment(),
        "attacks": list(ATTACKS),
        "sources": sources.hash_parts(sources.GATES_PARTS, **made_of, attacks=ATTACKS),
        "data": subject.data,
    }
    write_json(arguments.out, content)
    return 0
