"""The budgets that papers state, row by row of their published settings, against the recipes that their studies use."""

import csv
from fractions import Fraction
from pathlib import Path

import pytest

import moat.methods
from moat.config.grid import Run, build_grid, initial_runs
from moat.config.project import Project
from moat.config.recipes import resolve_recipe
from moat.methods._fitted import FittedMixture
from moat.methods.blockmoe_expert import BlockMoeExpert

ROOT = Path(__file__).parents[2]
PROJECT = Project(ROOT)
PAPERS = ("dramoe", "dwf", "hybrid")


def number(text) -> Fraction:
    return Fraction(str(text))


def recipe(method):
    return resolve_recipe(PROJECT, "paper", method)


@pytest.fixture(scope="module")
def paper():
    return build_grid(PROJECT, "paper", PROJECT.names("studies"))


def trained(grid, study, *, method=None):
    """The resolved recipes of a study's runs, those they start from included, and each run's class."""
    shown = [item for item in (*grid.tables, *grid.figures) if item.study == study]
    runs = {run.method for item in shown for run in item.runs}
    for run in list(grid.runs):
        if run.method in runs:
            runs |= {start.method for start in initial_runs(PROJECT, "paper", run).values()}
    return {name: recipe(name) for name in sorted(runs) if method is None or recipe(name)["class"] == method}


def attacks_of(content):
    return [content[key] for key in ("attack", "pgd_attack", "alpha_attack") if key in content]


def setting_rows():
    """Every row of the papers' CSV files that states a setting: (study, line, row)."""
    for study in PAPERS:
        with open(ROOT / "config/published" / f"{study}.csv", newline="") as stream:
            for line, row in enumerate(csv.DictReader(stream), start=2):
                if row["table"] == "text-setup" or (study == "dwf" and row["table"] in ("4", "5")):
                    yield study, line, row


# (study, method, metric, setting) -> the values that the recipes or settings have in that row's place.
DRAMOE = recipe("dramoe")
SPARSE = recipe("pgd-at-sparse")
ADVMOE, SOE, DWF = recipe("advmoe-dwf"), recipe("soe"), recipe("dwf")
FGSM_AT, HALF = recipe("fgsm-at"), recipe("pgd-at-half")
EXPERTS = [recipe(f"dwf-expert-{kind}") for kind in ("benign", "fgsm", "pgd")]
SETTINGS = PROJECT.attacks()
KNOWN = {
    ("dramoe", "DRAMoE", "beta", "RGAT"): [DRAMOE["loss"]["beta"]],
    ("dramoe", "DRAMoE", "gamma", "RGAT"): [DRAMOE["loss"]["gamma"]],
    ("dramoe", "DRAMoE", "delta", "RGAT"): [DRAMOE["loss"]["delta"]],
    ("dramoe", "DRAMoE", "lambda_max", "RGAT cosine annealing"): [DRAMOE["rgat"]["lambda_max"]],
    ("dramoe", "DRAMoE", "tau", "epochs 0%-20%"): [DRAMOE["rgat"]["tau"][0]],
    ("dramoe", "DRAMoE", "tau", "epochs 20%-40%"): [DRAMOE["rgat"]["tau"][1]],
    ("dramoe", "DRAMoE", "tau", "epochs 40%-60%"): [DRAMOE["rgat"]["tau"][2]],
    ("dramoe", "all MoE", "model_scale_r", "MoE-CNN"): [
        recipe(name)["model"]["ratio"] for name in ("dramoe", "advmoe", "pgd-at-moe")
    ],
    ("dramoe", "all MoE", "n_experts", "MoE-CNN"): [
        recipe(name)["model"]["experts"] for name in ("dramoe", "advmoe", "pgd-at-moe")
    ],
    ("dramoe", "PGD-AT (Sparse)", "epochs", "PGD-AT(Sparse) mask stage"): [
        SPARSE["epochs"] * number(SPARSE["mask_epochs_fraction"])
    ],
    ("dramoe", "PGD-AT (Sparse)", "epochs", "PGD-AT(Sparse) fine-tune stage"): [
        SPARSE["epochs"] * (1 - number(SPARSE["mask_epochs_fraction"]))
    ],
    ("dwf", "DWF", "momentum", "SGD"): [each["optimizer"]["momentum"] for each in (DWF, *EXPERTS)],
    ("dwf", "DWF", "runs averaged", ""): [len(PROJECT.study("dwf")["seeds"])],
    ("dwf", "DWF", "n_experts", "1 benign + 4 FGSM + 4 PGD"): [len(DWF["initialize_from"]), DWF["model"]["experts"]],
    ("dwf", "ADVMoE", "epochs", ""): [ADVMOE["epochs"]],
    ("dwf", "ADVMoE", "lr", ""): [ADVMOE["optimizer"]["lr"], ADVMOE["router_optimizer"]["lr"]],
    ("dwf", "ADVMoE", "momentum", ""): [ADVMOE["optimizer"]["momentum"], ADVMOE["router_optimizer"]["momentum"]],
    ("dwf", "ADVMoE", "weight_decay", ""): [ADVMOE["optimizer"]["weight_decay"]],
    ("dwf", "ADVMoE", "batch_size", ""): [ADVMOE["batch_size"]],
    ("dwf", "ADVMoE", "train attack steps", "TRADES PGD eps=8/255"): [ADVMOE["attack"]["steps"]],
    ("dwf", "SoE", "epochs", ""): [SOE["epochs"]],
    ("dwf", "SoE", "lr", ""): [SOE["optimizer"]["lr"]],
    ("dwf", "SoE", "batch_size", ""): [SOE["batch_size"]],
    ("dwf", "FGSM-AT", "eps", "half of each batch adversarial"): [FGSM_AT["attack"]["eps"]],
    ("dwf", "PGD-AT", "eps", "half of each batch adversarial"): [HALF["attack"]["eps"]],
    ("dwf", "PGD-AT", "alpha", ""): [HALF["attack"]["step_size"]],
    ("dwf", "PGD-AT", "steps", ""): [HALF["attack"]["steps"]],
}
# The statistics of DWF are printed with the data sets exchanged: those under CIFAR-10 are what the recipes in its space
# count in (on SVHN, whose own they are, too), those under SVHN differ from SVHN's own by at most 2.2 % of the standard
# deviation, and no recipe has them.
AS_PRINTED = (
    *("fgsm-at-normalised", "pgd-at-half-normalised", "soe-normalised", "advmoe-dwf-normalised", "dwf-normalised"),
    *("dwf-expert-fgsm-normalised", "dwf-expert-pgd-normalised"),
)
# Rows that state no number of a recipe: why each is not compared.
NOT_IN_A_RECIPE = {
    ("dwf", "wall_clock_days"): "a cost, of other hardware",
    ("dwf", "gpu_hours"): "a cost, of other hardware",
    ("dwf", "attacker_knowledge"): "a word about the threat model",
    ("dwf", "defense_knowledge"): "a word about the threat model",
}
# Table 4 of DWF: which of our settings measure a row.
TABLE_4 = {
    "FGSM": ([f"fgsm_e0{n}" for n in range(1, 10)], "eps in {0.01,0.02,...,0.09}"),
    "PGD": ([f"pgd{n}" for n in (10, 20, 30, 40, 50)], "eps=8/255; alpha=2/255; i in {10,20,30,40,50}"),
    "Multi-Step PGD": (["pgd100_ms"], "eps=8/255; alpha=2/255; i=100; restarts=3"),
    "Adaptive PGD": (["pgd100_eot"], "eps=8/255; alpha=2/255; i=100; EoT samples=1"),
}


def described(names) -> str:
    """Our settings in the words of DWF's Table 4."""
    found = [SETTINGS[name] for name in names]
    if found[0]["attack"] == "fgsm":
        listed = [f"{float(each['eps'])}" for each in found]
        return "eps in {" + ",".join([*listed[:2], "...", listed[-1]]) + "}"
    (eps,), (alpha,) = {each["eps"] for each in found}, {each["step_size"] for each in found}
    steps = [str(each["steps"]) for each in found]
    text = f"eps={eps}; alpha={alpha}; " + (f"i={steps[0]}" if len(steps) == 1 else "i in {" + ",".join(steps) + "}")
    text += f"; restarts={found[0]['restarts']}" if "restarts" in found[0] else ""
    return text + (f"; EoT samples={found[0]['eot']}" if "eot" in found[0] else "")


def table_5(row) -> list:
    """The values of our recipes for a row of DWF's Table 5 ("150, 100": the experts alone, then with the mixture)."""
    alone, joint = EXPERTS, DWF
    if row["metric"] == "batch_size":
        per_image = "x3"  # clean, FGSM and PGD examples of each image: see the cost of the recipe
        assert joint["cost"]["trainings"] == 3
        both = {"128", f"{joint['batch_size']}{per_image}"}
        return [", ".join(sorted(both))] if row["method"] == "Experts" else [f"{joint['batch_size']}{per_image}"]
    key = {"epochs": "epochs", "lr": "lr", "weight_decay": "weight_decay"}[row["metric"]]
    values = [each[key] if key == "epochs" else each["optimizer"][key] for each in alone]
    last = joint[key] if key == "epochs" else joint["optimizer"][key]
    assert len(set(values)) == 1
    if row["method"] != "Experts":
        return [last]
    return [f"{values[0]}, {last}"] if key == "epochs" else [values[0], last]


def same(published: str, ours) -> bool:
    try:
        return float(number(published.split()[0])) == pytest.approx(float(number(ours)), rel=1e-4)
    except ValueError:
        return published == str(ours)


@pytest.mark.parametrize(
    ("study", "line", "row"), [pytest.param(*each, id=f"{each[0]}.csv:{each[1]}") for each in setting_rows()]
)
def test_a_stated_setting_is_the_recipes(study, line, row, paper):
    if (study, row["metric"]) in NOT_IN_A_RECIPE or row["value"] == "not stated":
        return
    if row["metric"] in ("norm_mean", "norm_std"):
        key, values = row["metric"].removeprefix("norm_"), [float(each) for each in row["value"].split(";")]
        if row["dataset"] == "CIFAR-10":
            assert {tuple(recipe(name)["attack_space"]["statistics"][key]) for name in AS_PRINTED} == {tuple(values)}
            assert PROJECT.dataset("svhn")[key] == values
        elif key == "std":
            assert values == pytest.approx(PROJECT.dataset("svhn")["std"], rel=0.022)
        return
    if row["table"] == "4":
        names, words = TABLE_4[row["method"]]
        assert (row["value"], described(names)) == (words, words)
        return
    if row["table"] == "5":
        ours = table_5(row)
    elif study == "hybrid":
        ours = _hybrid(row, paper)
    elif (study, row["method"]) == ("dramoe", "all"):
        key = {"epsilon": "eps", "alpha": "step_size", "steps": "steps"}[row["metric"]]
        recipes = trained(paper, "dramoe").values()
        ours = [attack[key] for content in recipes for attack in attacks_of(content)]
        assert len(ours) > 10
    else:
        ours = KNOWN[(study, row["method"], row["metric"], row["setting"])]
    assert ours and all(same(row["value"], each) for each in ours), f"line {line}: {row['value']!r}, ours {ours}"


def _hybrid(row, paper):
    """What the paper states it states for all models (section 4.5), the baselines included."""
    everything = trained(paper, "hybrid").values()
    assert {content["class"] for content in everything} == {"standard", "pgd-at", "trades", "hybrid"}
    if row["metric"] == "epsilon_0":
        assert {content["epsilon_schedule"]["start"] for content in everything if content["class"] == "hybrid"} == {0.1}
        return ["epsilon/10"]
    if row["metric"] == "epsilon":
        return [attack["eps"] for content in everything for attack in attacks_of(content)]
    return [content["optimizer"]["lr"] if row["metric"] == "lr" else content[row["metric"]] for content in everything]


# Pairs of rows that a study compares, which must have trained as long.
@pytest.mark.parametrize(
    ("study", "first", "second"),
    [("mocse", "mocse", "standard-200"), ("mocse", "mocse-at", "pgd-at"),
     ("mocse", "mocse-augmented", "standard-augmented-200"), ("hybrid", "hybrid", "standard-hybrid"),
     ("hybrid", "hybrid", "pgd-at-hybrid"), ("hybrid", "hybrid", "trades-hybrid")],
)  # fmt: skip
def test_what_is_compared_has_one_budget(study, first, second, paper):
    assert {first, second} <= set(trained(paper, study))
    keys = ("epochs", "batch_size", "optimizer", "schedule")
    assert [recipe(first)[key] for key in keys] == [recipe(second)[key] for key in keys]


def total_epochs(run) -> int:
    """Epochs of a run and of the longest of those it starts from; of what is fitted without training, those alone."""
    fitted = issubclass(moat.methods.get(recipe(run.method)["class"]), (FittedMixture, BlockMoeExpert))
    return (0 if fitted else recipe(run.method)["epochs"]) + max(
        (total_epochs(start) for start in initial_runs(PROJECT, "paper", run).values()), default=0
    )


def test_the_unified_rows_have_one_budget(paper):
    runs = {run for cell in paper.table("unified", "leaderboard").cells for run in cell.runs if run.seed == 0}
    assert len(runs) >= 30
    assert {run.method: total_epochs(run) for run in runs if total_epochs(run) != 100} == {}
    for run in runs:
        content, starts = recipe(run.method), initial_runs(PROJECT, "paper", run)
        assert content["batch_size"] == 128, run.method
        # A phase that starts from trained weights is fine-tuning, at the rate of its paper.
        assert starts or content["optimizer"]["lr"] == 0.1, run.method
        for start in starts.values():
            assert recipe(start.method)["optimizer"]["lr"] == 0.1, start.method
        attacks = [*attacks_of(content), *(a for s in starts.values() for a in attacks_of(recipe(s.method)))]
        assert {str(attack["eps"]) for attack in attacks} <= {"8/255"}, run.method


@pytest.mark.parametrize("method", ["dwf", "dwf-unified", "sramoe", "sramoe-unified"])
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_no_two_members_of_ensembles_share_a_seed(scale, method):
    """Over five seeds of an ensemble: initial weights, order and augmentation follow from the seed alone."""
    starts = [initial_runs(PROJECT, scale, Run("cifar10", "resnet18", method, seed)) for seed in range(5)]
    seeds = [run.seed for each in starts for run in each.values()]
    assert len(seeds) >= 10 and len(set(seeds)) == len(seeds)
