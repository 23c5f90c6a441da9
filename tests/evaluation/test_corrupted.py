"""Corruptions as attack settings: generated ones, published ones looked up by index, means over severities."""

import errno
import json
import threading

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from moat.attacks import resolve
from moat.base.errors import DataError, MoatError
from moat.base.locks import locked
from moat.config.corruptions import settings
from moat.data import generated_corruptions
from moat.data.corruptions import corrupt
from moat.data.datasets import VERSION
from moat.data.generated_corruptions import GeneratedCorruptions
from moat.data.official_corruptions import OfficialCorruptions
from moat.evaluation import evaluate
from moat.evaluation.corrupted import prepared, summary, with_images
from moat.evaluation.plan import make_plan
from moat.evaluation.statistics import MeanAccuracy, mean_accuracy, wilson
from moat.evaluation.target import EvaluationTarget

FOG = {"attack": "corruption", "corruption": "fog", "severity": 3}
SEVERITIES = (1, 2, 3, 4, 5)


@pytest.fixture(scope="module")
def pictures(test_images):
    """40 test images as bytes (N, H, W, C), their labels, and indices of a data set in no order."""
    x, y = test_images
    images = (x[:40] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return images, y[:40], np.random.default_rng(0).permutation(1000)[:40].tolist()


def write_official(path, images, labels, indices, names=("fog", "snow"), **changes):
    """A prepared file of corruptions in which severity s of corruption c is the negative, darkened by 10 s + c."""
    blocks = [
        (np.clip(255 - images.numpy().astype(int) - 10 * s - c, 0, 255).astype(np.uint8), c, s)
        for c in range(len(names))
        for s in SEVERITIES
    ]
    tensors = {
        "test.images": np.concatenate([block for block, _, _ in blocks]),
        "test.labels": np.tile(labels.numpy(), len(blocks)),
        "test.index": np.tile(np.array(indices), len(blocks)),
        "test.corruption": np.repeat([c for _, c, _ in blocks], len(images)),
        "test.severity": np.repeat([s for _, _, s in blocks], len(images)),
    }
    metadata = {"version": VERSION, "dataset": "digits-c", "corruptions": list(names), "counts": {"test": 1}, **changes}
    save_file(tensors, path, metadata={"moat": json.dumps(metadata)})
    return path


def predictions(model, images):
    with torch.no_grad():
        return model(torch.as_tensor(images).permute(0, 3, 1, 2) / 255).argmax(1).tolist()


@pytest.mark.parametrize("severities", ["cifar10-c", "imagenet-c"])
def test_a_setting_evaluates_the_images_of_corrupt(severities, undefended, pictures):
    images, labels, indices = pictures
    chosen = {name: each for name, each in settings(severities).items() if each["corruption"] in ("fog", "glass_blur")}
    frame = evaluate(undefended, images, labels, chosen, batch_size=16, seed=5, indices=indices)
    for name, setting in chosen.items():
        expected = corrupt(
            images.numpy(), setting["corruption"], setting["severity"], seed=5, severities=severities, indices=indices
        )
        rows = frame[frame["setting"] == name]
        assert rows["predicted"].tolist() == predictions(undefended, expected)
        linf = np.abs(expected.astype(int) - images.numpy()).reshape(40, -1).max(1) / 255
        np.testing.assert_allclose(rows["linf"], linf, atol=1e-6)


def test_the_batch_size_does_not_matter(undefended, pictures):
    images, labels, _ = pictures
    one, other = (evaluate(undefended, images, labels, {"fog-3": FOG}, batch_size=size) for size in (40, 7))
    pd.testing.assert_frame_equal(one[["predicted", "linf"]], other[["predicted", "linf"]])


def test_without_generators_chance_is_torchs(undefended, pictures):
    images, labels, _ = pictures
    attack, x = resolve("fog", FOG), images.permute(0, 3, 1, 2) / 255
    seeded = [attack(undefended, x, labels, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(seeded[0], seeded[1]) and not torch.equal(seeded[0], seeded[2])
    torch.manual_seed(0)
    assert attack(undefended, x, labels).shape == x.shape


def test_published_images_are_used_where_they_are(undefended, pictures, tmp_path):
    images, labels, indices = pictures
    # The file holds the images in another order.
    order = np.random.default_rng(1).permutation(40)
    path = write_official(tmp_path / "x-c.safetensors", images[order], labels[order], np.array(indices)[order])
    official = OfficialCorruptions.beside(tmp_path / "x.safetensors")
    imagenet = {**FOG, "severities": "imagenet-c"}
    suite = {"clean": {"attack": "none"}, "fog-3": FOG, "snow-5": {**FOG, "corruption": "snow", "severity": 5}}
    resolved = {name: resolve(name, setting) for name, setting in {**suite, "fog-3-imagenet": imagenet}.items()}
    ready = prepared(resolved, official, labels=labels.tolist(), indices=indices)
    frame = evaluate(undefended, images, labels, ready, batch_size=16, indices=indices)
    for name, less in (("fog-3", 30), ("snow-5", 51)):
        expected = np.clip(255 - images.numpy().astype(int) - less, 0, 255).astype(np.uint8)
        assert frame[frame["setting"] == name]["predicted"].tolist() == predictions(undefended, expected)
    found = {name: attack.parameters.get("source") for name, attack in ready.items()}
    assert found == {"clean": None, "fog-3": "official", "snow-5": "official", "fog-3-imagenet": "generated"}
    assert ready["fog-3"].parameters["data_sha256"] == OfficialCorruptions(path).sha256
    assert {attack.steps for attack in ready.values()} == {0}


def test_without_published_images_they_are_generated(undefended, pictures, tmp_path):
    images, labels, indices = pictures
    assert OfficialCorruptions.beside(tmp_path / "x.safetensors") is None
    ready = prepared({"fog-3": resolve("fog-3", FOG)}, None, labels=labels.tolist(), indices=indices)
    assert ready["fog-3"].parameters["source"] == "generated"
    one = evaluate(undefended, images, labels, ready, batch_size=40)
    other = evaluate(undefended, images, labels, {"fog-3": FOG}, batch_size=40)
    pd.testing.assert_frame_equal(one.drop(columns="steps"), other.drop(columns="steps"))


def test_a_limit_of_corruptions_holds_for_what_is_generated(undefended, pictures, tmp_path, monkeypatch):
    images, labels, indices = pictures
    corrupted = []
    monkeypatch.setattr(
        generated_corruptions,
        "corrupt",
        lambda x, *names, **options: corrupted.append(len(x)) or corrupt(x, *names, **options),
    )
    run = EvaluationTarget(undefended, {}, images, labels, indices, [], tmp_path / "x.safetensors", "a" * 64, 40)
    declared = {"clean": {"attack": "none"}, "fog-3": {**FOG, "limit": 7}, "fog-4": {**FOG, "severity": 4, "limit": 9}}
    plan = make_plan("s", declared, {}, undefended, {})
    ready = with_images(plan, run, tmp_path).settings
    frame = evaluate(undefended, images, labels, ready, batch_size=40, indices=indices)
    assert frame.groupby("setting").size().to_dict() == {"clean": 40, "fog-3": 7, "fog-4": 9}
    assert set(corrupted) == {9}


# -- generated once ----------------------------------------------------------------
WANTED = {"fog-3": ("fog", 3), "jpeg_compression-5": ("jpeg_compression", 5)}


@pytest.fixture
def counted(monkeypatch):
    """The settings that images are corrupted for, in this order."""
    calls = []

    def spy(images, name, severity, **options):
        calls.append(f"{name}-{severity}")
        return corrupt(images, name, severity, **options)

    monkeypatch.setattr(generated_corruptions, "corrupt", spy)
    return calls


def kept(folder, pictures, n=40, **changes):
    images, _, indices = pictures
    made_of = {"data": "a" * 64, "sources": {"corruptions": "1"}}
    arguments = {"severities": "cifar10-c", "wanted": WANTED, "made_of": made_of, **changes}
    return GeneratedCorruptions(folder, images[:n].numpy(), indices[:n], **arguments)


def expected(pictures, setting, n=40):
    images, _, indices = pictures
    return corrupt(images[:n].numpy(), *WANTED[setting], seed=0, indices=indices[:n])


def test_the_first_who_needs_them_makes_them_for_all(pictures, tmp_path, counted):
    for number in range(3):
        found = kept(tmp_path / "corrupted", pictures, n=40 - number)
        for setting in WANTED:
            np.testing.assert_array_equal(found.images(setting), expected(pictures, setting, 40 - number))
    assert counted == list(WANTED)
    assert sorted(path.suffix for path in (tmp_path / "corrupted").iterdir()) == [".lock", ".safetensors"]


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, False),
        ({"wanted": {"fog-3": ("fog", 3)}}, False),
        ({"wanted": {**WANTED, "fog-4": ("fog", 4)}}, True),
        ({"made_of": {"data": "a" * 64, "sources": {"corruptions": "2"}}}, True),
        ({"made_of": {"data": "a" * 63 + "b", "sources": {"corruptions": "1"}}}, True),
        ({"seed": 1}, True),
        ({"indices": list(range(20))}, True),
        ({"n": 21}, True),
    ],
)
def test_what_was_made_of_something_else_is_made_again(pictures, tmp_path, counted, changes, again):
    kept(tmp_path, pictures, n=20).images("fog-3")
    del counted[:]
    asked = kept(tmp_path, pictures, **{"n": 20, **{key: value for key, value in changes.items() if key != "indices"}})
    if "indices" in changes:
        asked.indices = changes["indices"]
    found = asked.images("fog-3")
    assert bool(counted) == again
    np.testing.assert_array_equal(found, asked._generate("fog-3"))


@pytest.mark.parametrize("content", [None, b"", b"cut"])
def test_a_damaged_file_is_made_again(pictures, tmp_path, counted, content):
    first = kept(tmp_path, pictures)
    first.images("fog-3")
    first.path.write_bytes(first.path.read_bytes()[:-1] if content is None else content)
    del counted[:]
    np.testing.assert_array_equal(kept(tmp_path, pictures).images("fog-3"), expected(pictures, "fog-3"))
    assert counted == list(WANTED)
    # Cut short while it is used.
    second = kept(tmp_path, pictures)
    second.images("fog-3")
    second.path.write_bytes(b"")
    np.testing.assert_array_equal(second.images("fog-3"), expected(pictures, "fog-3"))


def test_where_they_cannot_be_kept_they_are_generated_all_the_same(pictures, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    np.testing.assert_array_equal(kept(tmp_path / "file", pictures).images("fog-3"), expected(pictures, "fog-3"))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(generated_corruptions, "_write", full)
    np.testing.assert_array_equal(kept(tmp_path, pictures).images("fog-3"), expected(pictures, "fog-3"))
    assert "cannot be written" in caplog.text and "no space left" in caplog.text
    assert not list(tmp_path.glob("*.safetensors"))


def test_who_needs_them_meanwhile_waits(pictures, tmp_path, counted):
    """Locks are of open files: a thread stands for another process."""
    found = []
    waiting = threading.Thread(target=lambda: found.append(kept(tmp_path, pictures).images("fog-3")))
    with locked(kept(tmp_path, pictures).path, waiting="the test"):
        waiting.start()
        kept(tmp_path, pictures)._make()
        assert not found
    waiting.join(60)
    np.testing.assert_array_equal(found[0], expected(pictures, "fog-3"))
    assert counted == list(WANTED)


def test_an_evaluation_has_the_same_rows_whoever_made_the_images(undefended, pictures, tmp_path, counted):
    images, labels, indices = pictures
    imagenet = {**FOG, "severities": "imagenet-c"}
    suite = {"clean": {"attack": "none"}, "fog-3": FOG, "mine": FOG, "fog-3-imagenet": imagenet}
    target = EvaluationTarget(undefended, {}, images, labels, indices, [], tmp_path / "x.safetensors", "a" * 64, 16)
    tables, records = [], []
    for folder in (None, tmp_path / "kept", tmp_path / "kept"):
        plan = make_plan("s", suite, {}, undefended, {})
        plan = with_images(plan, target, folder, sources=lambda: {"corruptions": "1"})
        tables.append(evaluate(undefended, images, labels, plan.settings, batch_size=16, indices=indices))
        records.append(plan.record)
    # A setting of another name has other random numbers.
    assert counted == ["fog-3", "fog-3"] and len(list((tmp_path / "kept").glob("*.safetensors"))) == 2
    for table, record in zip(tables[1:], records[1:], strict=True):
        pd.testing.assert_frame_equal(table, tables[0])
        assert record == records[0]


@pytest.mark.parametrize(
    ("corruption", "relabel", "extra", "words"),
    [
        ("frost", 0, [], ["frost", "fog, snow"]),
        ("fog", 1, [], ["another label"]),
        ("fog", 0, [4711], ["no image 4711", "1 of 41"]),
    ],
)
def test_published_images_that_do_not_fit(corruption, relabel, extra, words, pictures, tmp_path):
    images, labels, indices = pictures
    official = OfficialCorruptions(write_official(tmp_path / "c.safetensors", images, labels, indices))
    assert official.lacks([*indices, *extra]) == len(extra)
    wanted = [*indices, *extra], [*(labels + relabel).tolist(), *extra]
    with pytest.raises(DataError) as caught:
        official.images(corruption, 3, *wanted)
    assert all(word in str(caught.value) for word in [*words, "c.safetensors"])


def test_published_images_of_another_size(undefended, pictures, tmp_path):
    images, labels, indices = pictures
    official = OfficialCorruptions(write_official(tmp_path / "c.safetensors", images[:, :8, :8], labels, indices))
    ready = prepared({"fog-3": resolve("fog-3", FOG)}, official, labels=labels.tolist(), indices=indices)
    with pytest.raises(MoatError, match="another shape"):
        evaluate(undefended, images, labels, ready, batch_size=40, indices=indices)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": 0}, "prepared by this version"), ({"corruptions": []}, "digits-c is not a dataset of corruptions")],
)
def test_files_that_hold_no_corruptions(change, words, pictures, tmp_path):
    images, labels, indices = pictures
    path = write_official(tmp_path / "c.safetensors", images, labels, indices, **change)
    with pytest.raises(DataError, match=words):
        OfficialCorruptions(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        OfficialCorruptions(path)
    with pytest.raises(DataError, match="no such file"):
        OfficialCorruptions(tmp_path / "none.safetensors")


# -- means -------------------------------------------------------------------------
def rows(correct: np.ndarray) -> pd.DataFrame:
    """Rows of settings s0, s1, … from an array (settings, examples)."""
    cells = np.ndenumerate(correct)
    parts = [{"setting": f"s{number}", "index": index, "correct": bool(value)} for (number, index), value in cells]
    return pd.DataFrame(parts)


def names(count):
    return [f"s{number}" for number in range(count)]


def test_one_setting_has_wilsons_interval():
    correct = np.arange(100)[None] < 30
    found = mean_accuracy(rows(correct), ["s0"])
    assert (found.mean, found.n) == (0.3, 100) and found.interval() == pytest.approx(wilson(30, 100), abs=1e-9)


def test_an_image_seen_five_times_counts_once():
    once = np.arange(100)[None] < 30
    found = mean_accuracy(rows(np.repeat(once, 5, axis=0)), names(5))
    assert found.mean == pytest.approx(0.3) and found.effective == pytest.approx(100)
    assert found.interval() == pytest.approx(wilson(30, 100), abs=1e-9)


def test_independent_answers_count_each():
    correct = np.random.default_rng(0).random((5, 4000)) < 0.4
    found = mean_accuracy(rows(correct), names(5))
    assert found.mean == pytest.approx(correct.mean()) and found.n == 4000
    assert 0.9 * 20_000 < found.effective <= 20_000


def test_the_interval_covers_the_truth_where_answers_of_an_image_go_together():
    """Wilson on all answers as if they were independent would cover far less than 95 %."""
    random, covered, naive = np.random.default_rng(0), 0, 0
    for _ in range(200):
        difficulty = random.random(150)
        correct = random.random((5, 150)) < difficulty**3
        low, high = mean_accuracy(rows(correct), names(5)).interval()
        covered += low <= 0.25 <= high
        low, high = wilson(int(correct.sum()), correct.size)
        naive += low <= 0.25 <= high
    assert covered >= 184 and naive <= 170


@pytest.mark.parametrize(("mean", "low", "high"), [(0.0, 0.0, 0.06), (1.0, 0.94, 1.0)])
def test_intervals_at_the_ends(mean, low, high):
    assert MeanAccuracy(mean, 70, 70).interval() == pytest.approx((low, high), abs=0.01)


@pytest.mark.parametrize(
    ("frame", "settings_", "words"),
    [
        (rows(np.ones((2, 3))), [], "no attack setting"),
        (rows(np.ones((2, 3))), ["s0", "s7"], "'s7'; there are s0"),
        (rows(np.ones((2, 3))).iloc[:-1], ["s0", "s1"], "different examples"),
        (pd.concat([rows(np.ones((1, 3)))] * 2), ["s0"], "twice"),
    ],
)
def test_means_that_cannot_be_taken(frame, settings_, words):
    with pytest.raises(DataError, match=words):
        mean_accuracy(frame, settings_)


def test_the_record_has_a_mean_per_corruption_and_over_all(undefended, pictures):
    images, labels, indices = pictures
    chosen = {name: each for name, each in settings("cifar10-c").items() if each["corruption"] in ("fog", "contrast")}
    resolved = {name: resolve(name, each) for name, each in {"clean": {"attack": "none"}, **chosen}.items()}
    ready = prepared(resolved, None, labels=labels.tolist(), indices=indices)
    frame = evaluate(undefended, images, labels, ready, batch_size=40, indices=indices)
    content = summary(frame, ready)["corruptions"]["cifar10-c"]
    accuracy = frame.groupby("setting")["correct"].mean()
    assert content["source"] == "generated" and list(content["mean"]) == ["fog", "contrast"]
    for corruption, found in content["mean"].items():
        expected = np.mean([accuracy[f"{corruption}-{severity}"] for severity in SEVERITIES])
        assert found["accuracy"] == pytest.approx(expected) and found["n"] == 40
        assert found["low"] <= found["accuracy"] <= found["high"]
    assert content["overall"]["accuracy"] == pytest.approx(accuracy.drop("clean").mean())
    assert json.dumps(content) and summary(frame, {"clean": ready["clean"]}) == {}
