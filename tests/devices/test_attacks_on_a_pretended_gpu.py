"""Attacks, evaluation, checks and probes on a pretended GPU, against the CPU; and where the host waits for the GPU."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from two_devices import ON_CPU, ON_GPU, both, on

from moat.attacks import for_attack, resolve
from moat.attacks.autoattack import stages
from moat.attacks.parts import early_stopped, objectives, steps
from moat.config.project import Project
from moat.data import datasets
from moat.data.seeding import generator
from moat.evaluation import evaluate, probes, verify
from moat.evaluation.evidence import Budget
from moat.evaluation.scoring import images
from moat.kernels import packed
from moat.methods import losses
from moat.training.models import load_model

PROJECT = Project(Path(__file__).parents[2])
ALL = {**PROJECT.attacks(), "pgd10_det": PROJECT.attack("pgd10_det", where="this test")}
SHORT = {"steps": 2, "restarts": 2, "n_queries": 3, "n_iter": 2, "n_targets": 1, "targets": 2}
PGD = {"attack": "pgd", "eps": "8/255", "step_size": "2/255", "steps": 2}
AA = {**ALL["aa"], **{key: SHORT[key] for key in ("n_queries", "n_iter", "n_targets")}}
# The settings of config/attacks.yaml, one of each kind, and what else a family can do.
SETTINGS = {name: ALL[name] for name in ("clean", "fgsm", "bim", "pgd10", "pgd100_ms", "cw_inf", "cw_l2", "square")}
SETTINGS |= {
    "eot": {**PGD, "eot": 2},
    "kl": {**PGD, "loss": "kl", "random_start": "normal"},
    "cw_inf, the family": {"attack": "cw_inf", "eps": 0.03, "step_size": 0.01, "steps": 2},
    "targeted": ALL["pgd50_targeted"],
    "targeted at random": {**ALL["pgd50_targeted"], "target": "random"},
    "aa": AA,
    "aa bf16": {**AA, "precision": "bf16"},
    "fog": {"attack": "corruption", "corruption": "fog", "severity": 3},
}
MIXED = {name: ALL[name] for name in ("square", "pgd10_det")}
MIXED["moe_adaptive"] = {**ALL["moe_adaptive"], "steps": 1}
# Steps, a search, AutoAttack, a picture that is drawn, and a router.
FEW = {*(("pgd-at", name) for name in ("pgd10", "square", "aa", "fog", "cw_l2")), ("dramoe", "pgd10_det")}


def short(setting):
    return {key: min(value, SHORT[key]) if key in SHORT else value for key, value in setting.items()}


def examples(tiny, method, count=6):
    """Test images, uint8, with what the model says to all but the first of them: attacks have something to break."""
    split, model = datasets.load(tiny.data).splits["test"], load_model(tiny.run(method))
    x = split.images[:count]
    with torch.no_grad():
        y = model(images(x, ON_CPU)).argmax(1)
    return x, torch.cat([(y[:1] + 1) % 10, y[1:]])


def loaded(tiny, method, device, count=6):
    """A model and examples on the device."""
    x, y = examples(tiny, method, count)
    return load_model(tiny.run(method), device=device), images(x, device), y.to(device)


def attacked(tiny, method: str, name: str, device, draws):
    """What an attack returns on the copy that it is fastest on."""
    attack = resolve(name, short((SETTINGS | MIXED)[name]))
    model, x, y = loaded(tiny, method, device)
    torch.manual_seed(0)
    found = attack(for_attack(model, x), x, y, draws(device))
    assert found.device == x.device and not found.requires_grad
    return found.cpu()


# As an evaluation has them, as a training has them, and none.
DRAWS = {
    "one each": lambda device: [generator(0, 0, "test", batch=index) for index in range(6)],
    "one": lambda device: generator(0, 0, "test", device=device),
    "none": lambda device: None,
}


@pytest.mark.brief(keep=lambda case: case["draws"] == "one each" and (case["method"], case["name"]) in FEW)
@pytest.mark.parametrize(
    ("method", "name", "draws"),
    [
        *(("pgd-at", name, "one each") for name in SETTINGS),
        *(
            ("pgd-at", name, draws)
            for name in ("pgd10", "targeted at random", "square", "fog")
            for draws in ("one", "none")
        ),
        *(("dramoe", name, "one each") for name in MIXED),
        ("dwf", "moe_adaptive", "one each"),
    ],
)
def test_an_attack_finds_what_it_finds_on_the_cpu(tiny, method, name, draws):
    tiny.run(method)
    on_cpu, on_gpu = both(lambda device: attacked(tiny, method, name, device, DRAWS[draws]))
    torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.brief(keep=lambda case: case["method"] == "pgd-at")
@pytest.mark.parametrize("method", ["pgd-at", "dramoe", "pgd-at-sparse"])
def test_a_copy_in_low_precision(tiny, method):
    """Its convolutions compute in bf16, as they do on the CPU."""
    tiny.run(method)

    def gradient(device):
        model, x, y = loaded(tiny, method, device)
        return steps.input_gradient(for_attack(model, x, dtype=torch.bfloat16), x, objectives.cross_entropy(y)).cpu()

    on_cpu, on_gpu = both(gradient)
    torch.testing.assert_close(on_gpu, on_cpu)


def test_a_packed_convolution_is_pytorchs_there():
    """One of so many weights that on a CPU it would be worth packing, and one for the compiled kernel."""
    torch.manual_seed(0)
    for made in (nn.Conv2d(128, 128, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1)):
        x = torch.rand(2, made.in_channels, 8, 8)
        on_cpu = made(x)
        with on(ON_GPU):
            there = made.cuda().requires_grad_(False)
            assert not packed.packing_is_faster(there)
            torch.testing.assert_close(packed.PackedConv2d.of(there)(x.cuda()).cpu(), on_cpu)


# -- where the host waits for the GPU ----------------------------------------
def friendly(model, x, y, count):
    def loss(x_adv):
        logits = model(x_adv)
        return losses.kl_per_example(logits.detach() + 1, logits), logits

    options = {"eps": 0.03, "step_size": 0.01, "tau": 1, "noise": 0.01}
    draws = generator(0, 0, "test", device=x.device)
    return early_stopped.early_stopped_pgd(model, x, y, steps=count, ascend_loss=loss, generator=draws, **options)


def named(name: str):
    def attack(model, x, y, count):
        return resolve(name, {**(SETTINGS | MIXED)[name], "steps": count})(model, x, y)

    return attack


def component(name: str):
    """One of AutoAttack's, in a ball so small that nothing is broken: with that it would wait for what to drop."""

    def attack(model, x, y, count):
        options = {"n_iter": count, "n_queries": count, "n_targets": 1, "seed": 0, "eps": 1e-6, "batch_size": 6}
        y = model(x).argmax(1)
        return stages(model, version="standard", **options)[name](model, x, y, None)

    return attack


ATTACKS = {
    **{
        name: named(name)
        for name in ("bim", "pgd10", "cw_inf", "kl", "cw_inf, the family", "cw_l2", "eot", "pgd10_det")
    },
    **{name: component(name) for name in ("apgd-ce", "apgd-t", "square")},
    "friendly": friendly,
}


@pytest.mark.brief(
    keep=lambda case: case["method"] == "pgd-at" and case["name"] in ("pgd10", "cw_inf", "kl", "apgd-ce", "square")
)
@pytest.mark.parametrize(
    ("method", "name", "per_step"),
    [
        *(("pgd-at", name, 0) for name in ("bim", "pgd10", "cw_inf", "kl", "cw_inf, the family", "cw_l2", "friendly")),
        ("pgd-at-sparse", "pgd10", 0),
        ("dwf", "pgd10", 0),
        # The sizes of the experts' groups, once for each forward pass.
        ("dramoe", "pgd10", 1),
        ("dramoe", "eot", 2),
        ("dramoe", "pgd10_det", 1),
        # Is anything broken?
        ("pgd-at", "apgd-ce", 1),
        # And the package's loss brings its index tensors from the CPU, forwards and backwards.
        ("pgd-at", "apgd-t", 5),
        # Who is broken, whose margin is smaller; and what is drawn for each square is sent there.
        ("pgd-at", "square", 5),
    ],
)
def test_how_often_a_step_waits_for_the_gpu(tiny, method, name, per_step):
    tiny.run(method)
    counted = []
    with on(ON_GPU) as waits:
        model, x, y = loaded(tiny, method, ON_GPU)
        copied = for_attack(model, x)
        for count in (2, 4):
            waits.clear()
            ATTACKS[name](copied, x, y, count)
            counted.append(waits.total())
    assert (counted[1] - counted[0]) / 2 == per_step, dict(waits)


# -- evaluation, checks, probes -----------------------------------------------
EVALUATED = {name: short(ALL[name]) for name in ("clean", "fgsm", "pgd10", "square", "fgsm_e03_norm", "pgd10_clip01")}
EVALUATED |= {name: short(ALL[name]) for name in ("pgd10_tiny", "fgsm_e03_std")} | {"aa": AA, "fog": SETTINGS["fog"]}
OF_ROUTERS = {name: short(ALL[name]) for name in ("clean", "pgd10_advmoe", "pgd10_det")}


@pytest.mark.brief(keep=lambda case: case["where"] == "floats on the GPU")
@pytest.mark.parametrize(
    ("method", "settings", "where"),
    [
        ("pgd-at", EVALUATED, "bytes on the CPU"),
        ("pgd-at", {"pgd10": PGD}, "floats on the GPU"),
        ("dramoe", OF_ROUTERS, "bytes on the CPU"),
    ],
)
def test_an_evaluation(tiny, method, settings, where):
    """All columns, also those of a worst case, of stages and of routes."""
    tiny.run(method)

    def rows(device):
        model, x, y = loaded(tiny, method, device)
        if where == "bytes on the CPU":
            x, y = examples(tiny, method)
        return evaluate(model, x, y, settings, batch_size=4, worst_case={"worst": {"again": PGD}})

    pd.testing.assert_frame_equal(*reversed(both(rows)))


@pytest.mark.long
@pytest.mark.parametrize("method", ["pgd-at", "dramoe"])
def test_the_checks(tiny, method):
    tiny.run(method)

    def report(device):
        model, x, y = loaded(tiny, method, device)
        report = verify(model, x, y, budget=Budget(steps=1, queries=3), batch_size=6, transfer_from=model)
        return report.to_dict()

    on_cpu, on_gpu = both(report)
    assert on_gpu == on_cpu


@pytest.mark.brief(
    keep=lambda case: (
        case["method"] == "pgd-at-sparse" or case["probe"] == {"probe": "heatmaps"} and case["method"] == "pgd-at"
    )
)
@pytest.mark.parametrize(
    ("method", "probe"),
    [
        ("pgd-at", {"probe": "features"}),
        ("pgd-at", {"probe": "heatmaps"}),
        ("dwf", {"probe": "heatmaps"}),
        ("dramoe", {"probe": "routing"}),
        ("pgd-at-sparse", {"probe": "weights", "layer": 2}),
    ],
)
def test_a_probe(tiny, method, probe):
    tiny.run(method)
    x, y = examples(tiny, method, 3)

    def arrays(device):
        setting = {} if probe["probe"] == "weights" else {"setting": "pgd"}
        looked_at = probes.Images(x, y, range(3), 2, "pgd", resolve("pgd", PGD))
        return probes.collect("test", {**probe, **setting}, load_model(tiny.run(method), device=device), looked_at)

    on_cpu, on_gpu = both(arrays)
    assert on_cpu.keys() == on_gpu.keys()
    for name, array in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], array, rtol=1e-5, atol=1e-6)
