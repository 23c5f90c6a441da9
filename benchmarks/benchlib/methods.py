"""Methods at the start of a training of the project, on freshly initialised nets: to count and to time."""

from collections.abc import Mapping
from typing import Any

import torch

import moat.methods
from moat.config.grid import Run
from moat.config.project import Project
from moat.config.recipes import resolve_recipe, resolve_run
from moat.kernels import for_training
from moat.methods.base import Method
from moat.planning.macs import Net, build, net_of
from moat.training.models import autocast


def resolved_net(project: Project, scale: str, dataset: str, arch: str, method: str) -> tuple[dict[str, Any], Net]:
    """A run's resolved content and its net."""
    resolved = resolve_run(project, scale, dataset=dataset, arch=arch, method=method, seed=0)
    return resolved, net_of(project, scale, Run(dataset, arch, method, 0), resolve_recipe(project, scale, method))


def begin(net: Net, recipe: Mapping[str, Any], device: torch.device) -> Method:
    """The method at the start of its first epoch; runs that it starts from are replaced by random weights."""
    model = for_training(build(net).to(device, memory_format=torch.channels_last))
    method = moat.methods.get(net.method_class)(model, recipe, autocast=autocast(recipe, device))
    for optimizer in method.optimizers.values():
        for group in optimizer.param_groups:
            # On random labels the weights would diverge and end the measurement.
            group["lr"] = 1e-6
    method.train_mode()
    method.begin_epoch(0)
    return method
