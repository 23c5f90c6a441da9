"""YAML files, each read once and checked against a closed schema.

The schemas are ``workflow/schemas/<kind>.schema.yaml``. An unknown key, a wrong type or a value
outside the allowed ones ends with one line: the file, the key, and what is allowed.
"""

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from moat.base.errors import ConfigError, unknown_name
from moat.base.numbers import parse_number

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _UniqueKeyLoader(_Loader):
    """A safe loader that refuses a key written twice: YAML would silently keep the last one."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {key!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


@functools.cache
def _parse(path: Path, mtime_ns: int, size: int) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


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
    return jsonschema.Draft202012Validator(schema, format_checker=formats)


@functools.cache
def _validator_of(schema_path: Path):
    return validator(read_yaml(schema_path))


def _is_distance(value: Any) -> bool:
    """Whether a number, or a fraction such as "8/255", lies between 0 and 1. JSON Schema's bounds see no strings."""
    return 0 <= parse_number(value) <= 1


# What has been found valid: a plan asks for the recipe of every run, and most runs share theirs.
_VALID: set[tuple[Path, str]] = set()


def validate(content: Any, schema_path: Path, *, source: str | Path) -> None:
    """Check ``content`` against a schema file; the same content is checked once.

    Raises:
        ConfigError: names ``source``, the key and what is allowed, for the first fault found.
    """
    known = (Path(schema_path), json.dumps(content, default=repr))
    if known not in _VALID:
        if fault := find_fault(content, _validator_of(Path(schema_path))):
            raise ConfigError(f"{source}: {explain(fault)}")
        _VALID.add(known)


def find_fault(content: Any, checked_by):
    """The first fault that a :func:`validator` finds, as :mod:`jsonschema` describes it; None where there is none."""
    import jsonschema

    return jsonschema.exceptions.best_match(checked_by.iter_errors(content))


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
    return types if isinstance(types, str) else " or ".join(types)
