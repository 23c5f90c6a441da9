"""benchmarks/gpu_run.py shares the time, stops in order, and goes on. On a CPU, with nets as small as can be."""

import time

import pytest
import yaml

import gpu_run
from moat.base.errors import Interrupted, MoatError
from moat.base.files import read_json
from moat.config.recipes import resolve_recipe

TINY = ["--dataset", "digits", "--width", "0.0625", "--images", "8", "--attacked", "2", "--batch-size", "8"]
QUICK = ["--methods", "standard,advmoe", "--no-dwf", "--no-benchmark", "--device", "cpu"]


def run_in(folder, *, seconds=100.0, options=()):
    places = ["--out", str(folder / "out"), "--work", str(folder / "work")]
    arguments = gpu_run.parser().parse_args([*places, *TINY, *QUICK, *options])
    return gpu_run.GpuRun(arguments, gpu_run.Clock(seconds))


@pytest.mark.parametrize(
    ("at", "weights", "expected"),
    [(0, [1, 3], 25), (60, [1, 3], 10), (60, [3], 40), (200, [1, 1], 0)],
    ids=["at the start", "later", "the last part", "too late"],
)
def test_a_part_gets_its_share_of_what_is_left(at, weights, expected):
    times = iter([0.0, at])
    assert gpu_run.Clock(100, now=lambda: next(times)).share(weights) == expected


def test_what_is_stopped_has_its_state_and_goes_on(tmp_path, monkeypatch):
    """A command that would never end is stopped when its time is over; what is done is not done again."""
    run, calls = run_in(tmp_path), []

    def endless(words):
        calls.append(words[2])
        if len(calls) == 1:
            while True:
                time.sleep(0.01)
        return 0

    monkeypatch.setattr(gpu_run.cli, "main", endless)
    assert run.command("train", seconds=0.2) == Interrupted.exit_code
    assert run.command("evaluate", seconds=100) == 0
    assert [each["exit_code"] for each in run.log] == [75, 0] and calls == ["train", "evaluate"]


def test_somebody_elses_stop_ends_it(tmp_path, monkeypatch):
    def stopped(words):
        raise SystemExit(Interrupted.exit_code)

    monkeypatch.setattr(gpu_run.cli, "main", stopped)
    with pytest.raises(gpu_run.Stopped):
        run_in(tmp_path).command("train", seconds=100)


def test_parts_that_fail_or_lack_something_stop_no_other(tmp_path, monkeypatch):
    run, done = run_in(tmp_path), []

    def fail(seconds):
        raise MoatError("no")

    parts = [
        gpu_run.Part("fails", 1, lambda: False, fail),
        gpu_run.Part("lacks", 1, lambda: "lacks" in done, lambda seconds: done.append("lacks"), (tmp_path / "x",)),
        gpu_run.Part("works", 1, lambda: "works" in done, lambda seconds: done.append("works")),
    ]
    monkeypatch.setattr(run, "parts", lambda: parts)
    assert run.go() == Interrupted.exit_code
    assert done == ["works"]
    assert read_json(tmp_path / "out/summary.json")["left"] == ["fails", "lacks"]


def test_epochs_are_chosen_once_and_are_the_recipes(tmp_path, monkeypatch):
    run = run_in(tmp_path)
    rate = {"images_per_second": 1437.0}
    monkeypatch.setattr(gpu_run.train, "rows_of", lambda *arguments, **options: [rate])
    run.calibrate("advmoe", 10.0)
    again = run_in(tmp_path)
    for each in (run, again):
        epochs = resolve_recipe(each.project, gpu_run.SCALE, "advmoe")["epochs"]
        assert epochs == each.epochs["advmoe"]["epochs"] and 8 <= epochs <= 9
    assert resolve_recipe(again.project, gpu_run.SCALE, "standard")["epochs"] == 1


def test_the_parts_are_in_the_order_of_what_needs_what(tmp_path):
    names = [part.name for part in run_in(tmp_path, options=["--methods", "standard,dramoe"]).parts()]
    assert names[:3] == ["data", "train standard seed 0", "train dramoe seed 0"]
    assert names[3] == "evaluate standard advmoe" and names[-1] == "verify dramoe"
    arguments = [option for option in QUICK if option != "--no-dwf"]
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    whole = gpu_run.GpuRun(gpu_run.parser().parse_args([*places, *TINY, *arguments]), gpu_run.Clock(100))
    names = [part.name for part in whole.parts()]
    experts = [place for place, name in enumerate(names) if name.startswith("train dwf-expert")]
    assert len(experts) == 9 and names.index("train dwf-unified seed 0") == experts[-1] + 1


@pytest.mark.long
def test_a_whole_run_on_a_cpu(tmp_path):
    """Trains, attacks and checks; what comes back is small; the second call finds everything done."""
    options = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *TINY, *QUICK, "--minutes", "20"]
    assert gpu_run.main([*options, "--methods", "standard"]) == 0
    run = tmp_path / "out/runs/resnet18/standard/seed0"
    assert {path.name for path in run.iterdir()} >= {"run.json", "history.csv", "advmoe.parquet", "checks.json"}
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    scale = yaml.safe_load((tmp_path / "out/gpu-run.yaml").read_text())
    assert scale["comparable"] is False
    before = (tmp_path / "work/runs/resnet18/standard/seed0/run.json").read_bytes()
    assert gpu_run.main([*options, "--methods", "standard"]) == 0
    assert (tmp_path / "work/runs/resnet18/standard/seed0/run.json").read_bytes() == before
