"""Everything that makes a model faster and changes no result beyond rounding.

:mod:`moat.models` holds the definitions; here are their fast twins, each equal to its definition. There are two doors:

- :func:`for_training` puts fast twins in place, in a model that is trained or evaluated itself;
- :func:`for_attack` makes a frozen, fast copy for an attack's gradients. :class:`AttackCopy` is that copy for a model
  that is being trained, and :func:`attack_copy` the copy of an unchanged model, made once.

For attacks that look into a copy: :func:`trace` gives the graph of its forward pass, and :func:`convolve_unpadded`
calls one of its convolutions on a part of a map. :func:`compiled_for` says what this machine can do.

Nothing else of this package is used outside of it.
"""

from moat.kernels.copies import attack_copy
from moat.kernels.folding import AttackCopy, for_attack
from moat.kernels.tracing import convolve_unpadded, trace
from moat.kernels.twins import for_training
from moat.kernels.winograd import instructions as compiled_for

__all__ = [
    "AttackCopy",
    "attack_copy",
    "compiled_for",
    "convolve_unpadded",
    "for_attack",
    "for_training",
    "trace",
]
