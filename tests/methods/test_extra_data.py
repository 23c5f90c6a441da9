"""Trainings with extra images and with AutoAugment, and DWF's attacks in normalised space."""

import copy
import struct
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tiny_methods import Tiny, begin, step_of

from moat.base.errors import DataError, Interrupted
from moat.base.files import hash_file
from moat.commands.cli import main
from moat.config.recipes import digest
from moat.data import datasets
from moat.methods.dwf_expert_fgsm import draw_one
from moat.training import engine
from moat.training.run_record import read_run
from moat.training.runs import Run
from project_copy import copy_project


def extra_file(root, data, name="extra.npz", count=40):
    """A file of training images turned upside down."""
    split = datasets.load(data).splits["train"]
    np.savez(root / name, image=split.images[:count].flip(1).numpy(), label=split.labels[:count].numpy())
    return {"file": name, "sha256": hash_file(root / name), "fraction": 0.25}


@pytest.fixture
def project(tiny, tmp_path):
    """The tiny project with a file of extra images, and recipes that name it or not."""
    copy_project(tmp_path, of=tiny.root)
    return Tiny(tmp_path, tiny.data)


def train(project, resolved, out):
    Run(resolved=resolved, data=project.data, out=out, work=out.parent / f"{out.name}-work", root=project.root).train()
    return out


def with_recipe(project, **recipe):
    resolved = copy.deepcopy(project.resolved("standard"))
    resolved["recipe"].update(recipe)
    return resolved


def outcome(out):
    history = pd.read_csv(out / "history.csv").drop(columns=["train_seconds", "seconds"])
    return hash_file(out / "last.safetensors"), history.to_csv()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["extra", "autoaugment"])
def test_a_killed_training_resumes_to_the_bit(project, tmp_path, monkeypatch, kind):
    recipe = {"augment": "autoaugment"}
    if kind == "extra":
        recipe = {"extra_images": extra_file(project.root, project.data)}
    resolved, real = with_recipe(project, **recipe), engine.Engine._set_learning_rates
    whole = train(project, resolved, tmp_path / "whole")

    def stop(self, step):
        if (step.epoch, step.batch) == (1, 2):
            self.save()
            raise Interrupted("stopped by the test")
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_set_learning_rates", stop)
        with pytest.raises(Interrupted):
            train(project, resolved, tmp_path / "again")
    assert outcome(train(project, resolved, tmp_path / "again")) == outcome(whole)
    plain = train(project, with_recipe(project), tmp_path / "plain")
    assert outcome(plain) != outcome(whole)


def test_extra_images_are_recorded_and_leave_validation_alone(project, tmp_path, monkeypatch):
    seen = {}
    real = engine.Engine.train

    def look(self, *arguments):
        labels = torch.cat([y for _, y in self.batches.epoch(0)])
        seen.update(validation=self.validation.size, epoch=len(labels), rows=self.batches.rows)
        return real(self, *arguments)

    monkeypatch.setattr(engine.Engine, "train", look)
    named = extra_file(project.root, project.data)
    record = read_run(train(project, with_recipe(project, extra_images=named), tmp_path / "run"))
    assert seen == {"validation": 20, "epoch": 64, "rows": 104}
    assert record["recipe"]["extra_images"] == named
    assert (record["data"]["train_images"], record["data"]["extra_images"]) == (64, 40)
    assert record["data"]["validation_images"] == 20
    plain = read_run(train(project, with_recipe(project), tmp_path / "plain"))
    assert plain["data"]["extra_images"] == 0
    assert plain["identity"] != record["identity"] and plain["recipe_digest"] != record["recipe_digest"]


def test_another_file_under_the_same_name_is_another_recipe_or_refused(project, tmp_path):
    named = extra_file(project.root, project.data)
    resolved = with_recipe(project, extra_images=named)
    other = with_recipe(project, extra_images=extra_file(project.root, project.data, count=30))
    assert digest(resolved) != digest(other)
    with pytest.raises(DataError, match="extra_images.sha256 of the recipe says"):
        train(project, resolved, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_an_archive_whose_header_asks_for_terabytes_ends_in_one_line(project, tmp_path, capsys):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 8, 8, 3), }\n"
    path = project.root / "extra.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(9))
    recipe = {"title": "Hostile", "extends": "standard"}
    recipe["extra_images"] = {"file": path.name, "sha256": hash_file(path), "fraction": 0.25}
    (project.root / "config/methods/hostile.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    options = "--dataset digits --arch resnet18 --method hostile --seed 0 --scale tiny"
    where = ["--project", str(project.root), "train", "--data", str(project.data), "--out", str(tmp_path / "run")]
    assert main([*where, *options.split()]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"moat train: {path}: not a whole .npz file") and "211106232532992" in line


@pytest.mark.long
@pytest.mark.parametrize("name", ["standard-augmented", "mocse-augmented"])
def test_without_a_file_the_stand_in_is_used_and_said(tiny, name):
    from moat.config.project import Project

    recipe = Project(tiny.root).method(name)
    assert (recipe["augment"], recipe["extra_images"]) == ("autoaugment", None)
    assert any("AutoAugment" in each and "stand-in" in each for each in recipe["deviations"].values())
    record = read_run(tiny.run(name))
    assert record["recipe"]["augment"] == "autoaugment"
    plain = read_run(tiny.run(name.removesuffix("-augmented")))
    assert record["model_sha256"] != plain["model_sha256"]


# -- DWF's attack space --------------------------------------------------------
def watched(method):
    """The images that an update is computed on (those that a forward pass in train mode gets)."""
    seen = []
    # Experts of the mixture are asked, too: only the outermost model's input counts.
    method.model.register_forward_pre_hook(
        lambda module, given: seen.append(given[0].detach()) if module.training else None
    )
    return seen


@pytest.mark.brief(keep=lambda case: case["name"] == "dwf-expert-pgd")
@pytest.mark.parametrize("name", ["dwf-expert-fgsm", "dwf-expert-pgd"])
def test_an_expert_trains_on_examples_of_its_space(tiny, name):
    (x, y), step = tiny.batch(), step_of(0, 0)
    radii = {}
    for space in ("pixel", "normalised_noclip"):
        method = tiny.method(name)
        method.recipe = {**method.recipe, "attack_space": {"name": space}}
        seen = watched(method)
        begin(method, 0)
        method.update(x, y, step)
        (x_adv,) = seen
        radii[space] = float((x_adv - x).abs().max())
        assert bool(x_adv.min() < 0) is (space != "pixel")
    std = method.model.normalize.std
    assert radii["normalised_noclip"] == pytest.approx(float(std.max()) * radii["pixel"], rel=1e-3)


@pytest.mark.long
def test_dwf_expands_in_its_space(tiny):
    method, (x, y), step = tiny.method("dwf"), tiny.batch(), step_of(0, 0)
    method.recipe = {**method.recipe, "attack_space": {"name": "normalised_noclip"}}
    begin(method, 0)
    images = method.expand(x, y, step)
    std = method.model.experts[0].normalize.std
    assert torch.equal(images[:16], x)
    eps = draw_one(method.recipe["fgsm_attack"]["eps"], step, "fgsm epsilon")
    assert float(((images[16:32] - x) / std).abs().max()) == pytest.approx(eps, rel=1e-3)
    # At this size an attack has two steps of 2/255; the random start may have been further out.
    assert float(((images[32:] - x) / std).abs().max()) <= 8 / 255 * 1.001
    assert images[16:].min() < 0
