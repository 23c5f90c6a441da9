"""The model of a finished run, and how a net is built from a scale, a recipe and a data set."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import moat.methods
from moat.base.errors import DataError
from moat.base.files import hash_file, read_json
from moat.data import datasets
from moat.kernels import for_training

REQUIRED = (
    "dataset", "arch", "method", "class", "seed", "scale", "model", "data", "num_classes", "model_sha256",
    "last_sha256",
)  # fmt: skip
WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}


def read_run(folder: str | Path) -> dict[str, Any]:
    """The run.json of a run's folder.

    Raises:
        DataError: there is none; says how to make it.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise DataError(f"{path}: no such file; `moat train … --out {folder}` makes it")
    run = read_json(path)
    missing = [key for key in REQUIRED if not isinstance(run, dict) or key not in run]
    if missing:
        raise DataError(f"{path}: is no record of a finished run: {missing[0]!r} is missing")
    return run


def load_model(folder: str | Path, weights: str = "best", device: str | torch.device = "cpu") -> nn.Module:
    """The trained model of a run's folder, in eval mode.

    Args:
        weights: "best" (by validation) or "last" (of the last epoch).

    Raises:
        DataError: files are missing, damaged, or do not belong together; names the file.
    """
    run, path = read_run(folder), Path(folder) / WEIGHTS[weights]
    expected = run["model_sha256" if weights == "best" else "last_sha256"]
    if not path.exists():
        raise DataError(f"{path}: no such file; {_how_to_get(run, folder)}")
    if hash_file(path) != expected:
        raise DataError(f"{path}: the content is not that of run.json (sha256 {expected[:12]}…); train it again")
    method = moat.methods.get(run["class"])
    model = method.build(arch=run["arch"], num_classes=run["num_classes"], options=run["model"])
    model.load_state_dict(safetensors.torch.load_file(path))
    return for_training(model.to(device, memory_format=torch.channels_last).eval())


def _how_to_get(run: Mapping[str, Any], folder: str | Path) -> str:
    """Weights are not in git: a clone has the records of its runs only."""
    options = " ".join(f"--{name} {run[name]}" for name in ("dataset", "arch", "method", "seed", "scale"))
    starts = run.get("initialize_from", {})
    options += "".join(f" --initialize-from {name}={start['path']}" for name, start in starts.items())
    return (
        "weights are not in git. `moat pull` gets those that were shared; "
        f"`moat train {options} --out {folder}` trains again"
    )


def model_options(model: Mapping[str, Any], data: datasets.Dataset) -> dict[str, Any]:
    """The keywords of :func:`moat.models.nets.build` that the data set and the scale decide."""
    statistics = [list(data.mean), list(data.std)]
    return {**model, "image_size": data.image_size, "in_channels": len(data.mean), "normalize": statistics}


def autocast(recipe: Mapping[str, Any], device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """Mixed precision as the recipe asks: ``auto`` is bf16 where a GPU has it, else float32."""
    wanted = recipe["precision"]
    if wanted == "auto":
        wanted = (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
    if wanted == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
