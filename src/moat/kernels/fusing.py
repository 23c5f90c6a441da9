"""Sums and relus behind a convolution, computed by it: what it has at hand need not be read from memory again.

Only packed convolutions take a residual and a relu; see :class:`moat.kernels.packed.PackedConv2d`.
"""

import operator
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F

from moat.kernels.packed import PackedConv2d

RELUS = {F.relu, torch.relu}
SUMS = {operator.add, torch.add}  # `+=` is traced as the first


def fuse(model: nn.Module, tracer: type[fx.Tracer]) -> None:
    """Let packed convolutions of ``model`` do the sum and the relu behind them, where nothing else uses what they gave.

    Modules keep their class, their children and their other methods; only ``forward`` becomes another one. It stays as
    it is in modules that count or draw random numbers when they are called, use tensors of their own, or call what has
    hooks.

    Args:
        tracer: of the graphs; it does not look into convolutions.
    """
    if isinstance(model, PackedConv2d) or not any(isinstance(module, PackedConv2d) for module in model.modules()):
        return
    # What lies within a child is its own business: then its other callers have it, too.
    for child in model.children():
        fuse(child, tracer)
    graph = _traced(model, tracer)
    if graph is not None and _can_be_replaced(model, graph) and _fused(graph, dict(model.named_modules())):
        # In the instance's dictionary, so that it becomes no child of the module.
        model.__dict__["forward"] = fx.GraphModule(model, graph).forward


def _traced(model: nn.Module, tracer: type[fx.Tracer]) -> fx.Graph | None:
    """The graph of a forward pass; None for one that is not the same every time."""
    before = _state(model)
    try:
        graph = tracer().trace(model)
    except Exception:  # Whatever a forward pass does with a stand-in for its input, its children may still be plain.
        return None
    return graph if _state(model) == before else None


def _state(model: nn.Module) -> tuple:
    """What a forward pass may count with, and where random numbers stand."""
    plain = [{k: v for k, v in vars(module).items() if isinstance(v, (int, float, str))} for module in model.modules()]
    _, key, *of_numpy = np.random.get_state()
    return plain, random.getstate(), key.tobytes(), of_numpy, torch.get_rng_state().numpy().tobytes()


def _can_be_replaced(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether the graph's forward is the module's, now and after it has been moved to another place or type."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    passed = (module for name, module in model.named_modules() if name and name not in called)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in passed)
    return not hooked and not any(node.op == "get_attr" for node in graph.nodes)


def _fused(graph: fx.Graph, modules: dict[str, nn.Module]) -> bool:
    """Change the graph; whether a convolution got something to do."""
    _drop_identities(graph, modules)
    convolutions = [
        node for node in graph.nodes if node.op == "call_module" and isinstance(modules[node.target], PackedConv2d)
    ]
    # Of two convolutions that are summed up, the larger one does it.
    convolutions.sort(key=lambda node: modules[node.target].weight.numel(), reverse=True)
    changed = False
    for node in convolutions:
        total = _take_sum(graph, node, modules)
        changed |= _take_relu(graph, total or node, modules) or total is not None
    graph.lint()
    return changed


def _drop_identities(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], nn.Identity):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _take_sum(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> fx.Node | None:
    """``node + other``, used by nothing else, becomes one call with ``other`` as residual, in the sum's place."""
    total = _only_user(node, SUMS)
    if total is None or len(total.args) != 2 or total.kwargs or len(node.args) != 1 or node.kwargs:
        return None
    other = total.args[1] if total.args[0] is node else total.args[0]
    if not isinstance(other, fx.Node) or other is node or _may_be_written(node.args[0], node, total, modules):
        return None
    with graph.inserting_before(total):
        new = graph.call_module(node.target, (node.args[0], other))
    total.replace_all_uses_with(new)
    graph.erase_node(total)
    graph.erase_node(node)
    return new


def _take_relu(graph: fx.Graph, node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """A relu that alone uses the node becomes part of it."""
    users = [user for user in node.users if user.op == "call_module" and isinstance(modules[user.target], nn.ReLU)]
    relu = users[0] if len(node.users) == len(users) == 1 else _only_user(node, RELUS)
    if relu is None or node.kwargs:
        return False
    node.kwargs = {"relu": True}
    relu.replace_all_uses_with(node)
    graph.erase_node(relu)
    return True


def _may_be_written(value: fx.Node, first: fx.Node, last: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether anything but a convolution uses ``value`` between two nodes: it might be a relu in place."""
    node = first.next
    while node is not last:
        convolves = node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d)
        if value in node.all_input_nodes and not convolves:
            return True
        node = node.next
    return False


def _only_user(node: fx.Node, functions: set[Callable]) -> fx.Node | None:
    """The call of one of ``functions`` that alone uses the node."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op == "call_function" and user.target in functions else None
