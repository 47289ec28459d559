"""Seconds of linear and batched matmuls: tiles in waves, DRAM, L2, launch and the power limit.

Pure functions of a hardware profile, a handful of constants and NumPy arrays of shapes; no torch,
no clock. Each term, its source and what it bought stand in docs/cost-model.md. Letters: M rows, N
cols, K inner, B batch; (B, M, K) @ (B, K, N).

The constants come from three places, the later over the earlier: ``constants/matmul.json`` for the
unit (``tensor``: the 16-bit dtypes on matrix units, ``vector``: float32 and float64 on the lanes),
the same file's entry for the generation of the library (``profile.matmul_library``), and
``profile.measured`` where the device was calibrated. None is keyed by a device.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.cost.fitting import Residual
from flurka_bench.cost.terms import (
    Terms,
    dram_bandwidth_bytes_per_s,
    l2_bandwidth_bytes_per_s,
    launch_of,
    missed_share,
    norm,
)
from flurka_bench.hardware.measured import LAYOUTS
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import unknown
from flurka_bench.words.sizes import DTYPE_BYTES

CONSTANTS = Path(__file__).parent / "constants" / "matmul.json"
IN_FLIGHT_PER_SM = 4 * 64 * 64  # results that the blocks of an SM work on at once


@dataclass(frozen=True, slots=True, kw_only=True)
class MatmulConstants:
    """What the datasheet does not say; units in the names, defaults that do nothing where that is
    possible."""

    compute_efficiency: float  # of the unit's peak, inside the main loop of a tile of 128 x 128
    feed_bytes_per_clock_per_sm: float  # operands from L2 to one SM while it works
    walk_reach_bytes: float  # operands this large pay half of walk_price
    # how much longer a step along the inner dimension takes with operands far larger than that
    walk_price: float
    # share of the right operand's further reads that miss L2; 0: tiles in flight form a square
    read_again: float
    exposed_read: float  # share of the left operand's way from DRAM that hides behind nothing
    # how much longer a multiplication takes where a tile has twice the border for its area
    tile_overhead: float
    feed_exponent: float  # p-norm of feed and compute inside a tile
    wave_rounding: float  # 1: the last wave costs as much as a full one; 0: it costs its share
    prologue_cycles: float  # once a call: first loads, last stores
    epilogue_cycles: float  # once a tile of 128 x 128
    epilogue_exponent: float  # power of the area by which other tiles differ
    # a second pass that adds up the parts of a split inner dimension; negative: never split
    split_s: float
    min_split_inner: float  # shortest inner length that a part may have
    inner_step: float  # the inner dimension is walked in steps of this many elements
    l2_capacity: float  # share of the L2 that keeps operands between uses
    l2_sharpness: float  # exponent of the miss curve
    dram_efficiency: float  # of the datasheet's bandwidth
    l2_bytes_per_clock_per_sm: float  # every operand passes the L2 once
    overlap_exponent: float  # p-norm of compute, DRAM and L2
    picojoules_per_flop: float  # at full clock
    picojoules_per_byte: float  # to and from DRAM
    static_w: float  # the board's power that no work explains
    clock_exponent: float  # energy per FLOP grows with this power of the clock
    power_window_s: float  # a call as long as this feels half of the limit's slowdown
    launch_eager_s: float
    host_overlap: float  # share of the eager dispatch that runs beside the kernel
    launch_graph_s: float
    launch_events_s: float
    tiles: tuple[
        tuple[int, int], ...
    ]  # candidate (rows, cols) of the result that one block computes
    residual: Residual | None = None  # what calibration could not say with these numbers


_NUMBERS = tuple(
    field.name for field in fields(MatmulConstants) if field.name not in ("tiles", "residual")
)


def unit_class(profile: Profile, dtype: str) -> str:
    """``tensor`` or ``vector``: which family of kernels multiplies this dtype on this device."""
    return profile.matmul_unit(dtype).split(".")[0]


@lru_cache
def shipped_table() -> dict[str, Any]:
    """The shipped constants, as ``constants/matmul.json`` holds them."""
    table: dict[str, Any] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return table


def constants_of(
    profile: Profile, dtype: str, layout: str = "linear", table: Mapping[str, Any] | None = None
) -> MatmulConstants:
    """The constants for a dtype on a device: those of its library's generation, over them what was
    measured.

    Raises:
        RequestError: the profile names a library that the constants do not know.
    """
    table = (shipped_table() if table is None else table)[unit_class(profile, dtype)]
    if profile.matmul_library not in table["libraries"]:
        raise unknown(
            "matmul_library in the hardware profile", profile.matmul_library, table["libraries"]
        )
    values: dict[str, Any] = dict(table["common"])
    for family in (*table["libraries"][profile.matmul_library], profile.matmul_library):
        values |= table["generations"].get(family, {})
    values |= table["layouts"].get(layout, {}) if "layouts" in table else {}
    tiles = values.pop(
        "tiles_batched" if layout == "batched" and "tiles_batched" in values else "tiles"
    )
    values = {name: values[name] for name in _NUMBERS}
    found = profile.measured.constants("matmul", dtype, layout).get("residual")
    return MatmulConstants(
        **values | _measured(profile, dtype, layout, values),
        tiles=tuple(tuple(tile) for tile in tiles),
        residual=Residual.from_rows(found) if found else None,
    )


# What a device measured for one layout says of the other where their kernels differ (float32): the
# board, not the kernels.
_OF_THE_BOARD = ("picojoules_per_flop", "dram_efficiency")


def _measured(
    profile: Profile, dtype: str, layout: str, names: Mapping[str, Any]
) -> dict[str, float]:
    """The measured values of some constants. Those of the other 16-bit dtype and of the other
    layout stand in.

    But not the launch, and in float32 not what belongs to the kernels, which differ by layout.
    """
    other = LAYOUTS[1 - LAYOUTS.index(layout)]
    shared = [name for name in names if not name.startswith("launch")]
    if unit_class(profile, dtype) == "vector" and profile.kind == "gpu":
        shared = list(_OF_THE_BOARD)
    twin = {"bfloat16": "float16", "float16": "bfloat16"}.get(dtype, dtype)
    found: dict[str, float] = {}
    for group, some in (
        ((twin, other), shared),
        ((twin, layout), shared),
        ((dtype, other), shared),
        ((dtype, layout), list(names)),
    ):
        own = profile.measured.constants("matmul", *group)
        found |= {name: own[name] for name in some if name in own}
    return found


def matmul_terms(
    profile: Profile,
    dtype: str,
    batch: Any,
    rows: Any,
    cols: Any,
    inner: Any,
    *,
    layout: str = "linear",
    launch: str = "graph",
    l2_share: Any = None,
    constants: MatmulConstants | None = None,
    real: Any = np.float32,
) -> Terms:
    """Seconds of ``batch`` products (rows, inner) @ (inner, cols), elementwise over arrays that
    broadcast.

    Args:
        profile: the hardware target.
        dtype: of operands and result (``words.sizes.DTYPES``).
        batch, rows, cols, inner: sizes, at least 1.
        layout: ``linear`` (one weight for all rows) or ``batched``; libraries keep other tiles for
            each.
        launch: ``eager`` (the host's dispatch is in the time), ``graph``, ``events`` (device events
            around a single call on a busy stream) or ``none``.
        l2_share: share of the operands found in L2. None: that of the same call again and again; 0:
            cold.
        constants: instead of ``constants_of(profile, dtype)``.
        real: float32 is precise to 1e-6, enough for predictions; fits take float64.

    Returns:
        Terms, in seconds; ``compute`` includes what the power limit adds. Never less than the peak
        FLOP/s allow.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    c = constants or constants_of(profile, dtype, layout)
    sizes = np.broadcast_arrays(
        *(np.asarray(size, dtype=real) for size in (batch, rows, cols, inner))
    )
    shape = sizes[0].shape
    one = _Product(profile, c, dtype, *(size.ravel() for size in sizes))
    missed = one.missed(one.moved)
    if l2_share is not None:
        missed = 1 - np.broadcast_to(np.asarray(l2_share, dtype=real), shape).ravel()
    terms = one.terms(missed, **launch_of(c, launch))
    return terms.reshaped(shape)


class _Product:
    """Products of one dtype on one device: their sizes (arrays of one length) and what the terms of
    a prediction are made of."""

    def __init__(
        self,
        profile: Profile,
        constants: MatmulConstants,
        dtype: str,
        batch: np.ndarray,
        rows: np.ndarray,
        cols: np.ndarray,
        inner: np.ndarray,
    ) -> None:
        self.c, self.profile = constants, profile
        self.batch, self.rows, self.cols, self.inner = batch, rows, cols, inner
        self.real = batch.dtype.type
        self.itemsize = DTYPE_BYTES[dtype]
        self.peak = profile.peak_flops[profile.matmul_unit(dtype)]
        self.bandwidth = dram_bandwidth_bytes_per_s(profile, constants.dram_efficiency)
        self.flops = 2 * batch * rows * cols * inner
        self.moved = self.itemsize * batch * (rows * inner + inner * cols + rows * cols)

    def terms(self, missed: np.ndarray, launch: float, overlap: float) -> Terms:
        """The parts of the products' seconds where this share of their reads misses L2.

        What calibration could not say with constants is a factor on the whole call.
        """
        c, real = self.c, self.real
        compute, latency = self.compute()
        dram = self.dram_bytes(missed) * real(1 / self.bandwidth)
        l2_bandwidth = l2_bandwidth_bytes_per_s(self.profile, c.l2_bytes_per_clock_per_sm)
        l2 = self.moved * real(1 / l2_bandwidth)
        busy = norm((compute, dram, l2), c.overlap_exponent) + self.exposed_s(missed)
        power = power_s(c, self.profile.tdp_w, self.flops, dram * real(self.bandwidth), busy)
        launch_s: Any = launch
        kernel = busy + power
        if c.residual is not None:
            sizes = [self.batch, self.rows, self.cols, self.inner]
            factor = c.residual(np.log(np.stack(sizes, axis=1)))
            kernel, launch_s = kernel * factor, launch * factor
        return Terms(
            kernel=np.maximum(kernel, self.flops * real(1 / self.peak)),
            launch=launch_s,
            overlap=overlap,
            compute=compute + power,
            special=np.zeros_like(compute),
            memory=np.maximum(dram, l2),
            latency=latency,
        )

    def missed(self, touched_bytes: Any) -> np.ndarray:
        """Share of the reads that miss L2 where so much is touched between two uses."""
        return missed_share(
            touched_bytes, self.profile.l2_bytes * self.c.l2_capacity, self.c.l2_sharpness
        )

    def dram_bytes(self, missed: np.ndarray) -> np.ndarray:
        """What DRAM moves: the operands that L2 lacks, and the right one again for every band of
        rows that the tiles in flight cover, since they lie along the columns."""
        compulsory: np.ndarray = self.moved * missed
        if not self.c.read_again:
            return compulsory
        real = self.real
        in_flight = real(1 / (IN_FLIGHT_PER_SM * self.profile.num_sms))
        bands = self.rows * np.minimum(self.cols * in_flight, real(1 / 64))
        right = self.itemsize * self.inner * self.cols
        again = self.batch * right * np.maximum(bands - 1, 0) * self.missed(right)
        compulsory = compulsory + real(self.c.read_again) * again
        return compulsory

    def exposed_s(self, missed: np.ndarray) -> np.ndarray:
        """What of the left operand's way from DRAM hides behind nothing."""
        left = self.itemsize * self.batch * self.rows * self.inner
        exposed: np.ndarray = left * missed * self.real(self.c.exposed_read / self.bandwidth)
        return exposed

    def steps(self) -> np.ndarray:
        """Elements along the inner dimension in whole steps, dearer where operands reach far."""
        real, c = self.real, self.c
        steps: np.ndarray = np.ceil(self.inner / real(c.inner_step)) * real(c.inner_step)
        reach = self.itemsize * np.sqrt(self.rows * self.cols) * self.inner
        steps = steps * (1 + real(c.walk_price) * missed_share(reach, c.walk_reach_bytes, 2))
        return steps

    def compute(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of the main loops with the best of the tiles, and of them what does not grow with
        the shape."""
        steps = self.steps()
        compute, latency = self._with_tile(self.c.tiles[0], steps)
        for tile in self.c.tiles[1:]:
            candidate, fixed = self._with_tile(tile, steps)
            latency = np.where(candidate < compute, fixed, latency)
            compute = np.minimum(candidate, compute)
        return compute, latency

    def _with_tile(self, tile: tuple[int, int], steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of the main loops with one tile size, the inner dimension split where that helps;
        and their fixed part.

        Tiles go to SMs in waves: ``num_tiles / num_sms`` tiles a SM, rounded up as far as
        ``wave_rounding`` says. An SM works on a tile at the rate of its multipliers or of the
        operands that reach it from L2, in a smooth form. Where tiles are fewer than SMs, the inner
        dimension is split among the idle ones, at the price of a pass that adds up the parts.
        """
        c, real = self.c, self.real
        clock_hz, num_sms = self.profile.boost_clock_hz, self.profile.num_sms
        down, across = (
            np.ceil(self.rows * real(1 / tile[0])),
            np.ceil(self.cols * real(1 / tile[1])),
        )
        num_tiles = self.batch * down * across
        area = tile[0] * tile[1]
        multiply = 2 * area * num_sms / (self.peak * c.compute_efficiency)
        multiply *= 1 + c.tile_overhead * (64 / tile[0] + 64 / tile[1] - 1)
        feed = (tile[0] + tile[1]) * self.itemsize / (c.feed_bytes_per_clock_per_sm * clock_hz)
        step_s = (multiply**c.feed_exponent + feed**c.feed_exponent) ** (1 / c.feed_exponent)
        epilogue_s = c.epilogue_cycles * (area / 128**2) ** c.epilogue_exponent / clock_hz
        prologue_s = c.prologue_cycles / clock_hz
        per_sm = num_tiles * real(1 / num_sms)
        waves = np.maximum(per_sm + real(c.wave_rounding) * (np.ceil(per_sm) - per_sm), 1)
        seconds = waves * (steps * real(step_s) + real(epilogue_s)) + real(prologue_s)
        fixed = np.full_like(seconds, prologue_s + epilogue_s)
        idle = np.flatnonzero((c.split_s >= 0) & (per_sm <= 0.5) & (steps >= 2 * c.min_split_inner))
        if idle.size:
            summing, parts = self._split(idle, steps[idle], per_sm[idle])
            split = steps[idle] / parts * real(step_s) + real(epilogue_s + prologue_s) + summing
            better = split < seconds[idle]
            seconds[idle[better]] = split[better]
            fixed[idle[better]] += summing[better]
        return seconds, fixed

    def _split(
        self, at: np.ndarray, steps: np.ndarray, per_sm: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(seconds of the pass that adds up the parts, how many parts) of products ``at``."""
        real, c = self.real, self.c
        parts = np.minimum(np.floor(1 / per_sm), np.floor(steps * real(1 / c.min_split_inner)))
        results = self.batch[at] * self.rows[at] * self.cols[at]
        # float32 out and in, half in L2
        return real(c.split_s) + parts * results * real(8 / (2 * self.bandwidth)), parts


def power_s(
    c: MatmulConstants, tdp_w: float | None, flops: np.ndarray, dram_bytes: Any, busy: np.ndarray
) -> np.ndarray:
    """Seconds that the board's power limit adds to kernels that are ``busy`` so long.

    At full clock the call would draw energy per FLOP x FLOP/s, energy per byte x byte/s and the
    board's static power. Above the limit the clock falls until it does not; as power falls with
    clock^(1 + clock_exponent), time grows with the excess to the power 1 / (1 + clock_exponent).
    The limit acts on an average over a window, so short calls escape it.
    """
    if tdp_w is None:
        return np.zeros_like(busy)
    real = busy.dtype.type
    budget_w = tdp_w - min(c.static_w, 0.5 * tdp_w)
    joules = flops * real(c.picojoules_per_flop * 1e-12)
    joules = joules + dram_bytes * real(c.picojoules_per_byte * 1e-12)
    excess = np.maximum(joules * real(1 / budget_w) / busy, 1)
    slowdown = excess ** real(1 / (1 + c.clock_exponent)) - 1
    added: np.ndarray = busy * slowdown * busy / (busy + real(c.power_window_s))
    return added
