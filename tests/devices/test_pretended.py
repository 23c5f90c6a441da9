"""What the pretended GPU refuses, allows and counts."""

import numpy as np
import pytest
import torch
from pretended import pretended_gpu
from pretended_tensors import GpuTensor
from torch.nn import functional as F
from two_devices import ON_GPU

from moat.kernels import winograd


def gpu(*values):
    return torch.tensor(values, device="cuda")


REFUSED = {
    "adding": (lambda: gpu(1.0, 2.0) + torch.ones(2), "same device"),
    "in place": (lambda: torch.ones(()).add_(gpu(1.0)[0]), "same device"),
    "cat": (lambda: torch.cat([gpu(1.0), torch.ones(1)]), "same device"),
    "a value of where": (lambda: torch.where(gpu(True), torch.ones(1), gpu(1.0)), "same device"),
    "convolving": (lambda: F.conv2d(torch.ones(1, 1, 3, 3, device="cuda"), torch.ones(1, 1, 3, 3)), "same device"),
    "index on the GPU": (lambda: torch.ones(3)[gpu(1)], "indices should be"),
    "value from the CPU": (lambda: gpu(1.0, 2.0).__setitem__(gpu(0, 1), torch.ones(2)), "same device"),
    "numpy": (lambda: gpu(1.0).numpy(), "can't convert cuda"),
    "as an array": (lambda: np.asarray(gpu(1.0)), "can't convert cuda"),
    "CPU generator": (lambda: torch.rand(2, device="cuda", generator=torch.Generator()), "'cuda' device type"),
    "GPU generator": (lambda: torch.rand(2, generator=torch.Generator("cuda")), "'cpu' device type"),
    "GPU generator in place": (lambda: torch.ones(2).uniform_(generator=torch.Generator("cuda")), "'cpu' device type"),
    "address": (lambda: gpu(1.0).data_ptr(), "address"),
    "compiled convolution": (lambda: winograd.transform_weight(torch.ones(8, 8, 3, 3, device="cuda")), "address"),
    "oneDNN": (
        lambda: torch.ops.mkldnn._convolution_pointwise(
            torch.ones(1, 1, 3, 3, device="cuda"),
            torch.ones(1, 1, 3, 3),
            None,
            [0, 0],
            [1, 1],
            [1, 1],
            1,
            "none",
            [],
            "",
        ),
        "Could not run",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_pretended_gpu_refuses_what_cuda_refuses(name):
    call, words = REFUSED[name]
    with pretended_gpu(), pytest.raises((RuntimeError, TypeError), match=words):
        call()


ALLOWED = {
    "a number from the CPU": lambda: gpu(1.0, 2.0) * torch.tensor(2.0),
    "index from the CPU": lambda: gpu(1.0, 2.0)[torch.tensor([1])],
    "mask from the CPU": lambda: gpu(1.0, 2.0)[torch.tensor([True, False])],
    "a number for an index": lambda: gpu(1.0, 2.0).index_put_((gpu(0),), torch.tensor(5.0)),
    "copying": lambda: torch.empty(2, device="cuda").copy_(torch.ones(2)),
    "moving": lambda: torch.ones(2).cuda().to("cuda:0"),
    "like": lambda: torch.zeros_like(gpu(1.0)).new_ones(3),
    "on its device": lambda: torch.arange(3, device=gpu(1.0).device),
    "a random number": lambda: torch.randn(2, device="cuda", generator=torch.Generator("cuda").manual_seed(0)),
    "a view written to": lambda: gpu(1.0, 2.0)[:1].add_(1),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_the_pretended_gpu_allows_what_cuda_allows(name):
    with pretended_gpu():
        result = ALLOWED[name]()
        assert isinstance(result, GpuTensor) and result.device == ON_GPU and result.is_cuda
        assert isinstance(result.cpu(), torch.Tensor) and not isinstance(result.cpu(), GpuTensor)


def test_the_pretended_gpu_counts_what_the_host_waits_for():
    with pretended_gpu() as waits:
        x = torch.rand(4, device="cuda")
        y = (x * 2).clamp(0, 1).sum()
        assert not waits
        for wait in (y.item, lambda: bool(y > 0), x.cpu, x.tolist, lambda: x[x > 0.5], lambda: x.nonzero()):
            before = waits.total()
            wait()
            assert waits.total() == before + 1


def test_the_gpu_has_random_numbers_of_its_own():
    with pretended_gpu():
        torch.manual_seed(3)
        on_gpu, on_cpu = torch.rand(2, device="cuda"), torch.rand(2)
        torch.manual_seed(3)
        torch.rand(7)
        assert torch.equal(torch.rand(2, device="cuda"), on_gpu) and torch.equal(on_gpu.cpu(), on_cpu)
