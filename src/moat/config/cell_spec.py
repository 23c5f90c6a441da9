"""What a cell measures: the keys of its table, of its points on both axes, and of the overrides that match it."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.config import twins

Points = Sequence[tuple[str, Mapping[str, Any]]]

# Keys that describe a point, not the measurement.
_NOT_BOUND = ("label", "declared_label", "published", "not_in_paper")
# What follows the label of a line with the weights of the last epoch.
LAST_EPOCH = " (last epoch)"
# Keys of a table that are defaults for its cells.
_FROM_TABLE = ("suite", "both_gradients", "alternative_protocols", "hardware")
CLEAN = "clean"
CORRECT = "correct"


def bind(spec: Mapping[str, Any], points: Points) -> dict[str, Any]:
    """The keys of one cell; later ones win: the table's, each point's in axis order, each matching override's."""
    bound: dict[str, Any] = {"protocol": CORRECT, "measure": "accuracy", "aggregate": "worst"}
    bound.update({key: spec[key] for key in _FROM_TABLE if key in spec})
    for _, point in points:
        bound.update({key: value for key, value in point.items() if key not in _NOT_BOUND})
    for override in spec.get("overrides", ()):
        if matches(points, override["match"]):
            bound.update({key: value for key, value in override.items() if key != "match"})
    if bound.get("weights") == "last":
        # Nothing is published for it that a flawed protocol could explain.
        bound.pop("alternative_protocols", None)
        bound["suite"] = spec["last_epoch"].get("suite", bound.get("suite"))
    return bound


def matches(points: Points, wanted: Mapping[str, Sequence[str]]) -> bool:
    """Whether points have one of the ``wanted`` labels on each of its axes."""
    labels = {axis: point.get("declared_label", point["label"]) for axis, point in points}
    return all(labels.get(axis) in allowed for axis, allowed in wanted.items())


def with_last_epoch(line: Points, wanted: Mapping[str, Sequence[str]]) -> Points | None:
    """The row or column that shows the last epoch of the one with the points ``line``; None where it is not wanted."""
    if not matches(line, wanted):
        return None
    axis = list(wanted)[-1]

    def last(point: Mapping[str, Any]) -> dict[str, Any]:
        label = point["label"]
        return {**point, "label": label + LAST_EPOCH, "declared_label": label, "weights": "last", "not_in_paper": True}

    return [(name, last(point) if name == axis else point) for name, point in line]


def check_matches(spec: Mapping[str, Any], where: str) -> None:
    """Every label that is matched must exist in the table: with a typo it would silently match nothing.

    Raises:
        ConfigError: an axis or a label that the table does not have; names ``where``.
    """
    labels = {axis["axis"]: [point["label"] for point in axis["points"]] for axis in (*spec["rows"], *spec["columns"])}
    declared = [("overrides", override["match"]) for override in spec.get("overrides", ())]
    if "last_epoch" in spec:
        declared.append(("last_epoch", spec["last_epoch"]["match"]))
        sides = [{axis["axis"] for axis in spec[side]} for side in ("rows", "columns")]
        if not any(side >= spec["last_epoch"]["match"].keys() for side in sides):
            named = ", ".join(spec["last_epoch"]["match"])
            raise ConfigError(f"{where}: last_epoch: match: axes {named}; allowed: those of the rows or of the columns")
    for key, match in declared:
        for axis, allowed in match.items():
            if axis not in labels:
                raise ConfigError(f"{where}: {key}: " + unknown_name(axis, labels, what="axis"))
            for label in allowed:
                if label not in labels[axis]:
                    what = unknown_name(label, labels[axis], what=f"label of {axis}")
                    raise ConfigError(f"{where}: {key}: {what}")


def expand_settings(patterns: Sequence[str], known: Sequence[str], *, suite: str, where: str) -> tuple[str, ...]:
    """The settings of a suite that names and patterns (``fog-?``) stand for; each pattern's in the suite's order.

    Raises:
        ConfigError: a name that is not in the suite, or a pattern that matches none of it.
    """
    settings: dict[str, None] = {}
    for pattern in patterns:
        matching = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        if not matching:
            raise ConfigError(f"{where}: " + unknown_name(pattern, known, what=f"setting of suite {suite!r}"))
        settings.update(dict.fromkeys(matching))
    return tuple(settings)


def with_twins(
    settings: Sequence[str],
    known: Sequence[str],
    attacks: Mapping[str, Mapping[str, Any]],
    *,
    suite: str,
    where: str,
) -> tuple[str, ...]:
    """Each setting followed by its twin without the router's gradient (:mod:`moat.config.twins`), where it has one.

    Raises:
        ConfigError: a twin that is not in the suite.
    """
    found: list[str] = []
    for name in settings:
        found.append(name)
        if name in attacks and twins.has_twin(attacks[name]):
            if (twin := name + twins.SUFFIX) not in known:
                raise ConfigError(f"{where}: both_gradients: the suite {suite!r} has no setting {twin!r}")
            found.append(twin)
    return tuple(dict.fromkeys(found))


def check_protocol(
    protocol: str, settings: Iterable[str], attacks: Mapping[str, Mapping[str, Any]], *, where: str
) -> None:
    """A cell's settings must be measured by its protocol: numbers of a flawed one never count as robustness.

    Args:
        attacks: settings by name, as in ``config/attacks.yaml``; one that is missing there is not checked.

    Raises:
        ConfigError: a setting of another protocol; names it, both protocols, and ``where``.
    """
    for name in settings:
        setting = attacks.get(name, {"attack": "none"})
        measured_by = setting.get("protocol", CORRECT)
        # Clean images are the same under every protocol.
        if measured_by != protocol and setting.get("attack") != "none":
            raise ConfigError(
                f"{where}: the setting {name!r} is measured by the protocol {measured_by}, not by the cell's, "
                f"{protocol}; give the point that protocol, or another setting"
            )


def under_alternative(bound: Mapping[str, Any], alternative: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys of a cell under an alternative protocol; None where nothing changes (clean images are not attacked).

    Args:
        alternative: an entry of ``alternative_protocols``: a protocol, and either settings or a suffix that is
            appended to the name of every setting but clean; perhaps ``methods``, the recipes to which the cell's method
            is to be changed, where the flaw sits in the training, too.
    """
    written = tuple(bound.get("settings", ()))
    suffix = alternative.get("suffix", "")
    settings = tuple(alternative.get("settings") or (name if name == CLEAN else name + suffix for name in written))
    changed = {key: value for key, value in alternative.items() if key not in ("suffix", "methods")}
    method = bound.get("method")
    if method in alternative.get("methods", {}):
        changed["method"] = alternative["methods"][method]
    if settings == written and "method" not in changed:
        return None
    return {**bound, **changed, "settings": settings}
