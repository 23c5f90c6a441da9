"""MART with the optimizer, schedule and attack of its authors' ResNet-18 recipe; the loss is that of ``mart``."""

from moat.methods.mart import Mart

METHOD = Mart
