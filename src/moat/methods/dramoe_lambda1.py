"""DRAMoE with lambda 1, for at 0.001 the router hardly ever changes a sign; the difference is in the recipe."""

from moat.methods.dramoe import Dramoe

METHOD = Dramoe
