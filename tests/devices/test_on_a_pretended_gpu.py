"""Methods, runs and batches on a GPU, as far as a machine without one can tell: on a pretended one, against the CPU."""

from unittest import mock

import pandas as pd
import pytest
import torch
from tiny_methods import ARCH, Tiny, begin, distinct_recipes, set_rates
from two_devices import ON_CPU, ON_GPU, both, on

import moat.methods
from moat.base.errors import Interrupted
from moat.data import datasets
from moat.data.augmentation import auto_augment
from moat.data.batches import Batches
from moat.data.extra_images import Mixture
from moat.methods.base import Step
from moat.training import engine, runs
from moat.training.models import autocast, load_model, model_options
from moat.training.run_record import read_run


# -- methods -----------------------------------------------------------------
def made(tiny: Tiny, name: str, device: torch.device, precision: str = "float32"):
    """A method as a training on the device begins it."""
    resolved, data = tiny.resolved(name), datasets.load(tiny.data)
    cls = moat.methods.get(resolved["class"])
    recipe = {**resolved["recipe"], "precision": precision}
    torch.manual_seed(0)
    model = cls.build(arch=ARCH, num_classes=10, options=model_options(resolved["model"], data))
    model = model.to(device, memory_format=torch.channels_last)
    method = cls(model, recipe, autocast=autocast(recipe, device))
    method.initialize(tiny.initialize_from(name))
    return method


# Another recipe for the code and the net of a method that is tried.
OTHER_RECIPES = {"mocse-iso", "mocse-at-iso", "mocse-augmented", "dramoe-norges", "dramoe-lambda1", "dwf-expert-benign"}
# Methods that train otherwise in their last epoch than in the first.
BY_EPOCH = ("fat", "hybrid", "pgd-at-sparse", "soe")


def updated(tiny: Tiny, name: str, device: torch.device, precision: str = "float32"):
    """The metrics of an update in each kind of epoch, and the weights after them."""
    method, (x, y) = made(tiny, name, device, precision), tiny.batch()
    metrics = []
    for epoch in (0, 1) if name in BY_EPOCH else (1,):
        begin(method, epoch)
        step = Step(0, epoch, 2, 0, 4, device)
        set_rates(method, step)
        found = method.update(x[:8].to(device), y[:8].to(device), step)
        assert {value.device for value in found.values()} == {device}
        metrics.append({key: float(value) for key, value in found.items()})
    return metrics, {key: value.cpu() for key, value in method.model.state_dict().items()}


@pytest.mark.brief(keep=lambda case: case["name"] in ("pgd-at", "dramoe"))
@pytest.mark.parametrize("name", sorted({*distinct_recipes()} - OTHER_RECIPES))
def test_a_method_trains_as_on_the_cpu(tiny, name):
    tiny.initialize_from(name)
    on_cpu, on_gpu = both(lambda device: updated(tiny, name, device))
    torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.brief(keep=lambda case: case["name"] == "pgd-at")
@pytest.mark.parametrize("name", ["pgd-at", "dramoe"])
def test_a_method_trains_in_bf16(tiny, name):
    """As recipes do that leave the precision to the device. Autocast's casts are the pretence's."""
    tiny.initialize_from(name)
    with on(ON_GPU):
        low, _ = updated(tiny, name, ON_GPU, "auto")
        full, _ = updated(tiny, name, ON_GPU, "float32")
    assert low != full
    assert low[0]["loss"] == pytest.approx(full[0]["loss"], rel=0.05)


@pytest.mark.parametrize(("has_it", "precision"), [(True, torch.bfloat16), (False, None)])
def test_bf16_is_chosen_where_the_gpu_has_it(has_it, precision):
    """A GPU before Ampere has it by emulation only, which is slower than float32."""
    with (
        on(ON_GPU),
        mock.patch.object(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_it or including_emulation
        ),
        autocast({"precision": "auto"}, ON_GPU)(),
    ):
        assert (torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None) == precision


# -- runs --------------------------------------------------------------------
def run(tiny: Tiny, name: str, out, device: torch.device, **recipe) -> runs.Run:
    resolved = tiny.resolved(name)
    resolved["recipe"] = {**resolved["recipe"], "precision": "float32", **recipe}
    options = {"data": tiny.data, "initialize_from": tiny.initialize_from(name), "device": device, "root": tiny.root}
    return runs.Run(resolved=resolved, out=out, work=out.with_name("work"), **options)


def cut_after_a_batch(training: runs.Run, epoch: int) -> None:
    def stop(self, step):
        real(self, step)
        if (step.epoch, step.batch) == (epoch, 1):
            self.save()
            raise Interrupted("stopped by the test")

    real = engine.Engine._set_learning_rates
    with mock.patch.object(engine.Engine, "_set_learning_rates", stop), pytest.raises(Interrupted):
        training.train()


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), [(ON_CPU, ON_GPU), (ON_GPU, ON_CPU)])
def test_a_run_goes_on_on_the_other_device(tiny, tmp_path, first, then):
    """Cut in its second epoch, with a moving average and a best state in the checkpoint."""
    ends = {}
    with on(ON_CPU):
        run(tiny, "pgd-at", tmp_path / "whole" / "run", ON_CPU, ema=0.9).train()
    with on(first):
        cut_after_a_batch(run(tiny, "pgd-at", tmp_path / "cut" / "run", first, ema=0.9), epoch=1)
    with on(then):
        run(tiny, "pgd-at", tmp_path / "cut" / "run", then, ema=0.9).train()
    for name in ("whole", "cut"):
        folder = tmp_path / name / "run"
        history = pd.read_csv(folder / "history.csv").drop(columns=["train_seconds", "seconds"])
        ends[name] = history.to_dict("list"), load_model(folder, "last").state_dict()
    torch.testing.assert_close(ends["cut"], ends["whole"])


@pytest.mark.long
def test_a_whole_run(tiny, tmp_path):
    """In the precision that the device chooses. Its record says where; its model is loaded to either device."""
    device = torch.device("cuda")
    with on(ON_GPU):
        run(tiny, "dramoe", tmp_path / "run", device, epochs=1, precision="auto").train()
        record = read_run(tmp_path / "run")
        assert record["device"] == "a pretended GPU" and record["gpu_seconds"] > 0
        x, _ = tiny.batch()
        here, there = (load_model(tmp_path / "run", "last", place) for place in (ON_CPU, device))
        assert {value.device for value in there.state_dict().values()} == {ON_GPU}
        torch.testing.assert_close(there(x.cuda()).cpu(), here(x), rtol=1e-4, atol=1e-4)


# -- data --------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"order": Mixture(48, 16, 0.3)}, {"augment": auto_augment}])
def test_batches_are_the_cpus(tiny, options):
    split = datasets.load(tiny.data).splits["train"]
    rgb = split.images.expand(-1, -1, -1, 3)

    def batches(device):
        made = Batches(rgb, split.labels, batch_size=24, seed=1, device=device, crop_padding=2, flip=True, **options)
        return [(x.cpu(), y.cpu()) for x, y in made.epoch(3)]

    torch.testing.assert_close(*both(batches))
