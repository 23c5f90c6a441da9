"""What a suite comes down to for one model: the attacks that apply to it, and why the others do not."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from moat.attacks import for_attack
from moat.attacks.parts.setting import Attack, resolve
from moat.base.errors import ConfigError
from moat.config.project import Project


@dataclass(frozen=True)
class TransferModel:
    """A model that examples are made on, and what it is, for the record."""

    model: nn.Module
    run: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """Attributes:
    settings: name -> attack, in the suite's order.
    worst_cases: name -> {setting: attack}; of settings that apply, and never empty.
    not_applicable: setting or worst case -> the reason.
    record: every setting that the suite names -> its parameters.
    """

    settings: dict[str, Attack]
    worst_cases: dict[str, dict[str, Attack]]
    not_applicable: dict[str, str]
    record: dict[str, dict[str, Any]]


def make_plan(
    project: Project, suite: str, scale: str | None, model: nn.Module, transfer_models: Mapping[str, TransferModel]
) -> Plan:
    """The suite at a scale (None: its settings as they are), for ``model``.

    Raises:
        ConfigError: a setting that cannot be resolved, or a suite of which nothing applies.
    """
    declared = project.attack_settings(suite, scale)
    groups = project.worst_cases(suite, scale)
    everything = {**declared, **{name: each for members in groups.values() for name, each in members.items()}}
    attacks = {name: _bound(resolve(name, setting), transfer_models) for name, setting in everything.items()}
    reasons = {name: reason for name, attack in attacks.items() if (reason := attack.obstacle(model)) is not None}
    settings = {name: attacks[name] for name in declared if name not in reasons}
    if not settings:
        raise ConfigError(f"config/suites.yaml: {suite}: no setting applies to this model: {reasons}")
    worst_cases = {
        group: {name: attacks[name] for name in members if name not in reasons} for group, members in groups.items()
    }
    reasons |= {group: "none of its settings applies" for group, members in worst_cases.items() if not members}
    record = {name: dict(attack.parameters) for name, attack in attacks.items()}
    return Plan(settings, {group: members for group, members in worst_cases.items() if members}, reasons, record)


def _bound(attack: Attack, transfer_models: Mapping[str, TransferModel]) -> Attack:
    """The attack with the model that it transfers from, if there is one."""
    given = transfer_models.get(attack.transfer_from) if attack.transfer_from is not None else None
    if given is None:
        return attack
    return replace(attack, source=for_attack(given.model), parameters={**attack.parameters, "source": dict(given.run)})
