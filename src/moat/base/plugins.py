"""Plug-ins: where their files are, and what they declare, read from the sources without importing them.

A method, an attack or a model is one file: of ``moat.methods``, ``moat.attacks`` or ``moat.models``, or of
``plugins/methods``, ``plugins/attacks`` or ``plugins/models`` beside a project's ``config/``. A project's files are
modules of the same package, as if they stood in it. Nothing here imports them: a plan must not wait for torch.
"""

import ast
import functools
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, unknown_name

_PACKAGE = Path(__file__).parent.parent
_project = Path()


# -- where they are --------------------------------------------------------------
def use_project(root: str | Path) -> None:
    """From now on the plug-ins of this project count; at first those of the working directory."""
    global _project
    if Path(root).resolve() != _project.resolve():
        # The import system remembers the contents of folders, and has not seen a file that has just appeared.
        importlib.invalidate_caches()
    _project = Path(root)


def folders(package: str) -> list[Path]:
    """Where the modules of ``moat.<package>`` may stand: in its own folder, and in the project's, if it has one."""
    own = _project / "plugins" / package
    return [_PACKAGE / package, *([own] if own.is_dir() else [])]


class SearchPath(Sequence):
    """The ``__path__`` of a package some of whose modules may stand in the project's ``plugins/``."""

    def __init__(self, package: str):
        self.package = package

    def __getitem__(self, index):
        return [str(folder.absolute()) for folder in folders(self.package)][index]

    def __len__(self) -> int:
        return len(folders(self.package))


def modules(package: str) -> dict[str, Path]:
    """Name -> file of a package's modules, the project's included, but those whose names begin with ``_``.

    Raises:
        ConfigError: a plug-in of the project has the name of one of moat's own modules.
    """
    found: dict[str, Path] = {}
    for folder in folders(package):
        for path in sorted(folder.glob("*.py")):
            if path.stem in found:
                raise ConfigError(f"{path}: moat has a module of this name, {found[path.stem]}; rename the plug-in")
            if not path.stem.startswith("_"):
                found[path.stem] = path
    return found


def shown(path: Path) -> str:
    """A plug-in's file as messages name it: from the project, or from the folder that holds the package."""
    for above in (_PACKAGE.parent, _project):
        if path.resolve().is_relative_to(above.resolve()):
            return path.resolve().relative_to(above.resolve()).as_posix()
    return str(path)


# -- what they declare -----------------------------------------------------------
@dataclass(frozen=True)
class Parameter:
    """One parameter that a plug-in declares.

    Attributes:
        allowed: what its values may be, in the words of JSON Schema. ``type`` may also be one of the types that the
            schema of the file defines, e.g. "attack". Three words more: ``default`` (what is resolved where nothing
            is given), ``required: False`` (may be left out although there is no default), and ``follows`` (another
            key, whose overrides by a scale hold for this one, too).
        where: the place of the declaration, e.g. "moat/methods/trades.py: Trades.PARAMETERS".
    """

    allowed: Mapping[str, Any]
    where: str


# Modules of moat.methods that hold what methods share.
_SHARED = {"base", "losses", "schedules"}


def method_classes() -> dict[str, Path]:
    """The names by which recipes call the method classes, and their files."""
    return {stem.replace("_", "-"): path for stem, path in modules("methods").items() if stem not in _SHARED}


def method_parameters(name: str) -> dict[str, Parameter]:
    """The recipe keys that a method class declares in ``PARAMETERS``, those of its bases first.

    A key is dotted where it lies inside a mapping: ``"loss.beta"``.

    Raises:
        ConfigError: no such class, a module without ``METHOD``, or a declaration that is no literal; names the file.
    """
    classes = method_classes()
    if name not in classes:
        raise ConfigError(unknown_name(name, classes, what="method class"))
    method = _names(classes[name]).get("METHOD")
    if not isinstance(method, ast.Name | ast.Attribute):
        raise ConfigError(no_method(classes[name], method and ast.unparse(method)))
    return _parameters_of(classes[name], method)


def no_method(path: str | Path, found: str | None) -> str:
    """The sentence for a method's module whose ``METHOD`` is missing, or is not a class but ``found``."""
    missing = "there is no METHOD in it" if found is None else f"METHOD is {found}"
    return (
        f"{path}: {missing}; a method's module ends in `METHOD = <its class>`, a subclass of "
        "moat.methods.base.Method (what methods share is in modules whose names begin with _)"
    )


def _parameters_of(path: Path, reference: ast.expr | None) -> dict[str, Parameter]:
    """What the class declares that a file calls ``reference``; nothing where the source does not show which one."""
    names = _names(path)
    if isinstance(reference, ast.Attribute) and isinstance(reference.value, ast.Name):
        module, name = names.get(reference.value.id), reference.attr
    elif isinstance(reference, ast.Name) and isinstance(names.get(reference.id), ast.ClassDef):
        return _own_and_inherited(path, names[reference.id])
    elif isinstance(reference, ast.Name) and isinstance(names.get(reference.id), str):
        module, _, name = names[reference.id].rpartition(".")
    else:
        return {}
    defined_in = _file_of(module)
    return _parameters_of(defined_in, ast.Name(name)) if defined_in else {}


def _own_and_inherited(path: Path, definition: ast.ClassDef) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for base in reversed(definition.bases):
        found |= _parameters_of(path, base)
    declared = _names_of(definition.body).get("PARAMETERS")
    if declared is None:
        return found
    where = f"{shown(path)}: {definition.name}.PARAMETERS"
    try:
        own = ast.literal_eval(declared)
    except ValueError as error:
        raise ConfigError(f"{where}: must be a literal, so that a plan can read it without importing torch") from error
    return found | {key: Parameter(allowed, where) for key, allowed in own.items()}


def _file_of(module: object) -> Path | None:
    """The file of a module of a package that plug-ins may belong to; None for any other."""
    first, _, rest = module.removeprefix("moat.").partition(".") if isinstance(module, str) else ("", "", "")
    candidates = [folder / f"{rest.replace('.', '/')}.py" for folder in folders(first)] if rest else []
    return next((path for path in candidates if path.exists()), None)


def _names(path: Path) -> dict[str, Any]:
    """What a module's names stand for: an expression, a class definition, or the dotted name of an import."""
    return _parsed(path, path.stat().st_mtime_ns)


@functools.cache
def _parsed(path: Path, mtime_ns: int) -> dict[str, Any]:
    return _names_of(ast.parse(path.read_text(encoding="utf-8"), str(path)).body)


def _names_of(body: list[ast.stmt]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node.value
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    return names


# -- nets, figures, probes, measures -----------------------------------------------
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
    return {path.stem: ast.literal_eval(_names(path)["SHOWS"]) for path in files if not path.stem.startswith("_")}


@functools.cache
def probe_kinds() -> tuple[str, ...]:
    """The modules of :mod:`moat.evaluation.probes`."""
    files = (_PACKAGE / "evaluation" / "probes").glob("*.py")
    return tuple(sorted(path.stem for path in files if not path.stem.startswith("_")))


@functools.cache
def measures() -> dict[str, tuple[str, ...]]:
    """The measures of :mod:`moat.reporting.measures`, and what each reads: its literal ``READS``."""
    return ast.literal_eval(_names(_PACKAGE / "reporting" / "measures.py")["READS"])


def _keys(path: Path, variable: str) -> list[str]:
    """The literal keys of a module's dict ``variable``; none where it has no such dict."""
    mapping = _names(path).get(variable)
    return [ast.literal_eval(key) for key in mapping.keys] if isinstance(mapping, ast.Dict) else []


# -- attacks ---------------------------------------------------------------------
def attack_families() -> dict[str, Path]:
    """The names of the attack families, and their files: modules or packages with a function of their own name.

    Raises:
        ConfigError: a plug-in of the project has the name of one of moat's own.
    """
    found: dict[str, Path] = {}
    for folder in folders("attacks"):
        for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
            name = path.parent.name if path.name == "__init__.py" else path.stem
            if not isinstance(_names(path).get(name), ast.FunctionDef):
                continue
            if name in found:
                raise ConfigError(f"{path}: moat has an attack of this name, {found[name]}; rename the plug-in")
            found[name] = path
    return found


def attack_parameters(name: str) -> dict[str, Parameter]:
    """The parameters that an attack family declares in ``PARAMETERS``; ``required`` where its function has no default.

    Raises:
        ConfigError: no such family, or a declaration that is missing, no literal, or not that of the function.
    """
    families = attack_families()
    if name not in families:
        raise ConfigError(unknown_name(name, families, what="attack"))
    path = families[name]
    where = f"{shown(path)}: PARAMETERS"
    declared = _attack_literal(path, "PARAMETERS")
    if declared is None:
        raise ConfigError(f"{where}: missing; a dictionary from each parameter of {name} to what it may be")
    signature = _names(path)[name].args
    arguments = zip(signature.kwonlyargs, signature.kw_defaults, strict=True)
    required = {argument.arg: default is None for argument, default in arguments}
    if unknown := [key for key in declared if key not in required]:
        raise ConfigError(f"{where}: {unknown[0]!r} is no keyword of the function {name}")
    return {key: Parameter({**allowed, "required": required[key]}, where) for key, allowed in declared.items()}


def attack_passes() -> dict[str, float]:
    """The passes through the net for one image of those attack families that declare them in ``PASSES``."""
    declared = {name: _attack_literal(path, "PASSES") for name, path in attack_families().items()}
    return {name: passes for name, passes in declared.items() if passes is not None}


def _attack_literal(path: Path, variable: str) -> Any:
    declared = _names(path).get(variable)
    try:
        return declared if declared is None else ast.literal_eval(declared)
    except ValueError as error:
        where = f"{shown(path)}: {variable}"
        raise ConfigError(f"{where}: must be a literal, so that a plan can read it without importing torch") from error
