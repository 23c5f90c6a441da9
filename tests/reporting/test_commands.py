"""tabulate, draw and report as the workflow calls them."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from reporting_tree import Tree, make_project

from moat.base.errors import ConfigError
from moat.commands.cli import main
from moat.provenance.staleness import hash_parts, stale
from moat.reporting import figures
from project_copy import edit_yaml


def files(tree: Tree) -> dict[str, str]:
    """Hash of everything that the three commands wrote."""
    made = [*tree.base.glob("tables/*"), *tree.base.glob("figures/*"), *tree.base.glob("*.*")]
    return {str(path.relative_to(tree.base)): hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def make(moat) -> None:
    for command in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        assert moat(*command) == 0


@pytest.mark.long
def test_all_outputs_are_reproducible_byte_for_byte(tree, moat, tmp_path, monkeypatch):
    tree.everything(failed={"trades": ("monotone-epsilon",)})
    make(moat)
    first = files(tree)
    assert set(first) == {
        *(
            f"tables/{name}.{suffix}"
            for name in ("unified-leaderboard", "dramoe-table2")
            for suffix in ("csv", "md", "tex", "json")
        ),
        *(
            f"figures/unified-{name}.{suffix}"
            for name in ("epsilon", "training")
            for suffix in ("png", "pdf", "csv", "json")
        ),
        "tables/cells.csv",
        "tables/cells.json",
        *(f"tables/claims.{suffix}" for suffix in ("csv", "md", "tex")),
        "tables/robustbench.json",
        "metrics.json",
        "report.html",
        "report.json",
    }
    # No run of this tree was attacked with AutoAttack.
    assert (tree.base / "tables/robustbench.json").read_text() == "{}\n"
    assert all((tree.base / name).stat().st_size > 100 for name in set(first) - {"tables/robustbench.json"})
    other = Tree(make_project(tmp_path / "elsewhere"))
    other.everything(failed={"trades": ("monotone-epsilon",)})
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    for command in (["tabulate"], ["tabulate", "--cells"], ["draw"], ["report"]):
        place = ["--project", str(tmp_path / "elsewhere")]
        assert main([*place, *command, "--scale", "smoke", "--results", str(other.root)]) == 0
    assert files(other) == first


def test_cells_are_the_tables_put_together(tree, moat, capsys):
    tree.everything()
    assert moat("tabulate") == 0
    assert moat("tabulate", "--cells") == 0
    parts = [
        (tree.base / "tables" / f"{name}.csv").read_text().splitlines()
        for name in ("unified-leaderboard", "dramoe-table2")
    ]
    assert (tree.base / "tables/cells.csv").read_text().splitlines() == parts[0] + parts[1][1:]
    assert "81 cells in 2 tables: 4 unverified, 56 not-run, 21 measured" in capsys.readouterr().out


@pytest.mark.long
def test_metrics(tree, moat):
    tree.everything(failed={"standard": ("threat-model",)})
    make(moat)
    content = json.loads((tree.base / "metrics.json").read_text())
    assert content["verdicts"] == {"unverified": 11, "not-run": 56, "measured": 14}
    assert content["checks"] == {"passed": 2, "failed": 1}
    rows = pd.read_parquet(tree.base / "evaluations/digits/resnet18/trades/seed0/dramoe.parquet")
    found = content["accuracy"]["digits"]["resnet18"]["trades"]["seed0"]["dramoe"]
    for setting in ("clean", "pgd10"):
        assert found[setting] == pytest.approx(100 * rows[rows["setting"] == setting]["correct"].mean(), abs=1e-4)
    worst = rows.groupby("index")["correct"].all().mean()
    assert found["worst(clean+fgsm+bim+pgd10+pgd20+pgd50+cw_inf)"] == pytest.approx(100 * worst, abs=1e-4)


def test_one_table_needs_no_other_study(tree, moat, project):
    tree.everything()
    (project / "config/studies/dramoe.yaml").write_text("broken: true\n")
    assert moat("tabulate", "--study", "unified", "--table", "leaderboard") == 0
    assert sorted(path.name for path in (tree.base / "tables").iterdir()) == [
        "unified-leaderboard.csv",
        "unified-leaderboard.json",
        "unified-leaderboard.md",
        "unified-leaderboard.tex",
    ]


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["tabulate", "--study", "dramo"], 2, "unknown study 'dramo' (did you mean 'dramoe'?)"),
        (["tabulate", "--study", "dramoe", "--table", "table9"], 2, "unknown table 'dramoe-table9'"),
        (["tabulate", "--table", "table2"], 2, "--table needs --study"),
        (["tabulate", "--cells", "--study", "dramoe"], 2, "--cells takes all tables"),
        (["tabulate", "--cells"], 3, "unified-leaderboard.csv: no such file; `moat tabulate` makes it"),
        (["tabulate", "--studies", ","], 2, "--studies: no study given"),
        (["draw", "--figure", "epsilon"], 2, "--figure needs --study"),
        (["draw", "--study", "unified", "--figure", "epsilo"], 2, "did you mean 'unified-epsilon'?"),
        (["report", "--studies", "unified,nothing"], 2, "unknown study 'nothing'"),
    ],
)
def test_wrong_usage_is_one_line(moat, capsys, command, code, message):
    assert moat(*command) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_unknown_scale_is_named(moat, capsys):
    assert moat("report", scale="papr") == 2
    assert "did you mean 'paper'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda figure: figure.update(kind="accuracy_vs_epsilo"),
            "'accuracy_vs_epsilo' (did you mean 'accuracy_vs_epsilon'?)",
        ),
        (lambda figure: figure.update(options={"maximun": 1}), "unknown option of accuracy_vs_epsilon 'maximun'"),
    ],
)
def test_a_wrong_figure_is_named(tree, moat, project, capsys, change, message):
    tree.everything(methods=["standard"])
    edit_yaml(project / "config/studies/unified.yaml", lambda content: change(content["figures"]["epsilon"]))
    assert moat("draw") == 2
    assert message in capsys.readouterr().err


def test_accuracy_against_epsilon_shows_what_the_rows_say(tree, moat, capsys):
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("threat-model",)})
    assert moat("draw", "--study", "unified", "--figure", "epsilon") == 0
    content = pd.read_csv(tree.base / "figures/unified-epsilon.csv")
    assert list(content["method"].unique()) == ["standard", "pgd-at"]
    assert len(content) == 2 * 9
    for row in content.to_dict("records"):
        frame = pd.read_parquet(tree.base / f"evaluations/digits/resnet18/{row['method']}/seed0/epsilon.parquet")
        rate = frame[frame["setting"] == row["setting"]]["correct"].mean()
        radius = 0 if row["setting"] == "clean" else int(row["setting"].removeprefix("pgd10_e"))
        assert row["accuracy"] == pytest.approx(100 * rate, abs=1e-4)
        assert row["ci_low"] < 100 * rate < row["ci_high"]
        assert row["epsilon"] == pytest.approx(radius / 255)
        assert row["chance"] == 10
    assert set(content[content["method"] == "pgd-at"]["checks_failed"]) == {"threat-model"}
    assert content[content["method"] == "standard"]["epsilon"].is_monotonic_increasing
    said = capsys.readouterr().out
    assert re.search(r"Not drawn: .* / ResNet-18 / TRADES: not evaluated yet\.\n", said)
    assert re.search(r"Unverified: .* / ResNet-18 / PGD-AT: threat-model\.\n", said)
    assert "Stand-in: dataset digits in place of cifar10." in said


def test_training_curves(tree, moat, project, capsys):
    curves = {
        "kind": "training_curves",
        "title": "Training",
        "caption": "Loss.",
        "suite": "dramoe",
        "settings": ["clean"],
    }

    def add(content):
        content["figures"]["training"] = {**curves, "lines": content["figures"]["epsilon"]["lines"]}

    edit_yaml(project / "config/studies/unified.yaml", add)
    edit_yaml(project / "config/scales/smoke.yaml", lambda content: content.update(max_seeds=2))
    tree.everything(methods=["standard", "trades"], seeds=(0, 1))
    assert moat("draw", "--study", "unified", "--figure", "training") == 0
    content = pd.read_csv(tree.base / "figures/unified-training.csv")
    assert len(content) == 2 * 2 * 3
    second = content[(content["method"] == "trades") & (content["seed"] == 1)]
    assert np.allclose(second["validation_accuracy"], [10, 40, 70])
    assert np.allclose(second["loss"], [3, 2.5, 2])
    assert (tree.base / "figures/unified-training.png").stat().st_size > 5000
    missing = tree.base / "runs/digits/resnet18/trades/seed1/history.csv"
    missing.unlink()
    assert moat("draw") == 3
    assert f"{missing}: no such file" in capsys.readouterr().err


@pytest.mark.long
def test_figures_without_any_result(moat, tree):
    assert moat("draw") == 0
    assert (tree.base / "figures/unified-epsilon.csv").read_text().count("\n") == 1
    assert (tree.base / "figures/unified-epsilon.png").stat().st_size > 1000


def test_an_unknown_kind_of_figure_is_named():
    with pytest.raises(
        ConfigError, match="unknown kind of figure 'bars'; allowed: accuracy_curves, accuracy_vs_epsilon, corrupt"
    ):
        figures.get("bars")


def test_every_kind_of_figure_keeps_the_contract():
    assert {"accuracy_vs_epsilon", "training_curves"} <= set(figures.names())
    for kind in figures.names():
        assert callable(figures.get(kind).draw)
        assert figures.get(kind).__doc__


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [({}, []), ({"attacks": "today"}, []), ({"attacks": "0" * 16}, ["attacks"]), ({"gone": "0"}, ["gone"])],
)
def test_stale_parts(recorded, expected):
    today = hash_parts(["attacks"], method="pgd-at", arch="resnet18")["attacks"]
    recorded = {part: today if value == "today" else value for part, value in recorded.items()}
    assert stale({"sources": recorded, "run": {"class": "pgd-at", "arch": "resnet18"}}) == expected


def test_help_imports_nothing_heavy():
    heavy = {"torch", "pandas", "matplotlib", "jinja2", "scipy"}
    code = f"import sys, moat.commands.cli; moat.commands.cli.build_parser(); print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert re.fullmatch(r"\[\]\s*", out)
