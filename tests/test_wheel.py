"""The wheel has the whole package, compiled kernels and configuration included, and works where nothing else is."""

import json
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
    for name in ("src", "benchmarks", "tests", "config", "workflow"):
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
        build.path = path
        return path.name, set(zipfile.ZipFile(path).namelist())

    return build


def package_files():
    paths = [path.relative_to(ROOT / "src") for path in (ROOT / "src/moat").rglob("*") if path.is_file()]
    configuration = [*(ROOT / "config").rglob("*.yaml"), *(ROOT / "config").rglob("*.csv")]
    configuration += (ROOT / "workflow/schemas").glob("*.yaml")
    carried = {f"moat/installed/{path.relative_to(ROOT)}" for path in configuration}
    return carried | {str(path) for path in paths if not {"__pycache__", "compiled"} & set(path.parts)}


def test_it_has_the_package_and_nothing_beside_it(wheel):
    name, files = wheel("false")
    assert name.endswith("-py3-none-any.whl")
    assert {"moat/planning/macs.csv", "moat/kernels/winograd.cpp", "moat/reporting/templates/run.html.j2"} <= files
    assert {"config/suites.yaml", "config/published/dwf.csv", "workflow/schemas/scale.schema.yaml"} <= {
        file.removeprefix("moat/installed/") for file in files
    }
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


# -- installed, in a folder that is no checkout ----------------------------------------
NET = """
from torch import nn


def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
"""
FEW = ["--limit", "4", "--device", "cpu"]
# What is run there, one after the other -> its exit code, and what it says.
COMMANDS = [
    (["list", "scales"], 0, "quickstart"),
    (["fetch", "digits", "--into", "resources/digits"], 0, "resources/digits/manifest.json"),
    (["prepare", "digits", "--from", "resources/digits", "--out", "digits.safetensors"], 0, "digits.safetensors"),
    (
        ["evaluate", "--model", "mynet:make", "--dataset", "digits", "--suite", "quick", "--out", "q.parquet", *FEW],
        0,
        "of 4",
    ),
    (
        ["verify", "--model", "mynet:make", "--data", "digits.safetensors", "--steps", "2", "--queries", "2"]
        + ["--out", "checks.json", *FEW],
        0,
        "worst case: ",
    ),
    (["doctor"], 0, "no checkout"),
    (["plan"], 2, "moat plan needs a checkout of moat"),
    (["report", "--scale", "quickstart"], 2, "--results results: no such folder"),
    (["pull"], 2, "dvc.lock"),
]


@pytest.mark.long
def test_it_works_in_a_folder_that_is_no_checkout(wheel, tmp_path):
    """Installed by pip, with the libraries of this environment, but not its moat."""
    wheel("false")
    environment, folder = tmp_path / "environment", tmp_path / "folder"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/*/site-packages")
    install = ["-m", "pip", "--python", environment / "bin/python", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([sys.executable, *install, wheel.path], check=True)
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "libraries.pth").write_text("\n".join(libraries))
    folder.mkdir()
    (folder / "config").mkdir()  # Not moat's.
    (folder / "mynet.py").write_text(NET)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MOAT"))}

    def run(program, *arguments):
        command = [environment / "bin" / program, *arguments]
        return subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)

    done = run("python", "-c", "import moat; print(moat.__file__); moat.models.build('lenet5', 10); print(dir(moat))")
    assert done.stdout.startswith(str(packages)) and "'verify'" in done.stdout, done.stderr
    for arguments, code, words in COMMANDS:
        done = run("moat", *arguments)
        assert done.returncode == code and words in done.stdout + done.stderr, (arguments, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
    assert json.loads((folder / "q.json").read_text())["accuracy"]["clean"]["n"] == 4
    assert not (folder / "config").joinpath("suites.yaml").exists()
