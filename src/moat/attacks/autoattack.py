"""AutoAttack, L-infinity. Source: Croce and Hein, arXiv 2003.01690; the attacks are those of ``pyautoattack``.

This file runs them one by one, so that each can be kept and resumed by itself, and turns the package's warnings into
flags. On the same images, in batches of the same size and with the same seed the verdicts are the package's.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from moat.attacks.checks import check_batch, check_budget, check_choice, check_iterations
from moat.attacks.flags import flag
from moat.attacks.package import FlagLogger, as_attacked, own_random_numbers
from moat.attacks.stages import Stage, in_turn
from moat.attacks.steps import Randomness, frozen
from moat.errors import MoatError

# Of all examples: how much Square may add before gradients are in doubt (the package's own limit).
MOST_BY_SQUARE = 0.002


@dataclass(frozen=True)
class Version:
    """The attacks of a version in turn, the restarts of the untargeted ones, and gradients averaged per step."""

    components: tuple[str, ...]
    restarts: int = 1
    eot: int = 1


VERSIONS = {
    "standard": Version(("apgd-ce", "apgd-t", "fab-t", "square")),
    "plus": Version(("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"), restarts=5),
    "rand": Version(("apgd-ce", "apgd-dlr"), eot=20),
}
# Component -> the fewest classes that its loss is defined for.
FEWEST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def autoattack(
    model: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    version: Literal["standard", "plus", "rand"] = "standard",
    seed: int = 0,
    n_iter: int = 100,
    n_targets: int = 9,
    n_queries: int = 5000,
    batch_size: int = 250,
) -> torch.Tensor:
    """Each example's first success of the version's attacks in turn; examples that survive all are returned as in x.

    Results depend on which examples share a batch, because the package draws its numbers batch by batch.
    What the package would warn of is raised as a flag, see :func:`moat.attacks.flags.collect`.

    Args:
        eps: radius in pixel units.
        version: "standard" (APGD-CE, targeted APGD-DLR, targeted FAB, Square), "plus", or "rand" for models that
            draw random numbers.
        n_iter, n_targets, n_queries: steps, target classes (at most all wrong ones) and queries; 100, 9 and 5000 are
            AutoAttack, anything less is a weaker attack and must be called so.
        batch_size: examples attacked at once.

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: pixels that are not numbers.
    """
    check_choice(version=(version, VERSIONS))
    check_budget(eps=eps)
    check_iterations(n_iter=n_iter, n_targets=n_targets, n_queries=n_queries, batch_size=batch_size)
    check_batch(x, y)
    sizes = {"n_iter": n_iter, "n_targets": n_targets, "n_queries": n_queries}
    parts = stages(model, eps=eps, version=version, seed=seed, batch_size=batch_size, **sizes)
    with frozen(model), torch.autocast(x.device.type, enabled=False):
        found, broken = in_turn(parts, model, x, y, batch_size=batch_size)
    review(broken, len(x))
    return found


def stages(model: torch.nn.Module, *, version: str, batch_size: int, **options) -> Mapping[str, Stage]:
    """The version's attacks: name -> (model, x, y, generator) -> x_adv. The first also checks the model."""
    names = VERSIONS[version].components
    return {
        name: functools.partial(_run, name=name, version=version, check=name == names[0], **options) for name in names
    }


def review(broken: Mapping[str, int], n: int) -> None:
    """Raise the flag of a black-box attack that finds what gradients missed; ``broken``: stage -> examples, of n."""
    if n and broken.get("square", 0) / n > MOST_BY_SQUARE:
        share = broken["square"] / n
        flag("square-stronger", f"Square broke {share:.2%} of the examples after all gradient attacks had failed")


def _run(model, x, y, generator: Randomness, *, name, version, check, seed, n_targets, **options) -> torch.Tensor:
    """One attack of the package on one batch, all of it classified correctly."""
    attacked = as_attacked(model)
    images = x.float().contiguous()
    with frozen(model), own_random_numbers(x.device, seed):
        classes = attacked(images[:1]).shape[1]
        if check:
            _check_model(attacked, images, y, version)
        if classes < FEWEST_CLASSES.get(name, 2):
            flag("target-classes", f"{name} is left out: its loss needs {FEWEST_CLASSES[name]} classes, not {classes}")
            return x.clone()
        attack = _component(name, attacked, VERSIONS[version], min(n_targets, classes - 1), x.device, seed, **options)
        found = attack.perturb(images, y)
    if found.isnan().any():
        raise MoatError(f"{name}: the attack returned pixels that are not numbers")
    return torch.empty_like(x).copy_(found)


def _component(name: str, model, version: Version, n_targets: int, device, seed: int, *, eps, n_iter, n_queries):
    """The package's attack with the settings that its version gives it."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    shared = {"norm": "Linf", "eps": eps, "seed": seed, "device": device, "verbose": False}
    apgd = shared | {"n_iter": n_iter, "eot_iter": version.eot, "rho": 0.75, "logger": FlagLogger()}
    makers = {
        "apgd-ce": lambda: APGDAttack(model, loss="ce", n_restarts=version.restarts, **apgd),
        "apgd-dlr": lambda: APGDAttack(model, loss="dlr", n_restarts=version.restarts, **apgd),
        "apgd-t": lambda: APGDAttack_targeted(model, n_restarts=1, n_target_classes=n_targets, **apgd),
        "fab": lambda: FABAttack_PT(model, n_restarts=version.restarts, n_iter=n_iter, **shared),
        "fab-t": lambda: FABAttack_PT(
            model, n_restarts=1, n_iter=n_iter, targeted=True, n_target_classes=n_targets, **shared
        ),
        "square": lambda: SquareAttack(
            model, p_init=0.8, n_restarts=1, n_queries=n_queries, resc_schedule=False, **shared
        ),
    }
    return makers[name]()


def _check_model(model, x: torch.Tensor, y: torch.Tensor, version: str) -> None:
    """The package's checks of what is attacked: is it random, dynamic, does it give probabilities for logits?"""
    from pyautoattack import checks

    logger, trace = FlagLogger(), sys.gettrace()
    if version != "rand":
        checks.check_randomized(model, x, y, bs=len(x), logger=logger)
    checks.check_range_output(model, x, logger=logger)
    # Its counters are global and never reset: one dynamic model would mark all that follow.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        with torch.no_grad():
            checks.check_dynamic(model, x, False, logger=logger)
    finally:
        sys.settrace(trace)
