"""What can go wrong, one function each: ``fault(place, random) -> what was done``, or None where there is no occasion.

Those of RUNNING are done to a pipeline at work, those of RESTING to its files before the next call.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

RUNS = Path("results/tiny/runs/digits/lenet5")
DAY = 86400


@dataclass
class Place:
    """A project's folder, how to start a pipeline in it, the one that runs, and the method whose run is being made."""

    root: Path
    start: Callable[[], subprocess.Popen]
    running: subprocess.Popen
    method: str

    def jobs(self) -> list[psutil.Process]:
        """The `moat` commands that the running pipeline has started."""
        try:
            found = psutil.Process(self.running.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if _is_job(process)]

    def wait_for_job(self, seconds: float = 900) -> list[psutil.Process]:
        """The jobs as soon as there is one; none where the pipeline ended without any."""
        end = time.monotonic() + seconds
        while self.running.poll() is None and time.monotonic() < end:
            if jobs := self.jobs():
                return jobs
            time.sleep(0.05)
        return []

    def files(self, *patterns: str) -> list[Path]:
        return sorted(path for pattern in patterns for path in self.root.glob(pattern))


def _is_job(process: psutil.Process) -> bool:
    try:
        return any(Path(part).name == "moat" for part in process.cmdline()[:2])
    except psutil.Error:
        return False


def _signal_job(place: Place, chance: random.Random, number: signal.Signals) -> str | None:
    jobs = place.wait_for_job()
    if not jobs:
        return None
    # Somewhere in its life, which is short: mostly importing, loading, training, writing.
    time.sleep(chance.uniform(0, 4))
    with contextlib.suppress(psutil.Error):
        job = chance.choice(place.jobs() or jobs)
        command = job.cmdline()
        job.send_signal(number)
        return f"{number.name} to moat {command[2]}" if len(command) > 2 else None
    return None


def kill_job(place: Place, chance: random.Random) -> str | None:
    return _signal_job(place, chance, signal.SIGKILL)


def terminate_job(place: Place, chance: random.Random) -> str | None:
    return _signal_job(place, chance, signal.SIGTERM)


def _signal_pipeline(place: Place, chance: random.Random, number: signal.Signals) -> str | None:
    place.wait_for_job()
    time.sleep(chance.uniform(0, 6))
    if place.running.poll() is not None:
        return None
    place.running.send_signal(number)
    # Its jobs may go on: the next call must cope with them.
    return f"{number.name} to Snakemake, {len(place.jobs())} jobs below it"


def kill_pipeline(place: Place, chance: random.Random) -> str | None:
    return _signal_pipeline(place, chance, signal.SIGKILL)


def terminate_pipeline(place: Place, chance: random.Random) -> str | None:
    return _signal_pipeline(place, chance, signal.SIGTERM)


def second_pipeline(place: Place, chance: random.Random) -> str | None:
    """A second call while the first is at work; it may refuse, and must not spoil anything."""
    if not place.wait_for_job():
        return None
    second = place.start()
    first_alive = place.running.poll() is None
    code = second.wait(timeout=600)
    return f"a second pipeline beside the first (which was {'' if first_alive else 'not '}alive); it ended with {code}"


def corrupt_work(place: Place, chance: random.Random) -> str | None:
    """A checkpoint, or a kept part of an evaluation, with other bytes in its middle."""
    files = place.files("work/**/checkpoint*.pt", "work/**/*.parquet")
    if not files:
        return None
    path = chance.choice(files)
    content = bytearray(path.read_bytes())
    for _ in range(16):
        content[chance.randrange(len(content))] ^= 0xFF
    path.write_bytes(content)
    return f"16 wrong bytes in {path.relative_to(place.root)}"


def _truncate(place: Place, chance: random.Random, *patterns: str) -> str | None:
    files = place.files(*patterns)
    if not files:
        return None
    path = chance.choice(files)
    size = chance.randrange(path.stat().st_size)
    # In place, as a full disk or a lost cache of a file system does it: hard links to it are damaged, too.
    os.truncate(path, size)
    return f"{path.relative_to(place.root)} cut to {size} bytes"


def truncate_parquet(place: Place, chance: random.Random) -> str | None:
    return _truncate(place, chance, "results/**/*.parquet")


def truncate_model(place: Place, chance: random.Random) -> str | None:
    return _truncate(place, chance, f"{RUNS}/**/*.safetensors", f"{RUNS}/**/run.json")


def stale_lock(place: Place, chance: random.Random) -> str:
    """As a Snakemake leaves it that was killed, for every file here."""
    folder = place.root / ".snakemake/locks"
    folder.mkdir(parents=True, exist_ok=True)
    names = [str(path.relative_to(place.root)) for path in place.files("results/**/*")]
    (folder / "0.output.lock").write_text("".join(f"{name}\n" for name in [*names, "results/tiny/report.html"]))
    return "a lock that nobody holds"


def missing_input(place: Place, chance: random.Random) -> str | None:
    """A file that is still needed: what is made of it is not there either."""
    files = place.files(
        "results/tiny/data/*", f"{RUNS}/{place.method}/**/*.safetensors", f"{RUNS}/{place.method}/**/*.json"
    )
    if not files:
        return None
    path = chance.choice(files)
    path.unlink()
    _forget_what_is_made_of(place)
    return f"{path.relative_to(place.root)} deleted"


def _forget_what_is_made_of(place: Place) -> None:
    for kind in ("evaluations", "gates"):
        shutil.rmtree(place.root / str(RUNS).replace("runs", kind) / place.method, ignore_errors=True)
    forget_what_is_shown(place.root)


def forget_what_is_shown(root: Path) -> None:
    """Delete tables, figures, numbers and the page: Snakemake makes what is missing only where it is asked for."""
    for name in ("tables", "figures"):
        shutil.rmtree(root / "results/tiny" / name, ignore_errors=True)
    for name in ("metrics.json", "report.html"):
        (root / "results/tiny" / name).unlink(missing_ok=True)


def clock_skew(place: Place, chance: random.Random) -> str | None:
    """A third of all files are from another time, up to three days away, in either direction."""
    files = [path for path in place.files("results/**/*", "resources/**/*") if path.is_file()]
    chosen = chance.sample(files, len(files) // 3)
    for path in chosen:
        moment = time.time() + chance.uniform(-3 * DAY, 3 * DAY)
        os.utime(path, (moment, moment))
    return f"{len(chosen)} files with other times" if chosen else None


def full_disk(place: Place, chance: random.Random) -> str | None:
    """A whole call on a disk with room for a few pages, mounted over the checkpoints or the results of the run."""
    folder = place.root / chance.choice(["work", f"{RUNS}/{place.method}"])
    # There must be something to write.
    shutil.rmtree(place.root / RUNS / place.method, ignore_errors=True)
    _forget_what_is_made_of(place)
    folder.mkdir(parents=True, exist_ok=True)
    size = f"{chance.choice([4, 16, 64])}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        code = place.start().wait(timeout=600)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    return f"a disk of {size} at {folder.relative_to(place.root)}; the call ended with {code}"


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs, which a full disk needs."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


RUNNING = (kill_job, terminate_job, kill_pipeline, terminate_pipeline, second_pipeline)
RESTING = (corrupt_work, truncate_parquet, truncate_model, stale_lock, missing_input, clock_skew, full_disk)
