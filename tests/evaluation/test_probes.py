"""Probes: what they take from tiny models against independent definitions, and ``moat probe`` on a trained run."""

import json
from pathlib import Path

import pytest
import safetensors.numpy
import torch
from torch.nn import functional as F

from moat.attacks import resolve
from moat.base.errors import ConfigError
from moat.commands.cli import main
from moat.evaluation import evaluate, probes
from moat.evaluation.probes.heatmaps import grad_cam
from moat.models import nets
from moat.models.moe import build_mixture, build_moe_cnn
from moat.models.nets.masked import mask_filters
from moat.provenance.staleness import stale

PGD = {"attack": "pgd", "eps": "16/255", "step_size": "4/255", "steps": 3}


def tiny(kind: str, **options):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": 16, **options}
    if kind == "dense":
        model = nets.build("resnet18", 4, **options)
    elif kind == "masked":
        model = mask_filters(nets.build("resnet18", 4, **options), 0.5)
    elif kind == "moe":
        model = build_moe_cnn("resnet18", 4, **options)
    else:
        model = build_mixture(kind, "resnet18", 4, **options)
    return model.eval()


def images(batch_size: int = 4, count: int = 6) -> probes.Images:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=drawn)
    y = torch.randint(0, 4, (count,), generator=drawn)
    return probes.Images(x, y, [10 * i for i in range(count)], batch_size, "pgd3", resolve("pgd3", PGD))


def pixels(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("kind", "layer", "expected"),
    [
        ("dense", 1, lambda net: net.trunk.stem[0].weight),
        ("dense", 2, lambda net: net.trunk.blocks[0].conv1.weight),
        ("dense", "trunk.blocks.7.conv2", lambda net: net.trunk.blocks[7].conv2.weight),
        ("dense", "head", lambda net: net.head.weight),
        ("masked", 2, lambda net: net.trunk.blocks[0].conv1.effective_weight()),
        ("moe", 2, lambda net: net.trunk.blocks[0].conv1.weight),
        ("sramoe", 2, lambda net: net.experts[0].trunk.blocks[0].conv1.weight),
    ],
)
def test_weights_are_those_of_the_layer(kind, layer, expected):
    model = tiny(kind)
    found = probes.collect("w", {"probe": "weights", "layer": layer}, model, images())["weights"]
    assert torch.equal(torch.from_numpy(found), expected(model).detach())


@pytest.mark.brief(keep=lambda case: case["kind"] in ("moe", "sramoe"))
@pytest.mark.parametrize("kind", ["moe", "sramoe", "soe"])
def test_routing_is_what_the_router_says_of_clean_and_attacked_images(kind):
    model, given = tiny(kind), images()
    found = probes.collect("r", {"probe": "routing", "setting": "pgd3"}, model, given)
    with torch.no_grad():
        expected = model.route_logits(pixels(given.x))
    torch.testing.assert_close(torch.from_numpy(found["clean"]), expected, atol=1e-4, rtol=1e-4)
    assert found["attacked"].shape == found["clean"].shape == (6, expected.shape[1])
    assert not (found["attacked"] == found["clean"]).all()
    assert found["label"].tolist() == given.y.tolist()


@pytest.mark.brief(keep=lambda case: (case["batch_size"], case["kind"]) == (4, "dense"))
@pytest.mark.parametrize("kind", ["dense", "moe"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_attacked_images_are_those_of_the_evaluation_whatever_the_batch(kind, batch_size):
    model, given = tiny(kind), images(batch_size)
    rows = evaluate(model, given.x, given.y, {"pgd3": PGD}, batch_size=6, indices=given.indices)
    found = probes.collect("f", {"probe": "features", "setting": "pgd3"}, model, given)
    assert found["attacked_predicted"].tolist() == rows["predicted"].tolist()
    maps = probes.collect("h", {"probe": "heatmaps", "setting": "pgd3"}, model, given)
    assert maps["attacked_predicted"].tolist() == rows["predicted"].tolist()
    distance = abs(maps["attacked"].astype(int) - given.x.numpy().astype(int))
    assert (maps["clean"] == given.x.numpy()).all() and 8 <= distance.max() <= 16


@pytest.mark.brief(keep=lambda case: case["kind"] in ("dense", "moe"))
@pytest.mark.parametrize(("kind", "width"), [("dense", 32), ("moe", 16), ("sramoe", 64), ("soe", 96)])
def test_features_lead_to_the_prediction(kind, width):
    model = tiny(kind)
    found = probes.collect("f", {"probe": "features", "setting": "pgd3"}, model, images())
    assert found["clean"].shape == found["attacked"].shape == (6, width)
    if hasattr(model, "head"):
        for name in ("clean", "attacked"):
            logits = model.head(torch.from_numpy(found[name]))
            assert logits.argmax(1).tolist() == found[f"{name}_predicted"].tolist()


def expected_heat(head: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Behind a global mean the gradient of a logit is its row of the head: Grad-CAM is CAM (Zhou et al., 2016)."""
    return F.interpolate((head[None, :, None, None] * maps).sum(1, keepdim=True), (16, 16), mode="bilinear")[0, 0]


def last_maps(net, x: torch.Tensor) -> torch.Tensor:
    return net.trunk.blocks(net.trunk.stem(net.normalize(x)))


@pytest.mark.parametrize("kind", ["dense", "sramoe"])
def test_heat_maps_are_class_activation_maps(kind):
    model = tiny(kind)
    for x in pixels(images().x):
        heat, predicted = grad_cam(model, x[None])
        with torch.no_grad():
            assert predicted == model(x[None])[0].argmax()
            if kind == "dense":
                expected = expected_heat(model.head.weight[predicted], last_maps(model, x[None]))
            else:
                check = F.softmax(model.route_logits(x[None]), 1)[0]
                heats = [expected_heat(net.head.weight[predicted], last_maps(net, x[None])) for net in model.experts]
                expected = sum(weight * each for weight, each in zip(check, heats, strict=True))
            expected = expected.clamp(min=0)
        torch.testing.assert_close(heat, expected / expected.max(), atol=1e-4, rtol=1e-3)


@pytest.mark.brief(keep=lambda case: case["kind"] in ("moe", "mocse"))
@pytest.mark.parametrize("kind", ["moe", "soe", "mocse", "dwf"])
def test_every_kind_of_mixture_has_heat_maps(kind):
    model = tiny(kind)
    found = probes.collect("h", {"probe": "heatmaps", "setting": "pgd3"}, model, images(count=3))
    for name in ("clean_map", "attacked_map"):
        assert found[name].shape == (3, 16, 16)
        assert found[name].min() >= 0 and found[name].max() <= 1
    assert found["clean_map"].max() == pytest.approx(1)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "probe", "said"),
    [
        ("dense", {"probe": "routing", "setting": "pgd3"}, "needs a model with a router; Classifier has none"),
        ("dense", {"probe": "weights", "layer": 99}, "layer: 99 is not allowed; a convolution's number from 1 to 20"),
        ("dense", {"probe": "weights", "layer": "trunk.stm"}, "layer: 'trunk.stm' is not allowed"),
        (
            "dense",
            {"probe": "features", "setting": "pgd3", "layer": 2},
            "unknown parameter of a probe 'features' 'layer'",
        ),
        ("dense", {"probe": "features"}, "config/probes.yaml: p: no setting given"),
        ("dense", {"probe": "heat"}, "unknown kind of probe 'heat'.*; allowed: features, heatmaps, routing, weights"),
    ],
)
def test_what_a_probe_cannot_do_is_named(kind, probe, said):
    with pytest.raises(ConfigError, match=said):
        probes.collect("p", probe, tiny(kind), images())


def test_the_command_leaves_arrays_and_where_they_come_from(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project)
    out = tmp_path / "features.safetensors"
    assert main(["probe", "--probe", "features", "--run", "run", "--out", str(out), "--limit", "12"]) == 0
    record, arrays = json.loads(out.with_suffix(".json").read_text()), safetensors.numpy.load_file(out)
    assert {len(array) for array in arrays.values()} == {12} == {record["n"]}
    assert record["run"]["model_sha256"] == json.loads(Path("run/run.json").read_text())["model_sha256"]
    assert record["classes"] == [str(digit) for digit in range(10)]
    assert record["settings"]["pgd10"]["attack"] == "pgd" and set(record["sources"]) == {"nets", "attacks", "probing"}
    assert stale(record) == []
    record["sources"]["probing"] = "0" * 16
    assert stale(record) == ["probing"]
    first = out.read_bytes()
    assert main(["probe", "--probe", "features", "--run", "run", "--out", str(out), "--limit", "12"]) == 0
    assert out.read_bytes() == first
    for wrong, said in (
        (["--probe", "feature", "--out", str(out)], "did you mean 'features'?"),
        (["--probe", "features", "--out", "f.npz"], "the name must end in .safetensors"),
        (["--probe", "routing", "--out", str(out)], "needs a model with a router"),
    ):
        assert main(["probe", "--run", "run", *wrong]) == 2
        assert said in capsys.readouterr().err
