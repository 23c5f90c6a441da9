"""What data costs: batches against the usual torchvision pipeline, and preparing 60,000 JPEGs.

    python benchmarks/data.py [--mirror DIR_OR_URL] [--repeats 5] [--images 5000]

Prints JSON. Batches: CPU seconds (one thread) for the same crop + flip + to-float of CIFAR-size images, the peer
being torchvision's CIFAR10, PIL transforms and DataLoader(num_workers=0); repeats of the two take turns, medians are
reported. Preparing needs a mirror with cifar10-jpeg.tar.xz (default: $MOAT_MIRROR, then ../shared/data) and is
measured on a process of its own.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch

import moat.torchvision_ops  # noqa: F401 - before torchvision
from moat.data.batches import Batches

ROOT = Path(__file__).parents[1]
BATCH_SIZE = 128


def cpu_seconds(epoch: Callable[[], Iterable]) -> float:
    """CPU seconds of this process for one epoch."""
    start = time.process_time()
    for _ in epoch():
        pass
    return time.process_time() - start


def peer(images: np.ndarray, labels: list[int]) -> Callable[[], Iterable]:
    """An epoch of torchvision's CIFAR10 over these images, as training scripts of the field write it."""
    from torchvision import datasets, transforms

    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    # Without its files: only what __getitem__ uses is set.
    dataset = object.__new__(datasets.CIFAR10)
    dataset.data, dataset.targets = images, labels
    dataset.transform, dataset.target_transform = transforms.Compose(steps), None
    return lambda: torch.utils.data.DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=0)


def ours(images: np.ndarray, labels: list[int]) -> Callable[[], Iterable]:
    data, numbers = torch.from_numpy(images), torch.tensor(labels)
    batches = Batches(data, numbers, batch_size=BATCH_SIZE, seed=0, crop_padding=4, flip=True)
    epochs = iter(range(1_000_000))
    return lambda: batches.epoch(next(epochs))


def measure_batches(count: int, repeats: int) -> dict:
    torch.set_num_threads(1)
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, count).tolist()
    contenders = {"moat": ours(images, labels), "torchvision": peer(images, labels)}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, epoch in contenders.items():
            value = cpu_seconds(epoch)
            if repeat:  # the first warms up
                seconds[name].append(value)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "images": count,
        "repeats": repeats,
        "microseconds_per_image": {name: round(1e6 * value / count, 2) for name, value in medians.items()},
        "range": {name: [round(1e6 * f(v) / count, 2) for f in (min, max)] for name, v in seconds.items()},
        "times_faster": round(medians["torchvision"] / medians["moat"], 1),
    }


def measure_prepare(mirror: str) -> dict:
    """Wall and CPU seconds and peak memory of `moat prepare cifar10-jpeg`, a process of its own."""
    moat = [sys.executable, "-m", "moat", "--project", str(ROOT)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [*moat, "fetch", "cifar10-jpeg", "--into", folder, "--mirror", mirror], check=True, stdout=sys.stderr
        )
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        out = f"{folder}/x.safetensors"
        command = [*moat, "prepare", "cifar10-jpeg", "--from", folder, "--out", out]
        subprocess.run(command, check=True, stdout=sys.stderr)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        size = os.path.getsize(out)
    return {
        "images": 60_000,
        "wall_s": round(wall, 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        # The largest of all child processes; the fetching before it needs far less.
        "peak_mib": round(after.ru_maxrss / 1024),
        "file_mib": round(size / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", default=os.environ.get("MOAT_MIRROR", str(ROOT.parent / "shared" / "data")))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args()
    versions = {name: sys.modules[name].__version__ for name in ("torch", "numpy")}
    result = {
        "python": platform.python_version(),
        **versions,
        "cpus": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "batches": measure_batches(arguments.images, arguments.repeats),
        "prepare": measure_prepare(arguments.mirror),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
