"""The twins of attack settings: the same attack without the gradient through a net's router, so ``pgd10_det`` of pgd10.

A twin is not written in ``config/attacks.yaml``: it always has the parameters of its original, at every scale.
"""

from collections.abc import Mapping
from typing import Any

SUFFIX = "_det"
KEYS = {"view": "detached", "requires": "router"}
# What is attacked instead of the model, or measured otherwise, or is no attack at all has no twin.
_EXCLUDED = ("view", "transfer_from", "requires")


def has_twin(setting: Mapping[str, Any]) -> bool:
    attacks = setting["attack"] not in ("none", "corruption") and setting.get("protocol", "correct") == "correct"
    return attacks and not any(key in setting for key in _EXCLUDED)


def original(name: str, written: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The setting whose twin ``name`` is; None where ``name`` is written itself or is no twin."""
    base = name.removesuffix(SUFFIX)
    is_twin = name not in written and base != name and base in written and has_twin(written[base])
    return base if is_twin else None
