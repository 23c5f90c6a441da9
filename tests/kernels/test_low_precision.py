"""The copy in half precision: which parts compute in it."""

import pytest
import torch
from torch import nn

from moat import models
from moat.kernels import for_attack
from moat.models import ChannelExpertConv2d, build_mixture, build_moe_cnn
from moat.models.moe.weighted import WeightedMixture

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


@pytest.mark.brief(keep=lambda case: case["name"] in ("resnet18", "preact-resnet18", "wrn-28-10", "sramoe"))
@pytest.mark.parametrize("name", MODELS)
def test_convolutions_compute_in_half_precision_and_the_router_does_not(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    x = torch.rand(6, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    copied = for_attack(model, dtype=torch.bfloat16)
    x.requires_grad_()
    logits = copied(x)
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert logits.dtype == gradient.dtype == torch.float32
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    of_router = set(getattr(copied, "router", nn.Module()).modules())
    types = {
        (module in of_router, module.weight.dtype)
        for module in copied.modules()
        if isinstance(module, (nn.Conv2d, ChannelExpertConv2d))
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


def test_a_model_that_cannot_be_copied_is_attacked_as_it_is(caplog):
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("not this one")

    model = Stubborn(2, 2)
    assert for_attack(model, dtype=torch.bfloat16) is model
    assert model.weight.dtype == torch.float32
    assert "its own precision" in caplog.text
