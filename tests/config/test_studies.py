"""The project's own studies: every published number has its cell, and every cell can be made."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from moat.base import plugins
from moat.base.errors import ConfigError
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.models.nets.normalize import STATISTICS
from moat.reporting import claims, measures
from moat.reporting.results import Results
from moat.reporting.tables import measure_cell
from project_copy import copy_project, edit_yaml

ROOT = Path(__file__).parents[2]
STUDIES = ["unified", "dramoe", "dwf", "mocse", "hybrid", "field"]
PAPERS = {"dramoe": 60 + 72 + 8 + 10, "dwf": 190 + 133, "mocse": 126, "hybrid": 30 + 12, "field": 15}


@pytest.fixture(
    scope="module", params=[*(pytest.param(name, marks=pytest.mark.long) for name in ("smoke", "mini")), "paper"]
)
def grid(request):
    return build_grid(Project(ROOT), request.param, STUDIES)


@pytest.fixture(scope="module")
def paper():
    return build_grid(Project(ROOT), "paper", STUDIES)


def cells(grid, study=None):
    return [cell for table in grid.tables if study in (None, table.study) for cell in table.cells]


def table_numbers(study: str) -> dict[int, float]:
    """line -> number, of the numeric cells of a paper's tables; read without the package."""
    with open(ROOT / "config/published" / f"{study}.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Tables 4 and 5 of DWF list settings.
    tables = {"dwf": {"2", "3"}}.get(study, {row["table"] for row in rows if not row["table"].startswith("text")})
    return {n: float(row["value"]) for n, row in enumerate(rows, start=2) if row["table"] in tables}


def test_every_number_of_the_papers_tables_has_exactly_one_cell(grid):
    found = {study: Counter(cell.published_line for cell in cells(grid, study)) for study in PAPERS}
    for study, size in PAPERS.items():
        numbers = table_numbers(study)
        assert len(numbers) == size
        if (grid.scale, study) == ("mini", "field"):
            # Its methods are younger than mini's results.
            assert not found[study]
            continue
        assert {line: found[study][line] for line in numbers} == dict.fromkeys(numbers, 1)
        published = {cell.published_line: cell.published for cell in cells(grid, study)}
        assert {line: published[line] for line in numbers} == numbers
    assert sum(PAPERS.values()) == 641 + 15


def test_the_words_of_dwfs_table_1_have_their_cells(grid):
    words = [cell.published for cell in grid.table("dwf", "table1").cells]
    assert words == ["Hard", "Flat", "Joint", "Single", "Hard", "Flat", "Joint", "Sparse"] + [
        *("Soft", "Flat", "Pre-trained+Joint", "Fractional")
    ]
    # They are about the code: no scale is too small for them.
    assert not any(cell.not_run for cell in grid.table("dwf", "table1").cells)


def test_the_settings_of_dwfs_tables_4_and_5_have_their_cells(grid, tmp_path):
    """Ours are as published, but for two words: our attacks see gate and experts in every row."""
    project = Project(ROOT)
    results = Results(tmp_path, grid.scale, project=project)
    found = [cell for name in ("table4", "table5") for cell in grid.table("dwf", name).cells]
    with open(ROOT / "config/published/dwf.csv", newline="") as stream:
        lines = {n: row["value"] for n, row in enumerate(csv.DictReader(stream), start=2) if row["table"] in ("4", "5")}
    assert {cell.published_line: cell.published for cell in found} == lines
    assert len(lines) == 24
    # They are about the configuration: no scale is too small for them.
    judged = [measure_cell(cell, results, project.scale(grid.scale)) for cell in found]
    assert [(row["row"], row["column"], row["measured"]) for row in judged if row["verdict"] != "reproduced"] == [
        ("Multi-Step PGD", "defense_knowledge", "white-box"),
        ("Adaptive PGD", "defense_knowledge", "white-box"),
    ]


def test_a_table_that_reads_probes_asks_for_them(paper):
    tables = {name: paper.table("dramoe", name) for name in ("weights", "routing")}
    for table in tables.values():
        assert table.probes and set(table.probes) <= set(paper.probes)
        assert not table.evaluations and not table.checks
    # Those of the figures, and no others.
    assert set(tables["weights"].probes) == set(paper.figure("dramoe", "figure2").probes)
    assert set(tables["routing"].probes) == set(paper.figure("dramoe", "figure3").probes)


@pytest.mark.parametrize(
    ("study", "suite"),
    [("dwf", "dwf"), ("dwf", "dwf-normalised"), ("hybrid", "hybrid"), ("hybrid", "hybrid-normalised")],
)
def test_what_a_study_measures_in_its_own_suite_is_shown(paper, study, suite):
    shown = {(each.suite, name) for cell in cells(paper, study) for each in cell.each() for name in each.settings}
    assert set(Project(ROOT).measured(suite)) - {"clean"} <= {name for of, name in shown if of == suite}


@pytest.mark.parametrize(
    ("study", "table", "method"), [("hybrid", "comparison", "hybrid-fgsm"), ("dramoe", "table2", "fat-trades")]
)
def test_a_variant_stands_beside_the_papers_method(paper, study, table, method):
    found = [cell for cell in paper.table(study, table).cells if cell.method == method]
    assert found and not any(cell.not_run or cell.published for cell in found)


def test_published_numbers_are_those_of_the_papers_csv():
    """No row was lost when the papers' numbers were split by study."""
    counts = {study: len(Project(ROOT).published(study)) for study in PAPERS}
    assert counts == {"dramoe": 168, "dwf": 381, "mocse": 126, "hybrid": 50, "field": 15}


@pytest.mark.parametrize(
    ("study", "table", "row", "column", "published", "run", "settings"),
    [
        (
            "dramoe",
            "table1",
            "ResNet-34 / ADVMoE",
            "CIFAR-10 / Adv",
            63.54,
            ("cifar10", "resnet34", "advmoe"),
            ("pgd10", "pgd10_det"),
        ),
        (
            "dramoe",
            "table1",
            "WRN-28-10 / PGD-AT (Sparse)",
            "TinyImageNet / Adv",
            40.26,
            ("tiny-imagenet", "wrn-28-10", "pgd-at-sparse"),
            ("pgd10",),
        ),
        (
            "dramoe",
            "table3",
            "ResNet-18 / MoE+RGAT",
            "CIFAR-10 / Adv",
            64.75,
            ("cifar10", "resnet18", "dramoe-gap"),
            ("pgd10", "pgd10_det"),
        ),
        (
            "dramoe",
            "table4",
            "ResNet-18 / DRAMoE(NoRG-ES)",
            "CIFAR-10 / Std",
            83.54,
            ("cifar10", "resnet18", "dramoe-norges"),
            ("clean",),
        ),
        (
            "dwf",
            "table2",
            "CIFAR-10 / DWF",
            "FGSM 0.09",
            41.24,
            ("cifar10", "resnet18", "dwf"),
            ("fgsm_e09", "fgsm_e09_det"),
        ),
        (
            "dwf",
            "table3",
            "SVHN / ADVMoE",
            "PGD-100 MS",
            8.13,
            ("svhn", "resnet18", "advmoe-dwf"),
            ("pgd100_ms", "pgd100_ms_det"),
        ),
        (
            "dwf",
            "table3",
            "CIFAR-10 / Inception-V3",
            "PGD-10",
            47.21,
            ("cifar10", "inception-v3", "standard-200"),
            ("pgd10",),
        ),
        (
            "hybrid",
            "table1",
            "CIFAR-10 / ResNet-18 + Hybrid",
            "robustness_gap",
            28.9,
            ("cifar10", "resnet18", "hybrid"),
            ("clean", "cw_inf_e03"),
        ),
        ("hybrid", "overhead", "MNIST / LeNet-5", "memory_GB", 3.1, ("mnist", "lenet5", "standard-hybrid"), ()),
    ],
)
def test_cells_stand_where_the_papers_have_them(paper, study, table, row, column, published, run, settings):
    (cell,) = [c for c in paper.table(study, table).cells if (c.row, c.column) == (row, column)]
    assert (cell.published, cell.settings) == (published, settings)
    assert (cell.dataset, cell.arch, cell.method) == run


def test_a_corruptions_row_is_the_mean_over_its_five_severities(paper):
    table = paper.table("mocse", "table1")
    fog = next(cell for cell in table.cells if cell.row == "Weather/Fog")
    assert (fog.aggregate, fog.settings) == ("mean", tuple(f"fog-{severity}" for severity in range(1, 6)))
    assert [each.settings for each in fog.alternatives] == [tuple(f"fog-{s}-imagenet" for s in range(1, 6))]
    average = next(cell for cell in table.cells if cell.row == "Average of 19 Corruptions")
    assert len(average.settings) == 95 and "clean" not in average.settings


@pytest.mark.parametrize(
    ("study", "table", "row", "column", "protocols"),
    [
        ("dramoe", "table1", "ResNet-18 / DRAMoE", "CIFAR-10 / Adv", ["advmoe-released"]),
        ("dramoe", "table1", "ResNet-18 / DRAMoE", "TinyImageNet / Adv", ["tiny-released", "advmoe-released"]),
        ("dramoe", "table1", "ResNet-18 / PGD-AT (Sparse)", "TinyImageNet / Adv", ["tiny-released"]),
        ("dramoe", "table1", "ResNet-18 / PGD-AT (Sparse)", "CIFAR-10 / Adv", []),
        ("dramoe", "table1", "ResNet-18 / DRAMoE", "CIFAR-10 / Std", []),
        ("dramoe", "table1", "ResNet-18 / DRAMoE", "TinyImageNet / Std", ["tiny-released"]),
        ("dramoe", "table2", "ResNet-18 / TRADES", "CIFAR-10 / Adv", []),
        ("dwf", "table2", "CIFAR-10 / VGG-19", "SA", []),
        ("dwf", "table2", "CIFAR-10 / VGG-19", "FGSM 0.03", ["normalised-noclip", "normalised-noclip-printed"]),
        ("dwf", "table2", "CIFAR-10 / SoE", "FGSM 0.03", ["normalised-noclip-printed"]),
        ("dwf", "table3", "CIFAR-10 / DWF", "PGD-100 MS", ["normalised-noclip-printed"]),
        ("dwf", "table3", "SVHN / ResNet-34", "PGD-10", ["normalised-noclip"]),
        ("dwf", "table2", "SVHN / DWF", "SA", ["normalised-noclip"]),
        ("dwf", "table2", "SVHN / DWF", "FGSM 0.03", ["normalised-noclip"]),
        ("dwf", "table3", "SVHN / DWF", "PGD-100 A", ["normalised-noclip"]),
        ("hybrid", "table1", "MNIST / LeNet-5", "clean_acc", []),
        ("hybrid", "table1", "MNIST / LeNet-5 + Hybrid", "clean_acc", ["eps-normalised"]),
        ("hybrid", "table1", "MNIST / LeNet-5", "robustness_gap", ["eps-normalised"]),
        ("mocse", "table1", "Natural Samples", "CIFAR-10 / AT plain", []),
    ],
)
def test_what_may_explain_a_cell(paper, study, table, row, column, protocols):
    (cell,) = [c for c in paper.table(study, table).cells if (c.row, c.column) == (row, column)]
    assert [each.protocol for each in cell.alternatives] == protocols
    # Never a flawed setting in a correct cell.
    assert not {s for each in cell.alternatives for s in each.settings if s != "clean"} & set(cell.settings)


# What each replica of an evaluation does, as an attack_space; "model" are the statistics of the data.
REPLAYED_SPACES = {
    "normalised-noclip": ("normalised_noclip", "model"),
    "normalised-noclip-printed": ("normalised_noclip", STATISTICS["svhn"]),
    "eps-normalised": ("normalised_valid", "model"),
    "tiny-released": ("normalised_clip01", STATISTICS["imagenet"]),
}


def test_a_replica_of_a_normalised_space_attacks_nets_that_were_trained_there(paper):
    """Else the number says little: a net that was trained in pixels never saw what it is attacked with."""
    project, seen = Project(ROOT), set()
    for cell in cells(paper):
        for each in (each for each in cell.alternatives if each.protocol in REPLAYED_SPACES):
            name, expected = REPLAYED_SPACES[each.protocol]
            dataset = project.dataset(each.dataset)
            of_the_data = dataset["mean"], dataset["std"]
            # What it starts from was trained there, too.
            runs = [each.runs[0], *paper.initialize_from[each.runs[0]].values()]
            for method in {run.method for run in runs}:
                recipe = project.method(method)
                if "attack_space" not in plugins.recipe_parameters(recipe["class"], recipe.get("model", {})):
                    continue
                space = recipe["attack_space"]
                stated = {"model": of_the_data, "imagenet": STATISTICS["imagenet"]}.get(str(space["statistics"]))
                found = stated or tuple(space["statistics"].values())
                wanted = of_the_data if expected == "model" else expected
                assert space["name"] == name, (each, method)
                assert [list(values) for values in found] == [list(values) for values in wanted] or (
                    # SVHN's own are printed for CIFAR-10; the data's mean has no say where nothing is cut.
                    name == "normalised_noclip" and list(found[1]) == list(wanted[1])
                ), (each, method)
                seen.add(method)
    assert {"dwf-normalised", "dwf-expert-pgd-normalised", "hybrid-normalised", "pgd-at-sparse-tiny-released"} <= seen


@pytest.mark.parametrize("scale", ["smoke", "mini"])
def test_a_scale_without_these_trainings_says_so(scale):
    grid = build_grid(Project(ROOT), scale, ["dwf"])
    absent = [each for cell in cells(grid) for each in cell.alternatives if each.not_run]
    assert absent and all(each.not_run == f"the method {each.method} is not part of scale {scale}" for each in absent)
    assert not {run.method for run in grid.runs} & {each.method for each in absent}
    # What attacks undefended nets otherwise is measured all the same.
    assert {each.protocol for cell in cells(grid) for each in cell.alternatives if each.runs} >= {"normalised-noclip"}


def test_dwf_has_five_seeds_and_its_published_spread(paper):
    (cell,) = [c for c in paper.table("dwf", "table2").cells if (c.row, c.column) == ("CIFAR-10 / DWF", "SA")]
    assert ([run.seed for run in cell.runs], cell.published_std) == ([0, 1, 2, 3, 4], 0.43)


def test_the_leaderboard_has_every_method(paper):
    """Each recipe that is no expert, or a variant of it: same class, same model, the study's own budget."""
    project = Project(ROOT)
    recipes = {name: project.method(name) for name in project.names("methods")}
    shown = {cell.method for cell in paper.table("unified", "leaderboard").cells}

    def kind(name):
        content = recipes[name]
        return content["class"], repr(sorted(content.get("model", {}).items()))

    of_users = {*plugins.project_modules("methods"), *plugins.project_modules("models")}

    def is_shipped(content):
        used = content["class"], plugins.mixture_of(content["class"], content.get("model", {}))
        return not of_users & {name.replace("-", "_") for name in used if name}

    wanted = {name for name, content in recipes.items() if content.get("role", "method") == "method"}
    assert {kind(name) for name in shown} >= {kind(name) for name in wanted if is_shipped(recipes[name])}
    assert {kind(name) for name in shown} <= {kind(name) for name in wanted}
    assert not {name for name in shown if recipes[name].get("role", "method") != "method"}


def test_a_cell_that_is_not_run_says_why(grid):
    for cell in cells(grid):
        assert bool(cell.runs) == (cell.not_run is None and bool(cell.reads))
        without_suite = cell.weights == "last" and (cell.not_run or "").startswith(
            "the last epoch is not evaluated with"
        )
        assert cell.not_run is None or without_suite or cell.not_run.endswith(f"is not part of scale {grid.scale}")
    assert grid.scale != "paper" or not any(cell.not_run for cell in cells(grid) if cell.weights == "best")


def test_stand_ins_of_the_studies_themselves(paper):
    found = {
        (cell.study, (cell.column if cell.study == "mocse" else cell.row).removesuffix(" (last epoch)"))
        for cell in cells(paper)
        if cell.substitutes
    }
    assert found == {
        ("hybrid", "ImageNet subset / EfficientNet-B0"),
        ("hybrid", "ImageNet subset / EfficientNet-B0 + Hybrid"),
        ("mocse", "CIFAR-10 Augmented / std plain"),
        ("mocse", "CIFAR-10 Augmented / std MoCSE"),
        # None of the field's numbers was compared with a paper's PDF.
        *(("field", row) for row in paper.table("field", "headline").rows),
    }


@pytest.mark.parametrize("name", Project(ROOT).claims())
def test_every_claim_finds_its_cells(paper, name):
    spec = Project(ROOT).claims()[name]
    assert claims.chosen(paper, name, spec, "of")
    assert bool(claims.chosen(paper, name, spec, "against")) == ("against" in spec)


def test_every_claim_that_the_csv_lists_is_computed():
    project = Project(ROOT)
    stated = [spec["stated"].get("published", {}).get("metric") for spec in project.claims().values()]
    for study in PAPERS:
        for row in project.published(study):
            assert row["table"] != "text-claims" or row["metric"] in stated


def test_measures_read_from_the_sources_are_those_that_import():
    assert plugins.measures() == measures.READS
    assert plugins.measures().keys() == measures.MEASURES.keys()
    for reads in plugins.measures().values():
        assert set(reads) <= {"rows", "record", "checks", "probe"}


# -- the study's language ---------------------------------------------------
@pytest.fixture
def study(tmp_path):
    """Changes one study of a copy of the project; returns a function that expands it."""
    copy_project(tmp_path)

    def expand(name, change):
        edit_yaml(tmp_path / "config/studies" / f"{name}.yaml", lambda content: change(content["tables"]))
        return build_grid(Project(tmp_path), "paper", [name])

    return expand


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "dramoe",
            lambda t: t["table2"]["overrides"][0]["match"].update(method=["DRAMOE"]),
            "unknown label of method 'DRAMOE'.*'DRAMoE'",
        ),
        ("dramoe", lambda t: t["table2"]["overrides"][0]["match"].update(methods=["DRAMoE"]), "unknown axis 'methods'"),
        (
            "dramoe",
            lambda t: t["table2"]["overrides"][0].update(settings=["pgd1?0"]),
            "unknown setting of suite 'advmoe' 'pgd1\\?0'",
        ),
        (
            "dwf",
            lambda t: t["table2"]["alternative_protocols"][0].update(suite="dwf-normalized"),
            "unknown suite 'dwf-normalized'.*dwf-normalised",
        ),
        (
            "dwf",
            lambda t: t["table2"]["alternative_protocols"][0].update(suffix="_nrm"),
            "unknown setting of suite 'dwf-normalised' 'fgsm_e01_nrm'",
        ),
        (
            "dwf",
            lambda t: t["table2"]["alternative_protocols"][0].update(protocol="correct"),
            "alternative_protocols.0.protocol",
        ),
        (
            "hybrid",
            lambda t: t["table1"]["alternative_protocols"][0].update(methods={"hybrid": "hybrid-normalized"}),
            "alternative_protocols.methods: unknown method 'hybrid-normalized'.*hybrid-normalised",
        ),
        (
            "hybrid",
            lambda t: t["table1"]["alternative_protocols"][0].update(methods={"hibrid": "hybrid-normalised"}),
            "alternative_protocols.methods: unknown method 'hibrid'",
        ),
        (
            "hybrid",
            lambda t: t["overhead"]["columns"][0]["points"][0].update(measure="hours"),
            "unknown measure 'hours'",
        ),
        ("hybrid", lambda t: t["overhead"]["columns"][0]["points"][0].update(label="time"), "no row fits overhead"),
    ],
)
def test_slips_in_a_study_are_named(study, name, change, said):
    with pytest.raises(ConfigError, match=said):
        study(name, change)


def test_costs_ask_for_no_evaluation_and_no_checks(paper):
    table = paper.table("hybrid", "overhead")
    assert table.runs and not table.evaluations and not table.checks
