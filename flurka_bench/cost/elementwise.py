"""Seconds of kernels that stream memory: elementwise, copies, row reductions, feature maps.

t = launch, beside latency + (compute^p + special^p + memory^p)^(1/p). Memory: every operand once,
from L2 where the footprint still fits there (a warm cache), else from DRAM at a share of the
datasheet's bandwidth. Compute: the additions and multiplications on the vector lanes. Special:
exponentials, divisions and roots, each one result of a special function unit and some arithmetic
around it. The form and every constant: docs/cost-model.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
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

# Dispatch of an op in units of a binary op on two tensors: one with a Python scalar wraps it into a
# tensor first, relu and gelu go through one more layer. Medians of five hosts in the fitted rows.
DISPATCH = {"addu": 1.18, "mulu": 1.18, "relu": 1.21, "gelu": 1.16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementwiseConstants:
    """What the datasheet does not say."""

    dram_efficiency: float  # of the datasheet's bandwidth, after what the profile says is usable
    l2_bytes_per_clock_per_sm: float  # that one SM exchanges with L2, reads and writes mixed
    l2_low: float  # footprints up to this share of L2 stay in it
    l2_high: float  # and from this share on are DRAM's
    lane_ops_per_special: (
        float  # ordinary operations around each exponential or division in float32
    )
    overlap_exponent: float
    latency_s: float  # first loads, last stores of a kernel
    launch_eager_s: float
    launch_graph_s: float
    host_overlap: float  # share of the dispatch that runs beside the kernel


def elementwise_constants(
    profile: Profile, op: str = "", table: Mapping[str, Any] | None = None
) -> ElementwiseConstants:
    """The constants for an op (a name of the operator files, or none) on a device.

    Where an op's own dispatch was not measured, it is that of an addition times ``DISPATCH``.
    """
    own = profile.measured.constants("elementwise", op) if op else {}
    constants = constants_of(
        ElementwiseConstants,
        (table or shipped_table())["elementwise"],
        profile.measured.constants("elementwise"),
        profile.measured.constants("elementwise", "add"),
        own,
    )
    if op in DISPATCH and "launch_eager_s" not in own:
        return replace(constants, launch_eager_s=constants.launch_eager_s * DISPATCH[op])
    return constants


def elementwise_terms(
    profile: Profile,
    bytes_moved: Any,
    *,
    vector_flops: Any = 0,
    special_flops: Any = 0,
    l2_share: Any = None,
    launch: str = "eager",
    constants: ElementwiseConstants | None = None,
    real: type = np.float32,
) -> Terms:
    """Seconds of kernels that read and write ``bytes_moved`` once, elementwise over arrays that
    broadcast.

    Args:
        profile: the hardware target.
        bytes_moved: read plus written.
        vector_flops, special_flops: by unit, as an ``Op`` counts them.
        l2_share: share of the bytes found in (or left to) L2; None: that of the same call again and
            again.
        launch: ``eager``, ``graph`` or ``none``.
        constants: instead of ``elementwise_constants(profile)``.
        real: precision of the arithmetic.
    """
    c = constants or elementwise_constants(profile)
    moved: np.ndarray = np.asarray(bytes_moved, dtype=real)
    hit = (
        resident_share(moved, profile.l2_bytes, c.l2_low, c.l2_high)
        if l2_share is None
        else l2_share
    )
    bandwidth = dram_bandwidth_bytes_per_s(profile, c.dram_efficiency)
    per_dram, per_l2 = (
        1 / bandwidth,
        1 / max(l2_bandwidth_bytes_per_s(profile, c.l2_bytes_per_clock_per_sm), bandwidth),
    )
    memory = moved * (real(per_dram) + hit * real(per_l2 - per_dram))
    lanes = profile.num_sms * profile.vector_lanes_per_sm * profile.boost_clock_hz
    units = profile.num_sms * profile.special_per_clock_per_sm * profile.boost_clock_hz
    special_flops = np.asarray(special_flops, dtype=real)
    special = special_flops * real(1 / units)
    compute = (
        np.asarray(vector_flops, dtype=real) + real(c.lane_ops_per_special) * special_flops
    ) * real(1 / lanes)
    parts = (memory, compute, special) if special_flops.any() else (memory, compute)
    kernel = norm(parts, c.overlap_exponent) + real(c.latency_s)
    return Terms(
        **launch_of(c, launch),
        kernel=kernel, compute=compute, special=special, memory=memory,
        latency=np.full_like(kernel, c.latency_s),
    )  # fmt: skip
