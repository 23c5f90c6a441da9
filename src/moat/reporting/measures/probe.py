"""What a probe took from a model: for figures, not a number of its own."""

READS = ("probe",)
UNIT = ""


def measure(cell, runs, results):
    return dict.fromkeys(("measured", "measured_std", "ci_low", "ci_high", "n"))


def show(value: float) -> str:
    return f"{value:g}"
