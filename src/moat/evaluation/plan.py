"""A suite for one model: the attacks that apply to it, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from moat.attacks import for_attack, resolve
from moat.attacks.parts.setting import Attack
from moat.base.errors import ConfigError


@dataclass(frozen=True)
class TransferModel:
    """A model on which adversarial examples are made, and what it is, for the record."""

    model: nn.Module
    run: Mapping[str, Any]


@dataclass(frozen=True)
class SuitePlan:
    """The attacks of a suite that apply to a model.

    Attributes:
        suite: its name.
        settings: name -> attack, in the suite's order.
        worst_cases: name -> {setting: attack}; of settings that apply, and never empty.
        not_applicable: setting or worst case -> the reason.
        record: every setting that the suite names -> its parameters.
    """

    suite: str
    settings: dict[str, Attack]
    worst_cases: dict[str, dict[str, Attack]]
    not_applicable: dict[str, str]
    record: dict[str, dict[str, Any]]


Settings = Mapping[str, Mapping[str, Any]]


def make_plan(
    suite: str,
    declared: Settings,
    groups: Mapping[str, Settings],
    model: nn.Module,
    transfer_models: Mapping[str, TransferModel],
) -> SuitePlan:
    """The suite for ``model``.

    Args:
        declared: the suite's settings, as :meth:`moat.config.project.Project.attack_settings` gives them.
        groups: its worst cases, as :meth:`moat.config.project.Project.worst_cases` gives them.
        transfer_models: the models that settings can transfer from, by their ``transfer_from``.

    Raises:
        ConfigError: a setting that cannot be resolved, or a suite of which nothing applies.
    """
    everything = {**declared, **{name: each for members in groups.values() for name, each in members.items()}}
    attacks = {name: _bound(resolve(name, setting), transfer_models) for name, setting in everything.items()}
    found = {name: attack.not_applicable_reason(model) for name, attack in attacks.items()}
    reasons = {name: reason for name, reason in found.items() if reason is not None}
    settings = {name: attacks[name] for name in declared if name not in reasons}
    if not settings:
        raise ConfigError(f"config/suites.yaml: {suite}: no setting applies to this model: {reasons}")
    worst_cases = {
        group: {name: attacks[name] for name in members if name not in reasons} for group, members in groups.items()
    }
    reasons |= {group: "none of its settings applies" for group, members in worst_cases.items() if not members}
    record = {name: dict(attack.parameters) for name, attack in attacks.items()}
    worst_cases = {group: members for group, members in worst_cases.items() if members}
    return SuitePlan(suite, settings, worst_cases, reasons, record)


def _bound(attack: Attack, transfer_models: Mapping[str, TransferModel]) -> Attack:
    """The attack with the model that it transfers from, if there is one."""
    given = transfer_models.get(attack.transfer_from) if attack.transfer_from is not None else None
    if given is None:
        return attack
    return replace(attack, source=for_attack(given.model), parameters={**attack.parameters, "source": dict(given.run)})
