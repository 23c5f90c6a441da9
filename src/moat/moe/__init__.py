"""Mixtures of experts: models whose parts are chosen, or weighted, for each image."""

from moat.moe.channel_experts import ChannelExpertConv2d
from moat.moe.detached import detached_router
from moat.moe.mixtures import build_mixture
from moat.moe.moe_cnn import MoeCnn, build_moe_cnn

__all__ = ["ChannelExpertConv2d", "MoeCnn", "build_mixture", "build_moe_cnn", "detached_router"]
