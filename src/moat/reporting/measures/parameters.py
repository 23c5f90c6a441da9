"""Trainable and frozen parameters of the model."""

from moat.reporting.measures._costs import field, from_records
from moat.reporting.records import quantity

READS = ("record",)
UNIT = ""


def measure(cell, runs, results):
    return from_records(runs, results, field("parameters", results))


show = quantity
