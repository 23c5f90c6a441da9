"""A model as attacks want it: frozen, in evaluation mode, channels last, batch norm folded into the convolutions.

In evaluation mode batch norm is an affine map per channel, so a convolution followed by it is one convolution. The
copy gives the model's logits and input gradients up to rounding, in about half the time for narrow nets.
"""

import copy
import logging
from collections.abc import Iterator

import torch
from torch import fx, nn

from moat.base.errors import MoatError
from moat.kernels import graphs
from moat.kernels.fusing import fuse
from moat.kernels.packed import PackedConv2d, can_be_packed, worth_packing

log = logging.getLogger(__name__)

# Relative to the largest logit: what other kernels and another order of summation may change.
TOLERANCE = 1e-3


def for_attack(model: nn.Module, example: torch.Tensor | None = None) -> nn.Module:
    """A copy of ``model``, as it is now, to compute an attack's gradients with; other attack libraries may use it too.

    Its parameters are frozen, it is in evaluation mode and channels last, every batch norm that follows a convolution
    (plain, masked, or of channel experts) and nothing else is folded into it. On a CPU the convolutions' weights are
    kept as the fastest kernel wants them (:mod:`moat.kernels.packed`), which takes about ten times their memory, and
    sums and relus behind a convolution are computed by it. The copy keeps the class and the methods of ``model``
    (``route_logits``, ``features``); its state dict is not the model's.

    Args:
        model: any classifier. One that cannot be copied is returned as it is.
        example: images (B, C, H, W) on the model's device. With them the copy's logits are compared with the
            model's; a copy that differs is dropped, with a warning, for one without folding.
    """
    try:
        copied = AttackCopy(model).refresh()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        log.warning("the model cannot be copied (%s); it is attacked as it is", error)
        return model
    if example is None or _same_logits(model, copied, example):
        return copied
    log.warning("the model's batch norm cannot be folded; it is attacked as it is")
    return model


class AttackCopy:
    """The copy of :func:`for_attack`, made once and brought up to date with its model as that is trained."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.copy = copy.deepcopy(model)
        pairs = list(foldable(model))
        for convolution, norm in pairs:
            _replace(self.copy, convolution, _with_bias(self.copy.get_submodule(convolution)))
            _replace(self.copy, norm, _Through())
        self.copy.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        _pack(self.copy)
        fuse(self.copy, Tracer)
        if graphs.asked_for(next(model.parameters(), torch.empty(0)).device):
            graphs.attach(self.copy, Tracer)
        source, target = model.get_submodule, self.copy.get_submodule
        self._folded = [(source(c), source(n), target(c)) for c, n in pairs]
        self._copied = list(self._tensors_left(pairs))

    def refresh(self) -> nn.Module:
        """Take over the model's weights and statistics of now."""
        with torch.no_grad():
            for theirs, ours in self._copied:
                ours.copy_(theirs)
            for convolution, norm, folded in self._folded:
                _fold(convolution, norm, folded)
        return self.copy

    def _tensors_left(self, pairs) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The model's tensors that no pair folds, each with the copy's."""
        folded = tuple(f"{name}." for pair in pairs for name in pair)
        ours = dict((*self.copy.named_parameters(), *self.copy.named_buffers()))
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if not name.startswith(folded):
                yield tensor.detach(), ours[name]


def foldable(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The pairs (convolution, batch norm), by module name, of which the second alone uses what the first gives.

    They are read from the graph of ``model.forward``. Where that depends on the data, they are those that the module
    declares in ``FOLDS`` and those in the graphs of its children.
    """
    try:
        graph = Tracer().trace(model)
    except Exception:  # Whatever a forward pass does with a stand-in for its input, its children may still be plain.
        for convolution, norm in getattr(model, "FOLDS", ()):
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


class Tracer(fx.Tracer):
    """Looks into every module but convolutions and torch's own."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, qualified_name)


class _Through(nn.Module):
    """In the place of a folded batch norm, whatever arguments it took beside its input."""

    def forward(self, x: torch.Tensor, *_) -> torch.Tensor:
        return x


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    convolves = isinstance(convolution, nn.Conv2d) or hasattr(convolution, "forward_sorted")
    return convolves and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, module)


def _pack(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if hasattr(module, "forward_sorted"):
            module.pack()
        elif name and can_be_packed(module) and worth_packing(module):
            _replace(model, name, PackedConv2d.of(module))


def _with_bias(convolution: nn.Module) -> nn.Module:
    """The convolution with a bias; one with a computed weight (a mask) becomes a plain one."""
    if hasattr(convolution, "effective_weight"):
        plain = nn.Conv2d(1, 1, 1)
        for key in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"):
            setattr(plain, key, getattr(convolution, key))
        plain.weight = nn.Parameter(convolution.weight.detach().clone())
        convolution = plain.to(convolution.weight.device)
    # Of channel experts, too: `out_channels` is one expert's, and they share the batch norm.
    convolution.bias = nn.Parameter(convolution.weight.new_zeros(convolution.out_channels))
    return convolution


def _fold(convolution: nn.Module, norm: nn.BatchNorm2d, folded: nn.Module) -> None:
    """w <- w * g / sqrt(v + e), b <- (b - m) * g / sqrt(v + e) + c, of batch norm's mean m, variance v, scale g, c."""
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    if norm.affine:
        scale = scale * norm.weight
    weight = convolution.effective_weight() if hasattr(convolution, "effective_weight") else convolution.weight
    experts = len(weight) // len(scale)
    torch.mul(weight, scale.repeat(experts).view(-1, 1, 1, 1), out=folded.weight)
    torch.mul(shift, scale, out=folded.bias)
    if norm.affine:
        folded.bias += norm.bias


@torch.no_grad()
def _same_logits(model: nn.Module, copied: nn.Module, example: torch.Tensor) -> bool:
    modes = [(module, module.training) for module in model.modules()]
    try:
        theirs, ours = model.eval()(example), copied(example)
    except MoatError:
        # A model that refuses the images says so again where it is judged.
        return True
    finally:
        for module, training in modes:
            module.training = training
    limit = TOLERANCE * theirs.abs().amax().clamp(min=1)
    return theirs.shape == ours.shape and bool(((theirs - ours).abs() <= limit).all() | theirs.isnan().any())
