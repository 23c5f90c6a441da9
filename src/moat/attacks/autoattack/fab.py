"""FAB, L-infinity, with Newton's method for its projections. Source: Croce and Hein, arXiv 1907.02044."""

import types

from pyautoattack import fab_base
from pyautoattack.fab_pt import FABAttack_PT

from moat.attacks.autoattack.fab_projection import project_linf

_PACKAGES_RUN = fab_base.FABAttack.attack_single_run


class Fab(FABAttack_PT):
    """The package's FAB. Only its search finds another function under the name of the projection."""

    attack_single_run = types.FunctionType(
        _PACKAGES_RUN.__code__,
        {**vars(fab_base), "projection_linf": project_linf},
        _PACKAGES_RUN.__name__,
        _PACKAGES_RUN.__defaults__,
        _PACKAGES_RUN.__closure__,
    )
