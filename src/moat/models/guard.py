"""Models that moat did not write, kept from doing harm: to the images they are given, and to whoever calls them."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from moat.base.errors import DataError, MoatError, kind_of
from moat.base.signals import Stopped
from moat.models.moe.views import View
from moat.models.outputs import with_gradient

# Parts of moat's own nets come from these packages.
OWN = ("moat", "torch", "torchvision", "timm")
_MISSING = object()
# Longer messages of other people's code are cut.
LONGEST = 300


def guarded(model: nn.Module, name: str | None = None) -> nn.Module:
    """``model`` behind a :class:`Guard`, if it is not moat's own; moat's own nets and guards are returned as they are.

    Args:
        name: of the model, for messages; its class if not given.
    """
    return Guard(model, name) if is_foreign(model) else model


def is_foreign(model: nn.Module) -> bool:
    """Whether the class of the model, or of a part that is not from a library of nets, is somebody else's."""
    if _package(model) != "moat":
        return True
    return not isinstance(model, Guard) and any(_package(module) not in OWN for module in model.modules())


def behind(model: nn.Module) -> nn.Module:
    """The model behind a guard; a model without one itself."""
    return model.module if isinstance(model, Guard) else model


def class_name(model: nn.Module) -> str:
    """The name of the model's class, for messages; of the model behind a guard."""
    return type(behind(model)).__name__


class Guard(nn.Module):
    """A model from elsewhere that cannot do harm.

    - It gets copies of the images, contiguous and in memory of their own: it may write to them, and ``x.view`` works.
    - Whatever is no logits (B, K), and whatever it raises, sys.exit included, is a DataError that names the model.
    - Logits have a gradient with respect to the images; it is zero where the model has none.

    Other attributes (``router``, ``experts``, …) are the model's; ``route_logits`` and ``attack_views`` are guarded.

    Args:
        module: images (B, C, H, W) to logits (B, K).
        name: begins the messages; the class of the model if not given.
    """

    def __init__(self, module: nn.Module, name: str | None = None):
        super().__init__()
        self.module = module
        self.name = type(module).__name__ if name is None else name
        self.training = module.training

    def around(self, module: nn.Module) -> "Guard":
        """The same guard around another module, such as a copy of the model."""
        return Guard(module, self.name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._call(self.module, x, "the model", "logits", "classes", least=2)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # While a guard is unpickled it has no module yet.
            module = self.__dict__.get("_modules", {}).get("module")
            if module is None or name.startswith("__"):
                raise
        # A property may fail, too.
        found = self._run(lambda: getattr(module, name, _MISSING), f"{self.name}: the attribute {name!r}")
        if found is _MISSING:
            raise AttributeError(f"{self.name} has no attribute {name!r}")
        if name == "route_logits":
            return functools.partial(self._call, found, what="route_logits", noun="scores", columns="experts", least=1)
        return functools.partial(self._views, found) if name == "attack_views" else found

    def _views(self, attack_views: Callable[[], Any]) -> dict[str, nn.Module | View]:
        views = dict(self._run(attack_views, f"{self.name}: attack_views()"))
        for name, view in views.items():
            module, where = view.module if isinstance(view, View) else view, f"{self.name}, view {name}"
            if not isinstance(module, nn.Module):
                raise DataError(f"{where}: a torch.nn.Module is needed, not {_described(module)}")
            views[name] = View(Guard(module, where), view.labels) if isinstance(view, View) else Guard(module, where)
        return views

    def _call(
        self, function: Callable[..., Any], x: torch.Tensor, what: str, noun: str, columns: str, least: int
    ) -> torch.Tensor:
        where = f"{self.name}: given images {_described(x)} in [0, 1], {what}"
        given = x.clone(memory_format=torch.contiguous_format)
        found = self._run(functools.partial(function, given), where)
        if isinstance(found, torch.Tensor) and type(found) is not torch.Tensor:
            # Subclasses have ideas of their own about operators.
            with torch._C.DisableTorchFunctionSubclass():
                found = found.as_subclass(torch.Tensor)
        needed = f"{noun} ({len(x)}, {columns}) are needed"
        if not isinstance(found, torch.Tensor) or found.layout != torch.strided or not found.is_floating_point():
            raise DataError(f"{where} returns {_described(found)}; {needed}")
        if len(x) and (found.ndim != 2 or len(found) != len(x)):
            raise DataError(f"{where} returns {tuple(found.shape)}; {needed}")
        if len(x) and found.shape[1] < least:
            raise DataError(f"{where} returns {tuple(found.shape)}; at least {least} {columns} are needed")
        found = found.to(x.device)
        # A copy in any case: the model may use the memory of its output again.
        return with_gradient(found, x) if torch.is_grad_enabled() and x.requires_grad else found.clone()

    def _run(self, function: Callable[[], Any], where: str) -> Any:
        """What the function returns; ``where`` begins the message if it fails."""
        try:
            # Sets nothing but restores the mode afterwards, whatever the model sets.
            with torch.set_grad_enabled(torch.is_grad_enabled()):
                return function()
        except (MoatError, Stopped, KeyboardInterrupt, torch.OutOfMemoryError):
            raise
        except SystemExit as error:
            raise DataError(f"{where} ends Python (sys.exit({error.code!r}))") from error
        except BaseException as error:
            raise DataError(f"{where} fails ({in_one_line(error)})") from error


def in_one_line(error: BaseException) -> str:
    """``KeyError: 'head'``: what is to be shown of an exception that other people's code has raised."""
    text = str(error)
    if isinstance(error, torch.jit.Error):
        # TorchScript's own traceback comes before.
        text = text.strip().rpartition("\n")[2].removeprefix("RuntimeError: ")
    # Control characters would be a terminal's commands.
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    shortened = text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
    return f"{type(error).__name__}: {shortened}" if shortened else type(error).__name__


def _described(value: object) -> str:
    """``float32 (2, 3, 8, 8)`` for a tensor, ``a tuple`` for a tuple."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return f"a tensor of layout {value.layout}"
    return kind_of(value)


def _package(module: nn.Module) -> str:
    return type(module).__module__.partition(".")[0]
