"""Models as papers define them: nets (:mod:`moat.models.nets`) and mixtures of experts (:mod:`moat.models.moe`).

A project's own are in its folder ``plugins/models`` (:mod:`moat.base.plugins`): a module there has ``NETS`` or a
``MIXTURE``.
"""

from moat.base import plugins
from moat.models.moe import ChannelExpertConv2d, MoeCnn, build_mixture, build_moe_cnn, detached_router
from moat.models.nets import Classifier, build, count_macs, count_parameters, initialize, names

__path__ = plugins.SearchPath("models")

__all__ = [
    "ChannelExpertConv2d",
    "Classifier",
    "MoeCnn",
    "build",
    "build_mixture",
    "build_moe_cnn",
    "count_macs",
    "count_parameters",
    "detached_router",
    "initialize",
    "names",
]
