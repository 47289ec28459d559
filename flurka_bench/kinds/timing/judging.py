"""What the parent knows of a case without a clock: whether to try it, what its record holds, which
times are impossible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from flurka_bench.bench.kind import Place
from flurka_bench.cases.case import Case
from flurka_bench.devices.timers import diagnose
from flurka_bench.lowering import (
    lower,
    peak_memory_bytes,
)
from flurka_bench.words.sizes import SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a device can do at most in a case's dtype, None where nobody knows; beyond ``margin``
    times that is impossible."""

    flops_per_s: float
    bandwidth_bytes_per_s: float | None
    margin: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the parent wants to know of a case's op list."""

    flops: float
    matmul_flops: float
    bytes: float
    resident_bytes: float  # inputs, parameters and buffers
    peak_bytes: float


@lru_cache(maxsize=4096)
def figures(case: Case, device: str) -> Figures:
    """A case's figures, from its op list on ``device``: "cpu" or "cuda", as ``lower``
    takes it."""
    ops = lower(case, device)
    kept = {
        tensor.name: tensor
        for op in ops
        for tensor in op.reads
        if tensor.role in ("input", "parameter", "buffer")
    }
    return Figures(
        flops=float(sum(op.flops for op in ops)),
        matmul_flops=float(sum(op.matmul_flops for op in ops)),
        bytes=float(sum(op.bytes_read + op.bytes_written for op in ops)),
        resident_bytes=float(sum(tensor.bytes for tensor in kept.values())),
        peak_bytes=float(peak_memory_bytes(case, device)),
    )


def reason_to_skip(
    case: Case, too_large: Sequence[Case], memory_bytes: float | None, device: str
) -> str | None:
    """Why not to try a case: a smaller one of its family ran out of memory, or it needs more than
    ``memory_bytes``."""
    for other in too_large:
        if _same_family(case, other) and all(
            _size(case, name) >= _size(other, name) for name in SIZES
        ):
            return f"skipped: larger than an OOM ({other.case_id})"
    needed = figures(case, device).peak_bytes
    if memory_bytes is not None and needed > memory_bytes:
        return (
            f"skipped: needs about {needed / 1e9:.3g} GB, the suite's memory budget is"
            f" {memory_bytes / 1e9:.3g} GB"
        )
    return None


def make_record(
    case: Case,
    outcome: dict[str, Any],
    *,
    place: Place,
    seed: int,
    predict: Callable[[Case], dict[str, Any]] | None,
    peaks: Callable[[Case], Peaks | None] | None,
) -> dict[str, Any]:
    """A case's final record: the worker's outcome, its prediction beside it, invalid if it beats
    physics."""
    found = figures(case, place.kind)
    record: dict[str, Any] = {
        "case_id": case.case_id,
        "status": outcome["status"],
        **case.as_record(),
        "device": place.device,
        "seed": seed,
        "samples_s": [],
        "round_ids": [],
        "flops": found.flops,
        "bytes": found.bytes,
        **dict.fromkeys(
            ("median_s", "peak_memory_bytes", "predicted_s", "error")
        ),  # each record has them, null or not
    }
    if predict is not None:
        record |= predict(case)
    record |= outcome
    limits = peaks(case) if peaks is not None and record["status"] == "ok" else None
    if limits is not None:
        if impossible := _impossible(found, record["median_s"], limits, place.cache_bytes):
            record |= {"status": "invalid", "error": impossible}
        if limits.bandwidth_bytes_per_s is not None:
            record["limited_by"] = diagnose(
                eager_s=record["median_s"],
                device_s=record.get("device_s"),
                flops=found.flops,
                num_bytes=found.bytes,
                peak_flops_per_s=limits.flops_per_s,
                peak_bandwidth_bytes_per_s=limits.bandwidth_bytes_per_s,
            )
    return record


def _impossible(found: Figures, seconds: float, peaks: Peaks, cache_bytes: float) -> str | None:
    """By which physical bound the measured time is too short, if any."""
    if found.matmul_flops / seconds > peaks.margin * peaks.flops_per_s:
        return (
            f"faster than peak FLOPs: {found.matmul_flops / seconds:.3g} FLOP/s, the"
            f" device has {peaks.flops_per_s:.3g}"
        )
    # What must come from memory at least once: inputs and parameters, less what the cache may still
    # hold.
    moved = found.resident_bytes - cache_bytes
    if (
        peaks.bandwidth_bytes_per_s is not None
        and moved / seconds > peaks.margin * peaks.bandwidth_bytes_per_s
    ):
        return (
            f"faster than peak bandwidth: {moved / seconds:.3g} B/s, the device has"
            f" {peaks.bandwidth_bytes_per_s:.3g}"
        )
    return None


def weight(group: Sequence[Case], device: str) -> float:
    """How much of the time budget a group asks for: its FLOPs, and a constant for each case's own
    overheads."""
    return sum(figures(case, device).flops / 1e11 + 0.02 for case in group)


def _size(case: Case, name: str) -> int:
    return getattr(case, name) or 0


def _same_family(left: Case, right: Case) -> bool:
    return left.replace(**{name: getattr(right, name) for name in SIZES}) == right
