"""A project in which a pipeline runs, and the moments of its life at which something can happen to it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

RESULTS = Path("results/tiny")
NET = "digits/lenet5"
METHODS = ("standard", "trades")
# From here on everything is made anew -> what of a run's that is, and the commands that make it.
STAGES = {
    "runs": (("runs", "evaluations", "checks"), ("train", "evaluate", "verify", "tabulate")),
    "evaluations": (("evaluations",), ("evaluate", "tabulate")),
    "checks": (("checks",), ("verify", "tabulate")),
    "tables": ((), ("tabulate",)),
}


@dataclass
class Place:
    """One fault's view of the project.

    Attributes:
        start: the command, at work in the background.
        pace: how long a job takes, in seconds.
        running: the command that :meth:`begin` started.
        method: whose results the fault is about.
    """

    root: Path
    start: Callable[[], subprocess.Popen]
    pace: float
    chance: random.Random
    running: subprocess.Popen | None = None
    commands: tuple[str, ...] = ()

    def __post_init__(self):
        self.method = self.chance.choice(METHODS)

    # -- what runs --------------------------------------------------------------
    def begin(self, *stages: str) -> None:
        """Forget what one of these stages of the method and all later ones made, and start the pipeline."""
        self.forget(self.chance.choice(stages or tuple(STAGES)))
        self.running = self.start()

    def forget(self, stage: str) -> None:
        """Also the tables, which Snakemake would else not look behind."""
        kinds, self.commands = STAGES[stage]
        for kind in kinds:
            for top in ("", "work"):
                shutil.rmtree(self.root / top / RESULTS / kind / NET / self.method, ignore_errors=True)
        shutil.rmtree(self.root / RESULTS / "tables", ignore_errors=True)
        (self.root / RESULTS / "metrics.json").unlink(missing_ok=True)

    def below(self) -> list[psutil.Process]:
        """Everything that the pipeline has started."""
        try:
            return psutil.Process(self.running.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def jobs(self) -> list[psutil.Process]:
        """The `moat` commands below the pipeline."""
        return [process for process in self.below() if command_of(process)]

    def warm(self) -> list[psutil.Process]:
        """The process that jobs are forked from, if there is one."""
        return [process for process in self.below() if parent_of_warm(process) == self.running.pid]

    def forks(self) -> list[psutil.Process]:
        """The processes that do the work of commands which have been warmly started."""
        return [process for process in self.below() if parent_of_warm(process) not in (None, self.running.pid)]

    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    # -- moments ------------------------------------------------------------------
    def wait(self, condition: Callable[[], object], seconds: float = 120, every: float = 0.05) -> object:
        """What the condition gives as soon as that is something; None where the pipeline ends before."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            if found := condition():
                return found
            time.sleep(every)
        return None

    def wait_for_moment(self) -> bool:
        """A random moment in the life of a random job, often just after it wrote something; False: it came too late."""
        command = self.chance.choice(self.commands)
        if not self.wait(lambda: any(command_of(job) == command for job in self.jobs())):
            return False
        patience = self.chance.uniform(0, self.pace)
        if self.chance.random() < 0.5:
            before = self._names()
            self.wait(lambda: self._names() != before, seconds=2 * self.pace, every=0.005)
            patience = self.chance.choice([0, self.chance.uniform(0, 0.05)])
        time.sleep(patience)
        return self.alive()

    def _names(self) -> set[str]:
        """All files that jobs write, temporary ones included."""
        tops = (self.root / "work", self.root / RESULTS)
        return {f"{folder}/{name}" for top in tops for folder, _, names in os.walk(top) for name in names}

    # -- states -------------------------------------------------------------------
    def interrupt(self, *stages: str) -> str:
        """Have the pipeline begin anew and end at a random moment: its jobs with it, or left behind."""
        self.begin(*stages)
        self.wait_for_moment()
        state = self.cut() if self.chance.random() < 0.5 else self.behead()
        # It may have ended well just before; what is done to its results then is for another call to notice.
        self.running = None
        return state

    def leave(self) -> str:
        """The project as it is, finished, or interrupted."""
        return self.interrupt() if self.chance.random() < 0.4 else "finished before"

    def cut(self) -> str:
        """SIGKILL to everything at once, as in a power cut."""
        below, found = self.below(), names(self.jobs())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.running.pid, signal.SIGKILL)
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.running.wait()
        return f"all killed, {found} among them"

    def behead(self) -> str:
        """SIGKILL to Snakemake alone: its jobs go on."""
        left = names(self.jobs())
        self.running.kill()
        self.running.wait()
        return f"Snakemake killed, {left} left behind"

    def settle(self) -> None:
        """Wait until what was left behind has ended."""
        end = time.monotonic() + 300
        while left := [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(self.root)]:
            assert time.monotonic() < end, f"these do not end: {left}"
            time.sleep(0.1)

    def files(self, *patterns: str) -> list[Path]:
        return sorted(path for pattern in patterns for path in self.root.glob(pattern))


def command_of(process: psutil.Process) -> str | None:
    """`train` of a process `moat train …`; None of any other."""
    line = line_of(process)
    return line[2] if len(line) > 2 and any(Path(part).name == "moat" for part in line[:2]) else None


def line_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def parent_of_warm(process: psutil.Process) -> int | None:
    """The parent of a warm process or of a fork of one; None of any other process."""
    with contextlib.suppress(psutil.Error):
        return process.ppid() if "moat.commands.warm_server" in line_of(process) else None


def names(jobs: Iterable[psutil.Process]) -> str:
    found = [name for name in map(command_of, jobs) if name]
    return f"moat {' and '.join(found)}" if found else "no job"
