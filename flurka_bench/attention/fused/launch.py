"""From tensors to launches of the fused kernels: shapes, strides, tiles, splits."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flurka_bench.attention.similarity import (
    RELU_EPSILON,
    FeatureMap,
)
from flurka_bench.attention.stages import stage
from flurka_bench.words.errors import RequestError, unknown

PROGRAMS_PER_PROCESSOR = (
    2  # as many as fill the GPU: where heads do not suffice, keys are split over programs
)
COMBINED_FEATURES = 16  # a small tile, since nothing is reused
NUM_STAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiles:
    """How a problem is cut: rows of keys or queries, features and head_dim of a tile, warps of a
    program."""

    rows: int
    features: int
    head_dim: int
    num_warps: int


def tiles(head_dim: int, num_features: int, dtype: torch.dtype) -> Tiles:
    """Powers of two of at least 16, which tensor cores need; as large as compile without spilling
    registers.

    Raises RequestError for heads that do not fit one tile and for float64.
    """
    most = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}.get(dtype, 0)
    if head_dim > most:
        accepted = "float16 and bfloat16 with head_dim up to 256, float32 up to 128"
        raise RequestError(
            f"fused kernels take {accepted}, got {dtype}, head_dim {head_dim}; the eager layer takes it"
        )
    block_d = max(16, 1 << (head_dim - 1).bit_length())
    if (
        dtype == torch.float32
    ):  # three tf32 products stand for one, so operands take three times the registers
        rows, most_features, num_warps = (32, 32, 8) if block_d <= 64 else (16, 32, 4)
    else:
        rows, most_features = 64, 64 if block_d <= 128 else 32
        num_warps = 4 if block_d <= 128 else 8
    features = max(16, min(most_features, 1 << (num_features - 1).bit_length()))
    return Tiles(rows=rows, features=features, head_dim=block_d, num_warps=num_warps)


def num_splits(num_keys: int, rows: int, programs: int, processors: int) -> int:
    """Over how many programs a head's keys are split: enough for the GPU, with at least four tiles
    each."""
    wanted = -(-PROGRAMS_PER_PROCESSOR * processors // programs)
    return max(1, min(wanted, num_keys // (4 * rows)))


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of the GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def fused_feature_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: FeatureMap,
    keep: Tensor | None = None,
    *,
    splits: int | None = None,
) -> Tensor:
    """What ``features(q, k, v, keep)`` computes, in two launches, three where keys are split. No
    gradient.

    q (b, h, N, d), k and v (b, h, L, d), the last dimension contiguous, any other strides; keep (b,
    L). The result is (b, h, N, d) with tokens first in memory, so merging heads is a view.
    ``splits``: for tests; None chooses.
    """
    from flurka_bench.attention.fused import kernels

    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    b, h, n, d = q.shape
    if b == 0:  # no program to launch
        return torch.empty_like(q)
    num_keys, m = k.shape[2], features.num_features
    if features.name not in kernels.KINDS:
        raise unknown("feature map of the fused kernels", features.name, kernels.KINDS)
    kind = kernels.KINDS[features.name]
    tile = tiles(d, m, q.dtype)
    num_blocks = -(-m // tile.features)
    if splits is None:
        splits = num_splits(num_keys, tile.rows, b * h * num_blocks, num_processors(q.device))
    keys_per_split = -(-num_keys // (splits * tile.rows)) * tile.rows
    splits = -(-num_keys // keys_per_split)

    omega = (
        q if features.omega is None else features.omega.contiguous()
    )  # elu has none: any pointer will do
    keep_bytes = q if keep is None else keep.contiguous().view(torch.uint8)
    epsilon = torch.finfo(q.dtype).eps if features.omega is None else RELU_EPSILON
    # three tf32 products make up a float32 one to rounding; exact float32 products would bypass the
    # tensor cores
    precision = "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"
    common = {"KIND": kind, "BLOCK_M": tile.features, "BLOCK_D": tile.head_dim}
    dots = {"UPCAST": not q.is_cuda, "PRECISION": precision}

    def sums(parts: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        z, c = torch.empty(2, b * h, parts, m, device=q.device, dtype=torch.float32)
        return torch.empty(b * h, parts, m, d, device=q.device, dtype=dtype), z, c

    with stage("key_value"):
        s, z, c = sums(splits, q.dtype if splits == 1 else torch.float32)
        kernels.key_side[(num_blocks * splits, b * h)](
            k, v, omega, keep_bytes, s, z, c, *k.stride()[:3], *v.stride()[:3],
            h, num_keys, m, d, keys_per_split, splits, 0.5 / math.sqrt(d), epsilon, 1 / num_keys if splits == 1 else 1.0,
            FINAL=splits == 1, HAS_MASK=keep is not None, BLOCK_L=tile.rows,
            num_warps=tile.num_warps, num_stages=NUM_STAGES, **common, **dots,
        )  # fmt: skip
        if splits > 1:
            parts, (s, z, c) = (s, z, c), sums(1, q.dtype)
            grid = (-(-m // COMBINED_FEATURES), b * h)
            blocks = {**common, "BLOCK_M": COMBINED_FEATURES}
            kernels.combine[grid](*parts, s, z, c, splits, m, d, 1 / num_keys, **blocks)
    with stage("output"):
        out = torch.empty(b, n, h, d, device=q.device, dtype=q.dtype).transpose(1, 2)
        kernels.query_side[(-(-n // tile.rows), b * h)](
            q, omega, s, z, c, out, *q.stride()[:3], *out.stride()[:3], h, n, m, d, epsilon,
            GROUP=tile.features if splits == 1 else COMBINED_FEATURES, BLOCK_N=tile.rows,
            num_warps=tile.num_warps, num_stages=NUM_STAGES, **common, **dots,
        )  # fmt: skip
    return out


class FusedFeatures(nn.Module):
    """A feature map whose attention runs in the fused kernels. Takes the place of the
    ``FeatureMap`` it holds."""

    any_strides = True

    def __init__(self, features: FeatureMap) -> None:
        super().__init__()
        self.features = features
        self.name = features.name

    @property
    def omega(self) -> Tensor | None:
        """The feature map's Omega (d, m)."""
        return self.features.omega

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """As ``FeatureMap.redraw``."""
        self.features.redraw(generator)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """As ``FeatureMap.forward``, without a gradient."""
        return fused_feature_attention(q, k, v, self.features, keep)
