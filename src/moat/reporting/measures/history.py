"""What the epochs of a training left in history.csv: for figures, not a number of its own."""

READS = ("record",)
UNIT = ""


def measure(cell, runs, results):
    return dict.fromkeys(("measured", "measured_std", "ci_low", "ci_high", "n"))


def show(value: float) -> str:
    return f"{value:g}"
