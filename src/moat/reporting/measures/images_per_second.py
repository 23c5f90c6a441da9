"""Images per second of the training, over all its epochs."""

from moat.reporting.measures._costs import field, from_records, other_hardware
from moat.reporting.records import quantity

READS = ("record",)
UNIT = "images/s"
reasons = other_hardware
show = quantity


def measure(cell, runs, results):
    return from_records(runs, results, field("images_per_second", results))
