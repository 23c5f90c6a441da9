"""Logits of images that differ in one window from images whose logits are known.

A convolution carries a change no further than its kernel reaches. So a convolutional net needs to be computed anew
only where the window's influence has got to, layer by layer, until it fills the map; beside it the activations of the
known images are still right. The logits are those of the whole image, up to the order of summation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from moat.attacks.autoattack.local_graph import LocalGraph, local_graph
from moat.kernels import convolve_unpadded

# Of a map: from this share on it is computed whole, because cutting windows out costs, too.
WHOLE = 0.7
# Relative to the largest logit: how far the traced net may be from the net itself.
TOLERANCE = 1e-5


class Window(NamedTuple):
    """A rectangle of a map's pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """That part of ``x`` (B, C, H, W), a view."""
        return x[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def less(self, other: "Window") -> "Window":
        """The same place, counted from the corner of ``other``."""
        return self._replace(top=self.top - other.top, left=self.left - other.left)


class Whole:
    """Computes all of every image: what is right for any model.

    Attributes:
        images: those that changes are proposed to; changed in place by :meth:`accept`.
        logits: of the images as they were at first.
    """

    def __init__(self, predict: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor):
        self.predict, self.images, self.logits = predict, images, predict(images)

    def propose(self, window: Window, patch: torch.Tensor) -> torch.Tensor:
        """Logits of the images with ``patch`` (B, C, h, w) in the window's place."""
        self.window, self.patch = window, patch
        changed = self.images.clone()
        window.of(changed).copy_(patch)
        return self.predict(changed)

    def accept(self, rows: torch.Tensor) -> None:
        """Change these images as proposed last."""
        self.window.of(self.images)[rows] = self.patch[rows]

    def keep(self, rows: torch.Tensor) -> None:
        """Forget all other images."""
        self.images = self.images[rows]


class Patched(Whole):
    """Computes of each map what the window can have changed, and remembers the maps of the unchanged images."""

    def __init__(self, predict, images: torch.Tensor, graph: LocalGraph, smallest: Window):
        super().__init__(predict, images)
        self.graph = graph
        values = graph.values(images)
        self.sizes = {node: tuple(values[node].shape[2:]) for node in graph.local}
        self.traced = values[graph.result].float()
        # What is whole for the smallest window is taken to be whole for all: nobody asks what was beside it.
        self.divided = frozenset(graph.local)
        self.divided = frozenset(node for node, window in self._windows(smallest).items() if window is not None)
        self.known = {node: values[node] for node in graph.remembered & self.divided}

    def propose(self, window: Window, patch: torch.Tensor) -> torch.Tensor:
        self.window, self.patch = window, patch
        self.windows, self.values = self._windows(window), {self.graph.source: patch}
        wholes: dict[fx.Node, torch.Tensor] = {}
        for node in self.graph.computed:
            target = self.windows.get(node)
            if target is None:
                arguments = {each: self._whole(each, wholes) for each in self.graph.inputs[node]}
                self.values[node] = self.graph.call(node, arguments)
            elif node in self.graph.convolutions:
                self.values[node] = self._convolve(node, target)
            else:
                arguments = {each: self._within(each, target) for each in self.graph.inputs[node]}
                self.values[node] = self.graph.call(node, arguments)
        return self.values[self.graph.result].float()

    def accept(self, rows: torch.Tensor) -> None:
        super().accept(rows)
        for node, known in self.known.items():
            window = self.windows[node]
            (known if window is None else window.of(known))[rows] = self.values[node][rows]

    def keep(self, rows: torch.Tensor) -> None:
        super().keep(rows)
        self.known = {node: known[rows] for node, known in self.known.items()}

    def _windows(self, window: Window) -> Mapping[fx.Node, Window | None]:
        """What of each map the window can change; None where that is taken to be all of it."""
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
            reached = _around(before)
            small = reached.height * reached.width < WHOLE * height * width
            found[node] = reached if small and node in self.divided else None
        return found

    def _whole(self, node: fx.Node, wholes: dict[fx.Node, torch.Tensor]) -> torch.Tensor:
        window = self.windows.get(node)
        if window is None:
            return self.values[node]
        if node not in wholes:
            wholes[node] = self.known[node].clone()
            window.of(wholes[node]).copy_(self.values[node])
        return wholes[node]

    def _within(self, node: fx.Node, target: Window) -> torch.Tensor:
        """The node's map in ``target``, which lies around its own window."""
        window = self.windows[node]
        if window == target:
            return self.values[node]
        found = target.of(self.known[node]).clone()
        window.less(target).of(found).copy_(self.values[node])
        return found

    def _convolve(self, node: fx.Node, target: Window) -> torch.Tensor:
        """The convolution's map in ``target``, from the changed window and what is around it."""
        conv, source = self.graph.convolutions[node], node.args[0]
        window, known = self.windows[source], self.known[source]
        (top, bottom), (left, right) = _asked(target, conv)
        seen = _common(Window(top, left, bottom - top, right - left), Window(0, 0, *known.shape[2:]))
        around = seen.of(known).clone()
        changed = _common(window, seen)
        changed.less(seen).of(around).copy_(changed.less(window).of(self.values[source]))
        border = (seen.left - left, right - seen.left - seen.width, seen.top - top, bottom - seen.top - seen.height)
        if any(border):
            around = F.pad(around, border)
        dtype = conv.weight.dtype
        added = [self._within(residual, target).to(dtype) for residual in node.args[1:]]
        return convolve_unpadded(conv, around.to(dtype), *added, **node.kwargs)


def evaluator(predict, net: nn.Module | None, images: torch.Tensor, *, smallest: Window) -> Whole:
    """What computes the logits of changed images as cheaply as it can be had.

    Args:
        predict: images to logits in float32.
        net: the module that ``predict`` calls, if its forward pass may be looked into.
        images: (B, C, H, W), taken over.
        smallest: the smallest window that will be proposed.
    """
    graph = None if net is None or images.device.type != "cpu" else local_graph(net)
    if graph is None:
        return Whole(predict, images)
    patched = Patched(predict, images, graph, smallest)
    limit = TOLERANCE * patched.logits.abs().amax().clamp(min=1)
    same = patched.traced.shape == patched.logits.shape and (patched.traced - patched.logits).abs().amax() <= limit
    return patched if same else Whole(predict, images)


def _reached(window: Window, conv: nn.Conv2d, height: int, width: int) -> Window:
    """Where in its map (height, width) the convolution sees the window."""
    spans = []
    for axis, (start, length, size) in enumerate(
        ((window.top, window.height, height), (window.left, window.width, width))
    ):
        reach, stride = conv.dilation[axis] * (conv.kernel_size[axis] - 1), conv.stride[axis]
        # As many as a window of this length can reach, wherever it lies: convolutions then have few shapes.
        count = min(size, (length - 1 + reach) // stride + 1)
        first = -((reach - start - conv.padding[axis]) // stride)
        spans.append((min(max(first, 0), size - count), count))
    (top, tall), (left, wide) = spans
    return Window(top, left, tall, wide)


def _asked(target: Window, conv: nn.Conv2d) -> list[tuple[int, int]]:
    """The rows and the columns, from and to, that the convolution reads for ``target``; some are outside the map."""
    found = []
    for axis, (start, length) in enumerate(((target.top, target.height), (target.left, target.width))):
        first = start * conv.stride[axis] - conv.padding[axis]
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        found.append((first, first + (length - 1) * conv.stride[axis] + reach + 1))
    return found


def _around(windows: Sequence[Window]) -> Window:
    """The smallest window around several."""
    top, left = min(each.top for each in windows), min(each.left for each in windows)
    bottom = max(each.top + each.height for each in windows)
    right = max(each.left + each.width for each in windows)
    return Window(top, left, bottom - top, right - left)


def _common(one: Window, other: Window) -> Window:
    """What lies in both; they overlap."""
    top, left = max(one.top, other.top), max(one.left, other.left)
    bottom = min(one.top + one.height, other.top + other.height)
    right = min(one.left + one.width, other.left + other.width)
    return Window(top, left, bottom - top, right - left)
