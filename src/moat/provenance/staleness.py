"""Content hashes of the sources that made a result.

Counted are the files that took part: the method's, the net's, the attacks', and what they import. So a new attack
or a new method makes no finished result stale. Comments, docstrings and blank lines do not count. Results whose
recorded hashes differ from today's are *stale*: reported, never thrown away by themselves.
"""

import ast
import functools
import hashlib
import io
import os
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moat.base.files import read_json
from moat.base.plugins import net_file

PACKAGE = Path(__file__).parents[1]

# Which part of the package a file that took part belongs to.
PARTS: Mapping[str, tuple[str, ...]] = {
    "nets": ("models/", "kernels/"),
    "method": ("methods/",),
    "attacks": ("attacks/", "data/corruptions/"),
    "engine": ("training/", "data/batches.py", "data/seeding.py", "data/augmentation.py", "data/extra_images.py"),
    "evaluation": ("evaluation/",),
    "checks": ("evaluation/",),
    "probing": ("evaluation/",),
}
TRAINING_PARTS = ("nets", "method", "attacks", "engine")
EVALUATION_PARTS = ("nets", "attacks", "evaluation")
CHECKS_PARTS = ("nets", "attacks", "checks")
PROBE_PARTS = ("nets", "attacks", "probing")

# What takes part wherever the part is asked for. (A new check changes no evaluation, the statistics change no row.)
_ROOTS: Mapping[str, tuple[str, ...]] = {
    "engine": ("training/*.py", "data/batches.py", "data/seeding.py"),
    "evaluation": ("evaluation/runner.py",),
    "checks": ("evaluation/checks/*.py",),
}


def hash_parts(
    parts: Iterable[str],
    *,
    method: str | None,
    arch: str | None,
    attacks: Iterable[str] = (),
    probe: str | None = None,
    package: Path = PACKAGE,
) -> dict[str, str]:
    """Content hash of each part today: part -> 16 hex digits.

    Args:
        parts: keys of :data:`PARTS`.
        method, arch: registry names of what was trained; None for a model from elsewhere.
        attacks: attack families (files of ``attacks/``) that were used by name.
        probe: the kind of probe (file of ``evaluation/probes/``).
    """
    parts = tuple(parts)
    roots = [path for name in attacks for path in _attack_files(name, package)]
    if method is not None:
        roots.append(package / "methods" / f"{method.replace('-', '_')}.py")
    if probe is not None:
        roots.append(package / "evaluation" / "probes" / f"{probe}.py")
    if arch is not None:
        roots += [path for path in [net_file(arch, package)] if path is not None]
    roots += [path for part in parts for pattern in _ROOTS.get(part, ()) for path in package.glob(pattern)]
    taking_part = _with_imports(roots, package)
    return {part: _hash([path for path in taking_part if _is_in(path, part, package)], package) for part in parts}


_hash_parts_once = functools.cache(hash_parts)


def stale(record: Mapping[str, Any], *, package: Path = PACKAGE) -> list[str]:
    """The parts whose sources differ today from those that a record names; empty where it is up to date.

    Args:
        record: the content of a run.json, or of an evaluation's or a check's JSON: ``sources``, and the
            method, arch and attacks that they were hashed for. One without sources is not stale.
    """
    recorded = record.get("sources") or {}
    run = record["run"] if isinstance(record.get("run"), Mapping) else record
    # Thousands of records are of a few hundred kinds; the package that runs does not change while it does.
    hashes = _hash_parts_once if package == PACKAGE else hash_parts
    today = hashes(
        tuple(part for part in recorded if part in PARTS),
        method=run.get("method"),
        arch=run.get("arch"),
        attacks=tuple(attacks_of(record)),
        probe=(record.get("probe") or {}).get("probe"),
        package=package,
    )
    return [part for part, value in recorded.items() if today.get(part) != value]


def stale_file(path: str | os.PathLike) -> list[str]:
    """:func:`stale` for a record on disk; nothing is stale where there is none."""
    return stale(read_json(path)) if Path(path).exists() else []


def attacks_of(record: Mapping[str, Any]) -> list[str]:
    """The attack families that a record names: in its settings, as the validation's, or listed."""
    settings = [*record.get("settings", {}).values(), record.get("validation_attack", {})]
    named = {setting["attack"] for setting in settings if "attack" in setting} | {*record.get("attacks", ())}
    return sorted(named | ({"views"} if any(setting.get("view") for setting in settings) else set()))


def reporting_hash(*, package: Path = PACKAGE) -> str:
    """Content hash of what makes tables, figures and the page: code and templates."""
    folder = package / "reporting"
    counted = [package / "evaluation" / name for name in ("statistics.py", "clusters.py")]
    code = [*folder.rglob("*.py"), *counted]
    templates = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    digest = hashlib.sha256(_hash(code, package).encode())
    for path in templates:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _attack_files(name: str, package: Path) -> list[Path]:
    """A family is a module or a package; ``views`` is a part of several."""
    folder = package / "attacks"
    return [folder / f"{name}.py", folder / name / "__init__.py", folder / "parts" / f"{name}.py"]


def _is_in(path: Path, part: str, package: Path) -> bool:
    return path.relative_to(package).as_posix().startswith(PARTS[part])


def _with_imports(roots: Iterable[Path], package: Path) -> set[Path]:
    """The files and all of the package that they import, directly or not."""
    found: set[Path] = set()
    todo = list(roots)
    while todo:
        path = todo.pop()
        if path not in found and path.exists():
            found.add(path)
            if path.suffix == ".py":
                todo += _imports(path, path.stat().st_mtime_ns, package)
    return found


@functools.cache
def _imports(path: Path, mtime_ns: int, package: Path) -> tuple[Path, ...]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    inside = [name.split(".")[1:] for name in names if name.startswith("moat.")]
    candidates = [file for parts in inside for file in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py"))]
    # A module may have a part that is compiled.
    return (path.with_suffix(".cpp"), *(package / file for file in candidates))


def _hash(files: Iterable[Path], package: Path) -> str:
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
    if path.suffix == ".cpp":
        return "\n".join(line.rstrip() for line in lines if line.strip() and not line.lstrip().startswith("//"))
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
