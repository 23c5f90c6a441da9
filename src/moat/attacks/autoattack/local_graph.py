"""A net as a graph that says which operations work on each pixel and its neighbourhood only."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from moat.kernels import trace

# Pointwise operations, and what is called in their place: nothing here may write to its input.
POINTWISE = {
    F.relu: F.relu,
    torch.relu: torch.relu,
    **{function: function for function in (operator.add, operator.sub, operator.mul, operator.truediv)},
    **{function: function for function in (torch.add, torch.sub, torch.mul, torch.div)},
    operator.iadd: operator.add,
}
IN_PLACE = ("isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "setitem")


@dataclass(frozen=True)
class LocalGraph:
    """The calls of a net's forward pass.

    Attributes:
        source, result: the images and the logits.
        local: the images, and what convolutions and pointwise operations compute from them, in this order.
        computed: all calls in their order.
        inputs: call -> its inputs that depend on the images.
        convolutions: call -> module.
        cached: the local values that are read around a changed window.
        constants: parameters and buffers that are used by name.
    """

    source: fx.Node
    result: fx.Node
    local: tuple[fx.Node, ...]
    computed: tuple[fx.Node, ...]
    inputs: Mapping[fx.Node, tuple[fx.Node, ...]]
    convolutions: Mapping[fx.Node, nn.Conv2d]
    cached: frozenset[fx.Node]
    constants: Mapping[fx.Node, torch.Tensor]
    modules: Mapping[str, nn.Module]

    def call(self, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> Any:
        """The node's value, computed from its inputs' values."""

        def value(argument: fx.Node) -> Any:
            return self.constants[argument] if argument in self.constants else values[argument]

        arguments, options = fx.node.map_arg((node.args, node.kwargs), value)
        if node.op == "call_module":
            module = self.modules[node.target]
            return F.relu(arguments[0]) if isinstance(module, nn.ReLU) else module(*arguments, **options)
        if node.op == "call_method":
            return getattr(arguments[0], node.target)(*arguments[1:], **options)
        if node.target is F.relu:
            return F.relu(arguments[0])
        return POINTWISE.get(node.target, node.target)(*arguments, **options)

    def values(self, images: torch.Tensor) -> dict[fx.Node, Any]:
        """Every node's value for full images."""
        found: dict[fx.Node, Any] = {self.source: images}
        for node in self.computed:
            found[node] = self.call(node, found)
        return found


def local_graph(net: nn.Module) -> LocalGraph | None:
    """The graph of ``net.forward``; None for a net that has none that is the same for all images."""
    graph = trace(net)
    if graph is None:
        return None
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    constants = {node: own.get(str(node.target)) for node in graph.nodes if node.op == "get_attr"}
    sources = [node for node in graph.nodes if node.op == "placeholder"]
    computed = tuple(node for node in graph.nodes if node.op.startswith("call_"))
    (output,) = (node for node in graph.nodes if node.op == "output")
    modules = dict(net.named_modules())
    in_place = any(_writes(node, modules) for node in computed)
    # A constant that is not the net's own was made while tracing: drawn at random, perhaps.
    if len(sources) != 1 or None in constants.values() or in_place or output.args[0] not in computed:
        return None
    return _classified(sources[0], output.args[0], computed, constants, modules)


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the call may write to its input, and has no other to be called in its place."""
    if node.op == "call_module":
        return getattr(modules[node.target], "inplace", False) and not isinstance(modules[node.target], nn.ReLU)
    if node.target in POINTWISE:
        return "out" in node.kwargs
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    # Names with a final underscore write to their input, and so do `x -= 1` and assignments to a part.
    return name.endswith("_") or name in IN_PLACE or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _classified(source, result, computed, constants, modules) -> LocalGraph:
    local, convolutions = [source], {}
    # A convolution's first input is what it convolves; it may have another, which it adds.
    inputs = {node: tuple(each for each in node.all_input_nodes if each not in constants) for node in computed}
    for node in computed:
        module = modules[node.target] if node.op == "call_module" else None
        if any(each not in local for each in inputs[node]):
            continue
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
            convolutions[node] = module
        elif not (_is_pointwise(node, module) and _fit(node, constants)):
            continue
        local.append(node)
    # Where several inputs meet, their windows may differ; an operation that is not local takes full maps.
    readers = {node for node in computed if node in convolutions or len(inputs[node]) > 1 or node not in local}
    cached = frozenset(node for node in local if node is source or readers.intersection(node.users))
    return LocalGraph(source, result, tuple(local), computed, inputs, convolutions, cached, constants, modules)


def _is_pointwise(node: fx.Node, module: nn.Module | None) -> bool:
    if module is None:
        return node.op == "call_function" and node.target in POINTWISE
    normalizes = isinstance(module, nn.BatchNorm2d) and not module.training and module.running_mean is not None
    return normalizes or isinstance(module, (nn.ReLU, nn.Identity))


def _fit(node: fx.Node, constants: Mapping[fx.Node, torch.Tensor]) -> bool:
    """Whether the node's constants are one number, or one per channel, and so the same for all pixels."""
    mine = [constants[each] for each in node.all_input_nodes if each in constants]
    return all(each.numel() == 1 or (each.ndim in (3, 4) and each.shape[-2:] == (1, 1)) for each in mine)
