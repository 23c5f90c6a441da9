"""Hybrid with FGSM augmentation: the recipe's attack is one step of size epsilon from the clean image."""

from moat.methods.hybrid import Hybrid

METHOD = Hybrid
