"""Input gradients by CUDA graphs: one launch forward and one backward, where small batches are launch-bound.

Forward and backward of a ResNet-18 are about 170 launches, which for 128 images take longer than the GPU's work. The
networks of a mixture are captured both one after the other and concurrently (:mod:`moat.kernels.streams`); the faster
capture is kept.

Off unless the environment variable ``MOAT_CUDA_GRAPHS`` is 1; row 16 of the benchmarks measures the gain on a GPU.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Hashable

import torch
from torch import nn

from moat.kernels.streams import max_concurrency, use_streams
from moat.kernels.tracing import Tracer

log = logging.getLogger(__name__)

VARIABLE = "MOAT_CUDA_GRAPHS"
# Gradients for images of one shape before they are captured: the last, smaller batch is not worth the memory.
CAPTURE_AFTER = 20
# Shapes with a graph; each holds the activations of a batch.
MAX_GRAPHS = 2
# Relative to the largest logit or gradient: the effect of another choice of kernels.
TOLERANCE = 1e-3
# How many times faster a replay must be, and how many replays are timed.
MIN_SPEEDUP, TIMED_CALLS = 1.05, 10
# Numbers of streams that are tried for a mixture's networks.
STREAM_COUNTS = (1, 3)


def is_enabled(device: torch.device) -> bool:
    """Whether gradients on this device are replayed."""
    return device.type == "cuda" and os.environ.get(VARIABLE) == "1"


def attach(model: nn.Module) -> None:
    """Replay the gradients of a frozen model by :class:`Replays`, unless its forward depends on the data (routing)."""
    try:
        Tracer().trace(model)
    except Exception:  # A forward pass may do anything with the proxy; then it cannot be captured either.
        return
    # In the instance's dictionary: the model keeps its class and its other methods.
    model.__dict__["forward"] = Replays(model.forward, model)


class Replays:
    """The forward function of a frozen model, replayed with its gradient for shapes of images that come often.

    For each such shape the replay's logits and gradient are compared with the function's, and both are timed: a replay
    that differs, is no faster, or cannot be captured is dropped. Results are copies, which later replays do not change.

    Args:
        forward: images (B, C, H, W) to logits (B, K), deterministic.
        model: the module whose weights it uses. They may be written in place; if they are replaced, capturing restarts.
    """

    def __init__(self, forward: Callable[..., torch.Tensor], model: nn.Module):
        self.forward, self.model = forward, model
        self._reset(())

    def _reset(self, places: tuple) -> None:
        self._places = places
        self._calls: dict[Hashable, int] = {}
        self._kept: dict[Hashable, Replay | None] = {}

    @property
    def kept(self) -> int:
        """Number of captured graphs."""
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
        # Module.to keeps the parameter object and replaces its data.
        places = tuple((id(each), each.dtype, each.device, each.stride()) for each in weights)
        if places != self._places:
            self._reset(places)
        kind = x.device.type
        key = x.shape, x.dtype, x.device, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        self._calls[key] = self._calls.get(key, 0) + 1
        if self._calls[key] == CAPTURE_AFTER and len(self._kept) < MAX_GRAPHS:
            self._kept[key] = _fastest(self.forward, x.detach())
        return self._kept.get(key)


class Replay:
    """Forward and input gradient for images of the shape of ``like``, captured on a number of streams."""

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
            with use_streams(streams):
                self._captured, self._replay_ahead = capture(ahead, pool)
            self.gradient, self._replay_back = capture(back, pool)
        # The backward pass is captured; the autograd graph is no longer needed.
        self.y = self._captured = self._captured.detach()
        self._turn = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return _Replayed.apply(self, x)

    def ahead(self, x: torch.Tensor) -> int:
        """Compute ``y`` of the images; returns the number of this pass."""
        self.x.detach().copy_(x)
        self._replay_ahead()
        self._turn += 1
        return self._turn

    def back(self, x: torch.Tensor, turn: int, given: torch.Tensor) -> None:
        """Compute ``gradient`` from that of the logits; a forward pass that was not the last replay is repeated."""
        if turn != self._turn:
            self.ahead(x)
        self.given.copy_(given)
        self._replay_back()
        # The backward pass has reused memory of the forward pass.
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
    """The fastest replay that agrees with ``forward``; None if none is faster than it."""
    parts = max_concurrency(lambda: _gradient(forward, x))
    best, best_taken = None, seconds(lambda: _gradient(forward, x), x.device) / MIN_SPEEDUP
    for streams in sorted({min(count, parts) for count in STREAM_COUNTS}):
        replay = _faithful(forward, x, streams)
        if replay is None:
            continue
        taken = seconds(functools.partial(_gradient, replay, x), x.device)
        log.info("%s=1: %d images, %d streams: %.3g s, before %.3g", VARIABLE, len(x), streams, taken, best_taken)
        if taken < best_taken:
            best, best_taken = replay, taken
    return best


def _faithful(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, streams: int) -> Replay | None:
    """A replay, if it can be captured and agrees with ``forward``."""
    try:
        replay = Replay(forward, x, streams)
    except Exception as error:  # CUDA has many errors for operations that it does not capture.
        log.warning("%s=1: a forward pass cannot be captured (%s); it is computed as usual", VARIABLE, error)
        return None
    # Not the captured images: on those a replay that ignores its input would agree.
    other = x.flip(0)
    if all(map(_same, _gradient(replay, other), _gradient(forward, other))):
        return replay
    log.warning("%s=1: a replay's gradients differ; they are computed as usual", VARIABLE)
    return None


def _gradient(forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and an input gradient in which the classes do not cancel."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = forward(x)
        (gradient,) = torch.autograd.grad(y.float().log_softmax(1)[:, 0].sum(), x)
    return y.detach(), gradient


def _same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(((ours - theirs).abs() <= TOLERANCE * theirs.abs().amax()).all())


# -- CUDA only ---------------------------------------------------------------
def warm_up(call: Callable[[], object], device: torch.device) -> None:
    """Let libraries initialise, which they cannot do during a capture; on a side stream, as CUDA requires."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)


def memory_pool(device: torch.device) -> object:
    """A memory pool shared by graphs that are replayed one after the other."""
    return torch.cuda.graph_pool_handle()


def capture(call: Callable[[], torch.Tensor], pool: object) -> tuple[torch.Tensor, Callable[[], None]]:
    """The call's result, and a function that recomputes it in place."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = call()
    return result, graph.replay


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds for ``TIMED_CALLS`` calls, after one warm-up call."""
    call()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(TIMED_CALLS):
        call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started
