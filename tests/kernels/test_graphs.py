"""Gradients replayed from a captured graph equal the model's, in any order of calls.

A recording stands in for CUDA's graphs where there is no GPU: what was computed is computed once more, into the same
memory, without looking at Python again. That is what such a graph does, and what the code must be right about.
"""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moat import models
from moat.attacks import AttackCopy, pgd
from moat.kernels import for_training, graphs, streams
from moat.models.moe import build_mixture, build_moe_cnn

SIZE = 16
ATTACK = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 10}


class Recording(TorchDispatchMode):
    """Every operator below autograd, with its own tensors."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        self.done.append((operator, args, kwargs, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for operator, args, kwargs, result in self.done:
                again = tree_leaves(operator(*args, **kwargs))
                for old, new in zip(tree_leaves(result), again, strict=True):
                    if self._is_new(old, args, kwargs):
                        old.copy_(new)

    def forget(self, kept: torch.Tensor) -> None:
        """Overwrite all but ``kept``, as a GPU does with memory that the backward pass frees."""
        for _, args, kwargs, result in self.done:
            for each in tree_leaves(result):
                if self._is_new(each, args, kwargs) and each.is_floating_point() and each is not kept:
                    each.fill_(torch.nan)

    @staticmethod
    def _is_new(result, args, kwargs) -> bool:
        """Whether it has its own storage, unlike views and in-place results."""
        taken = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        places = {each.untyped_storage().data_ptr() for each in taken}
        return isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() not in places


@pytest.fixture(autouse=True)
def recordings(monkeypatch):
    """Stands in for CUDA; replays are timed as twice as fast as anything else."""

    def capture(call, pool):
        with Recording() as recording:
            result = call()
        pool.append((recording, result))

        def replay():
            recording.replay()
            if len(pool) == 2 and recording is pool[1][0]:
                pool[0][0].forget(pool[0][1])

        return result, replay

    times = iter([2.0, 1.0] * 100)
    monkeypatch.setattr(graphs, "warm_up", lambda call, device: call())
    monkeypatch.setattr(graphs, "memory_pool", lambda device: [])
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setattr(graphs, "seconds", lambda call, device: next(times))
    monkeypatch.setattr(graphs, "is_enabled", lambda device: True)
    monkeypatch.setattr(graphs, "CAPTURE_AFTER", 2)
    monkeypatch.setattr(streams, "new_streams", lambda count: list(range(count)))
    monkeypatch.setattr(streams, "joined", contextlib.nullcontext)
    monkeypatch.setattr(streams, "on_stream", lambda stream, call: call())


def net(arch="resnet18", **options) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(arch, 10, width=0.0625, image_size=SIZE, **options).double().eval()
    return model.requires_grad_(False)


def images(number=0, count=4) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def replaying(model: nn.Module) -> nn.Module:
    """A copy that has captured a graph."""
    copied = copy.deepcopy(model)
    graphs.attach(copied)
    for number in range(graphs.CAPTURE_AFTER):
        gradient(copied, images(number))
    assert copied.forward.kept == 1
    return copied


def gradient(model, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x).log_softmax(1)[:, 3].sum(), x)[0]


def dwf():
    torch.manual_seed(0)
    mixture = build_mixture("dwf", "resnet18", 10, width=0.0625, image_size=SIZE, experts=2)
    return for_training(mixture).double().eval().requires_grad_(False)


@pytest.mark.brief(keep=lambda case: case["model"] in (net, dwf))
@pytest.mark.parametrize("model", [net, lambda: net("preact-resnet18"), lambda: net("wrn-28-10"), dwf])
def test_an_attack_by_replays_finds_the_same_examples(model):
    model = model()
    x, y = images(7), torch.arange(4)
    found = pgd(replaying(model), x, y, random_start=False, **ATTACK)
    torch.testing.assert_close(found, pgd(model, x, y, random_start=False, **ATTACK), atol=1e-12, rtol=0)


def test_results_are_not_overwritten_by_later_replays():
    model = net()
    replays = replaying(model)
    x = images(1).requires_grad_()
    logits = replays(x)
    (first,) = torch.autograd.grad(logits.sum(), x)
    kept = logits.detach().clone(), first.clone()
    gradient(replays, images(2))
    assert torch.equal(logits, kept[0]) and torch.equal(first, kept[1])


def test_a_backward_pass_after_another_forward_uses_its_own_images():
    model, x, other = net(), images(1).requires_grad_(), images(2).requires_grad_()
    replays = replaying(model)
    sums = [each.log_softmax(1)[:, 3].sum() for each in (replays(x), replays(other))]
    torch.testing.assert_close(torch.autograd.grad(sums[0], x)[0], gradient(model, x.detach()), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        torch.autograd.grad(sums[1], other)[0], gradient(model, other.detach()), atol=1e-12, rtol=0
    )


def test_a_second_backward_pass_equals_the_first():
    model, x = net(), images(1).requires_grad_()
    total = replaying(model)(x).log_softmax(1)[:, 3].sum()
    for _ in range(2):
        (found,) = torch.autograd.grad(total, x, retain_graph=True)
        torch.testing.assert_close(found, gradient(model, x.detach()), atol=1e-12, rtol=0)


def test_several_forward_passes_and_one_backward():
    model, y = net(), torch.arange(4)
    found = pgd(replaying(model), images(1), y, eot=3, random_start=False, **ATTACK)
    torch.testing.assert_close(found, pgd(model, images(1), y, eot=3, random_start=False, **ATTACK), atol=1e-12, rtol=0)


def test_double_backward_is_refused():
    x = images(1).requires_grad_()
    (first,) = torch.autograd.grad(replaying(net())(x).logsumexp(1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_weights_written_in_place_are_used_and_replaced_weights_restart_capturing():
    model = net()
    replays = replaying(model)
    other = net()
    with torch.no_grad():
        for each in (model, other, replays):
            each.head.weight.mul_(-2)
    torch.testing.assert_close(gradient(replays, images(1)), gradient(model, images(1)), atol=1e-12, rtol=0)
    assert replays.forward.kept == 1
    replays.head.weight = nn.Parameter(replays.head.weight * 3, requires_grad=False)
    assert not torch.allclose(gradient(replays, images(1)), gradient(model, images(1)))
    assert replays.forward.kept == 0


def test_replays_follow_a_training():
    # In float64, where all kernels are PyTorch's own; others cannot be recorded.
    model = net().requires_grad_(True)
    copied = AttackCopy(model)
    attacked, y = copied.refresh(), torch.arange(4)
    x = images(1)
    kept = []
    for _ in range(3):
        kept.append(pgd(copied.refresh(), x, y, random_start=False, **ATTACK))
        with torch.no_grad():
            model.head.weight.mul_(-1)
    assert isinstance(attacked.forward, graphs.Replays)
    assert torch.equal(kept[0], kept[2]) and not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("shapes", [[4, 4, 4, 3, 3, 3, 2, 2, 2], [4] * 3])
def test_at_most_two_shapes_are_kept(shapes):
    copied = net()
    graphs.attach(copied)
    for number, count in enumerate(shapes):
        expected = gradient(net(), images(number, count))
        torch.testing.assert_close(gradient(copied, images(number, count)), expected, atol=1e-12, rtol=0)
    assert copied.forward.kept == min(len(set(shapes)), graphs.MAX_GRAPHS)


def test_each_precision_has_its_own_graph():
    copied = net().float()
    graphs.attach(copied)
    for mixed in (False, False, True, True, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            kind = copied(images().float().requires_grad_()).dtype
        assert kind == (torch.bfloat16 if mixed else torch.float32)
    assert copied.forward.kept == 2


class Noisy(nn.Module):
    """Has a random gradient."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3 * SIZE * SIZE, 10)

    def forward(self, x):
        return self.head((x * torch.rand_like(x)).flatten(1))


class Counting(nn.Module):
    """Returns other logits in every call, without random numbers."""

    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(3 * SIZE * SIZE, 10), 0

    def forward(self, x):
        self.calls += 1
        return self.head(x.flatten(1)) * self.calls


@pytest.mark.parametrize(
    ("model", "complaint"), [(Noisy, "differ"), (Counting, "differ"), (lambda: refusing(net()), "cannot be captured")]
)
def test_models_that_cannot_be_replayed_are_computed_as_usual(model, complaint, caplog):
    model = model().double().requires_grad_(False)
    graphs.attach(model)
    for number in range(4):
        gradient(model, images(number))
    assert model.forward.kept == 0
    assert caplog.text.count(complaint) == 1


def refusing(model: nn.Module) -> nn.Module:
    """Refuses to be captured, like a synchronisation on CUDA."""

    def hook(module, inputs, output):
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    model.head.register_forward_hook(hook)
    return model


def test_replays_that_are_no_faster_are_dropped(monkeypatch):
    monkeypatch.setattr(graphs, "seconds", lambda call, device: 1.0)
    model = net()
    graphs.attach(model)
    for number in range(3):
        gradient(model, images(number))
    assert model.forward.kept == 0


@pytest.mark.parametrize(("taken", "kept"), [((2.0, 1.5, 1.0), 2), ((2.0, 1.0, 1.5), 1), ((2.0, 2.0, 2.0), None)])
def test_a_mixtures_networks_are_captured_concurrently_if_that_is_faster(monkeypatch, taken, kept):
    times, used = iter(taken), []
    monkeypatch.setattr(graphs, "seconds", lambda call, device: next(times))
    monkeypatch.setattr(streams, "on_stream", lambda stream, call: used.append(stream) or call())
    model, expected = dwf(), dwf()
    graphs.attach(model)
    for number in range(4):
        found = gradient(model, images(number))
        torch.testing.assert_close(found, gradient(expected, images(number)), atol=1e-12, rtol=0)
    # During the capture only, and on at most one stream per network.
    assert used == [0, 1]
    assert [replay and replay.streams for replay in model.forward._kept.values()] == [kept]


@pytest.mark.parametrize(("count", "expected"), [(1, []), (2, [0, 1, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_concurrent_results_are_in_order(monkeypatch, count, expected):
    used = []
    monkeypatch.setattr(streams, "on_stream", lambda stream, call: used.append(stream) or call())
    with streams.use_streams(count):
        assert streams.run_concurrently([lambda: "a", lambda: "b", lambda: "c"]) == ["a", "b", "c"]
    assert used == expected


def test_a_routed_model_is_not_captured():
    model = build_moe_cnn("resnet18", 10, width=0.125).eval().requires_grad_(False)
    for each in (model, for_training(model)):
        graphs.attach(each)
        assert "forward" not in vars(each)


def test_a_copy_of_a_copy_captures_its_own_graph():
    model = net()
    twin = copy.deepcopy(replaying(model))
    assert twin.forward.kept == 0
    with torch.no_grad():
        twin.head.weight.mul_(-1)
        model.head.weight.mul_(-1)
    for number in range(3):
        torch.testing.assert_close(gradient(twin, images(number)), gradient(model, images(number)), atol=1e-12, rtol=0)
    assert twin.forward.kept == 1


@pytest.mark.parametrize("asked", ["0", "", "1"])
def test_it_is_off_unless_enabled(monkeypatch, asked):
    monkeypatch.undo()
    monkeypatch.setenv(graphs.VARIABLE, asked)
    assert graphs.is_enabled(torch.device("cuda")) == (asked == "1")
    assert not graphs.is_enabled(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_replays_equal_the_model(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv(graphs.VARIABLE, "1")
    monkeypatch.setattr(graphs, "MIN_SPEEDUP", 0.0)
    model = net().float().cuda()
    copied, x, y = AttackCopy(model).refresh(), images(1, 32).float().cuda(), torch.arange(32, device="cuda") % 10
    for _ in range(3):
        found = pgd(copied, x, y, random_start=False, **ATTACK)
    assert copied.forward.kept == 1
    with torch.no_grad():
        same = (found - pgd(model, x, y, random_start=False, **ATTACK)).abs() < 1e-6
    assert same.double().mean() > 0.99
