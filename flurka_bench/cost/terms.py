"""What every op model but the matmul's shares: constants, the parts of a prediction, cache shares
and the host's dispatch.

The constants of these kinds lie in ``constants/kernels.json``, one table a kind, fitted on many
devices by scripts/fit_cost_model.py; a device's own measured numbers stand over them. None is keyed
by a device's name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import unknown

CONSTANTS = Path(__file__).parent / "constants" / "kernels.json"
LAUNCHES = ("eager", "graph", "none")

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of each call's parts, arrays of one shape.

    ``kernel`` is the device's own time, which comes of ``compute`` (ordinary lanes, matrix units),
    ``special`` (special function units) and ``memory``, partly at once, and ``latency``. ``launch``
    is the host's or the graph's time for one call, of which the share ``overlap`` runs beside the
    kernel.
    """

    kernel: np.ndarray
    launch: float
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
        real = self.kernel.dtype.type
        if not self.overlap:
            return self.kernel + real(self.launch)
        first = real(self.launch * (1 - self.overlap))
        return norm((np.full_like(self.kernel, self.launch), first + self.kernel), 16)


@lru_cache
def shipped_table() -> dict[str, Any]:
    """The shipped constants, as ``constants/kernels.json`` holds them: kind -> name -> value."""
    return json.loads(CONSTANTS.read_text(encoding="utf-8"))


def constants_of(
    cls: type[C],
    kind: str,
    profile: Profile,
    prefixes: tuple[str, ...],
    table: Mapping[str, Any] | None = None,
) -> C:
    """The constants of a kind on a device: the shipped ones (or ``table``'s), over them what was
    measured.

    ``prefixes`` are those of the measured names, the later over the earlier.
    """
    values = dict((shipped_table() if table is None else table)[kind])
    values = {field.name: values[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    if profile.measured:
        for prefix in prefixes:
            values |= {
                name: profile.measured[prefix + name]
                for name in values
                if prefix + name in profile.measured
            }
    return cls(**values)


def norm(parts: tuple[Any, ...], exponent: float) -> np.ndarray:
    """The p-norm of several times: their maximum for a large exponent (perfect overlap), their sum
    for 1 (none)."""
    largest = np.float32(1e-20)
    for part in parts:
        largest = np.maximum(largest, part)
    if exponent == 4:  # powers are slow: squares and roots are not
        return largest * np.sqrt(
            np.sqrt(sum(np.square(np.square(part / largest)) for part in parts))
        )
    total = sum((part / largest) ** np.float32(exponent) for part in parts)
    return largest * total ** np.float32(1 / exponent)


def resident_share(touched_bytes: Any, l2_bytes: float, low: float, high: float) -> np.ndarray:
    """Share of reads found in L2 when this much is touched between two uses: 1 up to ``low`` x L2,
    0 from ``high`` x L2."""
    slope = np.float32(1 / ((high - low) * l2_bytes))
    return np.clip(
        np.float32(high / (high - low)) - touched_bytes * slope, np.float32(0), np.float32(1)
    )


def l2_bandwidth_bytes_per_s(profile: Profile, bytes_per_clock_per_sm: float) -> float:
    """What all SMs together exchange with the cache that they share."""
    return profile.num_sms * profile.boost_clock_hz * bytes_per_clock_per_sm


def launch_of(
    profile: Profile, launch: str, eager_s: float, graph_s: float, overlap: float
) -> dict[str, float]:
    """The ``launch`` and ``overlap`` of ``Terms``.

    Raises:
        RequestError: an unknown launch.
    """
    if launch not in LAUNCHES:
        raise unknown("launch", launch, LAUNCHES)
    seconds = {"eager": eager_s, "graph": graph_s, "none": 0.0}[launch]
    return {"launch": seconds, "overlap": overlap if launch == "eager" else 0.0}
