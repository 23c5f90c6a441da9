"""An evaluation in the format of RobustBench's model_info files, for comparison with its leaderboard."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from moat.base.errors import ConfigError

# RobustBench evaluates on all of its 10,000 test images; fewer are called a subset.
FULL = 10_000
# Parameters of AutoAttack as RobustBench runs it; smaller values are weaker attacks.
STANDARD = {"n_iter": 100, "n_targets": 9, "n_queries": 5000}


def entry(evaluation: Mapping[str, Any], method: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of an evaluation that includes AutoAttack.

    Accuracies are in percent, as text. ``autoattack_acc`` is the lowest accuracy under any AutoAttack setting, each on
    its own examples; ``external`` the worst case over all attacks, where the suite has one. Authors and venue are left
    for people to fill in.

    Args:
        evaluation: the JSON beside the rows.
        method: the recipe of the run's method; empty for a model from elsewhere.

    Raises:
        ConfigError: the evaluation has no AutoAttack, or no clean accuracy.
    """
    settings, accuracy, run = evaluation["settings"], evaluation["accuracy"], evaluation["run"]
    attacks = [name for name in accuracy if settings.get(name, {}).get("attack") == "autoattack"]
    clean = [name for name in accuracy if settings.get(name, {}).get("attack") == "none"]
    if not attacks or not clean:
        raise ConfigError(f"suite {evaluation['suite']!r}: a RobustBench entry needs a clean setting and AutoAttack")
    worst = min(attacks, key=lambda name: accuracy[name]["accuracy"])
    overall = [accuracy[name]["accuracy"] for name in evaluation["worst_case"] if name in accuracy]
    made = {
        "link": None,
        "name": method.get("title") or run.get("method") or run.get("model"),
        "authors": None,
        "additional_data": False if run.get("method") else None,
        "number_forward_passes": 1,
        "dataset": run.get("dataset"),
        "venue": None,
        "architecture": run.get("arch"),
        "eps": _as_fraction(settings[worst]["eps"]),
        "threat_model": "Linf",
        "clean_acc": _percent(accuracy[clean[0]]["accuracy"]),
        "reported": None,
        "autoattack_acc": _percent(accuracy[worst]["accuracy"]),
        "footnote": _footnote(evaluation, attacks, clean[0]),
        "unreliable": bool(set(attacks) & set(evaluation["flags"])),
    }
    return made | ({"external": _percent(min(overall))} if overall else {})


def _footnote(evaluation: Mapping[str, Any], attacks: list[str], clean: str) -> str:
    """What qualifies the numbers: how many images, settings weaker than AutoAttack's own, and flags."""
    settings, accuracy = evaluation["settings"], evaluation["accuracy"]
    said = [f"clean accuracy on {accuracy[clean]['n']} images"]
    for name in attacks:
        n, parameters = accuracy[name]["n"], settings[name]
        reduced = [f"{key} {parameters[key]}" for key, full in STANDARD.items() if parameters.get(key, full) < full]
        view = f", gradients through the view {parameters['view']!r}" if parameters.get("view") else ""
        less = f", weaker than standard: {', '.join(reduced)}" if reduced else ""
        subset = " (a subset)" if n < FULL else ""
        said.append(f"{name}: {_percent(accuracy[name]['accuracy'])} on {n} images{subset}{view}{less}")
        said += [f"{name} flag {flag}: {message}" for flag, message in evaluation["flags"].get(name, {}).items()]
    if (evaluation["run"].get("scale") or "paper") != "paper":
        said.append(f"trained at scale {evaluation['run']['scale']}, not with the paper's budget")
    return "; ".join(said) + "."


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _as_fraction(eps: float) -> str:
    """ "8/255" where eps is a whole number of grey levels."""
    levels = Fraction(eps * 255).limit_denominator(1000)
    return f"{levels.numerator}/255" if levels.denominator == 1 else f"{eps:g}"
