"""The schema of a recipe: what all methods share (``method.schema.yaml``), and what its class declares.

A class declares its own keys where it stands, in ``PARAMETERS`` (:mod:`moat.base.plugins`). The schema is closed: a key
that neither the shared part nor the class knows is refused, also one that another class would understand.
"""

import copy
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moat.base.errors import ConfigError, unknown_name
from moat.base.plugins import Parameter, method_classes, mixtures, recipe_parameters
from moat.config import schema

# Of a declaration, beside what JSON Schema means by these words.
_WORDS = {
    "type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "items", "minItems", "maxItems",
    "pattern", "properties", "description", "default", "required", "follows",
}  # fmt: skip

# What has been found valid: most runs of a plan share their recipes.
_VALID: set[str] = set()


def check(recipe: Mapping[str, Any], name: str, layers: Sequence[tuple[str, Mapping[str, Any]]], root: Path) -> None:
    """Check a merged recipe.

    Args:
        recipe: with its ``class``.
        layers: what it was merged from, (where it is written, content), the one with the last word first.
        root: of the project.

    Raises:
        ConfigError: names the layer that holds the fault, the key, what is allowed, and where that is declared.
    """
    own, model = f"config/methods/{name}.yaml", recipe.get("model")
    mixture = model.get("mixture") if isinstance(model, Mapping) else None
    for path, value, known, what in (
        (("class",), recipe["class"], method_classes(), "method class"),
        (("model", "mixture"), mixture, mixtures(), "mixture"),
    ):
        if value is not None and value not in known:
            where = schema.layer_of(path, layers, own)
            raise ConfigError(f"{where}: {'.'.join(path)}: {unknown_name(value, known, what=what)}")
    declared = _declared(recipe)
    composed = json.dumps([recipe["class"], {key: [each.allowed, each.where] for key, each in declared.items()}])
    known = composed + json.dumps(recipe, default=repr)
    if known in _VALID:
        return
    shared = root / "workflow" / "schemas" / "method.schema.yaml"
    fault = schema.find_fault(recipe, _validator(shared, shared.stat().st_mtime_ns, composed))
    if fault is not None:
        where = schema.layer_of(schema.fault_path(fault), layers, own)
        of = "" if where == own else f" (recipe {name})"
        raise ConfigError(f"{where}: {schema.explain(fault)}{_declared_in(fault, recipe['class'], declared)}{of}")
    for part in ("attacks", "validations"):
        for key in recipe.get("cost", {}).get(part, ()):
            if key not in recipe:
                said = unknown_name(key, [each for each in recipe if isinstance(recipe[each], Mapping)], what="key")
                raise ConfigError(f"config/methods/{name}.yaml: cost.{part}: {said}")
    _check_fit(recipe, f"config/methods/{name}.yaml: cost.fit")
    _VALID.add(known)


def _check_fit(recipe: Mapping[str, Any], where: str) -> None:
    """That the recipe has what its ``cost.fit`` counts."""
    cost, fit = recipe.get("cost", {}).get("fit"), recipe.get("fit", {})
    if cost is None:
        return
    if missing := [key for key in ("steps", "images") if key not in fit]:
        raise ConfigError(f"{where}: the recipe has no fit.{missing[0]}, which the cost is computed from")
    counted = [key for key, value in fit.items() if isinstance(value, int | float | list)]
    if isinstance(cost["attacks"], str) and cost["attacks"] not in counted:
        raise ConfigError(f"{where}.attacks: {unknown_name(cost['attacks'], counted, what='number or list of fit')}")


def _declared(recipe: Mapping[str, Any]) -> dict[str, Parameter]:
    model = recipe.get("model", {})
    return recipe_parameters(recipe["class"], model if isinstance(model, Mapping) else {})


@functools.cache
def _validator(shared: Path, mtime_ns: int, composed: str):
    """Of the shared schema with the declared parameters in it."""
    content = copy.deepcopy(schema.read_yaml(shared))
    _, declared = json.loads(composed)
    # What lies inside a mapping is added to it, also where a base declares the former and a subclass the latter.
    for key in sorted(declared, key=lambda key: key.count(".")):
        _add(content, key, *declared[key])
    return schema.validator(content)


def _add(content: dict[str, Any], key: str, allowed: Mapping[str, Any], where: str) -> None:
    *parents, last = key.split(".")
    node, must = content, "default" not in allowed and allowed.get("required", True)
    for part in parents:
        if must and part not in node.setdefault("required", []):
            node["required"].append(part)
        empty = {"type": "object", "additionalProperties": False, "properties": {}}
        node = node["properties"].setdefault(part, empty)
    if must:
        node.setdefault("required", []).append(last)
    node["properties"][last] = in_json_schema(allowed, content["$defs"], f"{where}: {key}")


def in_json_schema(allowed: Mapping[str, Any], types: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A declaration in the words of JSON Schema alone, named types written out."""
    for word in allowed:
        if word not in _WORDS:
            raise ConfigError(f"{where}: {unknown_name(word, _WORDS, what='word')}")
    kind = allowed.get("type")
    named = types.get(kind, {}) if isinstance(kind, str) else {}
    result = {key: value for key, value in allowed.items() if key not in ("default", "required", "follows")}
    if named:
        result = {**copy.deepcopy(named), **{key: value for key, value in result.items() if key != "type"}}
        if "description" in named and "description" in allowed:
            result["description"] = f"{named['description']} ({allowed['description']})"
    if isinstance(kind, list) and types.keys() & set(kind):
        del result["type"]
        result["anyOf"] = [types.get(name, {"type": name}) for name in kind]
    if "items" in allowed:
        result["items"] = in_json_schema(allowed["items"], types, where)
    if "properties" in allowed:
        inside = {key: in_json_schema(each, types, where) for key, each in allowed["properties"].items()}
        must = [key for key, each in allowed["properties"].items() if each.get("required", True)]
        result |= {"properties": inside, "additionalProperties": False, "required": must}
    return result


def _declared_in(fault, name: str, declared: Mapping[str, Parameter]) -> str:
    """Where a person finds what is allowed, if it is not in the shared schema."""
    path = schema.fault_path(fault)
    if fault.validator == "required":
        path = (*path, next(key for key in fault.validator_value if key not in fault.instance))
    dotted = ".".join(path)
    inside = [key for key in declared if f"{dotted}.".startswith(f"{key}.") or key.startswith(f"{dotted}.")]
    if inside:
        return f"; declared in {declared[max(inside, key=len)].where}"
    if fault.validator == "additionalProperties":
        beside = {each.where for key, each in declared.items() if len(path) > 1 and key.startswith(f"{path[0]}.")}
        if beside:
            return f"; declared in {' and '.join(sorted(beside))}"
        return f"; these are the keys of class {name}, which declares its own in PARAMETERS"
    return ""


def with_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with the declared defaults of its class, where it says nothing."""
    defaults: dict[str, Any] = {}
    for key, parameter in _declared(recipe).items():
        if "default" in parameter.allowed:
            *parents, last = key.split(".")
            node = defaults
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = parameter.allowed["default"]
    return schema.merge(defaults, recipe)


def of_type(recipe: Mapping[str, Any], kind: str) -> list[str]:
    """The keys of a recipe whose declared ``type`` is ``kind``, and that it has."""
    declared = _declared(recipe)
    return [key for key, parameter in declared.items() if parameter.allowed.get("type") == kind and key in recipe]


def followers(recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, the key that it follows) of a recipe's class."""
    for key, parameter in _declared(recipe).items():
        if "follows" in parameter.allowed:
            yield key, parameter.allowed["follows"]
