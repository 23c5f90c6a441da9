"""Numbers as robustness papers write them."""

from fractions import Fraction

from moat.base.errors import ConfigError


def parse_number(value: str | int | float, *, where: str = "value") -> float:
    """Parse ``"8/255"``, ``"0.031"``, ``0.03`` or ``8`` as a float. Nothing else in the package parses fractions.

    Args:
        where: where the value came from, for the error message.

    Raises:
        ConfigError: not a number.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    try:
        return float(Fraction(str(value).replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: {value!r} is not a number; write 8/255 or 0.031") from error
