"""The 19 corruptions against the published recipe, image by image: agreement and speed.

    python benchmarks/corruptions.py [--mirror DIR] [--images 50] [--repeats 3]

Prints JSON. *Agreement*: per corruption and severity the fraction of values within one grey level of the published
images, the fraction of equal ones, and the mean absolute difference to the clean image over the published one (4
seeds). It needs a mirror (default: $MOAT_MIRROR) with CIFAR-10-C.tar and cifar-10-python.tar.gz.

*Speed*: CPU seconds (one thread) per 32 x 32 image over the five severities of CIFAR-10-C, the peers taking turns with
moat, medians of the repeats. `recipe` is the published generator's formula with scikit-image, OpenCV, scipy and
Pillow, one image at a time; its motion blur and snow use ImageMagick, replaced by the same sum in numpy; its frost
photographs, read from disk for every image as published, are those of imagecorruptions, and without these frost is
left out of the ratio. `imagecorruptions` is that package (1.1.2, patched where it no longer runs) with ImageNet-C's
severities. Both need packages that moat does not:
pip install scikit-image opencv-python-headless imagecorruptions "setuptools<81"
"""

import argparse
import functools
import importlib.util
import io
import json
import os
import platform
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchlib import records, timing
from corruptions_recipe import RECIPE
from moat.data.corruptions import corrupt
from moat.data.corruptions.severities import NAMES
from moat.data.pickles import load as load_pickle

ROOT = Path(__file__).parents[1]
SEVERITIES = (1, 2, 3, 4, 5)


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def clean_images(mirror: Path) -> np.ndarray:
    with tarfile.open(mirror / "cifar-10-python.tar.gz") as tar:
        batch = load_pickle(tar.extractfile("cifar-10-batches-py/test_batch").read(), where="test_batch")
    return np.ascontiguousarray(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def agreement(mirror: Path, clean: np.ndarray) -> list[dict]:
    """A row per corruption, five numbers each."""
    rows = []
    with tarfile.open(mirror / "CIFAR-10-C.tar") as tar:
        for name in NAMES:
            published = np.load(io.BytesIO(tar.extractfile(f"CIFAR-10-C/{name}.npy").read())).reshape(5, -1, 32, 32, 3)
            images = clean[: published.shape[1]]
            row = {"corruption": name, "images": len(images), "within_1": [], "equal": [], "damage_ratio": []}
            for severity, expected in zip(SEVERITIES, published.astype(int), strict=True):
                ours = [corrupt(images, name, severity, seed=seed).astype(int) for seed in range(4)]
                row["within_1"].append(round(float((np.abs(ours[0] - expected) <= 1).mean()), 5))
                row["equal"].append(round(float((ours[0] == expected).mean()), 5))
                damage = np.mean([np.abs(each - images).mean() for each in ours])
                row["damage_ratio"].append(round(float(damage / np.abs(expected - images).mean()), 3))
            rows.append(row)
    return rows


def peers() -> dict[str, Callable[[np.ndarray, str, int], object]]:
    """Those whose packages are installed: name -> corrupt all images one by one."""
    found: dict[str, Callable] = {}
    if all(importlib.util.find_spec(name) for name in ("skimage", "cv2")):
        found["recipe"] = lambda images, name, severity: [
            np.uint8(RECIPE[name](Image.fromarray(image), severity)) for image in images
        ]
    else:
        print("recipe: skipped; needs scikit-image and opencv-python-headless", file=sys.stderr)
    package = patched_imagecorruptions()
    if package is not None:
        found["imagecorruptions"] = lambda images, name, severity: [
            package.corrupt(image, corruption_name=name, severity=severity) for image in images
        ]
    return found


def patched_imagecorruptions():
    """The package with what numpy and scikit-image have taken away since 2020 put back; None where it does not load."""
    try:
        import skimage.filters

        np.float_ = np.float64
        original = skimage.filters.gaussian

        def gaussian(image, sigma=1, *, multichannel=None, **others):
            return original(image, sigma, channel_axis=-1 if multichannel else None, **others)

        skimage.filters.gaussian = gaussian
        try:
            import imagecorruptions
        finally:
            skimage.filters.gaussian = original
        return imagecorruptions
    except ImportError as error:
        print(f"imagecorruptions: skipped; {error}", file=sys.stderr)
        return None


def speed(images: np.ndarray, repeats: int) -> tuple[list[dict], list[dict]]:
    """Milliseconds per image of each corruption, and the ratios of the totals."""
    contenders = {"moat": lambda pictures, name, severity: corrupt(pictures, name, severity, seed=0), **peers()}
    names = [name for name in NAMES if name in RECIPE]
    # moat works on many images at once.
    pictures = dict.fromkeys(contenders, images) | {"moat": np.concatenate([images] * max(1, 500 // len(images)))}
    spent = {(name, each): [] for name in names for each in contenders}
    for name in names:
        for repeat in range(repeats + 1):
            for each, run in contenders.items():
                seconds = [cpu_seconds(functools.partial(run, pictures[each], name, s)) for s in SEVERITIES]
                if repeat:  # the first warms up
                    spent[name, each].append(1000 * statistics.mean(seconds) / len(pictures[each]))
    rows = [
        {"corruption": name, **{each: round(statistics.median(spent[name, each]), 4) for each in contenders}}
        for name in names
    ]
    totals = {
        each: [sum(spent[name, each][repeat] for name in names) for repeat in range(repeats)] for each in contenders
    }
    return rows, [_row(peer, totals, len(names)) for peer in contenders if peer != "moat"]


def _row(peer: str, totals: dict[str, list[float]], count: int) -> dict:
    """Row 13 of the table for one peer."""
    found = timing.ratio(totals[peer], totals["moat"])
    what = f"{count} corruptions, five severities, against {peer} image by image: CPU time"
    command = f"python benchmarks/corruptions.py --repeats {found['n']}"
    return {**records.row(ROOT, 13, peer, found), "what": what, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("MOAT_MIRROR")
    parser.add_argument("--mirror", type=Path, default=default, required=default is None)
    parser.add_argument("--images", type=int, default=50, help="for the peers; moat gets about 500")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    clean = clean_images(options.mirror)
    rows, ratios = speed(clean[: options.images], options.repeats)
    versions = {
        name: sys.modules[name].__version__
        for name in ("numpy", "scipy", "PIL", "skimage", "cv2")
        if name in sys.modules
    }
    result = {
        "python": platform.python_version(),
        **versions,
        "load_average": os.getloadavg()[0],
        "rows": ratios,
        "milliseconds_per_image": rows,
        "agreement": agreement(options.mirror, clean),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
