"""Mixtures of experts: models whose parts are selected or weighted for each image."""

from moat.models.moe.channel_experts import ChannelExpertConv2d
from moat.models.moe.detached import detached_router
from moat.models.moe.mixtures import build_mixture
from moat.models.moe.moe_cnn import MoeCnn, build_moe_cnn

__all__ = ["ChannelExpertConv2d", "MoeCnn", "build_mixture", "build_moe_cnn", "detached_router"]
