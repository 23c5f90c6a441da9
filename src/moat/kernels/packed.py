"""Convolutions with fixed weights, kept in the layout of the fastest available kernel.

Where weights stay the same over many calls, as over the steps of an attack, they need to be brought into that layout
once. On a CPU it is that of :mod:`moat.kernels.winograd` where that supports the convolution, else oneDNN's blocked
order, into which PyTorch would bring them in every call. Results equal PyTorch's up to rounding. Other devices and
types use PyTorch's own convolution.
"""

import functools
from collections.abc import Callable, Hashable

import torch
from torch import nn
from torch.nn import functional as F

from moat.kernels import winograd
from moat.kernels.convolution import FastConv2d

_OPS = torch.ops.mkldnn
# With fewer weights, reordering costs less than checking whether they are reordered (measured: 128 x 64 x 3 x 3).
MIN_WEIGHTS_TO_PACK = 2**16


class PackedWeight:
    """The weight of one convolution for both directions, packed on first use and again after it has changed.

    A change shows in the tensor's version or address; a write through ``.data`` goes unnoticed.

    Args: (as of ``torch.nn.functional.conv2d``)
        stride, padding, dilation: pairs of whole numbers.
    """

    def __init__(self, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int] = (1, 1)):
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        self._reset()

    def _reset(self) -> None:
        self._version, self._weight, self._layouts, self._shapes = None, None, {}, {}

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
        pad: bool = True,
        residual: torch.Tensor | None = None,
        relu: bool = False,
        gradient_is_masked: bool = False,
        gates: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The convolution (without groups) of ``x`` (B, C, H, W), plus ``residual``, through relu if asked.

        Only ``x``, ``residual`` and a gate get a gradient. Under autocast images, maps and sums have its type, like
        PyTorch's own.

        Args:
            pad: False for an ``x`` that brings its border along; it then gets no gradient.
            gradient_is_masked: the incoming gradient is already 0 where the relu is.
            gates: if :meth:`supports_gates`: a gate (B,) of ones that is a factor on this convolution's output and on
                that of the previous one, and the bias (C,), float32, that the previous one adds after the factor;
                ``x`` is its relu. The gate gets the gradient of both factors, and that of ``x`` is 0 where ``x`` is.
        """
        padding = self.padding if pad else [0, 0]
        autocast = torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64
        if autocast:
            x = x.to(torch.get_autocast_dtype(x.device.type))
            residual = residual if residual is None else residual.to(x.dtype)
        if not _can_pack(x, weight) or (x.dtype != weight.dtype and not autocast):
            return _finished(F.conv2d(x, weight, bias, self.stride, padding, self.dilation), residual, relu)
        if residual is not None and not self._is_output(residual, x, weight, padding):
            return _finished(self.conv2d(x, weight, bias, pad=pad, gates=gates), residual, relu)
        version = weight._version, weight.data_ptr(), weight.dtype
        if version != self._version:
            self._reset()
            # Holding on to this memory keeps another weight from being allocated at the same address.
            self._version, self._weight = version, weight.detach()
            self._winograd, self._backward_padding = self._supports(weight), self._padding_backwards(weight)
        gate, gate_bias = gates or (None, None)
        needed = any(each is not None and each.requires_grad for each in (x, residual, gate))
        if pad and needed and torch.is_grad_enabled():
            gate_bias = gate_bias if gate_bias is None else gate_bias.detach().float()
            mask = relu and not gradient_is_masked
            return _Packed.apply(x, residual, weight, bias, self, mask, relu, gate, gate_bias)
        return self.forward(x, weight, bias, padding, residual, relu)

    def forward(self, x, weight, bias, padding, residual=None, relu: bool = False) -> torch.Tensor:
        """:meth:`conv2d` without gradient."""
        stride = self.stride[0]
        if self._winograd[0] and winograd.is_faster(weight, x, padding[0], stride):
            layout = self._layout("winograd", lambda: winograd.transform_weight(weight, stride=stride))
            after = {"residual": residual, "relu": relu}
            return winograd.convolve(x, layout, len(weight), bias, padding=padding[0], stride=stride, **after)
        how = self.padding, self.stride, self.dilation, 1, list(x.shape)
        weight, bias = weight.detach(), bias if bias is None else bias.to(x.dtype)
        layout = self._layout(x.dtype, lambda: _OPS._reorder_convolution_weight(weight.to(x.dtype), *how))
        return _finished(_convolve(x, layout, bias, padding, self.stride, self.dilation), residual, relu)

    def supports_gates(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        """Whether :meth:`conv2d` takes ``gates`` for images like ``x``."""
        # Forward and backward have the same number of tiles only if the image keeps its size.
        if not _can_pack(x, weight) or self.padding != [1, 1] or self.stride != [1, 1]:
            return False
        return all(self._supports(weight)) and winograd.is_faster(weight, x, self.padding[0])

    def backward(self, gradient, x, weight, mask: torch.Tensor | None = None, gate_bias: torch.Tensor | None = None):
        """The gradient of ``x`` from that of the output, which counts as 0 where ``mask`` is 0 or below.

        With ``gate_bias`` it is 0 where ``x`` is, and comes with the gates' gradient (B,).

        With stride 1 it is a convolution with the mirrored weight.
        """
        padding, stride = self._backward_padding, self.stride[0]
        if self._winograd[1] and stride == 2 and winograd.strided_gradient_is_faster(weight, gradient):
            layout = self._winograd_backwards(weight)
            return winograd.strided_gradient(gradient, layout, weight.shape[1], x.shape[2:], mask=mask)
        if self._winograd[1] and stride == 1 and winograd.is_faster(weight, gradient, padding[0]):
            gates = {} if gate_bias is None else {"relu_mask": x, "gate_bias": gate_bias}
            layout = self._winograd_backwards(weight)
            return winograd.convolve(gradient, layout, weight.shape[1], padding=padding[0], mask=mask, **gates)
        if mask is not None:
            gradient = _masked(gradient, mask)
        if self._is_subsampling(weight):
            matrix = self._layout((gradient.dtype, "matrix"), lambda: weight.detach().to(gradient.dtype)[:, :, 0, 0])
            return _scattered_gradient(gradient, matrix, x, self.stride)
        if self.stride != [1, 1] or min(padding) < 0:
            more = self.stride, self.padding, self.dilation, False, [0, 0], 1, [True, False, False]
            weight = self._layout((gradient.dtype, "plain"), lambda: weight.detach().to(gradient.dtype))
            return torch.ops.aten.convolution_backward(gradient, x, weight, None, *more)[0]
        how = padding, [1, 1], self.dilation, 1, list(gradient.shape)
        layout = self._layout(
            (gradient.dtype, "mirrored"),
            lambda: _OPS._reorder_convolution_weight(_mirrored(weight.detach()).to(gradient.dtype), *how),
        )
        return _convolve(gradient, layout, None, padding, [1, 1], self.dilation)

    def _winograd_backwards(self, weight: torch.Tensor) -> torch.Tensor:
        def make() -> torch.Tensor:
            return winograd.transform_weight(weight.flip(2, 3).transpose(0, 1), stride=self.stride[0])

        return self._layout("mirrored, winograd", make)

    def is_faster(self, weight: torch.Tensor) -> bool:
        """Whether packing this weight makes calls faster."""
        if weight.device.type != "cpu":
            return False
        return weight.numel() >= MIN_WEIGHTS_TO_PACK or any(self._supports(weight)) or self._is_subsampling(weight)

    def _is_subsampling(self, weight: torch.Tensor) -> bool:
        """Whether it reads single pixels, and none of those between."""
        return list(weight.shape[2:]) == [1, 1] and self.padding == [0, 0] and self.stride != [1, 1]

    def _padding_backwards(self, weight: torch.Tensor) -> list[int]:
        """The padding of the convolution that computes the input gradient, for stride 1."""
        return [d * (size - 1) - p for d, size, p in zip(self.dilation, weight.shape[2:], self.padding, strict=True)]

    def _supports(self, weight: torch.Tensor) -> tuple[bool, bool]:
        """Whether Winograd supports the convolution, and its input gradient."""
        # Padding to 8 filters only pays for the 3-channel image gradient.
        forward = len(weight) % winograd.LANES == 0
        forward = forward and winograd.supports(weight, self.stride, self.dilation, self.padding)
        # With stride 2 and 8 channels the transforms cost more than they save.
        forward &= self.stride == [1, 1] or weight.shape[1] > winograd.LANES
        padding = self._padding_backwards(weight) if self.stride == [1, 1] else self.padding
        backward = winograd.supports(weight.transpose(0, 1), self.stride, self.dilation, padding)
        return forward, backward and (self.stride == [1, 1] or self.padding == [1, 1])

    def _is_output(self, y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, padding: list[int]) -> bool:
        """Whether ``y`` has the shape and type of the convolution of ``x``."""
        key = x.shape, weight.shape, *padding
        if key not in self._shapes:
            sides = zip(x.shape[2:], weight.shape[2:], padding, self.stride, self.dilation, strict=True)
            height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in sides)
            self._shapes[key] = torch.Size((x.shape[0], weight.shape[0], height, width))
        return y.shape == self._shapes[key] and y.dtype == x.dtype

    def _layout(self, name: Hashable, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        if name not in self._layouts:
            self._layouts[name] = make()
        return self._layouts[name]


class PackedConv2d(nn.Conv2d):
    """A ``Conv2d`` whose weight is kept packed. Its parameters must need no gradient."""

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> "PackedConv2d":
        """``convolution`` (without groups, zero padding) with a packed weight; the two share their parameters."""
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
        pad: bool = True,
    ) -> torch.Tensor:
        """As a ``Conv2d``, plus ``residual`` of the output's shape, through relu if asked.

        Args:
            pad: False for images (B, C, H, W) that bring their border along.
        """
        return self.packed.conv2d(x, self.weight, self.bias, pad=pad, residual=residual, relu=relu)


def packing_is_faster(convolution: nn.Conv2d) -> bool:
    """Whether :meth:`PackedConv2d.of` makes calls faster."""
    return PackedWeight(convolution.stride, convolution.padding, convolution.dilation).is_faster(convolution.weight)


def can_be_packed(convolution: nn.Module) -> bool:
    """Whether :meth:`PackedConv2d.of` takes it: exactly a ``Conv2d``, not a subclass, without hooks."""
    if type(convolution) not in (nn.Conv2d, FastConv2d) or convolution._forward_hooks or convolution._forward_pre_hooks:
        return False
    return convolution.groups == 1 and convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, packed: PackedWeight, mask: bool, relu: bool, gate, gate_bias):
        y = packed.forward(x, weight, bias, packed.padding, residual, relu)
        ctx.save_for_backward(x, weight, y if mask else None)
        ctx.packed, ctx.gate_bias = packed, gate_bias
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        x, weight, y = ctx.saved_tensors
        if y is not None and ctx.needs_input_grad[1]:
            gradient, y = _masked(gradient, y), None
        of_x = of_gate = None
        if ctx.gate_bias is not None:
            of_x, of_gate = ctx.packed.backward(gradient, x, weight, y, ctx.gate_bias)
        elif ctx.needs_input_grad[0]:
            of_x = ctx.packed.backward(gradient, x, weight, y)
        return of_x, gradient if ctx.needs_input_grad[1] else None, *[None] * 5, of_gate, None


def _scattered_gradient(
    gradient: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, stride: list[int]
) -> torch.Tensor:
    """The input gradient of a strided 1x1 convolution: a matrix product, and zeros between the pixels it reads."""
    found = torch.zeros_like(x, memory_format=torch.channels_last)
    found[:, :, :: stride[0], :: stride[1]] = (gradient.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    return found


def _masked(gradient: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The gradient before the relu whose output is ``y``."""
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
    """The types that oneDNN computes with on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    return {torch.float32} | ({torch.bfloat16} if _OPS._is_mkldnn_bf16_supported() else set())
