"""DRAMoE without its attention router: RGAT with global pooling; the difference is in the recipe."""

from moat.methods.dramoe import Dramoe

METHOD = Dramoe
