"""What Snakemake makes, and what it makes again: the whole way, on real jobs."""

import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from moat.evaluation.statistics import accuracy

EVERYTHING_SHOWN = {"tabulate": 2, "draw": 2, "cells": 1, "page": 1}
RUNS = "results/tiny/runs/digits/lenet5"


def test_one_call_goes_from_nothing_to_the_report(finished):
    for file in (
        "report.html",
        "metrics.json",
        "tables/cells.csv",
        "tables/first-table.tex",
        "figures/second-figure.pdf",
    ):
        assert (finished.root / "results/tiny" / file).stat().st_size > 0, file
    for file in ("model.safetensors", "last.safetensors", "run.json", "history.csv"):
        assert (finished.root / RUNS / "trades/seed0" / file).stat().st_size > 0, file


def test_it_says_once_where_it_trains(finished):
    assert len(re.findall(r"^moat: .*GPU", (finished.root / "snakemake.log").read_text(), re.MULTILINE)) == 1


def test_runs_that_studies_share_are_trained_once(finished):
    folders = [path.parent.parent.name for path in (finished.root / RUNS).rglob("run.json")]
    assert sorted(folders) == ["pgd-at", "standard", "trades"]


def test_every_number_of_the_cells_traces_to_parquet_rows(finished):
    cells = pd.read_csv(finished.root / "results/tiny/tables/cells.csv", keep_default_na=False)
    assert len(cells) == 8
    for cell in cells.itertuples():
        folder = finished.root / "results/tiny/evaluations" / cell.dataset / cell.arch / cell.method
        rows = pd.read_parquet(folder / "seed0" / "quick.parquet")
        correct, n = accuracy(rows, [re.fullmatch(r"accuracy\((.*)\)", cell.metric)[1]])
        assert float(cell.measured) == pytest.approx(100 * correct / n, abs=5e-5)
        assert int(cell.n) == n == 30


@pytest.mark.long
def test_a_second_call_does_nothing(finished):
    assert finished.planned() == {}


@pytest.mark.brief(keep=lambda case: case["old"] == "beta: 6.0")
@pytest.mark.parametrize(
    ("file", "old", "new", "again"),
    [
        ("config/methods/trades.yaml", "title:", "# a comment\ntitle:", {}),
        ("config/methods/trades.yaml", "title: TRADES", "title: Trades", {}),
        (
            "config/methods/trades.yaml",
            "beta: 6.0",
            "beta: 3.0",
            {"train": 1, "evaluate": 1, "verify": 1, "tabulate": 1, "draw": 1, "cells": 1, "page": 1},
        ),
        (
            "config/methods/pgd-at.yaml",
            "extends: _shared",
            "extends: _shared\nversion: 2",
            {"train": 1, "evaluate": 1, "verify": 1, **EVERYTHING_SHOWN},
        ),
        (
            "config/suites.yaml",
            "settings: [clean, fgsm, pgd10]",
            "settings: [clean, fgsm]",
            {"evaluate": 3, **EVERYTHING_SHOWN},
        ),
        ("config/studies/second.yaml", "caption: c", "caption: C", {"tabulate": 1, "draw": 1, "cells": 1, "page": 1}),
        ("config/scales/tiny.yaml", "runtime: 5", "runtime: 6", EVERYTHING_SHOWN),
        ("src/moat/reporting/templates/page.css", "", "/* x */", EVERYTHING_SHOWN),
        ("src/moat/reporting/tables.py", "\nCOLUMNS = ", "\nEXTRA = 1\nCOLUMNS = ", EVERYTHING_SHOWN),
        # What shows a stale result says so, and nothing else is made again.
        ("src/moat/attacks/fgsm.py", "import torch\n", "import torch\n\nEXTRA = 1\n", EVERYTHING_SHOWN),
        ("src/moat/training/engine.py", "", "# a comment\n", {}),
        ("workflow/rules/train.smk", "--threads {threads:q}", "--threads  {threads:q}", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith(("config", "src", "workflow")) else None,
)
def test_a_change_makes_again_what_depends_on_it_and_nothing_else(workflow, file, old, new, again):
    workflow.edit(file, old, new)
    assert workflow.planned() == again


@pytest.mark.long
def test_where_a_surrogate_is_trained_again_only_transferred_examples_are_made_again(workflow):
    evaluations = [
        f"results/tiny/evaluations/digits/lenet5/pgd-at/seed0/{suite}.parquet" for suite in ("quick", "transfer")
    ]
    assert workflow.planned(*evaluations) == {"transfer": 1}
    assert workflow.snakemake(*evaluations).returncode == 0
    record = json.loads((workflow.root / evaluations[1]).with_suffix(".json").read_text())
    assert record["settings"]["transfer_seed"]["source"]["method"] == "trades"
    assert workflow.planned(*evaluations) == {}
    workflow.edit("config/methods/trades.yaml", "beta: 6.0", "beta: 3.0")
    assert workflow.planned(*evaluations) == {"train": 1, "transfer": 1}


def test_a_warm_job_writes_down_what_it_used(finished):
    """Snakemake would have seen the thin client of a warm start."""
    for path in (finished.root / "results/tiny").rglob("*.json"):
        record = json.loads(path.read_text())
        if path.parent.name == "seed0" or "checks" in path.parts:
            assert record["cpu_seconds"] > 0 and record["peak_host_memory_bytes"] > 64 * 2**20, path


@pytest.mark.long
def test_a_touched_file_with_the_same_content_makes_nothing_again(workflow):
    for name in ("pgd-at/seed0/model.safetensors", "pgd-at/seed0/run.json"):
        (workflow.root / RUNS / name).touch()
    (workflow.root / "results/tiny/data/digits.safetensors").touch()
    assert workflow.planned() == {}


@pytest.mark.long
def test_one_table_trains_only_what_it_needs(workflow):
    shutil.rmtree(workflow.root / "results")
    planned = workflow.planned("results/tiny/tables/second-table.csv")
    assert planned == {"prepare": 1, "train": 2, "evaluate": 2, "verify": 2, "tabulate": 1}


@pytest.mark.long
def test_changed_sources_are_stale_and_train_again_only_when_asked(workflow):
    again = {"train": 1, "evaluate": 1, "verify": 1, "tabulate": 1, "draw": 1, "cells": 1, "page": 1}
    # Twice: the second change must be noticed as well as the first.
    for old, new in (("import torch\n", "import torch\n\nEXTRA = 1\n"), ("EXTRA = 1\n", "EXTRA = 2\n")):
        workflow.edit("src/moat/methods/trades.py", old, new)
        # Nothing but what shows its numbers, which says so.
        assert workflow.planned() == {"tabulate": 1, "draw": 1, "cells": 1, "page": 1}
        listed = json.loads(workflow.run("moat", "plan", "--json").stdout)["jobs"]
        stale = [(job["kind"], job["method"], job["stale"]) for job in listed if job["stale"] and "method" in job]
        measured = [(kind, "trades", ["its run"]) for kind in ("evaluation", "check")]
        assert stale == [("run", "trades", ["method"]), *measured]
        assert "trades/seed0/run.json: method changed since" in workflow.run("moat", "doctor").stdout

        assert workflow.planned("--config", "refresh=stale") == again
        done = workflow.snakemake("--config", "refresh=stale")
        assert done.returncode == 0, done.stdout + done.stderr
        assert workflow.planned() == workflow.planned("--config", "refresh=stale") == {}
        assert {job["status"] for job in json.loads(workflow.run("moat", "plan", "--json").stdout)["jobs"]} == {"done"}


@pytest.mark.long
def test_another_recipe_is_stale_wherever_its_numbers_stand(workflow):
    """Also where nobody asks Snakemake, which would make it again."""
    workflow.edit("config/methods/trades.yaml", "beta: 6.0", "beta: 3.0")
    listed = json.loads(workflow.run("moat", "plan", "--json").stdout)["jobs"]
    stale = {(job["kind"], job["method"]): job["stale"] for job in listed if job["stale"] and "method" in job}
    assert stale == {
        ("run", "trades"): ["recipe"],
        ("evaluation", "trades"): ["its run"],
        ("check", "trades"): ["its run"],
    }
    assert "trades/seed0/run.json: recipe changed since" in workflow.run("moat", "doctor").stdout
    for command in (["tabulate"], ["tabulate", "--cells"], ["report"]):
        done = workflow.run("moat", *command, "--scale", "tiny")
        assert done.returncode == 0, done.stderr
    cells = pd.read_csv(workflow.root / "results/tiny/tables/cells.csv", keep_default_na=False)
    marked = {row.method: "stale" in row.checks_failed.split(";") for row in cells.itertuples()}
    assert marked == {"standard": False, "pgd-at": False, "trades": True}
    assert "stale: recipe" in (workflow.root / "results/tiny/report.html").read_text()


ROWS = "results/tiny/evaluations/digits/lenet5/trades/seed0/quick.parquet"
SHOWN_OF_TRADES = {"tabulate": 1, "draw": 1, "cells": 1, "page": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "again"),
    [
        (ROWS, {"evaluate": 1, **SHOWN_OF_TRADES}),
        (ROWS.replace("parquet", "json"), {"evaluate": 1, **SHOWN_OF_TRADES}),
        ("results/tiny/checks/digits/lenet5/trades/seed0.json", {"verify": 1, **SHOWN_OF_TRADES}),
        (f"{RUNS}/trades/seed0/last.safetensors", {"train": 1, "evaluate": 1, "verify": 1, **SHOWN_OF_TRADES}),
    ],
)
def test_what_was_cut_short_is_made_again(workflow, file, again):
    path = workflow.root / file
    os.truncate(path, path.stat().st_size - 1)
    assert workflow.planned() == again
    # Where Snakemake knows nothing of what it made, as in a clone, too; and not where nobody needs it.
    shutil.rmtree(workflow.root / ".snakemake/metadata")
    assert again.items() <= workflow.planned().items()
    assert "evaluate" not in workflow.planned("results/tiny/tables/first-table.csv")
    listed = json.loads(workflow.run("moat", "plan", "--json").stdout)["jobs"]
    assert [job["status"] for job in listed if job["path"] == file] in (["missing"], [])


@pytest.mark.long
def test_looking_changes_nothing(workflow):
    """No file, lock or time, whatever there is to be done: stale results, damaged ones, times in the future."""
    workflow.edit("src/moat/methods/trades.py", "import torch\n", "import torch\n\nEXTRA = 1\n")
    os.truncate(workflow.root / ROWS, 100)
    for ahead in (workflow.root / RUNS / "standard/seed0/run.json", *(workflow.root / "resources").rglob("*.json")):
        os.utime(ahead, (4e9, 4e9))
    locks = workflow.root / ".snakemake/locks"
    locks.mkdir(exist_ok=True)
    (locks / "0.output.lock").write_text(f"{ROWS}\n")

    def seen():
        """Everything but Snakemake's inventory and logs, which it keeps of every call."""
        found = {path.relative_to(workflow.root): path.lstat() for path in workflow.root.rglob("*")}
        own = (Path(".snakemake/iocache"), Path(".snakemake/log"))
        return {
            path: (now.st_mtime_ns, now.st_size)
            for path, now in found.items()
            if not path.is_relative_to(own[0]) and not path.is_relative_to(own[1])
        }

    before = seen()
    for look in (
        ["snakemake", "--dry-run"],
        ["snakemake", "--dry-run", "--config", "refresh=stale"],
        ["snakemake", "--dry-run", "--config", "scale=paper"],
        ["snakemake", "--lint"],
        ["moat", "plan"],
        ["moat", "plan", "--budget-gpu-hours", "0.01"],
        ["moat", "doctor"],
    ):
        done = workflow.run(*look)
        assert done.returncode == 0, done.stdout + done.stderr
        after = seen()
        assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == set(), look


@pytest.mark.long
def test_a_lock_that_nobody_holds_is_for_snakemake_and_the_user(workflow):
    lock = workflow.root / ".snakemake/locks/0.output.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(f"{ROWS}\n")
    (workflow.root / "results/tiny/report.html").unlink()
    refused = workflow.snakemake("--quiet", "rules")
    assert refused.returncode != 0 and "the --unlock argument" in refused.stdout + refused.stderr
    assert lock.exists() and not (workflow.root / "results/tiny/report.html").exists()
    assert workflow.snakemake("--unlock").returncode == 0
    assert not lock.exists() and workflow.planned() == {"page": 1}


@pytest.mark.long
def test_the_page_shows_what_is_stale(workflow):
    path = workflow.root / "src/moat/models/nets/lenet.py"
    path.write_text(path.read_text() + "\nEXTRA = 1\n")
    assert workflow.snakemake().returncode == 0
    page = (workflow.root / "results/tiny/report.html").read_text()
    assert page.count("training: nets changed since") == 3
    assert '["stale","run: nets changed since"]' in page


@pytest.mark.long
def test_limits_of_the_scale_reach_the_evaluation(workflow):
    """Also back to none: run.json remembers the limit of the time of training."""
    for limit, rows in ((10, 10), (None, 30)):
        scale = yaml.safe_load((workflow.root / "config/scales/tiny.yaml").read_text())
        scale["evaluation"]["limit"] = limit
        (workflow.root / "config/scales/tiny.yaml").write_text(yaml.safe_dump(scale))
        file = "results/tiny/evaluations/digits/lenet5/standard/seed0/quick.parquet"
        done = workflow.snakemake(file)
        assert done.returncode == 0, done.stdout + done.stderr
        assert set(pd.read_parquet(workflow.root / file).groupby("setting", observed=True).size()) == {rows}


@pytest.mark.long
def test_a_figure_that_looks_into_models_probes_each_once(workflow):
    """Editing the figure draws it again and runs no model."""
    path = workflow.root / "config/studies/second.yaml"
    study = yaml.safe_load(path.read_text())
    lines = study["figures"]["figure"]["lines"]
    inside = {"kind": "weight_distributions", "title": "t", "caption": "c", "probe": "weights", "lines": lines}
    study["figures"]["inside"] = inside
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    figure = "results/tiny/figures/second-inside.png"
    assert workflow.planned(figure) == {"probe": 2, "draw": 1}
    done = workflow.snakemake(figure)
    assert done.returncode == 0, done.stdout + done.stderr
    content = pd.read_csv(workflow.root / "results/tiny/figures/second-inside.csv")
    assert sorted(set(content["method"])) == ["pgd-at", "trades"]
    path.write_text(path.read_text().replace("caption: c", "caption: C"))
    assert workflow.planned(figure) == {"draw": 1}
    workflow.edit("config/probes.yaml", "layer: 2", "layer: 1")
    assert workflow.planned(figure) == {"probe": 2, "draw": 1}


@pytest.mark.long
def test_an_expert_is_trained_by_the_rule_pretrain_before_what_needs_it(workflow):
    workflow.edit("config/methods/standard.yaml", "title:", "role: expert\ntitle:")
    workflow.edit("config/methods/pgd-at-sparse.yaml", "method: trades", "method: standard")
    planned = workflow.snakemake("--dry-run", "--printshellcmds", f"{RUNS}/pgd-at-sparse/seed0/run.json")
    text = planned.stdout + planned.stderr
    assert "rule pretrain:" in text and "rule train:" in text
    assert f"--initialize-from dense={RUNS}/standard/seed0" in text


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "scale=minni"], "unknown scale 'minni' (did you mean 'mini'?)"),
        (["--config", "scal=mini"], "unknown key 'scal' (did you mean 'scale'?)"),
        (["--config", "refresh=yes"], "unknown value"),
        (["--config", "studies=[first,thrid]"], "unknown study 'thrid' (did you mean 'first'"),
    ],
)
def test_a_wrong_option_is_named(finished, options, said):
    done = finished.snakemake("--dry-run", *options)
    assert done.returncode != 0
    assert said.partition(" (did")[0] in done.stdout + done.stderr


@pytest.mark.long
def test_a_failed_job_shows_its_log_and_the_rest_goes_on(workflow):
    """--keep-going: one broken training must not cost the others."""
    shutil.rmtree(workflow.root / "results")
    workflow.edit(
        "src/moat/methods/trades.py", "import torch\n", 'import torch\n\nraise RuntimeError("broken on purpose")\n'
    )
    done = workflow.snakemake("--retries", "0", "--keep-going")
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert (workflow.root / RUNS / "standard/seed0/run.json").exists()
    assert not (workflow.root / RUNS / "trades/seed0/run.json").exists()


@pytest.mark.long
def test_snakemakes_own_report_is_one_offline_file_with_captions(workflow):
    done = workflow.snakemake("--report", "snakemake-report.html")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (workflow.root / "snakemake-report.html").read_text()
    assert "second-figure.png" in page and "first-table.md" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']https?://", page)


@pytest.mark.long
@pytest.mark.parametrize(
    ("most", "asked"),
    [
        ("{}", {"mem_mb": 1000, "runtime": 5}),
        ("{runtime: 3}", {"mem_mb": 1000, "runtime": 3}),
        ("{runtime: 30, mem_mb: 400}", {"mem_mb": 400, "runtime": 5}),
    ],
)
def test_jobs_ask_for_what_the_scale_says_up_to_the_most_there_is(finished, tmp_path, most, asked):
    (tmp_path / "mine.yaml").write_text(f"max_resources: {most}\n")
    done = finished.snakemake("--dry-run", "--forceall", "--configfile", str(tmp_path / "mine.yaml"))
    train = (done.stdout + done.stderr).partition("rule train:")[2].partition("rule ")[0]
    assert {key: int(re.search(rf"\b{key}=(\d+)", train)[1]) for key in asked} == asked
