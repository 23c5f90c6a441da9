"""Numbers as robustness papers write them."""

import math
from fractions import Fraction

from moat.base.errors import ConfigError


def parse_number(value: str | int | float, *, where: str = "value") -> float:
    """Parse ``"8/255"``, ``"0.031"``, ``0.03`` or ``8`` as a float. Nothing else in the package parses fractions.

    Args:
        where: where the value came from, for the error message.

    Raises:
        ConfigError: not a number.
    """
    text = str(value).replace(" ", "")
    try:
        # As a fraction 1e99999999 would be written out, digit by digit.
        number = float(Fraction(text)) if "/" in text else float(value if isinstance(value, (int, float)) else text)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        shown = repr(value) if len(text) < 50 else f"{text[:50]!r}…"
        raise ConfigError(f"{where}: {shown} is not a finite number; write 8/255 or 0.031") from error
    return number
