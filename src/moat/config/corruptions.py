"""The attack settings that stand for corruptions, so that nobody writes 190 entries by hand."""

import functools
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.data.corruptions.severities import NAMES, PARAMETERS, SEVERITIES, setting_name

# Parameters made for large images are a flawed way to measure on small ones.
_PROTOCOL = {"imagenet-c": {"protocol": "imagenet-c-severities"}}


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
