"""The copy in half precision: what computes in it, what does not, and that an attack on it is as strong."""

import pytest
import torch
from torch import nn

from moat import models
from moat.attacks import pgd
from moat.kernels.low_precision import for_low_precision_attack
from moat.models.moe import build_mixture, build_moe_cnn
from moat.models.moe.mixtures import WeightedMixture

SMALL = {"width": 1 / 16, "image_size": 16}
MODELS = {
    "resnet18": lambda: models.build("resnet18", 10, **SMALL),
    "wrn-28-10": lambda: models.build("wrn-28-10", 10, **SMALL),
    "preact-resnet18": lambda: models.build("preact-resnet18", 10, **SMALL),
    "lenet5": lambda: models.build("lenet5", 10, **SMALL),
    "moe": lambda: build_moe_cnn("resnet18", 10, width=0.125),
    "moe, dcar, norm per expert": lambda: build_moe_cnn("resnet18", 10, width=0.125, router="dcar", bn="per_expert"),
    "moe wrn": lambda: build_moe_cnn("wrn-28-10", 10, width=0.0625),
    "dwf": lambda: build_mixture("dwf", "resnet18", 10, experts=2, **SMALL),
    "sramoe": lambda: build_mixture("sramoe", "resnet18", 10, **SMALL),
    "soe": lambda: build_mixture("soe", "resnet18", 10, experts=2, **SMALL),
    "mocse": lambda: build_mixture("mocse", "preact-resnet18", 3, **SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_convolutions_compute_in_half_precision_and_the_router_does_not(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.rand(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = for_low_precision_attack(model)
    x.requires_grad_()
    logits = copied(x)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert logits.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    of_router = set(getattr(copied, "router", nn.Module()).modules())
    types = {
        (module in of_router, module.weight.dtype)
        for module in copied.modules()
        if isinstance(module, nn.Conv2d) or hasattr(module, "forward_sorted")
    }
    assert types - {(True, torch.float32)} == {(False, torch.bfloat16)}
    with torch.no_grad():
        expected = model.eval()(x)
        difference = (logits - expected).abs().max() / expected.abs().max()
        # 8 bits of mantissa: neither equal, nor far off.
        assert 0 < difference < 0.1
        if isinstance(model, WeightedMixture) or name.startswith("moe"):
            torch.testing.assert_close(copied.route_logits(x), model.route_logits(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_robust_accuracy_is_that_of_the_attack_in_float32(trained, digits):
    """On all test images, at a strength that breaks some and not others."""
    x, y = digits[0][1280:], digits[1][1280:]
    settings = {"eps": 0.05, "step_size": 0.01, "steps": 10}
    right = {}
    for name, net in (("float32", trained), ("bf16", for_low_precision_attack(trained, x[:8]))):
        found = pgd(net, x, y, generator=torch.Generator().manual_seed(0), **settings)
        assert (found - x).abs().max() <= settings["eps"] + 1e-6
        with torch.no_grad():
            right[name] = trained(found).argmax(1) == y
    robust = right["float32"].float().mean()
    assert 0.1 < robust < 0.8
    # Two standard errors of a difference between two independent samples of this size; here the images are the same.
    noise = 2 * (2 * robust * (1 - robust) / len(y)).sqrt()
    assert (right["bf16"].float().mean() - robust).abs() < noise
    assert (right["bf16"] != right["float32"]).float().mean() < 0.05


def test_a_model_that_cannot_be_copied_is_attacked_as_it_is(caplog):
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    model = Stubborn(2, 2)
    assert for_low_precision_attack(model) is model
    assert model.weight.dtype == torch.float32
    assert "its own precision" in caplog.text
