"""How far a prediction can be trusted: bands by split conformal prediction, for one op, a sum of
ops and a ratio of cases.

The residual log(measured / predicted) of held-out rows has two parts. What all rows of a device
share (its *scale*) is fully correlated between the ops of a case and cancels in a speedup; what is
left (the *shape* noise) is only partly so. ``constants/bands.json`` holds the half-widths that
cover 90 % of held-out rows by kind of op, dtype class and regime: ``datasheet`` and its shape part
from devices left out one at a time, ``calibrated`` from the rows that 20 calibration rows did not
touch. scripts/kernel_models.py writes the file and prints the coverage. Two entries have no such
rows: ``dispatch``, the host's time for an op, spreads as far as the slowest of the five hosts in
the data lies from their median, and ``cpu`` is a CPU that nobody calibrated, whose memory bandwidth
is not even known.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.hardware.profile import Profile
from flurka_bench.words.verdict import Estimate

BANDS = Path(__file__).parent / "constants" / "bands.json"
LEVEL = 0.9

# Share of the shape noise that ops of one case have in common: residuals of neighbouring shapes go
# together, those of different kernels hardly. Between the one case that adds them up (1) and the
# one that averages them out (0).
SHAPE_CORRELATION = 0.5
SMALL_SECONDS = 30e-6  # kernels shorter than this are mostly start, end and quantised timer


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """Half-widths in log-seconds: ``scale`` for the device as a whole, ``shape`` for the single
    op."""

    scale: float
    shape: float


@lru_cache
def shipped_bands() -> dict[str, Any]:
    """The shipped half-widths: kind -> regime -> {datasheet, shape, calibrated}."""
    bands: dict[str, Any] = json.loads(BANDS.read_text(encoding="utf-8"))
    return bands


def conformal_half_width(residuals: np.ndarray, level: float = LEVEL) -> float:
    """The split-conformal quantile of |residuals|: a new row lies within it with probability
    ``level`` at least."""
    magnitudes = np.sort(np.abs(residuals))
    return float(magnitudes[min(len(magnitudes), int(np.ceil((len(magnitudes) + 1) * level))) - 1])


def family(kind: str, dtype: str, profile: Profile) -> str:
    """Which entry of the table an op belongs to: its kind, matmuls apart by the unit that
    multiplies."""
    if profile.kind == "cpu":
        return "cpu"
    if kind == "matmul":
        return f"matmul-{profile.matmul_unit(dtype).split('.')[0]}"
    return {"copy": "elementwise", "reduction": "elementwise"}.get(kind, kind)


def regime(kernel_s: Any) -> np.ndarray:
    """True where a kernel is long enough that its own time, not its start and end, decides."""
    return np.asarray(kernel_s) >= SMALL_SECONDS


def bands(kind: str, dtype: str, profile: Profile) -> dict[bool, Band]:
    """The half-widths of an op, by regime (True: long kernels).

    With calibrated constants for this kind the device's scale is known and only the calibrated
    width is left.
    """
    name = family(kind, dtype, profile)
    if name == "cpu":
        calibrated = profile.is_calibrated
    elif kind == "dispatch":
        calibrated = profile.measured.figure("launch_eager_s") is not None
    else:
        calibrated = profile.measured.knows(*(("matmul", dtype) if kind == "matmul" else (name,)))
    result = {}
    for long, entry in ((False, "small"), (True, "large")):
        width = shipped_bands()[name][entry]
        if calibrated:
            result[long] = Band(scale=0.0, shape=width["calibrated"])
        else:
            scale = np.sqrt(max(width["datasheet"] ** 2 - width["shape"] ** 2, 0.0))
            result[long] = Band(scale=float(scale), shape=width["shape"])
    return result


class Sum:
    """Collects ops' seconds with their bands and carries the bands to the total (arrays of one
    shape)."""

    def __init__(self) -> None:
        self._scale: Any = 0.0
        self._shape: Any = 0.0
        self._squares: Any = 0.0

    def add(self, seconds: Any, kernel_s: Any, band: dict[bool, Band]) -> None:
        """One op that takes ``seconds`` of the total and whose kernel alone takes ``kernel_s``."""
        long = regime(kernel_s)
        real = np.asarray(seconds).dtype.type
        self._scale = self._scale + seconds * np.where(
            long, real(band[True].scale), real(band[False].scale)
        )
        noise = seconds * np.where(long, real(band[True].shape), real(band[False].shape))
        self._shape = self._shape + noise
        self._squares = self._squares + noise * noise

    def half_widths(self, total: Any) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shape) half-widths of the total in log-seconds."""
        shape = SHAPE_CORRELATION * self._shape**2 + (1 - SHAPE_CORRELATION) * self._squares
        return self._scale / total, np.sqrt(shape) / total


def interval(seconds: Any, scale: Any, shape: Any) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of a total with these half-widths."""
    width = np.exp(np.hypot(scale, shape))
    return seconds / width, seconds * width


def ratio_half_width(scales: tuple[Any, Any], shapes: tuple[Any, Any]) -> Any:
    """Half-width, in logs, of the ratio of two times on one device, from each side's half-widths.

    The device's common error cancels: only the difference of the two scales is left. The shapes
    are independent and add in quadrature.
    """
    return np.hypot(scales[0] - scales[1], np.hypot(*shapes))


def ratio_band(ratio: float, scales: tuple[float, float], shapes: tuple[float, float]) -> Estimate:
    """``seconds_b / seconds_a`` on one device with its band."""
    width = float(np.exp(ratio_half_width(scales, shapes)))
    return Estimate(ratio=ratio, low=ratio / width, high=ratio * width)


def coverage(log_residuals: Iterable[float], half_widths: Iterable[float]) -> float:
    """Share of rows whose residual lies within its half-width."""
    return float(np.mean(np.abs(np.asarray(list(log_residuals))) <= np.asarray(list(half_widths))))
