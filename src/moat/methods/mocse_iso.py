"""MoCSE with experts so narrow that all together have the parameters of one net; the recipe says how narrow."""

from moat.methods.mocse import Mocse

METHOD = Mocse
