"""Gradients by CUDA graphs: one launch forwards and one back, where small batches wait for hundreds of them.

A forward pass of a ResNet-18 and its way back are about 170 launches, which take a GPU longer to be told of than to
compute with 128 images. The networks of a mixture are captured one after the other and side by side
(:mod:`moat.kernels.streams`); what is faster is kept.

Off unless the environment variable ``MOAT_CUDA_GRAPHS`` is 1; ``moat bench gpu --rows 16`` says what it is worth on the
card at hand.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Hashable

import torch
from torch import fx, nn

from moat.kernels.streams import forked, most_at_once

log = logging.getLogger(__name__)

ASKED = "MOAT_CUDA_GRAPHS"
# Gradients for images of one shape before they are captured: a last, smaller batch is not worth its memory.
AFTER = 20
# Shapes of which a graph is kept; each holds a batch's activations.
AT_MOST = 2
# Relative to the largest value, of logits and of gradients: what another choice of kernels may change.
TOLERANCE = 1e-3
# How many times faster a replay must be, and how many are timed.
WORTH, TIMED = 1.05, 10
# On how many streams a mixture's networks are tried.
STREAMS = (1, 3)


def asked_for(device: torch.device) -> bool:
    """Whether gradients on this device are to be replayed."""
    return device.type == "cuda" and os.environ.get(ASKED) == "1"


def attach(model: nn.Module, tracer: type[fx.Tracer]) -> None:
    """Let a frozen model answer by :class:`Replays`, unless its work depends on what the images show, as routing does.

    Args:
        tracer: of the graphs of modules, by which that is found out.
    """
    try:
        tracer().trace(model)
    except Exception:  # Whatever a forward pass does with a stand-in for its input: it cannot be captured either.
        return
    # In the instance's dictionary: the model keeps its class and its other methods.
    model.__dict__["forward"] = Replays(model.forward, model)


class Replays:
    """The forward function of a frozen model; its gradients are replayed where images of one shape come often enough.

    For each such shape the replay's logits and gradient are compared with the function's, and both are timed: one that
    differs, or is no faster, is dropped, as is one that cannot be captured. What is handed out are copies: a later
    replay does not change them.

    Args:
        forward: images (B, C, H, W) to logits (B, K); the same way every time.
        model: whose weights it uses. They may be written to in place; where others take their place, all starts anew.
    """

    def __init__(self, forward: Callable[..., torch.Tensor], model: nn.Module):
        self.forward, self.model = forward, model
        self._forget(())

    def _forget(self, places: tuple) -> None:
        self._places = places
        self._calls: dict[Hashable, int] = {}
        self._kept: dict[Hashable, Replay | None] = {}

    @property
    def kept(self) -> int:
        """How many graphs there are."""
        return sum(replay is not None for replay in self._kept.values())

    def __getstate__(self):
        # A captured graph can be neither copied nor saved.
        return {"forward": self.forward, "model": self.model}

    def __setstate__(self, state) -> None:
        self.__init__(**state)

    def __call__(self, x: torch.Tensor, *others, **options) -> torch.Tensor:
        if others or options or not (torch.is_grad_enabled() and x.requires_grad):
            return self.forward(x, *others, **options)
        replay = self._replay_of(x)
        return self.forward(x) if replay is None else replay(x)

    def _replay_of(self, x: torch.Tensor) -> "Replay | None":
        weights = (*self.model.parameters(), *self.model.buffers())
        # `to` keeps a parameter and exchanges its content.
        places = tuple((id(each), each.dtype, each.device, each.stride()) for each in weights)
        if places != self._places:
            self._forget(places)
        kind = x.device.type
        key = x.shape, x.dtype, x.device, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] == AFTER and len(self._kept) < AT_MOST:
            self._kept[key] = _fastest(self.forward, x.detach())
        return self._kept.get(key)


class Replay:
    """A forward pass for images like ``like``, and its way back to them, captured on so many streams."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor, streams: int = 1):
        self.streams = streams
        self.x = like.clone().requires_grad_()
        given = torch.ones_like(forward(self.x))
        self.given = given.detach()

        def ahead() -> torch.Tensor:
            return forward(self.x)

        def back() -> torch.Tensor:
            return torch.autograd.grad(self._captured, self.x, self.given)[0]

        with torch.enable_grad():
            warm_up(lambda: torch.autograd.grad(ahead(), self.x, self.given), like.device)
            pool = memory_pool(like.device)
            with forked(streams):
                self._captured, self._replay_ahead = capture(ahead, pool)
            self.gradient, self._replay_back = capture(back, pool)
        # Its way back is captured; the autograd graph is needed no longer.
        self.y = self._captured = self._captured.detach()
        self._turn = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _Replayed.apply(self, x)

    def ahead(self, x: torch.Tensor) -> int:
        """Compute ``y`` of the images; returns a number that tells this pass from later ones."""
        self.x.detach().copy_(x)
        self._replay_ahead()
        self._turn += 1
        return self._turn

    def back(self, x: torch.Tensor, turn: int, given: torch.Tensor) -> None:
        """Compute ``gradient`` from that of the logits. A pass that was not the last thing done is made again."""
        if turn != self._turn:
            self.ahead(x)
        self.given.copy_(given)
        self._replay_back()
        # Memory of the pass was used again.
        self._turn += 1


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, replay: Replay, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.replay, ctx.turn = replay, replay.ahead(x)
        return replay.y.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, given: torch.Tensor):
        (x,) = ctx.saved_tensors
        ctx.replay.back(x, ctx.turn, given)
        return None, ctx.replay.gradient.clone()


def _fastest(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Replay | None:
    """The replay that computes what ``forward`` computes, and is worth it; None where there is none."""
    parts = most_at_once(lambda: _gradient(forward, x))
    best, best_taken = None, seconds(lambda: _gradient(forward, x), x.device) / WORTH
    for streams in sorted({min(count, parts) for count in STREAMS}):
        replay = _faithful(forward, x, streams)
        if replay is None:
            continue
        taken = seconds(functools.partial(_gradient, replay, x), x.device)
        log.info("%s=1: %d images, %d streams: %.3g s, before %.3g", ASKED, len(x), streams, taken, best_taken)
        if taken < best_taken:
            best, best_taken = replay, taken
    return best


def _faithful(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, streams: int) -> Replay | None:
    """A replay, if it can be captured and gives what ``forward`` gives."""
    try:
        replay = Replay(forward, x, streams)
    except Exception as error:  # CUDA has many names for what it does not capture.
        log.warning("%s=1: a forward pass cannot be captured (%s); it is computed as usual", ASKED, error)
        return None
    # Not what was captured: a replay that forgets to look at its input would agree.
    other = x.flip(0)
    if all(map(_same, _gradient(replay, other), _gradient(forward, other))):
        return replay
    log.warning("%s=1: a replay's gradients differ; they are computed as usual", ASKED)
    return None


def _gradient(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and a gradient of theirs that tells the classes apart."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = forward(x)
        (gradient,) = torch.autograd.grad(y.float().log_softmax(1)[:, 0].sum(), x)
    return y.detach(), gradient


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(((ours - theirs).abs() <= TOLERANCE * theirs.abs().amax()).all())


# -- what is CUDA's ----------------------------------------------------------
def warm_up(call: Callable[[], object], device: torch.device) -> None:
    """Let libraries set up what may not be set up while work is captured; on a stream of its own, as CUDA wants it."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)


def memory_pool(device: torch.device) -> object:
    """Where graphs that run one after the other keep what they compute."""
    return torch.cuda.graph_pool_handle()


def capture(call: Callable[[], torch.Tensor], pool: object) -> tuple[torch.Tensor, Callable[[], None]]:
    """What the call gives, and a function that computes it anew in the same place."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return result, graph.replay


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of ``TIMED`` calls, after one that does not count."""
    call()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(TIMED):
        call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started
