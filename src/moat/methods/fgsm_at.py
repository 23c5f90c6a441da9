"""FGSM adversarial training on half of each batch: the recipe's attack is one step of size eps from the clean image."""

from moat.methods.pgd_at_half import HalfBatch

METHOD = HalfBatch
