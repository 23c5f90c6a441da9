"""Labels of several parts, ``CIFAR-10 / ResNet-18 / TRADES``: what they share, and what distinguishes them."""

import re
from collections.abc import Sequence

SEPARATOR = " / "
_COLUMN_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)+")


def spelled(label: str) -> str:
    """A label that is the name of a column of published numbers, as words: ``robustness_gap`` as "robustness gap"."""
    return label.replace("_", " ") if _COLUMN_NAME.fullmatch(label) else label


def shared_parts(labels: Sequence[str]) -> str:
    """The parts that all labels have in the same position; none for a single label or different lengths."""
    return SEPARATOR.join(part for part, same in _marked(labels) if same)


def without_shared(labels: Sequence[str]) -> list[str]:
    """Each label without what all of them share."""
    same = [same for _, same in _marked(labels)]
    if not any(same):
        return list(labels)
    parts = [label.split(SEPARATOR) for label in labels]
    return [SEPARATOR.join(p for p, is_shared in zip(part, same, strict=True) if not is_shared) for part in parts]


def _marked(labels: Sequence[str]) -> list[tuple[str, bool]]:
    """(part of the first label, whether all share it); nothing where no part would be left, or they do not match."""
    parts = [label.split(SEPARATOR) for label in labels]
    if len(parts) < 2 or len({len(part) for part in parts}) > 1:
        return []
    same = [len(set(column)) == 1 for column in zip(*parts, strict=True)]
    return [] if all(same) else list(zip(parts[0], same, strict=True))
