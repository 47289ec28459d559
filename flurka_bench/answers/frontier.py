"""What an error run says about a mechanism: intervals, read from its records. Imports neither torch
nor pandas.

The *error* here is ``output_error``, the relative error of a layer's attention output over all
heads, and its interval is the 10th percentile, median and 90th percentile over layers and seeds:
what to expect of one layer on one input.

Between measured points the logarithm of each is interpolated linearly in log rank, log num_features
and log seq_len; nothing is ever extrapolated, and head_dim and family must match exactly. A dense
compression is answered by the learned projection, since users train E and F, and mean-pool by
itself; what was not measured (conv, sizes outside the grid) is None, "not measured".
"""

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from flurka_bench.cases.registry import COMPRESSIONS, is_exact
from flurka_bench.results import read_run
from flurka_bench.results.error import FORM
from flurka_bench.words.errors import unknown

_SAME_NUMBERS = {"low-rank-sdpa": "low-rank"}  # the same arithmetic by another kernel
_GROUP = (
    "family",
    "inputs",
    "seq_len",
    "head_dim",
    "mechanism",
    "projection",
    "share_kv",
    "rank",
    "num_features",
)


class Interval(NamedTuple):
    """10th percentile, median and 90th percentile of output_error."""

    low: float
    median: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One configuration on one kind of input, over its layers and seeds; ``means`` holds the other
    metrics' means."""

    family: str
    inputs: str
    seq_len: int
    head_dim: int
    mechanism: str
    projection: str | None
    share_kv: bool
    rank: int | None
    num_features: int | None
    num_records: int
    error: Interval
    means: dict[str, float]


def interval(values: Iterable[float]) -> Interval:
    """The interval of a non-empty sample (linear interpolation between order statistics)."""
    values = sorted(values)
    if len(values) == 1:
        return Interval(values[0], values[0], values[0])
    cuts = quantiles(values, n=20, method="inclusive")
    return Interval(cuts[1], cuts[9], cuts[17])


def summarise(records: Iterable[dict[str, Any]]) -> list[Summary]:
    """One summary per configuration and kind of input, of the records with status ok, in the order
    of the run."""
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record["status"] == "ok":
            groups[tuple(record.get(name) for name in _GROUP)].append(record)
    return [
        Summary(
            **dict(zip(_GROUP, key)),
            num_records=len(group),
            error=interval(record["output_error"] for record in group),
            means=dict(_means(group)),
        )
        for key, group in groups.items()
    ]


def _means(group: list[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    scalars = ("output_error", "low_rank_error", "low_rank_step", "kernel_error", "kernel_step")
    for name in ("matrix_frobenius", "matrix_spectral", "kl_nats", "output_cosine", *scalars):
        found = [record[name] for record in group if record.get(name) is not None]
        values = found if name in scalars else [value for by_head in found for value in by_head]
        if values:
            yield name, math.fsum(values) / len(values)


class ErrorRun:
    """A finished error run, to be asked for intervals."""

    def __init__(self, records: list[dict[str, Any]], meta: dict[str, Any] | None = None) -> None:
        self.meta = meta or {}
        self.summaries = summarise(records)

    @property
    def families(self) -> list[str]:
        """What ``family`` may be: family names, and labels with parameters where a family was
        measured with several."""
        labels: dict[str, set[str]] = defaultdict(set)
        for item in self.summaries:
            labels[item.family].add(item.inputs)
        return sorted(
            {
                *(label for group in labels.values() for label in group),
                *(n for n, group in labels.items() if len(group) == 1),
            }
        )

    def sizes_in_words(self, family: str) -> str:
        """The sizes at which ``family`` was measured, like "N = 256, 512 with d = 32"."""
        by_width: dict[int, set[int]] = defaultdict(set)
        for item in self.summaries:
            if family in (item.family, item.inputs):
                by_width[item.head_dim].add(item.seq_len)
        return "; ".join(
            f"N = {', '.join(map(str, sorted(sizes)))} with d = {d}"
            for d, sizes in sorted(by_width.items())
        )

    def error_interval(
        self,
        *,
        mechanism: str,
        rank: int | None = None,
        num_features: int | None = None,
        seq_len: int,
        head_dim: int,
        family: str,
        compression: str = "dense",
    ) -> Interval | None:
        """The error to expect, or None where it was not measured (see the module's text for what is
        interpolated).

        Raises RequestError for a family that the run does not have.
        """
        if family not in self.families:
            raise unknown("input family of this error run (--inputs)", family, self.families)
        if is_exact(mechanism):
            return Interval(0.0, 0.0, 0.0)
        mechanism = _SAME_NUMBERS.get(mechanism, mechanism)
        compressed = rank is not None
        points: dict[tuple[int, int, int], Interval] = {}
        for item in self.summaries:
            if (item.mechanism, item.head_dim) != (mechanism, head_dim) or family not in (
                item.family,
                item.inputs,
            ):
                continue
            if compressed and item.projection != COMPRESSIONS[compression].projection:
                continue
            points[item.seq_len, item.rank or 1, item.num_features or 1] = item.error
        return interpolate(points, (seq_len, rank or 1, num_features or 1))


def interpolate(points: dict[tuple[int, ...], Interval], at: tuple[int, ...]) -> Interval | None:
    """Multilinear interpolation in the logarithms of coordinates and errors; None outside the grid
    or beside a gap in it."""
    brackets = []
    for axis, wanted in enumerate(at):
        values = sorted({point[axis] for point in points})
        place = bisect_left(values, wanted)
        if place < len(values) and values[place] == wanted:
            brackets.append([(wanted, 1.0)])
            continue
        if place in (0, len(values)):
            return None
        low, high = values[place - 1], values[place]
        share = math.log(wanted / low) / math.log(high / low)
        brackets.append([(low, 1 - share), (high, share)])
    logs = [0.0, 0.0, 0.0]
    for corner in product(*brackets):
        found = points.get(tuple(value for value, _ in corner))
        if found is None:
            return None
        weight = math.prod(share for _, share in corner)
        logs = [total + weight * math.log(max(value, 1e-300)) for total, value in zip(logs, found)]
    return Interval(*(math.exp(value) for value in logs))


def load_error_run(folder: str | Path) -> ErrorRun:
    """An error run's folder. Raises RequestError where it is not one or is damaged."""
    run = read_run(folder, FORM)
    return ErrorRun(run.records, run.meta)
