"""The twins of attack settings, without the gradient through a router: what they are, and which cells need them."""

from pathlib import Path

import pytest

from moat.base.errors import ConfigError
from moat.config.grid import build_grid
from moat.config.project import Project
from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
DETACHED = {"view": "detached", "requires": "router"}


@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd50", "cw_inf", "aa", "fgsm_e03", "pgd100_ms"])
@pytest.mark.parametrize("scale", [None, *PROJECT.names("scales")])
def test_a_twin_is_its_original_at_every_scale(name, scale):
    """With another limit, its rows would hold other images, of which there is no per-example worst."""
    original = PROJECT.attack(name, where="here", scale=scale)
    assert PROJECT.attack(f"{name}_det", where="here", scale=scale) == {**original, **DETACHED}


@pytest.mark.parametrize(
    "name",
    ["clean_det", "fog-3_det", "moe_adaptive_det", "transfer_seed_det", "pgd10_norm_det", "pgd10_det_det", "pgd_det"],
)
def test_what_has_no_gradient_of_its_own_model_has_no_twin(name):
    with pytest.raises(ConfigError, match="here: unknown attack setting"):
        PROJECT.attack(name, where="here")


@pytest.fixture
def edited(tmp_path):
    """A copy of the project of which one file is changed."""
    copy_project(tmp_path)

    def edit(file, change):
        edit_yaml(tmp_path / "config" / file, change)
        return Project(tmp_path)

    return edit


def test_a_scale_can_change_a_twin_alone(edited):
    project = edited("scales/mini.yaml", lambda scale: scale["attacks"].update(pgd10_det={"steps": 3}))
    assert project.attack("pgd10_det", where="here", scale="mini")["steps"] == 3
    assert project.attack("pgd10", where="here", scale="mini")["steps"] == 10


def test_a_scale_that_changes_an_unknown_setting_is_refused(edited):
    project = edited("scales/smoke.yaml", lambda scale: scale["attacks"].update(pgd11_det={"steps": 3}))
    with pytest.raises(ConfigError, match="smoke.yaml: attacks: unknown attack setting 'pgd11_det'"):
        project.scale("smoke")


# -- which cells of the studies need them -------------------------------------------


def shown():
    grid = build_grid(PROJECT, "paper", ["dramoe", "dwf"])
    lines = [line.cell for name in ("figure6", "figure7", "spaces") for line in grid.figure("dwf", name).lines]
    lines += [line.cell for line in grid.figure("dramoe", "figure5").lines]
    return [*lines, *(cell for name in ("table2", "table3") for cell in grid.table("dwf", name).cells)]


ROUTED = {"pgd-at-moe", "advmoe", "dramoe", "advmoe-dwf", "dwf"}


def test_every_attacked_cell_of_a_routed_net_has_both_gradients_and_no_dense_one_has():
    cells = [cell for cell in shown() if cell.runs and cell.settings not in (("clean",), ("aa_worst",))]
    assert {cell.method for cell in cells} >= ROUTED | {"pgd-at-sparse", "fgsm-at", "standard-200"}
    for cell in cells:
        name, *twin = cell.settings
        # SoE is a mixture, too; its choice of an expert has no gradient, and the twin does not apply.
        assert twin == ([f"{name}_det"] if cell.method in {*ROUTED, "soe"} else []), cell
        # The flawed protocols follow the model's own gradient.
        assert all(len(each.settings) == 1 and "_det" not in each.settings[0] for each in cell.alternatives)


def test_clean_images_and_worst_cases_stay_as_they_are():
    alone = {cell.settings for cell in shown() if cell.method == "dramoe"} - {("clean",), ("aa_worst",)}
    assert alone == {(name, f"{name}_det") for name in ("pgd10", "pgd20", "pgd50", "fgsm", "bim", "cw_inf")}


def test_a_suite_without_a_twin_is_refused(edited):
    project = edited("suites.yaml", lambda suites: suites["dramoe"]["settings"].remove("bim_det"))
    said = "dramoe.yaml: figure5: .* / BIM .*both_gradients: the suite 'dramoe' has no setting 'bim_det'"
    with pytest.raises(ConfigError, match=said):
        build_grid(project, "paper", ["dramoe"])
