"""The ten mechanisms in PyTorch: a compression of keys and values, and a similarity. A library of
its own.

Modules over x (b, N, D) are here; functional cores over q, k, v (b, h, N, d) in
``attention.functional``.
"""

from flurka_bench.attention.compression import Compression, make_compression
from flurka_bench.attention.modules import (
    AttentionLayer,
    FLuRKAAttention,
    FullAttention,
    LinformerAttention,
    PerformerAttention,
)
from flurka_bench.attention.similarity import (
    FeatureMap,
    Softmax,
    feature_map,
)

__all__ = [
    "AttentionLayer",
    "Compression",
    "FLuRKAAttention",
    "FeatureMap",
    "FullAttention",
    "LinformerAttention",
    "PerformerAttention",
    "Softmax",
    "feature_map",
    "make_compression",
]
