"""Multiply-adds of one image, of the operators that really run (of a routed net those of the chosen expert)."""

from moat.reporting.measures._costs import field, from_records
from moat.reporting.records import quantity

READS = ("record",)
UNIT = ""


def measure(cell, runs, results):
    return from_records(runs, results, field("macs_per_image", results))


show = quantity
