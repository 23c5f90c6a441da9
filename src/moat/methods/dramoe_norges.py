"""DRAMoE whose attack is not guided by the router: lambda 0, early stopping kept; the difference is in the recipe."""

from moat.methods.dramoe import Dramoe

METHOD = Dramoe
