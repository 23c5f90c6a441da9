"""What must hold for the attacks on every mixture from outside the papers."""

import pytest
import torch

from moat.attacks import moe_adaptive, pgd
from moat.attacks.parts.views import views_of
from moat.models.moe import build_mixture

SIZE, STEPS = 8, 3
BUDGET = {"eps": 16 / 255, "step_size": 8 / 255, "steps": STEPS}
# Kind -> its options, and the numbers that a fit would have set.
KINDS = {
    "mixed-fixed": ({}, {"alpha": 0.7}),
    "mixednuts": ({}, {"alpha": 0.99, "scale": 5.0, "power": 4.0, "shift": -1.1, "plain_alpha": 0.95}),
    "adaptive-smoothing": ({}, {}),
    "rt-er": ({"experts": 3}, {}),
    "jtd-moe": ({"experts": 2}, {}),
    "blockmoe": ({"experts": 3, "blocks": 2}, {}),
}


def tiny(kind):
    options, numbers = KINDS[kind]
    torch.manual_seed(0)
    model = build_mixture(kind, "resnet18", 10, width=1 / 16, image_size=SIZE, **options).eval()
    with torch.no_grad():
        for name, value in numbers.items():
            getattr(model, name).fill_(value)
        for name, parameter in model.named_parameters():
            if name.endswith("head.weight"):
                # As sure as trained nets are.
                parameter.mul_(50)
    return model


@pytest.mark.brief(keep=lambda case: case["kind"] == "mixednuts")
@pytest.mark.parametrize("kind", KINDS)
def test_the_adaptive_attack_never_leaves_more_than_the_stock_attack(kind):
    """Image by image: its first stage is the stock attack itself, and the others only add to what it finds."""
    model, x = tiny(kind), torch.rand(24, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    survivors = {}
    for name, attack in (("stock", pgd), ("adaptive", moe_adaptive)):
        draws = [torch.Generator().manual_seed(number) for number in range(len(x))]
        with torch.no_grad():
            survivors[name] = model(attack(model, x, y, generator=draws, **BUDGET)).argmax(1) == y
    assert not (survivors["adaptive"] & ~survivors["stock"]).any()
    assert survivors["stock"].any()


@pytest.mark.parametrize("kind", KINDS)
def test_each_expert_alone_is_a_view(kind):
    names = set(views_of(tiny(kind)))
    parts = {
        "rt-er": {"expert0", "expert1", "expert2", "joint0", "joint1", "joint2"},
        "jtd-moe": {"standard", "robust", "joint0-0", "joint0-1", "joint1-0", "joint1-1"},
        "blockmoe": {f"layer{layer}-expert{e}" for layer in range(2) for e in range(3)}
        | {f"path{first}-{second}" for first in range(3) for second in range(3)},
    }
    assert parts.get(kind, {"expert0", "expert1"}) <= names
