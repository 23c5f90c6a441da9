"""Where a result comes from: versions, hardware, commit, lock file. (Its sources: :mod:`moat.provenance.staleness`.)"""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

import moat

_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "pandas",
    "scikit-learn",
    "safetensors",
    "matplotlib",
    "snakemake",
)
# What `git rev-parse --local-env-vars` lists, without the configuration.
_OF_ANOTHER_REPOSITORY = {
    *("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX"),
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_GRAFT_FILE", "GIT_NAMESPACE", "GIT_SHALLOW_FILE"),
}


def environment() -> dict[str, dict]:
    """Hardware and versions, for run.json and its like."""
    return {"hardware": _hardware(), "versions": _versions()}


def git_commit(root: Path = Path(".")) -> str | None:
    """The commit of ``root``, with ``+`` where the working tree differs from it.

    None without git, and where ``root`` is not the top of a repository: then it lies in somebody else's, whose commit
    tells nothing.
    """
    top = _output(["git", "-C", str(root), "rev-parse", "--show-toplevel"])
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if commit is None or top is None or Path(top).resolve() != root.resolve():
        return None
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def lock_hash(root: Path = Path(".")) -> str | None:
    """sha256 of the lock file of pinned versions; None where there is none."""
    lock = root / "envs" / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "moat": moat.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _hardware() -> dict[str, object]:
    hardware: dict[str, object] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        hardware["threads"] = torch.get_num_threads()
        kernels = sys.modules.get("moat.kernels")
        hardware["compiled_convolutions"] = kernels.compiled_for() if kernels else None
        if torch.cuda.is_available():
            hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            hardware["cuda"] = torch.version.cuda
    return hardware


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.split(":", 1)[1].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _output(command: list[str]) -> str | None:
    # Inside a hook, git says where its own repository is.
    environ = {name: value for name, value in os.environ.items() if name not in _OF_ANOTHER_REPOSITORY}
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
