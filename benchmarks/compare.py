"""Two checkouts of the project against each other: is one as fast as the other?

    python benchmarks/compare.py BEFORE AFTER [--cases "4:;9: width 16"] [--out FILE] [-- OPTIONS OF own_side.py]

Each checkout's benchmarks/own_side.py makes the project's own calls of rows 1 to 9 with that checkout's sources, both
under this Python. The two take turns (before, after, after, before, …) on one core, each in its own process. Several
pairs of processes are measured, because the memory layout of a process alone changes its speed by a few percent. The
output has the medians of the CPU seconds, and the ratios after / before of CPU time, pair by pair, and of wall time:
above 1 is slower.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchlib.timing import summary
from moat.base.errors import MoatError
from moat.base.files import write_json
from moat.provenance import environment

SIDES = ("before", "after")


class Side:
    """One checkout, and the script that makes its calls."""

    def __init__(self, checkout: Path, script: Path | None):
        self.checkout = checkout.resolve()
        script = (script or self.checkout / "benchmarks" / "own_side.py").resolve()
        self.command = [sys.executable, str(script), "--project", str(self.checkout)]
        paths = [str(self.checkout / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def cases(self) -> list[str]:
        """The names of the cases that the script knows."""
        done = subprocess.run([*self.command, "--list"], env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise MoatError(f"{' '.join(self.command)} --list: exit code {done.returncode}, see above")
        return done.stdout.splitlines()

    @contextlib.contextmanager
    def started(self, case: str, options: Sequence[str]) -> Iterator["Process"]:
        """A process of the script that makes the case's call on request."""
        command = [*self.command, "--case", case, *options]
        with subprocess.Popen(
            command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Process(command, process)
            finally:
                process.kill()


class Process:
    """A running script, once it has set up its case."""

    def __init__(self, command: Sequence[str], process: subprocess.Popen):
        self.command, self.process = command, process
        self._answer()

    def seconds(self) -> dict[str, float]:
        """``cpu`` and ``wall`` seconds of one call."""
        with contextlib.suppress(BrokenPipeError):  # then there is no answer
            os.write(self.process.stdin.fileno(), b"\n")
        return json.loads(self._answer())

    def _answer(self) -> str:
        """The next line that the script prints.

        Raises:
            MoatError: it ended instead, and has printed why.
        """
        answer = self.process.stdout.readline()
        if not answer:
            raise MoatError(f"{' '.join(self.command)}: exit code {self.process.wait()}, see above")
        return answer


def compare(sides: dict[str, Side], case: str, arguments) -> dict[str, Any]:
    """A row: for ``cpu`` and ``wall`` the seconds of both sides, their medians, and the ratios of the pairs."""
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(arguments.processes):
        with contextlib.ExitStack() as stack:
            started = {name: stack.enter_context(side.started(case, arguments.options)) for name, side in sides.items()}
            for number in range(arguments.warm_up + arguments.repeats):
                # The second of a pair may find the processor in another state: each side is second every other time.
                for name in SIDES if number % 2 == 0 else reversed(SIDES):
                    seconds = started[name].seconds()
                    if number >= arguments.warm_up:
                        taken[name].append(seconds)
    row: dict[str, Any] = {"case": case}
    for clock in ("cpu", "wall"):
        each = {name: [seconds[clock] for seconds in taken[name]] for name in SIDES}
        ratios = [after / before for before, after in zip(each["before"], each["after"], strict=True)]
        row[clock] = {**each, "medians": {name: summary(each[name])["median"] for name in SIDES}}
        row[clock]["ratio"] = {key: round(value, 4) for key, value in summary(ratios).items()}
    return row


def line(row: dict[str, Any]) -> str:
    cpu, wall = row["cpu"], row["wall"]
    of_cpu = f"{cpu['medians']['before']:9.3f} {cpu['medians']['after']:9.3f}"
    ratio = "{median:.3f} ({low:.3f} to {high:.3f}, {n})".format(**cpu["ratio"])
    return f"{row['case']:34} {of_cpu}  {ratio:30} {wall['ratio']['median']:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another")
    parser.add_argument("--cases", metavar="A;B", help="beginnings of cases' names, separated by ; (default: all)")
    parser.add_argument("--processes", type=int, default=3, metavar="N", help="on each side, one after the other")
    parser.add_argument("--repeats", type=int, default=4, metavar="N", help="pairs of calls in each process")
    parser.add_argument("--warm-up", type=int, default=1, metavar="N", help="pairs before that")
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), metavar="N", help="default: %(default)s"
    )
    for name in SIDES:
        what = f"replaces {name.upper()}'s own_side.py, e.g. where that checkout has none"
        parser.add_argument(f"--{name}-script", type=Path, metavar="FILE", help=what)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all seconds as JSON")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    arguments.options = given[end + 1 :]
    # The processes that are started inherit it.
    os.sched_setaffinity(0, {arguments.core})
    sides = {name: Side(getattr(arguments, name), getattr(arguments, f"{name}_script")) for name in SIDES}
    try:
        after = sides["after"].cases()
        cases = [case for case in sides["before"].cases() if case in after]
        if arguments.cases:
            cases = [case for case in cases if case.startswith(tuple(arguments.cases.split(";")))]
        rows = []
        print(f"{'case':34} {'before':>9} {'after':>9}  {'after / before (range, n)':30} wall", flush=True)
        for case in cases:
            rows.append(compare(sides, case, arguments))
            print(line(rows[-1]), flush=True)
            if arguments.out:
                commits = {name: environment.git_commit(side.checkout) for name, side in sides.items()}
                write_json(arguments.out, {"commits": commits, **environment.environment(), "rows": rows})
    except MoatError as error:
        print(f"benchmarks/compare.py: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
