"""Injects faults into a small pipeline, and after each asks that the same command ends with the very same results.

By hand, for longer: `make faults N=200 SEED=1`, which is python tests/faults/harness.py --faults 200 --seed 1
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
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "workflow"))

import small_project
from place import METHODS, RESULTS, Place

import faults

# Long enough to be killed in the midst of it, and with a checkpoint to corrupt.
SCALE = {
    **small_project.SCALE,
    "recipe": {**small_project.SCALE["recipe"], "epochs": 8},
    "checks": {"limit": 10, "steps": 2, "queries": 5},
}
STUDY = small_project.study(*METHODS)
# All tables and numbers, and not the figures and the page, which take as long as a training here and show the same.
COMMAND = ("snakemake", "--cores", "2", f"{RESULTS}/tables/cells.csv")


class Harness:
    """A small project in ``folder``, its undisturbed results, and how many faults of each kind it has met.

    Where ``seed`` is odd, jobs are forks of a warm process, as they are by default; where it is even, none is.
    """

    def __init__(self, folder: Path, seed: int = 1):
        self.folder, self.chance, self.warm = folder, random.Random(seed), seed % 2 == 1
        self.project = small_project.make(folder / "project", scale=SCALE, studies={"first": STUDY})
        self.project.edit("config/config.yaml", "warm_start: true", f"warm_start: {str(self.warm).lower()}")
        self.calls = self.unlocked = 0
        self.injected: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        started = time.monotonic()
        self.finish()
        # Ten jobs, two at once, and the start of Snakemake.
        self.pace = (time.monotonic() - started) / 6
        self.undisturbed = self.fingerprint()
        shutil.copytree(self.project.root, folder / "undisturbed", symlinks=True)
        self.can_fill_a_disk = faults.can_mount(folder / "mounted")

    @property
    def kinds(self) -> list[Callable[[Place], str | None]]:
        possible = {faults.full_disk: self.can_fill_a_disk, faults.kill_warm_process: self.warm}
        return [fault for fault in faults.KINDS if possible.get(fault, True)]

    def start(self) -> subprocess.Popen:
        """The command, at work in the background; what it says goes to a file."""
        self.calls += 1
        with open(self.folder / f"call{self.calls}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *COMMAND],
                cwd=self.project.root,
                env=self.project.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def finish(self) -> None:
        code, said = self._call()
        if code and "the --unlock argument" in said:
            # A Snakemake was killed. Its locks are for the user to judge, and Snakemake's message says how.
            self.unlocked += 1
            assert self.project.snakemake("--unlock").returncode == 0
            code, said = self._call()
        assert code == 0, f"the command ended with {code}:\n{said[-6000:]}"

    def _call(self) -> tuple[int, str]:
        code = self.start().wait(timeout=1800)
        return code, (self.folder / f"call{self.calls}.log").read_text()

    def fingerprint(self) -> dict[str, str]:
        """sha256 of every model, all rows, every table and all numbers."""
        results = self.project.root / RESULTS
        patterns = ("**/*.safetensors", "**/*.parquet", "tables/*", "metrics.json")
        files = [path for pattern in patterns for path in results.glob(pattern)]
        # The record of a table names what it was made of, down to the seconds that a job took.
        files = [path for path in files if not (path.suffix == ".json" and path.with_suffix(".csv").exists())]
        return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def inject(self, fault: Callable[[Place], str | None]) -> str | None:
        """One fault, and then the same command until it has ended well; None where the fault met no occasion.

        Raises:
            AssertionError: the command did not end well, or a result differs; says which. The undisturbed project
                is put back.
        """
        place = Place(self.project.root, self.start, self.pace, self.chance)
        done = None
        try:
            done = fault(place)
            self.injected[fault.__name__] += done is not None
            if place.running is None or place.running.wait(timeout=1800) != 0:
                self.finish()
            place.settle()
            self._compare()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            self.injected[fault.__name__] += done is None
            self._put_back(place)
            raise AssertionError(f"{fault.__name__} ({done}): {error}") from error
        self.survived[fault.__name__] += done is not None
        return done

    def _compare(self) -> None:
        found = self.fingerprint()
        differing = sorted(name for name in self.undisturbed | found if self.undisturbed.get(name) != found.get(name))
        assert not differing, f"these differ: {', '.join(differing)}"

    def _put_back(self, place: Place) -> None:
        if place.alive():
            place.cut()
        place.settle()
        shutil.move(self.project.root, self.folder / f"failed{self.calls}")
        shutil.copytree(self.folder / "undisturbed", self.project.root, symlinks=True)


def run(harness: Harness, count: int, only: list[str]) -> list[str]:
    """Inject so many faults, every kind once before any comes again; the failures."""
    kinds, queue, failures = [fault for fault in harness.kinds if not only or fault.__name__ in only], [], []
    while harness.injected.total() < count:
        queue = queue or harness.chance.sample(kinds, len(kinds))
        fault, started = queue.pop(), time.monotonic()
        try:
            done = harness.inject(fault) or "no occasion"
        except AssertionError as error:
            done = f"NOT SURVIVED: {error}"
            failures.append(done)
        seconds = time.monotonic() - started
        print(f"{harness.injected.total()} {fault.__name__}: {done} ({seconds:.0f} s)", flush=True)
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], choices=[fault.__name__ for fault in faults.KINDS])
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="moat-faults-"))
    print(f"in {folder}", flush=True)
    harness = Harness(folder, arguments.seed)
    if not harness.can_fill_a_disk:
        print("no full disks: this user may not mount a tmpfs", flush=True)
    failures = run(harness, arguments.faults, arguments.only)
    print("\ninjected survived")
    for name, count in sorted(harness.injected.items()):
        print(f"{count:8} {harness.survived[name]:8} {name}")
    print(f"{harness.injected.total():8} {harness.survived.total():8} all, in {harness.calls} calls")
    if failures:
        print(f"{len(failures)} not survived; what they left is in {folder}/failed*")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
