"""The tiny project that the methods are tested in."""

import shutil

import pytest
import torch
import yaml
from tiny_methods import ROOT, TINY, Tiny

from moat.cli import main


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    root = tmp_path_factory.mktemp("tiny")
    shutil.copytree(ROOT / "config", root / "config")
    shutil.copytree(ROOT / "workflow" / "schemas", root / "workflow" / "schemas")
    (root / "config" / "scales" / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    project = ["--project", str(root)]
    data = root / "digits.safetensors"
    assert main([*project, "fetch", "digits", "--into", str(root / "files")]) == 0
    assert (
        main([*project, "prepare", "digits", "--from", str(root / "files"), "--scale", "tiny", "--out", str(data)]) == 0
    )
    return Tiny(root, data)
