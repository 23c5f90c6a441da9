"""The rest of the package uses only what ``moat.kernels`` exports: whoever replaces a kernel touches nothing else."""

import ast
from pathlib import Path

import moat.kernels

PACKAGE = Path(moat.kernels.__file__).parents[1]
OTHERS = [path for path in sorted(PACKAGE.rglob("*.py")) if path.relative_to(PACKAGE).parts[0] != "kernels"]
PREFIX = "moat.kernels."


def used_of_kernels(path: Path) -> set[str]:
    """Names below ``moat.kernels`` that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX)}


def test_the_rest_of_the_package_uses_what_kernels_exports_and_all_of_it():
    used = {str(path.relative_to(PACKAGE)): used_of_kernels(path) for path in OTHERS}
    exported = set(moat.kernels.__all__)
    assert {path: names - exported for path, names in used.items() if names - exported} == {}
    assert set().union(*used.values()) == exported
