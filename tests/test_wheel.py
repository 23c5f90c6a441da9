"""The wheel has the whole package, compiled kernels included, and nothing else."""

import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is in the environment of a build only")

ROOT = Path(__file__).parents[1]
# A compiler that takes no minutes: what it is asked for is there, the compilation itself is not.
COMPILER = '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho compiled > "$2"\n'


@pytest.fixture
def wheel(tmp_path):
    """A function that builds a wheel from a copy of the project and lists its files."""
    project = tmp_path / "project"
    for name in ("src", "benchmarks", "tests", "config"):
        ignored = shutil.ignore_patterns("__pycache__", "compiled")
        shutil.copytree(ROOT / name, project / name, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, project)

    def build(compiler):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
        environment = {**os.environ, "CXX": str(compiler)}
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = (tmp_path / "dist").glob("*.whl")
        return path.name, set(zipfile.ZipFile(path).namelist())

    return build


def package_files():
    paths = [path.relative_to(ROOT / "src") for path in (ROOT / "src/moat").rglob("*") if path.is_file()]
    return {str(path) for path in paths if not {"__pycache__", "compiled"} & set(path.parts)}


def test_it_has_the_package_and_nothing_beside_it(wheel):
    name, files = wheel("false")
    assert name.endswith("-py3-none-any.whl")
    assert {"moat/planning/macs.csv", "moat/kernels/winograd.cpp", "moat/reporting/templates/run.html.j2"} <= files
    assert {file for file in files if ".dist-info/" not in file} == package_files()


def test_it_has_the_compiled_kernels_and_their_platform(wheel, tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text(COMPILER)
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    name, files = wheel(compiler)
    assert not name.endswith("-any.whl")
    compiled = {file for file in files if ".dist-info/" not in file} - package_files()
    assert compiled == {
        f"moat/kernels/compiled/winograd_{instructions}.so" for instructions in ("avx2", "avx512", "avx512_bf16")
    }
