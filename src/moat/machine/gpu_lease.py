"""One GPU for one process: a slot is leased, CUDA is shown that device only, and a crash frees it.

`snakemake --resources gpu=2` runs two jobs at once and gives them no device. Here each takes a slot: a locked file
per device and place on it, shared by all pipelines and users of the machine.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, MoatError
from moat.machine import gpus as devices
from moat.machine import locks, queue
from moat.machine.gpus import Gpu

log = logging.getLogger(__name__)

# Seconds between two looks of the one who is next.
LOOK_EVERY = 0.1
# Set while a lease is held: a child process shares its parent's.
HELD = "MOAT_GPU_LEASE"


@dataclass(frozen=True)
class Slot:
    """One of ``slots_per_gpu`` places on a device."""

    gpu: Gpu
    number: int

    @property
    def name(self) -> str:
        return f"{self.gpu.name} slot {self.number}"

    def file(self, folder: Path) -> Path:
        return folder / f"slot.{re.sub(r'[^A-Za-z0-9-]', '_', self.gpu.name)}.{self.number}"


@contextlib.contextmanager
def lease(
    gpus: Sequence[Gpu] | None = None,
    *,
    slots_per_gpu: int | None = None,
    folder: Path | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> Iterator[Slot | None]:
    """Hold one slot, waiting for it where all are taken; CUDA_VISIBLE_DEVICES names its device meanwhile.

    Yields None, and changes nothing, where there is no GPU, where SLURM has assigned one (unless MOAT_GPUS is set),
    and where the parent process holds a lease already.

    Args:
        gpus: those to choose from; default: :func:`moat.machine.gpus.find`.
        slots_per_gpu: how many processes share a device; default: ``MOAT_SLOTS_PER_GPU``, or 1.
        folder: of the lock files; default: :func:`moat.machine.locks.shared_folder`.

    Raises:
        ConfigError: a number of slots below 1, or a folder that cannot be written.
        MoatError: CUDA is in use already, so that no device can be chosen any more.
    """
    if slots_per_gpu is not None and slots_per_gpu < 1:
        raise ConfigError(f"slots_per_gpu {slots_per_gpu}: allowed: 1 or more")
    per_gpu = slots_per_gpu or configured_slots(environ)
    if environ.get(HELD) or assigned_by_slurm(environ):
        yield None
        return
    gpus = devices.find(environ) if gpus is None else gpus
    if not gpus:
        yield None
        return
    _check_cuda_unused()
    slots = [Slot(gpu, number) for gpu in gpus for number in range(per_gpu)]
    slot, file = _acquire(folder or locks.shared_folder(environ), slots)
    try:
        with _environment(environ, {"CUDA_VISIBLE_DEVICES": slot.gpu.visible, HELD: slot.name}):
            log.info("GPU %s", slot.name)
            yield slot
    finally:
        os.close(file)


def configured_slots(environ: MutableMapping[str, str] = os.environ, default: int = 1) -> int:
    """``MOAT_SLOTS_PER_GPU``, or a default.

    Raises:
        ConfigError: it is not a whole number from 1.
    """
    text = environ.get("MOAT_SLOTS_PER_GPU", str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"MOAT_SLOTS_PER_GPU={text}: allowed: whole numbers from 1")
    return int(text)


def assigned_by_slurm(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Inside a SLURM job, whose devices SLURM has chosen. MOAT_GPUS says otherwise: lease these, one per process."""
    return "SLURM_JOB_ID" in environ and "MOAT_GPUS" not in environ


def holders(
    gpus: Sequence[Gpu], *, slots_per_gpu: int, folder: Path | None = None
) -> dict[Slot, dict[str, Any] | None]:
    """Who holds which slot: pid, user, since (seconds since 1970), command; None for a free slot."""
    folder = folder or locks.shared_folder()
    found: dict[Slot, dict[str, Any] | None] = {}
    with locks.gate(folder):
        for slot in (Slot(gpu, number) for gpu in gpus for number in range(slots_per_gpu)):
            file = locks.open_file(slot.file(folder))
            found[slot] = None if locks.try_lock(file) else locks.read_owner(file)
            os.close(file)
    return found


def _acquire(folder: Path, slots: Sequence[Slot]) -> tuple[Slot, int]:
    names = {slot.gpu.name for slot in slots}
    with locks.gate(folder):
        queued = queue.waiting(folder, names)
        _close(queued)
        if not queued and (taken := _take(folder, slots)):
            return taken
        ticket = queue.Ticket(folder, names)
    try:
        log.warning("%s; waiting, %d before this one", _described(folder, slots), len(queued))
        return _wait(folder, slots, ticket)
    finally:
        ticket.leave()


def _wait(folder: Path, slots: Sequence[Slot], ticket: queue.Ticket) -> tuple[Slot, int]:
    while True:
        with locks.gate(folder):
            before = ticket.before()
            if not before and (taken := _take(folder, slots)):
                return taken
        try:
            if before:
                queue.sleep_until_free(before[0])
            else:
                time.sleep(LOOK_EVERY)
        finally:
            _close(before)


def _take(folder: Path, slots: Sequence[Slot]) -> tuple[Slot, int] | None:
    """Lock a slot of the device with the fewest holders, inside the gate; None where all are taken."""
    files = {slot: locks.open_file(slot.file(folder)) for slot in slots}
    free = [slot for slot in slots if locks.try_lock(files[slot])]
    if free:
        room = {slot.gpu: sum(other.gpu == slot.gpu for other in free) for slot in free}
        # max takes the first of equals: the lowest device, the lowest place on it.
        chosen = max(free, key=lambda slot: room[slot.gpu])
        file = files.pop(chosen)
        locks.write_owner(file)
    _close(files.values())
    return (chosen, file) if free else None


def _described(folder: Path, slots: Sequence[Slot]) -> str:
    """Who is in the way, for the message of one who waits."""
    people = []
    for slot in slots:
        file = locks.open_file(slot.file(folder))
        owner = locks.read_owner(file)
        os.close(file)
        people.append(f"{slot.name}: pid {owner.get('pid', '?')} of {owner.get('user', '?')}")
    return f"no free GPU slot ({'; '.join(people)})"


def _check_cuda_unused() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise MoatError("CUDA is in use in this process already: a GPU must be leased before")


@contextlib.contextmanager
def _environment(environ: MutableMapping[str, str], changes: dict[str, str]) -> Iterator[None]:
    previous = {name: environ.get(name) for name in changes}
    environ.update(changes)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


def _close(files) -> None:
    for file in files:
        os.close(file)
