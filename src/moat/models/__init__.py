"""Models as papers define them: nets (:mod:`moat.models.nets`) and mixtures of experts (:mod:`moat.models.moe`)."""

from moat.models.moe import ChannelExpertConv2d, MoeCnn, build_mixture, build_moe_cnn, detached_router
from moat.models.nets import Classifier, build, count_macs, count_parameters, initialize, names

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
