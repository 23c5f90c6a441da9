"""Sums and relus after a convolution, computed by the convolution before it writes its output to memory.

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
from moat.kernels.tracing import Tracer

RELUS = {F.relu, torch.relu}
SUMS = {operator.add, torch.add}  # `+=` is traced as the first


def fuse(model: nn.Module) -> None:
    """Let packed convolutions of ``model`` compute a following sum and relu, if nothing else uses their output.

    Modules keep their class, their children and their other methods; only ``forward`` is replaced. It is kept in
    modules that count calls or draw random numbers, use tensors of their own, or call modules with hooks.
    """
    if isinstance(model, PackedConv2d) or not any(isinstance(module, PackedConv2d) for module in model.modules()):
        return
    # Children first, so that every caller of a child has its fused forward.
    for child in model.children():
        fuse(child)
    graph = _traced(model)
    if graph is not None and _can_be_replaced(model, graph) and _fused(graph, dict(model.named_modules())):
        # In the instance's dictionary, so that it becomes no child of the module.
        model.__dict__["forward"] = fx.GraphModule(model, graph).forward


def _traced(model: nn.Module) -> fx.Graph | None:
    """The graph of a forward pass; None if that is not the same every time."""
    before = _state(model)
    try:
        graph = Tracer().trace(model)
    except Exception:  # A forward pass may do anything with the proxy that stands for its input.
        return None
    return graph if _state(model) == before else None


def _state(model: nn.Module) -> tuple:
    """The plain attributes of all modules, and the states of the random number generators."""
    plain = [{k: v for k, v in vars(module).items() if isinstance(v, (int, float, str))} for module in model.modules()]
    _, key, *of_numpy = np.random.get_state()
    return plain, random.getstate(), key.tobytes(), of_numpy, torch.get_rng_state().numpy().tobytes()


def _can_be_replaced(model: nn.Module, graph: fx.Graph) -> bool:
    """Whether the graph computes the module's forward, also after it was moved to another device or type."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    inlined = (module for name, module in model.named_modules() if name and name not in called)
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in inlined)
    return not hooked and not any(node.op == "get_attr" for node in graph.nodes)


def _fused(graph: fx.Graph, modules: dict[str, nn.Module]) -> bool:
    """Change the graph; returns whether a convolution took over a sum or relu."""
    _drop_identities(graph, modules)
    convolutions = [
        node for node in graph.nodes if node.op == "call_module" and isinstance(modules[node.target], PackedConv2d)
    ]
    # Of two convolutions that are summed, the larger one takes the sum.
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
    """Replace ``node + other`` by one call with ``other`` as residual, if nothing else uses ``node``."""
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
    """Make a relu part of the node, if nothing else uses the node."""
    users = [user for user in node.users if user.op == "call_module" and isinstance(modules[user.target], nn.ReLU)]
    relu = users[0] if len(node.users) == len(users) == 1 else _only_user(node, RELUS)
    if relu is None or node.kwargs:
        return False
    node.kwargs = {"relu": True}
    relu.replace_all_uses_with(node)
    graph.erase_node(relu)
    return True


def _may_be_written(value: fx.Node, first: fx.Node, last: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether anything but a convolution uses ``value`` between two nodes: it might be an in-place relu."""
    node = first.next
    while node is not last:
        convolves = node.op == "call_module" and isinstance(modules[node.target], nn.Conv2d)
        if value in node.all_input_nodes and not convolves:
            return True
        node = node.next
    return False


def _only_user(node: fx.Node, functions: set[Callable]) -> fx.Node | None:
    """The node's only user, if it calls one of ``functions``."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if user.op == "call_function" and user.target in functions else None
