"""Accuracies that are plausible for a model, by its data set, net and method: ``config/bands.yaml``."""

from collections.abc import Mapping
from typing import Any

from moat.base.errors import ConfigError
from moat.base.numbers import parse_number
from moat.config import schema
from moat.config.project import Project

ANY = "any"


def find(project: Project, run: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The band for a run (dataset, arch, method, scale); None and the reason where there is none.

    Raises:
        ConfigError: the file does not fit its schema, a band is upside down, or two fit a run.
    """
    if not project.scale(run["scale"])["comparable"]:
        return None, f"the scale {run['scale']} is not comparable with published results"
    path = project.source / "config" / "bands.yaml"
    bands = schema.load(path, project.source / "workflow" / "schemas" / "bands.schema.yaml")["bands"]
    for band in bands:
        for key in ("clean", "pgd"):
            if key in band and band[key][0] > band[key][1]:
                raise ConfigError(f"{path}: {key} {band[key]}: allowed: [lowest, highest]")
    fitting = [band for band in bands if (band["dataset"], band["arch"]) == (run["dataset"], run["arch"])]
    for method in (run["method"], ANY):
        named = [band for band in fitting if band["method"] == method]
        if len(named) > 1:
            raise ConfigError(f"config/bands.yaml: two bands for {run['dataset']}, {run['arch']}, {method}")
        if named:
            band = dict(named[0])
            if "eps" in band:
                band["eps"] = parse_number(band["eps"], where=f"{path}: eps")
            return band, ""
    return None, f"config/bands.yaml has no band for {run['dataset']}, {run['arch']}"
