"""A classifier from elsewhere: the module of its factory is imported, the factory called, its weights loaded.

All of it is other people's code and files. Whatever they do instead becomes one line.
"""

import contextlib
import hashlib
import importlib
import logging
import os
import pickle
import signal
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import safetensors
import safetensors.torch
import torch
from torch import nn

from moat.base import torchvision_ops
from moat.base.errors import ConfigError, DataError, MoatError, kind_of
from moat.base.signals import Stopped
from moat.models.guard import in_one_line

MOAT = Path(__file__).resolve().parents[1]
# What a file begins with that is no weights -> what it is, and what helps.
NO_WEIGHTS = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights; `git lfs pull` gets them",
    b"<": "an HTML or XML page, not weights; the address that it was downloaded from shows a page",
    b"{": "text in JSON, not weights",
}
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
# What wrappers of a model put before the names of its tensors -> the wrapper.
PREFIXES = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}
# Names that a message lists.
LISTED = 3
# Folders of installed packages.
INSTALLED = ("site-packages", "dist-packages")


# -- the factory -------------------------------------------------------------------
def build(factory: str) -> nn.Module:
    """The module that ``package.module:function`` returns. The working directory is searched, too.

    Raises:
        ConfigError: it cannot be imported or called, ends Python, or returns something else; says where.
    """
    name, _, attribute = factory.partition(":")
    option = f"--model {factory}"
    if "/" in name or name.startswith(".") or name.endswith(".py"):
        path = Path(name)
        raise ConfigError(
            f"{option}: a module is named as in `import`, without folder and suffix; for {path.name} in the working "
            f"directory write {path.name.removesuffix('.py')}:{attribute}"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    # User's modules import torchvision as if it were built for any torch.
    torchvision_ops.declare_missing_operators()
    module = _run(lambda: importlib.import_module(name), f"{option}: the module cannot be imported", name)
    if not hasattr(module, attribute):
        raise ConfigError(f"{option}: module {name!r} ({module.__file__}) has no attribute {attribute!r}")
    made = getattr(module, attribute)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ConfigError(f"{option}: is {kind_of(made)}; a function that returns a torch.nn.Module is needed")
        made = _run(made, f"{option}: the factory fails", name)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"{option}: returned {type(made).__name__}; a torch.nn.Module is needed")
    return made


def code_hash(factory: str) -> str:
    """The sha256 of the sources that :func:`build` has imported: the module's package, or what lies in its folder."""
    name = factory.partition(":")[0].partition(".")[0]
    top = sys.modules[name]
    own = Path(top.__file__ or name)
    folders = [Path(each).resolve() for each in getattr(top, "__path__", [own.parent])]
    files = {
        Path(file).resolve() for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))
    }
    if not hasattr(top, "__path__"):
        files = {file for file in files if not set(INSTALLED) & set(file.parts)} | {own.resolve()}
    found = hashlib.sha256()
    for file in sorted(files):
        inside = [folder for folder in folders if file.is_relative_to(folder)]
        if inside and file.is_file() and not file.is_relative_to(MOAT):
            found.update(f"{file.relative_to(inside[0])} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def _run(function: Callable[[], Any], what: str, name: str) -> Any:
    """What the function returns; ``what`` begins the message if it fails, and "ends Python" if it does that."""
    try:
        with _process_as_it_is(name):
            return function()
    except (Stopped, KeyboardInterrupt):
        raise
    except SystemExit as error:
        raise ConfigError(f"{what}: it ends Python (sys.exit({error.code!r}){_place(error)})") from error
    except MoatError as error:
        raise ConfigError(f"{what} ({error}{_place(error)})") from error
    except BaseException as error:
        raise ConfigError(f"{what} ({in_one_line(error)}{_place(error)})") from error


@contextlib.contextmanager
def _process_as_it_is(name: str) -> Iterator[None]:
    """Nothing of the process is other inside the block than in a program ``name``, or other after it than before.

    Such are the arguments, which a parser would take for its own, the output, the working directory, the handlers of
    signals, the log's level, and torch's threads and defaults. ``os._exit``, which would end a command with the exit
    code of success, is ``sys.exit`` inside the block.
    """
    arguments, output, folder, process, leave = sys.argv, (sys.stdout, sys.stderr), os.getcwd(), os.getpid(), os._exit
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    disabled, threads, gradients = logging.root.manager.disable, torch.get_num_threads(), torch.is_grad_enabled()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()

    def exit_here(code: int) -> None:
        if os.getpid() != process:
            leave(code)  # A child that was forked.
        raise SystemExit(code)

    sys.argv, os._exit = [name], exit_here
    try:
        yield
    finally:
        sys.argv, os._exit = arguments, leave
        sys.stdout, sys.stderr = (_open_again(stream, number) for number, stream in enumerate(output, start=1))
        os.chdir(folder)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                # None: a handler that is not Python's.
                if handler is not None:
                    signal.signal(number, handler)
        logging.disable(disabled)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)


def _open_again(stream: TextIO | None, number: int) -> TextIO | None:
    """``stream``; where it was closed, another one to the same file number, which Python leaves open."""
    if not getattr(stream, "closed", False):
        return stream
    try:
        return open(number, "w", buffering=1, encoding=stream.encoding, errors=stream.errors, closefd=False)
    except OSError:
        return open(os.devnull, "w")


def _place(error: BaseException) -> str:
    """``, in mynet.py, line 12``: the last place of the user's code in the traceback; "" if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # It is part of the message.
    installed = (*INSTALLED, "importlib", "<frozen")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        own = frame.filename.startswith(str(MOAT)) or any(each in frame.filename for each in installed)
        if not own and not frame.filename.startswith(os.path.dirname(os.__file__)):
            return f", in {os.path.relpath(frame.filename)}, line {frame.lineno}"
    return ""


# -- its weights -------------------------------------------------------------------
def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict from .safetensors, or from a file of ``torch.save`` without executing anything in it.

    Raises:
        DataError: the file is no state dict, or not this model's; says why.
    """
    state = _read(path)
    where = f"{path}: these weights cannot be loaded"
    if not isinstance(state, Mapping):
        raise DataError(f"{where}: the file holds {kind_of(state)}; model.state_dict() is needed")
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{where}: {_no_state_dict(state)}")
    own = model.state_dict()
    if any(_loses(own, state, key) for key in own if key in state):
        raise DataError(f"{where}: {_mismatch(model, state)}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # Also of a model's own load_state_dict.
        raise DataError(f"{where}: {_mismatch(model, state) or in_one_line(error)}") from error


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(64)
    size, where = path.stat().st_size, f"{path}: these weights cannot be loaded"
    if not size:
        raise DataError(f"{where}: the file is empty")
    for begins, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(begins):
            raise DataError(f"{where}: the file is {what}")
    header = int.from_bytes(start[:8], "little")
    is_safetensors = len(start) > 8 and start[8:9] == b"{" and header < 2**32
    if (path.suffix == ".safetensors") != is_safetensors:
        found = "a safetensors file; name it .safetensors" if is_safetensors else _kind(start)
        raise DataError(f"{where}: the file is {found}")
    cut = f"{where}: the file is damaged or cut short ({size:,} bytes)"
    if start.startswith(ZIP) and not zipfile.is_zipfile(path):
        raise DataError(cut)
    try:
        if is_safetensors:
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except safetensors.SafetensorError as error:
        raise DataError(f"{cut}: {in_one_line(error)}") from error
    except pickle.UnpicklingError as error:
        if not start.startswith((ZIP, PICKLE)):
            raise DataError(f"{where}: the file is {_kind(start)}") from error
        if "weights_only" not in str(error).lower():
            raise DataError(cut) from error
        # Content that weights_only forbids.
        raise DataError(f"{path}: refused: more than tensors in it; save model.state_dict()") from error
    except Exception as error:
        raise DataError(f"{cut}: {in_one_line(error)}") from error


def _kind(start: bytes) -> str:
    if start.startswith((ZIP, PICKLE)):
        return "no safetensors file but looks like one of torch.save; name it .pt"
    return f"neither a safetensors file nor one of torch.save; it begins with {start[:16]!r}"


def _no_state_dict(state: Mapping[Any, Any]) -> str:
    """What a mapping holds that is no state dict; names the key under which there is one."""
    if not state:
        return "the file holds no tensors; save model.state_dict()"
    nested = [key for key, value in state.items() if isinstance(value, Mapping) and _has_tensors(value)]
    if nested:
        return (
            f"the file is a checkpoint with the keys {_some(state)}; save what is under {nested[0]!r} by itself, "
            f"torch.save(checkpoint[{nested[0]!r}], file)"
        )
    others = [key for key, value in state.items() if not isinstance(value, torch.Tensor)]
    return f"not only tensors are in it ({_some(others)}); save model.state_dict()"


def _has_tensors(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in state.values())


def _mismatch(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """How the names and shapes differ from the model's; "" if they do not."""
    own = model.state_dict()
    for prefix in sorted({key[: key.find(".") + 1] for key in state if "." in key}):
        if all(key.startswith(prefix) for key in state) and _fit(own, [key.removeprefix(prefix) for key in state]):
            by = f" (of {PREFIXES[prefix]})" if prefix in PREFIXES else ""
            return f"their names begin with {prefix!r}{by}, the model's do not; save the inner model's state_dict()"
    for prefix in sorted({key[: key.find(".") + 1] for key in own if "." in key}):
        if all(key.startswith(prefix) for key in own) and _fit(own, [prefix + key for key in state]):
            return f"the model's names begin with {prefix!r}, theirs do not; load them into the inner model"
    parts = {
        "missing": [key for key in own if key not in state],
        "not in the model": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "of another kind of numbers": [
            f"{key} {_dtype(state[key])} for {_dtype(own[key])}"
            for key in own
            if key in state and _loses(own, state, key)
        ],
    }
    told = [f"{len(names)} {what}: {_some(names)}" for what, names in parts.items() if names]
    return f"of the model's {len(own)} tensors, {'; '.join(told)}" if told else ""


def _loses(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor], key: str) -> bool:
    """Whether torch would copy other numbers than are meant: real parts of complex ones, integers without their scale.

    Older files may hold counters of another kind.
    """
    return own[key].is_floating_point() and not state[key].is_floating_point()


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _fit(own: Mapping[str, Any], names: Sequence[str]) -> bool:
    """Whether these are the model's names, but for counters that older files lack."""
    missing = set(own) - set(names)
    return set(names) <= set(own) and all(name.endswith("num_batches_tracked") for name in missing)


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
