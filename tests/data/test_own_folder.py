"""A plain folder of images becomes a data set: what is found in it, and what is refused in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from moat.commands.cli import main
from moat.data import datasets
from project_copy import copy_project


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    copy_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(name: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(values).convert(mode).save(name)


def draw_all(*folders: str, count: int = 10, **how) -> None:
    for folder in folders:
        for number in range(count):
            draw(f"{folder}/{number}.png", **how)


def prepare(*options: str, folder: str = "photos") -> int:
    return main(["prepare", folder, "--out", "out.safetensors", *options])


def description(name: str = "photos") -> dict:
    return yaml.safe_load(Path(f"config/datasets/{name}.yaml").read_text())


@pytest.mark.parametrize(
    ("folders", "counts"),
    [
        (["dog", "cat"], {"train": 15, "val": 1, "test": 4}),
        (["train/dog", "train/cat", "test/dog", "test/cat"], {"train": 18, "val": 2, "test": 20}),
        (["train/dog", "train/cat", "val/dog", "val/cat"], {"train": 18, "val": 2, "test": 20}),
        (["train/dog", "train/cat", "validation/cat"], {"train": 18, "val": 2, "test": 10}),
        (["train/dog", "train/cat", "test/dog", "val/dog"], {"train": 18, "val": 2, "test": 10}),
        (["train", "car"], {"train": 15, "val": 1, "test": 4}),
    ],
    ids=["classes", "train and test", "train and val", "train and validation", "all three", "a class named train"],
)
def test_splits(project, folders, counts):
    draw_all(*(f"photos/{each}" for each in folders))
    assert prepare() == 0
    found = datasets.load(Path("out.safetensors"))
    assert found.metadata["counts"] == counts and found.name == "photos"
    assert found.classes == sorted({each.split("/")[-1] for each in folders})
    assert description()["images"] == {"train": counts["train"] + counts["val"], "test": counts["test"]}


def test_what_is_found_and_assumed(project):
    draw_all("photos/cat", "photos/dog")
    assert prepare() == 0
    of_one = np.arange(192, dtype=np.uint8).reshape(-1, 3) / 255
    assert description() == {
        "name": "photos",
        "title": "photos",
        "format": "image_folder",
        "files": [],
        "folder": "photos",
        "channels": 3,
        "image_size": 8,
        "num_classes": 2,
        "images": {"train": 16, "test": 4},
        "mean": pytest.approx(of_one.mean(0).tolist(), abs=1e-4),
        "std": pytest.approx(of_one.std(0).tolist(), abs=1e-4),
        "augment": {"crop_padding": 1, "flip": True},
        "validation": 1,
        "licence": "not stated",
    }


def test_the_split_of_a_class_does_not_depend_on_the_others(project):
    draw_all("photos/cat", "photos/dog", count=3)
    draw_all("photos/eel", count=40)
    assert prepare() == 0
    test = datasets.load(Path("out.safetensors"), splits=("test",)).splits["test"]
    assert torch.bincount(test.labels).tolist() == [1, 1, 8]


def test_the_description_is_kept_and_the_folder_read_again(project, capsys):
    draw_all("photos/cat", "photos/dog")
    assert prepare() == 0
    path = Path("config/datasets/photos.yaml")
    path.write_text(path.read_text().replace("flip: true", "flip: false"))
    draw_all("photos/dog", count=20)
    assert prepare(folder="./photos") == 0
    assert description()["augment"]["flip"] is False
    assert datasets.load(Path("out.safetensors")).metadata["counts"] == {"train": 23, "val": 1, "test": 6}
    assert (
        main(["evaluate", "--model", "nomodule:make", "--dataset", "photos", "--suite", "quick", "--out", "x.parquet"])
        == 2
    )
    assert "nomodule" in capsys.readouterr().err


def test_the_workflow_prepares_it_by_its_name(project):
    draw_all("photos/cat", "photos/dog")
    assert prepare() == 0
    first = Path("out.safetensors").read_bytes()
    assert main(["fetch", "photos", "--into", "resources/photos"]) == 0
    assert prepare("--from", "resources/photos") == 0
    assert Path("out.safetensors").read_bytes() == first


def test_without_a_project_only_the_tensors_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_all("photos/cat", "photos/dog", mode="L")
    assert prepare("--image-size", "4", "--test-limit", "2") == 0
    found = datasets.load(Path("out.safetensors"))
    assert found.splits["test"].images.shape == (2, 4, 4, 3) and not Path("config").exists()


def two_sizes():
    draw_all("photos/cat", "photos/dog")
    draw("photos/dog/big.png", size=(9, 12))


def unreadable():
    draw_all("photos/cat", "photos/dog")
    Path("photos/dog/3.png").write_bytes(b"not a picture")


def two_folders():
    for folder in ("photos", "more/photos"):
        draw_all(f"{folder}/cat", f"{folder}/dog")
    assert prepare(folder="more/photos") == 0


def a_loose_image():
    draw_all("photos/cat", "photos/dog")
    draw("photos/loose.png")


REFUSED = {
    "several sizes": (two_sizes, [], 2, "images from 8 x 8 to 9 x 12 pixels, but nets need squares of one size"),
    "not square": (lambda: draw_all("photos/a", "photos/b", size=(6, 8)), [], 2, "--image-size N"),
    "tiny": (lambda: draw_all("photos/a", "photos/b", size=(2, 2)), [], 2, "2 x 2 pixels; allowed: at least 4"),
    "one class": (lambda: draw_all("photos/cat"), [], 3, "one class, 'cat'; needed: two or more"),
    "one image": (lambda: draw_all("photos/a", "photos/b", count=1), [], 3, "1 image of class 'a'"),
    "empty": (lambda: Path("photos/cat").mkdir(parents=True), [], 3, "no images; needed: <class>/*"),
    "a loose image": (a_loose_image, [], 3, "loose.png is in neither"),
    "no classes": (lambda: draw_all("photos"), [], 3, "needed: <class>/*"),
    "too deep": (lambda: draw_all("photos/a/b", "photos/a/c"), [], 3, "a/b/0.png is in neither"),
    "no test split": (
        lambda: draw_all("photos/train/a", "photos/train/b"),
        [],
        3,
        "no images in a folder test/<class>/",
    ),
    "not an image": (unreadable, [], 3, "dog/3.png: corrupt image"),
    "another folder's": (two_folders, [], 2, "config/datasets/ has another 'photos'; rename the folder"),
    "--from": (lambda: draw_all("photos/a"), ["--from", "x"], 2, "photos is a folder, and is read itself"),
    "no folder": (lambda: None, [], 2, "photos"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(project, capsys, case):
    make, options, code, message = REFUSED[case]
    make()
    Path("out.safetensors").unlink(missing_ok=True)
    capsys.readouterr()
    assert prepare(*options) == code
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert not Path("out.safetensors").exists()
    assert case == "another folder's" or not Path("config/datasets/photos.yaml").exists()


def test_a_known_name_needs_its_files(project, capsys):
    assert main(["prepare", "digits", "--out", "out.safetensors"]) == 2
    assert "`moat fetch digits --into DIR`" in capsys.readouterr().err


def test_a_folder_called_as_a_data_set_is_another_one(project, capsys):
    shutil.rmtree("digits", ignore_errors=True)
    draw_all("digits/a", "digits/b")
    assert prepare(folder="./digits") == 2
    assert "another 'digits'" in capsys.readouterr().err
