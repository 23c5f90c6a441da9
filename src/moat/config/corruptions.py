"""The attack settings that stand for corruptions, so that nobody writes 190 entries by hand."""

import functools
from typing import Any

from moat.config.schema import unknown_name
from moat.data.corruptions.severities import NAMES, PARAMETERS, SEVERITIES
from moat.errors import ConfigError

_ENDINGS = {"cifar10-c": "", "imagenet-c": "-imagenet"}
# Parameters made for large images are a flawed way to measure on small ones.
_PROTOCOL = {"imagenet-c": {"protocol": "imagenet-c-severities"}}


def setting_name(corruption: str, severity: int, severities: str = "cifar10-c") -> str:
    """``fog-3`` for CIFAR-10-C's severities, ``fog-3-imagenet`` for ImageNet-C's."""
    return f"{corruption}-{severity}{_ENDINGS.get(severities, f'-{severities}')}"


def settings(severities: str) -> dict[str, dict[str, Any]]:
    """19 x 5 attack settings by name, corruption by corruption: name -> {attack: corruption, …}.

    Raises:
        ConfigError: unknown ``severities``.
    """
    if severities not in PARAMETERS:
        raise ConfigError(unknown_name(severities, PARAMETERS, what="severities"))
    return {
        setting_name(name, severity, severities): {
            "attack": "corruption",
            "corruption": name,
            "severity": severity,
            "severities": severities,
            **_PROTOCOL.get(severities, {}),
        }
        for name in NAMES
        for severity in SEVERITIES
    }


@functools.cache
def all_settings() -> dict[str, dict[str, Any]]:
    """Those of all severities. Made once, and shared: read only."""
    return {name: setting for severities in PARAMETERS for name, setting in settings(severities).items()}
