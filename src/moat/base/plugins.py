"""Names of plug-ins, read from the sources without importing them: a plan must not wait for torch."""

import ast
import functools
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent


@functools.cache
def archs() -> tuple[str, ...]:
    """The names that :func:`moat.models.nets.build` knows: the keys of every ``NETS`` in :mod:`moat.models.nets`."""
    return tuple(sorted(name for path in (_PACKAGE / "models" / "nets").glob("*.py") for name in _keys(path, "NETS")))


def net_file(arch: str, package: Path = _PACKAGE) -> Path | None:
    """The module of :mod:`moat.models.nets` that declares ``arch``; None where none does."""
    return next(
        (path for path in sorted((package / "models" / "nets").glob("*.py")) if arch in _keys(path, "NETS")), None
    )


@functools.cache
def figure_kinds() -> dict[str, str]:
    """The modules of :mod:`moat.reporting.figures`, and what each shows: its literal ``SHOWS``."""
    files = sorted((_PACKAGE / "reporting" / "figures").glob("*.py"))
    return {path.stem: _literal(path, "SHOWS") for path in files if not path.stem.startswith("_")}


@functools.cache
def probe_kinds() -> tuple[str, ...]:
    """The modules of :mod:`moat.evaluation.probes`."""
    files = (_PACKAGE / "evaluation" / "probes").glob("*.py")
    return tuple(sorted(path.stem for path in files if not path.stem.startswith("_")))


@functools.cache
def measures() -> dict[str, tuple[str, ...]]:
    """The modules of :mod:`moat.reporting.measures`, and what each reads: its literal ``READS``."""
    files = sorted((_PACKAGE / "reporting" / "measures").glob("*.py"))
    return {path.stem: tuple(_literal(path, "READS")) for path in files if not path.stem.startswith("_")}


def _literal(path: Path, variable: str):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == variable for t in node.targets):
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path}: no {variable}")


def _keys(path: Path, variable: str) -> list[str]:
    """The literal keys of a module's dict ``variable``; none where it has no such dict."""
    return list(_keys_once(path, path.stat().st_mtime_ns, variable))


@functools.cache
def _keys_once(path: Path, mtime_ns: int, variable: str) -> tuple[str, ...]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", None) == variable for t in node.targets):
            return tuple(ast.literal_eval(key) for key in node.value.keys)
    return ()
