"""Checks: automatic checks that a robust accuracy can be trusted. A check is one function with ``@check(name)``.

What the checks look for are the known ways in which a net only seems robust: masked, vanishing or randomised
gradients, weak attacks, routes that hide the experts (Athalye et al., arXiv 1802.00420; Carlini et al., arXiv
1902.06705, section 5), and the known ways in which a number is not what it says.
"""

# Imported for the checks that they register, in this order.
# isort: off
from moat.evaluation.checks import threat_model, outputs, routing, gradients, curves, strength, origin, calibration  # noqa: F401

# isort: on
from moat.evaluation.checks.registry import CheckResult, check, names
from moat.evaluation.checks.report import CheckReport, verify

__all__ = ["CheckReport", "CheckResult", "check", "names", "verify"]
