"""A mechanism as a ``Candidate``: its implied attention matrix in two thin factors, and the output
of the real implementation.

Everything that approximates is taken from ``flurka_bench.attention``: the compression, the softmax
and the feature maps are the modules users run. Only how the pieces multiply to a matrix, which no
user needs, is written here; ``metrics.measure`` checks in every case that the factors give the
implementation's own output.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flurka_bench import attention
from flurka_bench.attention.compression import Compression
from flurka_bench.attention.functional import compressed_attention
from flurka_bench.attention.similarity import FeatureMap, Softmax
from flurka_bench.kinds.error.inputs import Draw
from flurka_bench.kinds.error.metrics import (
    Candidate,
    Reference,
)
from flurka_bench.words import parts

# Softmax in one kernel gives the same numbers.
SIMILARITIES = tuple(name for name in parts.SIMILARITIES if name != "sdpa")


def feature_map(
    similarity: str, *, head_dim: int, num_features: int | None, source: torch.Generator
) -> FeatureMap | None:
    """The feature map of a similarity, its random features drawn from ``source``; None for
    softmax."""
    if similarity == "softmax":
        return None
    is_random = parts.similarity(similarity).features == "random"
    return attention.feature_map(
        similarity,
        head_dim=head_dim,
        num_features=num_features if is_random else None,
        generator=source,
        dtype=torch.float64,
    ).eval()


@dataclass(frozen=True, slots=True)
class Similarity:
    """Attention of queries to L given keys, by softmax (``features`` None) or by a feature map."""

    keys: Tensor  # (h, L, d)
    features: FeatureMap | None

    def factors(self) -> tuple[Callable[[Tensor], Tensor], Tensor | None]:
        """``left(q)`` (h, n, r) and ``right`` (h, r, L), None for the identity; left @ right is the
        attention's rows."""
        features = self.features
        if features is None:
            scaled = self.keys.mT / math.sqrt(self.keys.shape[-1])
            return (lambda q: torch.softmax(q @ scaled, dim=-1)), None
        phi_k, shift = features.key_features(self.keys.unsqueeze(0))
        total = phi_k.sum(-2, keepdim=True)

        def left(q: Tensor) -> Tensor:
            phi_q = features.query_features(q.unsqueeze(0), shift)
            return (phi_q / (phi_q * total).sum(-1, keepdim=True)).squeeze(0)

        return left, phi_k.squeeze(0).mT

    def attention(self, q: Tensor) -> Tensor:
        """Rows of the attention itself, (h, n, d) -> (h, n, L)."""
        left, right = self.factors()
        return left(q) if right is None else left(q) @ right


def compression(E: Tensor, F: Tensor, *, kind: str = "dense") -> Compression:
    """The implementation's compression with given E and F (k, N), heads sharing them; mean-pool has
    none of its own."""
    rank, seq_len = E.shape
    module = attention.make_compression(
        kind, seq_len=seq_len, rank=rank, num_heads=1, share_kv=E is F, dtype=torch.float64
    )
    with torch.no_grad():
        if module.weight_k is not None:
            module.weight_k.copy_(E)
        if module.weight_v is not None:
            module.weight_v.copy_(F)
    return module.requires_grad_(False)


def is_stochastic(F: Tensor) -> bool:
    """Whether F's rows are distributions over positions, so that attention over compressed keys
    implies one over positions."""
    return bool((F >= 0).all()) and torch.allclose(
        F.sum(-1), torch.ones((), dtype=F.dtype), atol=1e-9
    )


def _core(
    draw: Draw, features: FeatureMap | None, module: Compression | None = None
) -> Callable[[Tensor], Tensor]:
    """The output (h, n, d) of the implementation's functional core for a block of queries."""
    similarity = Softmax(sdpa=False) if features is None else features
    k, v = draw.k.unsqueeze(0), draw.v.unsqueeze(0)
    return lambda q: compressed_attention(q.unsqueeze(0), k, v, similarity, module).squeeze(0)


def uncompressed(draw: Draw, features: FeatureMap) -> Candidate:
    """A kernel mechanism: features of all N keys."""
    left, right = Similarity(draw.k, features).factors()
    assert right is not None  # features have a right factor
    return Candidate(lambda q, _: left(q), right, _core(draw, features), is_distribution=True)


def compressed_keys(
    draw: Draw, E: Tensor, features: FeatureMap | None, *, kind: str = "dense"
) -> Similarity:
    """Attention of the queries to the k compressed keys."""
    return Similarity(
        compression(E, E, kind=kind).head_rows(draw.k.unsqueeze(0)).squeeze(0), features
    )


def compressed(
    draw: Draw,
    E: Tensor,
    F: Tensor,
    features: FeatureMap | None,
    *,
    kind: str = "dense",
    parent_F: Tensor | None = None,
) -> Candidate:
    """A low-rank mechanism (``features`` None) or a FLuRKA: the similarity on EK and FV.

    A FLuRKA's parents are the low-rank mechanism with the same E and F (or ``parent_F``, where F
    was fitted to each) and the kernel with the same features.
    """
    left, right = compressed_keys(draw, E, features, kind=kind).factors()
    parents = {}
    if features is not None:
        parent = compression(E, F if parent_F is None else parent_F, kind=kind)
        parents = {"low_rank": _core(draw, None, parent), "kernel": _core(draw, features)}
    return Candidate(
        lambda q, _: left(q),
        F if right is None else right @ F,
        _core(draw, features, compression(E, F, kind=kind)),
        parents=parents,
        is_distribution=is_stochastic(F),
    )


def optimal(vectors: Tensor, rank: int) -> Candidate:
    """The best approximation of rank k: full attention projected on its first k right singular
    vectors (h, >=k, N)."""
    right = vectors[:, :rank]
    return Candidate(lambda _, attention: attention @ right.mT, right)


def reference(draw: Draw, **options: int) -> Reference:
    """Full attention of a draw."""
    return Reference(draw.q, draw.k, draw.v, **options)
