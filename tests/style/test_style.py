"""The linters, and the rules of the layout that a machine can check."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "moat"

# Imports run one way: a package may use those of the lines above it, and of its own line.
LAYERS = [
    {"config", "data", "nets"},
    {"moe", "attacks"},
    {"methods", "evaluation"},
    {"training", "reporting", "scheduling", "probing"},
    {"commands", "cli"},
]


def modules():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "workflow", "Snakefile"],
        ["snakemake", "--lint"],
    ],
    ids=" ".join,
)
def test_linter(command):
    program = shutil.which(command[0], path=f"{Path(sys.executable).parent}:/usr/bin")
    assert program, f"{command[0]} is not installed; `make test` installs it"
    done = subprocess.run([program, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def layer_of(name: str) -> int | None:
    return next((number for number, layer in enumerate(LAYERS) if name in layer), None)


def imported(path: Path) -> set[str]:
    """Subpackages of moat that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name.split(".")[1] for name in names if name.startswith("moat.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = layer_of(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    upward = {name for name in imported(path) if own is not None and (layer_of(name) or 0) > own}
    assert not upward, f"{path} imports upward: {upward}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_never_imports_the_workflow_engine(path):
    assert not re.search(r"^\s*(import|from) (snakemake|dvc)\b", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_function_fits_on_a_screen_and_a_module_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            lines = node.end_lineno - (first.end_lineno if documented else node.lineno)
            assert lines <= 45, f"{path}: {node.name} has {lines} lines"


def test_rules_are_short_and_call_the_command_only():
    for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        text = path.read_text()
        assert "run:" not in text.replace("rerun:", ""), f"{path}: a run: block starts a Snakemake of its own per job"
        for shell in text.split("shell:")[1:]:
            assert shell.strip().startswith('"moat '), f"{path}: {shell[:60]}"
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 60


def test_the_command_line_starts_without_torch():
    code = """if True:
        import sys
        from moat.commands.cli import build_parser
        build_parser()
        print([m for m in sys.modules if m in ("torch", "pandas", "numpy", "matplotlib", "sklearn", "jsonschema")])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_fresh_clone_has_no_results_of_the_quickstart():
    """With its tables there, `make quickstart` would find nothing to train, and write a page of what was not run."""
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: what a clone holds is not looked at")
    assert {line.split("/")[1] for line in listed.stdout.splitlines()} <= {"mini"}
