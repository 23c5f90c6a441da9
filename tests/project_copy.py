"""A copy of the project, to be changed by a test: the configuration, its schemas, and the user's plug-ins if any."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from moat.base import plugins

ROOT = Path(__file__).parents[1]
PARTS = ("config", "workflow/schemas", "plugins")


def copy_project(folder: Path, *, of: Path = ROOT) -> Path:
    """Copy the project ``of`` into ``folder``, but not the rates that were measured on this machine."""
    for part in PARTS:
        if (of / part).is_dir():
            ignored = shutil.ignore_patterns("calibration", "__pycache__")
            shutil.copytree(of / part, folder / part, ignore=ignored, dirs_exist_ok=True)
    return folder


def edit_yaml(path: Path, change: Callable[[Any], object]) -> None:
    """Change a YAML file's content in place."""
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


@contextlib.contextmanager
def plugins_forgotten() -> Iterator[None]:
    """After the block no plug-in of another project is imported, and this project's configuration is read again."""
    before = set(sys.modules)
    yield
    plugins.use_project(ROOT)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(ROOT):
            continue
        if name.startswith(("moat.methods.", "moat.attacks.", "moat.models.")):
            del sys.modules[name]
