"""Claims computed from cells: arithmetic, verdicts, and what is written."""

import csv
import math
import re
from dataclasses import dataclass

import pytest
import yaml
from reporting_tree import Tree, make_stale, rows

from moat.base.errors import ConfigError
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.reporting import claims, claims_tables
from moat.reporting.quantities import OVER, QUANTITIES, Band, Number
from moat.reporting.results import Results
from moat.reporting.tables import frame, rows_of
from project_copy import edit_yaml


@pytest.mark.parametrize(
    ("quantity", "of", "against", "expected"),
    [
        ("value", [(50, 48, 52)], [], (50, 48, 52)),
        # The mean of two independent numbers: their half widths in quadrature, halved.
        ("value", [(50, 47, 53), (60, 56, 64)], [], (55, 52.5, 57.5)),
        ("difference", [(62, 59, 66)], [(58, 54, 61)], (4, 4 - math.hypot(3, 3), 4 + math.hypot(4, 4))),
        ("difference", [(62, 62, 62), (10, 10, 10)], [(60, 60, 60), (4, 4, 4)], (4, 4, 4)),
        ("increase", [(6.9, 6.9, 6.9)], [(5.3, 5.3, 5.3)], (100 * (6.9 / 5.3 - 1),) * 3),
        ("reduction", [(33.2, 33.2, 33.2)], [(62.7, 62.7, 62.7)], (100 * (1 - 33.2 / 62.7),) * 3),
        ("reduction", [(30, 27, 33)], [(60, 60, 60)], (50, 45, 55)),
        ("increase", [(30, 27, 33)], [(0, -1, 1)], (0, -math.inf, math.inf)),
    ],
)
def test_quantities(quantity, of, against, expected):
    numbers = QUANTITIES[quantity]([Number(*each) for each in of], [Number(*each) for each in against])
    found = OVER["mean"](numbers, Band(-math.inf, math.inf))
    assert (found.value, found.low, found.high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("band", "number", "verdict"),
    [
        ((2, 6), (4, 3, 5), "reproduced"),
        ((2, 6), (1, 0, 1.9), "below"),
        ((2, 6), (7, 6.1, 8), "above"),
        ((2, 6), (5.5, 5, 6.5), "unverified"),
        ((90, math.inf), (91, 90.4, 91.6), "reproduced"),
        ((90, math.inf), (90.2, 89.8, 90.6), "unverified"),
        ((-math.inf, 50), (60, 55, 65), "above"),
        ((45, 55), (0, -math.inf, math.inf), "unverified"),
    ],
)
def test_bands(band, number, verdict):
    assert Band(*band).verdict(Number(*number)) == verdict


@pytest.mark.parametrize(
    ("band", "numbers", "decisive"),
    [
        # All inside: the nearest to an edge; of a bound on one side, the lowest.
        ((37, 48), [(40, 39, 41), (46, 45, 47), (42, 41, 43)], (46, 45, 47)),
        ((0, math.inf), [(50, 47, 53), (40, 36, 44)], (40, 36, 44)),
        # One outside, above or below, outweighs one whose interval crosses an edge.
        ((37, 48), [(40, 39, 41), (37, 20, 50), (50, 49, 51)], (50, 49, 51)),
        ((37, 48), [(0, 0, 1), (40, 39, 41), (50, 49, 51)], (0, 0, 1)),
        ((37, 48), [(40, 39, 41), (47.9, 47, 49)], (47.9, 47, 49)),
        # One that crosses an edge outweighs one that is nearer to it, inside.
        ((0, math.inf), [(1, 0.5, 1.5), (3, -1, 7)], (3, -1, 7)),
    ],
)
def test_a_claim_about_each_of_several_cells_is_decided_by_one(band, numbers, decisive):
    assert OVER["each"]([Number(*each) for each in numbers], Band(*band)) == Number(*decisive)


# -- from results to verdicts -----------------------------------------------------
N = 10_000


@dataclass
class Case:
    """The project of these tests at a comparable scale with one seed, and its results."""

    project: Project
    tree: Tree

    def measure(self, method: str, correct: int, check: tuple[str, ...] = (), replica: int | None = None) -> None:
        name = self.tree.run(dataset="cifar10", method=method)
        self.tree.checks(name, check)
        self.tree.evaluation(name, "dramoe", self.rows("dramoe", correct))
        if replica is not None:
            self.tree.evaluation(name, "advmoe", self.rows("advmoe", replica))

    @staticmethod
    def rows(suite: str, correct: int):
        content = rows(suite, {}, N, seed=0)
        content["correct"] = content["index"] < correct
        return content

    def claim(self, name: str, **changes) -> dict:
        path = self.project.root / "config/claims.yaml"
        content = yaml.safe_load(path.read_text())
        content[name].update(changes)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return next(claim for claim in self.evaluate() if claim["id"] == name)

    def evaluate(self, studies=("dramoe", "unified")) -> list[dict]:
        grid = build_grid(self.project, "paper", studies)
        results = Results(self.tree.root, "paper", project=self.project)
        scale = self.project.scale("paper")
        cells = (row for table in grid.tables for cell in table.cells for row in rows_of(cell, results, scale))
        return claims.evaluate(self.project, grid, frame(cells), studies)


@pytest.fixture
def case(project):
    scale = project / "config/scales/paper.yaml"
    scale.write_text(yaml.safe_dump({**yaml.safe_load(scale.read_text()), "max_seeds": 1}))
    study = project / "config/studies/dramoe.yaml"
    content = yaml.safe_load(study.read_text())
    flawed = [{"protocol": "advmoe-released", "suite": "advmoe", "settings": ["pgd10_advmoe"]}]
    content["tables"]["table2"]["columns"][1]["points"][1]["alternative_protocols"] = flawed
    study.write_text(yaml.safe_dump(content, sort_keys=False))
    return Case(Project(project), Tree(project, "paper"))


GAIN = "trades-over-pgd-at"


@pytest.mark.brief(keep=lambda case: not case["left_out"] or "method" in case["left_out"]["exclude"])
@pytest.mark.parametrize(
    ("left_out", "shown"),
    [
        ({}, True),
        ({"exclude": {"item": ["unified-leaderboard"]}}, True),
        ({"exclude": {"item": ["dramoe-table2"]}}, False),
        ({"exclude": {"method": ["trades"]}}, False),
        ({"exclude": {"method": ["trades"]}, "show_not_run": False}, False),
    ],
    ids=["nothing", "another table", "its table", "its method, shown as not run", "its method"],
)
def test_a_claim_about_what_a_scale_leaves_out_is_not_run(case, left_out, shown):
    case.measure("pgd-at", 4000)
    case.measure("trades", 5000)
    edit_yaml(case.project.root / "config/scales/paper.yaml", lambda scale: scale.update(left_out))
    found = next(claim for claim in case.evaluate() if claim["id"] == GAIN)
    assert (found["verdict"] != "not-run") == shown


@pytest.mark.brief(keep=lambda case: case["verdict"] in ("below", "unverified") or "published" in case["stated"])
@pytest.mark.parametrize(
    ("trades", "pgd_at", "stated", "verdict"),
    [
        (5000, 4950, {"equals": 0.43}, "reproduced"),
        (5000, 4000, {"equals": 0.43}, "above"),
        (4000, 5000, {"equals": 0.43}, "below"),
        (5000, 4950, {"at_least": 0}, "unverified"),
        (5000, 4000, {"at_least": 0}, "reproduced"),
        (5000, 4000, {"at_most": 5}, "above"),
        (
            5000,
            4000,
            {"published": {"table": "text-claims", "metric": "Adv gain over FAT"}, "tolerance": 8},
            "reproduced",
        ),
    ],
)
def test_a_difference_between_two_cells(case, trades, pgd_at, stated, verdict):
    case.measure("trades", trades)
    case.measure("pgd-at", pgd_at)
    found = case.claim(GAIN, stated=stated)
    assert found["measured"]["value"] == pytest.approx((trades - pgd_at) / 100)
    # Both intervals are about +-0.98 points.
    half = (found["measured"]["high"] - found["measured"]["low"]) / 2
    assert half == pytest.approx(0.98 * math.sqrt(2), abs=0.04)
    assert (found["verdict"], found["reasons"]) == (verdict, [])
    assert [(each["row"], each["role"], each["id"]) for each in found["evidence"]] == [
        ("ResNet-18 / TRADES", "of", "dramoe-table2"),
        ("ResNet-18 / PGD-AT", "against", "dramoe-table2"),
    ]


@pytest.mark.parametrize(
    ("replicas", "verdict", "explained"),
    [((6200, 5800), "explained", 4.0), ((6200, 6100), "below", 1.0), ((None, None), "below", None)],
)
def test_a_claim_is_explained_by_the_protocol_that_gives_it(case, replicas, verdict, explained):
    case.measure("trades", 4000, replica=replicas[0])
    case.measure("pgd-at", 4000, replica=replicas[1])
    found = case.claim(GAIN, stated={"equals": 4.02}, protocol="advmoe-released")
    assert found["verdict"] == verdict
    assert found["explained"] is None if explained is None else found["explained"]["value"] == pytest.approx(explained)
    assert found["protocol"] == "advmoe-released"


@pytest.mark.parametrize(
    ("of", "rest", "reason", "verdict"),
    [(5000, 4000, None, "reproduced"), (4000, 4900, None, "below"), (5000, 4950, None, "unverified")],
)
def test_one_cell_is_compared_with_each_of_several(case, of, rest, reason, verdict):
    case.measure("trades", of)
    case.measure("pgd-at", 3000)
    case.measure("mart", rest)
    found = case.claim(GAIN, stated={"at_least": 0}, over="each", against={"method": ["MART", "PGD-AT"]})
    # The pair that decides: the better of those that it is compared with.
    assert (found["measured"]["value"], found["compared"]) == (pytest.approx((of - rest) / 100), 2)
    assert (found["verdict"], found["stated"]) == (verdict, "each at least 0 points")
    assert claims_tables.words(found)[2].endswith(" points (decides, of 2)")


def test_a_claim_compares_measured_cells_of_two_tables(case):
    """Never one measured number with a published one: 45 against a measured 55 is no support."""
    case.measure("trades", 4500)
    content = Case.rows("dramoe", 4500)
    content.loc[content["setting"] == "fgsm", "correct"] = content["index"] < 5500
    case.tree.evaluation("cifar10/resnet18/trades/seed0", "dramoe", content)
    found = case.claim(
        GAIN,
        cells={"dataset": ["CIFAR-10"], "arch": ["ResNet-18"], "method": ["TRADES"]},
        of={"metric": ["Adv"]},
        against={"table": "unified-leaderboard", "attack": ["FGSM"]},
        stated={"at_least": 0},
    )
    assert (found["measured"]["value"], found["verdict"]) == (pytest.approx(-10), "below")
    assert [each["id"] for each in found["evidence"]] == ["dramoe-table2", "unified-leaderboard"]


@pytest.mark.parametrize(
    ("replicas", "trades", "status"),
    [
        ((6200, 5800), 4000, "explanation"),
        ((6200, 6100), 4000, "possible explanation (tested here, not confirmed)"),
        ((None, None), 4000, "possible explanation (not tested here)"),
        # There is no difference to explain, whatever the replica gives.
        ((6200, 5800), 4402, "possible explanation (not tested here)"),
    ],
)
def test_an_explanation_is_a_supposition_until_its_protocol_agrees(case, replicas, trades, status):
    case.measure("trades", trades, replica=replicas[0])
    case.measure("pgd-at", 4000, replica=replicas[1])
    found = case.claim(GAIN, stated={"equals": 4.02}, protocol="advmoe-released")
    assert found["explanation_status"] == status
    assert claims_tables.words(found)[3].startswith(f"{status}: Single runs.")
    assert f",{status}: Single runs.," in claims_tables.to_csv([found]).replace('"', "")


def test_a_replica_on_other_weights_explains_nothing(case):
    case.measure("trades", 4000, replica=6200)
    case.measure("pgd-at", 4000, replica=5800)
    name = "cifar10/resnet18/pgd-at/seed0"
    case.tree.evaluation(name, "advmoe", Case.rows("advmoe", 5800), sha="0" * 64)
    found = case.claim(GAIN, stated={"equals": 4.02}, protocol="advmoe-released")
    assert (found["verdict"], found["explained"]["value"]) == ("below", pytest.approx(4.0))


def test_a_claim_rests_on_cells_that_can_be_trusted(case):
    case.measure("trades", 5000, check=("threat-model",))
    case.measure("pgd-at", 4950)
    found = case.claim(GAIN)
    assert (found["verdict"], found["reasons"]) == ("unverified", ["threat-model"])
    assert found["measured"]["value"] == pytest.approx(0.5)


def test_a_claim_says_that_its_cells_are_stale_and_keeps_its_verdict(case):
    case.measure("trades", 5000)
    case.measure("pgd-at", 4950)
    make_stale(case.tree.base / "runs/cifar10/resnet18/trades/seed0/run.json")
    found = case.claim(GAIN, stated={"equals": 0.43})
    assert (found["verdict"], found["reasons"]) == ("reproduced", ["stale"])
    assert claims_tables.words(found)[4] == "reproduced: stale: made by code or a recipe that has changed since"


def test_a_claim_without_its_cells_is_not_run(case):
    case.measure("trades", 5000)
    found = case.claim(GAIN)
    assert (found["verdict"], found["measured"]) == ("not-run", None)
    assert found["reasons"] == ["dramoe-table2: ResNet-18 / PGD-AT × CIFAR-10 / Adv is not measured"]


def test_a_claim_about_another_study_needs_it(case):
    cells = {"dataset": ["CIFAR-10"], "arch": ["ResNet-18"], "attack": ["clean"]}
    case.measure("trades", 5000)
    case.measure("pgd-at", 4950)
    assert case.claim(GAIN, table="unified-leaderboard", cells=cells)["verdict"] == "reproduced"
    other = next(claim for claim in case.evaluate(["dramoe"]) if claim["id"] == GAIN)
    assert (other["verdict"], other["evidence"]) == ("not-run", [])
    assert other["reasons"] == ["the study unified is not among those asked for"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"table": "table9"}, "unknown table 'dramoe-table9'"),
        ({"of": {"method": ["TRADE"]}}, "unknown label of method 'TRADE' .*'TRADES'"),
        ({"quantity": "diference"}, "unknown quantity 'diference'.*'difference'"),
        ({"quantity": "value"}, "against: is for the quantities difference"),
        (
            {"of": {"method": ["TRADES", "MART"]}, "against": {"method": ["PGD-AT", "FAT", "DRAMoE"]}},
            "2 cells against 3; difference needs as many of each, or one of each kind",
        ),
        ({"against": {"table": "unified-leaderbord", "method": ["PGD-AT"]}}, "unknown table 'unified-leaderbord'"),
        ({"over": "every"}, "over.*'every'"),
        ({"stated": {"tolerance": 1}}, "stated: says no number"),
        ({"stated": {"published": {"table": "1"}}}, "72 rows fit config/claims.yaml: trades-over-pgd-at"),
        ({"unit": "percent"}, "unit.*'percent'"),
        ({"kind": "ordr"}, "kind.*'ordr'"),
        ({"quantity": "reduction"}, "kind: is missing.*order, protocol, cost, value"),
    ],
)
def test_slips_in_a_claim_are_named(case, changes, said):
    with pytest.raises(ConfigError, match=said):
        case.claim(GAIN, **changes)


# -- what is written -----------------------------------------------------------------
def test_claims_are_written_beside_the_cells(tree, moat, capsys):
    tree.everything(methods=["trades", "pgd-at"])
    assert moat("tabulate") == 0
    assert moat("tabulate", "--cells") == 0
    assert "results/smoke/tables/claims" in capsys.readouterr().out
    with open(tree.base / "tables/claims.csv", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert list(first) == claims_tables.COLUMNS
    # Not the paper's data or budget: measured, and not judged.
    assert (first["claim"], first["verdict"]) == (GAIN, "unverified")
    assert first["reasons"].split(";") == ["budget", "stand-in dataset cifar10->digits"]
    assert float(first["ci_low"]) < float(first["measured"]) < float(first["ci_high"])
    # Beside the verdict, what the scale shows of it.
    assert (first["kind"], first["indication"], first["tested"]) == ("order", "undecided", "above 0")
    assert first["indication_reason"] == "an order between methods needs at least 2 seeds, not 1"
    assert first["budget"].startswith("width 0.125, ")
    assert first["budget"].endswith(", 1 seed, 400 images attacked or classified")
    assert second["indication"] == "not testable here"
    assert second["indication_reason"].endswith(": the method dramoe is not part of scale smoke")
    assert (second["verdict"], second["measured"], second["stated"]) == ("not-run", "", "5.48 points, tolerance 2")
    text = (tree.base / "tables/claims.md").read_text()
    assert f"{float(first['measured']):.2f} [" in text and "not run: dramoe-table2: " in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(claims_tables.HEADINGS) + 1}
    latex = (tree.base / "tables/claims.tex").read_text()
    body = latex.split("\\endhead\n")[1].split("\\bottomrule")[0].splitlines()
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [len(claims_tables.HEADINGS) - 1] * 2
    bare = re.sub(r"\\.", "", latex)
    assert bare.count("{") == bare.count("}")
