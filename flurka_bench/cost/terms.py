"""What the op models share: the parts of a prediction, p-norms, cache shares, bandwidth, the power
limit and the launch.

The shipped constants lie in ``constants/kernels.json`` (one table a kind, fitted by
scripts/kernel_models.py) and ``constants/matmul.json`` (scripts/fit_cost_model.py). A device's own
measured numbers stand over them. None is keyed by a device's name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import unknown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONSTANTS = Path(__file__).parent / "constants" / "kernels.json"
LAUNCHES = ("eager", "graph", "none")

C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of each call's parts, arrays of one shape.

    ``kernel`` is the device's own time, which comes of ``compute`` (ordinary lanes, matrix units),
    ``special`` (special function units) and ``memory``, partly at once, and ``latency``. ``launch``
    is the host's or the graph's time for one call, of which the share ``overlap`` runs beside the
    kernel.
    """

    kernel: np.ndarray
    launch: Any  # a number, or an array where calibration gave one a shape
    overlap: float
    compute: np.ndarray
    special: np.ndarray
    memory: np.ndarray
    latency: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """What single calls take with their launch.

        The kernel starts when ``1 - overlap`` of the dispatch is done and runs beside the rest of
        it, so that a call takes the longer of the dispatch and its first part plus the kernel;
        events around it on an idle stream see the same.
        """
        launch = np.asarray(self.launch, dtype=self.kernel.dtype)
        if not self.overlap:
            alone: np.ndarray = self.kernel + launch
            return alone
        first = launch * (1 - self.overlap)
        return norm((launch, first + self.kernel), 16)

    def launched(self, launch: float, overlap: float) -> "Terms":
        """The same kernel after another launch."""
        return replace(self, launch=launch, overlap=overlap)

    def reshaped(self, shape: tuple[int, ...]) -> "Terms":
        """The same terms in arrays of another shape."""
        names = ("kernel", "compute", "special", "memory", "latency")
        arrays = {name: getattr(self, name).reshape(shape) for name in names}
        launch = self.launch if np.isscalar(self.launch) else self.launch.reshape(shape)
        return replace(self, **arrays, launch=launch)


@lru_cache
def shipped_table() -> dict[str, Any]:
    """The shipped constants, as ``constants/kernels.json`` holds them: kind -> name -> value."""
    table: dict[str, Any] = json.loads(CONSTANTS.read_text(encoding="utf-8"))
    return table


def constants_of(cls: type[C], shipped: Mapping[str, Any], *measured: Mapping[str, Any]) -> C:
    """The constants of a kind: the shipped ones, over them the measured ones, the later over the
    earlier. Names that the class lacks are left out."""
    names = {field.name for field in fields(cls)}
    values: dict[str, Any] = {}
    for table in (shipped, *measured):
        values |= {name: value for name, value in table.items() if name in names}
    return cls(**values)


def norm(parts: tuple[Any, ...], exponent: float) -> np.ndarray:
    """The p-norm of several times: their maximum for a large exponent (perfect overlap), their sum
    for 1 (none)."""
    total: Any
    largest: Any = np.float32(1e-20)
    for part in parts:
        largest = np.maximum(largest, part)
    if exponent == 4:  # powers are slow: squares and roots are not
        total = np.sqrt(np.sqrt(sum(np.square(np.square(part / largest)) for part in parts)))
    else:
        real = np.asarray(largest).dtype.type
        total = sum((part / largest) ** real(exponent) for part in parts) ** real(1 / exponent)
    together: np.ndarray = largest * total
    return together


def resident_share(touched_bytes: Any, l2_bytes: float, low: float, high: float) -> np.ndarray:
    """Share of reads found in L2 when this much is touched between two uses: 1 up to ``low`` x L2,
    0 from ``high`` x L2."""
    slope = np.float32(1 / ((high - low) * l2_bytes))
    share: np.ndarray = np.clip(
        np.float32(high / (high - low)) - touched_bytes * slope, np.float32(0), np.float32(1)
    )
    return share


def missed_share(touched_bytes: Any, capacity_bytes: float, sharpness: float) -> np.ndarray:
    """Share of reads that miss a cache in which operands of all sizes compete, as a product's
    tiles do: near 0 far below the capacity, 1/2 at it, near 1 far above."""
    with np.errstate(divide="ignore", over="ignore"):
        share: np.ndarray = 1 / (1 + (capacity_bytes / np.asarray(touched_bytes)) ** sharpness)
    return share


def dram_bandwidth_bytes_per_s(profile: Profile, efficiency: float) -> float:
    """What a kernel reaches: a share of the datasheet's bandwidth, lower where the profile knows
    the memory to be slower (``memory_usable_share``).

    Calibration may move the efficiency past what the memory can do; no prediction follows it there.
    """
    return profile.memory_bandwidth_bytes_per_s * min(efficiency * profile.memory_usable_share, 1.0)


def l2_bandwidth_bytes_per_s(profile: Profile, bytes_per_clock_per_sm: float) -> float:
    """What all SMs together exchange with the cache that they share."""
    return profile.num_sms * profile.boost_clock_hz * bytes_per_clock_per_sm


def launch_of(constants: Any, launch: str) -> dict[str, float]:
    """The ``launch`` and ``overlap`` of ``Terms``; rows of files may also be timed by ``events``.

    Raises:
        RequestError: an unknown launch.
    """
    if launch == "none":
        return {"launch": 0.0, "overlap": 0.0}
    seconds = getattr(constants, f"launch_{launch}_s", None)
    if seconds is None:
        raise unknown("launch", launch, LAUNCHES)
    return {"launch": seconds, "overlap": constants.host_overlap if launch == "eager" else 0.0}
