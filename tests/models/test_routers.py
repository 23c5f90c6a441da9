"""The routers' attention against its formulas, and the nets' sizes."""

import math

import pytest
import torch

from moat.base.errors import ConfigError
from moat.models.moe import build_moe_cnn, detached_router
from moat.models.moe.attention import GroupedHead, PooledHead, SpatialAttention
from moat.models.moe.routers import PaddedBlock, build_router
from moat.models.nets import count_parameters

KINDS = {
    "gsa": (1, {}),
    "cgsa": (2, {}),
    "dcar": (2, {"shared_query_key": True, "learned_scale": True, "two_paths": True}),
}


def features(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def attention(kind: str, channels: int = 8) -> SpatialAttention:
    torch.manual_seed(1)
    groups, options = KINDS[kind]
    return SpatialAttention(channels, groups, **options).double()


# Counted by hand from the papers' widths; the MoE-CNN's also by a run of the released code.
@pytest.mark.parametrize(
    ("arch", "backbone"), [("resnet18", 5_565_450), ("resnet34", 10_619_530), ("wrn-28-10", 18_239_602)]
)
def test_parameters_of_the_backbones(arch, backbone):
    with torch.device("meta"):
        net = build_moe_cnn(arch, 10, normalize=None)
    assert count_parameters(net.router) == 269_202
    assert count_parameters(net) == backbone + 269_202


@pytest.mark.parametrize(
    ("kind", "attention_and_head"),
    # q, k: 2 (32^2 + 32); values 2 (32^2 + 32); kappa 2; paths 32*8+8 + 8*2+2; head 2 (32 + 1).
    [("dcar", 4574), ("gsa", 3 * (64**2 + 64) + 130), ("cgsa", 2 * 3 * (32**2 + 32) + 66), ("gap", 130)],
)
def test_parameters_of_the_routers(kind, attention_and_head):
    router = build_router(kind, 2, width=1.0, in_channels=3)
    assert count_parameters(router) == 269_202 - 130 + attention_and_head
    assert router(torch.rand(3, 3, 32, 32)).shape == (3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_the_formula(kind):
    """Positions one by one, with plain loops over images, groups and queries."""
    module, x = attention(kind), features(2, 8, 3, 4)
    if kind == "dcar":
        with torch.no_grad():
            module.log_scale.copy_(torch.tensor([0.7, -0.4]))
    y = module(x)
    assert y.shape == x.shape
    size = 8 // module.groups
    for image in range(2):
        for k in range(module.groups):
            part = x[image, k * size : (k + 1) * size].flatten(1)
            own = 0 if kind == "dcar" else k

            def apply(conv, part=part):
                return conv.weight[:, :, 0, 0] @ part + conv.bias[:, None]

            q, key, v = apply(module.query[own]), apply(module.key[own]), apply(module.value[k])
            kappa = module.log_scale[k].exp() if kind == "dcar" else 1.0
            z = torch.stack([v @ torch.softmax(kappa * (q[:, n] @ key) / math.sqrt(size), 0) for n in range(12)], dim=1)
            expected = part + z
            if kind == "dcar":
                w = torch.softmax(module.paths(part.mean(1)[None])[0], 0)
                expected = w[0] * z + w[1] * part
            torch.testing.assert_close(y[image, k * size : (k + 1) * size].flatten(1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_rows_are_distributions_over_the_keys(kind):
    module, x = attention(kind), features(2, 8, 3, 3)
    for k, part in enumerate(x.chunk(module.groups, dim=1)):
        a = module.weights(part, k)
        assert a.shape == (2, 9, 9)
        torch.testing.assert_close(a.sum(2), torch.ones(2, 9, dtype=torch.float64))
        assert float((a.sum(1) - 1).abs().max()) > 1e-3


def test_without_scale_attention_is_the_mean():
    module, x = attention("dcar"), features(2, 8, 3, 3)
    with torch.no_grad():
        module.log_scale.fill_(-60.0)
    part = x[:, :4]
    mean = module.value[0](part).mean((2, 3), keepdim=True).expand_as(part)
    torch.testing.assert_close(module._attend(part, 0), mean, rtol=1e-10, atol=1e-10)


def test_the_two_paths_start_near_the_identity():
    module = attention("dcar")
    with torch.no_grad():
        module.paths[-1].weight.zero_()
        w = torch.softmax(module.paths(features(3, 4)), 1)
    assert w[0].tolist() == pytest.approx([0.2689, 0.7311], abs=1e-4)


def test_permuting_groups_permutes_scores_where_their_weights_are_tied():
    module, head, x = attention("dcar"), GroupedHead(8, 2).double(), features(3, 8, 2, 2)
    with torch.no_grad():
        module.value[1].load_state_dict(module.value[0].state_dict())
        head.scores[1].load_state_dict(head.scores[0].state_dict())
    swapped = torch.cat([x[:, 4:], x[:, :4]], dim=1)
    torch.testing.assert_close(head(module(swapped)), head(module(x)).flip(1), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(head(module(x))[:, 0], head(module(x))[:, 1])


@pytest.mark.parametrize("kind", ["dcar", "cgsa"])
@pytest.mark.parametrize("head", ["grouped", "fc"])
@pytest.mark.parametrize("experts", [2, 3, 4])
def test_any_number_of_experts_and_a_small_width(kind, head, experts):
    router = build_router(kind, experts, width=1 / 16, in_channels=1, head=head)
    assert router(torch.rand(2, 1, 8, 8)).shape == (2, experts)
    assert isinstance(router.head, GroupedHead if head == "grouped" else PooledHead)


def test_a_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = PaddedBlock(2, 6, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    y = block(x)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 4:].any()


def test_the_router_computes_in_float32_under_autocast():
    net = build_moe_cnn("resnet18", 10, width=1 / 16).eval()
    x = torch.rand(4, 3, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, logits = net.route_logits(x), net(x)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, net.route_logits(x))
    assert logits.dtype == torch.bfloat16


@pytest.mark.parametrize("training", [True, False])
def test_a_detached_router_changes_gradients_only(training):
    torch.manual_seed(2)
    net = build_moe_cnn("resnet18", 3, width=1 / 16).double().train(training)
    torch.nn.init.normal_(net.head.weight)
    x = features(6, 3, 8, 8).sigmoid()
    detached = detached_router(net)
    results = []
    for model in (net, detached):
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        (gradient,) = torch.autograd.grad(logits.square().sum(), leaf)
        results.append((logits.detach(), gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert not torch.allclose(results[0][1], results[1][1])
    leaf = x.clone().requires_grad_()
    fixed = net.classify(leaf, net.route_logits(leaf).detach()).square().sum()
    torch.testing.assert_close(torch.autograd.grad(fixed, leaf)[0], results[1][1], rtol=1e-12, atol=1e-12)
    reached = torch.autograd.grad(detached(x).sum(), list(net.router.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in reached)
    assert not net.router._forward_hooks


def test_the_straight_through_gradient_reaches_the_selected_score_only():
    net = build_moe_cnn("resnet18", 3, experts=3, ratio=1 / 3, width=1 / 16)
    torch.nn.init.normal_(net.head.weight)
    scores = torch.eye(3).repeat(2, 1).requires_grad_()
    net.classify(torch.rand(6, 3, 8, 8), scores).square().sum().backward()
    selected = scores.detach().bool()
    assert (scores.grad[selected] != 0).all()
    assert not scores.grad[~selected].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "lenet5"}, "arch: .*lenet5.*resnet18"),
        ({"router": "gate"}, "router: .*gate.*dcar"),
        ({"bn": "own"}, "bn: .*own.*per_expert"),
        ({"router_head": "mlp"}, "router_head: .*mlp.*grouped"),
        ({"experts": 0}, "experts: 0"),
        ({"ratio": -0.5}, "ratio: -0.5"),
        ({"width": float("nan")}, "width: nan"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_moe_cnn(**({"arch": "resnet18", "num_classes": 10} | arguments))
