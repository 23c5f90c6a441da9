"""DVC above Snakemake, for real: repro, push, a clone elsewhere, pull, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_project import ROOT, Workflow

from moat.base.files import hash_file
from moat.pipeline.dvc_pull import describe_changes

MODELS = "results/tiny/runs/digits/lenet5"
METHODS = ("pgd-at", "standard", "trades")


class Shared(Workflow):
    """A project under git and DVC, whose remote is the folder ``remote`` beside it."""

    def environment(self):
        # Its `snakemake` is that of this Python, as where the environment is activated.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        name = {f"GIT_{who}_{what}": "t@t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        site = str(self.root.parent / "site")
        return {**super().environment(), **name, "PATH": path, "DVC_SITE_CACHE_DIR": site, "DVC_NO_ANALYTICS": "1"}

    def ok(self, *command):
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def models(self):
        return {method: hash_file(self.root / MODELS / method / "seed0/model.safetensors") for method in METHODS}

    def metrics(self) -> dict:
        return json.loads((self.root / "results/tiny/metrics.json").read_text())

    def clone(self, root: Path) -> "Shared":
        subprocess.run(["git", "clone", "--quiet", str(self.root), str(root)], check=True)
        other = Shared(root)
        other.ok("dvc", "remote", "add", "--local", "--default", "store", str(self.root.parent / "remote"))
        return other

    def commit(self, message: str) -> None:
        for command in (["add", "--all"], ["commit", "--quiet", "--message", message]):
            subprocess.run(["git", *command], cwd=self.root, env=self.environment(), check=True)


@pytest.fixture(scope="module")
def shared(finished, tmp_path_factory) -> Shared:
    """The small project without one of its runs, made whole by `dvc repro`, committed and pushed."""
    root = tmp_path_factory.mktemp("dvc") / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    shutil.rmtree(root / MODELS / "trades")
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, root / ".dvc")
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", str(root)], check=True)
    project = Shared(root)
    project.commit("start")
    project.ok("dvc", "remote", "add", "--local", "--default", "store", str(root.parent / "remote"))
    project.ok("dvc", "repro")
    project.commit("results")
    project.ok("dvc", "push")
    return project


@pytest.mark.long
def test_repro_makes_what_is_missing_and_keeps_the_rest(finished, shared):
    """Also the runs that were not made again: without `persist` their folder would have been emptied."""
    assert shared.models() == Shared(finished.root).models()
    entry = yaml.safe_load((shared.root / "dvc.lock").read_text())["stages"]["models"]["outs"][0]
    assert entry["path"] == "results/tiny/runs" and entry["nfiles"] == 4 * len(METHODS)
    for method in ("standard", "pgd-at"):
        copied = (shared.root / MODELS / method / "seed0/run.json").read_text()
        assert copied == (finished.root / MODELS / method / "seed0/run.json").read_text()


@pytest.mark.long
def test_a_second_repro_starts_nothing(shared):
    said = shared.ok("dvc", "repro")
    assert "Running stage" not in said and said.count("didn't change") == 4


@pytest.mark.long
def test_git_keeps_no_results_and_dvc_all_of_them(shared):
    listed = subprocess.run(["git", "ls-files", "results"], cwd=shared.root, capture_output=True, text=True).stdout
    assert not listed
    stages = yaml.safe_load((shared.root / "dvc.yaml").read_text().replace("${scale}", "tiny"))["stages"].values()
    kept = {Path(path) for stage in stages for each in [*stage["outs"], *stage.get("metrics", [])] for path in each}
    made = {path.relative_to(shared.root) for path in (shared.root / "results/tiny").rglob("*") if path.is_file()}
    assert not {path for path in made if not {path, *path.parents} & kept}
    for name in ("runs", "evaluations", "checks", "data", "tables", "figures"):
        assert not any(path.is_symlink() for path in (shared.root / "results/tiny" / name).rglob("*")), name
        # A hard link to the cache would let a write here damage what is pushed.
        files = [path for path in (shared.root / "results/tiny" / name).rglob("*") if path.is_file()]
        cached = {path.stat().st_ino for path in (shared.root / ".dvc/cache").rglob("*")}
        assert files and not cached & {path.stat().st_ino for path in files}, name


@pytest.mark.long
def test_a_changed_recipe_trains_its_runs_only_and_the_metrics_say_so(shared, tmp_path):
    shutil.copytree(shared.root.parent, tmp_path / "all", symlinks=True)
    project = Shared(tmp_path / "all/project")
    before = project.models()
    scale = project.root / "config/scales/tiny.yaml"
    scale.write_text(scale.read_text() + "recipes: {trades: {epochs: 6}}\n")
    project.ok("dvc", "repro")
    after = project.models()
    assert {method for method in METHODS if after[method] != before[method]} == {"trades"}
    changed = json.loads(project.ok("dvc", "metrics", "diff", "--json"))["results/tiny/metrics.json"]
    methods = {name.split(".")[3] for name in changed if name.startswith("accuracy.")}
    assert methods == {"trades"}, changed
    assert "epochs" in project.ok("dvc", "params", "diff", "--json")


@pytest.fixture(scope="module")
def pulled(shared, tmp_path_factory) -> Shared:
    """A clone elsewhere, after the one documented command."""
    project = shared.clone(tmp_path_factory.mktemp("elsewhere") / "clone")
    said = project.ok("moat", "pull")
    assert "`snakemake` has nothing to do" in said
    return project


@pytest.mark.long
def test_in_a_clone_after_pull_there_is_nothing_to_do(shared, pulled):
    assert pulled.planned() == {}
    assert pulled.models() == shared.models()
    assert pulled.metrics() == shared.metrics()
    assert json.loads(pulled.ok("dvc", "status", "--json")) == {}


@pytest.mark.long
def test_a_clone_that_makes_everything_itself_has_the_same_metrics(shared, tmp_path):
    """As somebody without the remote does, on the same machine."""
    project = shared.clone(tmp_path / "clone")
    project.ok("dvc", "repro")
    assert project.models() == shared.models()
    assert project.metrics() == shared.metrics()


@pytest.mark.long
def test_after_pull_a_changed_recipe_is_noticed(pulled, tmp_path):
    """A touch alone leaves no records of recipes: nothing would ever be trained again."""
    shutil.copytree(pulled.root, tmp_path / "project", symlinks=True)
    project = Workflow(tmp_path / "project")
    project.edit("config/methods/trades.yaml", "beta: 6.0", "beta: 3.0")
    assert project.planned() == {
        "train": 1, "evaluate": 1, "verify": 1, "tabulate": 1, "draw": 1, "cells": 1, "page": 1,
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda project: project.edit("config/methods/trades.yaml", "beta: 6.0", "beta: 3.0"),
            r"models: .*config is modified.*Nothing was declared up to date",
        ),
        (
            lambda project: (project.root / MODELS / "trades/seed0/run.json").write_text('{"by": "hand"}\n'),
            r"`dvc pull` ended with|results/tiny/runs is modified",
        ),
        (lambda project: (project.root / "dvc.lock").unlink(), r"dvc\.lock: no such file; `dvc repro` writes it"),
    ],
    ids=["another recipe", "a changed result", "no lock"],
)
def test_what_is_not_exactly_the_lock_is_not_blessed(pulled, tmp_path, spoil, said):
    shutil.copytree(pulled.root, tmp_path / "project", symlinks=True)
    project = Shared(tmp_path / "project")
    shutil.rmtree(project.root / ".snakemake")
    spoil(project)
    done = project.run("moat", "pull")
    assert done.returncode in (1, 2, 3) and re.search(said, done.stderr), done.stdout + done.stderr
    assert not (project.root / ".snakemake/metadata").exists()


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        ({}, []),
        ({"data": ["changed command"]}, ["data: changed command"]),
        (
            {"models": [{"changed deps": {"src": "modified"}}, {"changed outs": {"results/s/runs": "deleted"}}]},
            ["models: src is modified, results/s/runs is deleted"],
        ),
    ],
)
def test_changes_are_told_by_stage(status, lines):
    assert describe_changes(status) == lines


def test_stages_keep_their_folders_and_depend_on_all_sources():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert 3 <= len(stages) <= 5
    for name, stage in stages.items():
        assert {"Snakefile", "workflow", "config", "src"} <= set(stage["deps"]), name
        for out in [*stage["outs"], *stage.get("metrics", [])]:
            assert all(options["persist"] is True for options in out.values()), out
