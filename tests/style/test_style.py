"""The linters, and the rules of the layout that a machine can check."""

import ast
import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "moat"
# Lines.
SCREEN = 60


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


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def test_every_module_has_a_docstring():
    missing = [str(path) for path, tree in trees().items() if not ast.get_docstring(tree)]
    assert not missing


def test_a_function_fits_on_a_screen():
    """Its body, the docstring not counted."""
    long = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body and node.end_lineno - body[0].lineno >= SCREEN:
                    long.append(f"{path}:{node.lineno} {node.name}")
    assert not long


def test_rules_are_short_and_call_the_command_only():
    for path in sorted((ROOT / "workflow" / "rules").glob("*.smk")):
        text = path.read_text()
        assert not re.search(r"^ *run:", text, re.M), f"{path}: a run: block starts a Snakemake of its own per job"
        for shell in text.split("shell:")[1:]:
            assert shell.strip().startswith("moat("), f"{path}: {shell[:60]}"
        # On a cluster they would be made a second time inside the job; the profile has them.
        assert "retries:" not in text, path
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 75
    assert len((ROOT / "workflow" / "rules" / "common.smk").read_text().splitlines()) <= 70


def test_tests_copy_the_project_with_its_plugins():
    """A configuration whose recipes name the user's plug-ins is none without them."""
    own = re.compile(r"""copytree\(.*\bconfig["']\)?,|for \w+ in \("config", "workflow""")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line in path.read_text().splitlines()
        if own.search(line) and path.name not in ("project_copy.py", "test_style.py")
    ]
    # A wheel is built without plug-ins.
    assert [line for line in found if not line.startswith("tests/test_wheel.py")] == []


def test_the_command_line_starts_without_torch():
    code = """if True:
        import sys
        from moat.commands.cli import build_parser
        build_parser()
        print([m for m in sys.modules if m in ("torch", "pandas", "numpy", "matplotlib", "sklearn", "jsonschema")])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_git_keeps_no_results_but_published_evidence():
    """With tables and a page in a clone, the workflow would take them for made, whatever they were made of."""
    listed = subprocess.run(["git", "ls-files", "results"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: what a clone holds is not looked at")
    assert {line.split("/")[1] for line in listed.stdout.splitlines()} <= {"evidence"}
