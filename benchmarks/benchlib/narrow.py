"""A narrow net with some robustness, for benchmarks of a width that no trained run has."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional as F

from moat import models
from moat.attacks import AttackCopy, pgd
from moat.base.files import atomic_path
from moat.data import datasets
from moat.evaluation.scoring import images
from moat.kernels import for_training
from moat.training.run_record import read_run

NETS = Path("work") / "benchmarks"
EPOCHS, BATCH, PEAK = 6, 64, 0.1
ATTACK = {"eps": 8 / 255, "step_size": 4 / 255, "steps": 3, "random_start": "uniform"}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--nets", type=Path, default=NETS, metavar="DIR", help="keeps the narrow nets (default: %(default)s)"
    )


def load(arguments: argparse.Namespace, width: int) -> torch.nn.Module:
    """A ResNet-18 of ``width`` channels, trained against PGD-3 for six epochs on the images of the run ``--run``.

    It is trained once and kept in ``--nets``.
    """
    run = read_run(arguments.run_dir)
    count = run["data"]["train_images"]
    kept = arguments.nets / f"resnet18-{width}-{run['data']['sha256'][:12]}-{count}.safetensors"
    if not kept.exists():
        split = datasets.load(arguments.data or Path(run["data"]["path"]), ["train"]).splits["train"]
        model = for_training(_fresh(run, width))
        _train(model, images(split.images[:count], torch.device("cpu")), split.labels[:count].long())
        with atomic_path(kept) as path:
            safetensors.torch.save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    model = _fresh(run, width)
    model.load_state_dict(safetensors.torch.load_file(kept))
    return model.eval()


def _fresh(run: Mapping[str, Any], width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = models.build("resnet18", run["num_classes"], width=width / 64, normalize=run["model"]["normalize"])
    return model.to(memory_format=torch.channels_last)


def _train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), PEAK, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, EPOCHS * (-(-len(x) // BATCH)))
    copied = AttackCopy(model)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(x), generator=generator).split(BATCH):
            attacked = pgd(copied.refresh(), x[part], y[part], generator=generator, **ATTACK)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model.train()(attacked), y[part]).backward()
            optimizer.step()
            schedule.step()
