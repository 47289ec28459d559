"""Speedups of a subject over a baseline, cell by cell, measured and predicted, each with its
interval and verdict.

A *cell* is a workload with the knobs that the two sides have (rank, num_features, kind of
compression). On each side stands the fastest case that fits the cell, so a speedup compares what a
user would run. The fastest case is picked twice, once by measured and once by predicted time, so
the predicted speedup never uses measurements.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import ratio
from flurka_bench.answers.baselines import (
    BASELINES,
    FAMILY_OF,
    Baseline,
    baseline,
    knobs,
    subject_mechanisms,
)
from flurka_bench.answers.ratio import Array
from flurka_bench.answers.sources import (
    MEASURED,
    PREDICTED,
    SECONDS,
    SOURCES,
    spread,
)
from flurka_bench.answers.words import NO_PREDICTION
from flurka_bench.cases.registry import FIXED_FEATURES
from flurka_bench.words import sizes

WORKLOAD = ["device", *sizes.WORKLOAD]
KNOBS = ["rank", "num_features", "compression", "share_kv", "share_heads"]
CELL = WORKLOAD + KNOBS
SHOWN = ["case_id", "mechanism", "order", "backend"]
SIDES = ("subject", "baseline")
_FAILURE = ("mechanism", "status", "error")

_DEFAULTS = {
    "device": "", "num_layers": 1, "ffn_dim": 0, "vocab_size": 0, "rank": 0, "num_features": 0,
    "compression": "dense", "share_kv": False, "share_heads": True, "order": None, "status": "ok",
    "error": None, "median_s": np.nan, "samples_s": None, "round_ids": None, "predicted_s": np.nan,
    "predicted_low_s": np.nan, "predicted_high_s": np.nan, "predicted_log_scale": 0.0,
    "predicted_log_shape": np.nan, "bound": None, "flops": np.nan, "bytes": np.nan,
    "peak_memory_bytes": np.nan,
}  # fmt: skip
_WHOLE = (*sizes.SIZES, "num_layers", "ffn_dim", "vocab_size")
_FLOATS = (
    "median_s", "predicted_s", "predicted_low_s", "predicted_high_s", "predicted_log_scale",
    "predicted_log_shape", "flops", "bytes", "peak_memory_bytes",
)  # fmt: skip


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with every column that analysis reads: an absent rank or num_features is 0, a
    failed case has no seconds.

    Adds ``seconds`` (median_s where the status is ok), ``family``, a plain index, and
    ``shape_below`` and ``shape_above``: the case's own part of its predicted band in log-seconds
    (``predicted_log_shape``; in older records what the band and its scale leave). Prepared records
    stay as they are.
    """
    frame = frame.reset_index(drop=True).copy()
    for name, default in _DEFAULTS.items():
        if name not in frame:
            frame[name] = default
    for name in _WHOLE:
        frame[name] = pd.to_numeric(frame[name]).fillna(_DEFAULTS.get(name, 0)).astype("int64")
    for name in _FLOATS:
        frame[name] = pd.to_numeric(frame[name]).astype("float64")
    for name in ("compression", "share_kv", "share_heads"):
        frame[name] = frame[name].where(frame[name].notna(), _DEFAULTS[name])
    if "run_id" in frame and len(frame):  # two runs on one device stay apart: no rounds are shared
        shared = frame.groupby("device")["run_id"].transform("nunique") > 1
        frame.loc[shared, "device"] += " [" + frame.loc[shared, "run"] + "]"
    frame["order"] = frame["order"].astype(object).where(frame["order"].notna(), None)
    frame["seconds"] = frame["median_s"].where(frame["status"] == "ok")
    frame["family"] = frame["mechanism"].map(FAMILY_OF)
    frame["predicted_log_scale"] = frame["predicted_log_scale"].fillna(0.0)
    band = ("predicted_s", "predicted_low_s", "predicted_high_s", "predicted_log_scale")
    left = ratio.shapes(*(frame[name].to_numpy() for name in band))
    for name, shape in zip(("shape_below", "shape_above"), left):
        frame[name] = frame["predicted_log_shape"].fillna(pd.Series(shape))
    return frame


def _best(rows: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """The row of least ``value`` in each group."""
    rows = rows[rows[value].notna()]
    return rows.loc[rows.groupby(keys, sort=False)[value].idxmin()] if len(rows) else rows


def _paper(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[
        (rows["backend"] == "eager") & (rows["order"].isna() | (rows["order"] == "project_first"))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """Who stands on the two sides of a view: the subject's mechanisms, its records and the columns
    that tell these apart; and the opponent."""

    subject: str
    mechanisms: tuple[str, ...]
    own: pd.DataFrame
    own_keys: list[str]
    opponent: Baseline

    @property
    def opponents(self) -> set[str]:
        """The mechanisms that may stand on the other side."""
        return {name for one in self.mechanisms for name in self.opponent.mechanisms(one)}


class Cells:
    """Records of ``prepare``, asked for the speedups in their cells.

    Estimates are kept: views of one object share the pairs of cases that they compare.
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self.rows = rows
        # Columns with one value tell no cells apart: matching by the others alone is several times
        # faster.
        self._varying = {name for name in CELL if rows[name].nunique() > 1}
        self._known: ratio.Estimates = {}

    def speedups(self, subject: str = "flurka", against: str = "best-other") -> pd.DataFrame:
        """Two rows per cell, the measured one first: ``ratio`` = baseline's seconds / subject's
        seconds, above 1 where the subject wins.

        Columns: ``cell`` (its number), the cell's (``WORKLOAD`` and ``KNOBS``; 0 means the knob
        does not exist), ``subject``, ``baseline``, ``subjects`` (those of a family that have a
        time in the cell), ``source`` (measured or predicted); of that source ``subject_*`` and
        ``baseline_*`` (row, case_id, mechanism, order, backend, s), ``ratio``, ``low``, ``high``
        and ``verdict`` (FASTER, SLOWER, SAME, AMBIGUOUS, or MISSING with the reason in
        ``missing``). Raises RequestError for a name that is no subject or baseline.
        """
        sides = self._sides(subject, against)
        grid = self._grid(sides)
        held = self._subjects(grid, sides)
        parts = []
        for source in SOURCES:
            part = grid.assign(cell=grid.index, subject=subject, baseline=against, subjects=held)
            part["source"] = source
            chosen = self._fastest_cases(grid, sides, SECONDS[source])
            for side, index in zip(SIDES, chosen):
                picked = self.rows.reindex(index)
                part[f"{side}_row"] = index
                for name in SHOWN:
                    part[f"{side}_{name}"] = picked[name].to_numpy()
                part[f"{side}_s"] = picked[SECONDS[source]].to_numpy(dtype="float64")
            numbers = self._estimates(source, np.column_stack(chosen))
            part["ratio"], part["low"], part["high"] = numbers.T
            part["verdict"] = ratio.verdicts(*numbers.T)
            if source == MEASURED:
                part["missing"] = self._why_missing(part, sides)
            else:
                part["missing"] = part["ratio"].isna().map({True: NO_PREDICTION, False: None})
            parts.append(part)
        return pd.concat(parts).sort_index(kind="stable", ignore_index=True)

    def views(
        self, subject: str = "flurka", names: Iterable[str] = tuple(BASELINES)
    ) -> dict[str, pd.DataFrame]:
        """``speedups`` by baseline: over every one of ``BASELINES``, or those named."""
        return {name: self.speedups(subject, name) for name in names}

    def _sides(self, subject: str, against: str) -> _Sides:
        mechanisms = subject_mechanisms(subject)
        chosen = {name for mechanism in mechanisms for name in knobs(mechanism)}
        return _Sides(
            subject=subject,
            mechanisms=mechanisms,
            own=self.rows[self.rows["mechanism"].isin(mechanisms)],
            own_keys=[*WORKLOAD, *(name for name in KNOBS if name in chosen)],
            opponent=baseline(against),
        )

    def _grid(self, sides: _Sides) -> pd.DataFrame:
        """The cells: the subject's workloads and knobs, times the opponents' knobs that the subject
        lacks."""
        grid = sides.own[CELL].drop_duplicates()
        subject_knobs = {name for mechanism in sides.mechanisms for name in knobs(mechanism)}
        if any(mechanism in FIXED_FEATURES for mechanism in sides.mechanisms):
            subject_knobs.add("num_features")  # at its one value, head_dim
        opponents = sides.opponents
        extra = [
            name
            for name in KNOBS
            if name not in subject_knobs and any(name in knobs(opponent) for opponent in opponents)
        ]
        if extra and len(grid):
            bearing = [name for name in opponents if set(extra) & set(knobs(name))]
            others = self.rows[self.rows["mechanism"].isin(bearing)]
            cells = others[WORKLOAD + extra].drop_duplicates()
            grid = grid.drop(columns=extra).merge(cells, on=WORKLOAD, how="inner")[CELL]
        return grid.reset_index(drop=True)

    def _telling(self, keys: list[str]) -> list[str]:
        """Those of the keys that tell rows apart; never none."""
        return [name for name in keys if name in self._varying] or keys[:1]

    def _match(self, grid: pd.DataFrame, rows: pd.DataFrame, keys: list[str], value: str) -> Array:
        """Per cell of ``grid``, the index in ``rows`` of the best row that shares ``keys``; -1
        where there is none."""
        keys = self._telling(keys)
        best = _best(rows, keys, value)
        if best.empty:
            return np.full(len(grid), -1, dtype="int64")
        keyed = best[keys].assign(_row=best.index)
        found = grid[keys].merge(keyed, on=keys, how="left")["_row"]
        matched: Array = found.fillna(-1).astype("int64").to_numpy()
        return matched

    def _fastest_cases(self, grid: pd.DataFrame, sides: _Sides, value: str) -> tuple[Array, Array]:
        """Per cell, the rows of the subject's and of the opponent's fastest cases; -1: none."""
        own = self._match(grid, sides.own, sides.own_keys, value)
        mechanisms = self.rows["mechanism"].reindex(own).fillna(sides.mechanisms[0])
        return own, self._fastest_opponent(grid, self.rows, sides, mechanisms, value)

    def _fastest_opponent(
        self,
        grid: pd.DataFrame,
        rows: pd.DataFrame,
        sides: _Sides,
        mechanisms: Iterable[str],
        value: str,
    ) -> Array:
        """Per cell, the row of the fastest opponent against that cell's subject mechanism."""
        rows = _paper(rows) if sides.opponent.paper else rows
        facing = pd.Series(list(mechanisms), dtype=object)
        allowed = {name: sides.opponent.mechanisms(name) for name in facing.unique()}
        result, least = np.full(len(grid), -1, dtype="int64"), np.full(len(grid), np.inf)
        for opponent in FAMILY_OF:
            candidates = rows[rows["mechanism"] == opponent]
            if candidates.empty or not any(opponent in names for names in allowed.values()):
                continue
            found = self._match(grid, candidates, WORKLOAD + list(knobs(opponent)), value)
            seconds = rows[value].reindex(found).to_numpy()
            faces = facing.map({name: opponent in names for name, names in allowed.items()})
            better = faces.to_numpy(dtype=bool) & (found >= 0) & ~(seconds >= least)
            least[better], result[better] = seconds[better], found[better]
        return result

    def _estimates(self, source: str, pairs: Array) -> Array:
        """(cells, 3) ratio, low, high of one source, for pairs of rows."""
        if source == PREDICTED:
            names = [SECONDS[source], "predicted_log_scale", "shape_below", "shape_above"]
            seconds, scale, below, above = self.rows[names].to_numpy().T
            return ratio.predicted(seconds, scale, below, above, pairs)
        samples, rounds, seconds = (self.rows[name].to_numpy() for name in ratio.SIDE)
        return ratio.measured(samples, rounds, seconds, pairs, self._known)

    def _subjects(self, grid: pd.DataFrame, sides: _Sides) -> list[str]:
        """Per cell, which of the subject's mechanisms have a time there, as ``"flurka-elu,
        flurka-relu"``."""
        keys = self._telling(sides.own_keys)
        timed = sides.own[sides.own[list(SECONDS.values())].notna().any(axis=1)]
        held: dict[tuple[Any, ...], set[str]] = {}
        for *key, mechanism in timed[[*keys, "mechanism"]].itertuples(index=False, name=None):
            held.setdefault(tuple(key), set()).add(mechanism)
        cells = grid[keys].itertuples(index=False, name=None)
        return [", ".join(sorted(held.get(key, ()))) for key in cells]

    def _why_missing(self, cells: pd.DataFrame, sides: _Sides) -> Array:
        """Per cell, None or why there is no measured speedup: the failed side's status and
        error."""
        reasons = np.full(len(cells), None, dtype=object)
        holes = cells[cells["ratio"].isna()]
        if holes.empty:
            return reasons
        rows = self.rows.assign(failed=np.where(self.rows["status"] == "ok", np.nan, 1.0))
        own = rows.loc[sides.own.index]
        first = [own["mechanism"].iloc[0]] * len(holes)
        failed = {
            "subject": self._match(holes, own, sides.own_keys, "failed"),
            "baseline": self._fastest_opponent(holes, rows, sides, first, "failed"),
        }
        labels = {"subject": sides.subject, "baseline": sides.opponent.name}
        for number, cell in enumerate(holes.to_dict("records")):
            told = [
                self._failure(failed[side][number], label)
                for side, label in labels.items()
                if cell[f"{side}_row"] < 0
            ]
            reasons[cell["cell"]] = "; ".join(told)
        return reasons

    def _failure(self, row: int, label: str) -> str:
        if row < 0:
            return f"{label}: not in this run"
        mechanism, status, error = (self.rows.at[row, name] for name in _FAILURE)
        return f"{mechanism}: {status}" + (f" ({error})" if error else "")


def speedups(
    frame: pd.DataFrame, subject: str = "flurka", against: str = "best-other"
) -> pd.DataFrame:
    """``Cells.speedups`` of records, prepared or not."""
    return Cells(prepare(frame)).speedups(subject, against)


# What differs by source in a table of speedups, under the names that JSON gives it.
_WIDE = {
    **{f"{side}_{name}": f"{side}_{name}" for side in SIDES for name in ("row", *SHOWN, "s")},
    "ratio": "speedup", "low": "speedup_low", "high": "speedup_high", "verdict": "verdict",
}  # fmt: skip


def side_by_side(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per cell of ``speedups``, measured beside predicted: ``speedup``,
    ``predicted_speedup`` and so on, the names of JSON."""
    once = [*CELL, "subjects", "missing"]
    return spread(cells, ["subject", "baseline", "cell"], once, _WIDE)
