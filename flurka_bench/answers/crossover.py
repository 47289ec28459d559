"""Where a subject starts or stops to beat a baseline along one axis, with an interval.

Between neighbouring tested points the log-speedup is interpolated over the log of the axis, where
the same two forms (mechanism, order, backend) are compared on either side. Where one of them
changes, nothing is known of the way between: the two points are the answer, "between m = 32 and
m = 64". The interval is that of the crossings when every point is drawn anew from its own interval (measured),
or the crossings of the band's two edges (predicted).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers.ratio import Array
from flurka_bench.answers.sources import MEASURED, PREDICTED, of, present, spread
from flurka_bench.answers.speedup import CELL, SIDES
from flurka_bench.answers.words import SYMBOLS
from flurka_bench.words.errors import unknown
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.units import UNKNOWN

REPLICATES = 400
_NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard deviations
_UNKNOWN = 100.0  # log-speedup that stands for "anything": exp of it still computes
_FORM = ("mechanism", "order", "backend")


def crossing(axis: Array, log_ratio: Array, rising: bool, broken: Array | None = None) -> Array:
    """The first place where each curve starts (rising) or stops (falling) to be positive.

    ``axis`` (points,) ascending, ``log_ratio`` (..., points). A curve that is already there at the
    first point gives 0, one that never gets there gives inf: the place is outside what was tested,
    and on which side is known. Returns (2, curves): the place twice, or where it lies in a step
    that is ``broken`` (points - 1,) the step's two ends.
    """
    curves = np.atleast_2d(log_ratio if rising else -log_ratio)
    positive = curves >= 0
    first = positive.argmax(axis=-1)
    result = np.full((2, len(curves)), np.inf)
    result[:, positive[:, 0]] = 0.0
    inner = positive.any(axis=-1) & (first > 0)
    after, rows = first[inner], np.flatnonzero(inner)
    y0, y1 = curves[rows, after - 1], curves[rows, after]
    x0, x1 = np.log(axis[after - 1]), np.log(axis[after])
    result[:, rows] = np.exp(x0 + (x1 - x0) * -y0 / (y1 - y0))
    if broken is not None:
        torn = broken[after - 1]
        result[0, rows[torn]], result[1, rows[torn]] = axis[after - 1][torn], axis[after][torn]
    return result


def _wins(log_ratio: Array) -> str:
    """``throughout``, ``nowhere``, ``from`` (wins above the crossing), ``up to`` (below it), ``in
    part`` (more than once)."""
    positive = log_ratio >= 0
    changes = int((positive[1:] != positive[:-1]).sum())
    if changes == 0:
        return "throughout" if positive[0] else "nowhere"
    return "in part" if changes > 1 else "from" if positive[-1] else "up to"


_DESCRIBED = ("wins", "crossing", "crossing_low", "crossing_high", "between_low", "between_high")


def _describe(
    axis: Array, centre: Array, replicates: Array, broken: Array
) -> tuple[str, float, float, float, float, float]:
    """The values of ``_DESCRIBED``."""
    wins = _wins(centre)
    rising = bool(centre[0] < 0)
    if wins in ("throughout", "nowhere"):  # the nearest edge: where would it change?
        rising = wins == "nowhere"
    lows, highs = np.sort(crossing(axis, replicates, rising, broken), axis=-1)
    last = len(lows) - 1
    low, high = float(lows[round(0.025 * last)]), float(highs[round(0.975 * last)])
    start, end = map(float, crossing(axis, centre, rising, broken)[:, 0])
    if start != end:
        return wins, np.nan, min(low, start), max(high, end), start, end
    return wins, start, low, high, np.nan, np.nan


def replicates(cells: pd.DataFrame) -> Array:
    """(REPLICATES, cells) log-speedups drawn from each cell's own interval, its sides apart; nan
    where there is no speedup.

    So a crossing is as uncertain as the verdicts beside it. A cell whose interval is unknown falls
    on either side of 1.
    """
    draws = np.random.default_rng(0).standard_normal((REPLICATES, len(cells)))
    speedup, low, high = (cells[name].to_numpy(dtype=float) for name in ("ratio", "low", "high"))
    with np.errstate(divide="ignore", invalid="ignore"):
        down, up = (
            np.minimum(np.log(ratio), _UNKNOWN) for ratio in (speedup / low, high / speedup)
        )
        drawn: Array = np.log(speedup) + np.where(draws < 0, down, up) * draws / _NORMAL_95
    return drawn


def _edges(cells: pd.DataFrame) -> Array:
    """(2, cells) log-speedups at the two edges of the predicted band."""
    edges: Array = np.log(cells[["low", "high"]].to_numpy(dtype=float).T)
    return edges


_CURVES = {MEASURED: replicates, PREDICTED: _edges}


def forms(cells: pd.DataFrame) -> Array:
    """Per cell a number for the pair of forms that it compares: mechanism, order and backend of
    both sides. Equal numbers, equal forms."""
    names = [f"{side}_{name}" for side in SIDES for name in _FORM]
    numbers: Array = cells.groupby(names, dropna=False, sort=False).ngroup().to_numpy()
    return numbers


def crossovers(cells: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """One row per axis, source and series of at least two cells along the axis, from ``cells`` =
    ``speedups(frame, ...)``.

    Columns: ``CELL`` (the axis itself 0), subject, baseline, axis, source, ``tested_from``,
    ``tested_to``, ``points``; ``wins`` (``from``, ``up to``, ``throughout``, ``nowhere``, ``in
    part``), ``crossing``, ``crossing_low``, ``crossing_high`` (0 and inf: outside the tested range,
    on that side); where another form stands on the other side of it, ``crossing`` is nan and
    ``between_low`` and ``between_high`` are the two tested points. Raises RequestError for an
    unknown axis.
    """
    for axis in axes:
        if axis not in SIZES:
            raise unknown("axis", axis, SIZES)
    cells = cells.reset_index(drop=True)
    centre, pairs = np.log(cells["ratio"].to_numpy(dtype=float)), forms(cells)
    curves = {source: make(of(cells, source)) for source, make in _CURVES.items()}
    column = cells.groupby("source").cumcount().to_numpy()  # of a cell in its source's curves
    known = cells[cells["ratio"].notna()]
    found = []
    for axis in axes:
        fixed = [name for name in [*CELL, "subject", "baseline", "source"] if name != axis]
        ordered = known.sort_values(axis, kind="stable")
        for key, place in ordered.groupby(fixed, sort=False).indices.items():
            index = ordered.index[place].to_numpy()
            places = cells[axis].to_numpy(dtype=float)[index]
            index = index[np.r_[True, np.diff(places) > 0]]
            if len(index) < 2:
                continue
            entry = dict(zip(fixed, key)) | {axis: 0, "axis": axis}
            places = np.unique(places)
            drawn = curves[entry["source"]][:, column[index]]
            broken = np.diff(pairs[index]) != 0
            entry |= {"tested_from": int(places[0]), "tested_to": int(places[-1])}
            entry["points"] = len(places)
            words = _describe(places, centre[index], drawn, broken)
            found.append(entry | dict(zip(_DESCRIBED, words)))
    return pd.DataFrame(found, columns=[*_SERIES, "source", *_TESTED, *_DESCRIBED])


_SERIES = [*CELL, "subject", "baseline", "axis"]
_TESTED = ("tested_from", "tested_to", "points")


def side_by_side(crossings: pd.DataFrame) -> pd.DataFrame:
    """One row per axis and series of ``crossovers``, measured beside predicted: the names of
    JSON."""
    return spread(crossings, _SERIES, _TESTED, {name: name for name in _DESCRIBED})


def told(crossings: pd.DataFrame) -> pd.DataFrame:
    """One row per axis and series of ``crossovers``: where it lies, and of each source that is
    present the crossing in words, ``"n/a"`` where it has none."""
    result = crossings[_SERIES].drop_duplicates()
    for source in present(crossings, "wins"):
        own = of(crossings, source)
        words = own[_SERIES].assign(words=[in_words(row) for row in own.to_dict("records")])
        found = result.merge(words, how="left", on=_SERIES)["words"]
        result[source] = found.fillna(UNKNOWN).to_numpy()
    return result


def in_words(row: Mapping[str, Any]) -> str:
    """``"from N = 1420 (1380 to 1460)"`` or ``"starting between m = 32 and m = 64 (the form
    changes there)"``: one crossover as a reader says it."""
    symbol = SYMBOLS[row["axis"]]
    wins, low, high = row["wins"], row["crossing_low"], row["crossing_high"]
    tested = f"{row['tested_from']} to {row['tested_to']}"
    if wins in ("throughout", "nowhere"):
        sure = low == high and low in (0.0, np.inf)
        return f"{wins} ({symbol} = {tested})" + ("" if sure else ", not certain at every point")
    edge = [
        f"below {row['tested_from']}"
        if v == 0
        else f"above {row['tested_to']}"
        if np.isinf(v)
        else f"{v:.0f}"
        for v in (low, high)
    ]
    start, end = row["between_low"], row["between_high"]
    if start == start:  # not nan: the bracket of the grid
        sure = "" if (low, high) == (start, end) else f"; {edge[0]} to {edge[1]}"
        place = f"between {symbol} = {start:.0f} and {symbol} = {end:.0f}"
        verb = {"from": "starting", "up to": "ending"}.get(wins, "in part, changing first")
        return f"{verb} {place} (the form changes there{sure})"
    place = f"{symbol} = {row['crossing']:.0f} ({edge[0]} to {edge[1]})"
    return f"in part, changing first at {place}" if wins == "in part" else f"{wins} {place}"
