"""A model as attacks need it: frozen, in evaluation mode, channels last, batch norm folded into the convolutions.

In evaluation mode batch norm is an affine map per channel, so a convolution followed by it is one convolution. The
copy gives the model's logits and input gradients up to rounding, in about half the time for narrow nets.
"""

import copy
import logging
import weakref
from collections.abc import Iterator

import torch
from torch import fx, nn

from moat.base.errors import MoatError
from moat.kernels import graphs
from moat.kernels.channel_experts import FoldedChannelExpertConv2d
from moat.kernels.fusing import fuse
from moat.kernels.low_precision import lower_precision
from moat.kernels.moe_cnn import FOLDABLE, FoldedMoeBasicBlock
from moat.kernels.packed import PackedConv2d, can_be_packed, packing_is_faster
from moat.kernels.tracing import Tracer
from moat.kernels.twins import use_twins
from moat.models import ChannelExpertConv2d
from moat.models.guard import Guard, behind
from moat.models.nets.masked import MaskedConv2d

log = logging.getLogger(__name__)

# Relative to the largest logit: the effect of other kernels and another order of summation.
TOLERANCE = 1e-3


def for_attack(model: nn.Module, example: torch.Tensor | None = None, *, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of ``model`` as it is now to compute an attack's gradients with; works with any attack library.

    The copy is frozen, in evaluation mode and channels last. Every batch norm that follows a convolution (plain,
    masked, or of channel experts), and is all that uses it, is folded into it. On a CPU the weights of convolutions
    are kept in the layout of the fastest kernel, which takes about ten times their memory, and sums and relus after a
    convolution are computed by it. The copy keeps the class and the methods of ``model`` (``route_logits``,
    ``features``); its state dict is not the model's.

    Args:
        model: any classifier. One that cannot be copied is returned as it is. The copy of a model behind a
            :class:`~moat.models.guard.Guard` stands behind one, too.
        example: images (B, C, H, W) on the model's device. If given, the copy's logits are compared with the
            model's; if they differ, a warning is logged and the model itself returned. (So it is for a model that
            calls ``view`` on a convolution's output: it fails on the copy's memory format.)
        dtype: of the convolutions, e.g. ``torch.bfloat16``; the copy still takes and returns float32, and its linear
            layers and router stay in float32. A gradient then differs by about a hundredth of its length: attack with
            this copy and classify the examples with the model: only what fools that one counts.
    """
    try:
        copied = AttackCopy(behind(model)).refresh()
    except Exception as error:  # Copying calls other people's __deepcopy__ and forward.
        _warn_once(model, f"the model cannot be copied ({error}); it is attacked as it is{_in_its_precision(dtype)}")
        return model
    shown = model.around(copied) if isinstance(model, Guard) else copied
    if example is not None and not have_same_logits(model, shown, example):
        _warn_once(model, f"the model's fast copy has other logits; it is attacked as it is{_in_its_precision(dtype)}")
        return model
    if dtype is not None:
        lower_precision(copied, dtype)
    return shown


# Models that something was said about. Every check and attack asks for a copy of its own.
_told: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


def _warn_once(model: nn.Module, message: str) -> None:
    said = _told.setdefault(behind(model), set())
    if message not in said:
        said.add(message)
        log.warning("%s", message)


class AttackCopy:
    """The copy of :func:`for_attack` for a model that is being trained: made once, then refreshed."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.copy = copy.deepcopy(model)
        use_twins(self.copy)
        for module in self.copy.modules():
            FoldedChannelExpertConv2d.convert(module)
        pairs = list(foldable(self.copy))
        for convolution, norm in pairs:
            _replace(self.copy, convolution, _with_bias(self.copy.get_submodule(convolution)))
            _replace(self.copy, norm, _PassThrough())
        for module in self.copy.modules():
            FoldedMoeBasicBlock.convert(module)
        self.copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        _pack(self.copy)
        fuse(self.copy)
        if graphs.is_enabled(next(model.parameters(), torch.empty(0)).device):
            graphs.attach(self.copy)
        source, target = model.get_submodule, self.copy.get_submodule
        self._folded = [(source(c), source(n), target(c)) for c, n in pairs]
        self._copied = list(self._other_tensors(pairs))

    def refresh(self) -> nn.Module:
        """The copy with the model's current weights and statistics."""
        with torch.no_grad():
            for theirs, ours in self._copied:
                ours.copy_(theirs)
            for convolution, norm, folded in self._folded:
                _fold(convolution, norm, folded)
        return self.copy

    def _other_tensors(self, pairs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The model's tensors that are not part of a folded pair, each with the copy's."""
        folded = tuple(f"{name}." for pair in pairs for name in pair)
        ours = dict((*self.copy.named_parameters(), *self.copy.named_buffers()))
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not name.startswith(folded):
                yield tensor.detach(), ours[name]


def foldable(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The pairs (convolution, batch norm), by module name, where the norm is all that uses the convolution's output.

    They are read from the graph of ``model.forward``. If that depends on the data, they are those of ``FOLDABLE`` and
    those in the graphs of its children.
    """
    try:
        graph = Tracer().trace(model)
    except Exception:  # A forward pass may do anything with the proxy that stands for its input; try its children.
        for convolution, norm in FOLDABLE.get(type(model), ()):
            if _can_fold(model.get_submodule(convolution), model.get_submodule(norm)):
                yield f"{prefix}{convolution}", f"{prefix}{norm}"
        for name, child in model.named_children():
            yield from foldable(child, f"{prefix}{name}.")
        return
    calls = [node for node in graph.nodes if node.op == "call_module"]
    used_once = {name for name in (str(node.target) for node in calls) if sum(n.target == name for n in calls) == 1}
    for node in calls:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
            continue
        names = str(source.target), str(node.target)
        if used_once.issuperset(names) and _can_fold(*map(model.get_submodule, names)):
            yield f"{prefix}{names[0]}", f"{prefix}{names[1]}"


class _PassThrough(nn.Module):
    """Takes the place of a folded batch norm, whatever arguments that has after its input."""

    def forward(self, x: torch.Tensor, *_) -> torch.Tensor:
        return x


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    convolves = isinstance(convolution, (nn.Conv2d, FoldedChannelExpertConv2d))
    return convolves and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _pack(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, FoldedChannelExpertConv2d):
            module.pack()
        elif name and can_be_packed(module) and packing_is_faster(module):
            _replace(model, name, PackedConv2d.of(module))


def _with_bias(convolution: nn.Module) -> nn.Module:
    """The convolution with a bias of zeros; a masked one becomes a plain one, as its mask is folded, too."""
    if isinstance(convolution, MaskedConv2d):
        plain = nn.Conv2d(1, 1, 1)
        for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(plain, key, getattr(convolution, key))
        plain.weight = nn.Parameter(convolution.weight.detach().clone())
        convolution = plain.to(convolution.weight.device)
    # Of channel experts, too: `out_channels` is that of one expert, and they share the batch norm.
    convolution.bias = nn.Parameter(convolution.weight.new_zeros(convolution.out_channels))
    return convolution


def _fold(convolution: nn.Module, norm: nn.BatchNorm2d, folded: nn.Module) -> None:
    """w <- w * g / sqrt(v + e), b <- (b - m) * g / sqrt(v + e) + c: the norm's mean m, variance v, scale g, shift c."""
    scale = (norm.running_var + norm.eps).rsqrt()
    bias = None if isinstance(convolution, ChannelExpertConv2d) else convolution.bias
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
    weight = convolution.effective_weight() if isinstance(convolution, MaskedConv2d) else convolution.weight
    experts = len(weight) // len(scale)
    torch.mul(weight, scale.repeat(experts).view(-1, 1, 1, 1), out=folded.weight)
    torch.mul(shift, scale, out=folded.bias)
    if norm.affine:
        folded.bias += norm.bias


def _in_its_precision(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else ", in its own precision"


@torch.no_grad()
def have_same_logits(model: nn.Module, copied: nn.Module, example: torch.Tensor) -> bool:
    """Whether model and copy agree on the images (B, C, H, W) up to ``TOLERANCE``; the model's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        theirs = model.eval()(example)
    except MoatError:
        # A model that refuses the images says so where it classifies the attacked ones.
        return True
    finally:
        for module, training in modes:
            module.training = training
    try:
        ours = copied(example)
    except Exception:  # Other people's code, in a memory format that it does not expect.
        return False
    if not isinstance(ours, torch.Tensor):
        # The copy has kept a symbol of its tracing, as a model may that remembers its input.
        return False
    limit = TOLERANCE * theirs.abs().amax().clamp(min=1)
    return theirs.shape == ours.shape and bool(((theirs - ours).abs() <= limit).all() | theirs.isnan().any())
