"""moat: the reproducibility pipeline for adversarially robust mixture-of-experts image classifiers.

Importing the package costs nothing: torch is loaded by the subpackages that need it
(:mod:`moat.models.nets`, :mod:`moat.attacks`, :mod:`moat.evaluation`, …), never from here.
"""

__version__ = "0.1.0"
