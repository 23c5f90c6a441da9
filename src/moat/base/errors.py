"""The errors that users meet, each with the exit code of the command that raises it.

A message names the value, where it came from and what is allowed. Any other exception that reaches the command line is
a bug in moat: it ends in a traceback and exit code 1.
"""

import difflib
from collections.abc import Iterable


class MoatError(Exception):
    """An error that one line explains to the user. Exit code 1."""

    exit_code = 1


class ConfigError(MoatError, ValueError):
    """Wrong usage or configuration. Exit code 2."""

    exit_code = 2


class DataError(MoatError):
    """Data that is missing, corrupt or not what it claims to be. Exit code 3."""

    exit_code = 3


class TrainingError(MoatError):
    """Training cannot continue, for example because the loss is NaN. Exit code 1."""


class Interrupted(MoatError):
    """Stopped by a signal after saving everything; the same command resumes. Exit code 75."""

    exit_code = 75


def kind_of(value: object) -> str:
    """The type of a value as messages say it: ``a tuple``, ``an int``."""
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"


def unknown_name(name: object, allowed: Iterable[str], *, what: str) -> str:
    """The error message for an unknown ``what``: the name, the closest match, and every allowed name."""
    allowed, meant = sorted(allowed), str(name).lower()
    lower = {each.lower(): each for each in reversed(allowed)}
    shortened = [each for each in sorted(lower) if meant.startswith(each) or each.startswith(meant)] if meant else []
    near = [lower[each] for each in shortened[:1] or difflib.get_close_matches(meant, lower, n=1)]
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}{guess}; allowed: {', '.join(allowed) or 'none'}"
