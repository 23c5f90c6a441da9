"""One line of progress for a whole workflow: ``python -m moat.pipeline.progress_line --log FILE -- snakemake …``.

Runs the command, keeps all that it says in a file, and shows how many jobs are done and about how long the rest takes.
Of a job that failed in the end, the end of its own log is shown. The exit code is that of the command.
"""

import argparse
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

# Core-seconds of a job at scale quickstart (benchmarks/README.md): how the jobs of a run compare with each other. How
# fast they are here and now is what has been seen of this run.
CORE_SECONDS = {
    "train": 9, "pretrain": 5, "evaluate": 4, "transfer": 1, "verify": 16, "probe": 1, "draw": 2, "tabulate": 1,
    "cells": 2, "page": 2, "fetch": 1, "prepare": 3,
}  # fmt: skip
# Until this many seconds have passed, a core is taken to do a core-second a second.
_ASSUMED_FOR = 5.0
# How often a line is printed where no terminal shows one that changes.
_BETWEEN_LINES = 10.0
_LINES_OF_A_LOG = 15

_JOB_COUNT = re.compile(r"^(\w+) +(\d+)$")
_STARTED = re.compile(r"^(?:local)?rule (\w+):$")
_JOB_ID = re.compile(r"^ +jobid: (\d+)$")
_FINISHED = re.compile(r"^Finished jobid: (\d+) \(Rule: (\w+)\)$")
_FAILED = re.compile(r"^Error in rule (\w+):$")
_LOG = re.compile(r"^ +log: (.+?)(?: \(check log file\(s\) for error details\))?$")
_CORES = re.compile(r"^Provided cores: (\d+)")


class Progress:
    """What Snakemake's output says of its jobs, line by line."""

    def __init__(self):
        self.cores, self.total, self.done = 1, Counter(), Counter()
        # Of jobs that run, and of those whose last attempt failed: jobid -> rule, log.
        self.running: dict[str, str] = {}
        self.failed: dict[str, tuple[str, str]] = {}
        self._in_table, self._rule, self._error, self._id = False, "", "", ""

    def read(self, line: str) -> None:
        if match := _CORES.match(line):
            self.cores = int(match[1])
        elif line.startswith("Job stats:"):
            self._in_table = not self.total
        elif self._in_table and (match := _JOB_COUNT.match(line)):
            # The last row is the sum; the rules that only collect others cost nothing.
            self._in_table = match[1] != "total"
            if match[1] in CORE_SECONDS:
                self.total[match[1]] = int(match[2])
        elif match := _STARTED.match(line):
            self._rule, self._error = match[1], ""
        elif match := _FAILED.match(line):
            self._rule, self._error = "", match[1]
        elif match := _JOB_ID.match(line):
            self._id = match[1]
            if self._error:
                self.running.pop(self._id, None)
                self.failed[self._id] = (self._error, "")
            elif self._rule in CORE_SECONDS:
                self.running[self._id] = self._rule
        elif self._error and (match := _LOG.match(line)):
            self.failed[self._id] = (self._error, match[1])
        elif match := _FINISHED.match(line):
            self.running.pop(match[1], None)
            self.failed.pop(match[1], None)
            self.done[match[2]] += match[2] in CORE_SECONDS

    def seconds_left(self, elapsed: float) -> float:
        """About how long the rest takes, after ``elapsed`` seconds."""
        total, done = (sum(CORE_SECONDS[rule] * n for rule, n in jobs.items()) for jobs in (self.total, self.done))
        # Half of each job that runs.
        done += sum(CORE_SECONDS[rule] for rule in self.running.values()) / 2
        rate = (done + _ASSUMED_FOR * self.cores) / (elapsed + _ASSUMED_FOR)
        return max(total - done, 0) / rate

    def line(self, elapsed: float) -> str:
        if not self.total:
            return f"{clock(elapsed)} looking at what there is to do"
        jobs = f"{self.done.total()} of {self.total.total()} jobs"
        now = ", ".join(f"{rule} x{n}" if n > 1 else rule for rule, n in Counter(self.running.values()).items())
        left = f"about {clock(self.seconds_left(elapsed))} left"
        return f"{clock(elapsed)} {jobs}, {left}" + (f" ({now})" if now else "")


def clock(seconds: float) -> str:
    """``1:05``, or ``2:01:05``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def run(command: Sequence[str], log: Path, screen: TextIO) -> tuple[int, Progress]:
    """Run ``command`` with its output in ``log``; the exit code, and what it said of its jobs."""
    progress, started, shown = Progress(), time.monotonic(), -_BETWEEN_LINES
    log.parent.mkdir(parents=True, exist_ok=True)
    lines: queue.Queue[str | None] = queue.Queue()
    with (
        open(log, "w") as kept,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        # Ctrl-C reaches the command, too, which ends its jobs first.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                line = ""
            if line is None:
                break
            if line:
                kept.write(line)
                kept.flush()
                progress.read(line.rstrip("\n"))
            elapsed = time.monotonic() - started
            if line.startswith("moat: "):
                _show(screen, line.rstrip("\n"), "\n")
            elif screen.isatty() or elapsed - shown >= _BETWEEN_LINES:
                shown = elapsed
                _show(screen, progress.line(elapsed), "" if screen.isatty() else "\n")
    _show(screen, "", "")
    return process.returncode, progress


def _read(stream: TextIO, lines: queue.Queue) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def _show(screen: TextIO, text: str, end: str) -> None:
    """On a terminal over the line before."""
    screen.write(f"\r\033[K{text}{end}" if screen.isatty() else f"{text}{end}")
    screen.flush()


def explain(progress: Progress, log: Path) -> str:
    """Why the command failed: the ends of the failed jobs' logs, or what it said last."""
    logs = [(f"{rule}: {path}", Path(path)) for rule, path in progress.failed.values() if path and Path(path).exists()]
    return "\n".join(f"{title}\n{_end_of(path)}" for title, path in logs or [(str(log), log)])


def _end_of(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-_LINES_OF_A_LOG:]
    return "\n".join(f"    {line}" for line in lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True, help="file for all that the command says")
    parser.add_argument("--then", default="", help="what to say when all is done; \\n begins a new line")
    parser.add_argument("command", nargs="+", help="the command and its arguments, after --")
    arguments = parser.parse_args(argv)
    print(f"Snakemake's own output: {arguments.log}", flush=True)
    code, progress = run(arguments.command, arguments.log, sys.stdout)
    if code == 0:
        print(arguments.then.replace("\\n", "\n").rstrip(), flush=True)
    else:
        print(
            f"{explain(progress, arguments.log)}\nNot finished (exit code {code}); the same command goes on from here."
        )
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
