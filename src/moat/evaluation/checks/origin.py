"""Does the number fit what is known of such models elsewhere, and of this model's own training?"""

from collections.abc import Sequence
from typing import Any

import torch

from moat.attacks import fgsm
from moat.attacks.parts.objectives import margin
from moat.attacks.parts.setting import Attack, both_gradients
from moat.attacks.parts.spaces import PIXELS, training_space
from moat.data.seeding import generator
from moat.evaluation.checks.chance import FALSE_ALARMS, accuracy_spread, rank_spread
from moat.evaluation.checks.registry import Finding, check, judged, not_applicable
from moat.evaluation.evidence import DETACHED, Evidence
from moat.evaluation.runner import as_attack, classify, device_of, evaluate, images
from moat.evaluation.statistics import accuracy, wilson
from moat.models.outputs import predicted_class

# The probability that a random test image has a larger margin than a random held-out one: 1/2 if nothing sets them
# apart, up to about 0.53 where the official test split is a little easier (SVHN).
MAX_FAMILIARITY = 0.53
# The same for the difference of the two accuracies.
MAX_EASIER = 0.02
# Held-out images per test image.
HELD_OUT = 3
# Beyond chance, because training may have validated in another precision.
MAX_OFF_RECORD = 0.01
# The fraction of held-out images whose prediction may depend on the attack's random start, which is another one here.
RESTARTED = 0.02


@check("published-band")
def published_band(evidence: Evidence) -> Finding:
    """The model is not more accurate than such models are known to be: suspiciously good is as wrong as bad.

    An accuracy is too high if its whole 95 % interval lies above the known range. One below the range passes. What is
    known of attacks at one radius says nothing about a smaller one.
    """
    band = evidence.origin.band
    if band is None:
        return not_applicable(evidence.origin.no_band)
    n, values, limits, parts = len(evidence.x), {}, {}, []
    for name in ("clean", "pgd"):
        if name in band and (name == "clean" or evidence.eps >= band.get("eps", 0)):
            low, high = (percent / 100 for percent in band[name])
            measured = evidence.accuracy(name)
            values[name], values[f"{name}_low"] = measured, wilson(round(measured * n), n)[0]
            limits[f"{name}_low"] = high
            below = " (below)" if measured < low else ""
            parts.append(f"{name} {measured:.1%}, known {low:.1%} to {high:.1%}{below}")
    if not values:
        return not_applicable(f"the known range is one at {band['eps'] * 255:g}/255")
    return judged(values, limits), values, limits, f"{'; '.join(parts)} ({band['source']})"


@check("provenance")
def provenance(evidence: Evidence) -> Finding:
    """Weights, data, code and versions are those of the training's record, and test images took no part in training.

    For the latter, the record must name held-out images by which the best epoch was selected, and the model must not be
    better on test images than on held-out ones, neither by its margins nor by its accuracy, clean and after one
    gradient step. On the held-out images the accuracy must be the one that was recorded, or else the model is not
    evaluated as it was trained.
    """
    origin = evidence.origin
    if origin.run is None and origin.held_out is None:
        return "unknown", {}, {}, "no record of the training and no held-out images"
    wrong = _contradictions(origin) if origin.run is not None else []
    values: dict[str, float] = {"n": len(evidence.x), "contradictions": len(wrong)}
    limits: dict[str, float] = {"contradictions": 0}
    if origin.held_out is not None:
        x, y = origin.held_out
        # At random, because data sets may be sorted by class.
        order = torch.randperm(len(x), generator=generator(evidence.seed, 0, "provenance check"))
        order = order[: HELD_OUT * len(evidence.x)]
        for name, (value, limit) in _familiarity(evidence, x[order], y[order]).items():
            values[name], limits[name] = value, limit
            if value > limit:
                wrong.append(f"test images are {name.split('_')[0]}: {value:.3f}, allowed {limit:.3f} ({name})")
        for name, (value, limit) in _off_record(evidence, x[order], y[order], of=len(x)).items():
            values[name], limits[name] = value, limit
            if value > limit:
                wrong.append(f"validation accuracy is {value:.1%} away from the recorded one, allowed {limit:.1%}")
    state = judged(values, limits, n=len(evidence.x))
    agreed = "the files agree with the record"
    if origin.run is None:
        # That the test images are no better known than others does not say where the weights come from.
        state = "unknown" if state == "passed" else state
        agreed = "no record of the training; test images are no better known to the model than held-out ones"
    return state, values, limits, "; ".join(wrong) or f"{agreed}; n = {len(evidence.x)}"


def _contradictions(origin: Any) -> list[str]:
    """What the record lacks, and where it differs from the files."""
    run, wrong = origin.run, []
    data = run.get("data") or {}
    hashes = {
        "weights": ({run.get("model_sha256"), run.get("last_sha256")}, origin.model_sha256),
        "data": ({data.get("sha256")}, origin.data_sha256),
    }
    for name, (recorded, now) in hashes.items():
        if now is None or now not in recorded:
            wrong.append(f"the {name} ({str(now)[:12]}) are not those of run.json")
    for key in ("sources", "lock_sha256"):
        if not run.get(key):
            wrong.append(f"run.json lacks {key}")
    # The training loop selects the best epoch by these images, and by no others.
    if not data.get("validation_images"):
        wrong.append("run.json names no held-out training images to choose the epoch by")
    return wrong


def _familiarity(evidence: Evidence, x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Compare test images with held-out ones, clean and after one step of eps: each value with its limit.

    ``familiar``: the probability that a test image has the larger margin; ``easier``: the difference in accuracy.
    """
    from scipy.stats import mannwhitneyu  # Here, because it takes more than a second.

    found = {}
    for place, eps in (("clean", 0.0), ("stepped", evidence.eps)):
        test, other = _margins(evidence, evidence.x, evidence.y, eps), _margins(evidence, x, y, eps)
        n, m = len(test), len(other)
        # Ties count half.
        familiar = float(mannwhitneyu(test, other).statistic) / (n * m)
        found[f"familiar_{place}"] = familiar, MAX_FAMILIARITY + rank_spread(n, m)
        correct, correct_other = float((test > 0).double().mean()), float((other > 0).double().mean())
        chance = accuracy_spread(correct, n, correct_other, m)
        found[f"easier_{place}"] = correct - correct_other, MAX_EASIER + chance
    return found


def _off_record(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, *, of: int) -> dict[str, tuple[float, float]]:
    """How far the validation accuracy is from the recorded one, and the limit.

    Args:
        x, y: a sample of the ``of`` held-out images. If the accuracy was recorded on all of them, chance decides only
            which ones the sample leaves out, apart from the attack's random starts; else also which were recorded.
    """
    from scipy.stats import norm

    run = evidence.origin.run or {}
    recorded, setting = run.get("best_validation_accuracy"), run.get("validation_attack")
    if None in (recorded, setting) or run.get("model_sha256") != evidence.origin.model_sha256:
        return {}
    # As the training validates: of a net with a router, the per-example worst of both gradients.
    gradients = both_gradients(as_attack("validation", setting), evidence.model).values()
    attacks = dict(zip(("validation", "validation" + DETACHED), gradients, strict=False))
    space = training_space(model=evidence.model, **(run.get("recipe") or {}).get("attack_space", {"name": "pixel"}))
    if space is PIXELS:
        rows = evaluate(evidence.model, x, y, attacks, batch_size=evidence.batch_size, seed=evidence.seed)
        correct, _ = accuracy(rows, list(attacks))
    else:
        correct = _survivors(evidence, x, y, [attack.in_space(space) for attack in attacks.values()])
    n = len(x)
    recorded_on = (run.get("data") or {}).get("validation_images") or of
    drawn = 1 / n + (1 / recorded_on if recorded_on < of else -1 / recorded_on)
    variance = max(recorded * (1 - recorded), 1 / n) * drawn + RESTARTED / n
    chance = float(norm.isf(FALSE_ALARMS / 2)) * variance**0.5
    return {"off_record": (abs(correct / n - recorded), MAX_OFF_RECORD + chance)}


def _survivors(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, attacks: Sequence[Attack]) -> int:
    """How many images are classified correctly under all attacks; an evaluation would make pixels of their results."""
    device, survivors = device_of(evidence.model), 0
    for number, part in enumerate(torch.arange(len(x)).split(evidence.batch_size)):
        batch, labels = images(x[part], device), y[part].to(device, torch.int64)
        correct = torch.ones_like(labels, dtype=torch.bool)
        for attack in attacks:
            draws = generator(evidence.seed, 0, "validation", number, device)
            logits = classify(evidence.model, attack(evidence.model, batch, labels, draws))
            correct &= predicted_class(logits) == labels
        survivors += int(correct.sum())
    return survivors


def _margins(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """The label's logit minus the best other one (N,), at the images or after one signed gradient step of eps."""
    device, margins = device_of(evidence.model), []
    for part in torch.arange(len(x)).split(evidence.batch_size):
        batch, labels = images(x[part], device), y[part].to(device, torch.int64)
        moved = fgsm(evidence.model, batch, labels, eps=eps) if eps else batch
        margins.append(-margin(labels)(classify(evidence.model, moved)).cpu())
    return torch.cat(margins)
