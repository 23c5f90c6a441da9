"""FAB, L-infinity, with Newton's method for its projections. Source: Croce and Hein, arXiv 1907.02044."""

import types

from pyautoattack import fab_base
from pyautoattack.fab_pt import FABAttack_PT

from moat.attacks.autoattack.fab_projection import project_linf

_THEIRS = fab_base.FABAttack.attack_single_run


class Fab(FABAttack_PT):
    """The package's FAB; its search finds another function under the name of the projection, and nobody else does."""

    attack_single_run = types.FunctionType(
        _THEIRS.__code__,
        {**vars(fab_base), "projection_linf": project_linf},
        _THEIRS.__name__,
        _THEIRS.__defaults__,
        _THEIRS.__closure__,
    )
