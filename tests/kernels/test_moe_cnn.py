"""What makes the MoE-CNN's twins fast: a batch sorted once, and one gradient for the gates of two layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moat.attacks import AttackCopy
from moat.kernels import winograd
from moat.kernels.channel_experts import FoldedChannelExpertConv2d, gated_relu
from moat.kernels.sorting import Sorting
from moat.models import ChannelExpertConv2d, build_moe_cnn
from moat.models.moe.backbones import MoeBasicBlock

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_a_gated_relu_has_the_gradient_of_the_gates_of_both_convolutions_around_it():
    torch.manual_seed(0)
    first, second = (ChannelExpertConv2d(4, 4, 3, experts=2, padding=1).double() for _ in range(2))
    for conv in (first, second):
        FoldedChannelExpertConv2d.convert(conv)
        conv.bias = torch.nn.Parameter(draw(4, seed=3))
        conv.requires_grad_(False)
    groups, upstream = ((0, 3), (1, 2)), draw(5, 4, 6, 6, seed=4)
    x, gate = draw(5, 4, 6, 6, seed=1).requires_grad_(), torch.ones(5, dtype=torch.float64, requires_grad=True)

    def gradients(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(y, (x, gate), upstream)

    one = second(gated_relu(first(x, groups), gate, first.bias), groups)
    both = second(F.relu(first(x, groups, gate)), groups, gate)
    assert torch.equal(one, both)
    for ours, theirs in zip(gradients(one), gradients(both), strict=True):
        torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.brief(keep=lambda case: case["channels"] == 8)
@pytest.mark.parametrize(("images", "channels", "size"), [(1, 8, 12), (9, 8, 12), (1, 1024, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_convolutions_compute_both_gates_gradient_with_the_input_gradient(
    images, channels, size, dtype, monkeypatch
):
    original, asked = winograd.convolve, []

    def watched(*given, **options):
        asked.extend([1] if "relu_mask" in options else [])
        return original(*given, **options)

    monkeypatch.setattr(winograd, "convolve", watched)
    torch.manual_seed(0)
    block = MoeBasicBlock(channels, channels, 1, experts=2, norm="shared").eval()
    block.bn1.running_mean += 0.3
    route = (torch.arange(images) >= images // 3).long() if images > 1 else torch.zeros(1, dtype=torch.int64)
    x, upstream = (draw(images, channels, size, size, seed=seed) for seed in (1, 2))

    def gradients(block, dtype):
        given, gate = x.to(dtype).requires_grad_(), torch.ones(images, dtype=x.dtype, requires_grad=True)
        y = block.to(dtype)(given, route, gate)
        return torch.autograd.grad(y, (given, gate), upstream.to(dtype))

    holder = nn.Module()
    holder.block = block
    folded = AttackCopy(holder).refresh().block
    expected = gradients(copy.deepcopy(block), torch.float64)
    for ours, theirs in zip(gradients(folded, dtype), expected, strict=True):
        # Where a sum is 0 to rounding, relu may pass it or not.
        error = (ours.double() - theirs).abs().quantile(0.95)
        assert error < (1e-5 if dtype == torch.float32 else 0.05) * theirs.abs().max()
    # PyTorch is faster for 1024 channels with so few tiles.
    along = winograd.library() is not None and (channels < 1024 or images > 1)
    # Nor are these few channels packed in bfloat16 where oneDNN has none of it, as without AVX-512.
    along = along and (dtype == torch.float32 or channels > 8 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert len(asked) == (len(route.unique()) if along else 0)


def test_sorting_is_stable_and_has_an_inverse():
    route = torch.tensor([1, 0, 3, 1, 0, 3])
    sorting = Sorting.of(route, 4)
    assert sorting.order.tolist() == [1, 4, 0, 3, 2, 5]
    assert sorting.groups == ((0, 2), (1, 2), (3, 2))
    x = draw(6, 2, seed=1)
    assert torch.equal(sorting.unsort(sorting.sort(x)), x)


def test_the_route_is_sorted_and_checked_once_per_pass(monkeypatch):
    """It is the only device synchronisation, whatever the number of layers."""
    original, asked = Sorting.of, []
    monkeypatch.setattr(Sorting, "of", lambda *given: asked.append(1) or original(*given))
    copied = AttackCopy(build_moe_cnn("resnet18", 3, width=1 / 16)).refresh()
    copied(torch.rand(5, 3, 16, 16))
    assert asked == [1]
