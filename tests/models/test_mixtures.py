"""Mixtures of full networks: sizes, the sums and choices they make, and where gradients go."""

import pytest
import safetensors.torch
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from moat.base.errors import ConfigError, DataError
from moat.models import nets
from moat.models.moe import build_mixture, statistics
from moat.models.moe.experts import Experts, load_experts
from moat.models.moe.soe import confidence, most_confident
from moat.models.moe.views import View

KINDS = ("dwf", "sramoe", "soe", "mocse")


def tiny(kind, *, num_classes=4, arch="resnet18", **options):
    """In float64, with running statistics that are not those of a fresh net."""
    torch.manual_seed(0)
    model = build_mixture(kind, arch, num_classes, width=1 / 16, image_size=8, normalize="cifar10", **options).double()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.ndim == 1:
                buffer.add_(torch.rand_like(buffer) * 0.3)
    return model.eval()


def images(count=6, seed=1):
    return torch.rand(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("kind", "arch", "options", "parameters"),
    [
        # Nine ResNet-18, 3072 -> 256 -> 9; two, and a ResNet-20; three, each with a linear unit of 512.
        ("dwf", "resnet18", {}, 9 * 11_173_962 + 789_001),
        ("sramoe", "resnet18", {}, 2 * 11_173_962 + 269_202),
        ("soe", "resnet18", {}, 3 * (11_173_962 + 513)),
        # Ten with a head of 512 -> 2 instead of 512 -> 10.
        ("mocse", "preact-resnet18", {}, 10 * (11_172_170 - 8 * 513)),
        ("mocse", "preact-resnet18", {"expert_width": 20 / 64}, 10_929_020),
    ],
)
def test_parameters(kind, arch, options, parameters):
    with torch.device("meta"):
        assert nets.count_parameters(build_mixture(kind, arch, 10, **options)) == parameters


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", ["resnet18", "preact-resnet18"])
def test_logits_do_not_depend_on_the_rest_of_the_batch_or_on_the_memory_format(kind, arch):
    model, x = tiny(kind, arch=arch), images()
    logits = model(x)
    assert logits.shape == (6, 4)
    torch.testing.assert_close(logits[2:3], model(x[2:3]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logits, model(x.contiguous(memory_format=torch.channels_last)), rtol=1e-10, atol=1e-10)


def test_experts_start_differently():
    first, second = tiny("dwf", experts=2).experts
    assert not torch.equal(first.head.weight, second.head.weight)


@pytest.mark.parametrize(("kind", "experts"), [("dwf", 3), ("sramoe", 2)])
def test_a_weighted_mixture_is_the_weighted_sum_of_its_experts_logits(kind, experts):
    model, x = tiny(kind, experts=experts), images()
    logits, weights = model.mix(x)
    scores = model.route_logits(x)
    expected = torch.zeros(6, 4, dtype=torch.float64)
    for b in range(6):
        exponentials = [scores[b, i].exp() for i in range(experts)]
        for i, expert in enumerate(model.experts):
            expected[b] += exponentials[i] / sum(exponentials) * expert(x[b : b + 1])[0]
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (weights > 0).all() and torch.equal(logits, model(x))


@pytest.mark.parametrize("kind", [*KINDS, "moe-cnn"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_a_mixture_computes_in_the_precision_of_its_weights(kind, precision):
    """No intermediate tensor of another precision: a float64 mixture with float32 weights is off by 6e-8."""
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            each = out if isinstance(out, tuple | list) else [out]
            seen.update(t.dtype for t in each if isinstance(t, torch.Tensor) and t.is_floating_point())
            return out

    model, x = tiny(kind).to(precision), images().to(precision)
    with Watch():
        model(x)
        for view in model.attack_views().values():
            (view.module if isinstance(view, View) else view)(x)
    assert seen == {precision}


def test_the_gate_sees_the_normalised_image():
    gate, x = tiny("dwf", experts=3).router, images()
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in nets.normalize.STATISTICS["cifar10"])
    flat = torch.stack([(image - mean[:, None, None]).div(std[:, None, None]).flatten() for image in x])
    hidden = (flat @ gate.hidden.weight.T + gate.hidden.bias).clamp(min=0)
    torch.testing.assert_close(gate(x), hidden @ gate.head.weight.T + gate.head.bias, rtol=1e-5, atol=1e-6)


def test_the_gate_and_every_expert_get_a_gradient():
    model = tiny("dwf", experts=3).train()
    F.cross_entropy(model(images()), torch.tensor([0, 1, 2, 3, 0, 1])).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.router.parameters())
    assert all(expert.head.weight.grad.abs().max() > 0 for expert in model.experts)


# -- SoE ---------------------------------------------------------------------
@torch.no_grad()
def test_soe_answers_with_its_most_confident_expert():
    model, x = tiny("soe", experts=3), images(20)
    for index, expert in enumerate(model.experts):
        expert.confidence_head.bias.fill_(0.1 * index)
    logits, factor = model.answers(x)
    for b in range(20):
        of_each = [float(factor[i, b] * logits[i, b].softmax(0).max()) for i in range(3)]
        best = max(range(3), key=of_each.__getitem__)
        torch.testing.assert_close(model(x)[b], model.experts[best](x)[b], rtol=1e-10, atol=1e-10)
        assert model.route_logits(x)[b].tolist() == pytest.approx(of_each) and max(of_each) < 1


def test_soe_choice_has_no_gradient():
    """Only the chosen expert's class logits carry one: neither the factor nor the other experts."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 4, generator=g).requires_grad_()
    factor = torch.rand(3, 8, generator=g).requires_grad_()
    most_confident(logits, factor).square().sum().backward()
    assert factor.grad is None
    chosen = confidence(logits, factor).argmax(0)
    for i in range(3):
        for b in range(8):
            assert bool(logits.grad[i, b].abs().sum() > 0) == bool(chosen[b] == i)


# -- MoCSE -------------------------------------------------------------------
@pytest.mark.parametrize("aggregation", ["logodds", "true_logit", "probability"])
def test_mocse_aggregates_what_its_experts_say(aggregation):
    model, x = tiny("mocse", aggregation=aggregation), images()
    logits = model(x)
    for n, expert in enumerate(model.experts):
        false, true = expert(x).unbind(1)
        expected = {
            "logodds": true - false,
            "true_logit": true,
            "probability": true.exp() / (true.exp() + false.exp()),
        }[aggregation]
        torch.testing.assert_close(logits[:, n], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("aggregation", ["logodds", "probability"])
def test_mocse_predicts_the_class_of_the_largest_probability_of_true(aggregation):
    model = tiny("mocse", num_classes=7, aggregation=aggregation)
    answers = torch.randn(7, 200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    assert torch.equal(model.aggregate(answers).argmax(1), answers.softmax(-1)[..., 1].argmax(0))


def test_mocse_has_one_expert_per_class_and_no_router():
    model = tiny("mocse", num_classes=5)
    assert len(model.experts) == 5 and not hasattr(model, "route_logits")


# -- wrong input -------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("dfw", {}, "unknown mixture 'dfw'.*dwf"),
        ("mocse", {"aggregation": "logods"}, "unknown aggregation 'logods'.*logodds"),
        ("dwf", {"experts": 0}, "experts: 0 is not allowed"),
        ("soe", {"gate_hidden": 3}, "unknown option of soe 'gate_hidden'.*experts"),
        ("mocse", {"experts": 3}, "unknown option of mocse 'experts'.*expert_width"),
    ],
)
def test_wrong_options_are_named(kind, options, said):
    with pytest.raises(ConfigError, match=said):
        build_mixture(kind, "lenet5", 10, **options)


def test_trained_experts_are_loaded_in_order_and_errors_name_the_file(tmp_path):
    torch.manual_seed(0)
    trained = [nets.build("lenet5", 10) for _ in range(2)]
    for index, net in enumerate(trained):
        (tmp_path / str(index)).mkdir()
        safetensors.torch.save_file(net.state_dict(), tmp_path / str(index) / "model.safetensors")
    experts = Experts(nets.build("lenet5", 10) for _ in range(2))
    load_experts(experts, {"a": tmp_path / "0", "b": tmp_path / "1"})
    for net, expert in zip(trained, experts, strict=True):
        assert all(torch.equal(value, expert.state_dict()[key]) for key, value in net.state_dict().items())
    with pytest.raises(ConfigError, match=r"1 runs \(a\) for 2 experts"):
        load_experts(experts, {"a": tmp_path / "0"})
    with pytest.raises(DataError, match="gone/model.safetensors: no such file"):
        load_experts(experts, {"a": tmp_path / "0", "b": tmp_path / "gone"})
    (tmp_path / "0" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="0/model.safetensors: not the weights of this expert"):
        load_experts(experts, {"a": tmp_path / "0", "b": tmp_path / "1"})
    with pytest.raises(DataError, match="1/model.safetensors: not the weights of this expert"):
        load_experts(Experts([nets.build("lenet5", 7)]), {"b": tmp_path / "1"})


# -- statistics --------------------------------------------------------------
def test_statistics_of_a_router():
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    said = {key: float(value) for key, value in statistics.weights("clean", weights).items()}
    assert said == pytest.approx(
        {"expert0_weight_clean": 0.75, "expert1_weight_clean": 0.25, "router_entropy_clean": 0.6931472 / 2}
    )
    loads = statistics.loads("adversarial", torch.tensor([0, 2, 2, 2]), 3)
    assert [float(value) for value in loads.values()] == [0.25, 0, 0.75]
    assert list(loads)[2] == "expert2_load_adversarial"
