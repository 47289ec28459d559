"""What every op model but the matmul's shares: constants, the parts of a prediction, cache shares and the host's dispatch.

The constants of these kinds lie in ``constants/kernels.json``, one table a kind, fitted on many devices by
scripts/fit_cost_model.py; a device's own measured numbers stand over them. None is keyed by a device's name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flurka_bench.errors import unknown
from flurka_bench.hardware.profile import Profile

CONSTANTS = Path(__file__).parent / "constants" / "kernels.json"
LAUNCHES = ("eager", "graph", "none")

C = TypeVar("C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Seconds of each call and of its parts, arrays of one shape.

    ``seconds`` is what a single call takes with its launch; ``kernel`` the device's own time, which is the p-norm of
    ``compute`` (ordinary lanes, matrix units), ``special`` (special function units) and ``memory`` plus ``latency``.
    ``launch`` is the host's or the graph's time for one call; the host's overlaps the kernel.
    """

    seconds: np.ndarray
    kernel: np.ndarray
    launch: float
    compute: np.ndarray
    special: np.ndarray
    memory: np.ndarray
    latency: np.ndarray


@lru_cache
def shipped_table() -> dict[str, Any]:
    """The shipped constants, as ``constants/kernels.json`` holds them: kind -> name -> value."""
    return json.loads(CONSTANTS.read_text(encoding="utf-8"))


def constants_of(
    cls: type[C], kind: str, profile: Profile, prefixes: tuple[str, ...], table: Mapping[str, Any] | None = None
) -> C:
    """The constants of a kind on a device: the shipped ones (or ``table``'s), over them what was measured.

    ``prefixes`` are those of the measured names, the later over the earlier.
    """
    values = dict((shipped_table() if table is None else table)[kind])
    values = {field.name: values[field.name] for field in fields(cls)}  # type: ignore[arg-type]
    if profile.kind == "cpu":
        values["launch_eager_s"] = CPU_DISPATCH_SECONDS
    if profile.measured:
        for prefix in prefixes:
            values |= {name: profile.measured[prefix + name] for name in values if prefix + name in profile.measured}
    return cls(**values)


# A CPU op's dispatch in PyTorch; there is no device to launch on. Calibration measures the machine's own.
CPU_DISPATCH_SECONDS = 4e-6


def norm(parts: tuple[Any, ...], exponent: float) -> np.ndarray:
    """The p-norm of several times: their maximum for a large exponent (perfect overlap), their sum for 1 (none)."""
    largest = parts[0]
    for part in parts[1:]:
        largest = np.maximum(largest, part)
    if exponent >= 50:
        return largest
    largest = np.maximum(largest, np.float32(1e-20))
    total = sum((part / largest) ** np.float32(exponent) for part in parts)
    return largest * total ** np.float32(1 / exponent)


def resident_share(touched_bytes: Any, l2_bytes: float, low: float, high: float) -> np.ndarray:
    """Share of reads found in L2 when this much is touched between two uses: 1 up to ``low`` x L2, 0 from ``high`` x L2."""
    span = np.float32(1 / np.log(high / low))
    used = np.maximum(touched_bytes, np.float32(1))
    return np.clip((np.float32(np.log(high * l2_bytes)) - np.log(used)) * span, np.float32(0), np.float32(1))


def l2_bandwidth_bytes_per_s(profile: Profile, bytes_per_clock_per_sm: float) -> float:
    """What all SMs together exchange with the cache that they share."""
    return profile.num_sms * profile.boost_clock_hz * bytes_per_clock_per_sm


def with_launch(profile: Profile, kernel: np.ndarray, launch: str, eager_s: float, graph_s: float, overlap: float) -> tuple:
    """(seconds, launch seconds) of single calls with these kernel times.

    Eager: the kernel starts when ``1 - overlap`` of the dispatch is done and runs beside the rest of it, so that a call
    takes the longer of the dispatch and its first part plus the kernel (events around it on an idle stream see the same).
    A CPU computes on the thread that dispatches: nothing overlaps. Raises RequestError for an unknown launch.
    """
    if launch not in LAUNCHES:
        raise unknown("launch", launch, LAUNCHES)
    if launch == "none":
        return kernel, 0.0
    if launch == "graph":
        return kernel + kernel.dtype.type(graph_s), graph_s
    if profile.kind == "cpu":
        return kernel + kernel.dtype.type(eager_s), eager_s
    first = kernel.dtype.type(eager_s * (1 - overlap))
    return norm((np.full_like(kernel, eager_s), first + kernel), 16), eager_s
