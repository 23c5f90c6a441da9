"""Injects faults into a small pipeline, and after each asks that the same command ends with the very same results.

By hand, for longer:  python tests/faults/harness.py --faults 200 --seed 0
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

import small_project

import faults
from faults import RUNS, Place

METHODS = ("standard", "trades")
# Long enough to be killed in the midst of it, and with a checkpoint to corrupt.
SCALE = {**small_project.SCALE, "recipe": {**small_project.SCALE["recipe"], "epochs": 4}}


@dataclass
class Harness:
    """A small project in ``folder``, its undisturbed results, and the faults that it has survived."""

    folder: Path
    seed: int = 0
    survived: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.chance = random.Random(self.seed)
        studies = {"first": small_project.study(*METHODS)}
        self.project = small_project.make(self.folder / "project", scale=SCALE, studies=studies)
        self.calls = 0
        self.finish()
        self.undisturbed = self.fingerprint()
        kinds = [fault for fault in (*faults.RUNNING, *faults.RESTING) if fault is not faults.full_disk]
        self.can_fill_a_disk = faults.can_mount(self.folder / "mounted")
        self.kinds = kinds + ([faults.full_disk] if self.can_fill_a_disk else [])
        self.queue: list = []

    def start(self) -> subprocess.Popen:
        """The command, at work in the background; what it says goes to a file."""
        self.calls += 1
        with open(self.folder / f"call{self.calls}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "snakemake", "--cores", "2"],
                cwd=self.project.root,
                env=self.project.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        code = self.start().wait(timeout=1800)
        said = (self.folder / f"call{self.calls}.log").read_text()
        assert code == 0, f"the command ended with {code}:\n{said[-6000:]}"

    def fingerprint(self) -> dict[str, str]:
        """sha256 of every model, all rows, every table and all numbers."""
        results = self.project.root / "results/tiny"
        patterns = ("**/*.safetensors", "**/*.parquet", "tables/*", "figures/*.csv", "metrics.json")
        files = [path for pattern in patterns for path in results.glob(pattern)]
        return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def inject(self) -> str | None:
        """One fault, into a pipeline that makes a run anew; None where it met no occasion.

        Raises:
            AssertionError: the same command did not end well, or a result differs; says which.
        """
        fault = self._next()
        place = Place(self.project.root, self.start, self._begin_anew(), "")
        place.method = self.anew
        if fault in faults.RESTING:
            # At a random moment of the work.
            faults.kill_pipeline(place, self.chance)
        done = fault(place, self.chance)
        place.running.wait(timeout=1800)
        self.finish()
        found = self.fingerprint()
        differing = sorted(name for name in self.undisturbed | found if self.undisturbed.get(name) != found.get(name))
        assert not differing, f"after {fault.__name__} ({done}) these differ: {', '.join(differing)}"
        if done:
            self.survived[fault.__name__] += 1
        return done and f"{fault.__name__}: {done}"

    def _next(self):
        """Every kind once, in random order, before any comes again."""
        if not self.queue:
            self.queue = self.chance.sample(self.kinds, len(self.kinds))
        return self.queue.pop()

    def _begin_anew(self) -> subprocess.Popen:
        """Forget a run and all that was made of it, and start the pipeline, which then has something to do."""
        self.anew = self.chance.choice(METHODS)
        for top in ("results/tiny", "work/results/tiny"):
            for kind in ("runs", "evaluations", "gates"):
                shutil.rmtree(self.project.root / top / kind / RUNS.relative_to("results/tiny/runs") / self.anew, True)
        faults.forget_what_is_shown(self.project.root)
        return self.start()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moat-faults-"))
    print(f"in {folder}", flush=True)
    harness = Harness(folder, arguments.seed)
    if not harness.can_fill_a_disk:
        print("no full disks: this user may not mount a tmpfs", flush=True)
    while harness.survived.total() < arguments.faults:
        started = time.monotonic()
        done = harness.inject()
        print(f"{harness.survived.total()}: {done or 'no occasion'} ({time.monotonic() - started:.0f} s)", flush=True)
    for name, count in sorted(harness.survived.items()):
        print(f"{count:5} {name}")
    print(f"{harness.survived.total()} faults injected and survived, in {harness.calls} calls")
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
