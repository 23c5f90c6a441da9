"""Flawed protocols against the same measurement written out by hand, and kept apart from robustness."""

import numpy as np
import pytest
import torch
from double import InDouble
from torch.nn import functional as F

from moat.attacks.parts.spaces import training_space
from moat.base.errors import ConfigError
from moat.config.project import Project
from moat.evaluation import evaluate, protocols, verify
from moat.models import nets
from moat.models.moe import build_moe_cnn
from moat.models.nets.normalize import STATISTICS

STATISTICS_HERE = ((0.49, 0.48, 0.2), (0.25, 0.24, 0.5))
EPS, STEP, STEPS = 0.1, 0.03, 5
SETTING = {"attack": "pgd", "eps": EPS, "step_size": STEP, "steps": STEPS, "random_start": False}


def column(values):
    """As a model holds them: rounded to float32."""
    return torch.tensor(values, dtype=torch.float32).double().view(1, -1, 1, 1)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nets.build("lenet5", 10, image_size=12, normalize=STATISTICS_HERE).double().eval()


@pytest.fixture(scope="module")
def routed():
    torch.manual_seed(0)
    model = build_moe_cnn("resnet18", 10, experts=2, width=1 / 16, image_size=8, normalize=STATISTICS_HERE)
    return model.double().eval()


def batch(size=12):
    """Images with some pixels black and some white: there, a clamp binds."""
    x = torch.rand(6, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (x * 2 - 0.5).clamp(0, 1), torch.tensor([0, 3, 5, 7, 8, 9])


def signed_steps(objective, z, lower, upper):
    """Plain PGD from z, its iterates cut to the box; ``objective(z)`` is one value per batch."""
    moved = z
    for _ in range(STEPS):
        moved = moved.detach().requires_grad_()
        (slope,) = torch.autograd.grad(objective(moved), moved)
        moved = torch.minimum(torch.maximum(moved + STEP * slope.sign(), lower), upper)
    return moved.detach()


def replica(model, protocol, x, y, **changes):
    """(clean, attacked) in the protocol's space, as the evaluation measures it."""
    from moat.attacks import resolve

    attack = resolve("here", {**SETTING, "protocol": protocol, **changes})
    view, clean, attacked = protocols.get(protocol).measure(model, x, y, attack)
    return view, clean, attacked


@pytest.mark.parametrize(
    ("protocol", "statistics", "box"),
    [
        ("normalised-noclip", STATISTICS_HERE, lambda z, black, white: (z - EPS, z + EPS)),
        (
            "eps-normalised",
            STATISTICS_HERE,
            lambda z, black, white: (torch.maximum(z - EPS, black), torch.minimum(z + EPS, white)),
        ),
        (
            "normalised-clip01",
            STATISTICS_HERE,
            lambda z, black, white: ((z - EPS).clamp(0, 1), (z + EPS).clamp(0, 1)),
        ),
        ("normalised-noclip-printed", STATISTICS["svhn"], lambda z, black, white: (z - EPS, z + EPS)),
        (
            "tiny-released",
            STATISTICS["imagenet"],
            lambda z, black, white: ((z - EPS).clamp(0, 1), (z + EPS).clamp(0, 1)),
        ),
    ],
)
def test_normalised_spaces(net, protocol, statistics, box):
    mean, std = map(column, statistics)
    x, y = batch()
    z, black, white = (x - mean) / std, -mean / std, (1 - mean) / std
    expected = signed_steps(
        lambda z: F.cross_entropy(net(z * std + mean), y, reduction="sum"), z, *box(z, black, white)
    )
    view, clean, attacked = replica(net, protocol, x, y)
    torch.testing.assert_close(clean, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(view(attacked), net(attacked * std + mean), rtol=0, atol=1e-12)
    assert (view.space.decode(attacked) > 1.01).any() == protocol.startswith("normalised-noclip")


@pytest.mark.parametrize(
    ("protocol", "std", "radius"),
    [
        ("normalised-noclip", Project(".").dataset("cifar10")["std"], "2.0/255"),
        ("normalised-noclip-printed", (0.1980, 0.2010, 0.1970), "1.6/255"),
    ],
)
def test_a_radius_of_8_255_is_said_in_pixels(protocol, std, radius):
    assert radius == f"{8 * np.mean(std):.1f}/255"
    assert f"8/255 is {radius}" in protocols.get(protocol).description


def test_eps_normalised_is_a_pixel_attack_with_eps_times_std_in_each_channel(net):
    std = column(STATISTICS_HERE[1])
    x, y = batch()
    view, _, attacked = replica(net, "eps-normalised", x, y)
    pixels = view.space.decode(attacked)
    assert pixels.min() >= -1e-12 and pixels.max() <= 1 + 1e-12
    inside = ((x - EPS * std) > 0) & ((x + EPS * std) < 1)
    moved = ((pixels - x).abs() / std).where(inside, 0).amax((0, 2, 3))
    torch.testing.assert_close(moved, torch.full((3,), EPS, dtype=torch.float64), rtol=0, atol=1e-12)


def test_normalised_noclip_is_what_trainings_in_that_space_attack_with(net):
    from moat.attacks import pgd

    x, y = batch()
    view, _, attacked = replica(net, "normalised-noclip", x, y)
    options = {key: value for key, value in SETTING.items() if key != "attack"}
    elsewhere = pgd(net, x, y, **options, space=training_space("normalised_noclip", net))
    torch.testing.assert_close(view.space.decode(attacked), elsewhere, rtol=0, atol=1e-12)


def test_advmoe_released_maximizes_the_routers_loss_six_times(routed):
    x, y = batch(8)

    def objective(x):
        of_router = F.cross_entropy(routed.route_logits(x), y % 2, reduction="sum")
        return F.cross_entropy(routed(x), y, reduction="sum") + 6 * of_router

    expected = signed_steps(objective, x, (x - EPS).clamp(min=0), (x + EPS).clamp(max=1))
    _, clean, attacked = replica(routed, "advmoe-released", x, y)
    assert torch.equal(clean, x)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)


def test_tiny_released_maximizes_the_routers_loss_where_there_is_a_router(routed, net):
    x, y = batch(8)
    mean, std = map(column, STATISTICS["imagenet"])
    z = (x - mean) / std

    def objective(z):
        of_router = F.cross_entropy(routed.route_logits(z * std + mean), y % 2, reduction="sum")
        return F.cross_entropy(routed(z * std + mean), y, reduction="sum") + 6 * of_router

    expected = signed_steps(objective, z, (z - EPS).clamp(0, 1), (z + EPS).clamp(0, 1))
    torch.testing.assert_close(replica(routed, "tiny-released", x, y)[2], expected, rtol=0, atol=1e-12)


def test_rows_are_scored_in_the_protocols_space(net):
    x, y = batch()
    settings = {
        "clean": {"attack": "none"},
        "pgd": SETTING,
        "fgsm_norm": {"attack": "fgsm", "eps": EPS, "protocol": "normalised-noclip"},
        "pgd_norm": {**SETTING, "protocol": "normalised-noclip"},
        "clean_norm": {"attack": "none", "protocol": "normalised-clip01"},
    }
    frame = evaluate(InDouble(net), x, y, settings, batch_size=4)
    rows = {name: group.set_index("index") for name, group in frame.groupby("setting")}
    view, clean, attacked = replica(net, "normalised-noclip", x, y)
    with torch.no_grad():
        assert rows["pgd_norm"]["predicted"].tolist() == view(attacked).argmax(1).tolist()
    assert np.allclose(rows["pgd_norm"]["linf"], (attacked - clean).abs().flatten(1).amax(1), atol=1e-6)
    assert np.allclose(rows["fgsm_norm"]["linf"], EPS, atol=1e-6) and (rows["fgsm_norm"]["steps"] == 1).all()
    assert (rows["clean_norm"]["predicted"] == rows["clean"]["predicted"]).all()
    assert (rows["clean_norm"]["linf"] == 0).all() and (rows["pgd_norm"]["steps"] == STEPS).all()


def test_results_do_not_depend_on_the_batch(net):
    x, y = batch()
    setting = {**SETTING, "random_start": True, "restarts": 2, "protocol": "normalised-clip01"}
    one, other = (evaluate(InDouble(net), x, y, {"a": setting}, batch_size=size) for size in (6, 2))
    assert one.drop(columns=["confidence", "linf"]).equals(other.drop(columns=["confidence", "linf"]))
    assert np.allclose(one["linf"], other["linf"], atol=1e-6)


@pytest.mark.parametrize(
    ("protocol", "setting", "words"),
    [
        ("advmoe-released", SETTING, ["no router"]),
        ("normalised-noclip", {"attack": "square", "eps": 0.1}, ["'square'", "fgsm, bim, pgd"]),
        ("imagenet-c-severities", SETTING, ["severities: None", "imagenet-c"]),
        ("normalized-noclip", SETTING, ["'normalized-noclip'", "did you mean 'normalised-noclip'"]),
    ],
)
def test_what_a_protocol_cannot_measure_is_refused(net, protocol, setting, words):
    with pytest.raises(ConfigError) as caught:
        evaluate(InDouble(net), *batch(), {"here": {**setting, "protocol": protocol}}, batch_size=6)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_model_without_normalisation_has_no_normalised_space():
    net = nets.build("lenet5", 10, image_size=12, normalize=None).eval()
    with pytest.raises(ConfigError, match="no normalisation"):
        evaluate(net, *batch(), {"here": {**SETTING, "protocol": "eps-normalised"}}, batch_size=6)


# -- never robustness --------------------------------------------------------------


def test_replicas_are_no_evidence_for_the_checks(net):
    with pytest.raises(ConfigError, match="'pgd10_norm' is measured by the flawed protocol normalised-noclip"):
        verify(InDouble(net), *batch(), settings={"pgd10_norm": {**SETTING, "protocol": "normalised-noclip"}})


def test_replicas_are_in_no_worst_case(net):
    members = {"pgd": SETTING, "pgd_std": {**SETTING, "protocol": "eps-normalised"}}
    with pytest.raises(ConfigError, match="worst case 'all': 'pgd_std' is measured by the flawed protocol"):
        evaluate(InDouble(net), *batch(), {"clean": {"attack": "none"}}, batch_size=6, worst_case={"all": members})


@pytest.mark.parametrize(
    ("protocol", "settings", "words"),
    [
        ("correct", ("clean", "pgd10_norm"), ["'pgd10_norm'", "normalised-noclip", "correct"]),
        ("eps-normalised", ("pgd10_e03_norm",), ["'pgd10_e03_norm'", "normalised-noclip", "eps-normalised"]),
        ("correct", ("clean", "pgd10"), None),
        ("normalised-noclip", ("clean", "pgd10_norm"), None),
        ("advmoe-released", ("pgd10_advmoe",), None),
    ],
)
def test_a_cell_holds_settings_of_its_protocol_only(protocol, settings, words):
    from moat.config.cell_spec import check_protocol

    attacks = Project(".").attacks()
    if words is None:
        return check_protocol(protocol, settings, attacks, where="a study")
    with pytest.raises(ConfigError) as caught:
        check_protocol(protocol, settings, attacks, where="a study")
    assert str(caught.value).startswith("a study: ") and all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("suite", "protocol"), [("corruptions", None), ("corruptions-imagenet", "imagenet-c-severities")]
)
def test_corruptions_made_for_large_images_are_a_protocol(net, suite, protocol):
    settings = {name: each for name, each in Project(".").attack_settings(suite).items() if "brightness" in name}
    assert len(settings) == 5 and {each.get("protocol") for each in settings.values()} == {protocol}
    x, y = batch()
    frame = evaluate(InDouble(net), x, y, settings, batch_size=3)
    plain = {name: {k: v for k, v in each.items() if k != "protocol"} for name, each in settings.items()}
    assert frame.equals(evaluate(InDouble(net), x, y, plain, batch_size=3)) and frame["linf"].min() > 0.01


def test_every_protocol_of_the_settings_exists_and_every_suite_keeps_the_names():
    import yaml

    attacks = Project(".").attacks()
    used = {setting["protocol"] for setting in attacks.values() if "protocol" in setting}
    assert used <= set(protocols.names())
    with open("workflow/schemas/attacks.schema.yaml") as stream:
        allowed = yaml.safe_load(stream)["additionalProperties"]["properties"]["protocol"]["enum"]
    assert allowed == [protocols.CORRECT, *protocols.names()]
