"""Logits of images that differ in one window from images whose logits are known.

A convolution carries a change no further than its kernel reaches. So a convolutional net needs to be recomputed only
in the receptive field of the window, layer by layer, until that fills the map; elsewhere the cached activations of the
unchanged images are still right. The logits are those of the full forward pass, up to the order of summation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from moat.attacks.autoattack.local_graph import LocalGraph, local_graph
from moat.kernels import convolve_unpadded

# A map is recomputed in full where the window covers this fraction of it: cutting windows out has a cost, too.
FULL_FRACTION = 0.7
# How far the traced net's logits may be from the net's, relative to the largest.
TOLERANCE = 1e-5


class Window(NamedTuple):
    """A rectangle of a map's pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """This window of ``x`` (B, C, H, W), a view."""
        return x[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def relative_to(self, other: "Window") -> "Window":
        """The same window in coordinates of ``other``."""
        return self._replace(top=self.top - other.top, left=self.left - other.left)


class FullForward:
    """Full forward passes of the changed images: right for any model.

    Attributes:
        images: the current images, changed in place by :meth:`accept`.
        logits: of the images that it started with.
    """

    def __init__(self, predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor):
        self.predict, self.images, self.logits = predict, images, predict(images)

    def propose(self, window: Window, patch: torch.Tensor) -> torch.Tensor:
        """Logits of the images with ``patch`` (B, C, h, w) in the window."""
        self.window, self.patch = window, patch
        changed = self.images.clone()
        window.of(changed).copy_(patch)
        return self.predict(changed)

    def accept(self, rows: torch.Tensor) -> None:
        """Apply the last proposal to these images."""
        self.window.of(self.images)[rows] = self.patch[rows]

    def keep(self, rows: torch.Tensor) -> None:
        """Drop all other images."""
        self.images = self.images[rows]


class PatchForward(FullForward):
    """Recomputes of each map what the window can have changed, and caches the maps of the current images."""

    def __init__(self, predict, images: torch.Tensor, graph: LocalGraph, smallest: Window):
        super().__init__(predict, images)
        self.graph = graph
        values = graph.values(images)
        self.sizes = {node: tuple(values[node].shape[2:]) for node in graph.local}
        self.traced = values[graph.result].float()
        # A map that is recomputed in full for the smallest window is for every window, and needs no cache.
        self.patched = frozenset(graph.local)
        self.patched = frozenset(node for node, window in self._windows(smallest).items() if window is not None)
        self.cache = {node: values[node] for node in graph.cached & self.patched}

    def propose(self, window: Window, patch: torch.Tensor) -> torch.Tensor:
        self.window, self.patch = window, patch
        self.windows, self.values = self._windows(window), {self.graph.source: patch}
        full: dict[fx.Node, torch.Tensor] = {}
        for node in self.graph.computed:
            target = self.windows.get(node)
            if target is None:
                arguments = {each: self._full(each, full) for each in self.graph.inputs[node]}
                self.values[node] = self.graph.call(node, arguments)
            elif node in self.graph.convolutions:
                self.values[node] = self._convolve(node, target)
            else:
                arguments = {each: self._within(each, target) for each in self.graph.inputs[node]}
                self.values[node] = self.graph.call(node, arguments)
        return self.values[self.graph.result].float()

    def accept(self, rows: torch.Tensor) -> None:
        super().accept(rows)
        for node, cached in self.cache.items():
            window = self.windows[node]
            (cached if window is None else window.of(cached))[rows] = self.values[node][rows]

    def keep(self, rows: torch.Tensor) -> None:
        super().keep(rows)
        self.cache = {node: cached[rows] for node, cached in self.cache.items()}

    def _windows(self, window: Window) -> Mapping[fx.Node, Window | None]:
        """The part of each map that the window can change; None where all of it is recomputed."""
        found: dict[fx.Node, Window | None] = {self.graph.source: window}
        for node in self.graph.local:
            if node is self.graph.source:
                continue
            before = [found[each] for each in self.graph.inputs[node]]
            if any(each is None for each in before):
                found[node] = None
                continue
            height, width = self.sizes[node]
            conv = self.graph.convolutions.get(node)
            if conv is not None:
                before[0] = _reached(before[0], conv, height, width)
            reached = _union(before)
            small = reached.height * reached.width < FULL_FRACTION * height * width
            found[node] = reached if small and node in self.patched else None
        return found

    def _full(self, node: fx.Node, full: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
        """The node's full map, with what was recomputed of it."""
        window = self.windows.get(node)
        if window is None:
            return self.values[node]
        if node not in full:
            full[node] = self.cache[node].clone()
            window.of(full[node]).copy_(self.values[node])
        return full[node]

    def _within(self, node: fx.Node, target: Window) -> torch.Tensor:
        """The node's map in ``target``, which contains its own window."""
        window = self.windows[node]
        if window == target:
            return self.values[node]
        found = target.of(self.cache[node]).clone()
        window.relative_to(target).of(found).copy_(self.values[node])
        return found

    def _convolve(self, node: fx.Node, target: Window) -> torch.Tensor:
        """The convolution's map in ``target``, from the changed window and the cache around it."""
        conv, source = self.graph.convolutions[node], node.args[0]
        window, cached = self.windows[source], self.cache[source]
        (top, bottom), (left, right) = _inputs(target, conv)
        seen = _intersection(Window(top, left, bottom - top, right - left), Window(0, 0, *cached.shape[2:]))
        around = seen.of(cached).clone()
        changed = _intersection(window, seen)
        changed.relative_to(seen).of(around).copy_(changed.relative_to(window).of(self.values[source]))
        border = (seen.left - left, right - seen.left - seen.width, seen.top - top, bottom - seen.top - seen.height)
        if any(border):
            around = F.pad(around, border)
        dtype = conv.weight.dtype
        added = [self._within(residual, target).to(dtype) for residual in node.args[1:]]
        return convolve_unpadded(conv, around.to(dtype), *added, **node.kwargs)


def evaluator(predict, net: nn.Module | None, images: torch.Tensor, *, smallest: Window) -> FullForward:
    """The cheapest way to compute the logits of changed images: by patches where the net can be traced.

    Args:
        predict: images to logits in float32.
        net: the module that ``predict`` calls, if it may be traced.
        images: (B, C, H, W); they belong to the evaluator from now on.
        smallest: the smallest window that will be proposed.
    """
    graph = None if net is None or images.device.type != "cpu" else local_graph(net)
    if graph is None:
        return FullForward(predict, images)
    patched = PatchForward(predict, images, graph, smallest)
    limit = TOLERANCE * patched.logits.abs().amax().clamp(min=1)
    same = patched.traced.shape == patched.logits.shape and (patched.traced - patched.logits).abs().amax() <= limit
    return patched if same else FullForward(predict, images)


def _reached(window: Window, conv: nn.Conv2d, height: int, width: int) -> Window:
    """The outputs, in a map (height, width), whose receptive fields meet the window."""
    spans = []
    for axis, (start, length, size) in enumerate(
        ((window.top, window.height, height), (window.left, window.width, width))
    ):
        reach, stride = conv.dilation[axis] * (conv.kernel_size[axis] - 1), conv.stride[axis]
        # As many as a window of this length can reach, wherever it lies, so that convolutions have few shapes.
        count = min(size, (length - 1 + reach) // stride + 1)
        first = -((reach - start - conv.padding[axis]) // stride)
        spans.append((min(max(first, 0), size - count), count))
    (top, tall), (left, wide) = spans
    return Window(top, left, tall, wide)


def _inputs(target: Window, conv: nn.Conv2d) -> list[tuple[int, int]]:
    """The rows and the columns, from and to, that the convolution reads for ``target``; some lie outside the map."""
    found = []
    for axis, (start, length) in enumerate(((target.top, target.height), (target.left, target.width))):
        first = start * conv.stride[axis] - conv.padding[axis]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        found.append((first, first + (length - 1) * conv.stride[axis] + reach + 1))
    return found


def _union(windows: Sequence[Window]) -> Window:
    """The smallest window that contains several."""
    top, left = min(each.top for each in windows), min(each.left for each in windows)
    bottom = max(each.top + each.height for each in windows)
    right = max(each.left + each.width for each in windows)
    return Window(top, left, bottom - top, right - left)


def _intersection(one: Window, other: Window) -> Window:
    """Of two windows that overlap."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom = min(one.top + one.height, other.top + other.height)
    right = min(one.left + one.width, other.left + other.width)
    return Window(top, left, bottom - top, right - left)
