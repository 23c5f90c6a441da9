"""An attack on the copy in half precision is as strong as one in float32."""

import pytest
import torch

from moat.attacks import for_attack, pgd


@pytest.mark.long
def test_robust_accuracy_is_that_of_the_attack_in_float32(trained, digits):
    """On all test images, at a strength that breaks some and not others."""
    x, y = digits[0][1280:], digits[1][1280:]
    settings = {"eps": 0.05, "step_size": 0.01, "steps": 10}
    right = {}
    for name, net in (("float32", trained), ("bf16", for_attack(trained, x[:8], dtype=torch.bfloat16))):
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
