"""Which run of the grid an evaluation's transferred examples are made on."""

from pathlib import Path

import pytest
import yaml

from moat.base.errors import ConfigError
from moat.config.grid_types import Run
from moat.config.project import Project
from moat.config.transfer import transfer_kinds, transfer_runs
from project_copy import copy_project

ROOT = Path(__file__).parents[2]


def run(name):
    arch, method, seed = name.split("/")
    return Run("cifar10", arch, method, int(seed))


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        ("r18/dwf/0", ["r18/dwf/1", "r18/dwf/2"], {"seed": "r18/dwf/1"}),
        ("r18/dwf/1", ["r18/dwf/0", "r18/dwf/2"], {"seed": "r18/dwf/2"}),
        ("r18/dwf/2", ["r18/dwf/0", "r18/dwf/1"], {"seed": "r18/dwf/0"}),
        ("r18/dwf/0", ["r18/pgd-at/0", "r18/trades/0"], {"seed": "r18/trades/0"}),
        ("r18/trades/0", ["r18/pgd-at/0", "r34/trades/0"], {"seed": "r18/pgd-at/0", "arch": "r34/trades/0"}),
        ("r18/dwf/0", ["r18/dwf/1", "r18/trades/0"], {"seed": "r18/dwf/1"}),
        ("r18/dwf/0", ["r18/mart/0", "r18/trades/1", "r34/trades/0"], {}),
        ("r18/dwf/0", [], {}),
    ],
)
def test_the_sibling_is_another_seed_else_another_method(own, others, expected):
    runs = [run(own), *map(run, others), Run("svhn", "r18", "dwf", 1)]
    found = transfer_runs(Project(ROOT), "transfer", run(own), runs)
    assert found == {kind: run(name) for kind, name in expected.items()}


@pytest.mark.parametrize(("suite", "kinds"), [("transfer", ("arch", "seed")), ("trust", ()), ("dramoe", ())])
def test_the_suites_that_transfer(suite, kinds):
    assert transfer_kinds(Project(ROOT), suite) == kinds


def test_an_unknown_method_is_named(tmp_path):
    copy_project(tmp_path)
    suites = yaml.safe_load((ROOT / "config/suites.yaml").read_text())
    suites["transfer"]["transfer_methods"] = ["trade"]
    (tmp_path / "config/suites.yaml").write_text(yaml.safe_dump(suites))
    with pytest.raises(ConfigError, match="transfer: transfer_methods: unknown method 'trade'.*did you mean 'trades'"):
        transfer_runs(Project(tmp_path), "transfer", run("r18/dwf/0"), [])
