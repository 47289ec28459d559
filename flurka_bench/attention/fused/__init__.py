"""Fused Triton kernels for attention by features (kernel-* and flurka-*), forward only, NVIDIA GPUs."""

from flurka_bench.attention.fused.launch import FusedFeatures, fused_feature_attention

__all__ = ["FusedFeatures", "fused_feature_attention"]
