"""Seconds of fused attention, softmax(Q K^T / sqrt(d)) V: matrix products, exponentials, and query
tiles in waves.

A block works on a tile of queries and walks the keys block by block: two products on the matrix
units, and an exponential a score on the special function units, which the kernels hide only in
part. Tiles fill the SMs in waves; where there are fewer tiles than SMs, the newer kernels split the
keys and add the parts up in a second kernel. The rules of each generation are those of its
published source (github.com/Dao-AILab/flash-attention: FlashAttention 2 csrc/flash_attn/src, 3
hopper/tile_size.h and heuristics.h, 4 flash_attn/cute/interface.py; PyTorch's memory-efficient
kernel from xFormers).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flurka_bench.cost.matmul import (
    MatmulConstants,
    power_s,
)
from flurka_bench.cost.matmul import constants_of as matmul_constants
from flurka_bench.cost.terms import (
    Terms,
    constants_of,
    dram_bandwidth_bytes_per_s,
    launch_of,
    shipped_table,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.sizes import DTYPE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One generation of fused attention kernels.

    ``tiles`` maps the largest head_dim to (query rows, key columns) of a block. ``emulated`` is the
    share of exponentials computed as polynomials on the vector lanes (FlashAttention 4).
    ``resident`` blocks share an SM and hide each other's start and end. ``split`` names the rule
    for splitting the keys. ``group`` rows of a tile belong to one group of warps, which idles where
    there are fewer queries.
    """

    tiles: tuple[tuple[int, int, int], ...]
    emulated: float = 0.0
    resident: int = 1
    group: int = 128
    split: str = "none"


PADDED_HEAD_DIMS = (32, 64, 96, 128, 192, 256)
KERNELS = {
    "flash2": Kernel(tiles=((64, 128, 128), (1024, 128, 64)), resident=2),
    "flash3": Kernel(
        tiles=((64, 192, 192), (96, 192, 144), (1024, 128, 176)), group=64, split="efficiency"
    ),
    "flash4": Kernel(tiles=((1024, 256, 128),), emulated=0.25, split="idle"),
    "efficient": Kernel(tiles=((64, 64, 64), (1024, 32, 128)), resident=2),
}
DRAM_EFFICIENCY = 0.9  # of the usable bandwidth; no row is bound by it
SCORE_LANE_OPS = 3  # a score's comparison, scaled subtraction and sum
MAX_SPLITS = 128
MIN_SPLIT_BLOCKS = 5  # both rules leave four blocks of keys or fewer in one piece


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConstants:
    """What the datasheet does not say."""

    matmul_efficiency: float  # of the matrix units' peak, inside a tile
    # share of the softmax's time (exponentials, lane operations) that the products do not hide
    exposed_softmax: float
    rescale_clocks: float  # of an SM an output element, each time a block of keys moves the maximum
    tile_s: float  # start and end of a tile: loads of Q, stores of O, barriers
    alone_slowdown: float  # a block that shares its SM with no other hides less of its own latency
    combine_s: float  # the second kernel after a split
    combine_traffic: float  # partial results written and read, in units of one pass each
    sustained_slowdown: float  # clocks of long calls fall by this
    sustained_window_s: float
    backward_efficiency: float  # of the forward's rate, per product
    floor_s: float  # an empty kernel's own time
    launch_eager_s: float
    launch_graph_s: float
    host_overlap: float


def attention_constants(
    profile: Profile, dtype: str, table: Mapping[str, Any] | None = None
) -> AttentionConstants:
    """The constants for a dtype on a device."""
    return constants_of(
        AttentionConstants,
        (table or shipped_table())["attention"],
        profile.measured.constants("attention"),
        profile.measured.constants("attention", dtype),
    )


def kernel_of(profile: Profile, dtype: str) -> Kernel:
    """The generation that ``scaled_dot_product_attention`` runs: flash kernels are for 16-bit
    dtypes alone."""
    name = profile.attention_kernel if DTYPE_BYTES[dtype] == 2 else "efficient"
    return KERNELS.get(name, KERNELS["efficient"])


def attention_terms(
    profile: Profile,
    dtype: str,
    heads: Any,
    queries: Any,
    keys: Any,
    head_dim: Any,
    *,
    products: Any = 2.0,
    exponentials: Any = 1.0,
    backward: bool = False,
    bytes_moved: Any = None,
    launch: str = "graph",
    constants: AttentionConstants | None = None,
    board: MatmulConstants | None = None,
    real: Any = np.float32,
) -> Terms:
    """Seconds of fused attention over ``heads`` (batch x heads), elementwise over arrays that
    broadcast; never less than the peak FLOP/s allow.

    Args:
        products: of (queries, keys, head_dim): 2 forward, 5 backward with its recomputation, 1
            where features replace the scores and need no product (elu + 1).
        exponentials: a score: 1 for softmax, 0 for ReLU features, which need no running maximum.
        backward: whether the backward kernel's efficiency applies.
        bytes_moved: operands and results once; by default q, k, v and the output.
        board: whose energy per FLOP counts; by default that of the dtype's matmuls.
        launch, constants, real: as for ``elementwise_terms``.
    """
    c = constants or attention_constants(profile, dtype)
    sizes = np.broadcast_arrays(
        *(np.asarray(x, dtype=real) for x in (heads, queries, keys, head_dim))
    )
    shape = sizes[0].shape
    products, exponentials = (
        np.broadcast_to(np.asarray(x, dtype=real), shape).ravel() for x in (products, exponentials)
    )
    heads, queries, keys, head_dim = (np.atleast_1d(x).ravel() for x in sizes)
    if bytes_moved is None:
        bytes_moved = DTYPE_BYTES[dtype] * 2 * heads * head_dim * (queries + keys)
    peak = profile.peak_flops[profile.matmul_unit(dtype)]
    one = _Call(profile, kernel_of(profile, dtype), c, heads, queries, keys, head_dim)
    efficiency = c.matmul_efficiency * (c.backward_efficiency if backward else 1.0)
    multiply = one.padded * products * real(2 * profile.num_sms / (peak * efficiency))
    special, rescale = one.softmax_s(products, exponentials)
    busy, combine = one.busy_s(multiply + special + rescale)
    done = 2 * products * heads * np.ceil(queries / one.rows) * one.rows * keys * one.padded
    power_of = board or matmul_constants(profile, dtype)
    busy = busy + power_s(power_of, profile.tdp_w, done, 0, busy)
    memory = np.asarray(bytes_moved, dtype=real).ravel() * real(1 / one.bandwidth)
    flops = 2 * products * heads * queries * keys * head_dim
    on_device = np.maximum(np.maximum(busy, memory), flops * real(1 / peak)) + real(c.floor_s)
    share = special / (multiply + special + rescale)
    return Terms(
        **launch_of(c, launch),
        kernel=on_device, compute=busy * (1 - share), special=busy * share,
        memory=np.broadcast_to(memory, busy.shape), latency=combine + real(c.floor_s),
    ).reshaped(shape)  # fmt: skip


class _Call:
    """How the blocks of calls walk their scores: arrays of one length."""

    def __init__(
        self,
        profile: Profile,
        kernel: Kernel,
        constants: AttentionConstants,
        heads: np.ndarray,
        queries: np.ndarray,
        keys: np.ndarray,
        head_dim: np.ndarray,
    ) -> None:
        real = self.real = heads.dtype.type
        self.c, self.kernel, self.profile = constants, kernel, profile
        self.results = heads * queries * head_dim
        self.bandwidth = dram_bandwidth_bytes_per_s(profile, DRAM_EFFICIENCY)
        # queries of a tile where there are enough of them, and keys of a step
        self.full_rows, self.columns = _tile(kernel, head_dim)
        padded = np.asarray(PADDED_HEAD_DIMS, dtype=real)[
            np.minimum(np.searchsorted(PADDED_HEAD_DIMS, head_dim), 5)
        ]
        self.padded = np.maximum(padded, head_dim)  # head_dim of the instructions
        groups = np.ceil(queries / real(kernel.group))
        self.rows = np.minimum(self.full_rows, groups * real(kernel.group))
        blocks = np.ceil(keys / self.columns)
        tiles = heads * np.ceil(queries / self.rows)
        self.splits = _splits(kernel, tiles, blocks, profile.num_sms)  # pieces of the keys
        self.scores = (
            self.rows * self.columns * np.ceil(blocks / self.splits)
        )  # of a tile and piece
        self.waves = np.ceil(tiles * self.splits / real(profile.num_sms))

    def softmax_s(
        self, products: np.ndarray, exponentials: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Seconds a score on one SM: what the products do not hide of the exponentials, and
        rescaling."""
        real, c, profile = self.real, self.c, self.profile
        clocks = exponentials * real(
            (1 - self.kernel.emulated) / profile.special_per_clock_per_sm
        ) + real(SCORE_LANE_OPS / profile.vector_lanes_per_sm)
        moved = real(c.rescale_clocks / 2 / profile.boost_clock_hz)
        rescale = np.where(exponentials > 0, self.padded / self.columns * products * moved, real(0))
        return clocks * real(c.exposed_softmax / profile.boost_clock_hz), rescale

    def busy_s(self, score_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of all waves at so much a score, with the second kernel after a split; and of
        that kernel."""
        real, c = self.real, self.c
        resident = self.kernel.resident
        tile = self.rows / self.full_rows * real(c.tile_s / resident**2)
        alone = 1 + c.alone_slowdown * (self.waves == 1) if resident > 1 else 1.0
        busy = self.waves * (self.scores * score_s + tile) * alone
        # float32 out and in
        partial = real(8 * c.combine_traffic / self.bandwidth) * self.splits * self.results
        combine = np.where(self.splits > 1, real(c.combine_s) + partial, real(0))
        busy = busy + combine
        sustained = real(c.sustained_slowdown) * busy / (busy + real(c.sustained_window_s))
        return busy * (1 + sustained), combine


def _tile(kernel: Kernel, head_dim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(query rows, key columns) of a block, by head_dim."""
    limits = [limit for limit, _, _ in kernel.tiles]
    sizes = np.asarray([tile[1:] for tile in kernel.tiles], dtype=head_dim.dtype)
    picked = sizes[np.minimum(np.searchsorted(limits, head_dim), len(limits) - 1)]
    return picked[:, 0], picked[:, 1]


def _splits(kernel: Kernel, tiles: np.ndarray, blocks: np.ndarray, num_sms: int) -> np.ndarray:
    """Pieces that the keys are cut into.

    ``idle`` (FlashAttention 4): as many as SMs allow without a second wave. ``efficiency``
    (FlashAttention 3): the fewest within 15 % of the best use of the SMs in whole waves, but no
    piece shorter than an SM's even share of all blocks and 10 %.
    """
    one = np.ones_like(tiles)
    few = (blocks >= MIN_SPLIT_BLOCKS) & (
        tiles < (0.8 * num_sms if kernel.split == "efficiency" else num_sms)
    )
    at = np.flatnonzero(few)
    if kernel.split == "none" or not at.size:
        return one
    tiles, blocks = tiles[at], blocks[at]
    if kernel.split == "idle":
        one[at] = np.maximum(
            np.minimum(np.floor(num_sms / tiles), np.minimum(blocks, MAX_SPLITS)), 1
        )
        return one
    shortest = np.ceil(np.ceil(1.1 * tiles * blocks) / num_sms)
    one[at] = np.minimum(np.ceil(blocks / shortest), _efficient(tiles, blocks, num_sms))
    return one


def _efficient(tiles: np.ndarray, blocks: np.ndarray, num_sms: int) -> np.ndarray:
    counts = np.arange(1, min(MAX_SPLITS, num_sms) + 1, dtype=tiles.dtype)
    waves = tiles[:, None] * counts / num_sms
    use = waves / np.ceil(
        waves - 1e-4
    )  # float32: a whole number of waves may come out a hair above
    use[counts > blocks[:, None]] = 0
    good = use >= 0.85 * use.max(axis=1, keepdims=True)
    fewest: np.ndarray = good.argmax(axis=1) + tiles.dtype.type(1)
    return fewest
