"""Which device a command computes on, and with how many threads."""

import argparse
import ctypes
import importlib.util
import logging
import os
import re
from pathlib import Path

from moat.base.errors import ConfigError

log = logging.getLogger(__name__)

# Parameters of glibc's mallopt, and their largest values: from which size on memory is mapped by itself and unmapped
# when it is freed, and how much free memory the heap keeps.
MALLOPT = {"M_MMAP_THRESHOLD": (-3, 2**25), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def add_arguments(parser) -> None:
    """``--device`` and ``--threads``, the same for every command that computes."""
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")


def gpu_note() -> str:
    """One line about the GPUs of this machine, without importing torch."""
    gpus = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not gpus:
        return "moat: no GPU found on this machine; what is trained and attacked here runs on the CPU"
    return f"moat: {len(gpus)} GPU(s) found; `--resources gpu=N` says how many jobs may lease one at once"


def lease(arguments: argparse.Namespace) -> None:
    """Hold a GPU slot (:mod:`moat.machine.gpu_lease`) until the command ends. Call before torch is imported.

    Of what is leased CUDA sees one device: ``--device cuda:1`` becomes ``cuda``.

    Raises:
        ConfigError: ``cuda:N`` is not there, and see :func:`moat.machine.gpu_lease.lease`.
    """
    from moat.machine import gpu_lease, gpus

    if gpu_lease.assigned_by_slurm():
        log.info("GPU assigned by SLURM: %s", os.environ.get("CUDA_VISIBLE_DEVICES") or "none")
        return
    if arguments.device == "cpu" or not _may_use_gpu():
        return
    numbered = re.fullmatch(r"cuda:(\d+)", arguments.device)
    candidates = _numbered(gpus.find(), int(numbered[1])) if numbered else None
    slot = arguments.until_end.enter_context(gpu_lease.lease(candidates))
    if slot and numbered:
        arguments.device = "cuda"


def _numbered(found: list, number: int) -> list:
    if number >= len(found):
        names = ", ".join(gpu.name for gpu in found) or "none"
        raise ConfigError(f"--device cuda:{number}: no such GPU; found: {names}")
    return [found[number]]


def _may_use_gpu() -> bool:
    """Whether the torch that is installed was built for GPUs, without importing it; MOAT_GPUS says yes."""
    if "MOAT_GPUS" in os.environ:
        return True
    spec = importlib.util.find_spec("torch")
    version = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    if version is None or not version.exists():
        return True
    built_for = re.search(r"^(?:cuda|hip)\b[^=]*= *['\"]", version.read_text(encoding="utf-8"), re.MULTILINE)
    return built_for is not None


def select(name: str, threads: int):
    """Set up torch for reproducible work and return the ``torch.device``. Call before anything is computed.

    Raises:
        ConfigError: an unknown device, a GPU that is not there, or a number of threads below 1.
    """
    if threads < 1:
        raise ConfigError(f"--threads {threads}: allowed: 1 or more")
    # Read by cuBLAS when its handle is made; without it some of its sums are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

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
    """Let this process keep what it frees, for its next tensors; of no effect where the C library is not glibc.

    Otherwise an attack hands its activations back to the system in every step and gets cleared pages for them: a tenth
    of its time on a narrow net.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in MALLOPT.values():
        mallopt(parameter, value)
