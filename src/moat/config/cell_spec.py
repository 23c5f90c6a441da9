"""What a cell is about: the keys of its table, of its points of rows and columns, and of what the study excepts."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from moat.base.errors import ConfigError, unknown_name

Points = Sequence[tuple[str, Mapping[str, Any]]]

# What a point says about itself, not about what is measured.
_NOT_BOUND = ("label", "published", "unpublished")
# Keys of a table that hold for every cell that says nothing else.
_FROM_TABLE = ("suite", "explained_by", "tolerance", "hardware")
CLEAN = "clean"


def bind(spec: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """The keys of one cell: the table's, then those of its points, then those of each exception that fits."""
    bound: dict[str, Any] = {"protocol": "correct", "measure": "accuracy", "aggregate": "worst"}
    bound.update({key: spec[key] for key in _FROM_TABLE if key in spec})
    for _, point in points:
        bound.update({key: value for key, value in point.items() if key not in _NOT_BOUND})
    labels = {axis: point["label"] for axis, point in points}
    for exception in spec.get("except", ()):
        if all(labels.get(axis) in allowed for axis, allowed in exception["where"].items()):
            bound.update({key: value for key, value in exception.items() if key != "where"})
    return bound


def check_exceptions(spec: Mapping[str, Any], where: str) -> None:
    """Every label that an exception names must be one of the table's: a slip in it would except nothing.

    Raises:
        ConfigError: an axis or a label that the table does not have; names ``where``.
    """
    labels = {axis["axis"]: [point["label"] for point in axis["points"]] for axis in (*spec["rows"], *spec["columns"])}
    for exception in spec.get("except", ()):
        for axis, allowed in exception["where"].items():
            if axis not in labels:
                raise ConfigError(f"{where}: except: " + unknown_name(axis, labels, what="axis"))
            for label in allowed:
                if label not in labels[axis]:
                    raise ConfigError(f"{where}: except: " + unknown_name(label, labels[axis], what=f"label of {axis}"))


def expand_settings(patterns: Sequence[str], known: Sequence[str], *, suite: str, where: str) -> tuple[str, ...]:
    """The settings of a suite that names and patterns (``fog-?``) stand for, in the suite's order within each.

    Raises:
        ConfigError: a name that is not in the suite, or a pattern that fits none of it.
    """
    settings: dict[str, None] = {}
    for pattern in patterns:
        fitting = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        if not fitting:
            raise ConfigError(f"{where}: " + unknown_name(pattern, known, what=f"setting of suite {suite!r}"))
        settings.update(dict.fromkeys(fitting))
    return tuple(settings)


def explanation(bound: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The cell's keys under a flawed protocol; None where that changes nothing (clean images are no attack).

    ``entry``: protocol, and either settings or a suffix, which is put behind the name of every setting but clean.
    """
    written = tuple(bound.get("settings", ()))
    settings = tuple(entry.get("settings") or (_suffixed(name, entry["suffix"]) for name in written))
    if settings == written:
        return None
    changes = {key: value for key, value in entry.items() if key != "suffix"}
    return {**bound, **changes, "settings": settings}


def _suffixed(setting: str, suffix: str) -> str:
    return setting if setting == CLEAN else setting + suffix
