"""An expert of DWF that sees clean images only (arXiv 2512.20821, first stage)."""

from moat.methods.standard import Standard

METHOD = Standard
