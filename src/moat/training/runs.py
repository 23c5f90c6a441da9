"""A run: one trained model, from its resolved recipe to the four files that it leaves."""

import contextlib
import hashlib
import logging
import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import nn

import moat.methods
import moat.nets
from moat import provenance, sources
from moat.config.recipes import digest
from moat.data import datasets
from moat.data.seeding import derive_seed
from moat.errors import DataError
from moat.files import atomic_path, hash_file, read_json, write_json, write_text
from moat.training.checkpoint import Checkpoints
from moat.training.engine import Engine

log = logging.getLogger(__name__)

WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}


@dataclass
class Run:
    """One training, told by :func:`moat.config.recipes.resolve_run`.

    Args:
        resolved: recipe, dataset, arch, method, seed, scale, model, validation attack.
        data: the prepared tensor file.
        out: where model.safetensors, last.safetensors, history.csv and run.json go.
        work: where checkpoints are kept until the run is finished.
        needs: finished runs that this one starts from: name in the recipe -> folder.
        evaluation: the scale's ``limit`` and ``batch_size``, recorded as the defaults of ``moat evaluate``.
    """

    resolved: Mapping[str, Any]
    data: Path
    out: Path
    work: Path
    needs: Mapping[str, Path] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=lambda: {"limit": None, "batch_size": 500})
    device: torch.device = torch.device("cpu")
    root: Path = Path(".")

    def train(self, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train, resuming from a checkpoint where there is one, and write the run's files; run.json last.

        Raises:
            DataError, TrainingError, Interrupted: see :class:`moat.training.engine.Engine`.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with _only_one(self.work / "lock"):
            data = datasets.load(self.data, splits=("train", "val"))
            method_name, recipe = self.resolved["method"], self.resolved["recipe"]
            checkpoints = Checkpoints(self.work)
            engine = Engine(
                self._method(data),
                name=method_name,
                recipe=recipe,
                seed=self.resolved["seed"],
                train=data.splits["train"],
                validation=data.splits["val"],
                augment=data.augment,
                validation_attack=self.resolved["validation_attack"],
                checkpoints=checkpoints,
                identity=self._identity(data),
                device=self.device,
            )
            engine.train(on_epoch)
            self._write(engine, data)
            checkpoints.clear()

    def _method(self, data: datasets.Dataset):
        method = moat.methods.get(self.resolved["method"])
        torch.manual_seed(derive_seed(self.resolved["seed"], 0, "initial weights"))
        options = model_options(self.resolved["model"], data)
        model = method.build(
            arch=self.resolved["arch"], num_classes=len(data.classes), options=options, needs=self.needs
        )
        model = model.to(self.device, memory_format=torch.channels_last)
        made = method(model, self.resolved["recipe"], autocast=autocast(self.resolved["recipe"], self.device))
        # Before the engine is made: it copies the weights where the recipe asks for a moving average.
        made.initialize(self.needs)
        return made

    def _identity(self, data: datasets.Dataset) -> dict[str, Any]:
        """What a checkpoint must share with this run, and the sources that it was begun with."""
        needs = {name: read_run(folder)["model_sha256"] for name, folder in self.needs.items()}
        resolved = {key: value for key, value in self.resolved.items() if key != "scale"}
        run = digest({"resolved": resolved, "data": data.sha256, "needs": needs})
        return {"run": run, "sources": self._sources(), "needs": needs}

    def _sources(self) -> dict[str, str]:
        made_of = {"method": self.resolved["method"], "arch": self.resolved["arch"]}
        return sources.hash_parts(sources.TRAINING_PARTS, **made_of, attacks=sources.attacks_of(self.resolved))

    def _write(self, engine: Engine, data: datasets.Dataset) -> None:
        best, last = engine.best_state, engine.weights().state_dict()
        hashes = {
            name: _save_weights(self.out / WEIGHTS[name], state) for name, state in (("best", best), ("last", last))
        }
        write_text(self.out / "history.csv", pd.DataFrame(engine.history).to_csv(index=False, lineterminator="\n"))
        write_json(self.out / "run.json", self._describe(engine, data, hashes))

    def _describe(self, engine: Engine, data: datasets.Dataset, hashes: Mapping[str, str]) -> dict[str, Any]:
        model, on_gpu = engine.weights(), self.device.type == "cuda"
        images = sum(row["images"] for row in engine.history)
        return {
            **self.resolved,
            "num_classes": len(data.classes),
            "data": {
                **self.resolved["data"],
                "path": str(self.data),
                "sha256": data.sha256,
                "train_images": len(data.splits["train"].labels),
                "validation_images": len(data.splits["val"].labels),
            },
            "model": model_options(self.resolved["model"], data),
            "needs": {
                name: {"path": str(path), "model_sha256": engine.identity["needs"][name]}
                for name, path in self.needs.items()
            },
            "evaluation": dict(self.evaluation),
            "recipe_digest": digest(dict(self.resolved)),
            "sources": engine.identity["sources"],
            "git_commit": provenance.git_commit(self.root),
            "lock_sha256": provenance.lock_hash(self.root),
            **provenance.environment(),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "wall_seconds": round(engine.seconds, 3),
            "gpu_seconds": round(engine.seconds, 3) if on_gpu else 0.0,
            "images_per_second": round(images / sum(row["seconds"] for row in engine.history), 1),
            "peak_memory_bytes": _peak_memory(self.device),
            "best_epoch": engine.best_epoch,
            "best_validation_accuracy": engine.best_accuracy,
            "model_sha256": hashes["best"],
            "last_sha256": hashes["last"],
            "parameters": moat.nets.count_parameters(model),
            "macs_per_image": moat.nets.count_macs(model, data.image_size, len(data.mean)),
        }


def read_run(folder: str | Path) -> dict[str, Any]:
    """The run.json of a run's folder.

    Raises:
        DataError: there is none; says how to make it.
    """
    path = Path(folder) / "run.json"
    if not path.exists():
        raise DataError(f"{path}: no such file; `moat train … --out {folder}` makes it")
    return read_json(path)


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
        raise DataError(f"{path}: no such file")
    if hash_file(path) != expected:
        raise DataError(f"{path}: the content is not that of run.json (sha256 {expected[:12]}…); train it again")
    needs = {name: Path(need["path"]) for name, need in run.get("needs", {}).items()}
    method = moat.methods.get(run["method"])
    model = method.build(arch=run["arch"], num_classes=run["num_classes"], options=run["model"], needs=needs)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.to(device, memory_format=torch.channels_last).eval()


def model_options(model: Mapping[str, Any], data: datasets.Dataset) -> dict[str, Any]:
    """The keywords of :func:`moat.nets.build` that the data set and the scale decide."""
    statistics = [list(data.mean), list(data.std)]
    return {**model, "image_size": data.image_size, "in_channels": len(data.mean), "normalize": statistics}


def autocast(recipe: Mapping[str, Any], device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """Mixed precision as the recipe asks: ``auto`` is bf16 where a GPU has it, else float32."""
    wanted = recipe["precision"]
    if wanted == "auto":
        wanted = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if wanted == "float32":
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16)


@contextlib.contextmanager
def _only_one(lock: Path):
    """Hold the run's lock; wait, and say so, while another process trains the same run."""
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.warning("another process trains this run (lock %s); waiting for it", lock)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> str:
    """Write a state dict as safetensors, atomically; return the file's sha256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
