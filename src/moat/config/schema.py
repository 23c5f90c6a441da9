"""YAML files, each read once and checked against a closed schema.

The schemas are ``workflow/schemas/<kind>.schema.yaml``. An unknown key, a wrong type or a value
outside the allowed ones ends with one line: the file, the key, and what is allowed.
"""

import contextlib
import functools
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from moat.base.errors import ConfigError, unknown_name
from moat.base.numbers import parse_number

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


# Far above any configuration: how deep it nests, and how many values it has once every alias is written out.
_MAX_DEPTH, _MAX_VALUES = 50, 100_000


class _UniqueKeyLoader(_Loader):
    """A safe loader that refuses a key written twice, of which YAML would silently keep the last, and a key that is no
    text; and for which ``5e-4`` is a number, as in YAML 1.2.
    """

    def __init__(self, stream):
        super().__init__(stream)
        self.checked: set[int] = set()

    def flatten_mapping(self, node):
        # Once, before what is merged with ``<<`` joins it: a mapping's own keys override those.
        if id(node) not in self.checked:
            self.checked.add(id(node))
            self._check_keys(node)
        super().flatten_mapping(node)

    def _check_keys(self, node):
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                problem = f"a key is text, and this one a {type(key).__name__}: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@functools.cache
def _parse(path: Path, mtime_ns: int, size: int) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        _check_size(path, text)
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def _check_size(path: Path, text: str) -> None:
    """Refuse what would take all memory, or never end, once it is more than text.

    Raises:
        ConfigError: it is nested too deeply, holds itself, or is too large with every alias written out.
    """
    # The number of values behind each anchor; None as long as it is not complete.
    anchors: dict[str, int | None] = {}
    # Of each open list or mapping its anchor, and the number of values in it so far.
    open_nodes: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, Loader=_Loader):
        count, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.events.CollectionStartEvent):
            open_nodes.append((anchor, total))
            anchors |= {anchor: None} if anchor else {}
            if len(open_nodes) > _MAX_DEPTH:
                line = event.start_mark.line + 1
                raise ConfigError(f"{path}, line {line}: lists and mappings lie more than {_MAX_DEPTH} deep")
        elif isinstance(event, yaml.events.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            count = 1
            anchors |= {anchor: total - before + 1} if anchor else {}
        elif isinstance(event, yaml.events.AliasEvent):
            count = anchors.get(anchor, 0)
            if count is None:
                raise ConfigError(f"{path}, line {event.start_mark.line + 1}: *{anchor} lies inside itself")
        elif isinstance(event, yaml.events.ScalarEvent):
            count = 1
            anchors |= {anchor: 1} if anchor else {}
        total += count
        if total > _MAX_VALUES:
            raise ConfigError(f"{path}: more than {_MAX_VALUES} values once every alias is written out")


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file; parsed again only when the file has changed.

    Raises:
        ConfigError: missing file, invalid YAML or a key that stands twice.
    """
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    return _parse(path, status.st_mtime_ns, status.st_size)


def merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``override`` on top: mappings are merged key by key, anything else is replaced."""
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def validator(schema: Mapping[str, Any]):
    """Checks content against a schema; knows the format "distance"."""
    # Slow, and `moat --help` has nothing to check.
    import jsonschema

    formats = jsonschema.FormatChecker(formats=())
    formats.checks("distance", raises=ConfigError)(_is_distance)
    checked_by = _validator_class(jsonschema)
    return checked_by(schema, format_checker=formats)


@functools.cache
def _validator_class(jsonschema):
    """JSON Schema's, for which .nan and .inf are no numbers, and 100.0 no whole number: it could count nothing."""
    types = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many({"number": _is_number, "integer": _is_integer})
    own = {"uniqueBy": _unique_by}
    return jsonschema.validators.extend(jsonschema.Draft202012Validator, validators=own, type_checker=types)


def _unique_by(checked_by, key: str, instance: Any, schema: Mapping[str, Any]):
    """The keyword ``uniqueBy: name`` of a list of mappings: no two have the same value of that key."""
    import jsonschema

    values = [item.get(key) for item in instance if isinstance(item, Mapping)] if isinstance(instance, list) else []
    for index, value in enumerate(values):
        if value is not None and value in values[:index]:
            yield jsonschema.ValidationError(f"the {key} {value!r} stands twice")


def _is_number(checker, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(checker, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@functools.cache
def _validator_of(schema_path: Path):
    return validator(read_yaml(schema_path))


def _is_distance(value: Any) -> bool:
    """Whether a number, or a fraction such as "8/255", lies between 0 and 1. JSON Schema's bounds see no strings."""
    return 0 <= parse_number(value) <= 1


def read_words(content: dict[str, Any], schema_path: Path) -> None:
    """Read text as YAML, in place, where the schema allows no text: Snakemake's --config makes text of most values.

    ``max_resources={runtime: 5}`` has a number, ``warm_start=off`` a boolean.
    """
    for fault in list(_validator_of(Path(schema_path)).iter_errors(content)):
        if fault.validator in ("type", "enum") and isinstance(fault.instance, str) and fault.absolute_path:
            *parents, last = fault.absolute_path
            with contextlib.suppress(yaml.YAMLError):
                value = yaml.load(fault.instance, Loader=_UniqueKeyLoader)
                functools.reduce(operator.getitem, parents, content)[last] = value


# What has been found valid: a plan asks for the recipe of every run, and most runs share theirs.
_VALID: set[tuple[Path, str]] = set()


def validate(
    content: Any, schema_path: Path, *, source: str | Path, layers: Sequence[tuple[str | Path, Any]] = ()
) -> None:
    """Check ``content`` against a schema file; the same content is checked once.

    Args:
        layers: what ``content`` was merged from, (source, content), the one with the last word first.

    Raises:
        ConfigError: names the layer that holds the first fault, else ``source``, the key and what is allowed.
    """
    known = (Path(schema_path), json.dumps(content, default=repr))
    if known not in _VALID:
        if fault := find_fault(content, _validator_of(Path(schema_path))):
            raise ConfigError(f"{layer_of(fault_path(fault), layers, source)}: {explain(fault)}")
        _VALID.add(known)


def fault_path(fault) -> tuple[str, ...]:
    """The key that a fault is about: of an unknown one the key itself, of a missing one the mapping."""
    path = tuple(str(part) for part in fault.absolute_path)
    if fault.validator == "additionalProperties":
        unknown = (key for key in fault.instance if key not in fault.schema.get("properties", {}))
        return (*path, *list(unknown)[:1])
    return path


def layer_of(path: Sequence[str], layers: Iterable[tuple[str | Path, Any]], otherwise: str | Path) -> str | Path:
    """The first of ``layers``, (source, content), that writes the key at ``path``, or what holds it."""
    return next((source for source, content in layers if _writes(content, path)), otherwise)


def _writes(content: Any, path: Sequence[str]) -> bool:
    for part in path:
        if not isinstance(content, Mapping):
            return True
        if part not in content:
            return False
        content = content[part]
    return bool(path)


def find_fault(content: Any, checked_by):
    """The first fault that a :func:`validator` finds, as :mod:`jsonschema` describes it; None where there is none."""
    import jsonschema

    # A key that is spelt wrong is also missing, and .nan also no number: say the former.
    order = jsonschema.exceptions.by_relevance(strong={"additionalProperties", "format"})
    return jsonschema.exceptions.best_match(checked_by.iter_errors(content), key=order)


def load(path: str | Path, schema_path: Path) -> dict[str, Any]:
    """A YAML file, checked against its schema. Treat the result as read-only: it is shared."""
    path = Path(path)
    content = read_yaml(path)
    status = path.stat()
    _check_file(path, status.st_mtime_ns, status.st_size, schema_path)
    return content


@functools.cache
def _check_file(path: Path, mtime_ns: int, size: int, schema_path: Path) -> None:
    validate(_parse(path, mtime_ns, size), schema_path, source=path)


def explain(error) -> str:
    """A fault as a sentence: the key, what is wrong with it, what is allowed."""
    key = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties" and isinstance(error.instance, Mapping):
        allowed = list(error.schema.get("properties", {}))
        unknown = [name for name in error.instance if name not in allowed]
        return f"in {key}: " + unknown_name(unknown[0], allowed, what="key")
    if error.validator == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"in {key}: the key {missing[0]!r} is missing; required: {', '.join(error.validator_value)}"
    if error.validator == "type":
        return f"{key}: {error.instance!r} has the wrong type; allowed: {_types(error.validator_value)}"
    if error.validator == "enum":
        return f"{key}: " + unknown_name(error.instance, [str(value) for value in error.validator_value], what="value")
    hint = error.schema.get("description") if isinstance(error.schema, Mapping) else None
    if error.validator == "format":
        return f"{key}: {error.instance!r} is not allowed; allowed: {hint or error.validator_value}"
    return f"{key}: {error.message}" + (f"; allowed: {hint}" if hint else "")


def _types(types: str | Iterable[str]) -> str:
    plain = {"number": "number (finite)", "integer": "integer (a whole number, such as 100)"}
    return " or ".join(plain.get(each, each) for each in ([types] if isinstance(types, str) else types))
