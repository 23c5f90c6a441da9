"""The GPUs that a process may use, listed without importing torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moat.base.errors import ConfigError, MoatError

# Seconds that `nvidia-smi -L` may take: it may have to load the driver first.
DRIVER_TIMEOUT = 60.0
# What names a device in CUDA_VISIBLE_DEVICES: a number, or (the beginning of) a UUID.
_DEVICE_NAME = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z/_-]+")


@dataclass(frozen=True)
class Gpu:
    """A device: its ``name`` for every process of the machine, and its name in CUDA_VISIBLE_DEVICES, ``visible``."""

    name: str
    visible: str


def find(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs of this machine that the environment allows.

    ``MOAT_GPUS`` (comma-separated names) is taken as it is; without it CUDA_VISIBLE_DEVICES, whose numbers are those of
    `nvidia-smi`; without either, all that the driver lists.

    Raises:
        ConfigError: a name occurs twice, or a number is none of the driver's.
        MoatError: the driver is installed but does not answer.
    """
    if "MOAT_GPUS" in environ:
        names = _split(environ["MOAT_GPUS"])
        return _unique([Gpu(name, name) for name in names], "MOAT_GPUS", environ["MOAT_GPUS"])
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and not _usable(_split(chosen)):
        return []
    listed = driver_gpus()
    if chosen is None or not listed:
        return listed
    found = [_chosen(name, listed) for name in _usable(_split(chosen))]
    return _unique(found, "CUDA_VISIBLE_DEVICES", chosen)


def driver_gpus() -> list[Gpu]:
    """The driver's devices, a partitioned one as its MIG instances; empty without a driver."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        return parse_listing(_ask(program))
    numbers = sorted(int(path.name.removeprefix("nvidia")) for path in Path("/dev").glob("nvidia[0-9]*"))
    return [Gpu(f"nvidia{number}", str(index)) for index, number in enumerate(numbers)]


def parse_listing(text: str) -> list[Gpu]:
    """The devices in the output of ``nvidia-smi -L``, each named by its UUID."""
    found: list[list[str]] = []
    for line in text.splitlines():
        uuid = re.search(r"\(UUID: ((GPU|MIG)-[^)]+)\)", line)
        if uuid is None:
            continue
        if uuid[2] == "GPU":
            found.append([uuid[1]])
        elif found:
            found[-1].append(uuid[1])
    # Of a partitioned device only the instances can be used.
    return [Gpu(uuid, uuid) for device in found for uuid in (device[1:] or device)]


def _ask(program: str) -> str:
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=DRIVER_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise MoatError(
            f"{program} -L: no answer from the GPU driver within {DRIVER_TIMEOUT:.0f} s; "
            "name the GPUs in MOAT_GPUS, or use --device cpu"
        ) from error
    # It fails if the program is installed but there is no device.
    return done.stdout if done.returncode == 0 else ""


def _split(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _usable(names: list[str]) -> list[str]:
    """The names that CUDA reads from the variable: those before the first that names no device."""
    invalid = [index for index, name in enumerate(names) if not _DEVICE_NAME.fullmatch(name)]
    return names[: invalid[0]] if invalid else names


def _chosen(name: str, listed: list[Gpu]) -> Gpu:
    if name.isdecimal():
        if int(name) >= len(listed):
            raise ConfigError(f"CUDA_VISIBLE_DEVICES: no GPU {name} here; allowed: 0 to {len(listed) - 1}")
        return listed[int(name)]
    matching = [gpu for gpu in listed if gpu.name.startswith(name)]
    # A name that the driver does not list (a MIG path of an older driver) is left to CUDA.
    return matching[0] if len(matching) == 1 else Gpu(name, name)


def _unique(gpus: list[Gpu], variable: str, text: str) -> list[Gpu]:
    if len(set(gpus)) < len(gpus):
        raise ConfigError(f"{variable}={text}: names a GPU twice")
    return gpus
