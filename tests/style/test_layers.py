"""Imports run one way: every unit of the package stands on a floor, and imports only from the floors below its own.

A unit is a package or module directly under ``src/moat``. Imports inside functions count, and so do the names of
modules that are imported by name: the argument of ``import_module``, or a table at the top of a module.
"""

import ast
import functools
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "moat"

#: From the ground up. The face, ``moat/__init__.py``, has the version and hands names on lazily.
FLOORS = [
    {"__init__"},
    {"base"},
    {"data", "machine", "provenance"},
    {"config", "models"},
    {"kernels"},
    {"attacks"},
    {"methods", "evaluation"},
    {"training", "reporting", "planning"},
    {"pipeline"},
    {"commands"},
    {"__main__"},
]


def module_files() -> dict[str, Path]:
    """Dotted name below ``moat`` -> file; a package has the name of its folder, ``moat`` itself is ``__init__``."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()


def resolve(name: str) -> str | None:
    """``moat.data.fetch.Fetcher`` -> ``data.fetch``, ``moat.__version__`` -> ``__init__``; None for other packages."""
    first, *rest = name.rstrip(".").split(".")
    if first != "moat":
        return None
    while rest and ".".join(rest) not in MODULES:
        rest = rest[:-1]
    return ".".join(rest) or "__init__"


def named_modules(tree: ast.Module, own: str) -> set[str]:
    """Every dotted name that a module imports, anywhere in it; ``moat.x.`` stands for some module of ``moat.x``."""
    found, by_name = set(), [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{own}, line {node.lineno}: a relative import; write moat.…"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            by_name += node.args
    strings = [each.value for node in by_name for each in ast.walk(node) if isinstance(each, ast.Constant)]
    # Also f"moat.attacks.{name}" and "moat.attacks.pgd:pgd".
    return found | {text.partition(":")[0] for text in strings if str(text).startswith("moat.")}


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {module: ast.parse(path.read_text()) for module, path in MODULES.items()}


@functools.cache
def named() -> dict[str, set[str]]:
    return {module: named_modules(tree, module) for module, tree in trees().items()}


def imports(*, of_plugins: bool = True) -> dict[str, set[str]]:
    """Module -> the modules of moat that it imports, with or without those whose names are made up at run time."""
    found = {}
    for module, names in named().items():
        targets = {resolve(name) for name in names if of_plugins or not name.endswith(".")}
        found[module] = targets - {module, None}
    return found


def unit(module: str) -> str:
    return module.partition(".")[0]


def floor(name: str) -> int:
    return next(number for number, units in enumerate(FLOORS) if name in units)


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import moat", "__init__"),
        ("from moat import __version__", "__init__"),
        ("from moat import attacks", "attacks"),
        ("import moat.data.fetch as fetch", "data.fetch"),
        ("from moat.data.fetch import fetch", "data.fetch"),
        ("def f():\n    from moat.attacks import pgd", "attacks.pgd"),
        ("class C:\n    def f(self):\n        import moat.attacks.pgd", "attacks.pgd"),
        ("import importlib\nimportlib.import_module('moat.config.paths')", "config.paths"),
        ("def f(name):\n    return import_module(f'moat.methods.{name}')", "methods"),
        ("LATER = {'run': 'moat.training.runs:Run'}", "training.runs"),
        ("def f():\n    return 'moat.training.runs'", None),
        ("import torch", None),
    ],
)
def test_imports_are_seen_wherever_they_stand(source, module):
    assert {resolve(name) for name in named_modules(ast.parse(source), "here")} - {None} == {module} - {None}


def test_every_unit_stands_on_a_floor():
    units = {unit(module) for module in MODULES}
    placed = [name for units_of_floor in FLOORS for name in units_of_floor]
    assert len(placed) == len(set(placed))
    assert units == set(placed), "a new package or module directly under src/moat must be placed in FLOORS"


def test_imports_run_down():
    upward = []
    for module, targets in imports().items():
        for target in targets:
            own, other = unit(module), unit(target)
            if own != other and floor(other) >= floor(own):
                upward.append(f"{module} -> {target}")
    assert not upward


def test_attack_families_stand_on_their_parts():
    """``attacks/parts`` knows no family, ``attacks/autoattack`` no other one, and neither their registry."""

    def storey(module: str) -> int:
        return {"parts": 0, "autoattack": 1}.get(module.split(".")[1] if "." in module else "", 2)

    wrong = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if unit(module) == unit(target) == "attacks" and storey(target) > storey(module)
    ]
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    remaining = imports(of_plugins=False)
    # A module that imports none of those that remain, or that none of them imports, is not part of a circle.
    while free := [
        module
        for module, targets in remaining.items()
        if targets.isdisjoint(remaining) or not any(module in others for others in remaining.values())
    ]:
        for module in free:
            del remaining[module]
    assert not remaining


@pytest.mark.parametrize(
    "package",
    [
        "snakemake",
        "dvc",
        # Beside a CPU build of torch these two can only be imported by base/torchvision_ops.library().
        "torchvision",
        "timm",
    ],
)
def test_the_package_never_imports(package):
    assert not [module for module, names in named().items() if package in {name.split(".")[0] for name in names}]


# Libraries that take long to import, or that are not always installed.
SLOW = {
    "jinja2", "jsonschema", "matplotlib", "numpy", "pandas", "PIL", "pulp", "pyarrow", "pyautoattack", "safetensors",
    "scipy", "sklearn", "threadpoolctl", "torch", "tqdm",
}  # fmt: skip


def imports_at_the_top(body: list[ast.stmt], own: str) -> set[str]:
    """The dotted names that are imported when a module is: not those for type checkers, nor those of functions."""
    found = set()
    for statement in body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            found |= named_modules(ast.Module([statement], []), own)
        elif isinstance(statement, (ast.If, ast.Try, ast.With)) and "TYPE_CHECKING" not in ast.unparse(statement):
            found |= imports_at_the_top(statement.body, own)
    return found


def slow_parts(name: str, loaded: dict[str, set[str]]) -> set[str]:
    """The slow libraries that importing ``name`` loads, including those of the packages that contain it."""
    module = resolve(name)
    if module is None:
        return {name.split(".")[0]} & SLOW
    parents = [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 2)]
    return {library for each in ("__init__", *parents) for library in loaded.get(each, ())}


def loaded_by_module(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Module -> the slow libraries that importing it loads."""
    tops = {module: imports_at_the_top(tree.body, module) for module, tree in trees.items()}
    loaded: dict[str, set[str]] = {module: set() for module in trees}
    while True:
        grown = {m: {library for name in names for library in slow_parts(name, loaded)} for m, names in tops.items()}
        if grown == loaded:
            return loaded
        loaded = grown


def imports_in_functions(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    inside = [node for function in functions for node in ast.walk(function)]
    return [node for node in inside if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_an_import_inside_a_function_keeps_something_slow_out_of_its_module():
    lazy = {module for module, tree in trees().items() if "__getattr__" in {getattr(n, "name", "") for n in tree.body}}
    loaded, pointless = loaded_by_module(trees()), []
    for module, tree in trees().items():
        for statement in imports_in_functions(tree):
            names = named_modules(ast.Module([statement], []), module)
            gained = {library for name in names for library in slow_parts(name, loaded)}
            # A package with a __getattr__ imports on demand: what, cannot be seen here.
            if gained <= slow_parts(f"moat.{module}", loaded) and lazy.isdisjoint(map(resolve, names)):
                pointless.append(f"{MODULES[module]}:{statement.lineno} {ast.unparse(statement)}")
    assert not pointless, "\n".join(pointless)
