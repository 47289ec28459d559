"""Seconds of a row softmax: passes over a row, rows in flight, and the two kernels that PyTorch
switches between.

Up to 1,024 columns a warp keeps whole rows in registers: one read, one write, work padded to the
next power of two. Above, a block of threads walks each row three times (maximum, sum, result). Its
second and third reads come from L2 as long as the rows in flight fit there; its arithmetic, about
60 lane operations an element, bounds it on large caches; and its blocks fill the SMs in waves.
Source of the launch rules: aten/src/ATen/native/cuda/SoftMax.cu and PersistentSoftmax.cuh.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flurka_bench.cost.terms import (
    Terms,
    constants_of,
    dram_bandwidth_bytes_per_s,
    l2_bandwidth_bytes_per_s,
    launch_of,
    norm,
    resident_share,
    shipped_table,
)
from flurka_bench.hardware.profile import Profile

WARP_COLUMNS = 1024  # the widest row of the warp kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftmaxConstants:
    """What the datasheet does not say. Lane operations are those of one vector lane in one
    clock."""

    dram_efficiency: float
    block_lane_ops_per_row: float
    block_lane_ops_per_vector: (
        float  # loads, index arithmetic and loop of 16 bytes, idle lanes of a last step included
    )
    block_lane_ops_per_element: float  # two exact exponentials, comparison, sums
    warp_lane_ops_per_row: float
    warp_lane_ops_per_element: float
    miss_low: float  # rows in flight up to this share of L2 are found there by the later passes
    miss_width: float  # and from this much more they are not
    l2_bytes_per_clock_per_sm: float
    l2_low: float
    l2_high: float
    overlap_exponent: float
    lockstep_waves: (
        float  # rows of the first waves march in step, so that reading and arithmetic take turns
    )
    latency_s: float
    launch_eager_s: float
    launch_graph_s: float
    host_overlap: float


def softmax_constants(profile: Profile, table: Mapping[str, Any] | None = None) -> SoftmaxConstants:
    """The constants on a device."""
    shipped = (table or shipped_table())["softmax"]
    return constants_of(SoftmaxConstants, shipped, profile.measured.constants("softmax"))


def resident_threads(profile: Profile) -> int:
    """Threads that one SM holds: CUDA C++ Programming Guide, technical specifications by compute
    capability.

    2,048 from Pascal to Hopper and Blackwell, but 1,024 on Turing and 1,536 on the parts with 100
    KB of shared memory (compute capabilities 8.6, 8.9 and 12.0).
    """
    if profile.architecture == "turing":
        return 1024
    return 1536 if profile.shared_memory_per_sm_bytes == 102_400 else 2048


def softmax_terms(
    profile: Profile,
    rows: Any,
    cols: Any,
    *,
    itemsize: int = 4,
    bytes_read: Any = None,
    bytes_written: Any = None,
    passes: int = 3,
    l2_share: Any = None,
    launch: str = "eager",
    constants: SoftmaxConstants | None = None,
    real: type = np.float32,
) -> Terms:
    """Seconds of the softmax of ``rows`` rows of ``cols`` elements, elementwise over arrays that
    broadcast.

    Args:
        profile: the hardware target.
        rows, cols: sizes, at least 1.
        itemsize: bytes of an element.
        bytes_read, bytes_written: of the whole call, each operand once; by default one array in,
            one out.
        passes: walks over a row of the block kernel: 3 forward, 2 backward.
        l2_share: share of the first read and the write found in L2; None: that of the same call
            again and again.
        launch, constants, real: as for ``elementwise_terms``.
    """
    c = constants or softmax_constants(profile)
    rows, cols = np.broadcast_arrays(np.asarray(rows, dtype=real), np.asarray(cols, dtype=real))
    elements = rows * cols
    one_array = elements * real(itemsize)
    read = one_array if bytes_read is None else np.asarray(bytes_read, dtype=real)
    written = one_array if bytes_written is None else np.asarray(bytes_written, dtype=real)
    moved = read + written
    hit = l2_share
    if hit is None:
        hit = resident_share(moved, profile.l2_bytes, c.l2_low, c.l2_high)
    bandwidth = dram_bandwidth_bytes_per_s(profile, c.dram_efficiency)
    l2_bandwidth = l2_bandwidth_bytes_per_s(profile, c.l2_bytes_per_clock_per_sm)
    work = _work(c, profile, rows, cols, itemsize, read)
    walks = np.where(work.in_block, real(passes), 1)
    memory = (moved * (1 - hit) + (walks - 1) * work.miss * read) * real(1 / bandwidth)
    l2 = (read * walks + written) * real(1 / max(l2_bandwidth, bandwidth))
    per_s = profile.num_sms * profile.special_per_clock_per_sm * profile.boost_clock_hz
    special = elements * real(1 / per_s)
    compute = np.maximum(work.compute, special)
    kernel = norm((memory, l2, compute), c.overlap_exponent)
    lockstep = np.minimum(real(c.lockstep_waves) / (work.waves + real(0.5)), 1)
    kernel = kernel + (memory + l2 + compute - kernel) * lockstep + real(c.latency_s)
    return Terms(
        **launch_of(c, launch),
        kernel=kernel, compute=compute, special=special,
        memory=np.maximum(memory, l2),
        latency=np.full_like(kernel, c.latency_s),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the kernel that the row length picks does: arrays of one shape."""

    in_block: np.ndarray  # whether it is the block kernel
    compute: np.ndarray  # seconds of the vector lanes
    miss: np.ndarray  # share of the later walks over a row that DRAM serves
    waves: np.ndarray


def _work(
    c: SoftmaxConstants,
    profile: Profile,
    rows: np.ndarray,
    cols: np.ndarray,
    itemsize: int,
    read: np.ndarray,
) -> _Work:
    real = rows.dtype.type
    lanes = profile.num_sms * profile.vector_lanes_per_sm * profile.boost_clock_hz
    resident = resident_threads(profile)
    padded = np.exp2(np.ceil(np.log2(cols)))
    a_row = padded * real(c.warp_lane_ops_per_element) + real(c.warp_lane_ops_per_row)
    compute = rows * a_row * real(1 / lanes)
    waves = rows * real(32 / (profile.num_sms * resident))
    miss = np.zeros_like(cols)
    in_block = cols > WARP_COLUMNS
    if in_block.any():
        vector = 16 // itemsize  # elements of one load
        half = np.floor(np.minimum(np.floor(cols / real(vector)), 1024) / 2)
        threads = np.clip(np.exp2(np.ceil(np.log2(np.maximum(half, 1)))), 32, 1024)
        walked = np.ceil(cols / (vector * threads)) * (vector * threads)
        slots = profile.num_sms * np.floor(resident / threads)
        # Blocks of one wave share the SM's lanes: a wave that is not full takes less, but a last,
        # partial one does not.
        in_waves = np.where(
            rows < slots,
            np.ceil(rows / profile.num_sms) * profile.num_sms,
            np.ceil(rows / slots) * slots,
        )
        work = walked * real(c.block_lane_ops_per_vector / vector)
        work = work + cols * real(c.block_lane_ops_per_element) + real(c.block_lane_ops_per_row)
        in_flight = np.minimum(slots, rows) * (read / rows) / real(profile.l2_bytes)
        late = np.clip((in_flight - real(c.miss_low)) / real(c.miss_width), 0, 1)
        miss = late * late * (3 - 2 * late)
        compute = np.where(in_block, in_waves * work * real(1 / lanes), compute)
        waves = np.where(in_block, rows / slots, waves)
    return _Work(in_block=in_block, compute=compute, miss=miss, waves=waves)
