"""What can go wrong, one function each: ``fault(place) -> what was done``, or None where it met no occasion.

Each brings the project into the state that it needs, and leaves it damaged: then the same command is called again.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
from place import NET, RESULTS, Place, command_of, names

DAY = 86400


# -- to a pipeline at work --------------------------------------------------------
def _signal_job(place: Place, number: signal.Signals) -> str | None:
    place.begin()
    place.wait_for_moment()
    # A command, or where it has one the fork of the warm process that does its work: as out of memory may hit either.
    for process in place.chance.sample(found := place.jobs() + place.forks(), len(found)):
        with contextlib.suppress(psutil.Error):
            name = f"moat {command}" if (command := command_of(process)) else "a fork of the warm process"
            process.send_signal(number)
            return f"{number.name} to {name}"
    return None


def kill_job(place: Place) -> str | None:
    return _signal_job(place, signal.SIGKILL)


def terminate_job(place: Place) -> str | None:
    return _signal_job(place, signal.SIGTERM)


def kill_warm_process(place: Place) -> str | None:
    """Its forks die with it; their jobs fail, and are made again without it."""
    place.begin()
    if not place.wait(place.warm):
        return None
    time.sleep(place.chance.uniform(0, 3 * place.pace))
    for process in place.warm():
        process.kill()
        return f"SIGKILL to the warm process, {names(place.jobs())} at work"
    return None


def kill_pipeline(place: Place) -> str | None:
    place.begin()
    return place.behead() if place.wait_for_moment() else None


def terminate_pipeline(place: Place) -> str | None:
    place.begin()
    if not place.wait_for_moment():
        return None
    place.running.terminate()
    return f"SIGTERM to Snakemake, {len(place.jobs())} jobs below it"


def power_cut(place: Place) -> str | None:
    place.begin()
    return place.cut() if place.wait_for_moment() else None


def second_pipeline(place: Place) -> str | None:
    """A second call while the first is at work: it may refuse, and the first must not notice."""
    place.begin("runs", "evaluations")
    if not place.wait(place.jobs):
        return None
    code = place.start().wait(timeout=600)
    beside = place.alive()
    first = place.running.wait(timeout=600)
    assert first == 0 or not beside, f"the first pipeline ended with {first} after a second one had begun beside it"
    return f"a second pipeline, which ended with {code} {'before' if beside else 'after'} the first"


def corrupt_work(place: Place) -> str | None:
    """A checkpoint, or a kept part of an evaluation, with other bytes in its midst, found after a power cut."""
    stage, pattern = place.chance.choice([("runs", "work/**/checkpoint*.pt"), ("evaluations", "work/**/*.journal")])
    place.begin(stage)
    mine = f"{place.method}/**/"
    found = place.wait(lambda: place.files(pattern.replace("**/", f"**/{mine}")), every=0.005)
    time.sleep(place.chance.uniform(0, place.pace / 4))
    place.cut()
    if not found or not (files := place.files(pattern.replace("**/", f"**/{mine}"))):
        return None
    path = place.chance.choice(files)
    content = bytearray(path.read_bytes())
    for _ in range(16):
        content[place.chance.randrange(len(content))] ^= 0xFF
    path.write_bytes(content)
    return f"16 wrong bytes in {path.relative_to(place.root)}"


# -- to its files -------------------------------------------------------------------
def _truncate(place: Place, *patterns: str) -> str | None:
    state = place.leave()
    if not (files := place.files(*patterns)):
        return None
    path = place.chance.choice(files)
    size = place.chance.randrange(max(path.stat().st_size, 1))
    # In place, as a full disk or a lost cache of a file system does it: hard links to it are damaged, too.
    os.truncate(path, size)
    return f"{path.relative_to(place.root)} cut to {size} bytes ({state})"


def truncate_parquet(place: Place) -> str | None:
    return _truncate(place, f"{RESULTS}/**/*.parquet")


def truncate_model(place: Place) -> str | None:
    return _truncate(place, f"{RESULTS}/runs/**/*.safetensors", f"{RESULTS}/runs/**/run.json")


def stale_lock(place: Place) -> str:
    """What a killed Snakemake leaves, for every file here. The next one refuses to start and says `--unlock`."""
    state = place.interrupt()
    folder = place.root / ".snakemake/locks"
    folder.mkdir(parents=True, exist_ok=True)
    locked = [str(path.relative_to(place.root)) for path in place.files(f"{RESULTS}/**/*")]
    (folder / "0.output.lock").write_text("".join(f"{name}\n" for name in [*locked, f"{RESULTS}/tables/cells.csv"]))
    return f"a lock on {len(locked)} files that nobody holds ({state})"


def missing_input(place: Place) -> str | None:
    """A file that is still needed: what is made of it is not there either."""
    state = place.leave()
    run = f"{RESULTS}/runs/{NET}/{place.method}/**"
    if not (files := place.files(f"{RESULTS}/data/*", f"{run}/model.safetensors", f"{run}/run.json")):
        return None
    path = place.chance.choice(files)
    path.unlink()
    for stage in ("evaluations", "checks"):
        place.forget(stage)
    return f"{path.relative_to(place.root)} deleted ({state})"


def clock_skew(place: Place) -> str | None:
    """A third of all files are from another time, up to three days away, in either direction."""
    state = place.leave()
    files = [path for path in place.files("results/**/*", "resources/**/*") if path.is_file()]
    chosen = place.chance.sample(files, len(files) // 3)
    for path in chosen:
        moment = time.time() + place.chance.uniform(-3 * DAY, 3 * DAY)
        # What was left behind may be renaming it.
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (moment, moment))
    return f"{len(chosen)} files with other times ({state})"


def full_disk(place: Place) -> str:
    """A whole call on a disk with room for a few pages, mounted over what one stage writes."""
    stage, folder = place.chance.choice(
        [
            ("runs", Path("work")),
            ("runs", RESULTS / "runs" / NET / place.method),
            ("evaluations", Path("work")),
            ("evaluations", RESULTS / "evaluations" / NET / place.method),
            ("tables", RESULTS / "tables"),
        ]
    )
    place.forget(stage)
    (place.root / folder).mkdir(parents=True, exist_ok=True)
    size = f"{place.chance.choice([4, 8, 16, 64])}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place.root / folder)], check=True)
    try:
        code = place.start().wait(timeout=600)
    finally:
        subprocess.run(["umount", "--lazy", str(place.root / folder)], check=True)
    if code == 0:
        # It sufficed, and is gone now: what it held is needed again, as what is made of it is not there.
        place.forget(stage)
    return f"a disk of {size} at {folder}; the call ended with {code}"


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs, which a full disk needs."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


KINDS = (
    kill_job, terminate_job, kill_warm_process, kill_pipeline, terminate_pipeline, power_cut, second_pipeline,
    corrupt_work, truncate_parquet, truncate_model, stale_lock, missing_input, clock_skew, full_disk,
)  # fmt: skip
