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
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import unknown
from flurka_bench.words.sizes import DTYPE_BYTES

CONSTANTS = Path(__file__).parent / "constants" / "matmul.json"
IN_FLIGHT_PER_SM = 4 * 64 * 64  # results that the blocks of an SM work on at once
LAUNCHES = ("eager", "graph", "events", "none")
LAYOUTS = ("linear", "batched")
BOUNDS = ("launch", "compute", "dram", "l2", "latency", "power")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of each call and of its parts, arrays of one shape.

    ``seconds`` is the p-norm of ``compute``, ``dram`` and ``l2`` and what of the left operand's
    read is exposed, slowed by the power limit by ``power`` seconds, after ``launch``, of which
    ``host_overlap`` runs beside it where the host dispatches. ``latency`` is the part of
    ``compute`` that does not grow with the shape (prologue, split).
    """

    seconds: np.ndarray
    launch: np.ndarray
    compute: np.ndarray
    dram: np.ndarray
    l2: np.ndarray
    latency: np.ndarray
    power: np.ndarray

    @property
    def bound(self) -> np.ndarray:
        """The largest part of each call, by name (see ``BOUNDS``)."""
        parts = np.stack(
            [self.launch, self.compute - self.latency, self.dram, self.l2, self.latency, self.power]
        )
        return np.asarray(BOUNDS)[parts.argmax(axis=0)]


def unit_class(profile: Profile, dtype: str) -> str:
    """``tensor`` or ``vector``: which family of kernels multiplies this dtype on this device."""
    return profile.matmul_unit(dtype).split(".")[0]


@lru_cache
def shipped_table() -> dict[str, Any]:
    """The shipped constants, as ``constants/matmul.json`` holds them."""
    return json.loads(CONSTANTS.read_text(encoding="utf-8"))


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
    residual = None
    if profile.measured:
        found = profile.measured.get(f"matmul.{dtype}.{layout}.residual")
        residual = Residual.from_rows(found) if found else None
        values |= _measured(profile, dtype, layout, values)
    return MatmulConstants(**values, tiles=tuple(tuple(tile) for tile in tiles), residual=residual)


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
    found = {}
    for prefix, some in (
        (f"matmul.{twin}.{other}.", shared),
        (f"matmul.{twin}.{layout}.", shared),
        (f"matmul.{dtype}.{other}.", shared),
        (f"matmul.{dtype}.{layout}.", names),
    ):
        found |= {
            name: profile.measured[prefix + name]
            for name in some
            if prefix + name in profile.measured
        }
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
    working_set_bytes: Any = None,
    constants: MatmulConstants | None = None,
    real: Any = np.float32,
) -> Terms:
    """Seconds of ``batch`` products (rows, inner) @ (inner, cols), elementwise over arrays that
    broadcast.

    Args:
        profile: the hardware target.
        dtype: of operands and result (``workload.DTYPES``).
        batch, rows, cols, inner: sizes, at least 1.
        layout: ``linear`` (one weight for all rows) or ``batched``; libraries keep other tiles for
            each.
        launch: ``eager`` (the host's dispatch is in the time), ``graph``, ``events`` (device events
            around a single call on a busy stream) or ``none``.
        working_set_bytes: memory touched between two uses of the same operands, which decides
            whether they are found in L2. None: the call's own operands (the same call again and
            again, a warm L2); ``np.inf``: cold.
        constants: instead of ``constants_of(profile, dtype)``.
        real: float32 is precise to 1e-6, enough for predictions; fits take float64.

    Returns:
        Terms, in seconds. Never less than peak FLOP/s allow.
    """
    if launch not in LAUNCHES:
        raise unknown("launch", launch, LAUNCHES)
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    c = constants or constants_of(profile, dtype, layout)
    sizes = np.broadcast_arrays(
        *(np.asarray(size, dtype=real) for size in (batch, rows, cols, inner))
    )
    shape = sizes[0].shape
    batch, rows, cols, inner = (size.ravel() for size in sizes)
    if working_set_bytes is not None:
        working_set_bytes = np.broadcast_to(
            np.asarray(working_set_bytes, dtype=real), shape
        ).ravel()
    size = DTYPE_BYTES[dtype]
    peak = profile.peak_flops[profile.matmul_unit(dtype)]
    num_sms, clock_hz = profile.num_sms, profile.boost_clock_hz
    bandwidth = profile.memory_bandwidth_bytes_per_s * c.dram_efficiency
    l2_bytes = profile.l2_bytes * c.l2_capacity

    flops = 2 * batch * rows * cols * inner
    moved = size * batch * (rows * inner + inner * cols + rows * cols)
    missed = _miss(
        moved if working_set_bytes is None else working_set_bytes, l2_bytes, c.l2_sharpness
    )
    compulsory = moved * missed
    exposed = size * batch * rows * inner * missed * real(c.exposed_read / bandwidth)
    steps = np.ceil(inner / real(c.inner_step)) * real(c.inner_step)
    steps = steps * (
        1 + real(c.walk_price) * _miss(size * np.sqrt(rows * cols) * inner, c.walk_reach_bytes, 2)
    )

    compute = latency = None
    for tile in c.tiles:
        num_tiles = batch * np.ceil(rows * real(1 / tile[0])) * np.ceil(cols * real(1 / tile[1]))
        candidate, fixed = _compute(
            c, tile, num_tiles, batch * rows * cols, steps, size, peak, profile, bandwidth
        )
        if compute is None:
            compute, latency = candidate, fixed
        else:
            latency = np.where(candidate < compute, fixed, latency)
            compute = np.minimum(candidate, compute)
    # tiles in flight lie along the columns: the right operand is read for every band of rows that
    # they cover
    if c.read_again:
        bands = rows * np.minimum(cols * real(1 / (IN_FLIGHT_PER_SM * num_sms)), real(1 / 64))
        right = size * inner * cols
        again = batch * right * np.maximum(bands - 1, 0) * _miss(right, l2_bytes, c.l2_sharpness)
        compulsory = compulsory + real(c.read_again) * again
    dram = compulsory * real(1 / bandwidth)
    l2 = moved * real(1 / (num_sms * clock_hz * c.l2_bytes_per_clock_per_sm))
    busy = _norm((compute, dram, l2), c.overlap_exponent) + exposed
    power = _power(c, profile, flops, dram * real(bandwidth), busy)
    launch_s = 0.0 if launch == "none" else getattr(c, f"launch_{launch}_s")
    seconds = busy + power
    if launch == "eager":
        seconds = np.maximum(seconds, real(c.host_overlap * launch_s))
        seconds = seconds + real((1 - c.host_overlap) * launch_s)
    else:
        seconds = seconds + real(launch_s)
    if c.residual is not None:
        seconds = seconds * c.residual(np.log(np.stack([batch, rows, cols, inner], axis=1)))
    seconds = np.maximum(seconds, flops * real(1 / peak))
    parts = {
        "seconds": seconds,
        "launch": np.full_like(seconds, launch_s),
        "compute": compute,
        "dram": dram,
        "l2": l2,
        "latency": latency,
        "power": power,
    }
    return Terms(**{name: part.reshape(shape) for name, part in parts.items()})


def _compute(c, tile, num_tiles, results, steps, size, peak, profile, bandwidth):
    """Seconds of the main loops with one tile size, the inner dimension split where that helps; and
    their fixed part.

    Tiles go to SMs in waves: ``num_tiles / num_sms`` tiles a SM, rounded up as far as
        ``wave_rounding`` says. An SM works
    on a tile at the rate of its multipliers or of the operands that reach it from L2, in a smooth
    form. Where tiles are fewer than SMs, the inner dimension is split among the idle ones, at the
    price of a pass that adds up the parts.
    """
    real = num_tiles.dtype.type
    area = tile[0] * tile[1]
    clock_hz = profile.boost_clock_hz
    multiply = 2 * area * profile.num_sms / (peak * c.compute_efficiency)
    multiply *= 1 + c.tile_overhead * (64 / tile[0] + 64 / tile[1] - 1)
    feed = (tile[0] + tile[1]) * size / (c.feed_bytes_per_clock_per_sm * clock_hz)
    step_s = (multiply**c.feed_exponent + feed**c.feed_exponent) ** (1 / c.feed_exponent)
    epilogue_s = c.epilogue_cycles * (area / 128**2) ** c.epilogue_exponent / clock_hz
    prologue_s = c.prologue_cycles / clock_hz

    per_sm = num_tiles * real(1 / profile.num_sms)
    rounded = np.ceil(per_sm)
    waves = np.maximum(per_sm + real(c.wave_rounding) * (rounded - per_sm), 1)
    seconds = waves * (steps * real(step_s) + real(epilogue_s)) + real(prologue_s)
    fixed = np.full_like(seconds, prologue_s + epilogue_s)

    idle = np.flatnonzero((c.split_s >= 0) & (per_sm <= 0.5) & (steps >= 2 * c.min_split_inner))
    if idle.size:
        steps, per_sm = steps[idle], per_sm[idle]
        parts = np.minimum(np.floor(1 / per_sm), np.floor(steps * real(1 / c.min_split_inner)))
        summing = real(c.split_s) + parts * results[idle] * real(
            8 / (2 * bandwidth)
        )  # float32 out and in, half in L2
        split = steps / parts * real(step_s) + real(epilogue_s + prologue_s) + summing
        better = split < seconds[idle]
        idle = idle[better]
        seconds[idle] = split[better]
        fixed[idle] += summing[better]
    return seconds, fixed


def _miss(used_bytes, capacity_bytes, sharpness):
    """Share of reads that miss a cache when this much is touched between two uses: 0 small, 1/2 at
    capacity, 1 large."""
    used_bytes = np.asarray(used_bytes)
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + (capacity_bytes / used_bytes) ** sharpness)


def _norm(parts, exponent):
    """The p-norm of several times: their maximum for a large exponent (perfect overlap), their sum
    for 1 (none)."""
    largest = np.maximum(np.maximum(parts[0], parts[1]), parts[2])
    real = largest.dtype.type
    return largest * sum((part / largest) ** real(exponent) for part in parts) ** real(1 / exponent)


def _power(c, profile, flops, dram_bytes, busy):
    """Seconds that the board's power limit adds.

    At full clock the call would draw energy per FLOP x FLOP/s, energy per byte x byte/s and the
    board's static power. Above the limit the clock falls until it does not; as power falls with
    clock^(1 + clock_exponent), time grows with the excess to the power 1 / (1 + clock_exponent).
    The limit acts on an average over a window, so short calls escape it.
    """
    if profile.tdp_w is None:
        return np.zeros_like(busy)
    real = busy.dtype.type
    budget_w = profile.tdp_w - min(c.static_w, 0.5 * profile.tdp_w)
    joules = flops * real(c.picojoules_per_flop * 1e-12) + dram_bytes * real(
        c.picojoules_per_byte * 1e-12
    )
    excess = np.maximum(joules * real(1 / budget_w) / busy, 1)
    slowdown = excess ** real(1 / (1 + c.clock_exponent)) - 1
    return busy * slowdown * busy / (busy + real(c.power_window_s))
