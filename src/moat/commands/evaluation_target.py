"""The model that a command judges, with the test images to judge it on: a run of ours or anybody's classifier."""

import importlib
import logging
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moat.base.errors import ConfigError, DataError
from moat.machine import devices

if TYPE_CHECKING:
    import torch

    from moat.evaluation.plan import TransferModel

log = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 250


@dataclass(frozen=True)
class Subject:
    """A model in eval mode on its device, and test examples.

    Attributes:
        run: what it is, for the record: dataset, arch, method, seed, scale, model_sha256; or model and weights.
        x, y: uint8 (N, H, W, C) and int64 (N,).
        indices: each example's number in the official test split.
        method: registry name, None for a model from elsewhere.
    """

    model: "torch.nn.Module"
    run: dict[str, Any]
    x: "torch.Tensor"
    y: "torch.Tensor"
    indices: list[int]
    data: dict[str, str]
    batch_size: int
    method: str | None


def add_arguments(parser: ArgumentParser) -> None:
    """The options that say which model and which examples."""
    # The attribute "run" is the command itself.
    parser.add_argument("--run", dest="run_dir", type=Path, metavar="DIR", help="a run's folder, made by moat train")
    parser.add_argument("--model", metavar="MODULE:FACTORY", help="instead: a function that returns an nn.Module")
    parser.add_argument(
        "--weights", metavar="best|last|FILE", help="with --run: best (default) or last; with --model: its weights"
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="prepared data set (default: the run's own)")
    parser.add_argument("--dataset-file", dest="data", type=Path, metavar="FILE", help="the same, as --model needs it")
    parser.add_argument("--limit", type=_limit, metavar="N|all", help="only the first N test examples")
    parser.add_argument("--batch-size", type=_count, metavar="N", help="examples attacked at once")
    devices.add_arguments(parser)


def load(arguments: Namespace, *, at_most: int | None = None) -> Subject:
    """The model and examples that the options of :func:`add_arguments` ask for.

    Args:
        at_most: a limit for when ``--limit`` is not given, on top of the run's own.

    Raises:
        ConfigError: options that do not go together, or a factory that cannot be had.
        DataError: weights or data that are missing, damaged, or do not fit.
    """
    if (arguments.run_dir is None) == (arguments.model is None):
        raise ConfigError("give either --run DIR or --model MODULE:FACTORY")
    device = devices.select(arguments.device, arguments.threads)
    if arguments.run_dir is not None:
        model, run, described = _load_run(arguments, device)
    else:
        model, run, described = _load_foreign(arguments, device)
    defaults = described.get("evaluation", {})
    path = arguments.data or Path(described["data"]["path"])
    what = f"--run {arguments.run_dir}" if arguments.run_dir else f"--model {arguments.model}"
    limit = arguments.limit if arguments.limit is not None else _smaller(defaults.get("limit"), at_most)
    x, y, indices, digest = _load_examples(path, limit or None)
    _check_fit(model, x, f"{what} --data {path}")
    expected = described.get("data", {}).get("sha256", digest)
    if expected != digest:
        log.warning("%s is not the data set that this run was trained with (sha256 %s…)", path, expected[:12])
    return Subject(
        model=model,
        run=run,
        x=x,
        y=y,
        indices=indices,
        data={"path": str(path), "sha256": digest},
        batch_size=arguments.batch_size or defaults.get("batch_size") or DEFAULT_BATCH_SIZE,
        method=described.get("method"),
    )


def load_transfer_models(given: Sequence[str], subject: Subject) -> "dict[str, TransferModel]":
    """The runs of ``--transfer-from``, by what they are to the subject: another "seed" (or method) or "arch".

    Raises:
        ConfigError: two of a kind, or a kind that is neither.
        DataError: a run that is missing or damaged.
    """
    from moat.evaluation.judging import device_of
    from moat.evaluation.plan import TransferModel
    from moat.training.runs import load_model, read_run

    found: dict[str, TransferModel] = {}
    for text in given:
        kind, separator, folder = text.rpartition("=")
        run = read_run(folder)
        if not separator:
            kind = "seed" if run["arch"] == subject.run.get("arch") else "arch"
        if kind not in ("seed", "arch") or kind in found:
            raise ConfigError(f"--transfer-from {text}: write seed=DIR or arch=DIR, each at most once")
        what = {key: run[key] for key in ("dataset", "arch", "method", "seed", "scale", "model_sha256")}
        found[kind] = TransferModel(load_model(folder, "best", device_of(subject.model)), what)
    return found


def _load_run(arguments: Namespace, device) -> tuple[Any, dict[str, Any], Mapping[str, Any]]:
    from moat.training.runs import load_model, read_run

    weights = arguments.weights or "best"
    if weights not in ("best", "last"):
        raise ConfigError(f"--weights {weights}: with --run allowed: best, last")
    described = read_run(arguments.run_dir)
    run = {key: described[key] for key in ("dataset", "arch", "method", "class", "seed", "scale")}
    run |= {"weights": weights, "model_sha256": described["model_sha256" if weights == "best" else "last_sha256"]}
    return load_model(arguments.run_dir, weights, device), run, described


def _load_foreign(arguments: Namespace, device) -> tuple[Any, dict[str, Any], Mapping[str, Any]]:
    from moat.base.files import hash_file
    from moat.kernels import for_training

    if arguments.weights is None or arguments.data is None:
        raise ConfigError("--model needs --weights FILE and --dataset-file FILE")
    path = Path(arguments.weights)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    model = _build(arguments.model)
    _load_weights(model, path)
    run = {"model": arguments.model, "weights": str(path), "model_sha256": hash_file(path)}
    # A factory may build one of moat's own mixtures.
    return for_training(model.to(device).eval()), run, {}


def _build(factory: str):
    """The module that ``package.module:function`` returns. The working directory is searched, too."""
    from torch import nn

    name, separator, function = factory.partition(":")
    if not (name and separator and function):
        raise ConfigError(f"--model {factory}: write MODULE:FACTORY, e.g. mypackage.nets:make")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        model = getattr(importlib.import_module(name), function)()
    except ImportError as error:
        raise ConfigError(f"--model {factory}: the module cannot be imported ({error})") from error
    except AttributeError as error:
        raise ConfigError(f"--model {factory}: {error}") from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"--model {factory}: returned {type(model).__name__}; a torch.nn.Module is needed")
    return model


def _load_weights(model, path: Path) -> None:
    """Load a state dict from .safetensors, or from a file of ``torch.save`` without executing anything in it."""
    import safetensors
    import safetensors.torch
    import torch

    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except (
        safetensors.SafetensorError,
        OSError,
        EOFError,
        RuntimeError,
        TypeError,
        AttributeError,
        ValueError,
    ) as error:
        raise DataError(f"{path}: these weights cannot be loaded: {_first_line(error)}") from error
    except Exception as error:
        # torch.load raises its unpickler's own error for content that weights_only forbids.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise DataError(f"{path}: refused: more than tensors in it; save model.state_dict()") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _load_examples(path: Path, limit: int | None):
    """The first ``limit`` test examples: images, labels, indices, and the file's sha256."""
    from moat.data import datasets

    data = datasets.load(path, splits=("test",))
    split = data.splits["test"]
    x, y = split.images[:limit], split.labels[:limit]
    indices = split.columns["index"][:limit].tolist() if "index" in split.columns else list(range(len(y)))
    if len(set(indices)) < len(indices):
        # Several versions of one image (corruptions): number the rows instead.
        indices = list(range(len(y)))
    return x, y, indices, data.sha256


def _check_fit(model, x, where: str) -> None:
    """Show the model two images: what it refuses here would end an attack with a long traceback.

    Raises:
        DataError: it does not take them, or returns no logits; says what it was given, and its own message.
    """
    import torch

    from moat.evaluation.judging import classify, device_of, images

    batch = images(x[:2], device_of(model))
    given = f"{where}: given images float32 {tuple(batch.shape)} in [0, 1], the model"
    try:
        # A model that draws random numbers draws the same ones afterwards as without this.
        with torch.random.fork_rng([batch.device] if batch.is_cuda else []):
            logits = classify(model, batch)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise DataError(f"{given} fails ({type(error).__name__}: {_first_line(error)})") from error
    if logits.ndim != 2 or len(logits) != len(batch):
        raise DataError(f"{given} returns {tuple(logits.shape)}; logits ({len(batch)}, classes) are needed")


def _smaller(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


def _limit(text: str) -> int:
    """0 stands for all, None (not given) for the default."""
    return 0 if text == "all" else _count(text)


_count.__name__, _limit.__name__ = "whole number from 1", "whole number from 1, or all"
