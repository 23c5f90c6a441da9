"""AutoAttack, L-infinity. Source: Croce and Hein, arXiv 2003.01690; the attacks are those of ``pyautoattack``.

This file runs them one by one, so that each can be kept and resumed by itself, and turns the package's warnings into
flags. On the same images, in batches of the same size and with the same seed the verdicts are the package's; for
models that give each example's logits without regard to the others, :mod:`moat.attacks.faster` has them in less time.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from moat.attacks.autoattack.adapter import Attacked, FlagLogger, examples_are_independent, own_random_numbers
from moat.attacks.parts.checks import check_batch, check_budget, check_choice, check_iterations
from moat.attacks.parts.flags import flag
from moat.attacks.parts.stages import Stage, in_turn
from moat.attacks.parts.steps import Randomness, frozen
from moat.base.errors import MoatError
from moat.kernels import for_attack

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
PRECISIONS = ("float32", "bf16")
# Of each batch, so many examples are what the package's checks of the model look at.
CHECKED = 16
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
    precision: Literal["float32", "bf16"] = "float32",
) -> torch.Tensor:
    """Each example's first success of the version's attacks in turn; examples that survive all are returned as in x.

    Results depend on which examples share a batch, because the package draws its numbers batch by batch.
    What the package would warn of is raised as a flag, see :func:`moat.attacks.parts.flags.collect`.

    Args:
        eps: radius in pixel units.
        version: "standard" (APGD-CE, targeted APGD-DLR, targeted FAB, Square), "plus", or "rand" for models that
            draw random numbers.
        n_iter, n_targets, n_queries: steps, target classes (at most all wrong ones) and queries; 100, 9 and 5000 are
            AutoAttack, anything less is a weaker attack and must be called so.
        batch_size: examples attacked at once.
        precision: of the convolutions where gradients are computed. With "bf16" the verdicts are no longer the
            package's one by one; whatever is found is found again in float32, or does not count.

    Raises:
        ConfigError: a parameter out of range.
        ValueError: images outside [0,1] or labels that do not fit.
        MoatError: pixels that are not numbers.
    """
    check_choice(version=(version, VERSIONS), precision=(precision, PRECISIONS))
    check_budget(eps=eps)
    check_iterations(n_iter=n_iter, n_targets=n_targets, n_queries=n_queries, batch_size=batch_size)
    check_batch(x, y)
    sizes = {"n_iter": n_iter, "n_targets": n_targets, "n_queries": n_queries}
    options = {"eps": eps, "version": version, "seed": seed, "precision": precision}
    parts = stages(model, batch_size=batch_size, **options, **sizes)
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


def _run(
    model, x, y, generator: Randomness, *, name, version, check, seed, n_targets, precision="float32", **options
) -> torch.Tensor:
    """One attack of the package on one batch, all of it classified correctly."""
    images = x.float().contiguous()
    with frozen(model), own_random_numbers(x.device, seed):
        for_search = for_attack(model, images[:CHECKED], dtype=torch.bfloat16) if precision == "bf16" else None
        attacked = Attacked(model, for_search)
        classes = attacked(images[:1]).shape[1]
        if check:
            _check_model(attacked, images[:CHECKED], y[:CHECKED], version)
        if classes < FEWEST_CLASSES.get(name, 2):
            flag("target-classes", f"{name} is left out: its loss needs {FEWEST_CLASSES[name]} classes, not {classes}")
            return x.clone()
        # Gradients averaged over several random outputs are drawn anew in each step.
        faster = VERSIONS[version].eot == 1 and examples_are_independent(attacked, images)
        shared = {"norm": "Linf", "seed": seed, "device": x.device, "verbose": False, "eps": options.pop("eps")}
        options |= {"n_targets": min(n_targets, classes - 1)}
        attack = _component(name, attacked, VERSIONS[version], _families(faster), shared, **options)
        found = attack.perturb(images, y)
    if found.isnan().any():
        raise MoatError(f"{name}: the attack returned pixels that are not numbers")
    # Where gradients are averaged, the package returns images that still hang on their graph.
    return torch.empty_like(x).copy_(found.detach())


def _families(faster: bool) -> tuple[type, type, type, type]:
    """APGD, targeted APGD, FAB and Square: the package's own, or ours with the same verdicts in less time."""
    if faster:
        from moat.attacks.autoattack.apgd import Apgd, ApgdTargeted
        from moat.attacks.autoattack.fab import Fab
        from moat.attacks.autoattack.square import SquareSearch

        return Apgd, ApgdTargeted, Fab, SquareSearch
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

    return APGDAttack, APGDAttack_targeted, FABAttack_PT, SquareAttack


def _component(name: str, model: Attacked, version: Version, families, shared, *, n_iter, n_targets, n_queries):
    """The attack with the settings that its version gives it in the package."""
    apgd, targeted, fab, square = families
    options = shared | {"n_iter": n_iter, "eot_iter": version.eot, "rho": 0.75, "logger": FlagLogger()}
    makers = {
        "apgd-ce": lambda: apgd(model, loss="ce", n_restarts=version.restarts, **options),
        "apgd-dlr": lambda: apgd(model, loss="dlr", n_restarts=version.restarts, **options),
        "apgd-t": lambda: targeted(model, n_restarts=1, n_target_classes=n_targets, **options),
        "fab": lambda: fab(model, n_restarts=version.restarts, n_iter=n_iter, **shared),
        "fab-t": lambda: fab(model, n_iter=n_iter, targeted=True, n_target_classes=n_targets, **shared),
        "square": lambda: square(model, p_init=0.8, n_queries=n_queries, resc_schedule=False, **shared),
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
