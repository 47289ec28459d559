"""What may stand in a profile's ``[measured]`` table: every name, its unit, shape and range.

A name is a family and a figure: ``matmul.bfloat16.linear.launch_eager_s`` is the figure
``launch_eager_s`` of the family ``matmul``, for a dtype and a layout. The figures are the constants
of the cost model that calibration may move, and the few that ``calibrate`` measures for people to
read. A test compares this table with the constants that the cost model reads. The ranges are wide:
they hold every machine, and keep out a slip of the pen, a wrong unit and a damaged file.

``Measured`` is such a table as the cost model reads it: a file's names with dots as nested groups.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from flurka_bench.hardware.rows import ELEMENTWISE_OPS
from flurka_bench.words.errors import (
    RequestError,
    nearest,
    short,
)
from flurka_bench.words.sizes import DTYPES

FIGURES = "microbenchmark"  # the group of figures that calibrate measures beside the rows


class Measured(Mapping[str, Any]):
    """A ``[measured]`` table: under its full names a mapping, and by group what the model reads.

    A group is a name without its last part: ``matmul.bfloat16.linear`` holds ``launch_eager_s``.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)
        self._groups: dict[tuple[str, ...], dict[str, Any]] = {}
        for name, value in self._values.items():
            *group, figure = name.split(".")
            self._groups.setdefault(tuple(group), {})[figure] = value

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Measured({self._values!r})"

    def constants(self, *group: str) -> Mapping[str, Any]:
        """The figures of one group, as ``constants("matmul", dtype, layout)``; empty if none."""
        return self._groups.get(group, {})

    def figure(self, name: str) -> Any:
        """What ``calibrate`` measured beside the rows (``launch_eager_s``, ...), or None."""
        return self._values.get(f"{FIGURES}.{name}")

    def knows(self, *start: str) -> bool:
        """Whether a group begins with these words: ``knows("matmul", dtype)``."""
        return any(group[: len(start)] == start for group in self._groups)

    def groups(self) -> list[tuple[str, ...]]:
        """The groups, in the table's order."""
        return list(self._groups)

    def without(self, *group: str) -> "Measured":
        """The table without one group's figures."""
        own = {".".join((*group, name)) for name in self.constants(*group)}
        return Measured({name: value for name, value in self.items() if name not in own})

    def with_group(self, group: tuple[str, ...], figures: Mapping[str, Any]) -> "Measured":
        """The table with figures of one group set over what it holds."""
        own = {".".join((*group, name)): value for name, value in figures.items()}
        return Measured({**self, **own})


LAYOUTS = ("linear", "batched")
NUM_SIZES = 4  # of a matmul, whose logs a residual's rows hold
LARGEST_LOG = 40.0  # a size of 1 has log 0, the largest, 2^40, has 27.7
LARGEST_WEIGHT = 1000.0  # of a residual's row; those of the shipped fits stay below 30
MOST_ROWS = 10_000  # of a residual


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One figure: its unit and the range that it must lie in.

    ``whole`` asks for a whole number. ``columns`` is 0 for a single number; a residual is a list of
    rows of so many numbers, the logs of a shape's sizes (from 0) and then a weight.
    """

    unit: str
    low: float
    high: float
    whole: bool = False
    columns: int = 0


def _ratio(low: float, high: float) -> Quantity:
    return Quantity(unit="ratio", low=low, high=high)


def _count(low: float, high: float, unit: str = "count") -> Quantity:
    return Quantity(unit=unit, low=low, high=high)


LAUNCH = Quantity(unit="s", low=1e-8, high=1e-2)
PART = Quantity(unit="s", low=0, high=1e-2)  # of a kernel; fits find some to be nothing
WINDOW = Quantity(unit="s", low=1e-6, high=10)
EFFICIENCY = _ratio(0.05, 2)  # quoted peaks are those of a clock that a device may exceed
EXPONENT = _ratio(1, 64)  # of a p-norm: 1 is a sum, a large one the maximum
SLOWDOWN = _ratio(0, 10)
CYCLES = _count(0, 1e6, "cycles")
BYTES_PER_CLOCK = _count(0.1, 1e4, "B/clock")
BANDWIDTH = _count(1e8, 1e15, "B/s")
RESIDUAL = Quantity(unit="logs of sizes and a weight", low=-LARGEST_WEIGHT, high=LARGEST_WEIGHT,
                    columns=NUM_SIZES + 1)  # fmt: skip
# Disjoint, so that no pair of them is ever the wrong way round.
L2_LOW, L2_HIGH = _ratio(0.02, 0.6), _ratio(0.61, 4)

_MATMUL = {
    "compute_efficiency": EFFICIENCY,
    "feed_bytes_per_clock_per_sm": _count(1, 1e4, "B/clock"),
    "walk_reach_bytes": _count(1e5, 1e12, "B"),
    "walk_price": _ratio(0, 100),
    "read_again": _ratio(0, 100),
    "exposed_read": SLOWDOWN,
    "tile_overhead": _ratio(0, 20),
    "feed_exponent": EXPONENT,
    "wave_rounding": _ratio(0, 5),
    "prologue_cycles": CYCLES,
    "epilogue_cycles": CYCLES,
    "epilogue_exponent": _ratio(0, 4),
    "split_s": Quantity(unit="s", low=-1, high=1e-2),  # -1: never split
    "min_split_inner": _count(1, 1e6),
    "inner_step": _count(1, 4096),
    "l2_capacity": _ratio(1e-3, 50),
    "l2_sharpness": _ratio(0.1, 20),
    "dram_efficiency": EFFICIENCY,
    "l2_bytes_per_clock_per_sm": BYTES_PER_CLOCK,
    "overlap_exponent": EXPONENT,
    "picojoules_per_flop": _count(0.01, 1e3, "pJ"),
    "picojoules_per_byte": _count(0, 1e4, "pJ"),
    "static_w": _count(0, 1e3, "W"),
    "clock_exponent": _ratio(0, 4),
    "power_window_s": WINDOW,
    "launch_eager_s": LAUNCH,
    "host_overlap": _ratio(0, 1),
    "launch_graph_s": LAUNCH,
    "launch_events_s": LAUNCH,
    "residual": RESIDUAL,
}
_ELEMENTWISE = {
    "dram_efficiency": EFFICIENCY,
    "l2_bytes_per_clock_per_sm": BYTES_PER_CLOCK,
    "l2_low": L2_LOW,
    "l2_high": L2_HIGH,
    "lane_ops_per_special": _count(0, 1e4),
    "overlap_exponent": EXPONENT,
    "latency_s": PART,
    "launch_eager_s": LAUNCH,
    "launch_graph_s": LAUNCH,
    "host_overlap": _ratio(0, 1),
}
_SOFTMAX = {
    "dram_efficiency": EFFICIENCY,
    "block_lane_ops_per_row": _count(0, 1e5),
    "block_lane_ops_per_vector": _count(0, 1e5),
    "block_lane_ops_per_element": _count(0, 1e5),
    "warp_lane_ops_per_row": _count(0, 1e5),
    "warp_lane_ops_per_element": _count(0, 1e5),
    "miss_low": _ratio(0.01, 10),
    "miss_width": _ratio(0.01, 10),
    "l2_bytes_per_clock_per_sm": BYTES_PER_CLOCK,
    "l2_low": L2_LOW,
    "l2_high": L2_HIGH,
    "overlap_exponent": EXPONENT,
    "lockstep_waves": _count(0, 1e3),
    "latency_s": PART,
    "launch_eager_s": LAUNCH,
    "launch_graph_s": LAUNCH,
    "host_overlap": _ratio(0, 1),
}
_ATTENTION = {
    "matmul_efficiency": EFFICIENCY,
    "exposed_softmax": SLOWDOWN,
    "rescale_clocks": _count(0, 10, "clocks"),
    "tile_s": PART,
    "alone_slowdown": SLOWDOWN,
    "combine_s": PART,
    "combine_traffic": _ratio(0, 100),
    "sustained_slowdown": SLOWDOWN,
    "sustained_window_s": WINDOW,
    "backward_efficiency": EFFICIENCY,
    "floor_s": PART,
    "launch_eager_s": LAUNCH,
    "launch_graph_s": LAUNCH,
    "host_overlap": _ratio(0, 1),
}
# A CPU's datasheet figures are what the system reports, the bandwidth a guess: wider than a GPU's.
_CPU_RATE = _ratio(0.02, 10)
_CPU_CYCLES = _count(1e-5, 1e5, "cycles")
_SIDE = _count(1e-4, 1e4)
_CPU = {
    "dispatch_s": LAUNCH,
    "parallel_s": PART,
    "cache_bytes_per_cycle": BYTES_PER_CLOCK,
    "cache_share": _ratio(0.01, 10),
    "dram_efficiency": _ratio(0.02, 100),
    "matmul_stream": _CPU_RATE,
    "fault_s_per_byte": _count(1e-14, 1e-7, "s/B"),
    **{
        f"{name}_cycles": _CPU_CYCLES
        for name in (
            "vector", "row", "reduction_row", "maximum_row", "narrow_maximum", "division", "select",
            "exp", "elu", "gelu", "tanh", "reduction", "copy", "softmax", "softmax_row",
            "softmax_backward", "product", "score", "query",
        )
    },
    "matmul_efficiency": _CPU_RATE,
    "matmul_rows": _SIDE,
    "matmul_cols": _SIDE,
    "matmul_inner": _SIDE,
    "matmul_shared": _CPU_RATE,
    "attention_efficiency": _CPU_RATE,
    "attention_inner": _SIDE,
    "attention_backward_efficiency": _CPU_RATE,
    "residual": RESIDUAL,
}  # fmt: skip
_MICROBENCHMARK = {
    "launch_eager_s": LAUNCH,
    "launch_graph_s": LAUNCH,
    "copy_bandwidth_bytes_per_s": BANDWIDTH,
    "add_bandwidth_bytes_per_s": BANDWIDTH,
    "cache_bandwidth_bytes_per_s": BANDWIDTH,
    "cache_capacity_bytes": _count(1e3, 1e12, "B"),
    "sustained_fraction": _ratio(0, 1),
    "sustained_clock_fraction": _ratio(0, 2),
    "reuses_memory": Quantity(unit="flag", low=0, high=1, whole=True),
    **{f"matmul_flops_per_s.{dtype}": _count(1e6, 1e17, "FLOP/s") for dtype in DTYPES},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Names that share their figures.

    A name is one word of each of ``segments`` and a figure, joined by dots; ``kind`` is the kind of
    device whose predictions read them (None: both).
    """

    segments: tuple[tuple[str, ...], ...]
    figures: Mapping[str, Quantity]
    kind: str | None = None

    def names(self) -> Iterator[tuple[str, Quantity]]:
        """Every name with its quantity."""
        for words in product(*self.segments):
            for figure, quantity in self.figures.items():
                yield ".".join((*words, figure)), quantity

    @property
    def pattern(self) -> str:
        """How its names begin, as an error shows it."""
        holes = {DTYPES: "DTYPE", LAYOUTS: "LAYOUT", ELEMENTWISE_OPS: "OP"}
        return ".".join(holes.get(words, words[0]) for words in self.segments) + "."


FAMILIES = (
    Family(segments=(("matmul",), DTYPES, LAYOUTS), figures=_MATMUL, kind="gpu"),
    Family(segments=(("elementwise",),), figures=_ELEMENTWISE, kind="gpu"),
    Family(segments=(("elementwise",), ELEMENTWISE_OPS), figures=_ELEMENTWISE, kind="gpu"),
    Family(segments=(("softmax",),), figures=_SOFTMAX, kind="gpu"),
    Family(segments=(("attention",),), figures=_ATTENTION, kind="gpu"),
    Family(segments=(("attention",), DTYPES), figures=_ATTENTION, kind="gpu"),
    Family(segments=(("cpu",), DTYPES), figures=_CPU, kind="cpu"),
    Family(segments=(("microbenchmark",),), figures=_MICROBENCHMARK),
)


@lru_cache
def quantities(kind: str) -> dict[str, Quantity]:
    """Every name that a device of this kind ("gpu", "cpu") may have measured, with its quantity."""
    return {
        name: quantity
        for family in FAMILIES
        if family.kind in (None, kind)
        for name, quantity in family.names()
    }


def clamped(kind: str, name: str, value: float) -> float:
    """The value, moved to the nearer end of its range where it lies outside.

    A fit walks where the rows pull it; what it leaves in a profile must be readable again.
    """
    quantity = quantities(kind)[name]
    return min(max(value, quantity.low), quantity.high)


def check(kind: str, name: str, value: Any) -> None:
    """Raise RequestError unless a device of this kind ("gpu", "cpu") may have measured this value
    under this name."""
    quantity = quantities(kind).get(name)
    if quantity is None:
        raise _unknown(kind, name, value)
    if not quantity.columns:
        if not _within(value, quantity.low, quantity.high, quantity.whole):
            whole = "whole " if quantity.whole else ""
            raise RequestError(
                f"measured {name!r} must be a finite {whole}number from {quantity.low:g} to"
                f" {quantity.high:g} ({quantity.unit}), got {short(value)}"
            )
        return
    limits = [(0.0, LARGEST_LOG)] * (quantity.columns - 1) + [(quantity.low, quantity.high)]
    if (
        not isinstance(value, (list, tuple))
        or not 1 <= len(value) <= MOST_ROWS
        or not all(isinstance(row, (list, tuple)) and len(row) == len(limits) for row in value)
    ):
        raise RequestError(
            f"measured {name!r} must be 1 to {MOST_ROWS} rows of {quantity.columns} numbers each,"
            f" got {short(value)}"
        )
    for number, row in enumerate(value, 1):
        for place, (entry, (low, high)) in enumerate(zip(row, limits), 1):
            if not _within(entry, low, high, whole=False):
                raise RequestError(
                    f"measured {name!r}: row {number}, number {place} must be finite and from"
                    f" {low:g} to {high:g}, got {short(entry)}"
                )


def _within(value: Any, low: float, high: float, whole: bool) -> bool:
    """Whether it is a number in the range; nan and infinities are in none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return low <= value <= high and (not whole or value == int(value))


def _unknown(kind: str, name: str, value: Any) -> RequestError:
    """The error for a name that a device of this kind has not: the nearest, and what names look
    like."""
    own = quantities(kind)
    if isinstance(value, dict):
        return RequestError(
            f"measured {name[:80]!r} must be a number, got a table; a name with dots is quoted,"
            f' as in "{next(iter(own))}" = 1e-6'
        )
    other = "cpu" if kind == "gpu" else "gpu"
    if name in quantities(other):
        return RequestError(
            f"measured {name!r} is a figure of a {other.upper()} and is never read on a"
            f" {kind.upper()}"
        )
    near = nearest(name, own) if len(name) <= 200 else None
    hint = f" (did you mean {near!r}?)" if near else ""
    patterns = [family.pattern for family in FAMILIES if family.kind in (None, kind)]
    return RequestError(
        f"unknown figure {name[:80]!r} in [measured]{hint}; names of a {kind.upper()} begin with"
        f" {', '.join(patterns)}"
    )
