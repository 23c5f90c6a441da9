"""DRAMoE with one attention over all channels (GSA) in its router; the difference is in the recipe."""

from moat.methods.dramoe import Dramoe

METHOD = Dramoe
