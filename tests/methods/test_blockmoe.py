"""BlockMoE: gates, selection and balancing losses as textbook formulas, and routing layer by layer."""

import math

import pytest
import torch
from moe_setup import PROJECT
from torch.nn import functional as F

import moat.methods
from moat.attacks.parts.views import views_of
from moat.base.errors import ConfigError
from moat.config.recipes import merge
from moat.methods.base import Step
from moat.methods.blockmoe import entropy_loss, kl_loss, switch_loss
from moat.methods.blockmoe_expert import of_expert
from moat.models import nets
from moat.models.moe import build_mixture
from moat.models.moe.blockmoe import combined, noisy, within_capacity

SIZE = 16


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def images(count=12):
    return torch.rand(count, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tiny(**options):
    torch.manual_seed(0)
    options = {"width": 1 / 16, "image_size": SIZE, **options}
    return build_mixture("blockmoe", "resnet18", 10, **options).double().eval()


def blocks(count=4, channels=6):
    torch.manual_seed(0)
    return torch.nn.ModuleList(nets.resnet.BasicBlock(channels, channels, 1) for _ in range(count)).double().eval()


# -- the net ---------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "parameters"),
    # The dense net has 11,173,962; its last block 4,720,640, the one before 3,673,088; the gates 2,052 and 1,028.
    [({"blocks": 1}, 25_337_934), ({"blocks": 2}, 36_358_226)],
)
def test_parameters(options, parameters):
    with torch.device("meta"):
        model = build_mixture("blockmoe", "resnet18", 10, **options)
    assert nets.count_parameters(model) == parameters
    width = {1: 1.506, 2: 1.804}[options["blocks"]]
    with torch.device("meta"):
        dense = nets.count_parameters(nets.build("resnet18", 10, width=width))
    assert dense == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize("gate", ["gap", "conv"])
def test_the_gates_are_their_formulas(gate):
    model, h = tiny(gate=gate, image_size=32).router.gates[0], draw(5, 32, 4, 4)
    router = tiny(gate=gate, image_size=32).router
    if gate == "gap":
        expected = h.mean((2, 3)) @ model.weight.T + model.bias
    else:
        maps = [
            (model.weight[None] * h[:, None, :, i : i + 3, j : j + 3]).sum((2, 3, 4)) for i in (0, 1) for j in (0, 1)
        ]
        expected = sum(maps) / 4
    torch.testing.assert_close(router(h, 0), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_equal_blocks_are_one_dense_block(k):
    layer, h = blocks(), draw(5, 6, 4, 4)
    for block in layer:
        block.load_state_dict(layer[0].state_dict())
    p = draw(5, 4, seed=1).softmax(1)
    found = combined(layer, h, p, p.topk(k, 1).indices)
    torch.testing.assert_close(found, layer[0](h), rtol=0 if k == 1 else 5e-5, atol=1e-12)


def test_one_selected_block_is_not_weighted_and_two_are():
    layer, h, p = blocks(), draw(5, 6, 4, 4), draw(5, 4, seed=1).softmax(1)
    choice = p.topk(2, 1).indices
    alone = torch.stack([block(h) for block in layer], 1)
    rows = torch.arange(5)
    torch.testing.assert_close(combined(layer, h, p, choice[:, :1]), alone[rows, choice[:, 0]], rtol=1e-12, atol=1e-12)
    chosen = p.gather(1, choice)
    weights = chosen / (chosen.sum(1, keepdim=True) + 1e-5)
    expected = sum(weights[:, j, None, None, None] * alone[rows, choice[:, j]] for j in range(2))
    torch.testing.assert_close(combined(layer, h, p, choice), expected, rtol=1e-12, atol=1e-12)


def test_the_straight_through_gradient_is_that_of_a_factor_of_one():
    """Of the selected probability, <dL/dout, E_e(h)>, by finite differences at the factor 1; of the others none."""
    layer, h, g = blocks(), draw(3, 6, 4, 4), draw(3, 6, 4, 4, seed=2)
    scores = draw(3, 4, seed=1).requires_grad_()
    p = scores.softmax(1)
    choice = p.argmax(1, keepdim=True)
    (found,) = torch.autograd.grad((combined(layer, h, p, choice) * g).sum(), scores, retain_graph=True)
    outputs = torch.stack([block(h) for block in layer], 1)[torch.arange(3), choice[:, 0]].detach()
    slope = [(((1 + 1e-6) * outputs[i] - outputs[i]) * g[i]).sum() / 1e-6 for i in range(3)]
    expected = sum(slope[i] * p[i, choice[i, 0]] for i in range(3))
    torch.testing.assert_close(found, torch.autograd.grad(expected, scores)[0], rtol=1e-5, atol=1e-8)


def test_the_output_does_not_depend_on_the_rest_of_the_batch():
    model, x = tiny(blocks=2), images()
    logits = model(x)
    torch.testing.assert_close(model(x[3:4]), logits[3:4], rtol=1e-9, atol=1e-9)
    assert torch.equal(model(x), logits)


def test_a_forced_block_is_a_net_with_that_block_in_its_place():
    model, x = tiny(blocks=2), images()
    found = model.attack_views()["path2-1"](x)
    h = model.body(model.normalize(x))
    expected = model.head(model.layers[1][1](model.layers[0][2](h)).mean((2, 3)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_path_with_the_highest_score_is_the_one_taken():
    model, x = tiny(blocks=2, experts=3), images()
    _, routing = model.routed(x)
    taken = 3 * routing.choice[0][:, 0] + routing.choice[1][:, 0]
    assert torch.equal(model.route_logits(x).argmax(1), taken)
    torch.testing.assert_close(model.route_logits(x).exp().sum(1), torch.ones(12).double())
    logits, used = model.mix(x)
    assert torch.equal(logits, model(x)) and torch.equal(used.sum(1), torch.ones(12).double())
    assert torch.equal(used[:, :3].argmax(1), routing.choice[0][:, 0])


@pytest.mark.parametrize(
    ("options", "paths", "layers"),
    [({"blocks": 1}, 0, 1), ({"blocks": 2}, 16, 2), ({"blocks": 2, "experts": 5}, 0, 2)],
    ids=["one layer", "16 paths", "25 paths"],
)
def test_its_views(options, paths, layers):
    model = tiny(**options)
    names, experts = set(views_of(model)), options.get("experts", 4)
    assert {"straight-through", "detached", "soft", "soft-sharp"} <= names
    assert sum(name.startswith("path") for name in names) == paths
    for kind in ("expert", "joint"):
        assert {f"layer{n}-{kind}{e}" for n in range(layers) for e in range(experts)} <= names


def test_detached_means_that_no_gate_has_a_gradient():
    model, x = tiny(blocks=2), images(4)
    with torch.no_grad():
        # Gates that are unsure let a gradient pass.
        for gate in model.router.gates:
            gate.weight.mul_(5)
    views = views_of(model)
    gradients = {}
    for name in ("straight-through", "detached"):
        z = x.clone().requires_grad_()
        gradients[name] = torch.autograd.grad(views[name].module(z)[:, 0].sum(), z)[0]
    fixed = model.routed(x)[1].choice
    z = x.clone().requires_grad_()
    logits, _ = model.routed(z, lambda scores, layer: fixed[layer])
    h = model.body(model.normalize(z))
    for layer, choice in zip(model.layers, fixed, strict=True):
        h = torch.stack([layer[int(e)](h[i : i + 1])[0] for i, e in enumerate(choice[:, 0])])
    by_hand = torch.autograd.grad(model.head(h.mean((2, 3)))[:, 0].sum(), z)[0]
    torch.testing.assert_close(gradients["detached"], by_hand, rtol=1e-8, atol=1e-12)
    assert not torch.allclose(gradients["straight-through"], by_hand, rtol=1e-6, atol=0)


@pytest.mark.parametrize("expert", [0, 2])
def test_an_expert_alone_is_the_net_with_its_block_forced(expert):
    whole, x = tiny(blocks=2), images()
    alone = tiny(blocks=1, tail=1)
    alone.load_state_dict(of_expert(whole.state_dict(), expert))
    forced = whole.attack_views()[f"layer1-expert{expert}"]
    torch.testing.assert_close(alone(x), forced(x), rtol=1e-10, atol=1e-12)
    other = tiny(blocks=1, tail=1)
    other.load_state_dict(of_expert(whole.state_dict(), 1))
    assert not torch.allclose(alone(x), other(x), rtol=1e-3, atol=0)
    assert {name for name in views_of(alone) if name.startswith("layer")} == {
        f"layer0-{kind}{e}" for kind in ("expert", "joint") for e in range(4)
    }


# -- selection and losses --------------------------------------------------------
def test_noise_changes_the_choice_by_its_formula():
    p, noise = draw(50, 4).softmax(1), draw(50, 4, seed=3)
    std = ((p - p.mean()) ** 2).sum().div(p.numel() - 1).sqrt()
    torch.testing.assert_close(noisy(p, noise), p / std + 0.1 * noise, rtol=1e-12, atol=1e-12)
    even = torch.full((8, 4), 0.25, dtype=torch.float64)
    assert noisy(even, draw(8, 4)).isfinite().all()


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_no_block_takes_more_than_its_capacity(factor):
    scores = draw(64, 4) + torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    choice = within_capacity(scores, factor)[:, 0]
    counts = torch.bincount(choice, minlength=4)
    assert counts.max() <= math.ceil(factor * 64 / 4) and counts.sum() == 64
    # Those with the highest scores stay.
    assert choice[scores[:, 0].argmax()] == 0


ONE_HOT = F.one_hot(torch.arange(8) % 4, 4).double()
UNIFORM = torch.full((8, 4), 0.25, dtype=torch.float64)
ALL_TO_ONE = F.one_hot(torch.zeros(8, dtype=torch.int64), 4).double()
# A constant, tiny winner: every image goes to block 0, and the mean hardly shows it.
COLLAPSED = UNIFORM + torch.tensor([3e-9, -1e-9, -1e-9, -1e-9])


@pytest.mark.parametrize(
    ("loss", "p", "expected"),
    [
        (switch_loss, UNIFORM, 0.0),
        (switch_loss, COLLAPSED, 0.0),
        (switch_loss, ONE_HOT, 0.0),
        (switch_loss, ALL_TO_ONE, 3.0),
        (entropy_loss, ONE_HOT, -math.log(4)),
        (entropy_loss, UNIFORM, 0.0),
        (entropy_loss, ALL_TO_ONE, 0.0),
        (kl_loss, ONE_HOT, -math.log(4)),
        (kl_loss, UNIFORM, -math.log(4)),
        (kl_loss, ALL_TO_ONE, 0.0),
    ],
)
def test_what_the_balancing_losses_are_at_their_ends(loss, p, expected):
    assert float(loss(p)) == pytest.approx(expected, abs=1e-7)


def test_the_balancing_losses_are_their_formulas():
    p = draw(40, 4).softmax(1)
    mean, log = p.mean(0), torch.log
    loads = torch.tensor([float((p.argmax(1) == e).double().mean()) for e in range(4)], dtype=torch.float64)
    even = -(mean * log(mean)).sum()
    torch.testing.assert_close(switch_loss(p), 4 * (loads * mean).sum() - 1)
    torch.testing.assert_close(entropy_loss(p), -(p * log(p)).sum(1).mean() - even)
    torch.testing.assert_close(kl_loss(p), -even)
    torch.testing.assert_close(kl_loss(p), (mean * log(mean / 0.25)).sum() - math.log(4))


# -- training ----------------------------------------------------------------------
def made(name, **changes):
    short = {"attack": {"eps": 0.01, "step_size": 0.01, "steps": 1}}
    recipe = merge(merge(PROJECT.method(name), short), changes)
    kind = moat.methods.get(recipe["class"])
    torch.manual_seed(0)
    options = {**recipe["model"], "width": 1 / 16, "image_size": SIZE, "in_channels": 3, "normalize": "cifar10"}
    method = kind(kind.build(arch="resnet18", num_classes=10, options=options).double(), recipe)
    method.train_mode()
    return method


def step(epoch=0):
    return Step(0, epoch, 4, 0, 10, torch.device("cpu"))


@pytest.mark.long
def test_loads_and_flips_are_logged_for_each_layer():
    found = made("blockmoe-switch").update(images(), torch.arange(12) % 10, step())
    for layer in range(2):
        for kind in ("clean", "adversarial"):
            loads = [float(found[f"layer{layer}_expert{e}_load_{kind}"]) for e in range(4)]
            assert sum(loads) == pytest.approx(1)
        assert 0 <= float(found[f"layer{layer}_rerouted"]) <= 1


def test_noise_and_capacity_are_for_training_with_the_losses_that_have_them():
    assert made("blockmoe-ent").selection(step()) is None
    select = made("blockmoe-switch", capacity=1.0).selection(step())
    scores = draw(64, 4) + torch.tensor([3.0, 0, 0, 0], dtype=torch.float64)
    assert torch.bincount(select(scores, 0)[:, 0], minlength=4).tolist() == [16] * 4
    plain = made("blockmoe-switch").selection(step())
    close = torch.zeros(64, 4, dtype=torch.float64) + 1e-3 * draw(64, 4)
    assert not torch.equal(plain(close, 0)[:, 0], close.argmax(1))
    with pytest.raises(ConfigError, match="capacity: goes with top_k 1"):
        made("blockmoe-ent", capacity=1.0)


def test_the_official_rate_falls_polynomially_after_each_epoch():
    method = made("blockmoe-ent-official")
    rates = [method.learning_rate("model", step(epoch)) for epoch in range(4)]
    assert rates == pytest.approx([0.1 * (1 - epoch / 4) ** 0.9 for epoch in range(4)])
    assert method.optimizers["model"].defaults["nesterov"]


@pytest.mark.parametrize(
    ("arch", "options", "said"),
    [
        ("preact-resnet18", {}, "has no basic blocks to select from"),
        ("resnet18", {"blocks": 3}, "blocks: 3 is not allowed; from 1 to 2"),
        ("resnet18", {"top_k": 5}, "top_k: 5 is not allowed; from 1 to 4"),
        ("resnet18", {"gate": "conv", "image_size": 8}, "these have 1x1"),
    ],
)
def test_what_cannot_be_built_is_named(arch, options, said):
    with pytest.raises(ConfigError, match=said):
        build_mixture("blockmoe", arch, 10, width=1 / 16, **options)
