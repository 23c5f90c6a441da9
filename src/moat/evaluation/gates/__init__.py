"""Gates: automatic checks that a robust accuracy can be trusted. A gate is one function with ``@gate(name)``.

What the gates look for are the known ways in which a net only seems robust: masked, vanishing or randomised
gradients, weak attacks, routes that hide the experts (Athalye et al., arXiv 1802.00420; Carlini et al., arXiv
1902.06705, section 5), and the known ways in which a number is not what it says.
"""

# Imported for the gates that they register, in this order.
# isort: off
from moat.evaluation.gates import threat_model, outputs, routing, gradients, curves, strength, origin, calibration  # noqa: F401

# isort: on
from moat.evaluation.gates.registry import GateResult, gate, names
from moat.evaluation.gates.report import GateReport, verify

__all__ = ["GateReport", "GateResult", "gate", "names", "verify"]
