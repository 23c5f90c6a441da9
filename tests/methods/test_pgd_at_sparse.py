"""Pruning: which filters are kept, what moves in which stage, and what becomes of the dense net's weights."""

import math

import pytest
import safetensors.torch
import torch
from tiny_methods import begin, set_rates, step_of
from torch import nn

from moat.base.errors import DataError
from moat.methods.pgd_at_sparse import load_dense
from moat.models import nets
from moat.models.nets.masked import MaskedConv2d, kept_filters, mask_filters, masked_layers


@pytest.mark.parametrize(
    ("channels", "kept", "expected"),
    [(64, 0.5, 32), (5, 0.5, 3), (7, 0.25, 2), (10, 0.9, 9), (10, 0.7, 7), (4, 1.0, 4), (4, 0.01, 1), (1, 0.5, 1)],
)
def test_a_layer_keeps_all_but_the_whole_part_of_the_rest(channels, kept, expected):
    assert kept_filters(channels, kept) == expected
    layer = MaskedConv2d(nn.Conv2d(3, channels, 3), kept)
    assert int(layer.kept().sum()) == expected
    # The smallest norms go.
    norms = layer.scores.abs().sum((1, 2, 3))
    assert layer.kept().all() or norms[layer.kept()].min() > norms[~layer.kept()].max()


@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18", "wrn-28-10", "lenet5"])
def test_every_convolution_but_the_stem_is_masked(arch):
    torch.manual_seed(0)
    dense = nets.build(arch, 10, width=1 / 16, image_size=16)
    torch.manual_seed(0)
    net = mask_filters(nets.build(arch, 10, width=1 / 16, image_size=16), 0.5)
    first, *rest = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert not isinstance(first, MaskedConv2d) and rest and all(isinstance(module, MaskedConv2d) for module in rest)
    x = torch.rand(2, 3, 16, 16)
    # By hand: the dense net with zeros in place of the other filters.
    with torch.no_grad():
        for plain, masked in zip([m for m in dense.modules() if isinstance(m, nn.Conv2d)][1:], rest, strict=True):
            plain.weight[~masked.kept()] = 0
        torch.testing.assert_close(net.eval()(x), dense.eval()(x), rtol=0, atol=0)


def test_scores_begin_as_scaled_weights():
    torch.manual_seed(0)
    layer = MaskedConv2d(nn.Conv2d(3, 8, 3, bias=False), 0.5)
    expected = math.sqrt(6 / 27) * layer.weight / layer.weight.abs().max()
    torch.testing.assert_close(layer.scores.detach(), expected.detach())


def test_the_gradient_passes_straight_through_the_mask_to_the_absolute_scores():
    torch.manual_seed(0)
    layer = MaskedConv2d(nn.Conv2d(2, 4, 3, bias=False), 0.5).double()
    x, upstream = torch.rand(3, 2, 6, 6, dtype=torch.float64), torch.randn(3, 4, 4, 4, dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    mask = layer.kept().view(-1, 1, 1, 1).double()
    effective = (layer.weight * mask).detach().requires_grad_()
    (nn.functional.conv2d(x, effective) * upstream).sum().backward()
    torch.testing.assert_close(layer.scores.grad, effective.grad * layer.weight.detach() * layer.scores.detach().sign())
    torch.testing.assert_close(layer.weight.grad, effective.grad * mask)
    assert layer.scores.grad[~layer.kept()].abs().min() > 0, "filters that are out get a gradient, too: they may return"


def _state(method):
    return {key: value.clone() for key, value in method.model.state_dict().items()}


@pytest.mark.parametrize(("epoch", "stage"), [(0, "mask"), (1, "model")])
def test_each_stage_moves_its_own_and_nothing_else(tiny, epoch, stage):
    method, (x, y) = tiny.method("pgd-at-sparse"), tiny.batch()
    begin(method, epoch)
    before = _state(method)
    for batch in range(3):
        step = step_of(epoch, batch)
        set_rates(method, step)
        method.update(x, y, step)
    names = {name for name, _ in method.model.named_parameters()}
    scores = {name for name in names if name.endswith(".scores")}
    moved = {name for name in names if not torch.equal(before[name], method.model.state_dict()[name])}
    assert moved == (scores if stage == "mask" else names - scores)
    running = [key for key in before if key.endswith("running_mean")]
    assert all(not torch.equal(before[key], method.model.state_dict()[key]) for key in running)
    assert method.end_epoch(epoch, None)["stage"] == epoch + 1


def test_the_rate_falls_from_its_full_height_in_each_stage(tiny):
    method = tiny.method("pgd-at-sparse")
    rates = [method.learning_rate(name, step_of(epoch, 0)) for name, epoch in (("mask", 0), ("model", 1))]
    assert rates == pytest.approx([0.1, 0.01])
    halfway = [method.learning_rate(name, step_of(epoch, 30)) for name, epoch in (("mask", 0), ("model", 1))]
    assert halfway == pytest.approx([0.05, 0.005])


@pytest.mark.parametrize("seed", range(4))
def test_learning_the_scores_exchanges_filters_that_disturb_for_better_ones(seed):
    """The labels depend on the last four of eight filters; at first the other four, of larger weights, are kept.

    (On a net hardly trained, as in the contract test, there is nothing to choose from.)
    """
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, 8, 3, bias=False)
    convolution.weight.data[:4] *= 2
    layer, head = MaskedConv2d(convolution, 0.5), torch.randn(8, 4)
    x = torch.rand(256, 3, 6, 6)

    def logits(weight):
        features = nn.functional.conv2d(x, weight).mean((2, 3))
        return 20 * (features - features.mean(0)) @ head

    last_four = torch.tensor([0.0] * 4 + [1.0] * 4).view(-1, 1, 1, 1)
    weight = layer.weight.detach()
    y = logits(weight * last_four).argmax(1)
    assert layer.kept().tolist() == [True] * 4 + [False] * 4
    optimizer = torch.optim.SGD([layer.scores], 0.1, momentum=0.9)
    losses = []
    for _ in range(200):
        loss = nn.functional.cross_entropy(logits(weight * layer.mask()), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert int(layer.kept()[4:].sum()) >= 2


def test_a_training_starts_from_the_dense_runs_weights(tiny):
    method = tiny.method("pgd-at-sparse")
    dense = safetensors.torch.load_file(tiny.run("trades") / "model.safetensors")
    state = method.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in dense.items())
    layer = masked_layers(method.model)[0]
    torch.testing.assert_close(
        layer.scores, math.sqrt(6 / layer.weight[0].numel()) * layer.weight / layer.weight.abs().max()
    )


def test_another_net_is_refused_by_name(tiny, tmp_path):
    method = tiny.method("pgd-at-sparse")
    with pytest.raises(DataError, match=r"model.safetensors: no such file; it is the dense net"):
        load_dense(method.model, tmp_path)
    other = nets.build("resnet18", 10, width=1 / 8, image_size=8)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"model.safetensors: not the dense net of this run"):
        load_dense(method.model, tmp_path)
