"""GPU leases: a process takes one slot of one GPU, CUDA sees only that device, and a crash frees the slot.

`snakemake --resources gpu=2` runs two jobs at once but assigns no device to them. So each job takes a slot, a locked
file per device and place on it, which all pipelines and users of the machine share.
"""

import contextlib
import logging
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, MoatError
from moat.machine import gpus as devices
from moat.machine import locks, queue
from moat.machine.gpus import Gpu

log = logging.getLogger(__name__)

# How often, in seconds, the first process in the queue tries to take a slot.
POLL_SECONDS = 0.1
# Set while a lease is held, so that child processes share their parent's.
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
    """Hold one slot, waiting for a free one; meanwhile CUDA_VISIBLE_DEVICES names its device.

    Yields None and changes nothing if there is no GPU, if SLURM has assigned one (unless MOAT_GPUS is set), or if the
    parent process already holds a lease.

    Args:
        gpus: the GPUs to choose from; default: :func:`moat.machine.gpus.find`.
        slots_per_gpu: how many processes share a device; default: ``MOAT_SLOTS_PER_GPU``, or 1.
        folder: the folder of the lock files; default: :func:`moat.machine.locks.shared_folder`.

    Raises:
        ConfigError: a number of slots below 1, or a folder that cannot be written to.
        MoatError: CUDA is initialized, so that it is too late to choose a device.
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
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise MoatError("CUDA is in use in this process already: a GPU must be leased before")
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
        ConfigError: not a whole number from 1.
    """
    text = environ.get("MOAT_SLOTS_PER_GPU", str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"MOAT_SLOTS_PER_GPU={text}: allowed: whole numbers from 1")
    return int(text)


def assigned_by_slurm(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether this is a SLURM job, whose devices SLURM has chosen. MOAT_GPUS overrides that: lease those instead."""
    return "SLURM_JOB_ID" in environ and "MOAT_GPUS" not in environ


def holders(
    gpus: Sequence[Gpu], *, slots_per_gpu: int, folder: Path | None = None
) -> dict[Slot, dict[str, Any] | None]:
    """The holder of each slot: pid, user, since (Unix time), command; None for a free slot."""
    folder = folder or locks.shared_folder(make=False)
    slots = [Slot(gpu, number) for gpu in gpus for number in range(slots_per_gpu)]
    found: dict[Slot, dict[str, Any] | None] = dict.fromkeys(slots)
    # Looking makes no lock files: a slot that never had one is free.
    if used := [slot for slot in slots if slot.file(folder).exists()]:
        with locks.mutex(folder):
            for slot in used:
                file = locks.open_file(slot.file(folder))
                found[slot] = None if locks.try_lock(file) else locks.read_owner(file)
                os.close(file)
    return found


def _acquire(folder: Path, slots: Sequence[Slot]) -> tuple[Slot, int]:
    names = {slot.gpu.name for slot in slots}
    with locks.mutex(folder):
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
        with locks.mutex(folder):
            ahead = ticket.ahead()
            if not ahead and (taken := _take(folder, slots)):
                return taken
        try:
            if ahead:
                queue.sleep_until_free(ahead[0])
            else:
                time.sleep(POLL_SECONDS)
        finally:
            _close(ahead)


def _take(folder: Path, slots: Sequence[Slot]) -> tuple[Slot, int] | None:
    """Lock a slot of the device with the fewest holders; None if all are taken. Call it inside the mutex."""
    files = {slot: locks.open_file(slot.file(folder)) for slot in slots}
    free = [slot for slot in slots if locks.try_lock(files[slot])]
    if free:
        free_on = Counter(slot.gpu for slot in free)
        # Of equals, max returns the first: the lowest device and its lowest slot.
        chosen = max(free, key=lambda slot: free_on[slot.gpu])
        file = files.pop(chosen)
        locks.write_owner(file)
    _close(files.values())
    return (chosen, file) if free else None


def _described(folder: Path, slots: Sequence[Slot]) -> str:
    """The holders of the slots, for the message of a process that has to wait."""
    holding = []
    for slot in slots:
        file = locks.open_file(slot.file(folder))
        owner = locks.read_owner(file)
        os.close(file)
        holding.append(f"{slot.name}: pid {owner.get('pid', '?')} of {owner.get('user', '?')}")
    return f"no free GPU slot ({'; '.join(holding)})"


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
