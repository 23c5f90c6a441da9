"""Never lose work: a training that is killed and started again ends with bit-identical weights."""

import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from moat.base.errors import Interrupted
from moat.base.files import hash_file, read_json, write_bytes
from moat.commands.cli import main
from moat.training import checkpoint, engine
from moat.training.checkpoint import Checkpoints


def outcome(out: Path) -> tuple[str, str, str]:
    """What must be equal to the bit: both weights, and the history but for its times."""
    history = pd.read_csv(out / "history.csv").drop(columns=["train_seconds", "seconds"])
    return hash_file(out / "model.safetensors"), hash_file(out / "last.safetensors"), history.to_csv()


class Outcomes(dict):
    """Method -> the outcome of its training without a disturbance, trained when it is first asked for."""

    def __init__(self, prepared, folder):
        self.prepared, self.folder = prepared, folder

    def __missing__(self, method):
        assert self.prepared.train(self.folder / method, method=method) == 0
        return self.setdefault(method, outcome(self.folder / method))


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    return Outcomes(prepared, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.brief(keep=lambda case: case["method"] == "standard")
@pytest.mark.parametrize("method", ["standard", "pgd-at"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(prepared, undisturbed, tmp_path, method):
    assert prepared.train(tmp_path / "same", method=method) == 0
    assert prepared.train(tmp_path / "other", method=method, seed=1) == 0
    assert outcome(tmp_path / "same") == undisturbed[method]
    assert outcome(tmp_path / "other")[1] != undisturbed[method][1]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_sigkill_at_any_moment_changes_nothing(prepared, undisturbed, tmp_path, seed):
    """Kills at random moments, start-up and saving included, until the run gets through."""
    out, moments = tmp_path / "run", random.Random(seed)
    kills = 0
    for _ in range(20):
        process = prepared.start(out)
        if kills < 3:
            # Start-up takes a second or two; the first line of history says that epochs are passing.
            if moments.random() < 0.75:
                process.stdout.readline()
            time.sleep(moments.uniform(0, 0.3))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        process.communicate(timeout=120)
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert kills > 0
    assert outcome(out) == undisturbed["pgd-at"]
    assert not list(Path(f"{out}-work").rglob("*.pt")), "a finished run keeps no checkpoints"
    assert not list(Path(f"{out}-work").rglob(".*.part")), "what a kill left of a checkpoint is removed"


@pytest.mark.brief(keep=lambda case: case["number"] == signal.SIGTERM)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_saves_and_exits_75(prepared, undisturbed, tmp_path, number):
    out = tmp_path / "run"
    process = prepared.start(out)
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.fail("the run was over before the signal; make it longer")
    assert process.returncode == 75
    assert "the same command continues from there" in errors
    assert not (out / "run.json").exists()
    assert prepared.train(out) == 0
    assert outcome(out) == undisturbed["pgd-at"]


@pytest.mark.brief(keep=lambda case: case["method"] == "standard" and case["stop_after"] in (13, 30))
@pytest.mark.parametrize("method", ["standard", "pgd-at", "trades"])
@pytest.mark.parametrize("stop_after", [1, 12, 13, 14, 30])
def test_every_method_resumes_inside_an_epoch_to_the_bit(
    prepared, undisturbed, tmp_path, monkeypatch, method, stop_after
):
    """200 images in batches of 16: an epoch has 13 batches. Stopped after a batch, with a checkpoint there."""
    out, steps = tmp_path / "run", []
    real = engine.Engine._set_learning_rates

    def stop(self, step):
        if len(steps) == stop_after:
            self.save()
            raise Interrupted("stopped by the test")
        steps.append(step)
        real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_set_learning_rates", stop)
        assert prepared.train(out, method=method) == 75
    assert prepared.train(out, method=method) == 0
    assert outcome(out) == undisturbed[method]


@pytest.mark.brief(keep=lambda case: case["damage"] == "flipped bit")
@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    prepared, undisturbed, tmp_path, monkeypatch, damage, caplog
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_EVERY_SECONDS", 0.0)
        real = engine.Engine._end_epoch

        def stop(self):
            if self.epoch == 2:
                raise Interrupted("stopped by the test")
            return real(self)

        patch.setattr(engine.Engine, "_end_epoch", stop)
        assert prepared.train(out, method="standard") == 75
    newest = prepared.checkpoints(out).newest
    content = newest.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncated": content[:middle],
        "flipped bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
    }
    newest.unlink() if damage == "missing" else newest.write_bytes(damaged[damage])
    assert prepared.train(out, method="standard") == 0
    assert outcome(out) == undisturbed["standard"]
    assert damage == "missing" or "is damaged; falling back" in caplog.text


@pytest.mark.long
def test_another_recipe_starts_anew_and_keeps_the_first_ones_checkpoint(tiny, tmp_path, monkeypatch):
    """Trying epochs: 3 in the midst of a run of 4 must not cost the run of 4."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine.Engine, "_end_epoch", lambda self: (_ for _ in ()).throw(Interrupted("stopped")))
        patch.setattr(engine, "CHECKPOINT_EVERY_SECONDS", 0.0)
        assert tiny.train(out) == 75
    kept = tiny.checkpoints(out)
    tiny.change(epochs=3)
    assert tiny.train(out) == 0
    fresh = tmp_path / "fresh"
    assert tiny.train(fresh) == 0
    assert outcome(out) == outcome(fresh)
    assert kept.load()["batch"] == 13


@pytest.mark.long
def test_a_checkpoint_of_another_format_is_not_resumed(prepared, undisturbed, tmp_path, monkeypatch, caplog):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine, "CHECKPOINT_EVERY_SECONDS", 0.0)
        patch.setattr(engine, "CHECKPOINT_FORMAT", 0)
        patch.setattr(engine.Engine, "_end_epoch", lambda self: (_ for _ in ()).throw(Interrupted("stopped")))
        assert prepared.train(out) == 75
    assert prepared.train(out) == 0
    assert "an older moat; starting anew" in caplog.text
    assert outcome(out) == undisturbed["pgd-at"]


def never(*_):
    raise AssertionError("trained again")


@pytest.mark.brief(keep=lambda case: case["lost"] == "everything")
@pytest.mark.parametrize("lost", ["nothing", "model.safetensors", "run.json", "everything", "damaged"])
def test_a_finished_run_is_not_trained_again(prepared, undisturbed, tmp_path, monkeypatch, lost):
    """Also where Snakemake has deleted the outputs, because it was killed before it took note of them."""
    out = tmp_path / "run"
    assert prepared.train(out, method="standard") == 0
    for name in ("model.safetensors", "last.safetensors", "history.csv", "run.json"):
        if lost in (name, "everything"):
            (out / name).unlink()
    if lost == "damaged":
        write_bytes(out / "model.safetensors", b"x")
    monkeypatch.setattr(engine.Engine, "_train_epoch", never)
    assert prepared.train(out, method="standard") == 0
    assert outcome(out) == undisturbed["standard"]


@pytest.mark.long
@pytest.mark.brief(keep=lambda case: case["size"] == 700)
@pytest.mark.parametrize("size", [0, 700])
def test_a_finished_run_whose_record_was_cut_short_is_trained_again(prepared, undisturbed, tmp_path, caplog, size):
    """In place: the copy that is kept is a hard link. Snakemake deletes the other one before it runs the job again."""
    out = tmp_path / "run"
    assert prepared.train(out) == 0
    os.truncate(out / "run.json", size)
    (out / "run.json").unlink()
    assert prepared.train(out) == 0
    assert "forgotten, and trained again" in caplog.text
    assert outcome(out) == undisturbed["pgd-at"]


@pytest.mark.long
def test_a_finished_run_of_other_sources_is_trained_again(prepared, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("moat.provenance.staleness.hash_parts", lambda *_, **__: {"engine": "0" * 16})
        assert prepared.train(out) == 0
    assert prepared.train(out) == 0
    assert read_json(out / "run.json")["sources"].keys() == {"nets", "method", "attacks", "engine"}


@pytest.mark.long
def test_two_processes_on_one_run_wait_for_each_other(prepared, undisturbed, tmp_path):
    out = tmp_path / "run"
    first, second = prepared.start(out), prepared.start(out)
    errors = [process.communicate(timeout=180)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert sum("waiting for it" in text for text in errors) == 1
    assert sum("this run is finished already" in text for text in errors) == 1
    assert outcome(out) == undisturbed["pgd-at"]


def test_checkpoints_keep_tensors_and_containers_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    state = {"weights": torch.randn(3, generator=torch.Generator().manual_seed(0)), "history": [{"epoch": 1}], "x": 0.1}
    checkpoints.save(state)
    loaded = checkpoints.load()
    assert torch.equal(loaded.pop("weights"), state.pop("weights"))
    assert loaded == state


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save({"epoch": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.hashlib, "sha256", full)
    with pytest.raises(Exception, match="no space left on the device"):
        checkpoints.save({"epoch": 2})
    monkeypatch.undo()
    assert checkpoints.load() == {"epoch": 1}


@pytest.mark.parametrize("place", ["/proc/work", "{out}-file/work"])
def test_a_folder_that_cannot_hold_checkpoints_is_named_with_the_option_for_another(prepared, tmp_path, capsys, place):
    out = tmp_path / "run"
    Path(f"{out}-file").write_text("")
    work = place.format(out=out)
    arguments = prepared.arguments(out)
    arguments[arguments.index("--work") + 1] = work
    assert main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"{work}/" in said[0] and "--work names another folder" in said[0]
