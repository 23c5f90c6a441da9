"""AutoAttack, L-infinity. Source: Croce and Hein, arXiv 2003.01690; the attacks are those of ``pyautoattack``.

This file runs them one by one, so that each can be kept and resumed by itself, and turns the package's warnings into
flags. On the same images, in batches of the same size and with the same seed the verdicts are the package's; for
models that compute each example's logits independently of the others, the classes of this folder have the same
verdicts in less time.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Literal

import torch
from pyautoattack import checks
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from pyautoattack.fab_pt import FABAttack_PT
from pyautoattack.square import SquareAttack

from moat.attacks.autoattack.adapter import Attacked, FlagLogger, examples_are_independent, own_random_numbers
from moat.attacks.autoattack.apgd import Apgd, ApgdTargeted
from moat.attacks.autoattack.fab import Fab
from moat.attacks.autoattack.square import SquareSearch
from moat.attacks.parts.arguments import attack
from moat.attacks.parts.cascade import Stage, run_cascade
from moat.attacks.parts.flags import flag
from moat.attacks.parts.steps import Randomness, frozen
from moat.base.errors import MoatError
from moat.kernels import for_attack

PARAMETERS = {
    "eps": {"type": "distance", "description": "radius of the L-infinity ball"},
    "version": {"enum": ["standard"], "description": "standard: APGD-CE, targeted APGD-DLR, targeted FAB, Square"},
    "seed": {"type": "integer", "minimum": 0, "description": "of the random numbers"},
    "n_iter": {"type": "count", "description": "steps of APGD and FAB; 100 is AutoAttack"},
    "n_targets": {"type": "count", "description": "target classes, at most all wrong ones; 9 is AutoAttack"},
    "n_queries": {"type": "count", "description": "queries of Square; 5000 is AutoAttack"},
    "batch_size": {"type": "count", "description": "examples attacked at once; random numbers depend on it"},
    "precision": {"enum": ["float32", "bf16"], "description": "of the convolutions where gradients are computed"},
}
# Passes through the net for one image. Counted on an adversarially trained net: 184,232 passes without and 62,139 with
# a gradient for 64 images, 58 of them classified correctly and 31 robust in the end; most are spent on these.
PASSES = 4820

# The largest fraction of all examples that Square may add before gradients are in doubt (the package's own limit).
MOST_BY_SQUARE = 0.002
# The package checks the model on so many examples of each batch.
CHECKED = 16
# The fewest classes that the targeted DLR loss is defined for.
FEWEST_CLASSES_OF_DLR = 4
COMPONENTS = ("apgd-ce", "apgd-t", "fab-t", "square")


@attack(PARAMETERS)
def autoattack(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    version: Literal["standard"] = "standard",
    seed: int = 0,
    n_iter: int = 100,
    n_targets: int = 9,
    n_queries: int = 5000,
    batch_size: int = 250,
    precision: Literal["float32", "bf16"] = "float32",
) -> torch.Tensor:
    """Each example's first success of the four attacks in turn; examples that survive all are returned as in x.

    Results depend on which examples share a batch, because the package draws its numbers batch by batch.
    What the package would warn of is raised as a flag, see :func:`moat.attacks.parts.flags.collect`.

    Args:
        eps: radius in pixel units.
        version: "standard": APGD-CE, targeted APGD-DLR, targeted FAB, Square.
        n_iter, n_targets, n_queries: steps, target classes (at most all wrong ones) and queries; 100, 9 and 5000 are
            AutoAttack, anything less is a weaker attack and must be called so.
        batch_size: examples attacked at once.
        precision: of the convolutions where gradients are computed. With "bf16" the verdicts are no longer the
            package's one by one; whatever is found is found again in float32, or does not count.

    Raises:
        MoatError: pixels that are not numbers.
    """
    options = {"seed": seed, "n_iter": n_iter, "n_targets": n_targets, "n_queries": n_queries, "precision": precision}
    parts = stages(model, eps=eps, version=version, batch_size=batch_size, **options)
    with torch.autocast(x.device.type, enabled=False):
        found, misclassified = run_cascade(parts, model, x, y, batch_size=batch_size)
    review(misclassified, len(x))
    return found


def stages(model: torch.nn.Module, *, version: str, batch_size: int, **options) -> Mapping[str, Stage]:
    """The four attacks: name -> (model, x, y, generator) -> x_adv. The first also checks the model."""
    return {name: functools.partial(_run, name=name, **options) for name in COMPONENTS}


def review(misclassified: Mapping[str, int], n: int) -> None:
    """Raise a flag if a black-box attack finds what gradients missed; ``misclassified``: stage -> examples, of n."""
    if n and misclassified.get("square", 0) / n > MOST_BY_SQUARE:
        fraction = misclassified["square"] / n
        flag("square-stronger", f"Square broke {fraction:.2%} of the examples after all gradient attacks had failed")


def _run(
    model, x, y, generator: Randomness, *, name, eps, seed, n_iter, n_targets, n_queries, precision="float32"
) -> torch.Tensor:
    """One attack of the package on one batch, all of it classified correctly."""
    images = x.float().contiguous()
    with frozen(model), own_random_numbers(x.device, seed):
        for_search = for_attack(model, images[:CHECKED], dtype=torch.bfloat16) if precision == "bf16" else None
        attacked = Attacked(model, for_search, dtype=x.dtype)
        classes = attacked(images[:1]).shape[1]
        if name == COMPONENTS[0]:
            _check_model(attacked, images[:CHECKED], y[:CHECKED])
        if name == "apgd-t" and classes < FEWEST_CLASSES_OF_DLR:
            flag("target-classes", f"{name} is left out: its loss needs {FEWEST_CLASSES_OF_DLR} classes, not {classes}")
            return x.clone()
        faster = examples_are_independent(attacked, images)
        shared = {"norm": "Linf", "seed": seed, "device": x.device, "verbose": False, "eps": eps}
        apgd = shared | {"n_iter": n_iter, "n_restarts": 1, "eot_iter": 1, "rho": 0.75, "logger": FlagLogger()}
        targets = {"n_target_classes": min(n_targets, classes - 1)}
        # As the package's version "standard" sets them.
        if name == "apgd-ce":
            search = (Apgd if faster else APGDAttack)(attacked, loss="ce", **apgd)
        elif name == "apgd-t":
            search = (ApgdTargeted if faster else APGDAttack_targeted)(attacked, **apgd, **targets)
        elif name == "fab-t":
            search = (Fab if faster else FABAttack_PT)(attacked, n_iter=n_iter, targeted=True, **shared, **targets)
        else:
            options = {"p_init": 0.8, "n_queries": n_queries, "resc_schedule": False}
            search = (SquareSearch if faster else SquareAttack)(attacked, **shared, **options)
        found = search.perturb(images, y)
    if found.isnan().any():
        raise MoatError(f"{name}: the attack returned pixels that are not numbers")
    return torch.empty_like(x).copy_(found.detach())


def _check_model(model, x: torch.Tensor, y: torch.Tensor) -> None:
    """The package's checks of what is attacked: is it random, dynamic, does it return probabilities for logits?"""
    logger, trace = FlagLogger(), sys.gettrace()
    checks.check_randomized(model, x, y, bs=len(x), logger=logger)
    checks.check_range_output(model, x, logger=logger)
    # Its counters are global and never reset: one dynamic model would mark all that follow.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.no_grad():
            checks.check_dynamic(model, x, False, logger=logger)
    finally:
        sys.settrace(trace)
