"""The functional cores: attention over q, k, v (b, h, N, d) -> (b, h, N, d). FLuRKA is both choices
made.

All are non-causal. ``keep_mask``, bool (b, N), is True where a key is kept; ``key_padding_mask`` has
the meaning of ``nn.MultiheadAttention``, True where a key is padding. Give one of the two, or none:
anything else raises RequestError. What padded rows of k and v hold changes nothing, exactly. A
sequence padded at its end gives what it gives alone, to rounding; one without a kept key gives
zeros and zero gradients.
"""

import torch
from torch import Tensor, nn

from flurka_bench.attention.compression import Compression
from flurka_bench.attention.masks import (
    attended_keys,
    kept_keys,
    zero_padding,
)
from flurka_bench.attention.similarity import (
    FeatureMap,
    Softmax,
)
from flurka_bench.attention.stages import stage


def compressed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    similarity: Softmax | FeatureMap,
    compression: Compression | None = None,
    keep_mask: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Any of the ten mechanisms: an optional compression of keys and values, then a similarity.

    Kernels: compress: those of ``Compression.head_rows`` for keys and for values; then those of the
        similarity.
    """
    keep = kept_keys(keep_mask, key_padding_mask, k, k.shape[-2])
    if keep is not None:
        k, v = (zero_padding(t, keep[:, None]) for t in (k, v))
    if compression is not None:
        with stage("compress"):
            k, v = compression.head_rows(k, False, keep), compression.head_rows(v, True, keep)
        keep = compression.kept_rows(keep)
    return similarity(q, k, v, attended_keys(keep))


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    sdpa: bool = True,
    keep_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, by ``scaled_dot_product_attention`` or with the scores
    materialised."""
    return compressed_attention(
        q, k, v, Softmax(sdpa=sdpa), None, keep_mask, key_padding_mask=key_padding_mask
    )


def linformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    compression: Compression,
    *,
    sdpa: bool = True,
    keep_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """softmax(q (E k)^T / sqrt(d)) (F v) (Wang et al. 2020, equation 7)."""
    return compressed_attention(
        q, k, v, Softmax(sdpa=sdpa), compression, keep_mask, key_padding_mask=key_padding_mask
    )


def performer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: FeatureMap,
    *,
    keep_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """phi(q) (phi(k)^T v) / (phi(q) phi(k)^T 1) (Choromanski et al. 2021, equation 4; Katharopoulos
    et al. 2020)."""
    return compressed_attention(
        q, k, v, features, None, keep_mask, key_padding_mask=key_padding_mask
    )


def flurka_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    compression: Compression,
    features: FeatureMap,
    *,
    keep_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """phi(q) (phi(E k)^T F v) / (phi(q) phi(E k)^T 1) (FLuRKA, arXiv 2306.15799)."""
    return compressed_attention(
        q, k, v, features, compression, keep_mask, key_padding_mask=key_padding_mask
    )


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(b, N, h * d) -> (b, h, N, d): a view if b = 1, else 1 copy, since batched products need one
    stride over b and h."""
    heads = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads if x.shape[0] == 1 else heads.contiguous()


def merge_heads(x: Tensor) -> Tensor:
    """(b, h, N, d) -> (b, N, h * d). 1 copy (a view where SDPA returns tokens first)."""
    return x.transpose(1, 2).flatten(2)


def head_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (b, h, r, c) times one matrix per head, weight (h, c, o) -> (b, h, r, o).

    Kernels: a copy of x if b > 1, then 1 matmul of h products (b * r, c) @ (c, o).
    """
    b, h, r, c = x.shape
    folded = x.transpose(0, 1).reshape(h, b * r, c)
    return torch.bmm(folded, weight).view(h, b, r, weight.shape[-1]).transpose(0, 1)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., in) @ weight^T (out, in). 1 matmul."""
    return nn.functional.linear(x, weight)
