"""The errors a user can meet, each with the exit code of the command that raises it.

A message names the value, where it came from and what is allowed. Everything else that escapes is
a defect of moat and ends with a traceback and exit code 1.
"""


class MoatError(Exception):
    """Something went wrong that the user can understand from one line. Exit code 1."""

    exit_code = 1


class ConfigError(MoatError, ValueError):
    """Wrong usage or configuration. Exit code 2."""

    exit_code = 2


class DataError(MoatError):
    """Data that is missing, corrupt or not what it claims to be. Exit code 3."""

    exit_code = 3


class TrainingError(MoatError):
    """A training that cannot go on, e.g. a loss that is no longer finite. Exit code 1."""


class Interrupted(MoatError):
    """Stopped by SIGTERM with everything saved; the same command resumes. Exit code 75."""

    exit_code = 75
