"""Fused Triton kernels for attention by features (kernel-* and flurka-*), forward only, NVIDIA
GPUs."""

from typing import TYPE_CHECKING

from flurka_bench.attention.fused.launch import (
    FusedFeatures,
    fused_feature_attention,
)

if TYPE_CHECKING:
    from flurka_bench.attention.modules import AttentionLayer

__all__ = ["FusedFeatures", "fuse", "fused_feature_attention"]


def fuse(layer: "AttentionLayer") -> "AttentionLayer":
    """The same layer (kernel or FLuRKA attention), its similarity running in the fused kernels from
    now on."""
    layer.similarity = FusedFeatures(layer.similarity)
    return layer
