"""What recipes and data sets say they decided: inherited by topic, standing where it applies, true of the recipe."""

from pathlib import Path

import pytest
import yaml

from moat.config.project import Project
from moat.config.recipes import deviations, digest, resolve_recipe, resolve_run
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
METHODS = PROJECT.names("methods")
SHARED = yaml.safe_load((ROOT / "config/methods/_shared.yaml").read_text())["deviations"]
# How a sentence names what selects the epoch; other settings by their own name.
SELECTS = {"clean": "clean accuracy", "fgsm": "FGSM", "pgd10": "PGD-10", "pgd10_e03": "PGD-10 at"}


def of(method, dataset="cifar10", scale="paper"):
    return deviations(PROJECT, scale, dataset=dataset, method=method)


def test_every_run_says_what_was_decided_for_all():
    assert {method: missing for method in METHODS if (missing := SHARED.keys() - of(method).keys())} == {}


def selected_as_said(method, scale):
    setting = resolve_recipe(PROJECT, scale, method)["validation"]["setting"]
    said = of(method, scale=scale)["selection"]
    return setting == "pgd10" if said == SHARED["selection"] else SELECTS.get(setting, setting) in said


def computed_as_said(method, scale):
    wanted = resolve_recipe(PROJECT, scale, method)["precision"]
    return (of(method, scale=scale)["precision"] == SHARED["precision"]) == (wanted == "auto")


@pytest.mark.brief(keep=lambda case: case["scale"] in ("paper", "quickstart"))
@pytest.mark.parametrize("as_said", [selected_as_said, computed_as_said])
@pytest.mark.parametrize("scale", PROJECT.names("scales"))
def test_what_is_said_of_selection_and_precision_is_so(scale, as_said):
    assert [method for method in METHODS if not as_said(method, scale)] == []


def uses(**wanted):
    """A recipe that has these values (of ``model`` where they are not at the top)."""

    def holds(method):
        recipe = PROJECT.method(method)
        return all({**recipe.get("model", {}), **recipe}.get(key) in values for key, values in wanted.items())

    return holds


@pytest.mark.parametrize(
    ("topic", "words", "applies"),
    [
        ("attention", "positions", uses(router=["dcar", "gsa", "cgsa"])),
        ("router passes", "once in training mode", uses(**{"class": ["dramoe"]})),
        ("weight decay", "HYDRA has 1e-4", uses(**{"class": ["pgd-at-sparse"]})),
        ("KL", "Eq. 9 and 10", uses(**{"class": ["dramoe"]})),
    ],
)
def test_a_decision_stands_where_it_applies(topic, words, applies):
    assert {name for name in METHODS if words in of(name).get(topic, "")} == {name for name in METHODS if applies(name)}


@pytest.mark.parametrize(("topic", "words", "dataset"), [("image size", "64", "tiny-imagenet"), ("flips", "", "svhn")])
def test_a_decision_about_a_dataset_is_part_of_its_runs(topic, words, dataset):
    assert words in of("trades", dataset)[topic]
    assert [name for name in PROJECT.names("datasets") if topic in of("trades", name)] == [dataset]


def test_topics_of_datasets_are_not_those_of_recipes():
    of_datasets = {topic for name in PROJECT.names("datasets") for topic in PROJECT.dataset(name).get("deviations", {})}
    assert of_datasets and not of_datasets & {topic for name in METHODS for topic in PROJECT.method(name)["deviations"]}


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    return Project(tmp_path)


def test_a_sentence_is_replaced_by_topic_and_changes_no_run(project):
    """Recipe over shared, scale over recipe, null takes out; a sentence is no reason to train again."""
    run = {"dataset": "tiny-imagenet", "arch": "resnet18", "method": "trades", "seed": 0}
    before = digest(resolve_run(project, "paper", **run))
    for file, said in (
        ("methods/_shared.yaml", {"precision": "shared", "seeds": "shared", "selection": "shared"}),
        ("methods/trades.yaml", {"precision": "own", "seeds": "own", "augmentation": None}),
        ("datasets/tiny-imagenet.yaml", {"image size": "of the data"}),
    ):
        path = project.root / "config" / file
        content = yaml.safe_load(path.read_text())
        content["deviations"] |= said
        path.write_text(yaml.safe_dump(content))
    path = project.root / "config/scales/paper.yaml"
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "recipes": {"trades": {"deviations": {"seeds": "scale"}}}}))
    found = deviations(project, "paper", dataset="tiny-imagenet", method="trades")
    expected = {"precision": "own", "seeds": "scale", "selection": "shared", "image size": "of the data"}
    assert {topic: found[topic] for topic in expected} == expected
    assert "augmentation" not in found
    assert digest(resolve_run(project, "paper", **run)) == before
