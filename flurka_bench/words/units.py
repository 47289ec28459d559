"""Quantities as people write and read them: parsing of options, formatting of answers."""

import math
import re

from flurka_bench.words.errors import RequestError

_BYTES = {
    "B": 1,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "TB": 1e12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SECONDS = {
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
    "min": 60.0,
    "h": 3600.0,
}
# Sizes count positions, heads and rows, so k is 1024 as in "a 16k context", not 1000.
_COUNTS = {"": 1, "k": 2**10, "m": 2**20}
SIZE_FORM = "16k is 16384"
UNKNOWN = "n/a"  # what a quantity says that nobody knows


def _parse(text: str, scale: dict[str, float], what: str, example: str) -> float:
    units = ", ".join(scale)
    factors = {name.lower(): factor for name, factor in scale.items()}
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-zµμ]*)\s*", str(text))
    unit = match[2].lower().replace("μ", "µ") if match else ""  # Greek mu for the micro sign
    if match and not unit:
        raise RequestError(
            f"{what} needs a unit of {units}: {match[1]} of what? (like {example}), got {text!r}"
        )
    if not match or unit not in factors:
        raise RequestError(
            f"{what} must be a positive number with a unit of {units} (like {example}), got {text!r}"
        )
    value = float(match[1]) * factors[unit]
    if not (math.isfinite(value) and value > 0):
        raise RequestError(f"{what} must be finite and above 0 (like {example}), got {text!r}")
    return value


def parse_bytes(text: str, what: str = "memory") -> int:
    """``"40GB"`` -> 40_000_000_000. Raises RequestError naming the units, also where none is
    given."""
    return int(_parse(text, _BYTES, what, "40GB"))


def parse_seconds(text: str, what: str = "time") -> float:
    """``"2ms"`` -> 0.002. Raises RequestError naming the units, also where none is given."""
    return _parse(text, _SECONDS, what, "2ms")


def parse_size(text: str, what: str = "size") -> int:
    """``"4096"``, ``"16k"``, ``"1M"`` -> 4096, 16384, 1048576. Raises RequestError for anything
    that is no whole number of at least 1."""
    match = re.fullmatch(r"\s*([0-9]{1,4000})\s*([kKmM]?)\s*", str(text))
    value = int(match[1]) * _COUNTS[match[2].lower()] if match else 0
    if value < 1:
        raise RequestError(
            f"{what} must be a whole number of at least 1 (like 4096 or 4k; {SIZE_FORM}), got {str(text)[:80]!r}"
        )
    return value


def parse_fraction(text: str, what: str = "threshold") -> float:
    """``"5%"`` or ``"0.05"`` -> 0.05. Raises RequestError for anything outside (0, 1]."""
    raw = str(text).strip()
    try:
        value = float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise RequestError(
            f"{what} must be above 0% and at most 100% (like 5% or 0.05), got {text!r}"
        )
    return value


def _scaled(value: float, steps: list[tuple[float, str]], digits: int) -> str:
    rounds_up = 1 - 0.5 * 10.0**-digits  # 0.9996 ms to three digits is 1 ms, not 1e+03 µs
    factor, unit = next((step for step in steps if abs(value) >= rounds_up * step[0]), steps[-1])
    scaled = value / factor
    return f"{scaled:.{max(digits, len(str(int(abs(scaled)))))}g} {unit}"  # 115, not 1.2e+02


def format_seconds(seconds: float | None, digits: int = 3) -> str:
    """``0.00123`` -> ``"1.23 ms"``; None and nan -> ``"n/a"``."""
    if seconds is None or math.isnan(seconds):
        return UNKNOWN
    if seconds >= 48 * 3600:
        return f"{seconds / 86400:.{digits}g} days"
    if seconds >= 2 * 3600:
        hours, rest = divmod(round(seconds / 60), 60)
        return f"{hours} h {rest} min"
    if seconds >= 120:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    return _scaled(seconds, [(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")], digits)


def format_bytes(count: float | None, digits: int = 3) -> str:
    """``4.2e9`` -> ``"4.2 GB"`` (powers of ten); None and nan -> ``"n/a"``."""
    if count is None or math.isnan(count):
        return UNKNOWN
    return _scaled(count, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")], digits)


def format_ratio(ratio: float | None) -> str:
    """``1.234`` -> ``"1.23×"``; large ratios lose their decimals."""
    if ratio is None or math.isnan(ratio):
        return UNKNOWN
    return f"{ratio:.0f}×" if ratio >= 100 else f"{ratio:.1f}×" if ratio >= 10 else f"{ratio:.2f}×"
