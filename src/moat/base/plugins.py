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
from moat.base.files import visible

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


def project_folder() -> Path:
    """The project's folder of plug-ins, whether it exists or not; below it lies what lies below the package."""
    return _project / "plugins"


def folders(package: str) -> list[Path]:
    """Where the modules of ``moat.<package>`` may stand: in its own folder, and in the project's, if it has one."""
    own = project_folder() / package
    return [_PACKAGE / package, *([own] if own.is_dir() else [])]


class SearchPath(Sequence):
    """The ``__path__`` of a package some of whose modules may stand in the project's ``plugins/``."""

    def __init__(self, package: str):
        self.package = package

    def __getitem__(self, index):
        return [str(folder.absolute()) for folder in folders(self.package)][index]

    def __len__(self) -> int:
        return len(folders(self.package))


def modules(package: str) -> Mapping[str, Path]:
    """Name -> file of a package's modules (packages, too), the project's included, but not of names that begin with _.

    Raises:
        ConfigError: a plug-in of the project has the name of one of moat's own modules.
    """
    return _modules(package, written())


# A plan asks thousands of times. What is remembered holds as long as the project's plug-ins stay as they are.
@functools.cache
def _modules(package: str, plugins_written: tuple) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for folder in folders(package):
        for path in sorted([*visible(folder, "*.py"), *visible(folder, "*/__init__.py")]):
            name = path.parent.name if path.stem == "__init__" and path.parent != folder else path.stem
            if name in found:
                raise ConfigError(f"{path}: moat has a module of this name, {found[name]}; rename the plug-in")
            if not name.startswith("_"):
                found[name] = path
    return found


def project_modules(package: str) -> dict[str, Path]:
    """Those of :func:`modules` that are the project's."""
    return {name: path for name, path in modules(package).items() if not path.is_relative_to(_PACKAGE)}


def written() -> tuple[tuple[str, int], ...]:
    """The project's plug-ins and when each was written: what is imported, or remembered, of them is of these."""
    folder = project_folder()
    # A plan asks tens of thousands of times, and most projects have none.
    files = [*visible(folder, "*/*.py"), *visible(folder, "*/*/*.py")] if folder.is_dir() else []
    return tuple((str(path.resolve()), path.stat().st_mtime_ns) for path in files)


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


def recipe_parameters(method_class: str, model: Mapping[str, Any]) -> Mapping[str, Parameter]:
    """The recipe keys that a method class declares in ``PARAMETERS``, those of its bases first, and its mixture's.

    A key is dotted where it lies inside a mapping: ``"loss.beta"``.

    Args:
        model: the recipe's ``model``, in which a class without a ``MIXTURE`` lets it choose one.

    Raises:
        ConfigError: no such class or mixture, a module without ``METHOD``, or a declaration that is no literal; names
            the file.
    """
    return _recipe_parameters(method_class, mixture_of(method_class, model), written())


@functools.cache
def _recipe_parameters(method_class: str, mixture: str | None, plugins_written: tuple) -> Mapping[str, Parameter]:
    found: dict[str, Parameter] = {}
    for path, name, attributes in _lineage(method_class):
        found |= _declared(attributes.get("PARAMETERS"), f"{shown(path)}: {name}.PARAMETERS")
    if _own_mixture(method_class, plugins_written) is None:
        found["model.mixture"] = _CHOICE
    if mixture is None:
        return found
    known = mixtures()
    if mixture not in known:
        raise ConfigError(unknown_name(mixture, known, what="mixture"))
    declared = _declared(_names(known[mixture]).get("PARAMETERS"), f"{shown(known[mixture])}: PARAMETERS")
    return found | {f"model.{key}": parameter for key, parameter in declared.items()}


_CHOICE = Parameter(
    {"type": "string", "required": False, "description": "a mixture of experts in place of a single net"},
    "moat/methods/base.py: Method.MIXTURE",
)


def mixture_of(method_class: str, model: Mapping[str, Any]) -> str | None:
    """The mixture that a method class trains: its own, or the one that the recipe's ``model`` names; None for a net."""
    return _own_mixture(method_class, written()) or model.get("mixture")


@functools.cache
def _own_mixture(method_class: str, plugins_written: tuple) -> str | None:
    written = [
        (attributes["MIXTURE"], f"{shown(path)}: {name}.MIXTURE")
        for path, name, attributes in _lineage(method_class)
        if "MIXTURE" in attributes
    ]
    return _literal(*written[-1]) if written else None


def _lineage(method_class: str) -> list[tuple[Path, str, dict[str, Any]]]:
    """(file, name, attributes as written) of a method class, its bases before it."""
    classes = method_classes()
    if method_class not in classes:
        raise ConfigError(unknown_name(method_class, classes, what="method class"))
    path = classes[method_class]
    method = _names(path).get("METHOD")
    if not isinstance(method, ast.Name | ast.Attribute):
        raise ConfigError(no_method(path, method and ast.unparse(method)))
    # A base that two others share stands before both, as in Python's own order.
    return list({each[:2]: each for each in _class_and_bases(path, method)}.values())


def mixtures() -> Mapping[str, Path]:
    """The names of the mixtures of experts, and their files: modules with a ``MIXTURE``.

    Raises:
        ConfigError: a plug-in of the project has the name of one of moat's own mixtures.
    """
    return _mixtures(written())


@functools.cache
def _mixtures(plugins_written: tuple) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    own = {path.stem: path for path in visible(_PACKAGE / "models" / "moe", "*.py")}
    for module, path in [*own.items(), *project_modules("models").items()]:
        name = module.replace("_", "-")
        if "MIXTURE" not in _names(path):
            continue
        if name in found:
            raise ConfigError(f"{path}: moat has a mixture {name!r}, {found[name]}; rename the plug-in")
        found[name] = path
    return found


def is_own(run: Mapping[str, Any]) -> bool:
    """Whether method class, net and mixture of a run.json are all moat's own, and none of them a project's plug-in."""
    files = [method_classes().get(run["class"]), net_file(run["arch"])]
    files += [] if run["mixture"] is None else [mixtures().get(run["mixture"])]
    return all(path is not None and path.is_relative_to(_PACKAGE) for path in files)


def no_method(path: str | Path, found: str | None) -> str:
    """The sentence for a method's module whose ``METHOD`` is missing, or is not a class but ``found``."""
    missing = "there is no METHOD in it" if found is None else f"METHOD is {found}"
    return (
        f"{path}: {missing}; a method's module ends in `METHOD = <its class>`, a subclass of "
        "moat.methods.base.Method (what methods share is in modules whose names begin with _)"
    )


def _class_and_bases(path: Path, reference: ast.expr) -> list[tuple[Path, str, dict[str, Any]]]:
    """As :func:`_lineage`, of the class that a file calls ``reference``; nothing where the sources do not show it."""
    names = _names(path)
    if isinstance(reference, ast.Attribute) and isinstance(reference.value, ast.Name):
        module, name = names.get(reference.value.id), reference.attr
    elif isinstance(reference, ast.Name) and isinstance(names.get(reference.id), ast.ClassDef):
        definition = names[reference.id]
        bases = [each for base in reversed(definition.bases) for each in _class_and_bases(path, base)]
        return [*bases, (path, definition.name, _names_of(definition.body))]
    elif isinstance(reference, ast.Name) and isinstance(names.get(reference.id), str):
        module, _, name = names[reference.id].rpartition(".")
    else:
        return []
    defined_in = _file_of(module)
    return _class_and_bases(defined_in, ast.Name(name)) if defined_in else []


def _declared(parameters: ast.expr | None, where: str) -> dict[str, Parameter]:
    found = {} if parameters is None else _literal(parameters, where)
    return {key: Parameter(allowed, where) for key, allowed in found.items()}


def _literal(value: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError as error:
        raise ConfigError(f"{where}: must be a literal, so that a plan can read it without importing torch") from error


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
def archs() -> tuple[str, ...]:
    """The names that :func:`moat.models.nets.build` knows: the keys of every ``NETS``."""
    return tuple(sorted(name for path in _net_files(_PACKAGE) for name in _keys(path, "NETS")))


def net_file(arch: str, package: Path = _PACKAGE) -> Path | None:
    """The module that declares ``arch`` in its ``NETS``; None where none does."""
    return next((path for path in _net_files(package) if arch in _keys(path, "NETS")), None)


def _net_files(package: Path) -> list[Path]:
    return [*visible(package / "models" / "nets", "*.py"), *project_modules("models").values()]


@functools.cache
def figure_kinds() -> dict[str, str]:
    """The modules of :mod:`moat.reporting.figures`, and what each shows: its literal ``SHOWS``."""
    files = visible(_PACKAGE / "reporting" / "figures", "*.py")
    return {path.stem: ast.literal_eval(_names(path)["SHOWS"]) for path in files if not path.stem.startswith("_")}


@functools.cache
def probe_kinds() -> tuple[str, ...]:
    """The modules of :mod:`moat.evaluation.probes`."""
    files = visible(_PACKAGE / "evaluation" / "probes", "*.py")
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
    """The names of the attack families, and their files: those with a function of their own name."""
    files = modules("attacks")
    return {name: path for name, path in files.items() if isinstance(_names(path).get(name), ast.FunctionDef)}


def attack_parameters(name: str) -> dict[str, Parameter]:
    """The parameters that an attack family declares in ``PARAMETERS``; ``required`` where its function has no default.

    Raises:
        ConfigError: no such family, or a declaration that is missing, no literal, or not that of the function.
    """
    families = attack_families()
    if name not in families:
        raise ConfigError(unknown_name(name, families, what="attack"))
    names = _names(families[name])
    where = f"{shown(families[name])}: PARAMETERS"
    if "PARAMETERS" not in names:
        raise ConfigError(f"{where}: missing; a dictionary from each parameter of {name} to what it may be")
    function = names[name].args
    arguments = zip(function.kwonlyargs, function.kw_defaults, strict=True)
    required = {argument.arg: default is None for argument, default in arguments}
    declared = _declared(names["PARAMETERS"], where)
    if unknown := [key for key in declared if key not in required]:
        raise ConfigError(f"{where}: {unknown[0]!r} is no keyword of the function {name}")
    return {key: Parameter({**each.allowed, "required": required[key]}, where) for key, each in declared.items()}


def attack_summary(name: str) -> str:
    """The first line of what an attack family's function says of itself."""
    return (ast.get_docstring(_names(attack_families()[name])[name]) or "").partition("\n")[0]


def attack_defaults(name: str) -> dict[str, Any]:
    """The defaults of an attack family's parameters, as far as its function writes them as literals."""
    function = _names(attack_families()[name])[name].args
    arguments = zip(function.kwonlyargs, function.kw_defaults, strict=True)
    return {argument.arg: default.value for argument, default in arguments if isinstance(default, ast.Constant)}


def attacks_in_spaces() -> list[str]:
    """The attack families that work in other spaces than pixels: their function has the keyword ``space``."""
    functions = {name: _names(path)[name].args.kwonlyargs for name, path in attack_families().items()}
    return [name for name, keywords in functions.items() if "space" in {keyword.arg for keyword in keywords}]


def attack_passes() -> dict[str, float]:
    """The passes through the net for one image of those attack families that declare them in ``PASSES``."""
    written = {name: (_names(path).get("PASSES"), path) for name, path in attack_families().items()}
    return {
        name: _literal(value, f"{shown(path)}: PASSES") for name, (value, path) in written.items() if value is not None
    }
