"""Trained nets for comparing verdicts: a run of the project, and the same function as a wider net."""

import copy
from pathlib import Path

import torch
from torch import nn

from moat import models
from moat.base.errors import DataError
from moat.data import datasets
from moat.evaluation.scoring import images
from moat.training.models import load_model
from moat.training.run_record import read_run

RUN = Path("results/mini/runs/cifar10-jpeg/resnet18/trades/seed0")
HOW = "`moat train` makes it, see --run"


def add_arguments(parser) -> None:
    what = "a trained run, on which verdicts are compared (default: %(default)s)"
    parser.add_argument("--run", dest="run_dir", type=Path, default=RUN, metavar="DIR", help=what)
    parser.add_argument("--data", type=Path, metavar="FILE", help="its data set (default: the run's own)")
    parser.add_argument("--images", type=int, default=512, metavar="N", help="verdicts compared (default: 512)")


def load(arguments) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The run's model and the first ``--images`` test images, float32 (N, C, H, W) in [0,1], with labels.

    Raises:
        DataError: there is no such run, or no such data set.
    """
    folder = arguments.run_dir
    if not folder.exists():
        raise DataError(f"{folder}: no such run; {HOW}")
    split = datasets.load(arguments.data or Path(read_run(folder)["data"]["path"]), ["test"]).splits["test"]
    x = images(split.images[: arguments.images], torch.device("cpu")).contiguous()
    return load_model(folder), x, split.labels[: arguments.images]


def widened(model: nn.Module, factor: int, *, arch: str = "resnet18") -> nn.Module:
    """The same function as a net ``factor`` times as wide: each channel is replicated, its outgoing weight divided.

    The replicas' parts differ (0.5 to 1.5 times equal parts), so that rounding differs among them.
    Source: Chen et al., Net2Net, arXiv 1511.05641.

    Args:
        model: built by :func:`moat.models.build`.
    """
    small = model.state_dict()
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    wide = models.build(arch, model.head.out_features, width=factor * stem.out_channels / 64)
    wide.normalize = copy.deepcopy(model.normalize)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in wide.state_dict().items():
            tensor.copy_(_widen(small[name], tensor.shape, factor, generator))
    return wide.eval()


def _widen(tensor: torch.Tensor, shape: torch.Size, factor: int, generator: torch.Generator) -> torch.Tensor:
    """``tensor`` repeated to ``shape`` along its first two dimensions, divided along the second."""
    if tensor.shape == shape:
        return tensor
    if shape[0] != tensor.shape[0]:
        tensor = tensor.repeat_interleave(factor, 0)
    if tensor.ndim < 2 or shape[1] == tensor.shape[1]:
        return tensor
    copies = torch.rand(*tensor.shape[:2], factor, generator=generator) + 0.5
    shares = (copies / copies.sum(2, keepdim=True)).flatten(1)
    tensor = tensor.repeat_interleave(factor, 1)
    return tensor * shares.view(*shares.shape, *[1] * (tensor.ndim - 2))
