"""Multiply-adds of one forward pass, for the nets of a plan, usually without importing torch.

``macs.csv`` beside this file has the nets of the configured studies at all scales; ``python -m moat.planning.macs``
updates it. Other nets are built and counted, once in a process.
"""

import csv
import functools
import io
import logging
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import moat.methods
from moat.base.files import write_text
from moat.config.grid import Run, build_grid
from moat.config.project import Project
from moat.config.recipes import resolve_recipe

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parent / "macs.csv"


@dataclass(frozen=True, order=True)
class Net:
    """Everything that determines the multiply-adds of a run's net.

    Attributes:
        method_class: the registry name of the class that builds it.
        model: the ``model`` of recipe and scale, as "key=value key=value".
    """

    method_class: str
    arch: str
    model: str
    image_size: int
    channels: int
    classes: int

    @property
    def options(self) -> dict[str, Any]:
        return dict(_parse(part) for part in self.model.split())


def net_of(project: Project, scale: str, run: Run, recipe: Mapping[str, Any] | None = None) -> Net:
    """The net of a run at a scale. ``recipe``: the result of :func:`resolve_recipe`, if already known."""
    recipe = recipe or resolve_recipe(project, scale, run.method)
    overrides, data = project.scale(scale), project.dataset(run.dataset)
    # In the order of resolve_run: the recipe takes precedence.
    model = {"width": 1.0, **overrides.get("model", {}), **recipe.get("model", {})}
    size = overrides["data"]["image_size"] or data["image_size"]
    return Net(recipe["class"], run.arch, describe(model), size, data["channels"], data["num_classes"])


def describe(model: Mapping[str, Any]) -> str:
    """The options of a net on one line, sorted by name."""
    return " ".join(f"{key}={model[key]}" for key in sorted(model))


def _parse(part: str) -> tuple[str, Any]:
    key, _, text = part.partition("=")
    for kind in (int, float):
        try:
            return key, kind(text)
        except ValueError:
            continue
    return key, text


def macs_of(nets: Iterable[Net]) -> dict[Net, int]:
    """Multiply-adds of one forward pass of one image, for each of the nets."""
    table, nets = _read(SHIPPED), set(nets)
    if missing := nets - table.keys():
        log.info("counting the multiply-adds of %d nets that are not in the table", len(missing))
    return {net: table.get(net) or count(net) for net in nets}


@functools.cache
def count(net: Net) -> int:
    """Build the net and count one forward pass. Imports torch."""
    import moat.models  # Here, because a plan seldom needs it.

    return moat.models.count_macs(build(net), net.image_size, net.channels)


def build(net: Net):
    """Build the model of a run, with random weights. Imports torch."""
    options = {**net.options, "image_size": net.image_size, "in_channels": net.channels}
    options["normalize"] = [[0.5] * net.channels, [0.25] * net.channels]
    method = moat.methods.get(net.method_class)
    return method.build(arch=net.arch, num_classes=net.classes, options=options)


def nets_of_studies(project: Project) -> list[Net]:
    """The nets of all studies at all scales, sorted."""
    found = set()
    for scale in project.names("scales"):
        runs = build_grid(project, scale, project.names("studies")).runs
        found |= {net_of(project, scale, run) for run in runs}
    return sorted(found)


def _read(path: Path) -> dict[Net, int]:
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as stream:
        return {
            Net(*(field.type(row[field.name]) for field in fields(Net))): int(row["macs"])
            for row in csv.DictReader(stream)
        }


def _write(path: Path, table: Mapping[Net, int]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*(field.name for field in fields(Net)), "macs"])
    writer.writerows((*astuple(net), table[net]) for net in sorted(table))
    write_text(path, stream.getvalue())


if __name__ == "__main__":
    known = _read(SHIPPED)
    _write(SHIPPED, {net: known.get(net) or count(net) for net in nets_of_studies(Project("."))})
