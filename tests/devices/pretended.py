"""A GPU that is only pretended, for machines without one: CPU arithmetic under CUDA's rules about devices.

A tensor "on the GPU" wraps a CPU tensor with the true values. What CUDA refuses is refused in CUDA's words: an operator
with tensors of both devices, ``numpy()``, a generator of the other device, an index on the GPU into a tensor on the
CPU. What makes the host wait for a GPU is counted, with the line of moat that it is done for. Inside
:func:`pretended_gpu`, ``device="cuda"``, ``.to("cuda")``, ``torch.Generator("cuda")`` and ``torch.cuda`` answer as on a
machine with one GPU, with a generator of its own that draws what the CPU's draws from the same seed.

What it cannot show: kernels that CUDA lacks, their rounding, streams and asynchronous errors, memory, speed. Moving a
module makes new parameters, where CUDA keeps the objects.

Autocast does not know such tensors: its casts are made here, for the operators of :data:`LOW` and :data:`FULL`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from pretended_tensors import CPU, INSIDE, STATE, Generator, GpuTensor, on_gpu, run, wait
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from moat.kernels import convolution

# Autocast's lists, as far as moat uses them: computed in low precision, and in float32.
LOW = {F.conv2d, F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.einsum}
LOW |= {torch.bmm, torch.mm, torch.addmm}
FULL = {F.softmax, F.log_softmax, F.cross_entropy, F.nll_loss, F.kl_div, F.normalize, F.cosine_similarity}
FULL |= {torch.softmax, torch.log_softmax, torch.Tensor.softmax, torch.Tensor.log_softmax, torch.Tensor.sum, torch.sum}
FULL |= {torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.Tensor.pow, torch.norm, torch.Tensor.norm}


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


# -- calls from Python -------------------------------------------------------
class _Calls(TorchFunctionMode):
    """Names of the device in Python's calls, and what CUDA does otherwise than "lazy"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (torch.device, torch.get_device_module):
            return func(*args, **kwargs)
        kwargs = {key: _place(value) for key, value in kwargs.items()}
        args = tuple(_place(value) for value in args)
        _check_generator(args, kwargs)
        if func is torch.Tensor.data_ptr and isinstance(args[0], GpuTensor):
            raise RuntimeError("the address of a tensor on the GPU is wanted, as by a library that computes on the CPU")
        if func is torch.Tensor.cuda:
            return args[0].to(INSIDE)
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == INSIDE:
            return func(*args, **kwargs | {"device": CPU}).to(INSIDE)
        if func is F.one_hot and isinstance(args[0], GpuTensor) and len(args) == 2:
            # Elsewhere than on a GPU the labels are looked at.
            return args[0].new_zeros((*args[0].shape, args[1])).scatter_(-1, args[0][..., None], 1)
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = _autocast(func, args, kwargs)
        return func(*args, **kwargs)


def _check_generator(args, kwargs) -> None:
    generator, device = kwargs.get("generator"), kwargs.get("device")
    if generator is None:
        return
    place = "cuda" if device == INSIDE or (device is None and isinstance(args[0], GpuTensor)) else "cpu"
    if generator.device.type != place:
        raise RuntimeError(f"Expected a '{place}' device type for generator but found '{generator.device.type}'")


def _place(value):
    named = isinstance(value, torch.device) or (isinstance(value, str) and value.startswith("cuda"))
    return INSIDE if named and on_gpu(value) else value


def _autocast(func, args, kwargs):
    if func not in LOW and func not in FULL:
        return args, kwargs
    low = torch.get_autocast_dtype("cuda")
    before, after = ((torch.float32,), low) if func in LOW else ((torch.float16, torch.bfloat16), torch.float32)

    def cast(value):
        wanted = isinstance(value, GpuTensor) and value.dtype in before
        return value.to(after) if wanted else value

    return tree_map(cast, args), tree_map(cast, kwargs)


# -- torch.cuda and files ----------------------------------------------------
def _load(original, *args, map_location=None, **kwargs):
    """As torch.load: a storage goes where ``map_location`` says, or where it was."""
    gpu = set()

    def restore(storage, where):
        if on_gpu(where if map_location is None else map_location):
            gpu.add(storage._cdata)
        return storage

    def placed(value):
        moved = isinstance(value, torch.Tensor) and value.untyped_storage()._cdata in gpu
        return GpuTensor(value) if moved else value

    return tree_map(placed, original(*args, map_location=restore, **kwargs))


def _patches() -> Iterator[Any]:
    def seed(number: int) -> None:
        STATE.random = Generator.__base__().manual_seed(number).get_state()

    def set_state(state: torch.Tensor, device: Any = "cuda") -> None:
        STATE.random = state.clone()

    properties = SimpleNamespace(name="a pretended GPU", total_memory=2**34, major=9, minor=0, multi_processor_count=1)
    yield mock.patch.multiple(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        is_bf16_supported=lambda including_emulation=True: True,
        get_device_name=lambda *_: properties.name,
        get_device_properties=lambda *_: properties,
        synchronize=lambda *_: wait("synchronize"),
        empty_cache=lambda: None,
        memory_allocated=lambda *_: 0,
        max_memory_allocated=lambda *_: 0,
        reset_peak_memory_stats=lambda *_: None,
        manual_seed=seed,
        manual_seed_all=seed,
        get_rng_state=lambda device="cuda": STATE.random.clone(),
        set_rng_state=set_state,
        _lazy_init=lambda: None,
    )
    yield mock.patch.object(torch, "Generator", Generator)
    original, tag = torch.load, torch.serialization.location_tag
    yield mock.patch.object(torch, "load", lambda *args, **kwargs: _load(original, *args, **kwargs))
    # The compiled convolutions must let the GPU's tensors be for their device, not for their class or these modes.
    yield mock.patch.object(convolution, "TENSOR_CLASSES", (*convolution.TENSOR_CLASSES, GpuTensor))
    yield mock.patch.object(convolution, "_is_observed", lambda: False)
    tagged = lambda storage: "cuda:0" if storage._cdata in STATE.storages else tag(storage)  # noqa: E731
    yield mock.patch.object(torch.serialization, "location_tag", tagged)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Counter]:
    """A machine with one GPU; gives the waits for it, by "file:line what" of moat, as they are counted."""
    with contextlib.ExitStack() as stack:
        for patch in _patches():
            stack.enter_context(patch)
        STATE.waits, STATE.storages = Counter(), set()
        torch.cuda.manual_seed_all(0)
        stack.enter_context(_Calls())
        stack.enter_context(_Operators())
        yield STATE.waits
