"""A hardware target as data: datasheet figures, each with unit and source, and apart from them what was measured.

One TOML file a target lies under ``profiles/``; a user's own file is taken by path. Nothing here is looked up by
substring: a name or an alias matches exactly, or the error offers the nearest.
"""

import math
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from flurka_bench.errors import RequestError, unknown
from flurka_bench.toml import parse_toml

SCHEMA = 1
FOLDER = Path(__file__).parent / "profiles"

# The figures of the [datasheet] table: unit, and the range outside which a value is a slip of the pen (a bandwidth in
# GB/s, a clock in MHz), not a machine.
FIGURES: dict[str, tuple[str, float, float]] = {
    "num_sms": ("count", 1, 1024),  # streaming multiprocessors, compute units, GPU cores or CPU threads
    "vector_lanes_per_sm": ("count", 1, 1024),  # float32 fused multiply-adds a clock
    "special_per_clock_per_sm": ("count", 0.05, 1024),  # exponentials a clock
    "boost_clock_hz": ("Hz", 2e8, 7e9),
    "tensor_clock_hz": ("Hz", 2e8, 7e9),  # where the peak of the matrix units is quoted at another clock
    "base_clock_hz": ("Hz", 2e8, 7e9),
    "memory_bytes": ("B", 1e9, 4e12),
    "memory_bandwidth_bytes_per_s": ("B/s", 5e9, 3e13),
    "memory_usable_share": ("ratio", 0.3, 1),  # of that bandwidth, where ECC in the same memory or an early controller takes some
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

# FLOPs that the matrix units of one SM do in a clock are powers of two by construction, or 3/4 of one where the vendor
# quotes a rate between; used to check that SMs x rate x clock meets the quoted peak.
PEAK_TOLERANCE = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of a datasheet: value in SI units, the unit, where it is written, and what a reader must know."""

    value: float
    unit: str
    source: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One hardware target.

    Datasheet figures are attributes (``profile.num_sms``, ``profile.memory_bandwidth_bytes_per_s``) in SI units;
    ``peak_flops`` maps ``"tensor.bfloat16"``, ``"vector.float32"``, ... to dense FLOP/s. ``measured`` holds the numbers
    that calibration found, under the names that the cost model reads, and is empty where only the datasheet is known.

    ``matmul_library`` and ``attention_kernel`` name the generation of the kernels that run on this architecture; the
    cost model keeps a table of tiles for each generation, never for a device.
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
    device_names: tuple[str, ...] = ()  # what the driver calls it, to recognise the device that is at hand
    measured: Mapping[str, Any] = field(default_factory=dict)
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
        """The clock that the matrix peaks are quoted at; the boost clock where the vendor names no other."""
        return self._figure("tensor_clock_hz") or self.boost_clock_hz

    @cached_property
    def base_clock_hz(self) -> float:
        """The guaranteed clock; the boost clock where it is not published."""
        return self._figure("base_clock_hz") or self.boost_clock_hz

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
        """Share of the peak bandwidth that ECC kept in the same memory, or an early memory controller, leaves."""
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
    def process_nm(self) -> float | None:
        """The process node's name as a number (4 for TSMC 4N), or None."""
        return self._figure("process_nm")

    @cached_property
    def peak_flops(self) -> dict[str, float]:
        """Dense peak FLOP/s by unit and dtype."""
        return {name: figure.value for name, figure in self.peaks.items()}

    def matmul_unit(self, dtype: str) -> str:
        """The unit that multiplies matrices of a dtype: ``tensor.<dtype>`` where there is one, else ``vector.<dtype>``.

        float32 runs on the vector lanes (TF32 off, PyTorch's default); 16-bit dtypes without any unit of their own run
        at the float32 rate, which is how the libraries emulate them.
        """
        for unit in (f"tensor.{dtype}", f"vector.{dtype}"):
            if unit in self.peaks and not (dtype == "float32" and unit.startswith("tensor")):
                return unit
        return "vector.float32"

    @property
    def is_calibrated(self) -> bool:
        """Whether numbers measured on this device are at hand."""
        return bool(self.measured)

    def ridge_flops_per_byte(self, dtype: str) -> float:
        """Arithmetic intensity at which compute and memory peaks meet (Williams et al. 2009)."""
        return self.peaks[self.matmul_unit(dtype)].value / self.memory_bandwidth_bytes_per_s

    def with_measured(self, measured: Mapping[str, Any], about: Mapping[str, Any]) -> "Profile":
        """A copy with other measured numbers; the datasheet stays as it is."""
        return replace(self, measured=dict(measured), measured_about=dict(about))


_LARGEST = sys.float_info.max  # TOML's integers have no end, and nan is not below it either


def _short(value: Any) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):  # thousands of digits (from hexadecimal), or dotted keys nested too deeply
        return f"a {type(value).__name__} too long to show"


def _is_measured(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(map(_is_measured, value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _is_told(value: Any) -> bool:
    """Whether it is what ``write_profile`` can write and read back: text, a flag, finite numbers, lists of those."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_told, value))
    return isinstance(value, (str, bool)) or _is_measured(value)


def _as_floats(value: Any) -> Any:
    """Numbers as floats, at any depth; what is none is left for the check to refuse."""
    if isinstance(value, list):
        return [_as_floats(entry) for entry in value]
    return float(value) if _is_measured(value) else value


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
            raise wrong(f"{name} must lie between {low:g} and {high:g} {unit}, got {figure.value:g}")
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
            raise wrong(f"peak {name} must lie between {PEAK_RANGE_FLOPS[0]:g} and {PEAK_RANGE_FLOPS[1]:g} FLOP/s")
        if not figure.source:
            raise wrong(f"peak {name} needs a source")
    lanes_peak = 2 * profile.num_sms * profile.vector_lanes_per_sm * profile.boost_clock_hz
    quoted = profile.peaks["vector.float32"].value
    if abs(lanes_peak / quoted - 1) > PEAK_TOLERANCE:
        raise wrong(f"SMs x lanes x 2 x clock gives {lanes_peak:.4g} FLOP/s, but vector.float32 says {quoted:.4g}")
    for name, value in profile.measured.items():
        if not _is_measured(value):
            raise wrong(f"measured {name!r} must be a finite number or rows of them, got {_short(value)}")
    for name, value in profile.sources.items():
        if not isinstance(value, str):
            raise wrong(f"source {name!r} must be text, got {_short(value)}")
    for name, value in profile.measured_about.items():
        if not _is_told(value):
            raise wrong(f"measured_about {name!r} must be text, a flag, a finite number or a list of them, got {_short(value)}")


def _figures(where: str, table: Any) -> dict[str, Figure]:
    if not isinstance(table, dict):
        raise RequestError(f"{where} must be a table of figures")
    figures = {}
    for name, entry in table.items():
        here = f"{where}.{name}" if name.isprintable() else f"{where}.{name!r}"
        if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry) <= {"value", "unit", "source", "note"}:
            raise RequestError(f"{here} must be {{ value = …, unit = …, source = … }} (note is optional), got {_short(entry)}")
        if isinstance(entry["value"], bool) or not isinstance(entry["value"], (int, float)) or abs(entry["value"]) > _LARGEST:
            raise RequestError(f"{here}: value must be a number, got {_short(entry['value'])}")
        if not all(isinstance(entry.get(key, ""), str) for key in ("unit", "source", "note")):
            raise RequestError(f"{here}: unit, source and note must be text")
        figures[name] = Figure(**{**entry, "value": float(entry["value"])})
    return figures


_HEADER = {"schema", "name", "title", "vendor", "kind", "architecture", "matmul_library", "attention_kernel", "aliases",
           "device_names", "sources", "datasheet", "measured", "measured_about"}  # fmt: skip


def parse_profile(text: str, where: str) -> Profile:
    """A profile from TOML text; RequestError says what is wrong and where."""
    data = parse_toml(text, where)
    if isinstance(data.get("schema"), bool) or data.get("schema") != SCHEMA:
        raise RequestError(f"{where}: schema must be {SCHEMA}, got {_short(data.get('schema'))}")
    for key in data:
        if key not in _HEADER:
            raise unknown(f"{where}: key", key, _HEADER)
    words = {}
    for key in ("name", "title", "vendor", "kind", "architecture", "matmul_library", "attention_kernel"):
        if not isinstance(data.get(key), str) or not data[key]:
            raise RequestError(f"{where}: {key} must be text, got {_short(data.get(key))}")
        words[key] = data[key]
    for key, kind in (
        ("aliases", list),
        ("device_names", list),
        ("sources", dict),
        ("datasheet", dict),
        ("measured", dict),
        ("measured_about", dict),
    ):
        if not isinstance(data.get(key, kind()), kind):
            raise RequestError(f"{where}: {key} must be a {'list' if kind is list else 'table'}, got {_short(data[key])}")
    datasheet = dict(data.get("datasheet", {}))
    peaks = _figures(f"{where}: [datasheet.peak_flops]", datasheet.pop("peak_flops", {}))
    for key in ("aliases", "device_names"):
        if not all(isinstance(alias, str) for alias in data.get(key, [])):
            raise RequestError(f"{where}: {key} must be a list of names")
    return Profile(
        **words,
        aliases=tuple(data.get("aliases", ())),
        device_names=tuple(data.get("device_names", ())),
        sources=data.get("sources", {}),
        datasheet=_figures(f"{where}: [datasheet]", datasheet),
        peaks=peaks,
        measured={name: _as_floats(value) for name, value in data.get("measured", {}).items()},
        measured_about=data.get("measured_about", {}),
    )


def _read(path: Path) -> Profile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read hardware profile {path}: {error}") from None
    return parse_profile(text, str(path))


@lru_cache
def _index() -> dict[str, str]:
    """Name and alias -> file stem, read from the first lines of each file so that one look-up parses one file."""
    index: dict[str, str] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        index[path.stem] = path.stem
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("aliases"):
                for alias in tomllib.loads(line)["aliases"]:
                    assert alias not in index, f"alias {alias} of {path.stem} is taken by {index[alias]}"
                    index[alias] = path.stem
            if line.startswith("["):
                break
    return index


def names() -> list[str]:
    """The shipped targets' names, without aliases."""
    return sorted(set(_index().values()))


@lru_cache
def load(name_or_path: str) -> Profile:
    """A target by exact name, alias, or the path of a TOML file.

    Raises:
        RequestError: no such target (the nearest is offered) or a file that is not a valid profile.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read(Path(name_or_path))
    stem = _index().get(name_or_path.lower())
    if stem is None:
        error = unknown("hardware", name_or_path, _index())
        raise RequestError(f"{error}; or the path of a profile (.toml), as 'flurka-bench calibrate' writes it")
    return _read(FOLDER / f"{stem}.toml")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in str(value).replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


def _number(value: float) -> str:
    """A figure as people write it: small counts as integers, large ones with an exponent of a multiple of three."""
    if value < 1e6:
        return f"{value:.12g}"
    exponent = 3 * int(math.log10(value) // 3)
    return f"{value / 10**exponent:.12g}e{exponent}"


def _figure_line(name: str, figure: Figure) -> str:
    note = f", note = {_toml_value(figure.note)}" if figure.note else ""
    unit, source = _toml_value(figure.unit), _toml_value(figure.source)
    key = _toml_value(name) if "." in name else name
    return f"{key} = {{ value = {_number(figure.value)}, unit = {unit}, source = {source}{note} }}"


def write_profile(profile: Profile) -> str:
    """The profile as TOML text; ``parse_profile`` reads back the same profile."""
    lines = [f"schema = {SCHEMA}"]
    for key in ("name", "title", "vendor", "kind", "architecture", "matmul_library", "attention_kernel"):
        lines.append(f"{key} = {_toml_value(getattr(profile, key))}")
    lines.append(f"aliases = {_toml_value(profile.aliases)}")
    lines.append(f"device_names = {_toml_value(profile.device_names)}")
    lines += ["", "[sources]", *[f"{_toml_value(key)} = {_toml_value(text)}" for key, text in profile.sources.items()]]
    lines += ["", "[datasheet]", *[_figure_line(name, figure) for name, figure in profile.datasheet.items()]]
    lines += ["", "[datasheet.peak_flops]", *[_figure_line(name, figure) for name, figure in profile.peaks.items()]]
    if profile.measured:
        lines += [
            "",
            "[measured]",
            *[
                f"{_toml_value(key)} = {_toml_value(value if isinstance(value, (list, tuple)) else float(value))}"
                for key, value in profile.measured.items()
            ],
        ]
    if profile.measured_about:
        lines += [
            "",
            "[measured_about]",
            *[f"{_toml_value(key)} = {_toml_value(value)}" for key, value in profile.measured_about.items()],
        ]
    return "\n".join(lines) + "\n"
