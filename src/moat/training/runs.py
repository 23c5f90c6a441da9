"""A run: one trained model, from its resolved recipe to its four files."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors
import safetensors.torch
import torch

import moat.methods
from moat import models
from moat.base.errors import ConfigError, DataError
from moat.base.files import atomic_path, check_writable, read_json, write_json, write_text
from moat.base.locks import only_one
from moat.config.recipes import digest
from moat.data import datasets
from moat.data.seeding import derive_seed
from moat.machine.usage import peak_memory_bytes
from moat.provenance import environment, staleness
from moat.training import finished
from moat.training.checkpoint import Checkpoints
from moat.training.engine import Engine
from moat.training.images import load_extra, validation_images
from moat.training.models import autocast, model_options
from moat.training.run_record import WEIGHTS, read_run

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One training run.

    Args:
        resolved: from :func:`moat.config.recipes.resolve_run`: recipe, dataset, arch, method, seed, scale, model,
            validation attack.
        data: the prepared tensor file.
        out: the folder for model.safetensors, last.safetensors, history.csv and run.json.
        work: the folder for checkpoints, which are removed once the run is finished.
        initialize_from: name in the recipe -> folder of the finished run that this one starts from.
        deviations: from :func:`moat.config.recipes.deviations`, recorded in run.json.
        evaluation: the scale's ``limit`` and ``batch_size``, recorded as the defaults of ``moat evaluate``.
        data_digest: of what :func:`moat.config.recipes.resolve_content` says, recorded in run.json; None: not known.
    """

    resolved: Mapping[str, Any]
    data: Path
    out: Path
    work: Path
    initialize_from: Mapping[str, Path] = field(default_factory=dict)
    deviations: Mapping[str, str] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=lambda: {"limit": None, "batch_size": 500})
    data_digest: str | None = None
    device: torch.device = torch.device("cpu")
    root: Path = Path(".")

    def train(self, on_epoch: Callable[[dict[str, Any]], None] = lambda row: None) -> None:
        """Train, resuming from a checkpoint if there is one, and write the run's files, run.json last.

        Raises:
            DataError, TrainingError, Interrupted: see :class:`moat.training.engine.Engine`.
        """
        self._check_out()
        check_writable(self.out / "run.json")
        data = self._data()
        identity = self._identity(data)
        # Another recipe or other data get another folder, so that no run deletes another's checkpoints.
        folder = self.work / identity["run"]
        with contextlib.ExitStack() as held:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(only_one(folder / "lock", waiting="another process trains this run"))
            except OSError as error:
                why = f"cannot be used for checkpoints ({error.strerror})"
                raise ConfigError(f"{folder}: {why}; --work names another folder") from error
            made = {"identity": identity["run"], "sources": identity["sources"]}
            if finished.restore(folder / "finished", self.out, **made):
                log.info("%s: this run is finished already; nothing to do", self.out)
                return
            checkpoints = Checkpoints(folder)
            checkpoints.tidy()
            engine = self._engine(data, identity, checkpoints)
            engine.train(on_epoch)
            self._write(engine, data)
            finished.keep(self.out, folder / "finished")
            checkpoints.clear()

    def _engine(self, data: datasets.Dataset, identity: Mapping[str, Any], checkpoints: Checkpoints) -> Engine:
        return Engine(
            self._method(data),
            name=self.resolved["method"],
            recipe=self.resolved["recipe"],
            seed=self.resolved["seed"],
            train=data.splits["train"],
            validation=validation_images(data.splits["val"], self.resolved["recipe"]),
            extra=load_extra(self.resolved["recipe"], data, self.root),
            augment=data.augment,
            validation_attack=self.resolved["validation_attack"],
            checkpoints=checkpoints,
            identity=identity,
            device=self.device,
        )

    def _data(self) -> datasets.Dataset:
        """Load the prepared data. Raises DataError unless it is what the run needs."""
        data = datasets.load(self.data, splits=("train", "val"))
        if data.name != self.resolved["dataset"]:
            raise DataError(
                f"{self.data}: holds the data set {data.name!r}, the run needs {self.resolved['dataset']!r}"
            )
        for key, wanted in self.resolved["data"].items():
            there = data.metadata["parameters"].get(key)
            if wanted is not None and there != wanted:
                raise DataError(
                    f"{self.data}: was prepared with {key} {there}, scale {self.resolved['scale']} has {wanted}; "
                    "`moat prepare` makes it"
                )
        if not len(data.splits["val"].labels):
            raise DataError(f"{self.data}: holds no validation images, by which the best epoch is chosen")
        return data

    def _check_out(self) -> None:
        """Raise ConfigError if the folder holds another run: a run may only replace itself."""
        record = self.out / "run.json"
        if not record.exists():
            return
        there, wanted = read_json(record), self.resolved
        for key in ("dataset", "arch", "method", "seed", "scale"):
            if there.get(key) != wanted[key]:
                held = f"holds a finished run of {key} {there.get(key)!r}, this one has {wanted[key]!r}"
                raise ConfigError(f"--out {self.out}: {held}; name another folder")

    def _method(self, data: datasets.Dataset):
        method = moat.methods.get(self.resolved["class"])
        torch.manual_seed(derive_seed(self.resolved["seed"], 0, "initial weights"))
        options = model_options(self.resolved["model"], data)
        model = method.build(arch=self.resolved["arch"], num_classes=len(data.classes), options=options)
        model = model.to(self.device, memory_format=torch.channels_last)
        made = method(model, self.resolved["recipe"], autocast=autocast(self.resolved["recipe"], self.device))
        # Before the engine copies the weights for the moving average.
        made.initialize(self.initialize_from)
        return made

    def _identity(self, data: datasets.Dataset) -> dict[str, Any]:
        """The digest that a checkpoint must share with this run, and the sources of the run's beginning."""
        weights = {name: read_run(folder)["model_sha256"] for name, folder in self.initialize_from.items()}
        resolved = {key: value for key, value in self.resolved.items() if key != "scale"}
        run = digest({"resolved": resolved, "data": data.sha256, "initialize_from": weights})
        attacks = staleness.attacks_of(self.resolved)
        sources = staleness.hash_job(staleness.TRAINING_PARTS, self.resolved, attacks=attacks)
        return {"run": run, "sources": sources, "initialize_from": weights}

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
                "official": all(source["official"] for source in data.metadata["sources"]),
                "train_images": len(data.splits["train"].labels),
                "extra_images": engine.batches.rows - len(data.splits["train"].labels),
                "validation_images": engine.validation.size,
            },
            "model": model_options(self.resolved["model"], data),
            "initialize_from": {
                name: {"path": str(path), "model_sha256": engine.identity["initialize_from"][name]}
                for name, path in self.initialize_from.items()
            },
            "deviations": dict(self.deviations),
            "evaluation": dict(self.evaluation),
            "recipe_digest": digest(dict(self.resolved)),
            "data_digest": self.data_digest,
            "identity": engine.identity["run"],
            "sources": engine.identity["sources"],
            "git_commit": environment.git_commit(self.root),
            "lock_sha256": environment.lock_hash(self.root),
            **environment.environment(),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            "wall_seconds": round(engine.seconds, 3),
            "gpu_seconds": round(engine.seconds, 3) if on_gpu else 0.0,
            "images_per_second": round(images / sum(row["train_seconds"] for row in engine.history), 1),
            **engine.usage.record(),
            "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_memory_bytes(),
            "best_epoch": engine.best_epoch,
            "best_validation_accuracy": engine.best_accuracy,
            "model_sha256": hashes["best"],
            "last_sha256": hashes["last"],
            "parameters": models.count_parameters(model),
            "macs_per_image": models.count_macs(model, data.image_size, len(data.mean)),
        }


def _save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> str:
    """Write a state dict as safetensors, atomically, and return the file's sha256."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = safetensors.torch.save(tensors)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
