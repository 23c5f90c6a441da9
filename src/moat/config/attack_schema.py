"""The schema of attack settings: the keys that all share (``attacks.schema.yaml``), and what their family declares.

A family declares its parameters where it stands, in ``PARAMETERS`` (:mod:`moat.base.plugins`). The schema is closed: a
key that neither the shared part nor the family knows is refused.
"""

import copy
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.base.plugins import attack_families, attack_parameters, written
from moat.config import schema
from moat.config.method_schema import in_json_schema

# What has been found valid: every cell of a study names settings.
_VALID: set[str] = set()


def check(settings: Mapping[str, Mapping[str, Any]], root: Path, *, source: str | Path) -> None:
    """Check attack settings: name -> {attack, parameters…}.

    Args:
        root: of the project.
        source: where they are written, for the message.

    Raises:
        ConfigError: names ``source``, the setting, the key, what is allowed, and where that is declared.
    """
    shared = root / "workflow" / "schemas" / "attacks.schema.yaml"
    modified = shared.stat().st_mtime_ns
    # A plan asks for all settings thousands of times.
    everything = f"{shared} {modified} {written()} {json.dumps(settings, default=repr)}"
    if everything in _VALID:
        return
    of_a_file = _validator(shared, modified, None)
    families = attack_families()
    declarations = functools.cache(attack_parameters)
    if not isinstance(settings, Mapping) or not settings:
        raise ConfigError(f"{source}: {schema.explain(schema.find_fault(settings, of_a_file))}")
    for name, setting in settings.items():
        family = setting.get("attack") if isinstance(setting, Mapping) else None
        if not isinstance(family, str):
            raise ConfigError(f"{source}: {schema.explain(schema.find_fault({name: setting}, of_a_file))}")
        if family not in families:
            raise ConfigError(f"{source}: {name}.attack: {unknown_name(family, families, what='attack')}")
        declared = declarations(family)
        composed = json.dumps({key: [each.allowed, each.where] for key, each in declared.items()})
        known = f"{shared} {modified} {name} {composed} {json.dumps(setting, default=repr)}"
        if known not in _VALID:
            fault = schema.find_fault({name: setting}, _validator(shared, modified, composed))
            if fault is not None:
                where = next((each.where for each in declared.values()), "")
                own = f"; {family} declares its own in {where}" if fault.validator == "additionalProperties" else ""
                raise ConfigError(f"{source}: {schema.explain(fault)}{own}")
            _VALID.add(known)
    _VALID.add(everything)


@functools.cache
def _validator(shared: Path, mtime_ns: int, composed: str | None):
    """Of settings by name, all of one family: its declared parameters beside the shared keys; None for any keys."""
    content = copy.deepcopy(schema.read_yaml(shared))
    setting = content["additionalProperties"]
    if composed is None:
        del setting["additionalProperties"]
    for key, (allowed, where) in json.loads(composed or "{}").items():
        setting["properties"][key] = in_json_schema(allowed, content["$defs"], f"{where}: {key}")
        if allowed["required"]:
            setting["required"].append(key)
    return schema.validator(content)
