"""Where a subject starts or stops to beat a baseline along one axis, with an interval.

Between neighbouring tested points the log-speedup is interpolated over the log of the axis, where
the same two forms (mechanism, order, backend) are compared on either side. Where one of them
changes, nothing is known of the way between: the two points are the answer, "between m = 32 and
m = 64". The interval is that of the crossings when every point is drawn anew from its own interval (measured),
or the crossings of the band's two edges (predicted).
"""

import numpy as np
import pandas as pd

from flurka_bench.answers.speedup import CELL
from flurka_bench.answers.words import SYMBOLS
from flurka_bench.words.errors import unknown
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.units import UNKNOWN

REPLICATES = 400
_NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard deviations
_UNKNOWN = 100.0  # log-speedup that stands for "anything": exp of it still computes
_FORM = ("mechanism", "order", "backend")
_SPEEDUPS = ("speedup", "predicted_speedup", "predicted_speedup_low", "predicted_speedup_high")


def crossing(
    axis: np.ndarray, log_ratio: np.ndarray, rising: bool, broken: np.ndarray | None = None
) -> np.ndarray:
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


def _wins(log_ratio: np.ndarray) -> str:
    """``throughout``, ``nowhere``, ``from`` (wins above the crossing), ``up to`` (below it), ``in
    part`` (more than once)."""
    positive = log_ratio >= 0
    changes = int((positive[1:] != positive[:-1]).sum())
    if changes == 0:
        return "throughout" if positive[0] else "nowhere"
    return "in part" if changes > 1 else "from" if positive[-1] else "up to"


_DESCRIBED = ("wins", "crossing", "crossing_low", "crossing_high", "between_low", "between_high")


def _describe(
    axis: np.ndarray, centre: np.ndarray, replicates: np.ndarray, broken: np.ndarray
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


def replicates(cells: pd.DataFrame) -> np.ndarray:
    """(REPLICATES, cells) log-speedups drawn from each cell's own interval, its sides apart; nan
    where there is no speedup.

    So a crossing is as uncertain as the verdicts beside it. A cell whose interval is unknown falls
    on either side of 1.
    """
    draws = np.random.default_rng(0).standard_normal((REPLICATES, len(cells)))
    speedup, low, high = (
        cells[name].to_numpy(dtype=float) for name in ("speedup", "speedup_low", "speedup_high")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        down, up = (
            np.minimum(np.log(ratio), _UNKNOWN) for ratio in (speedup / low, high / speedup)
        )
        return np.log(speedup) + np.where(draws < 0, down, up) * draws / _NORMAL_95


def forms(cells: pd.DataFrame, prefix: str = "") -> np.ndarray:
    """Per cell a number for the pair of forms that it compares: mechanism, order and backend of
    both sides. Equal numbers, equal forms."""
    names = [f"{prefix}{side}_{name}" for side in ("subject", "baseline") for name in _FORM]
    return cells.groupby(names, dropna=False, sort=False).ngroup().to_numpy()


def _series(
    axis: str,
    index: np.ndarray,
    numbers: dict[str, np.ndarray],
    curves: np.ndarray,
    pairs: dict[str, np.ndarray],
) -> dict:
    entry: dict = {}
    for prefix in ("", "predicted_"):
        known = index[~np.isnan(numbers[f"{prefix}speedup"][index])]
        places = numbers[axis][known]
        known, places = known[np.r_[True, np.diff(places) > 0][: len(known)]], np.unique(places)
        if len(known) < 2:
            continue
        band = (
            np.log(
                [numbers["predicted_speedup_low"][known], numbers["predicted_speedup_high"][known]]
            )
            if prefix
            else curves[:, known]
        )
        broken = np.diff(pairs[prefix][known]) != 0
        words = _describe(places, np.log(numbers[f"{prefix}speedup"][known]), band, broken)
        entry |= {f"{prefix}{name}": word for name, word in zip(_DESCRIBED, words)}
        entry.setdefault("tested_from", int(places[0]))
        entry.setdefault("tested_to", int(places[-1]))
        entry.setdefault("points", len(places))
    return entry


def crossovers(cells: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """One row per axis and series of at least two cells along it, from ``cells`` =
    ``speedups(frame, ...)``.

    Columns: ``CELL`` (the axis itself 0), subject, baseline, axis, ``tested_from``, ``tested_to``,
        ``points``; measured
    ``wins`` (``from``, ``up to``, ``throughout``, ``nowhere``, ``in part``), ``crossing``,
    ``crossing_low``, ``crossing_high`` (0 and inf: outside the tested range, on that side); where
    another form stands on the other side of it, ``crossing`` is nan and ``between_low`` and
    ``between_high`` are the two tested points. The same prefixed ``predicted_``. Raises RequestError for an unknown axis.
    """
    for axis in axes:
        if axis not in SIZES:
            raise unknown("axis", axis, SIZES)
    cells = cells.reset_index(drop=True)
    numbers = {name: cells[name].to_numpy(dtype=float) for name in [*axes, *_SPEEDUPS]}
    curves = replicates(cells)
    pairs = {prefix: forms(cells, prefix) for prefix in ("", "predicted_")}
    found = []
    for axis in axes:
        fixed = [name for name in [*CELL, "subject", "baseline"] if name != axis]
        ordered = cells.sort_values(axis, kind="stable")
        for key, index in ordered.groupby(fixed, sort=False).indices.items():
            entry = _series(axis, ordered.index[index].to_numpy(), numbers, curves, pairs)
            if entry:
                found.append(dict(zip(fixed, key)) | {axis: 0, "axis": axis} | entry)
    named = [f"{prefix}{name}" for prefix in ("", "predicted_") for name in _DESCRIBED]
    return pd.DataFrame(
        found,
        columns=[
            *CELL,
            "subject",
            "baseline",
            "axis",
            "tested_from",
            "tested_to",
            "points",
            *named,
        ],
    )


def in_words(row: "pd.Series | dict", prefix: str = "") -> str:
    """``"from N = 1420 (1380 to 1460)"`` or ``"starting between m = 32 and m = 64 (the form
    changes there)"``: one crossover as a reader says it; ``n/a`` where there is none to tell."""
    symbol = SYMBOLS[row["axis"]]
    wins, low, high = (
        row[f"{prefix}wins"],
        row[f"{prefix}crossing_low"],
        row[f"{prefix}crossing_high"],
    )
    if not isinstance(wins, str):
        return UNKNOWN
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
    start, end = row[f"{prefix}between_low"], row[f"{prefix}between_high"]
    if start == start:  # not nan: the bracket of the grid
        sure = "" if (low, high) == (start, end) else f"; {edge[0]} to {edge[1]}"
        place = f"between {symbol} = {start:.0f} and {symbol} = {end:.0f}"
        verb = {"from": "starting", "up to": "ending"}.get(wins, "in part, changing first")
        return f"{verb} {place} (the form changes there{sure})"
    place = f"{symbol} = {row[f'{prefix}crossing']:.0f} ({edge[0]} to {edge[1]})"
    return f"in part, changing first at {place}" if wins == "in part" else f"{wins} {place}"
