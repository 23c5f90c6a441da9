"""Which device a command computes on, and with how many threads."""

import contextlib
import ctypes
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from moat.base.errors import ConfigError
from moat.machine import gpu_lease, gpus

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt and their largest values: the size above which memory is mapped separately and unmapped
# when freed, and how much free memory the heap keeps.
MALLOPT = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}

# Torch crashes where the system does not start as many threads as it is asked for.
MOST_THREADS = 1024


def add_arguments(parser) -> None:
    """Add ``--device`` and ``--threads``, which are the same for every command that computes."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")


def gpu_note(environ: Mapping[str, str] = os.environ) -> str:
    """One line about the GPUs that jobs of this machine may lease, without importing torch or asking the driver."""
    if "MOAT_GPUS" in environ:
        found, source = _names(environ["MOAT_GPUS"]), "of MOAT_GPUS"
    else:
        found, source = sorted(Path("/dev").glob("nvidia[0-9]*")), "found"
    given = _names(environ.get("CUDA_VISIBLE_DEVICES", ""))
    if gpu_lease.assigned_by_slurm(environ) and len(given) > 1:
        return (
            f"moat: WARNING: SLURM has given this job {len(given)} GPUs, and every job of Snakemake here will use the "
            "first of them; to lease among them: export MOAT_GPUS=$CUDA_VISIBLE_DEVICES, and "
            f"`--resources gpu={len(given)}`"
        )
    if not found:
        return "moat: no GPU on this machine; training and attacks run on the CPU"
    return f"moat: {len(found)} GPU(s) {source}; `--resources gpu=N` limits how many jobs may lease one at a time"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def use(device: str, threads: int) -> "Iterator[torch.device]":
    """:func:`lease`, then :func:`select`: the device to compute on. Enter it before torch is imported."""
    with lease(device) as name:
        yield select(name, threads)


@contextlib.contextmanager
def lease(device: str) -> Iterator[str]:
    """Hold a GPU slot (:mod:`moat.machine.gpu_lease`) if ``--device`` may need one; enter it before torch is imported.

    Yields the device to compute on: CUDA sees only the leased GPU, so that ``cuda:1`` becomes ``cuda``.

    Raises:
        ConfigError: there is no such GPU; and see :func:`moat.machine.gpu_lease.lease`.
    """
    if gpu_lease.assigned_by_slurm():
        log.info("GPU assigned by SLURM: %s", os.environ.get("CUDA_VISIBLE_DEVICES") or "none")
        yield device
        return
    if device == "cpu" or not _may_use_gpu():
        yield device
        return
    candidates = None
    if numbered := re.fullmatch(r"cuda:(\d+)", device):
        found, number = gpus.find(), int(numbered[1])
        if number >= len(found):
            names = ", ".join(gpu.name for gpu in found) or "none"
            raise ConfigError(f"--device {device}: no such GPU; found: {names}")
        candidates = [found[number]]
    with gpu_lease.lease(candidates) as slot:
        yield "cuda" if slot and numbered else device


def _may_use_gpu() -> bool:
    """Whether the installed torch was built for GPUs, found out without importing it; MOAT_GPUS says yes."""
    if "MOAT_GPUS" in os.environ:
        return True
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.exists():
        return True
    built_for = re.search(r"^(?:cuda|hip)\b[^=]*= *['\"]", version.read_text(encoding="utf-8"), re.MULTILINE)
    return built_for is not None


def select(name: str, threads: int) -> "torch.device":
    """Configure torch for reproducible results and return the ``torch.device``. Call before computing anything.

    Raises:
        ConfigError: an unknown device, a missing GPU, or a number of threads that is not allowed.
    """
    if not 1 <= threads <= MOST_THREADS:
        raise ConfigError(f"--threads {threads}: allowed: 1 to {MOST_THREADS}")
    # cuBLAS reads it when it is initialized; without it some of its sums are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch  # Not before a GPU was leased.

    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: allowed: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: allowed: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch sees no GPU here; use --device cpu, or auto")
    return device


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors. Without glibc this does nothing.

    By default every attack step returns its activations to the system and gets zeroed pages back, which takes a tenth
    of the time on a narrow net.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in MALLOPT.values():
        mallopt(parameter, value)
