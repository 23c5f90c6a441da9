"""DRAMoE with attention of its own per channel group (CGSA) in its router; the difference is in the recipe."""

from moat.methods.dramoe import Dramoe

METHOD = Dramoe
