"""Convolutions of fixed weights, kept in the order in which oneDNN computes with them.

On a CPU, oneDNN brings a convolution's weights into an order of its own in every call, forwards and backwards. Where
the weights stay the same over many calls, as over an attack's steps, once is enough. The results are PyTorch's, but for
the order in which the gradient is summed. Other devices and types are served by PyTorch's own convolution.
"""

import functools

import torch
from torch import nn
from torch.nn import functional as F

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
        self._version, self._kept, self._forward, self._backward = None, None, None, None

    def __getstate__(self):
        # oneDNN's tensors can be neither copied nor saved.
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}

    def __setstate__(self, state) -> None:
        self.__init__(**state)

    def conv2d(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, padded: bool = True
    ) -> torch.Tensor:
        """The convolution (without groups) of ``x`` (B, C, H, W); a gradient reaches ``x`` alone.

        Where it is not ``padded``, ``x`` has its border already, and needs no gradient.
        """
        padding = self.padding if padded else [0, 0]
        if not _can_pack(x, weight):
            return F.conv2d(x, weight, bias, self.stride, padding, self.dilation)
        version = weight._version, weight.data_ptr(), weight.dtype
        if version != self._version:
            self._forget()
            # As long as this memory is held, no other weight can lie in the same place.
            self._version, self._kept = version, weight.detach()
        if padded and x.requires_grad:
            return _Packed.apply(x, weight, bias, self)
        return self.forward(x, weight, bias, padding)

    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding) -> torch.Tensor:
        if self._forward is None:
            self._forward = _OPS._reorder_convolution_weight(
                weight.detach(), self.padding, self.stride, self.dilation, 1, list(x.shape)
            )
        return _convolve(x, self._forward, bias, padding, self.stride, self.dilation)

    def backward(self, gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The gradient of ``x``; where the stride is 1, by a convolution with the mirrored weight."""
        reach = [d * (size - 1) - p for d, size, p in zip(self.dilation, weight.shape[2:], self.padding, strict=True)]
        if self.stride != [1, 1] or min(reach) < 0:
            more = self.stride, self.padding, self.dilation, False, [0, 0], 1, [True, False, False]
            return torch.ops.aten.convolution_backward(gradient, x, weight, None, *more)[0]
        if self._backward is None:
            self._backward = _OPS._reorder_convolution_weight(
                _mirrored(weight.detach()), reach, [1, 1], self.dilation, 1, list(gradient.shape)
            )
        return _convolve(gradient, self._backward, None, reach, [1, 1], self.dilation)


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

    def forward(self, x: torch.Tensor, *, padded: bool = True) -> torch.Tensor:
        """As a ``Conv2d``; not ``padded``: of images (B, C, H, W) that have their border already."""
        return self.packed.conv2d(x, self.weight, self.bias, padded=padded)


def worth_packing(weight: torch.Tensor) -> bool:
    """Whether calls become faster by it."""
    return weight.device.type == "cpu" and weight.numel() >= WORTH


def can_be_packed(convolution: nn.Module) -> bool:
    """Whether :meth:`PackedConv2d.of` takes it: a plain one, exactly of its class, that nobody hooked into."""
    if type(convolution) is not nn.Conv2d or convolution._forward_hooks or convolution._forward_pre_hooks:
        return False
    return convolution.groups == 1 and convolution.padding_mode == "zeros" and isinstance(convolution.padding, tuple)


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, packed: PackedWeight):
        ctx.save_for_backward(x, weight)
        ctx.packed = packed
        return packed.forward(x, weight, bias, packed.padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        return ctx.packed.backward(gradient, *ctx.saved_tensors), None, None, None


def _mirrored(weight: torch.Tensor) -> torch.Tensor:
    """``weight.flip(2, 3).transpose(0, 1)``, by a copy that PyTorch makes in blocks: twice as fast."""
    outputs, inputs, height, width = weight.shape
    mirrored = weight.permute(0, 2, 3, 1).reshape(outputs, height * width, inputs).flip(1)
    mirrored = mirrored.reshape(outputs, -1).t().contiguous()
    return mirrored.view(height, width, inputs, outputs).permute(2, 3, 0, 1)


def _convolve(x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, padding, stride, dilation):
    return _OPS._convolution_pointwise(x, packed, bias, padding, stride, dilation, 1, "none", [], "")


def _can_pack(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.requires_grad or x.dtype != weight.dtype:
        return False
    return x.ndim == 4 and x.numel() > 0 and weight.dtype in _types()


@functools.cache
def _types() -> set[torch.dtype]:
    """What oneDNN computes with on this machine."""
    if not torch.backends.mkldnn.is_available():
        return set()
    return {torch.float32} | ({torch.bfloat16} if _OPS._is_mkldnn_bf16_supported() else set())
