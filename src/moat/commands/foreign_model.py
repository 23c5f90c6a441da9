"""A classifier from elsewhere: the module of its factory is imported, the factory called, its weights loaded.

All of it is other people's code and files. Whatever they do instead becomes one line.
"""

import argparse
import codecs
import contextlib
import hashlib
import importlib
import logging
import os
import pickle
import re
import signal
import sys
import threading
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy
import safetensors
import safetensors.torch
import torch
from torch import nn

from moat.base import torchvision_ops
from moat.base.errors import ConfigError, DataError, MoatError, kind_of
from moat.base.signals import Stopped
from moat.commands.options import parse_factory
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
# The keys under which checkpoints have the model's weights, the likeliest first; and how deep they are looked for.
USUAL = ("state_dict", "model_state_dict", "model", "net", "module", "network", "weights")
DEEPEST = 3
# Words in the names of weights that are averages of the model's.
AVERAGES = {"ema", "swa", "teacher", "average", "averaged"}
# Of batch normalisation; older files have none.
COUNTER = "num_batches_tracked"
# What is harmless in a checkpoint beside tensors and plain values: options of the training, and NumPy's numbers.
SAFE = [
    argparse.Namespace,
    numpy.dtype,
    *{type(numpy.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
    *((numpy._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    # How NumPy's numbers are written by older pickle protocols.
    (codecs.encode, "_codecs.encode"),
]
# Names that a message lists.
LISTED = 3
# By these the answers of a model are judged: no module may put others in their place.
JUDGED_BY = ("amax", "argmax", "isfinite", "softmax", "topk")
# Signals that end a process which does not expect them.
ENDING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
# Methods of tensors by which answers are judged: no module may put others in their place.
JUDGED_BY = ("amax", "argmax", "isfinite", "softmax", "topk")
# Signals that end a process unless it expects them.
ENDING = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)
# Folders of installed packages.
INSTALLED = ("site-packages", "dist-packages")


# -- the factory -------------------------------------------------------------------
def build(factory: str) -> nn.Module:
    """The module that ``package.module:function`` or ``package.module:function(…)`` returns.

    The working directory is searched, too. Weights that it draws at random are the same each time.

    Raises:
        ConfigError: it cannot be imported or called, ends Python, or returns something else; says where.
    """
    name, attribute, call = parse_factory(factory)
    option = f"--model {factory}"
    if "/" in name or name.startswith(".") or name.endswith(".py"):
        path = Path(name)
        raise ConfigError(
            f"{option}: a module is named as in `import`, without folder and suffix; for {path.name} in the working "
            f"directory write {path.name.removesuffix('.py')}:{factory.partition(':')[2]}"
        )
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    # User's modules import torchvision as if it were built for any torch.
    torchvision_ops.declare_missing_operators()
    module = _run(lambda: importlib.import_module(name), f"{option}: the module cannot be imported", name)
    if not hasattr(module, attribute):
        raise ConfigError(f"{option}: module {name!r} ({module.__file__}) has no attribute {attribute!r}")
    made = found = getattr(module, attribute)
    if call is not None or not isinstance(found, nn.Module):
        if not callable(found):
            raise ConfigError(f"{option}: is {kind_of(found)}; a function that returns a torch.nn.Module is needed")
        arguments, keywords = call or ((), {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = _run(lambda: found(*arguments, **keywords), f"{option}: the factory fails", name)
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


def weights_hash(model: nn.Module) -> str:
    """The sha256 of the tensors in the model's state dict, with their names, shapes and kinds of numbers."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            found.update(f"{name} {_dtype(value)} {tuple(value.shape)}\n".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
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
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *ENDING)}
    in_main_thread = threading.current_thread() is threading.main_thread()
    methods = {name: getattr(torch.Tensor, name) for name in JUDGED_BY}
    disabled, threads, gradients = logging.root.manager.disable, torch.get_num_threads(), torch.is_grad_enabled()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()

    def exit_here(code: int) -> None:
        if os.getpid() != process:
            leave(code)  # A child that was forked.
        raise SystemExit(code)

    def report(number: int, frame: object) -> None:
        raise RuntimeError(f"the signal {signal.Signals(number).name}, which ends Python")

    sys.argv, os._exit = [name], exit_here
    for number in ENDING if in_main_thread else ():
        if handlers[number] == signal.SIG_DFL:
            signal.signal(number, report)
    try:
        yield
        for method, own in methods.items():
            if getattr(torch.Tensor, method) is not own:
                raise ConfigError(f"it replaces torch.Tensor.{method}, by which moat judges its answers")
    finally:
        for method, own in methods.items():
            if getattr(torch.Tensor, method) is not own:
                setattr(torch.Tensor, method, own)
        sys.argv, os._exit = arguments, leave
        sys.stdout, sys.stderr = (_open_again(stream, number) for number, stream in enumerate(output, start=1))
        os.chdir(folder)
        if in_main_thread:
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
def load_weights(model: nn.Module, path: Path) -> str:
    """Load the weights in a checkpoint: .safetensors, or a file of ``torch.save``, without executing anything in it.

    The state dict may lie below keys of the checkpoint, and wrappers of the model (DataParallel, torch.compile,
    Lightning, a module that normalises) may have put something before the names of its tensors, or of the model's.

    Returns:
        What was unwrapped, in one line; "" for a plain state dict.

    Raises:
        DataError: no state dict in the file is this model's; says why.
    """
    content = _read(path)
    where = f"{path}: these weights cannot be loaded"
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: the file holds {kind_of(content)}; model.state_dict() is needed")
    candidates = sorted(_state_dicts(content), key=lambda found: _preference(found[0]))
    if not candidates:
        raise DataError(f"{where}: {_no_state_dict(content)}")
    fitting = [(keys, fit) for keys, state in candidates for fit in _fits(model, state)]
    if not fitting:
        keys, state = candidates[0]
        below = f"below {'.'.join(keys)!r}, " if keys else ""
        raise DataError(f"{where}: {below}{_mismatch(model, state)}")
    keys, fit = fitting[0]
    own = model.state_dict()
    if any(_loses(own, fit.state, key) for key in own if key in fit.state):
        raise DataError(f"{where}: {_mismatch(model, fit.state)}")
    try:
        model.load_state_dict(fit.state)
    except Exception as error:  # Also of a model's own load_state_dict.
        raise DataError(f"{where}: {_mismatch(model, fit.state) or in_one_line(error)}") from error
    return fit.described(keys, fitting[1:])


@dataclass(frozen=True)
class _Fit:
    """How a state dict fits a model: ``state`` has the model's names.

    Attributes:
        prefix, added: taken from the names of the file, and put before them.
        left_out: names of the file without the prefix, which are not the model's.
        kept: buffers that the file lacks; they stay as the factory made them.
    """

    state: Mapping[str, torch.Tensor]
    prefix: str = ""
    added: str = ""
    left_out: Sequence[str] = ()
    kept: Sequence[str] = ()

    def described(self, keys: Sequence[str], others: Sequence[tuple[Sequence[str], "_Fit"]]) -> str:
        said = [f"taken from {'.'.join(keys)!r}"] if keys else []
        said += [f"their names without {self.prefix!r}{_wrappers(self.prefix)}"] if self.prefix else []
        said += [f"put into the model's {self.added.removesuffix('.')!r}"] if self.added else []
        said += [f"left out: {_some(self.left_out)}"] if self.left_out else []
        said += [f"as the factory made them: {_some(self.kept)}"] if self.kept else []
        fit_too = [f"{'.'.join(path)!r}" if path else f"{fit.prefix!r}" for path, fit in others]
        said += [f"{', '.join(dict.fromkeys(fit_too))} would fit, too"] if fit_too else []
        return "; ".join(said)


def _state_dicts(content: Mapping[Any, Any], keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The mappings from names to tensors in a checkpoint, each with the keys that lead to it."""
    if content and all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        yield keys, content
    elif len(keys) < DEEPEST:
        for key, value in content.items():
            if isinstance(value, Mapping):
                yield from _state_dicts(value, (*keys, str(key)))


def _preference(keys: Sequence[str]) -> tuple[bool, int, int]:
    """Sort key: the usual names of a model's weights first, averaged weights and other parts of a training last."""
    ranks = [USUAL.index(key) if key in USUAL else len(USUAL) for key in keys]
    return _is_average(".".join(keys)), max(ranks, default=0), len(keys)


def _is_average(name: str) -> bool:
    return not AVERAGES.isdisjoint(re.split(r"[._]", name.lower()))


def _fits(model: nn.Module, state: Mapping[str, torch.Tensor]) -> list[_Fit]:
    """The ways in which the names fit, the most likely one first: as they are, or with other prefixes."""
    own = model.state_dict()
    if _complete(own, state):
        return [_Fit(state)]
    buffers = {name for name, _ in model.named_buffers()}
    found = []
    for added in _prefixes(own):
        inner = {name.removeprefix(added): name for name in own if name.startswith(added)}
        outer = [name for name in own if not name.startswith(added)]
        if not buffers.issuperset(outer):
            continue
        first = next((name for name in inner if not name.endswith(COUNTER)), None)
        prefixes = {key.removesuffix(first) for key in state if first and f".{key}".endswith(f".{first}")}
        for prefix in prefixes:
            renamed = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if not _complete(inner, renamed):
                continue
            loaded = {name: own[name] for name in outer} | {inner[key]: value for key, value in renamed.items()}
            left_out = [key for key in state if not key.startswith(prefix)]
            found.append(_Fit(loaded, prefix, added, left_out, outer))
    found.sort(key=lambda fit: (_is_average(fit.prefix), len(fit.prefix), len(fit.added)))
    # Where all names of the model begin alike, that part may count as the file's prefix or not: the same tensors.
    different = {tuple(id(fit.state[name]) for name in own): fit for fit in reversed(found)}
    return list(reversed(different.values()))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What the names of a model may begin with, for a module inside of it: "", "net.", "net.module.", …"""
    return list(dict.fromkeys(["", *(name[: i + 1] for name in names for i, each in enumerate(name) if each == ".")]))


def _wrappers(prefix: str) -> str:
    """`` (of DataParallel)``: who puts the prefix there, where that is known."""
    known = [wrapper for part, wrapper in PREFIXES.items() if part in prefix]
    return f" (of {', '.join(known)})" if known else ""


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
        with torch.serialization.safe_globals(SAFE):
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


def _no_state_dict(content: Mapping[Any, Any]) -> str:
    """What a mapping holds in which there is no state dict."""
    others = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if len(others) == len(content):
        return f"the file holds no tensors{f' but {_some(others)}' if others else ''}; save model.state_dict()"
    return f"not only tensors are in it ({_some(others)}); save model.state_dict()"


def _mismatch(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """How the names and shapes differ from the model's; "" if they do not."""
    own = model.state_dict()
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


def _complete(own: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether these are the model's names, but for counters that older files lack."""
    missing = set(own) - set(names)
    return set(names) <= set(own) and all(name.endswith(COUNTER) for name in missing)


def _some(names: Any) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
