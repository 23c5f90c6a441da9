"""Which numbers may stand in which cell: a flawed protocol's never count as robustness."""

from collections.abc import Iterable, Mapping
from typing import Any

from moat.base.errors import ConfigError

CORRECT = "correct"


def check_cell(protocol: str, settings: Iterable[str], attacks: Mapping[str, Mapping[str, Any]], *, where: str) -> None:
    """The attack settings of a cell are measured by its protocol; clean images are the same in all.

    Args:
        attacks: settings by name, as in ``config/attacks.yaml``; one that is missing there is not checked.

    Raises:
        ConfigError: a setting of another protocol; names it, both protocols, and ``where``.
    """
    for name in settings:
        setting = attacks.get(name, {"attack": "none"})
        measured_by = setting.get("protocol", CORRECT)
        if measured_by != protocol and setting.get("attack") != "none":
            raise ConfigError(
                f"{where}: the setting {name!r} is measured by the protocol {measured_by}, not by the cell's, "
                f"{protocol}; give the point that protocol, or another setting"
            )
