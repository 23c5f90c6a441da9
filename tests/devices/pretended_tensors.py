"""The tensors of the pretended GPU (``pretended.py``), and what its operators refuse, count and draw.

To torch's C++ side they lie on the device "lazy": the one device type with which autograd works in every build, whose
own backend is not loaded, and that moat does not know. So a factory inside an operator of C++, which takes its device
from another tensor, can be told from one in Python that names none.
"""

import contextlib
import functools
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._python_dispatch import return_and_correct_aliasing

import moat

aten = torch.ops.aten
GPU, INSIDE, CPU = torch.device("cuda", 0), torch.device("lazy", 0), torch.device("cpu")
SOURCES = str(Path(moat.__file__).parent)
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"

# Operators whose result has a size, or is a number, that the host must know.
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_dim, aten._unique2}
WAITS |= {aten.bincount, aten.repeat_interleave}
# (operator, position of the argument): devices may differ here.
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
RANDOM, COPYING = torch.Tag.nondeterministic_seeded, {aten.copy_, aten._to_copy, aten.copy}


class GpuTensor(torch.Tensor):
    """A tensor that says it lies on the GPU; ``held`` has its values."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "GpuTensor":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, **layout, device=INSIDE)
        made.held = held
        return made

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if not isinstance(new, GpuTensor):
            raise RuntimeError("incompatible tensor type: cuda:0 and cpu")
        torch.Tensor.data.__set__(self, new)
        self.held = new.held

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __array__(self, dtype=None):
        return self.numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    def __repr__(self, **_) -> str:
        return f"on the pretended GPU: {self.held!r}"

    def __reduce_ex__(self, protocol):
        # Saved as CUDA's tensors are: the values, and beside them where they lay.
        STATE.storages.add(self.held.untyped_storage()._cdata)
        return self.held.requires_grad_(False).__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that says where it lives. Operators see its base class, so the calls that it is given to check it."""

    def __new__(cls, device: Any = "cpu"):
        made = super().__new__(cls)
        made.place = GPU if on_gpu(device) else CPU
        return made

    @property
    def device(self) -> torch.device:
        return self.place


# Waits for the GPU by the line of moat, the GPU's own random state, storages saved from it or loaded to it.
STATE = SimpleNamespace(waits=Counter(), random=None, storages=set())


def on_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "lazy")


def wait(what: str) -> None:
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(SOURCES):
        frame = frame.f_back
    where = f"{frame.f_code.co_filename[len(SOURCES) + 1 :]}:{frame.f_lineno}" if frame else "outside moat"
    STATE.waits[f"{where} {what}"] += 1


# -- operators ---------------------------------------------------------------
def run(func, args, kwargs):
    """One operator, on the CPU tensors inside; its results lie where CUDA would have them."""
    tensors = list(_tensors((args, kwargs)))
    ours = [each for each in tensors if isinstance(each, GpuTensor)]
    device = kwargs.get("device")
    to_gpu = bool(ours) if device is None else on_gpu(device)
    if ours and func.namespace not in ("aten", "prims", "profiler"):
        raise NotImplementedError(f"Could not run '{func}' with arguments from the 'CUDA' backend.")
    if ours or to_gpu:
        _check(func, args, tensors, ours)
        _count(func, args, ours, to_gpu)
    plain_args, plain_kwargs = _map(_inside, args), _map(_inside, kwargs)
    if device is not None:
        plain_kwargs["device"] = CPU
    with _random_numbers(func, args, kwargs) if to_gpu and RANDOM in func.tags else contextlib.nullcontext():
        out = func(*plain_args, **plain_kwargs)
    if not to_gpu:
        return out
    wrapped = _map(_outside, out)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours and _aliases(func) else wrapped


@functools.cache
def _aliases(func) -> bool:
    """Whether it returns an argument or a view of one."""
    return any(each.alias_info for each in func._schema.returns)


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _map(change, value):
    if isinstance(value, (list, tuple)):
        return type(value)([_map(change, each) for each in value])
    return {key: _map(change, each) for key, each in value.items()} if isinstance(value, dict) else change(value)


def _inside(value):
    return value.held if isinstance(value, GpuTensor) else value


def _outside(value):
    return GpuTensor(value) if isinstance(value, torch.Tensor) else value


def _check(func, args, tensors, ours) -> None:
    name = func.overloadpacket
    others = [each for each in tensors if not isinstance(each, GpuTensor)]
    if name in INDEXING and args:
        if ours and not isinstance(args[0], GpuTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        others = [each for each in args[2:3] if isinstance(each, torch.Tensor) and not isinstance(each, GpuTensor)]
    elif name in COPYING:
        return
    scalars_allowed = torch.Tag.pointwise in func.tags or name in INDEXING
    for other in others if ours else ():
        written_to = other is args[0] and func._schema.is_mutable
        if other.ndim or written_to or not scalars_allowed:
            raise RuntimeError(f"{MIXED} ({func}: {tuple(other.shape)} on the CPU)")


def _count(func, args, ours, to_gpu) -> None:
    name = func.overloadpacket
    if name in COPYING:
        between = to_gpu != bool(ours) if name is aten._to_copy else len({type(each) for each in args[:2]}) == 2
        if between:
            wait("from the CPU" if isinstance(args[0], GpuTensor) == (name is not aten._to_copy) else "to the CPU")
    elif ours and name in WAITS:
        wait(str(name))
    elif ours and name in INDEXING:
        indices = [each for each in args[1] if each is not None]
        if any(each.dtype in (torch.bool, torch.uint8) or not isinstance(each, GpuTensor) for each in indices):
            wait("index by mask or from the CPU")


@contextlib.contextmanager
def _random_numbers(func, args, kwargs) -> Iterator[None]:
    """Where no generator is given, numbers on the GPU are those of the GPU's own."""
    given = any(isinstance(each, Generator.__base__) for each in (*args, *kwargs.values()))
    if given:
        yield
        return
    before = torch.default_generator.get_state()
    torch.default_generator.set_state(STATE.random)
    try:
        yield
    finally:
        STATE.random = torch.default_generator.get_state()
        torch.default_generator.set_state(before)
