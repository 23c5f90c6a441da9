"""What figures use of matplotlib, which is imported here whatever ``MPLBACKEND`` says.

A notebook hands the name of its backend on to every process, and matplotlib refuses to be imported where that backend
is missing. Figures need none: they are drawn without pyplot. The variable, and the backend of the user's own pyplot,
stay as they are.
"""

import contextlib
import os
import sys

_BACKEND = "MPLBACKEND"
_first, _asked_for = "matplotlib" not in sys.modules, os.environ.pop(_BACKEND, None)
try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter
finally:
    if _asked_for is not None:
        os.environ[_BACKEND] = _asked_for
if _first and _asked_for:
    # As matplotlib does it, where it knows the backend.
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = _asked_for

__all__ = ["Figure", "Line2D", "LogFormatter", "Text", "matplotlib"]
