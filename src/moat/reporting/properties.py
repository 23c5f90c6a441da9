"""What kind of mixture of experts a method builds, from its model and its recipe: the words of DWF's Table 1."""

import functools

import torch
from torch import nn

import moat.methods
from moat.base.errors import ConfigError, unknown_name
from moat.config.project import Project
from moat.methods.base import Method

# A small net has the structure of a large one.
_SMALL = {"width": 1 / 16, "image_size": 16, "in_channels": 3, "normalize": "cifar10"}
_ARCH, _CLASSES, _IMAGES = "resnet18", 10, 8


@functools.cache
def _build(project: Project, name: str) -> Method:
    """The method as its recipe builds it, small and untrained.

    Raises:
        ConfigError: its model has no experts.
    """
    recipe = project.method(name)
    kind = moat.methods.get(recipe["class"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {**recipe.get("model", {}), **_SMALL}
        model = kind.build(arch=_ARCH, num_classes=_CLASSES, options=options)
    if not hasattr(model, "experts") or not hasattr(model, "route_logits"):
        raise ConfigError(
            f"config/methods/{name}.yaml: not a mixture of experts with a router, so it has no such property"
        )
    return kind(model, recipe)


def gating(method: Method) -> str:
    """Hard: one expert computes the output, and its lead in the scores changes nothing. Soft: a weighted sum."""
    model = method.model.eval()
    x = torch.rand(_IMAGES, 3, _SMALL["image_size"], _SMALL["image_size"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(x)
        if isinstance(getattr(model, "router", None), nn.Module):
            hook = model.router.register_forward_hook(lambda module, inputs, scores: 3 * scores)
            try:
                return "Hard" if torch.equal(model(x), output) else "Soft"
            finally:
                hook.remove()
        alone = torch.stack([expert(x) for expert in model.experts])
    return "Hard" if torch.isclose(alone, output).all(2).any(0).all() else "Soft"


def topology(method: Method) -> str:
    """Flat: one decision per image; hierarchical: experts that route in turn."""
    deciding = [module for module in method.model.modules() if hasattr(module, "route_logits")]
    return "Flat" if len(deciding) == 1 else "Hierarchical"


def training(method: Method) -> str:
    """Pre-trained: it starts from runs of its experts. Joint: experts and gate are trained together."""
    moved = {
        id(p) for optimizer in method.optimizers.values() for group in optimizer.param_groups for p in group["params"]
    }
    steps = ["Pre-trained"] if method.recipe.get("initialize_from") else []
    if all(id(parameter) in moved for parameter in method.model.parameters()):
        steps.append("Joint")
    return "+".join(steps) or "Gate only"


def activation(method: Method) -> str:
    """Fractional: all experts, each by its weight. Single: one whole net. Sparse: one part of each layer."""
    if gating(method) == "Soft":
        return "Fractional"
    return "Single" if isinstance(method.model.experts, nn.Module) else "Sparse"


PROPERTIES = {"gating": gating, "topology": topology, "training": training, "activation": activation}


def describe(project: Project, method: str, name: str) -> str:
    """The word for one property of a method.

    Raises:
        ConfigError: unknown property, or a method without experts and gate.
    """
    if name not in PROPERTIES:
        raise ConfigError(unknown_name(name, PROPERTIES, what="property of a mixture"))
    return PROPERTIES[name](_build(project, method))
