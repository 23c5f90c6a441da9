"""The experts of an ensemble start from different random weights, and so do those of its other seeds."""

from itertools import pairwise

import pytest
import torch
from tiny_methods import ROOT

import moat.methods
from moat.config.grid import Run as GridRun
from moat.config.grid import initial_runs
from moat.config.project import Project
from moat.config.recipes import deviations
from moat.methods._pretrained import PretrainedExperts
from moat.models.moe import ChannelExpertConv2d
from moat.models.moe.blockmoe import BlockMoe
from moat.models.moe.jtd_moe import DualMoe
from moat.training import runs

PROJECT = Project(ROOT)
SEEDS = range(5)
# What a method's experts are finished runs of, and what has its experts in itself.
ENSEMBLES = [name for name in PROJECT.names("methods") if len(PROJECT.method(name).get("initialize_from", ())) > 1]
WITH_EXPERTS = [
    *("soe", "mocse", "mocse-iso", "advmoe", "dramoe", "pgd-at-moe", "rt-er", "jtd-moe", "blockmoe-ent"),
]


def starts(scale, method, seed):
    """The runs that an ensemble of a seed starts from."""
    return list(initial_runs(PROJECT, scale, GridRun("cifar10", "resnet18", method, seed)).values())


def share_seeds(scale, method):
    found = [run.seed for seed in SEEDS for run in starts(scale, method, seed)]
    return len(set(found)) < len(found)


def test_every_method_with_experts_is_tested():
    found = {name: moat.methods.get(PROJECT.method(name)["class"]) for name in PROJECT.names("methods")}
    assert {name for name, kind in found.items() if issubclass(kind, PretrainedExperts)} == set(ENSEMBLES)
    tested = {found[name].MIXTURE for name in (*ENSEMBLES, *WITH_EXPERTS)}
    assert {kind.MIXTURE for kind in found.values()} - {None} == tested


@pytest.mark.parametrize("method", ENSEMBLES)
@pytest.mark.parametrize("scale", PROJECT.names("scales"))
def test_the_runs_of_all_its_seeds_have_seeds_of_their_own(scale, method):
    """Where a scale saves them, it says so to its readers and in the record of every run."""
    shared = share_seeds(scale, method)
    if scale == "paper":
        assert not shared
        assert len(starts(scale, method, 0)) == PROJECT.method(method).get("model", {}).get("experts", 2)
    said = deviations(PROJECT, scale, dataset="cifar10", method=method).get("experts", "")
    assert ("trained with the seed of the mixture" in said) == shared
    assert not shared or "share one seed" in PROJECT.scale(scale)["description"]


def initial(tiny, method, seed) -> torch.nn.Module:
    """The model of a run before its first step, as `moat train` makes it."""
    folder = tiny.root / "initial"
    run = runs.Run(tiny.resolved(method, seed), tiny.data, folder, folder, root=tiny.root)
    return run._method(run._data()).model


def random_weights(net) -> dict[str, torch.Tensor]:
    """Everything that is drawn: convolutions and linear layers, not the constants of batch norm."""
    return {name: value.detach() for name, value in net.named_parameters() if value.ndim > 1}


def count_equal(experts) -> dict[str, int]:
    """Name of a weight -> how many pairs of experts, if any, have the same."""
    equal = {}
    for name in experts[0]:
        found = sorted(each[name].numpy().tobytes() for each in experts)
        equal[name] = sum(a == b for a, b in pairwise(found))
    return {name: count for name, count in equal.items() if count}


def own_experts(model):
    """The experts that a model has in itself: full nets, those of two mixtures, or the blocks of a layer."""
    if isinstance(model, DualMoe):
        return [*model.standard.experts, *model.robust.experts]
    return model.layers[0] if isinstance(model, BlockMoe) else model.experts


@pytest.mark.brief(keep=lambda case: case["method"] == "dwf")
@pytest.mark.parametrize("method", [name for name in ENSEMBLES if not name.endswith(("-frozen", "-unified"))])
def test_no_two_experts_from_finished_runs_start_alike(tiny, method):
    members = [run for seed in SEEDS for run in starts("paper", method, seed)]
    experts = [random_weights(initial(tiny, run.method, run.seed)) for run in members]
    assert len(experts) == len(SEEDS) * PROJECT.method(method).get("model", {}).get("experts", 2)
    assert count_equal(experts) == {}


def test_experts_of_one_seed_would_start_alike(tiny):
    """What distinct seeds are for: the weights of a run depend on its seed, not on its method."""
    experts = [random_weights(initial(tiny, f"dwf-expert-{kind}", 3)) for kind in ("benign", "fgsm", "pgd")]
    assert count_equal(experts) == dict.fromkeys(experts[0], 2)


@pytest.mark.brief(keep=lambda case: case["method"] != "mocse-iso")
@pytest.mark.parametrize("method", WITH_EXPERTS)
def test_no_two_experts_of_one_model_start_alike(tiny, method):
    experts = []
    for seed in SEEDS:
        model = initial(tiny, method, seed)
        if hasattr(model, "trunk"):
            layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, ChannelExpertConv2d)}
            experts += [
                {name: layer.weight.detach().chunk(model.experts)[expert] for name, layer in layers.items()}
                for expert in range(model.experts)
            ]
        else:
            experts += map(random_weights, own_experts(model))
    assert len(experts) >= 2 * len(SEEDS) and experts[0]
    assert count_equal(experts) == {}
