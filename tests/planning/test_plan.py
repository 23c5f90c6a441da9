"""`moat plan`: rates from what was measured, the missing jobs' cost, and the command for what fits a budget."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from moat.base.errors import ConfigError
from moat.base.files import write_json
from moat.commands import cli
from moat.config.grid import Run, build_grid
from moat.config.project import Project
from moat.planning import estimate, status
from moat.planning.cost import Work
from moat.planning.jobs import Job, Workload, jobs_of
from moat.planning.macs import Net
from moat.planning.rates import Observation, Rates, match, precision_of
from moat.planning.report import duration
from project_copy import copy_project

ROOT = Path(__file__).parents[2]
STUDIES = ["small"]


def _axis(name, key, values):
    return {"axis": name, "points": [{"label": str(value), key: value} for value in values]}


ROWS = [
    _axis("dataset", "dataset", ["cifar10"]),
    _axis("arch", "arch", ["resnet18"]),
    _axis("method", "method", ["standard", "pgd-at", "trades"]),
]
ABOUT = {"title": "t", "caption": "c"}
STUDY = {
    "title": "small",
    "description": "for tests",
    "tolerance": 2.0,
    "seeds": [0, 1, 2],
    "tables": {
        "table": {
            **ABOUT, "suite": "quick", "rows": ROWS,
            "columns": [_axis("attack", "settings", [["clean"], ["fgsm"], ["pgd10"]])],
        }
    },
    "figures": {
        "epsilon": {
            **ABOUT, "kind": "accuracy_vs_epsilon", "suite": "epsilon", "lines": ROWS,
            "settings": ["clean", "pgd10_e8"],
        }
    },
}  # fmt: skip
CELLS = 9
RUN = "results/paper/{}/cifar10/resnet18/{}/seed0"
MACS = 555_422_720


@pytest.fixture
def project(tmp_path):
    copy_project(tmp_path)
    (tmp_path / "config" / "studies" / "small.yaml").write_text(yaml.safe_dump(STUDY))
    return Project(tmp_path)


def job(kind="run", method="trades", arch="resnet18", macs=MACS, precision="auto"):
    net = Net(method, arch, "width=1.0", 32, 3, 10)
    work = Work(train=1e12) if kind == "run" else Work(evaluate=1e12)
    return Job("p", kind, "missing", Run("cifar10", arch, method, 0), None, (), work, precision, net, macs)


def finished(project, *, device="NVIDIA H200", method="trades", precision="auto", rate=2000.0):
    """The record of a finished run; what a training writes, as far as plans read it."""
    recipe = {"precision": precision, "attack": {"steps": 10}, "validation": {"setting": "pgd10", "every": 1}}
    about = {"scale": "paper", "dataset": "cifar10", "arch": "resnet18", "method": method, "seed": 0}
    hardware = {"cpu": "x", **({"gpus": [device]} if device != "cpu" else {})}
    figures = {"device": device, "hardware": hardware, "images_per_second": rate, "macs_per_image": MACS}
    write_json(project.root / RUN.format("runs", method) / "run.json", {**about, "recipe": recipe, **figures})
    for name in ("model.safetensors", "last.safetensors"):
        (project.root / RUN.format("runs", method) / name).write_bytes(b"\2\0\0\0\0\0\0\0{}")
    (project.root / RUN.format("runs", method) / "history.csv").write_text("epoch\n1\n")
    return about, hardware


@pytest.mark.parametrize(
    ("asked", "passes", "source"),
    [
        (job(), 27, "run"),
        # Another method on the same net, then a net of twice the size; not one of ten times.
        (job(method="standard"), 27, "run"),
        (job(arch="resnet34", macs=2 * MACS), 27, "run"),
        (job(arch="wrn-28-10", macs=10 * MACS), None, "shipped"),
        # Of trainings in bf16, nothing follows for those in float32, nor for evaluations.
        (job(precision="float32"), None, "shipped"),
        (job("evaluation"), None, "shipped"),
    ],
)
def test_a_finished_run_gives_the_rate_of_what_is_near(project, asked, passes, source):
    finished(project)
    rates = Rates(project, "h200")
    kind = "train" if asked.work.train else "evaluate"
    found = rates.of(kind, asked)
    precision = "bf16" if kind == "train" and asked.precision == "auto" else "float32"
    shipped = {"bf16": 276e12 / 2, "float32": 23e12 / 2}[precision]
    assert (found.value, found.source) == (pytest.approx(2000 * passes * MACS if passes else shipped), source)
    assert rates.seconds(asked) == (pytest.approx(5 + 1e12 / found.value), source)


@pytest.mark.parametrize("device", ["NVIDIA A100-SXM4-80GB", "cpu"])
def test_runs_on_other_hardware_say_nothing(project, device):
    finished(project, device=device)
    assert Rates(project, "h200").observations == []
    assert len(Rates(project, "a100" if "A100" in device else "cpu").observations) == 1


def test_an_evaluation_of_a_finished_run_gives_the_rate_of_evaluations(project):
    about, hardware = finished(project)
    settings = {"clean": {"attack": "none"}, "pgd10": {"attack": "pgd", "steps": 10, "eps": 0.03}}
    counts = {"clean": {"n": 1000}, "pgd10": {"n": 500}}
    record = {"run": about, "settings": settings, "n": 1000, "seconds": 4.0, "hardware": hardware, "accuracy": counts}
    path = project.root / RUN.format("evaluations", "trades")
    write_json(path / "quick.json", record)
    write_json(path / "elsewhere.json", {**record, "hardware": {"cpu": "x", "gpus": ["NVIDIA A100"]}})
    (path / "damaged.json").write_text("{")
    found = [each for each in Rates(project, "h200").observations if each.kind == "evaluate"]
    assert found == [
        Observation("evaluate", "float32", "trades", "resnet18", MACS, (3 * 1000 + 23 * 500) * MACS / 4.0, "run")
    ]


def test_the_nearest_observation_counts_and_of_equals_the_median(project):
    rates = Rates(project, "h200")
    rates.observations = [
        Observation("train", "bf16", "trades", "resnet18", MACS, rate, source)
        for rate, source in ((1e12, "run"), (3e12, "run"), (9e12, "run"), (7e12, "calibration"))
    ] + [Observation("train", "bf16", "standard", "resnet18", MACS, 5e12, "calibration")]
    assert (rates.of("train", job()).value, rates.of("train", job()).source) == (3e12, "run")
    assert rates.of("train", job(method="standard")).value == 5e12


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("cpu", "cpu"),
    ],
)
def test_devices_are_matched_by_name(project, device, name):
    assert match(device, project.planner()["hardware"]) == name


def test_unknown_hardware_is_named(project):
    with pytest.raises(ConfigError, match="--hardware: unknown hardware 'h20' .*did you mean 'h200'.*allowed: .*auto"):
        Rates(project, "h20")
    with pytest.raises(ConfigError, match="matches this device, 'Voodoo 2'; add one.*allowed: h200"):
        match("Voodoo 2", project.planner()["hardware"])


@pytest.mark.parametrize(
    ("wanted", "hardware", "is_"),
    [("auto", "cpu", "float32"), ("auto", "h200", "bf16"), ("bf16", "cpu", "bf16"), ("float32", "h200", "float32")],
)
def test_auto_precision(wanted, hardware, is_):
    assert precision_of(wanted, hardware) == is_


# -- the command ---------------------------------------------------------------
def plan(project, capsys, *options):
    assert cli.main(["--project", str(project.root), "plan", "--studies", "small", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_adds_up(project, capsys):
    made = plan(project, capsys, "--scale", "paper", "--hardware", "h200", "--gpus", "2")
    costed = [each for each in made["jobs"] if "gpu_hours" in each]
    assert {each["kind"] for each in costed} == {"run", "evaluation", "check"}
    assert made["gpu_hours"] == pytest.approx(sum(each["gpu_hours"] for each in costed))
    assert made["rests_on"] == {"shipped": pytest.approx(made["gpu_hours"])}
    assert made["lower_bound_hours"] <= made["makespan_hours"] <= 2 * made["lower_bound_hours"]
    assert made["critical_path"][0]["path"].endswith("trades/seed0/run.json")
    trades = next(each for each in costed if each["path"] == RUN.format("runs", "trades") + "/run.json")
    seconds = 5 + 100 * MACS * (49_000 * 27 / 138e12 + 1000 * 23 / 11.5e12)
    assert trades["gpu_hours"] == pytest.approx(seconds / 3600)


@pytest.mark.parametrize(
    ("validation", "passes"),
    [
        ({}, 1000 * 23),
        ({"images": 200}, 200 * 23),
        ({"images": 5000}, 1000 * 23),
        ({"every": 50}, 1000 * 23 / 50),
        ({"images": 200, "every": 1000}, 200 * 23 / 100),
        ({"images": 200, "setting": "clean"}, 200 * 3),
    ],
)
def test_a_scale_says_what_validation_may_cost_and_plans_know_it(project, validation, passes):
    path = project.root / "config/scales/paper.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "recipe": {"validation": validation}}))
    assert Workload(project, "paper").training("cifar10", "trades").evaluate == pytest.approx(100 * passes)


@pytest.mark.parametrize(
    ("probe", "kind", "images"),
    [("weights", "weight_distributions", 0), ("features", "tsne", 1000), ("routing", "routing", 10_000)],
)
def test_probes_are_planned_and_selected_with_their_figures(project, capsys, probe, kind, images):
    inside = {**ABOUT, "kind": kind, "probe": probe, "lines": ROWS}
    path = project.root / "config/studies/small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "figures": {"inside": inside}}))
    options = ("--scale", "paper", "--hardware", "h200", "--budget-gpu-hours", "1e6")
    made = plan(project, capsys, *options)
    probes = [each for each in made["jobs"] if each["kind"] == "probe"]
    wanted = [f"{RUN.format('probes', method)}/{probe}.safetensors" for method in ("standard", "pgd-at", "trades")]
    assert [(each["path"], each["status"]) for each in probes] == [(path, "missing") for path in wanted]
    # Ten steps of two passes, and three to look at clean and attacked images.
    assert [each["gpu_hours"] for each in probes] == pytest.approx(3 * [(5 + images * MACS * 23 / 11.5e12) / 3600])
    assert made["budget"]["jobs"] == len([each for each in made["jobs"] if "gpu_hours" in each])
    assert "results/paper/figures/small-inside.png" in made["budget"]["targets"]
    assert set(jobs_of(project, build_grid(project, "paper", STUDIES))[wanted[0]].needs) == {
        RUN.format("runs", "standard") + "/run.json"
    }


def test_a_plan_with_a_budget_looks_at_the_project_once(project, capsys, monkeypatch):
    calls = Counter()

    def counted(place, name):
        original = getattr(place, name)

        def counting(*arguments, **options):
            calls[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(place, name, counting)

    counted(status, "_jobs")
    counted(estimate, "jobs_of")
    counted(estimate, "Rates")
    plan(project, capsys, "--scale", "paper", "--hardware", "h200", "--budget-gpu-hours", "1")
    assert calls == {"_jobs": 1, "jobs_of": 1, "Rates": 1}


def test_what_is_done_costs_nothing_and_calibrates_the_rest(project, capsys):
    before = plan(project, capsys, "--scale", "paper", "--hardware", "h200")
    finished(project, rate=1000.0)
    after = plan(project, capsys, "--scale", "paper", "--hardware", "h200")
    trades = {each["path"]: each for each in after["jobs"]}[RUN.format("runs", "trades") + "/run.json"]
    assert trades["status"] == "done"
    assert sum(each["status"] == "missing" for each in after["jobs"]) == len(before["jobs"]) - 1
    assert set(after["rests_on"]) == {"run", "shipped"}


UNHEARD_OF = """
PARAMETERS = {"eps": {"type": "distance"}}


def unheard_of(model, x, y, *, eps):
    return x
"""


def test_what_declares_no_cost_is_planned_and_said(project, capsys):
    """A method without ``cost``, one of whose runs may be finished, and an attack that nobody has heard of."""
    recipe = project.root / "config/methods/trades.yaml"
    recipe.write_text("".join(line for line in recipe.read_text().splitlines(True) if not line.startswith("cost:")))
    attacks = project.root / "config/attacks.yaml"
    attacks.write_text(attacks.read_text().replace("fgsm: {attack: fgsm,", "fgsm: {attack: unheard_of,"))
    family = project.root / "plugins/attacks/unheard_of.py"
    family.parent.mkdir(parents=True)
    family.write_text(UNHEARD_OF)
    options = ("--scale", "paper", "--hardware", "h200")
    for done in ((), ("trades",)):
        for method in done:
            # In half a second an image: 26 passes are assumed, and cancel out.
            finished(project, method=method, rate=2.0)
        made = plan(project, capsys, *options)
        jobs = {each["path"]: each for each in made["jobs"]}
        assert made["unknown_costs"] == ["attack fgsm", "method trades"]
        assert jobs[RUN.format("runs", "trades") + "/run.json"]["unknown_cost"]
        assert not jobs[RUN.format("runs", "standard") + "/run.json"]["unknown_cost"]
        assert jobs[RUN.format("evaluations", "standard") + "/quick.parquet"]["unknown_cost"]
        assert all(each["gpu_hours"] > 0 for each in jobs.values() if "gpu_hours" in each)
    later = jobs[RUN.format("runs", "trades").replace("seed0", "seed1") + "/run.json"]
    assert later["estimated_from"] == "run"
    assert later["gpu_hours"] == pytest.approx(100 * 49_000 / 2 / 3600, rel=0.01)
    # What is assumed of one method says nothing of another.
    assert jobs[RUN.format("runs", "standard") + "/run.json"]["estimated_from"] == "shipped"
    assert cli.main(["--project", str(project.root), "plan", "--studies", "small", *options]) == 0
    said = capsys.readouterr().out
    assert "unknown cost  assumed" in said and said.count("?") >= 3


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7, 1.0])
def test_a_budget_selects_what_fits_and_says_how_to_make_it(project, capsys, share):
    options = ("--scale", "paper", "--hardware", "h200", "--gpus", "2")
    total = plan(project, capsys, *options)["gpu_hours"]
    selected = plan(project, capsys, *options, "--budget-gpu-hours", str(share * total * 1.0001))["budget"]
    cells = next(each for each in selected["by_item"] if each["kind"] == "table")
    assert selected["spent_gpu_hours"] <= share * total * 1.001
    assert (selected["gained"] + selected["left"], selected["gap"]) == (CELLS, 0)
    assert (cells["gained"] == CELLS, cells["left"] == CELLS) == (share == 1, share == 0)
    if share == 0:
        assert (selected["targets"], selected["command"]) == ([], [])
        return
    assert selected["command"].startswith(
        "snakemake --cores all --resources gpu=2 --config scale=paper 'studies=[small]' "
    )
    whole = "results/paper/tables/small-table.csv"
    assert (whole in selected["targets"]) == (share == 1)
    assert selected["command"].endswith(" -- " + " ".join(selected["targets"]))
    listed = project.root / "targets.txt"
    options += ("--targets", str(listed))
    again = plan(project, capsys, *options, "--budget-gpu-hours", str(share * total * 1.0001))["budget"]
    assert listed.read_text().split() == again["targets"] == selected["targets"]
    assert again["command"].endswith(f"-- $(cat {listed})")


def test_priority_decides_what_is_selected(project, capsys):
    path = project.root / "config/planner.yaml"
    path.write_text(path.read_text().replace("items: {}", "items: {small-epsilon: 1000}"))
    jobs = jobs_of(project, build_grid(project, "paper", STUDIES))
    rates = Rates(project, "h200")
    # The figure and what it rests on: three nets, three seeds, a suite and checks.
    needed = [path for path, each in jobs.items() if each.suite in (None, "epsilon")]
    hours = sum(rates.seconds(jobs[path])[0] for path in needed) / 3600
    selected = plan(project, capsys, "--scale", "paper", "--hardware", "h200", "--budget-gpu-hours", str(hours * 1.001))
    assert "results/paper/figures/small-epsilon.png" in selected["budget"]["targets"]
    poorer = plan(project, capsys, "--scale", "paper", "--hardware", "h200", "--budget-gpu-hours", str(hours * 0.99))
    assert "results/paper/figures/small-epsilon.png" not in poorer["budget"]["targets"]


def test_items_are_closed_under_needs(project):
    """Experts are paid for by whoever needs them."""
    grid = build_grid(project, "paper", STUDIES)
    jobs = jobs_of(project, grid)
    for item in estimate.items_of(project, grid, jobs):
        assert item.needs
        for path in item.needs:
            assert set(jobs[path].needs) <= item.needs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpus", "0"], "--gpus 0: allowed: 1 or more"),
        (["--hardware", "abacus"], "--hardware: unknown hardware 'abacus'"),
        (["--budget-gpu-hours", "-1", "--hardware", "cpu"], "a budget of -1.0; allowed: 0 or more"),
        (["--scale", "papers"], "unknown scale 'papers' (did you mean 'paper'?)"),
    ],
)
def test_wrong_options_are_told_in_a_line(project, capsys, options, said):
    assert cli.main(["--project", str(project.root), "plan", "--studies", "small", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("hidden", [["pulp"], ["highspy"], ["pulp", "highspy"]], ids=" ".join)
def test_without_a_solver_there_is_a_plan_but_no_budget(project, capsys, monkeypatch, hidden):
    command = ["--project", str(project.root), "plan", "--studies", "small", "--scale", "paper", "--hardware", "h200"]
    assert cli.main(command) == 0
    with_solver = capsys.readouterr().out
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    needs = f"a budget needs {' and '.join(hidden)}: pip install -c envs/requirements.lock -e '.[workflow]'"
    assert cli.main(command) == 0
    without = capsys.readouterr().out.splitlines()
    without.remove(f"budget        not available: {needs}")
    assert without == with_solver.splitlines()
    assert cli.main([*command, "--budget-gpu-hours", "1"]) == 2
    assert capsys.readouterr().err == f"moat plan: {needs}\n"


def test_an_unknown_study_in_priority_is_named(project, capsys):
    path = project.root / "config/planner.yaml"
    path.write_text(path.read_text().replace("studies: {}", "studies: {dramo: 2}"))
    assert (
        cli.main(
            [
                "--project",
                str(project.root),
                "plan",
                "--studies",
                "small",
                "--hardware",
                "cpu",
                "--budget-gpu-hours",
                "1",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "config/planner.yaml: priority.studies: unknown study 'dramo' (did you mean 'dramoe'?)" in said


@pytest.mark.long
def test_a_plan_needs_neither_torch_nor_snakemake():
    code = "import sys; from moat.commands import cli; cli.main(['plan', '--scale', 'paper', '--hardware', 'h200']); " \
        "print([m for m in ('torch', 'snakemake', 'pandas', 'numpy') if m in sys.modules])"  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "GPU-hours on h200" in done.stdout


DURATIONS = [
    *((3.25, "3.2 h"), (0.5, "30.0 min"), (0.001, "4 s"), (0, "0 s")),
    *((47.9, "47.9 h"), (48, "2.0 days"), (17519, "730.0 days"), (17520, "2.0 years"), (1072092.2, "122.4 years")),
]


@pytest.mark.parametrize(("hours", "text"), DURATIONS)
def test_durations(hours, text):
    assert duration(hours) == text


@pytest.mark.parametrize(
    ("hardware", "said", "unsaid"),
    [
        ("cpu", "not feasible  on a CPU: 2 at once would take ", "makespan"),
        ("h200", "makespan      ", "not feasible"),
    ],
)
def test_the_summary_comes_first_and_says_what_is_not_feasible(project, capsys, hardware, said, unsaid):
    options = ["--studies", "small", "--scale", "paper", "--hardware", hardware, "--gpus", "2"]
    assert cli.main(["--project", str(project.root), "plan", *options]) == 0
    summary, rows = capsys.readouterr().out.split("\n\n")
    assert said in summary and unsaid not in summary and "total " in summary
    assert all(row.startswith(("done", "stale", "missing")) for row in rows.splitlines())
    assert not re.search(r"\d{5,}(\.\d)? h\b", summary)


def test_the_help_names_the_hardware(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(Project(ROOT).planner()['hardware'])} or another entry of config/planner.yaml" in said


@pytest.mark.long
def test_the_command_makes_just_what_was_selected(project, capsys):
    """A dry run of it has the selected jobs, and nothing else but their data."""
    shutil.rmtree(project.root / "workflow")
    shutil.copytree(ROOT / "workflow", project.root / "workflow")
    shutil.copy(ROOT / "Snakefile", project.root)
    selected = plan(project, capsys, "--scale", "paper", "--hardware", "h200", "--budget-gpu-hours", "0.9")["budget"]
    assert selected["gained"] and selected["left"]
    dry = selected["command"].replace("snakemake", "snakemake --dry-run --quiet rules", 1)
    command = f"{shlex.quote(sys.executable)} -m {dry}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, shell=True, cwd=project.root, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    jobs = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    assert jobs["train"] + jobs["evaluate"] + jobs["verify"] == selected["jobs"]
    assert jobs.keys() - {"total", "fetch", "prepare", "tabulate", "draw"} == {"train", "evaluate", "verify"}
