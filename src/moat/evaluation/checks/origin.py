"""Does the number fit what is known: of such models elsewhere, and of this model's own making?"""

from typing import Any

import torch

from moat.data.seeding import generator
from moat.evaluation.checks.chance import FALSE_ALARMS
from moat.evaluation.checks.registry import Finding, check, keeps, not_applicable
from moat.evaluation.evidence import Evidence
from moat.evaluation.runner import as_attack, classify, device_of, evaluate, images
from moat.evaluation.statistics import wilson

# The probability that a random test image is answered with a larger margin than a random held-out one: 1/2 for
# equals, up to about 0.53 where the official test split is a little easier (SVHN).
MOST_FAMILIAR = 0.53
# The same for the difference of the two accuracies.
MOST_EASIER = 0.02
# Held-out images for each judged one.
HELD_OUT = 3
# Beside chance: the training may have validated in another precision.
MOST_OFF_RECORD = 0.01
# Held-out images whose verdict may depend on the attack's random start, which is another one here.
RESTARTED = 0.02


@check("published-band")
def published_band(evidence: Evidence) -> Finding:
    """No more accurate than such models are known to be. Suspiciously good is as wrong as bad; lower is a result.

    A value counts as too high if its whole 95 % interval lies above the band.
    """
    band = evidence.origin.band
    if band is None:
        return not_applicable(evidence.origin.no_band)
    n, values, limits, said = len(evidence.x), {}, {}, []
    for what in ("clean", "pgd"):
        if what in band:
            low, high = (percent / 100 for percent in band[what])
            share = evidence.accuracy(what)
            values[what], values[f"{what}_low"] = share, wilson(round(share * n), n)[0]
            limits[f"{what}_low"] = high
            said.append(f"{what} {share:.1%}, known {low:.1%} to {high:.1%}{' (below)' if share < low else ''}")
    return keeps(values, limits), values, limits, f"{'; '.join(said)} ({band['source']})"


@check("provenance")
def provenance(evidence: Evidence) -> Finding:
    """Data, weights, code and versions are those that the record names, and test images had no part in training.

    Two things speak for that: the record says that the best epoch was chosen on held-out training images; and the
    model answers test images no better than held-out ones, by their margins and by what one gradient step leaves.
    On the held-out images, the model has the accuracy that the training saw: it is called as it was trained.
    """
    origin = evidence.origin
    if origin.run is None and origin.held_out is None and origin.data_sha256 is None:
        return not_applicable("no record of the training and no held-out images")
    wrong = _contradictions(origin) if origin.run is not None else []
    values: dict[str, float] = {"n": len(evidence.x), "contradictions": len(wrong)}
    limits: dict[str, float] = {"contradictions": 0}
    if origin.held_out is not None:
        there = len(origin.held_out[0])
        held_out = _some_of(*origin.held_out, HELD_OUT * len(evidence.x), evidence.seed)
        for name, (value, limit) in _familiarity(evidence, *held_out).items():
            values[name], limits[name] = value, limit
            if value > limit:
                wrong.append(f"test images are {name.split('_')[0]}: {value:.3f}, allowed {limit:.3f} ({name})")
        for name, (value, limit) in _off_record(evidence, *held_out, there).items():
            values[name], limits[name] = value, limit
            if value > limit:
                wrong.append(f"validation accuracy is {value:.1%} away from the recorded one, allowed {limit:.1%}")
    known = "the record and what is here agree" if origin.run is not None else "no record of the training"
    return keeps(values, limits), values, limits, "; ".join(wrong) or f"{known}; n = {len(evidence.x)}"


def _contradictions(origin: Any) -> list[str]:
    """What the record lacks, or says differently from what is here now."""
    run, wrong = origin.run, []
    hashes = {
        "weights": ({run.get("model_sha256"), run.get("last_sha256")}, origin.model_sha256),
        "data": ({(run.get("data") or {}).get("sha256")}, origin.data_sha256),
    }
    for what, (recorded, now) in hashes.items():
        if now is None or now not in recorded:
            wrong.append(f"the {what} ({str(now)[:12]}) are not those of run.json")
    for key in ("sources", "lock_sha256"):
        if not run.get(key):
            wrong.append(f"run.json lacks {key}")
    data = run.get("data") or {}
    # The only images that the training loop chooses an epoch by; without them it would have nothing to choose by.
    if not data.get("validation_images"):
        wrong.append("run.json names no held-out training images to choose the epoch by")
    return wrong


def _some_of(x: torch.Tensor, y: torch.Tensor, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``count`` images and labels, or all, in a random order: data sets may be sorted by class."""
    order = torch.randperm(len(x), generator=generator(seed, 0, "provenance check"))[:count]
    return x[order], y[order]


def _familiarity(evidence: Evidence, x: torch.Tensor, y: torch.Tensor) -> dict[str, tuple[float, float]]:
    """What sets test images apart from held-out ones, clean and after one step of eps: each value and its limit.

    ``familiar``: how often test images have larger margins; ``easier``: by how much more of them are right.
    """
    found = {}
    for place, eps in (("clean", 0.0), ("stepped", evidence.eps)):
        test, other = _margins(evidence, evidence.x, evidence.y, eps), _margins(evidence, x, y, eps)
        found[f"familiar_{place}"] = _larger(test, other), MOST_FAMILIAR + _spread(len(test), len(other))
        right, right_other = float((test > 0).double().mean()), float((other > 0).double().mean())
        chance = _spread_of_accuracies(right, len(test), right_other, len(other))
        found[f"easier_{place}"] = right - right_other, MOST_EASIER + chance
    return found


def _off_record(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, of: int) -> dict[str, tuple[float, float]]:
    """How far the validation accuracy is from the recorded one, and the limit.

    Args:
        x, y: drawn from the ``of`` images that the recorded accuracy is about: what is left out of them is all that
            chance decides, beside the attack's random starts.
    """
    from scipy.stats import norm

    run = evidence.origin.run or {}
    recorded, setting = run.get("best_validation_accuracy"), run.get("validation_attack")
    if None in (recorded, setting) or run.get("model_sha256") != evidence.origin.model_sha256:
        return {}
    attack = {"validation": as_attack("validation", setting)}
    rows = evaluate(evidence.model, x, y, attack, batch_size=evidence.batch_size, seed=evidence.seed)
    n = len(x)
    variance = max(recorded * (1 - recorded), 1 / n) * (1 - n / of) + RESTARTED
    chance = float(norm.isf(FALSE_ALARMS / 2)) * (variance / n) ** 0.5
    return {"off_record": (abs(float(rows["correct"].mean()) - recorded), MOST_OFF_RECORD + chance)}


def _margins(evidence: Evidence, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
    """Logit of the label minus the best other (N,), at the images or after one signed step of eps from them."""
    from moat.attacks import fgsm
    from moat.attacks.parts.objectives import margin

    device, margins = device_of(evidence.model), []
    for part in torch.arange(len(x)).split(evidence.batch_size):
        batch, labels = images(x[part], device), y[part].to(device, torch.int64)
        moved = fgsm(evidence.model, batch, labels, eps=eps) if eps else batch
        margins.append(-margin(labels)(classify(evidence.model, moved)).cpu())
    return torch.cat(margins)


def _larger(first: torch.Tensor, second: torch.Tensor) -> float:
    """The probability that a random value of the first is larger than one of the second; ties count half."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(first, second).statistic) / (len(first) * len(second))


def _spread(n: int, m: int) -> float:
    """How far that probability strays by chance, at the checks' rate of false alarms. Source: Mann and Whitney."""
    from scipy.stats import norm

    return float(norm.isf(FALSE_ALARMS)) * ((n + m + 1) / (12 * n * m)) ** 0.5


def _spread_of_accuracies(first: float, n: int, second: float, m: int) -> float:
    """How far the difference of two accuracies on n and m images strays by chance, at the same rate."""
    from scipy.stats import norm

    pooled = (first * n + second * m) / (n + m)
    return float(norm.isf(FALSE_ALARMS)) * (pooled * (1 - pooled) * (1 / n + 1 / m)) ** 0.5
