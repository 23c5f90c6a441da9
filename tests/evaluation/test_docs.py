"""docs/evaluate-your-own-model.md: its code is run as it stands there."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from moat.attacks.parts.views import views_of
from moat.base.files import read_json
from moat.commands.cli import main
from moat.data import datasets
from moat.models import nets
from project_copy import copy_project

PAGE = (Path(__file__).parents[2] / "docs" / "evaluate-your-own-model.md").read_text()


def blocks(language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", PAGE, flags=re.DOTALL | re.MULTILINE)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


@pytest.fixture
def folder(project, tmp_path, monkeypatch):
    copy_project(tmp_path, of=project)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.long
def test_every_command_of_the_page_works(folder):
    (folder / "mynet.py").write_text(blocks("python")[0])
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert [shlex.split(line)[1] for line in commands] == ["fetch", "prepare", "evaluate", "verify"]
    for line in commands:
        if " evaluate " in line:
            exec(blocks("python")[1], {})
        assert main(shlex.split(line)[1:]) == 0, line
    content = json.loads((folder / "trust.json").read_text())
    assert content["accuracy"]["clean"]["accuracy"] > 0.8
    assert {"accuracy", "flags", "not_applicable", "worst_case", "settings"} <= set(content)
    assert content["accuracy"]["worst"]["n"] == 16 and "pgd10_det" in content["not_applicable"]
    assert {"clean", "pgd10", "aa", "square"} < set(content["worst_case"]["worst"]["misclassified_by"])
    assert read_json(folder / "trust-robustbench.json")["unreliable"] in (True, False)
    assert read_json(folder / "checks.json")["n"] == 100


def test_the_method_for_views_is_found(folder):
    namespace = {}
    exec(blocks("python")[2], namespace)

    class Mine(nn.Module):
        attack_views = namespace["attack_views"]

        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Flatten(), nn.Flatten()])

    assert list(views_of(Mine())) == ["straight-through", "expert0", "expert1"]


@pytest.mark.long
def test_the_python_of_the_page_runs(folder, project, capsys):
    shutil.copytree(project / "run", folder / "results/quickstart/runs/digits/resnet18/trades/seed0")
    split = datasets.load(project / "digits.safetensors", splits=("test",)).splits["test"]
    x, y = split.images[:4].permute(0, 3, 1, 2).contiguous() / 255, split.labels[:4]
    torch.manual_seed(0)
    namespace = {"model": nets.build("lenet5", 10, width=0.25, image_size=16).eval(), "x": x, "y": y}
    exec(blocks("python")[3], namespace)
    assert namespace["rows"]["setting"].tolist() == ["pgd10"] * 4
    assert re.search(r"^worst case: .* n = 4$", capsys.readouterr().out, flags=re.MULTILINE)
    assert namespace["x_adv"].shape == x.shape and (namespace["x_adv"] - x).abs().max() <= 8 / 255 + 1e-6
    assert namespace["model"](x).shape == (4, 10)
