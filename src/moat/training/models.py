"""Load the model of a finished run; options and precision of the models that runs build."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import moat.methods
from moat.base import plugins
from moat.base.errors import ConfigError, DataError, unknown_name
from moat.base.files import hash_file
from moat.data import datasets
from moat.kernels import for_training
from moat.training.run_record import SHA256, WEIGHTS, read_run


def load_model(run_dir: str | Path, weights: str = "best", device: str | torch.device = "cpu") -> nn.Module:
    """The trained model of a finished run, in evaluation mode; ``moat.load`` is its public name.

    Args:
        run_dir: the folder that ``moat train --out`` filled.
        weights: "best" (by validation accuracy) or "last" (of the last epoch).

    Raises:
        ConfigError: other ``weights``, or a method, net or mixture that is unknown here.
        DataError: files are missing, damaged, or do not belong together; names the file.
    """
    if weights not in WEIGHTS:
        raise ConfigError(unknown_name(weights, WEIGHTS, what="weights"))
    run, path = read_run(run_dir), Path(run_dir) / WEIGHTS[weights]
    expected = run[SHA256[weights]]
    if not path.exists():
        raise DataError(f"{path}: no such file; {_how_to_get(run, run_dir)}")
    if hash_file(path) != expected:
        raise DataError(f"{path}: the content is not that of run.json (sha256 {expected[:12]}…); train it again")
    method = _method(run, run_dir)
    model = method.build(arch=run["arch"], num_classes=run["num_classes"], options=run["model"])
    model.load_state_dict(safetensors.torch.load_file(path))
    return for_training(model.to(device, memory_format=torch.channels_last).eval())


def _method(run: Mapping[str, Any], run_dir: str | Path):
    """The method class of a run, found among the plug-ins of the project that it lies in, if this one lacks them."""
    folders = [folder for folder in Path(run_dir).resolve().parents if (folder / "plugins").is_dir()]
    if not _is_known(run) and folders:
        plugins.use_project(folders[0])
    if not _is_known(run):
        named = ", ".join(f"{key} {run[key]!r}" for key in ("class", "arch", "mixture") if run[key])
        raise ConfigError(
            f"{Path(run_dir) / 'run.json'}: the run is of {named}, which is not all here; what a plug-in defines is "
            "found in the working directory's plugins/, and in that of the project that the run lies in"
        )
    return moat.methods.get(run["class"])


def _is_known(run: Mapping[str, Any]) -> bool:
    known = run["class"] in plugins.method_classes() and run["arch"] in plugins.archs()
    return known and (run["mixture"] is None or run["mixture"] in plugins.mixtures())


def _how_to_get(run: Mapping[str, Any], run_dir: str | Path) -> str:
    """Weights are not in git: a clone has only the records of its runs."""
    options = " ".join(f"--{name} {run[name]}" for name in ("dataset", "arch", "method", "seed", "scale"))
    starts = run.get("initialize_from", {})
    options += "".join(f" --initialize-from {name}={start['path']}" for name, start in starts.items())
    return (
        "weights are not in git. `moat pull` gets those that were shared; "
        f"`moat train {options} --out {run_dir}` trains again"
    )


def model_options(model: Mapping[str, Any], data: datasets.Dataset) -> dict[str, Any]:
    """The keywords of :func:`moat.models.nets.build` that follow from the dataset, added to the scale's ``model``."""
    statistics = [list(data.mean), list(data.std)]
    return {**model, "image_size": data.image_size, "in_channels": len(data.mean), "normalize": statistics}


def autocast(recipe: Mapping[str, Any], device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """The recipe's mixed precision: ``auto`` is bf16 on a GPU that supports it, otherwise float32."""
    wanted = recipe["precision"]
    if wanted == "auto":
        wanted = (
            "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        )
    if wanted == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
