"""ADVMoE with the attack of its released code, two steps of 5/255; the rest is :mod:`moat.methods.advmoe`."""

from moat.methods.advmoe import AdvMoe

METHOD = AdvMoe
