"""A hardware target as data: datasheet figures, each with unit and source, and apart from them what
was measured."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from flurka_bench.hardware.measured import (
    Measured,
)
from flurka_bench.hardware.measured import check as check_measured
from flurka_bench.words.errors import (
    RequestError,
    short,
    unknown,
)

# The figures of the [datasheet] table: unit, and the range outside which a value is a slip of the
# pen (a bandwidth in GB/s, a clock in MHz), not a machine.
FIGURES: dict[str, tuple[str, float, float]] = {
    "num_sms": (
        "count",
        1,
        1024,
    ),  # streaming multiprocessors, compute units, GPU cores or CPU threads
    "vector_lanes_per_sm": ("count", 1, 1024),  # float32 fused multiply-adds a clock
    "special_per_clock_per_sm": ("count", 0.05, 1024),  # exponentials a clock
    "boost_clock_hz": ("Hz", 2e8, 7e9),
    "tensor_clock_hz": (
        "Hz",
        2e8,
        7e9,
    ),  # where the peak of the matrix units is quoted at another clock
    "base_clock_hz": ("Hz", 2e8, 7e9),
    "memory_bytes": ("B", 1e9, 4e12),
    "memory_bandwidth_bytes_per_s": ("B/s", 5e9, 3e13),
    "memory_usable_share": (
        "ratio",
        0.3,
        1,
    ),  # of that bandwidth, where ECC in the same memory or an early controller takes some
    "l2_bytes": ("B", 2.5e5, 1e9),  # the last cache before memory that all SMs share
    "shared_memory_per_sm_bytes": ("B", 1.6e4, 1e7),
    "tdp_w": ("W", 5, 3000),
    "process_nm": ("nm", 2, 40),
}
OPTIONAL_FIGURES = {
    "memory_usable_share",
    "tensor_clock_hz",
    "base_clock_hz",
    "shared_memory_per_sm_bytes",
    "tdp_w",
    "process_nm",
}
PEAKS = (
    "vector.float32",
    "vector.float64",
    "vector.float16",
    "tensor.float16",
    "tensor.bfloat16",
    "tensor.tf32",
    "tensor.float64",
)
PEAK_RANGE_FLOPS = (1e10, 2e16)
KINDS = ("gpu", "cpu")

# vendors round: how far SMs x lanes x 2 x clock may be from the float32 peak that they quote
PEAK_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a datasheet: value in SI units, the unit, where it is written, and what a
    reader must know."""

    value: float
    unit: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One hardware target.

    Datasheet figures are attributes (``profile.num_sms``, ``profile.memory_bandwidth_bytes_per_s``)
    in SI units; ``peak_flops`` maps ``"tensor.bfloat16"``, ``"vector.float32"``, ... to dense
    FLOP/s. ``measured`` holds the numbers that calibration found, under the names that the cost
    model reads, and is empty where only the datasheet is known.

    ``matmul_library`` and ``attention_kernel`` name the generation of the kernels that run on this
    architecture; the cost model keeps a table of tiles for each generation, never for a device.
    """

    name: str
    title: str
    vendor: str
    kind: str
    architecture: str
    matmul_library: str
    attention_kernel: str
    datasheet: Mapping[str, Figure]
    peaks: Mapping[str, Figure]
    sources: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    device_names: tuple[
        str, ...
    ] = ()  # what the driver calls it, to recognise the device that is at hand
    measured: Measured = field(default_factory=lambda: Measured({}))
    measured_about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)

    def _figure(self, name: str) -> float | None:
        figure = self.datasheet.get(name)
        return None if figure is None else figure.value

    @cached_property
    def num_sms(self) -> int:
        """Streaming multiprocessors (GPU), compute units (AMD), cores (Apple), threads (CPU)."""
        return int(self.datasheet["num_sms"].value)

    @cached_property
    def vector_lanes_per_sm(self) -> float:
        """float32 fused multiply-adds a clock and SM."""
        return self.datasheet["vector_lanes_per_sm"].value

    @cached_property
    def special_per_clock_per_sm(self) -> float:
        """Exponentials a clock and SM."""
        return self.datasheet["special_per_clock_per_sm"].value

    @cached_property
    def boost_clock_hz(self) -> float:
        """The clock that the vector peaks are quoted at."""
        return self.datasheet["boost_clock_hz"].value

    @cached_property
    def tensor_clock_hz(self) -> float:
        """The clock that the matrix peaks are quoted at; the boost clock where the vendor names no
        other."""
        return self._figure("tensor_clock_hz") or self.boost_clock_hz

    @cached_property
    def memory_bytes(self) -> float:
        """Device memory."""
        return self.datasheet["memory_bytes"].value

    @cached_property
    def memory_bandwidth_bytes_per_s(self) -> float:
        """Peak bandwidth of device memory."""
        return self.datasheet["memory_bandwidth_bytes_per_s"].value

    @cached_property
    def memory_usable_share(self) -> float:
        """Share of the peak bandwidth that ECC kept in the same memory, or an early memory
        controller, leaves."""
        return self._figure("memory_usable_share") or 1.0

    @cached_property
    def l2_bytes(self) -> float:
        """The last-level cache that all SMs share."""
        return self.datasheet["l2_bytes"].value

    @cached_property
    def shared_memory_per_sm_bytes(self) -> float | None:
        """Shared memory of one SM, or None where the device has none."""
        return self._figure("shared_memory_per_sm_bytes")

    @cached_property
    def tdp_w(self) -> float | None:
        """Board power limit, or None where the vendor publishes none."""
        return self._figure("tdp_w")

    @cached_property
    def peak_flops(self) -> dict[str, float]:
        """Dense peak FLOP/s by unit and dtype."""
        return {name: figure.value for name, figure in self.peaks.items()}

    def matmul_unit(self, dtype: str) -> str:
        """The unit that multiplies matrices of a dtype: ``tensor.<dtype>`` where there is one, else
        ``vector.<dtype>``.

        float32 runs on the vector lanes (TF32 off, PyTorch's default); 16-bit dtypes without any
        unit of their own run at the float32 rate, which is how the libraries emulate them.
        """
        for unit in (f"tensor.{dtype}", f"vector.{dtype}"):
            if unit in self.peaks and not (dtype == "float32" and unit.startswith("tensor")):
                return unit
        return "vector.float32"

    @property
    def own_dtype(self) -> str:
        """The dtype one would use there: bfloat16 or float16 where matrix units take it, else
        float32."""
        return next(
            (name for name in ("bfloat16", "float16") if f"tensor.{name}" in self.peaks), "float32"
        )

    @property
    def is_calibrated(self) -> bool:
        """Whether numbers measured on this device are at hand."""
        return bool(self.measured)

    def with_measured(self, measured: Mapping[str, Any], about: Mapping[str, Any]) -> "Profile":
        """A copy with other measured numbers; the datasheet stays as it is."""
        return replace(self, measured=Measured(measured), measured_about=dict(about))


LARGEST = sys.float_info.max  # TOML's integers have no end, and nan is not below it either


def is_measured(value: Any) -> bool:
    """Whether it is a finite number or rows of them, at any depth."""
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(is_measured, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _is_told(value: Any) -> bool:
    """Whether it is what ``write_profile`` can write and read back: text, a flag, finite numbers,
    lists of those."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_told, value))
    return isinstance(value, (str, bool)) or is_measured(value)


def _check(profile: Profile) -> None:
    where = f"hardware profile {profile.name!r}"

    def wrong(message: str) -> RequestError:
        return RequestError(f"{where}: {message}")

    if profile.kind not in KINDS:
        raise wrong(f"kind must be one of {', '.join(KINDS)}, got {profile.kind!r}")
    for name, figure in profile.datasheet.items():
        if name not in FIGURES:
            raise unknown(f"{where}: datasheet figure", name, FIGURES)
        unit, low, high = FIGURES[name]
        if figure.unit != unit:
            raise wrong(f"{name} must be in {unit}, got {figure.unit!r}")
        if not low <= figure.value <= high:
            raise wrong(
                f"{name} must lie between {low:g} and {high:g} {unit}, got {figure.value:g}"
            )
        if not figure.source:
            raise wrong(f"{name} needs a source")
    missing = set(FIGURES) - OPTIONAL_FIGURES - set(profile.datasheet)
    if missing:
        raise wrong(f"missing in [datasheet]: {', '.join(sorted(missing))}")
    if "vector.float32" not in profile.peaks:
        raise wrong("[datasheet.peak_flops] needs 'vector.float32'")
    for name, figure in profile.peaks.items():
        if name not in PEAKS:
            raise unknown(f"{where}: peak", name, PEAKS)
        if figure.unit != "FLOP/s":
            raise wrong(f"peak {name} must be in FLOP/s, got {figure.unit!r}")
        if not PEAK_RANGE_FLOPS[0] <= figure.value <= PEAK_RANGE_FLOPS[1]:
            raise wrong(
                f"peak {name} must lie between {PEAK_RANGE_FLOPS[0]:g} and"
                f" {PEAK_RANGE_FLOPS[1]:g} FLOP/s"
            )
        if not figure.source:
            raise wrong(f"peak {name} needs a source")
    lanes_peak = 2 * profile.num_sms * profile.vector_lanes_per_sm * profile.boost_clock_hz
    quoted = profile.peaks["vector.float32"].value
    if abs(lanes_peak / quoted - 1) > PEAK_TOLERANCE:
        raise wrong(
            f"SMs x lanes x 2 x clock gives {lanes_peak:.4g} FLOP/s, but vector.float32"
            f" says {quoted:.4g}"
        )
    for name, value in profile.measured.items():
        try:
            check_measured(profile.kind, name, value)
        except RequestError as error:
            raise wrong(str(error)) from None
    for name, value in profile.sources.items():
        if not isinstance(value, str):
            raise wrong(f"source {name!r} must be text, got {short(value)}")
    for name, value in profile.measured_about.items():
        if not _is_told(value):
            raise wrong(
                f"measured_about {name!r} must be text, a flag, a finite number or a list"
                f" of them, got {short(value)}"
            )
