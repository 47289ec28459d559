"""Where a subject starts or stops to beat a baseline along one axis, with an interval.

Between neighbouring tested points the log-speedup is interpolated over the log of the axis. The
interval is that of the crossings when every point is drawn anew from its own interval (measured),
or the crossings of the band's two edges (predicted).
"""

import numpy as np
import pandas as pd

from flurka_bench.analysis.speedup import CELL
from flurka_bench.errors import unknown
from flurka_bench.workload import SIZES

REPLICATES = 400
_NORMAL_95 = 1.959964  # half-width of a 95 % interval in standard deviations
_UNKNOWN = 100.0  # log-speedup that stands for "anything": exp of it still computes
_SPEEDUPS = ("speedup", "predicted_speedup", "predicted_speedup_low", "predicted_speedup_high")


def crossing(axis: np.ndarray, log_ratio: np.ndarray, rising: bool) -> np.ndarray:
    """The first place where each curve starts (rising) or stops (falling) to be positive.

    ``axis`` (points,) ascending, ``log_ratio`` (..., points). A curve that is already there at the
    first point gives 0, one that never gets there gives inf: the place is outside what was tested,
    and on which side is known.
    """
    curves = np.atleast_2d(log_ratio if rising else -log_ratio)
    positive = curves >= 0
    first = positive.argmax(axis=-1)
    result = np.full(len(curves), np.inf)
    result[positive[:, 0]] = 0.0
    inner = positive.any(axis=-1) & (first > 0)
    after, rows = first[inner], np.flatnonzero(inner)
    y0, y1 = curves[rows, after - 1], curves[rows, after]
    x0, x1 = np.log(axis[after - 1]), np.log(axis[after])
    result[rows] = np.exp(x0 + (x1 - x0) * -y0 / (y1 - y0))
    return result


def _wins(log_ratio: np.ndarray) -> str:
    """``throughout``, ``nowhere``, ``from`` (wins above the crossing), ``up to`` (below it), ``in
    part`` (more than once)."""
    positive = log_ratio >= 0
    changes = int((positive[1:] != positive[:-1]).sum())
    if changes == 0:
        return "throughout" if positive[0] else "nowhere"
    return "in part" if changes > 1 else "from" if positive[-1] else "up to"


def _describe(
    axis: np.ndarray, centre: np.ndarray, replicates: np.ndarray
) -> tuple[str, float, float, float]:
    wins = _wins(centre)
    rising = bool(centre[0] < 0)
    if wins in ("throughout", "nowhere"):  # the nearest edge: where would it change?
        rising = wins == "nowhere"
    places = crossing(axis, replicates, rising)
    places.sort()
    low, high = places[[round(0.025 * (len(places) - 1)), round(0.975 * (len(places) - 1))]]
    return wins, float(crossing(axis, centre, rising)[0]), float(low), float(high)


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


def _series(
    axis: str, index: np.ndarray, numbers: dict[str, np.ndarray], curves: np.ndarray
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
        words = _describe(places, np.log(numbers[f"{prefix}speedup"][known]), band)
        entry |= dict(
            zip(
                (
                    f"{prefix}wins",
                    f"{prefix}crossing",
                    f"{prefix}crossing_low",
                    f"{prefix}crossing_high",
                ),
                words,
            )
        )
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
    ``crossing_low``, ``crossing_high`` (0 and inf: outside the tested range, on that side); the
    same prefixed ``predicted_``. Raises RequestError for an unknown axis.
    """
    for axis in axes:
        if axis not in SIZES:
            raise unknown("axis", axis, SIZES)
    cells = cells.reset_index(drop=True)
    numbers = {name: cells[name].to_numpy(dtype=float) for name in [*axes, *_SPEEDUPS]}
    curves = replicates(cells)
    found = []
    for axis in axes:
        fixed = [name for name in [*CELL, "subject", "baseline"] if name != axis]
        ordered = cells.sort_values(axis, kind="stable")
        for key, index in ordered.groupby(fixed, sort=False).indices.items():
            entry = _series(axis, ordered.index[index].to_numpy(), numbers, curves)
            if entry:
                found.append(dict(zip(fixed, key)) | {axis: 0, "axis": axis} | entry)
    named = [
        f"{p}{n}"
        for p in ("", "predicted_")
        for n in ("wins", "crossing", "crossing_low", "crossing_high")
    ]
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
    """``"from N = 1420 (1380 to 1460)"``: one crossover as a reader says it; ``n/a`` where there is
    none to tell."""
    symbol = {
        "seq_len": "N",
        "rank": "k",
        "num_features": "m",
        "head_dim": "d",
        "num_heads": "h",
        "batch": "b",
    }[row["axis"]]
    wins, low, high = (
        row[f"{prefix}wins"],
        row[f"{prefix}crossing_low"],
        row[f"{prefix}crossing_high"],
    )
    if not isinstance(wins, str):
        return "n/a"
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
    place = f"{symbol} = {row[f'{prefix}crossing']:.0f} ({edge[0]} to {edge[1]})"
    return f"in part, changing first at {place}" if wins == "in part" else f"{wins} {place}"
