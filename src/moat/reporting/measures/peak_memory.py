"""Largest memory of the training in GB (10^9 bytes): of the GPU where there is one, else of the process."""

from moat.reporting.measures._costs import from_records, other_hardware

READS = ("record",)
UNIT = "GB"
reasons = other_hardware


def measure(cell, runs, results):
    def read(run):
        peak = (results.run(run) or {}).get("peak_memory_bytes")
        return None if peak is None else peak / 1e9

    return from_records(runs, results, read)


def show(value: float) -> str:
    return f"{value:.2f}"
