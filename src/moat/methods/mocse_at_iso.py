"""Adversarially trained MoCSE with the parameters of one net; the recipe says how narrow its experts are."""

from moat.methods.mocse_at import MocseAt

METHOD = MocseAt
