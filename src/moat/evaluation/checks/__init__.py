"""Checks whether a robust accuracy can be trusted. A check is a function with the decorator ``@check(name)``.

They look for the known ways in which a net only seems robust (masked, vanishing or random gradients, weak attacks,
routing that hides experts: Athalye et al., arXiv 1802.00420; Carlini et al., arXiv 1902.06705, section 5), and for the
known ways in which a reported number is wrong.
"""

# Imported for the checks that they register, in the order in which the checks run.
# isort: off
from moat.evaluation.checks import threat_model, outputs, routing, gradients, curves, strength, origin, calibration  # noqa: F401

# isort: on
from moat.evaluation.checks.registry import CheckResult, check, names
from moat.evaluation.checks.report import CheckReport, verify

__all__ = ["CheckReport", "CheckResult", "check", "names", "verify"]
