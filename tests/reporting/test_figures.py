"""Every kind of figure: its CSV holds the numbers that one recomputes, and what is missing is said."""

import io
import math
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from moat.base.plugins import figure_kinds
from moat.config.grid import build_grid
from moat.config.project import Project
from moat.reporting import figures, labels, style
from moat.reporting.figures import routing
from project_copy import edit_yaml

DATA = {"axis": "dataset", "points": [{"label": "CIFAR-10", "dataset": "cifar10"}]}
NET = {"axis": "arch", "points": [{"label": "ResNet-18", "arch": "resnet18"}]}
METHODS = {
    "axis": "method",
    "points": [{"label": "plain", "method": "standard"}, {"label": "PGD-AT", "method": "pgd-at"}],
}
ATTACKS = {
    "axis": "attack",
    "points": [{"label": "Std", "settings": ["clean"]}, {"label": "PGD-10", "settings": ["pgd10"]}],
}
STEPS = {
    "axis": "steps",
    "points": [{"label": str(k), "settings": [f"pgd{k}"]} for k in (10, 20, 50)],
}
CORRUPTED = {
    "axis": "setting",
    "points": [
        {"label": "Noise/Shot Noise", "settings": ["fgsm", "bim"], "aggregate": "mean"},
        {"label": "Blur/Zoom Blur", "settings": ["pgd10", "pgd20", "pgd50"], "aggregate": "mean"},
    ],
}
COSTS = {
    "axis": "measure",
    "points": [*ATTACKS["points"], {"label": "MACs", "measure": "macs"}],
}
MODELS = [DATA, NET, METHODS]
FIGURES = {
    "accuracy_vs_epsilon": {"suite": "epsilon", "settings": ["clean", "pgd10_e8"], "lines": MODELS},
    "accuracy_curves": {"suite": "dramoe", "lines": [*MODELS, STEPS], "options": {"along": "steps", "x": "steps"}},
    "grouped_bars": {
        "suite": "dramoe",
        "lines": [*MODELS, ATTACKS],
        "options": {"group": "attack", "panel": "dataset"},
    },
    "corruption_bars": {"suite": "dramoe", "lines": [*MODELS, CORRUPTED]},
    "pareto": {
        "suite": "dramoe",
        "lines": [*MODELS, COSTS],
        "options": {"measure": "measure", "x": "Std", "y": "PGD-10", "size": "MACs"},
    },
    "training_curves": {"lines": MODELS},
    "router_history": {"lines": MODELS},
    "weight_distributions": {"probe": "weights", "lines": MODELS},
    "routing": {"probe": "routing", "lines": MODELS},
    "tsne": {"probe": "features", "lines": MODELS},
    "heatmaps": {"probe": "heatmaps", "lines": MODELS},
    "paper_vs_measured": {},
}


@pytest.fixture
def declare(project):
    """Adds one figure of a kind, named f, to the study unified."""

    def add(kind, **changes):
        figure = {"kind": kind, "title": "t", "caption": "c", **FIGURES[kind], **changes}
        edit_yaml(project / "config/studies/unified.yaml", lambda study: study.update(figures={"f": figure}))

    return add


@pytest.fixture
def draw(tree, moat, capsys):
    """Draws that figure; returns its CSV and what was said."""

    def call():
        assert moat("draw", "--study", "unified", "--figure", "f") == 0, capsys.readouterr().err
        for suffix in ("png", "pdf"):
            assert (tree.base / f"figures/unified-f.{suffix}").stat().st_size > 1000
        return pd.read_csv(tree.base / "figures/unified-f.csv"), capsys.readouterr().out

    return call


def fill(tree) -> None:
    """Results of both methods, checks passed, with what each kind of figure reads."""
    tree.everything(methods=["standard", "pgd-at"], n=200)
    for method in ("standard", "pgd-at"):
        folder = tree.base / f"runs/digits/resnet18/{method}/seed0"
        history = pd.read_csv(folder / "history.csv")
        for expert, share in enumerate((0.25, 0.75)):
            history[f"expert{expert}_load_clean"] = share
            history[f"expert{expert}_load_adversarial"] = 1 - share
        history["router_entropy_clean"], history["router_entropy_adversarial"] = 0.5, 0.25
        history.to_csv(folder / "history.csv", index=False)
        for name, arrays in probes().items():
            probe(tree, method, name, arrays)


def test_a_bar_of_a_routed_net_is_the_worst_of_both_gradients(project, tree, declare, draw):
    """The dense net has no rows without the router's gradient, and needs none."""
    included = {"dataset": ["digits"], "arch": ["resnet18"], "method": ["pgd-at", "dramoe"]}
    edit_yaml(project / "config/scales/smoke.yaml", lambda scale: scale.update(include=included))
    index = np.arange(60)
    correct = {"clean": index >= 0, "pgd10": index % 2 == 0, "pgd10_det": index % 3 == 0}
    for method, settings in (("pgd-at", ("clean", "pgd10")), ("dramoe", tuple(correct))):
        name = tree.run(method=method)
        tree.checks(name)
        parts = [pd.DataFrame({"setting": each, "index": index, "correct": correct[each]}) for each in settings]
        tree.evaluation(name, "dramoe", pd.concat(parts, ignore_index=True))
    methods = {"axis": "method", "points": [{"label": name, "method": name} for name in ("pgd-at", "dramoe")]}
    declare("grouped_bars", both_gradients=True, lines=[DATA, NET, methods, ATTACKS])
    content, _ = draw()
    bars = content.set_index(["method_label", "attack_label"])["measured"]
    assert bars["pgd-at"].to_dict() == pytest.approx({"Std": 100, "PGD-10": 50})
    # Of the 30 images that withstand one gradient and the 20 that withstand the other, ten withstand both.
    assert bars["dramoe"].to_dict() == pytest.approx({"Std": 100, "PGD-10": 100 / 6}, abs=1e-3)


def probes() -> dict[str, dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    label = np.arange(60) % 10
    features = random.normal(size=(60, 8)).astype(np.float32) + 3 * np.eye(10, 8, dtype=np.float32)[label]
    predicted = {"clean_predicted": label, "attacked_predicted": (label + (np.arange(60) >= 15)) % 10}
    pictures = {name: random.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8) for name in ("clean", "attacked")}
    maps = {f"{name}_map": random.random((60, 4, 4)).astype(np.float32) for name in ("clean", "attacked")}
    return {
        "weights": {"weights": random.normal(size=(5, 4, 3, 3)).astype(np.float32)},
        "routing": {name: random.normal(size=(60, 2)).astype(np.float32) for name in ("clean", "attacked")},
        "features": {"clean": features, "attacked": features[::-1].copy(), "label": label, **predicted},
        "heatmaps": {"label": label, **pictures, **maps, **predicted},
    }


def probe(tree, method: str, name: str, arrays, sha: str | None = None) -> None:
    tree.probe(f"digits/resnet18/{method}/seed0", name, arrays, sha)


def rate(tree, method: str, settings: list[str], suite: str = "dramoe") -> float:
    """Mean accuracy in percent over settings, from the rows."""
    frame = pd.read_parquet(tree.base / f"evaluations/digits/resnet18/{method}/seed0/{suite}.parquet")
    return 100 * frame[frame["setting"].isin(settings)]["correct"].mean()


METHOD = {"plain": "standard", "PGD-AT": "pgd-at"}


def check_curves(tree, content):
    assert content["x"].tolist() == [10, 20, 50] * 2
    for row in content.to_dict("records"):
        expected = rate(tree, METHOD[row["method_label"]], [f"pgd{row['steps_label']}"])
        assert row["measured"] == pytest.approx(expected, abs=1e-3)
        assert row["ci_low"] < expected < row["ci_high"] or expected in (0, 100)


def check_bars(tree, content):
    settings = {"Std": ["clean"], "PGD-10": ["pgd10"], **{p["label"]: p["settings"] for p in CORRUPTED["points"]}}
    name = "attack_label" if "attack_label" in content else "setting_label"
    assert len(content) == 4
    for row in content.to_dict("records"):
        expected = rate(tree, METHOD[row["method_label"]], settings[row[name]])
        assert row["measured"] == pytest.approx(expected, abs=1e-3)


def check_pareto(tree, content):
    assert content["label"].tolist() == ["PGD-AT", "plain"] and content["number"].tolist() == [1, 2]
    assert content["size_measured"].tolist() == [2_300_000] * 2
    for row in content.to_dict("records"):
        assert row["x_measured"] == pytest.approx(rate(tree, METHOD[row["label"]], ["clean"]), abs=1e-3)
        assert row["y_measured"] == pytest.approx(rate(tree, METHOD[row["label"]], ["pgd10"]), abs=1e-3)
        others = content[content["label"] != row["label"]]
        beaten = (others["x_measured"] >= row["x_measured"]) & (others["y_measured"] >= row["y_measured"])
        assert row["best"] == (not beaten.any())


def check_epsilon(tree, content):
    assert content["setting"].tolist() == ["clean", "pgd10_e8"] * 2
    for row in content.to_dict("records"):
        expected = rate(tree, row["method"], [row["setting"]], "epsilon")
        assert row["accuracy"] == pytest.approx(expected, abs=1e-3)


def check_training(tree, content):
    assert content["validation_accuracy"].tolist() == [20, 50, 80] * 2


def check_routers(tree, content):
    fractions = content[content["what"] == "fraction"]
    expected = {(0, "clean"): 0.25, (1, "clean"): 0.75, (0, "adversarial"): 0.75, (1, "adversarial"): 0.25}
    assert len(fractions) == 2 * 4 * 3
    assert all(row.value == expected[row.expert, row.images] for row in fractions.itertuples())
    entropy = content[content["what"] == "entropy"].groupby("images")["value"].unique()
    assert entropy["clean"] == [0.5] and entropy["adversarial"] == [0.25]


def check_weights(tree, content):
    weights = probes()["weights"]["weights"].astype(np.float64).ravel()
    assert content.groupby("label")["count"].sum().tolist() == [180, 180]
    for _, bins in content.groupby("label"):
        for each in bins.to_dict("records"):
            inside = (weights >= each["low"] - 1e-12) & (weights < each["high"] - 1e-12)
            assert each["count"] == inside.sum() or math.isclose(each["high"], abs(weights).max())
        assert (bins["density"] * (bins["high"] - bins["low"])).sum() == pytest.approx(1)
        assert bins["std"].iloc[0] == pytest.approx(weights.std())


def check_routing(tree, content):
    arrays = probes()["routing"]
    loads = content[content["what"] == "load"]
    assert len(loads) == 2 * 2 * 4 * 2
    for row in loads.itertuples():
        chosen = arrays[row.images].argmax(1)[int(row.low) : int(row.high)]
        assert row.value == pytest.approx((chosen == row.expert).mean())
    weights = content[content["what"] == "weight"]
    assert np.allclose(weights.groupby(["label", "images", "expert"])["value"].sum(), 1)
    softmax = np.exp(arrays["clean"][:, 0]) / np.exp(arrays["clean"]).sum(1)
    part = weights[(weights["images"] == "clean") & (weights["expert"] == 0)].drop_duplicates(["low"])
    middle = part["low"] + part["high"]
    assert (part["value"] * middle).sum() / 2 == pytest.approx(softmax.mean(), abs=0.0125)


def check_tsne(tree, content):
    assert len(content) == 2 * 2 * 60 and content.groupby(["label", "images"]).size().unique() == [60]
    assert (content["class"] == content["predicted"]).groupby(content["images"]).mean().tolist() == [0.25, 1]
    # Classes lie three standard deviations apart: of four, far more than a quarter of the nearest neighbours share one.
    points = content[(content["images"] == "clean")].head(60)
    places = points[["x", "y"]].to_numpy()
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    same = points["class"].to_numpy()[distances.argmin(1)] == points["class"].to_numpy()
    assert same.mean() > 0.45


def check_heatmaps(tree, content):
    arrays = probes()["heatmaps"]
    assert len(content) == 2 * 2 * 16
    # No image is right for the second model and wrong for the first: the first one is taken.
    assert set(content["image"]) == {0}
    for images, part in content.groupby("images"):
        for row in part.itertuples():
            assert row.heat == pytest.approx(float(arrays[f"{images}_map"][0, row.row, row.column]), rel=1e-6)
            assert (row.red, row.green, row.blue) == tuple(arrays[images][0, row.row, row.column])


CHECKS = {
    "accuracy_vs_epsilon": check_epsilon,
    "accuracy_curves": check_curves,
    "grouped_bars": check_bars,
    "corruption_bars": check_bars,
    "pareto": check_pareto,
    "training_curves": check_training,
    "router_history": check_routers,
    "weight_distributions": check_weights,
    "routing": check_routing,
    "tsne": check_tsne,
    "heatmaps": check_heatmaps,
    "paper_vs_measured": None,
}


def test_every_kind_is_checked_here():
    assert set(CHECKS) == set(FIGURES) == set(figure_kinds()) == set(figures.names())


@pytest.mark.brief(
    keep=lambda case: case["kind"] in ("accuracy_curves", "accuracy_vs_epsilon", "grouped_bars", "training_curves")
)
@pytest.mark.parametrize("kind", [kind for kind, check in CHECKS.items() if check])
def test_the_csv_holds_what_one_recomputes_and_files_are_reproducible(tree, declare, draw, monkeypatch, kind):
    # Several batches of the 60 images here.
    monkeypatch.setattr(routing, "BATCH", 15)
    declare(kind)
    fill(tree)
    content, said = draw()
    CHECKS[kind](tree, content)
    assert "Not drawn" not in said
    first = [(tree.base / f"figures/unified-f.{suffix}").read_bytes() for suffix in ("png", "pdf", "csv")]
    draw()
    assert first == [(tree.base / f"figures/unified-f.{suffix}").read_bytes() for suffix in ("png", "pdf", "csv")]


@pytest.mark.brief(
    keep=lambda case: (
        case["kind"] in ("accuracy_curves", "accuracy_vs_epsilon", "heatmaps", "paper_vs_measured", "tsne")
    )
)
@pytest.mark.parametrize("kind", list(FIGURES))
def test_without_results_a_figure_says_so(tree, declare, draw, kind):
    declare(kind)
    content, said = draw()
    measured = [name for name in ("measured", "x_measured", "accuracy", "value", "heat", "density") if name in content]
    assert content[measured].isna().all(axis=None)
    if FIGURES[kind]:
        why = {"lines": "not evaluated yet", "history": "not trained yet", "probe": "not probed yet"}
        assert re.search(rf"Not drawn: digits \(for CIFAR-10\).*: {why[figure_kinds()[kind]]}\.", said)


def test_what_is_missing_is_in_the_csv_with_its_reason(tree, declare, draw):
    declare("grouped_bars")
    tree.everything(methods=["standard"])
    content, said = draw()
    missing = content[content["method_label"] == "PGD-AT"]
    assert missing["verdict"].tolist() == ["not-run"] * 2
    assert missing["reason"].tolist() == ["not evaluated yet"] * 2
    assert "Not drawn: digits (for CIFAR-10) / ResNet-18 / PGD-AT: not evaluated yet." in said


@pytest.mark.parametrize("kind", ["router_history", "routing", "tsne", "heatmaps"])
def test_what_a_scale_leaves_out_gets_no_empty_panel(tree, declare, draw, monkeypatch, kind):
    panels = []
    monkeypatch.setattr(style.Style, "empty", lambda self, axes, text: panels.append(text))
    mart = {"label": "MART", "method": "mart"}
    declare(kind, lines=[DATA, NET, {**METHODS, "points": [*METHODS["points"], mart]}])
    fill(tree)
    content, said = draw()
    assert panels == [] and set(content["label"].str.split(" / ").str[-1]) == {"plain", "PGD-AT"}
    assert "Not drawn: 1 of 3 that are not part of scale smoke." in said


@pytest.mark.parametrize(("methods", "named"), [(["standard"], True), (["standard", "pgd-at"], False)])
def test_the_cross_of_a_missing_bar_is_in_the_legend(tree, declare, draw, monkeypatch, methods, named):
    legends = []
    legend = style.Style.legend

    def spy(self, figure, extra=None):
        legend(self, figure, extra)
        legends.append([text.get_text() for text in figure.legends[0].get_texts()])

    monkeypatch.setattr(style.Style, "legend", spy)
    declare("grouped_bars")
    tree.everything(methods=methods)
    draw()
    assert ("not run" in legends[0]) == named


def test_published_numbers_stand_beside_ours(tree, declare, draw, project):
    declare("grouped_bars", published={"table": "1"})
    header = "paper,table,dataset,arch,method,metric,setting,value,std\n"
    lines = [f"x,1,CIFAR-10,ResNet-18,{m},{s},,{v},\n" for m, s, v in (("plain", "a", 91.5), ("PGD-AT", "a", 80.25))]
    (project / "config/published/unified.csv").write_text(header + "".join(lines))
    std, pgd = ATTACKS["points"]
    points = [{**std, "published": {"metric": "a"}}, {**pgd, "published": {"metric": "b"}, "not_in_paper": True}]
    declare("grouped_bars", published={"table": "1"}, lines=[*MODELS, {"axis": "attack", "points": points}])
    content, _ = draw()
    assert content["published"].tolist()[::2] == [91.5, 80.25] and content["published"][1::2].isna().all()


def test_flawed_protocols_are_drawn_where_asked(tree, declare, draw):
    flawed = {"protocol": "normalised-noclip", "suite": "dwf-normalised", "settings": ["pgd10_norm"]}
    point = {**STEPS["points"][0], "alternative_protocols": [flawed]}
    lines = [*MODELS, {"axis": "steps", "points": [point]}]
    options = {"along": "steps", "x": "steps", "panel": "protocol", "protocols": True}
    declare("accuracy_curves", lines=lines, options=options)
    tree.everything(methods=["standard", "pgd-at"])
    content, _ = draw()
    assert content["protocol"].tolist() == ["correct", "normalised-noclip"] * 2
    assert content["measured"].isna().tolist() == [False, True] * 2


def test_a_failed_check_is_said_in_figure_and_notes(tree, declare, draw):
    declare("accuracy_curves")
    tree.everything(methods=["standard", "pgd-at"], failed={"pgd-at": ("threat-model",)})
    content, said = draw()
    assert set(content[content["method"] == "pgd-at"]["checks_failed"]) == {"threat-model"}
    assert "Unverified: digits (for CIFAR-10) / ResNet-18 / PGD-AT: threat-model." in said


def test_a_probe_of_other_weights_is_outdated(tree, declare, draw):
    declare("weight_distributions")
    fill(tree)
    probe(tree, "pgd-at", "weights", probes()["weights"], sha="0" * 64)
    assert "Outdated: digits (for CIFAR-10) / ResNet-18 / PGD-AT: trained again since." in draw()[1]


PROBED = [kind for kind, shows in figure_kinds().items() if shows == "probe"]


@pytest.mark.long
@pytest.mark.parametrize("kind", PROBED)
def test_a_figure_is_not_replaced_by_an_empty_one_because_its_arrays_are_elsewhere(
    tree, declare, draw, moat, kind, capsys
):
    """In a clone, figures are there and the arrays of probes are not."""
    declare(kind)
    fill(tree)
    draw()
    files = [tree.base / f"figures/unified-f.{suffix}" for suffix in ("png", "pdf", "csv")]
    drawn = [path.read_bytes() for path in files]
    for path in tree.base.glob("probes/*/*/pgd-at/*/*.safetensors"):
        path.unlink()
    for path in files:
        os.utime(path, (0, 0))
    assert moat("draw") == 0
    said = capsys.readouterr()
    assert (
        "Drawn before: digits (for CIFAR-10) / ResNet-18 / PGD-AT: the arrays of the probe are missing here."
        in said.out
    )
    assert "Not drawn" not in said.out
    assert re.search(r"unified-f: left as it is: .*pgd-at/seed0/\w+.safetensors", said.err)
    assert [path.read_bytes() for path in files] == drawn
    # Snakemake looks at the times of what it asked for.
    assert all(path.stat().st_mtime > 0 for path in files)

    files[0].unlink()
    _, said = draw()
    assert "Not drawn: digits (for CIFAR-10) / ResNet-18 / PGD-AT: not probed yet." in said
    assert files[0].exists() and files[2].read_bytes() != drawn[2]
    assert "PGD-AT" not in set(pd.read_csv(files[2])["label"].str.split(" / ").str[-1])


def test_heat_maps_choose_a_telling_image(tree, declare, draw):
    declare("heatmaps")
    fill(tree)
    arrays = probes()["heatmaps"]
    probe(tree, "pgd-at", "heatmaps", {**arrays, "attacked_predicted": arrays["label"]})
    assert set(draw()[0]["image"]) == {15}


def test_confidence_is_the_mean_over_the_rows(tree, declare, draw):
    points = [{"label": "PGD-10", "settings": ["pgd10"], "measure": "confidence"}]
    declare("grouped_bars", lines=[*MODELS, {"axis": "attack", "points": points}])
    tree.everything(methods=["standard", "pgd-at"], n=300)
    content, _ = draw()
    for row in content.to_dict("records"):
        frame = pd.read_parquet(tree.base / f"evaluations/digits/resnet18/{row['method']}/seed0/dramoe.parquet")
        values = frame[frame["setting"] == "pgd10"]["confidence"]
        assert row["measured"] == pytest.approx(100 * values.mean(), abs=1e-3)
        half = 100 * 1.959964 * values.std() / math.sqrt(300)
        assert row["ci_high"] - row["ci_low"] == pytest.approx(2 * half, rel=1e-3)


@pytest.mark.long
def test_all_published_cells_are_set_against_the_measured_ones(tree, moat, declare, draw):
    declare("paper_vs_measured")
    tree.everything()
    assert moat("tabulate") == moat("tabulate", "--cells") == 0
    cells = pd.read_csv(tree.base / "tables/cells.csv")
    content, _ = draw()
    shares = cells[cells["published"].notna() & cells["metric"].str.contains("accuracy")]
    assert len(content) == len(shares) > 20
    assert content["measured"].notna().sum() == shares["measured"].notna().sum() > 0


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("tsne", {"probe": "feature"}, "unknown probe 'feature' (did you mean 'features'?)"),
        ("grouped_bars", {"probe": "features"}, "a figure of kind grouped_bars has no key 'probe'"),
        ("paper_vs_measured", {"lines": MODELS}, "a figure of kind paper_vs_measured has no key 'lines'"),
        ("grouped_bars", {"options": {"group": "atack"}}, "unknown axis 'atack' (did you mean 'attack'?)"),
        ("grouped_bars", {"options": {}}, "option group is missing"),
        ("accuracy_curves", {"options": {"along": "steps", "x": "step"}}, "x: 'step' is not allowed; eps or steps"),
        ("accuracy_curves", {"options": {}}, "option along is missing"),
        (
            "pareto",
            {"options": {"measure": "measure", "x": "std", "y": "PGD-10", "size": "MACs"}},
            "did you mean 'Std'?",
        ),
        ("routing", {"options": {"batch": 15}}, "unknown option of routing 'batch'"),
    ],
)
def test_a_wrong_figure_is_named(tree, moat, declare, capsys, kind, changes, said):
    declare(kind, **changes)
    fill(tree)
    assert moat("draw", "--study", "unified") == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("whole", "shared", "rest"),
    [
        (["a / b / x", "a / b / y"], "a / b", ["x", "y"]),
        (["a / x", "b / x"], "x", ["a", "b"]),
        (["a / x"], "", ["a / x"]),
        (["a / x", "a"], "", ["a / x", "a"]),
        (["a", "a"], "", ["a", "a"]),
    ],
)
def test_labels_without_what_they_share(whole, shared, rest):
    assert (labels.shared_parts(whole), labels.without_shared(whole)) == (shared, rest)


def test_a_probe_needs_one_seed_only(tree, declare, project):
    edit_yaml(project / "config/scales/smoke.yaml", lambda content: content.update(max_seeds=3))
    declare("tsne")
    (figure,) = build_grid(Project(project), "smoke", ["unified"]).figures
    assert [(probe.run.method, probe.run.seed, probe.name) for probe in figure.probes] == [
        ("standard", 0, "features"),
        ("pgd-at", 0, "features"),
    ]
    assert not figure.evaluations and not figure.checks and len(figure.runs) == 2


@pytest.mark.long
def test_drawing_needs_no_torch(tree, declare, project):
    declare("tsne")
    fill(tree)
    arguments = ["--project", str(project), "draw", "--scale", "smoke", "--results", str(tree.root)]
    run = f"main({[*arguments, '--study', 'unified']!r})"
    code = f"import sys; from moat.commands.cli import main; {run}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "False"


@pytest.mark.brief(keep=lambda case: case["label"] == "$$")
@pytest.mark.parametrize("label", ["costs $5 or $10", r"$\bm{x}$", r"\$ 100 % \n", "$$"])
def test_a_dollar_in_a_label_is_a_dollar(tree, declare, draw, label):
    """In the title, in a legend and at an axis; a formula that is none must not stop the drawing."""
    fill(tree)
    methods = {"axis": "method", "points": [{"label": label, "method": "standard"}, METHODS["points"][1]]}
    for kind, changes in (
        ("grouped_bars", {"lines": [DATA, NET, methods, ATTACKS], "title": label}),
        ("weight_distributions", {"lines": [DATA, NET, methods], "title": label}),
    ):
        declare(kind, **changes)
        draw()


@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_a_message_stays_within_its_panel(columns):
    with style.applied() as drawing:
        figure, axes = drawing.new(1, columns)
        drawing.empty(axes[0, 0], "not run: the method sramoe is not part of scale mini")
        figure.draw_without_rendering()
        (message,) = axes[0, 0].texts
        text, panel = message.get_window_extent(), axes[0, 0].get_window_extent()
    assert panel.x0 <= text.x0 and text.x1 <= panel.x1 and panel.y0 <= text.y0 and text.y1 <= panel.y1


@pytest.mark.parametrize("measured", [0, 1])
def test_a_line_of_one_panel_is_the_legend_s_whatever_another_panel_has(measured):
    """The other panel has published numbers only: hollow markers. A label that says "not run" stands for no panel."""
    with style.applied() as drawing:
        figure, axes = drawing.new(1, 2)
        axes[0, measured].plot([1, 2], [3, 4], label="DWF", **drawing.line(0))
        axes[0, 1 - measured].plot([1, 2], [3, 4], label="DWF", **drawing.published_marker)
        axes[0, 1 - measured].plot([1, 2], [3, 4], label=f"DWF{style.NOT_RUN}", **drawing.published_marker)
        axes[0, 0].plot([1, 2], [3, 4], label="SoE", **drawing.published_marker)
        drawing.legend(figure, drawing.published())
        (legend,) = figure.legends
        lines = [handle.get_linestyle() for handle in legend.legend_handles]
    assert [text.get_text() for text in legend.get_texts()] in (
        ["DWF", "SoE", "published (hollow)"],
        ["SoE", "DWF", "published (hollow)"],
    )
    drawn = dict(zip([text.get_text() for text in legend.get_texts()], lines, strict=True))
    assert drawn["DWF"] != "None" and drawn["SoE"] == drawn["published (hollow)"] == "None"


def test_only_the_numbers_of_a_logarithmic_axis_are_formulas():
    with style.applied() as drawing:
        figure, axes = drawing.new(1, 2)
        axes[0, 0].set_yscale("log")
        axes[0, 0].plot([1, 2], [1, 1000], label="$a$")
        axes[0, 1].bar(["$b$", "$c$"], [1, 2])
        for each in axes[0]:
            each.set_ylabel("$d$")
        drawing.legend(figure)
        style._print_dollars(figure)
        figure.savefig(io.BytesIO())
        formulas = {
            text.get_text() for text in figure.findobj(Text) if text.get_parse_math() and "$" in text.get_text()
        }
    assert formulas and all(text.startswith(r"$\mathdefault{10^") for text in formulas)


BACKENDS = """
import sys
{before}
import moat.reporting.figures.tsne
from moat.reporting import style
import matplotlib, os
with style.applied() as drawn:
    figure, axes = drawn.new()
axes[0, 0].plot([1, 2])
figure.savefig(os.devnull, format="png")
assert "matplotlib.pyplot" not in sys.modules or "pyplot" in {before!r}
from matplotlib import pyplot
print(os.environ.get("MPLBACKEND"), matplotlib.get_backend().lower())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("variable", "before", "backend"),
    [
        # A notebook's, whose package may be missing here; and a misspelt one.
        ("module://matplotlib_inline.backend_inline", "", None),
        ("TkAggg", "", "agg"),
        ("svg", "", "svg"),
        ("svg", "from matplotlib import pyplot; pyplot.switch_backend('pdf')", "pdf"),
        ("", "", "agg"),
    ],
)
def test_figures_need_no_backend_and_leave_the_users_own(variable, before, backend):
    """From Python: the command sets the variable itself."""
    unshown = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    done = subprocess.run(
        [sys.executable, "-c", BACKENDS.format(before=before)],
        env={**unshown, "MPLBACKEND": variable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert backend is None or done.stdout.split() == [*([variable] if variable else []), backend]
