"""Signs in an evaluation that the attack did not work or that the model was misused; one line each.

They cost one gradient on a few images. ``moat verify`` looks closer.
"""

from collections.abc import Iterator, Mapping

import pandas as pd
import torch

from moat.attacks.parts.objectives import cross_entropy
from moat.attacks.parts.setting import Attack
from moat.attacks.parts.steps import frozen, input_gradient
from moat.evaluation import protocols
from moat.evaluation.plan import SuitePlan
from moat.evaluation.scoring import classify, device_of, images
from moat.evaluation.statistics import wilson
from moat.evaluation.target import EvaluationTarget

# The images that the model is shown once more.
EXAMINED = 64
# Attack families that follow no gradient.
WITHOUT_GRADIENT = ("none", "corruption", "square")
# Attacks with this fraction of gradients that are zero are no attacks. Confident nets have a few.
MOST_ZERO = 0.5
# Fewer images say nothing about chance.
FEWEST = 20
# How far from 1 the sum of probabilities may be.
ROUNDING = 1e-3


def find_doubts(target: EvaluationTarget, plan: SuitePlan, rows: pd.DataFrame) -> dict[str, str]:
    """Name -> one line, of what is plainly wrong; ``rows`` are those of the plan's settings."""
    attacks = {name: attack for name, attack in plan.settings.items() if _is_attack(attack)}
    return {**dict(_of_outputs(target, attacks)), **dict(_of_rows(target, plan, attacks, rows))}


def _is_attack(attack: Attack) -> bool:
    """Whether it attacks the model itself, by the correct protocol."""
    harmless = attack.parameters.get("attack") in ("none", "corruption") or attack.eps == 0
    return not harmless and attack.protocol == protocols.CORRECT and attack.transfer_from is None


def _of_outputs(target: EvaluationTarget, attacks: Mapping[str, Attack]) -> Iterator[tuple[str, str]]:
    device, part = device_of(target.model), slice(EXAMINED)
    x, y = images(target.x[part], device), target.y[part].to(device, torch.int64)
    with frozen(target.model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        logits = classify(target.model, x)
        outputs, classes = logits.shape[1], len(target.classes)
        if outputs != classes:
            yield "outputs", f"the model has {outputs} outputs, the data {classes} classes: are the labels the same?"
        if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() <= ROUNDING).all()):
            yield (
                "probabilities",
                "the model returns probabilities, not logits: gradients vanish; leave out the softmax",
            )
        follow = [
            name
            for name, attack in attacks.items()
            if attack.view is None and attack.parameters.get("attack") not in WITHOUT_GRADIENT
        ]
        if not follow:
            return
        gradient = input_gradient(target.model, x, cross_entropy(y)).flatten(1)
    zero, n = int((gradient == 0).all(1).sum()), len(x)
    if zero >= MOST_ZERO * n:
        yield (
            "zero-gradient",
            (
                f"the gradient is zero for {zero} of {n} images: {', '.join(follow[:3])}{', …' if follow[3:] else ''} "
                "cannot attack this model; run moat verify"
            ),
        )


def _of_rows(
    target: EvaluationTarget, plan: SuitePlan, attacks: Mapping[str, Attack], rows: pd.DataFrame
) -> Iterator[tuple[str, str]]:
    unattacked = [name for name, attack in plan.settings.items() if attack.parameters.get("attack") == "none"]
    if not unattacked:
        return
    correct = {name: part.set_index("index")["correct"] for name, part in rows.groupby("setting")}
    clean, classes = correct[unattacked[0]], len(target.classes)
    if len(clean) >= FEWEST and wilson(int(clean.sum()), len(clean))[0] <= 1 / classes:
        yield (
            "chance",
            (
                f"the clean accuracy, {clean.mean():.2%}, is at chance ({1 / classes:.2%}): are the normalisation, "
                "the range of pixels (here [0, 1]) and the order of the labels those of the training?"
            ),
        )
    above = [name for name in attacks if correct[name].sum() > clean[correct[name].index].sum()]
    if above:
        shown = ", ".join(f"{name} {correct[name].mean():.2%}" for name in above[:3])
        yield (
            "above-clean",
            (
                f"more images are correct under attack ({shown}{', …' if above[3:] else ''}) than without "
                f"({clean.mean():.2%}): the attack does not work on this model; run moat verify"
            ),
        )
