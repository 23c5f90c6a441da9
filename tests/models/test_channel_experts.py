"""The layer and the nets made of it compute what their source computes with all experts and a mask."""

import copy
import itertools

import pytest
import torch
from masked_reference import Masked, masked_conv
from torch.nn import functional as F

from moat.base.errors import ConfigError, MoatError
from moat.models.moe import ChannelExpertConv2d, build_moe_cnn

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to 1e-12 of the tensor's largest entry, or of 1."""
    assert ours.shape == theirs.shape
    worst, scale = float((ours - theirs).abs().max()), max(1.0, float(theirs.abs().max()))
    assert worst <= 1e-12 * scale, f"differs by {worst:.1e} where the largest entry is {scale:.1e}"


def scores_for(routes: list[int], experts: int) -> torch.Tensor:
    """Scores (B, experts) whose argmax is the given route."""
    noise = torch.rand(len(routes), experts, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return (noise + 2 * F.one_hot(torch.tensor(routes), experts)).requires_grad_()


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("routes", list(itertools.product((0, 1), repeat=4)), ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layer_equals_the_masked_one_for_every_split(routes, channels_last):
    torch.manual_seed(0)
    conv = ChannelExpertConv2d(3, 5, 3, experts=2, stride=2, padding=1).double()
    x, scores, upstream = (
        draw(4, 3, 7, 7, seed=1).requires_grad_(),
        scores_for(list(routes), 2),
        draw(4, 5, 4, 4, seed=2),
    )
    selected = scores.gather(1, torch.tensor(routes)[:, None])[:, 0]
    shown = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    y = conv(shown, torch.tensor(routes), 1 + selected - selected.detach())
    expected = masked_conv(conv, x, scores)
    torch.testing.assert_close(y, expected, **EXACT)
    inputs = (x, conv.weight, scores)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, **EXACT)


def test_each_sample_sees_the_dense_convolution_of_its_expert():
    conv = ChannelExpertConv2d(3, 4, 3, experts=3, padding=1).double()
    x, routes = draw(6, 3, 5, 5, seed=1), torch.tensor([2, 0, 1, 2, 0, 0])
    y = conv(x, routes)
    for sample, route in enumerate(routes.tolist()):
        alone = F.conv2d(x[sample : sample + 1], conv.weight[4 * route : 4 * route + 4], padding=1)
        torch.testing.assert_close(y[sample : sample + 1], alone, **EXACT)


def test_only_the_selected_score_gets_a_gradient_the_inner_product():
    conv = ChannelExpertConv2d(2, 3, 3, experts=3).double()
    x, scores, upstream = draw(2, 2, 5, 5, seed=1), scores_for([2, 0], 3), draw(2, 3, 3, 3, seed=3)
    selected = scores.gather(1, torch.tensor([[2], [0]]))[:, 0]
    y = conv(x, torch.tensor([2, 0]), 1 + selected - selected.detach())
    (gradient,) = torch.autograd.grad(y, scores, upstream)
    inner = (y * upstream).sum((1, 2, 3)).detach()
    torch.testing.assert_close(
        gradient, torch.tensor([[0, 0, inner[0]], [inner[1], 0, 0]], dtype=torch.float64), **EXACT
    )


NETS = [
    ("resnet18", 2, "shared"),
    ("resnet18", 4, "shared"),
    ("resnet18", 2, "per_expert"),
    ("wrn-28-10", 2, "shared"),
    ("wrn-28-10", 4, "per_expert"),
]
SPLITS = {
    2: [[0] * 6, [1] * 6, [0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [1, 1, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]],
    4: [[3] * 6, [3, 2, 1, 0, 3, 2], [0, 3, 3, 0, 3, 3], [1, 2, 2, 1, 1, 2]],
}
CASES = [(*net, split) for net in NETS for split in SPLITS[net[1]]]
# For two experts of the simplest net: every number of images per expert, one in every order of a batch of 6.
CASES += [("resnet18", 2, "shared", [int(i < k) for i in (3, 0, 5, 1, 4, 2)]) for k in range(7)]


@pytest.mark.brief(keep=lambda case: case["arch"] == "resnet18" or case["split"] == SPLITS[case["experts"]][3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("arch", "experts", "bn", "split"), CASES, ids=str)
def test_the_net_equals_the_masked_one(arch, experts, bn, split, training):
    torch.manual_seed(1)
    net = build_moe_cnn(arch, 3, experts=experts, ratio=1 / experts, bn=bn, width=1 / 32).double()
    torch.nn.init.normal_(net.head.weight)
    size = 16
    reference = Masked(net)
    for model in (net, reference):
        model.train(training)
    x, upstream = draw(6, 3, size, size, seed=2).sigmoid(), draw(6, 3, seed=4)
    results = []
    for model in (net, reference):
        leaf, scores = x.clone().requires_grad_(), scores_for(split, experts)
        logits = model.classify(leaf, scores)
        parameters = [p for n, p in model.named_parameters() if "router" not in n]
        gradients = torch.autograd.grad(
            logits, (leaf, scores, *parameters), upstream, allow_unused=True, materialize_grads=True
        )
        results.append((logits.detach(), *gradients, *(buffer.double() for buffer in model.buffers())))
    assert len(results[0]) == len(results[1]) > 60
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("router", ["gap", "dcar"])
def test_with_its_router_the_whole_net_equals_the_masked_one(router, training):
    torch.manual_seed(3)
    net = build_moe_cnn("resnet18", 3, router=router, router_head="fc", width=1 / 16).double().train(training)
    torch.nn.init.normal_(net.head.weight)
    x, upstream = draw(12, 3, 16, 16, seed=2).sigmoid(), draw(12, 3, seed=4)
    with torch.no_grad():
        scores = copy.deepcopy(net).route_logits(x)
        # The router's bias such that both experts have images.
        net.router.head.linear.bias[1] += (scores[:, 0] - scores[:, 1]).quantile(0.4)
    routes = copy.deepcopy(net).route_logits(x).argmax(1)
    assert 0 < int(routes.sum()) < 12
    results = []
    for model in (net, Masked(net).train(training)):
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        gradients = torch.autograd.grad(logits, (leaf, *model.parameters()), upstream)
        results.append((logits.detach(), *gradients, *(buffer.double() for buffer in model.buffers())))
    for ours, theirs in zip(*results, strict=True):
        assert_same(ours, theirs)


def test_an_empty_batch_goes_through():
    net = build_moe_cnn("resnet18", 3, width=1 / 16).eval()
    assert net(torch.zeros(0, 3, 8, 8)).shape == (0, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_not_finite_are_reported(bad):
    net = build_moe_cnn("resnet18", 3, width=1 / 16)
    scores = torch.zeros(4, 2)
    scores[1:3, 0] = bad
    with pytest.raises(MoatError, match="scores are not finite for 2 of 4 images"):
        net.classify(torch.zeros(4, 3, 8, 8), scores)


def test_a_route_to_nowhere_is_reported():
    conv = ChannelExpertConv2d(3, 4, 3, experts=2)
    with pytest.raises(ValueError, match="1 routes lie outside 0 to 1"):
        conv(torch.zeros(2, 3, 5, 5), torch.tensor([2, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"experts": 0}, "experts: 0"), ({"out_channels": 2.5}, "out_channels: 2.5"), ({"padding": -1}, "padding: -1")],
)
def test_bad_sizes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        ChannelExpertConv2d(**({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "experts": 2} | change))
