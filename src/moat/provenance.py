"""Where a result comes from: content hashes of the sources that made it, versions, hardware, commit.

A hash ignores comments, docstrings and blank lines, so that it changes only where behaviour may.
Results whose recorded hashes differ from today's are *stale*: reported, never thrown away by themselves.
"""

import ast
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path

import moat

PACKAGE = Path(__file__).parent

# Which part of the package a source belongs to; the method's own file is the part "method".
PARTS: Mapping[str, tuple[str, ...]] = {
    "nets": ("nets", "moe"),
    "attacks": ("attacks",),
    "engine": ("training", "data/batches.py", "data/seeding.py"),
    "evaluation": ("evaluation",),
}
TRAINING_PARTS = ("nets", "method", "attacks", "engine")
EVALUATION_PARTS = ("nets", "attacks", "evaluation")
_PACKAGES = ("torch", "torchvision", "numpy", "pandas", "scikit-learn", "safetensors", "matplotlib", "snakemake")


def sources(
    method: str | None = None, parts: Iterable[str] | None = None, *, package: Path = PACKAGE
) -> dict[str, str]:
    """Content hash of each part of the package today: part -> 16 hex digits.

    Args:
        method: registry name of the method whose file (and what it imports of other methods) is the part "method".
        parts: which parts; all that are known by default.
    """
    wanted = tuple(parts) if parts is not None else (*PARTS, *(("method",) if method else ()))
    hashes = {}
    for part in wanted:
        files = _method_files(method, package) if part == "method" else _part_files(part, package)
        hashes[part] = _hash_sources(files, package)
    return hashes


def reporting_hash(*, package: Path = PACKAGE) -> str:
    """Content hash of what makes tables, figures and the page: code and templates."""
    folder = package / "reporting"
    code = [*folder.rglob("*.py"), package / "evaluation" / "statistics.py"]
    templates = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    digest = hashlib.sha256(_hash_sources(code, package).encode())
    for path in templates:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def stale(recorded: Mapping[str, str], method: str | None, *, package: Path = PACKAGE) -> list[str]:
    """The parts whose sources differ today from ``recorded``; empty where the result is up to date."""
    today = sources(method, recorded, package=package)
    return [part for part, value in recorded.items() if today[part] != value]


def stale_record(path: str | os.PathLike, method: str | None) -> list[str]:
    """:func:`stale` for the record of a run, an evaluation or a gate; nothing is stale where there is none."""
    path = Path(path)
    recorded = json.loads(path.read_text(encoding="utf-8")).get("sources", {}) if path.exists() else {}
    return stale(recorded, method)


def environment() -> dict[str, dict]:
    """Hardware and versions, for run.json and its like."""
    return {"hardware": _hardware(), "versions": _versions()}


def git_commit(root: Path = Path(".")) -> str | None:
    """The commit of ``root``, with ``+`` where the working tree differs from it; None without git."""
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return commit + ("+" if changed else "")


def lock_hash(root: Path = Path(".")) -> str | None:
    """sha256 of the lock file of pinned versions; None where there is none."""
    lock = root / "envs" / "requirements.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.exists() else None


# -- content hashes ----------------------------------------------------------


def _part_files(part: str, package: Path) -> list[Path]:
    files: list[Path] = []
    for entry in PARTS[part]:
        path = package / entry
        files += [path] if path.suffix == ".py" else path.rglob("*.py")
    return files


def _method_files(method: str | None, package: Path) -> list[Path]:
    """The method's file, the shared base and losses, and the methods that it imports."""
    folder = package / "methods"
    found = {folder / "base.py", folder / "losses.py"}
    todo = [folder / f"{(method or '').replace('-', '_')}.py"]
    while todo:
        path = todo.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        todo += [folder / f"{name}.py" for name in _imported_methods(path)]
    return [path for path in found if path.exists()]


def _imported_methods(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "moat.methods":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("moat.methods."):
            names.add(node.module.rsplit(".", 1)[1])
    return names


def _hash_sources(files: Iterable[Path], package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(package).as_posix()}\n".encode())
        digest.update(_behaviour(path, path.stat().st_mtime_ns).encode())
    return digest.hexdigest()[:16]


@functools.cache
def _behaviour(path: Path, mtime_ns: int) -> str:
    """The file's text without comments, docstrings and blank lines; the same on every Python version."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for first, last in _docstrings(text):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _docstrings(text: str) -> list[tuple[int, int]]:
    places = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or not node.body:
            continue
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            places.append((first.lineno, first.end_lineno))
    return places


# -- environment -------------------------------------------------------------


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
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
