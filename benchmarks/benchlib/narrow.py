"""A narrow net with some robustness, for benchmarks of a width that no trained run has."""

from pathlib import Path

import torch
from torch.nn import functional as F

from moat import models
from moat.attacks import AttackCopy, pgd
from moat.data import datasets
from moat.evaluation.judging import images
from moat.kernels import for_training
from moat.training.models import read_run

EPOCHS, BATCH, PEAK = 6, 64, 0.1
ATTACK = {"eps": 8 / 255, "step_size": 4 / 255, "steps": 3, "random_start": "uniform"}


def train(arguments, width: int) -> torch.nn.Module:
    """A ResNet-18 of ``width`` channels, trained against PGD-3 for six epochs on the images of the run ``--run``."""
    run = read_run(arguments.run_dir)
    split = datasets.load(arguments.data or Path(run["data"]["path"]), ["train"]).splits["train"]
    count = run["data"]["train_images"]
    x, y = images(split.images[:count], torch.device("cpu")), split.labels[:count].long()
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = models.build("resnet18", run["num_classes"], width=width / 64, normalize=run["model"]["normalize"])
    model = for_training(model.to(memory_format=torch.channels_last))
    optimizer = torch.optim.SGD(model.parameters(), PEAK, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, EPOCHS * (-(-count // BATCH)))
    copied = AttackCopy(model)
    for _ in range(EPOCHS):
        for part in torch.randperm(count, generator=generator).split(BATCH):
            attacked = pgd(copied.refresh(), x[part], y[part], generator=generator, **ATTACK)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model.train()(attacked), y[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()
