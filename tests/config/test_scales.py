"""Of scales: seeds by method, and attack settings changed by pattern."""

import pytest
import yaml

from moat.base.errors import ConfigError
from moat.config.grid import build_grid
from moat.config.project import Project
from project_copy import copy_project

METHODS = ["trades", "pgd-at", "dwf"]
STUDY = {
    "title": "t",
    "description": "d",
    "tolerance": 2.0,
    "seeds": [0, 1, 2],
    "tables": {
        "one": {
            "title": "t",
            "caption": "c",
            "suite": "dramoe",
            "rows": [{"axis": "method", "points": [{"label": name, "method": name} for name in METHODS]}],
            "columns": [
                {"axis": "dataset", "points": [{"label": "CIFAR-10", "dataset": "cifar10"}]},
                {"axis": "arch", "points": [{"label": "ResNet-18", "arch": "resnet18"}]},
                {"axis": "metric", "points": [{"label": "Std", "settings": ["clean"]}]},
            ],
        }
    },
}


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    (tmp_path / "config" / "studies" / "one.yaml").write_text(yaml.safe_dump(STUDY))
    return Project(tmp_path)


def extending(project, base="paper", **content):
    content = {"title": "child", "description": "d", "extends": base, **content}
    (project.root / "config/scales/child.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"seeds": {"trade": 2}}, ["child.yaml", "'trade'", "'trades'"]),
        ({"seeds": {"trades": 0}}, ["child.yaml", "seeds.trades"]),
        ({"attacks": {"pgq*": {"limit": 1}}}, ["child.yaml", "'pgq*'"]),
    ],
    ids=["method", "no seed", "no setting"],
)
def test_a_fault_is_named(project, content, said):
    extending(project, **content)
    with pytest.raises(ConfigError) as error:
        project.scale("child")
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ({}, [1, 1, 1]),
        ({"pgd-at": 2}, [1, 2, 1]),
        ({"pgd-at": 9, "trades": 3}, [3, 3, 1]),
        ({"dwf-unified": 2}, [1, 1, 2]),
    ],
    ids=["none", "one", "not more than the study has", "a variant that is the same run"],
)
def test_a_method_may_have_seeds_of_its_own(project, seeds, expected):
    """At one budget for all, dwf and dwf-unified are one run."""
    extending(project, base="mini", seeds=seeds)
    (table,) = build_grid(project, "child", ["one"]).tables
    assert [len(cell.seeds) for cell in table.cells] == expected


CHANGES = {"pgd*": {"limit": 10}, "pgd50": {"limit": 20}, "pgd10_det": {"limit": 30}, "*-?": {"limit": 40}}


@pytest.mark.parametrize(
    ("setting", "limit"),
    [("pgd20", 10), ("pgd20_det", 10), ("pgd50", 20), ("pgd50_det", 20), ("pgd10", 10), ("pgd10_det", 30)]
    + [("fog-3", 40), ("fgsm", None), ("fog-3-imagenet", None)],
)
def test_a_pattern_changes_all_that_it_fits_and_a_name_wins(project, setting, limit):
    extending(project, attacks=CHANGES)
    assert project.attack(setting, where="test", scale="child").get("limit") == limit


def test_what_a_pattern_changes_is_checked(project):
    extending(project, attacks={"pgd*_norm": {"limmit": 1}})
    with pytest.raises(ConfigError, match=r"scales/child\.yaml.*'limmit'"):
        build_grid(project, "child", ["one"])
