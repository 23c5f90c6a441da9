"""Convolutions of fixed weights, kept in the form in which the fastest kernel at hand computes with them.

Where the weights stay the same over many calls, as over an attack's steps, they need to be brought into that form but
once. On a CPU that is :mod:`moat.kernels.winograd`'s where it serves the convolution, or else the order of oneDNN,
which PyTorch would bring them into in every call. The results are PyTorch's, up to rounding. Other devices and types
are served by PyTorch's own convolution.
"""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import nn
from torch.nn import functional as F

from moat.kernels import winograd
from moat.kernels.convolution import Conv2d

_OPS = torch.ops.mkldnn
# Below so many weights, to order them costs less than to look whether they are ordered (measured: 128 x 64 x 3 x 3).
WORTH = 2**16


class PackedWeight:
    """A convolution's weight for both directions, packed when first needed and anew where it has changed since.

    A change is told by the tensor's version and place: what is written through ``.data`` is not noticed.

    Args: (as of ``torch.nn.functional.conv2d``)
        stride, padding, dilation: pairs of whole numbers.
    """

    def __init__(self, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int] = (1, 1)):
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self._forget()

    def _forget(self) -> None:
        self._version, self._kept, self._forms, self._shapes = None, None, {}, {}

    def __getstate__(self):
        # oneDNN's tensors can be neither copied nor saved.
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def __setstate__(self, state) -> None:
        self.__init__(**state)

    def conv2d(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        padded: bool = True,
        residual: torch.Tensor | None = None,
        relu: bool = False,
        masked: bool = False,
        gates: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The convolution (without groups) of ``x`` (B, C, H, W), plus ``residual``, through relu where it says so.

        A gradient reaches ``x``, ``residual`` and a gate alone. Where it is not ``padded``, ``x`` has its border
        already, and needs no gradient. Under autocast images, maps and sums are of its type, as PyTorch's own would be.

        Args:
            masked: the gradient that comes is 0 already where the relu is.
            gates: where :meth:`takes_gates`: a gate (B,) that stands before this convolution and before the one with
                the given bias (C,), float32, whose relu ``x`` is. It gets the gradient of both factors together, and
                the gradient of ``x`` is 0 where ``x`` is.
        """
        padding = self.padding if padded else [0, 0]
        autocast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
            residual = residual if residual is None else residual.to(x.dtype)
        if not _can_pack(x, weight) or (x.dtype != weight.dtype and not autocast):
            return _finished(F.conv2d(x, weight, bias, self.stride, padding, self.dilation), residual, relu)
        if residual is not None and not self._is_output(residual, x, weight, padding):
            return _finished(self.conv2d(x, weight, bias, padded=padded, gates=gates), residual, relu)
        version = weight._version, weight.data_ptr(), weight.dtype
        if version != self._version:
            self._forget()
            # As long as this memory is held, no other weight can lie in the same place.
            self._version, self._kept = version, weight.detach()
            self._winograd, self._reaches = self._takes(weight), self._reach(weight)
        gate, less = gates or (None, None)
        needed = any(each is not None and each.requires_grad for each in (x, residual, gate))
        if padded and needed and torch.is_grad_enabled():
            less = less if less is None else less.detach().float()
            return _Packed.apply(x, residual, weight, bias, self, relu and not masked, relu, gate, less)
        return self.forward(x, weight, bias, padding, residual, relu)

    def forward(self, x, weight, bias, padding, residual=None, relu: bool = False) -> torch.Tensor:
        """:meth:`conv2d` without gradient."""
        stride = self.stride[0]
        if self._winograd[0] and winograd.pays(weight, x, padding[0], stride):
            form = self._form("winograd", lambda: winograd.transformed(weight, stride=stride))
            done = {"residual": residual, "relu": relu}
            return winograd.convolve(x, form, len(weight), bias, padding=padding[0], stride=stride, **done)
        how = self.padding, self.stride, self.dilation, 1, list(x.shape)
        weight, bias = weight.detach(), bias if bias is None else bias.to(x.dtype)
        form = self._form(x.dtype, lambda: _OPS._reorder_convolution_weight(weight.to(x.dtype), *how))
        return _finished(_convolve(x, form, bias, padding, self.stride, self.dilation), residual, relu)

    def takes_gates(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether :meth:`conv2d` does, of images like ``x``."""
        # Forward and backward have as many tiles only where the image keeps its size.
        if not _can_pack(x, weight) or self.padding != [1, 1] or self.stride != [1, 1]:
            return False
        return all(self._takes(weight)) and winograd.pays(weight, x, self.padding[0])

    def backward(self, gradient, x, weight, mask: torch.Tensor | None = None, less: torch.Tensor | None = None):
        """The gradient of ``x`` from the output's, which counts as 0 where the ``mask`` is 0 or below.

        With ``less``, the bias before the gates, it is 0 where ``x`` is, and the gates' gradient (B,) comes with it.

        Where the stride is 1, it is a convolution with the mirrored weight.
        """
        reach, stride = self._reaches, self.stride[0]
        if self._winograd[1] and stride == 2 and winograd.strided_gradient_pays(weight, gradient):
            form = self._winograd_backwards(weight)
            return winograd.strided_gradient(gradient, form, weight.shape[1], x.shape[2:], mask=mask)
        if self._winograd[1] and stride == 1 and winograd.pays(weight, gradient, reach[0]):
            gates = {} if less is None else {"passes": x, "less": less}
            form = self._winograd_backwards(weight)
            return winograd.convolve(gradient, form, weight.shape[1], padding=reach[0], mask=mask, **gates)
        if mask is not None:
            gradient = _masked(gradient, mask)
        if self._strides(weight):
            matrix = self._form((gradient.dtype, "matrix"), lambda: weight.detach().to(gradient.dtype)[:, :, 0, 0])
            return _spread(gradient, matrix, x, self.stride)
        if self.stride != [1, 1] or min(reach) < 0:
            more = self.stride, self.padding, self.dilation, False, [0, 0], 1, [True, False, False]
            weight = self._form((gradient.dtype, "plain"), lambda: weight.detach().to(gradient.dtype))
            return torch.ops.aten.convolution_backward(gradient, x, weight, None, *more)[0]
        how = reach, [1, 1], self.dilation, 1, list(gradient.shape)
        form = self._form(
            (gradient.dtype, "mirrored"),
            lambda: _OPS._reorder_convolution_weight(_mirrored(weight.detach()).to(gradient.dtype), *how),
        )
        return _convolve(gradient, form, None, reach, [1, 1], self.dilation)

    def _winograd_backwards(self, weight: torch.Tensor) -> torch.Tensor:
        def make() -> torch.Tensor:
            return winograd.transformed(weight.flip(2, 3).transpose(0, 1), stride=self.stride[0])

        return self._form("mirrored, winograd", make)

    def pays(self, weight: torch.Tensor) -> bool:
        """Whether calls with this weight become faster by packing it."""
        if weight.device.type != "cpu":
            return False
        return weight.numel() >= WORTH or any(self._takes(weight)) or self._strides(weight)

    def _strides(self, weight: torch.Tensor) -> bool:
        """Whether it sees single pixels and none of those between."""
        return list(weight.shape[2:]) == [1, 1] and self.padding == [0, 0] and self.stride != [1, 1]

    def _reach(self, weight: torch.Tensor) -> list[int]:
        """The padding of the convolution that gives the gradient, where the stride is 1."""
        return [d * (size - 1) - p for d, size, p in zip(self.dilation, weight.shape[2:], self.padding, strict=True)]

    def _takes(self, weight: torch.Tensor) -> tuple[bool, bool]:
        """Whether Winograd serves the convolution, and its gradient."""
        # Few filters would be padded: a gradient of three channels is cheaper so all the same, but nothing else is.
        forward = len(weight) % winograd.LANES == 0 and winograd.takes(weight, self.stride, self.dilation, self.padding)
        # Eight channels in strides of two: the transforms cost more than they save.
        forward &= self.stride == [1, 1] or weight.shape[1] > winograd.LANES
        reach = self._reach(weight) if self.stride == [1, 1] else self.padding
        backward = winograd.takes(weight.transpose(0, 1), self.stride, self.dilation, reach)
        return forward, backward and (self.stride == [1, 1] or self.padding == [1, 1])

    def _is_output(self, y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, padding: list[int]) -> bool:
        """Whether ``y`` has shape and type of the convolution of ``x``."""
        asked = x.shape, weight.shape, *padding
        if asked not in self._shapes:
            sides = zip(x.shape[2:], weight.shape[2:], padding, self.stride, self.dilation, strict=True)
            height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in sides)
            self._shapes[asked] = torch.Size((x.shape[0], weight.shape[0], height, width))
        return y.shape == self._shapes[asked] and y.dtype == x.dtype

    def _form(self, name: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name not in self._forms:
            self._forms[name] = make()
        return self._forms[name]


class PackedConv2d(nn.Conv2d):
    """A ``Conv2d`` whose weight is kept packed. Its parameters must need no gradient."""

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> "PackedConv2d":
        """``convolution`` (without groups, padded with zeros) with a packed weight; the parameters are its own."""
        keys = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        packed = cls(**{key: getattr(convolution, key) for key in keys}, bias=False, device="meta")
        packed.weight, packed.bias = convolution.weight, convolution.bias
        packed.packed = PackedWeight(packed.stride, packed.padding, packed.dilation)
        return packed.train(convolution.training)

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        *,
        relu: bool = False,
        padded: bool = True,
    ) -> torch.Tensor:
        """As a ``Conv2d``, plus ``residual`` of the output's shape, through relu where it says so.

        Not ``padded``: of images (B, C, H, W) that have their border already.
        """
        return self.packed.conv2d(x, self.weight, self.bias, padded=padded, residual=residual, relu=relu)


def worth_packing(convolution: nn.Conv2d) -> bool:
    """Whether calls become faster by :meth:`PackedConv2d.of`."""
    return PackedWeight(convolution.stride, convolution.padding, convolution.dilation).pays(convolution.weight)


def can_be_packed(convolution: nn.Module) -> bool:
    """Whether :meth:`PackedConv2d.of` takes it: a plain one, exactly of its class, that nobody hooked into."""
    if type(convolution) not in (nn.Conv2d, Conv2d) or convolution._forward_hooks or convolution._forward_pre_hooks:
        return False
    return convolution.groups == 1 and convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, packed: PackedWeight, masks: bool, relu: bool, gate, less):
        y = packed.forward(x, weight, bias, packed.padding, residual, relu)
        ctx.save_for_backward(x, weight, y if masks else None)
        ctx.packed, ctx.less = packed, less
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight, y = ctx.saved_tensors
        if y is not None and ctx.needs_input_grad[1]:
            gradient, y = _masked(gradient, y), None
        of_x = of_gate = None
        if ctx.less is not None:
            of_x, of_gate = ctx.packed.backward(gradient, x, weight, y, ctx.less)
        elif ctx.needs_input_grad[0]:
            of_x = ctx.packed.backward(gradient, x, weight, y)
        return of_x, gradient if ctx.needs_input_grad[1] else None, *[None] * 5, of_gate, None


def _spread(gradient: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, stride: list[int]) -> torch.Tensor:
    """The gradient of ``x`` from that of its 1x1 convolution: a matrix product, and zeros between the pixels seen."""
    found = torch.zeros_like(x, memory_format=torch.channels_last)
    found[:, :, :: stride[0], :: stride[1]] = (gradient.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    return found


def _masked(gradient: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient before a relu that gave ``y``."""
    return torch.ops.aten.threshold_backward(gradient, y, 0)


def _finished(y: torch.Tensor, residual: torch.Tensor | None, relu: bool) -> torch.Tensor:
    y = y if residual is None else y + residual
    return F.relu(y, inplace=residual is not None) if relu else y


def _mirrored(weight: torch.Tensor) -> torch.Tensor:
    """``weight.flip(2, 3).transpose(0, 1)``, by a copy that PyTorch makes in blocks: twice as fast."""
    outputs, inputs, height, width = weight.shape
    mirrored = weight.permute(0, 2, 3, 1).reshape(outputs, height * width, inputs).flip(1)
    mirrored = mirrored.reshape(outputs, -1).t().contiguous()
    return mirrored.view(height, width, inputs, outputs).permute(2, 3, 0, 1)


def _convolve(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, padding, stride, dilation):
    return _OPS._convolution_pointwise(x, packed, bias, padding, stride, dilation, 1, "none", [], "")


def _can_pack(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.requires_grad or not _types().issuperset((x.dtype, weight.dtype)):
        return False
    return x.ndim == 4 and x.numel() > 0


@functools.cache
def _types() -> set[torch.dtype]:
    """What oneDNN computes with on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    return {torch.float32} | ({torch.bfloat16} if _OPS._is_mkldnn_bf16_supported() else set())
