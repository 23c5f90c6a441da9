"""Mixtures of experts: models whose parts are chosen, or weighted, for each image."""

from moat.moe.mixtures import build_mixture

__all__ = ["build_mixture"]
