"""Where a subject starts or stops to beat a baseline along one axis, with an interval.

Between neighbouring tested points the log-speedup is interpolated over the log of the axis. The interval is a bootstrap over
rounds at every point (measured) or the crossings of the band's two edges (predicted).
"""

import numpy as np
import pandas as pd

from flurka_bench.analysis import ratio
from flurka_bench.analysis.speedup import CELL, prepare
from flurka_bench.errors import unknown

AXES = ("seq_len", "rank", "num_features", "head_dim", "num_heads", "batch")
REPLICATES = 400


def crossing(axis: np.ndarray, log_ratio: np.ndarray, rising: bool) -> np.ndarray:
    """The first place where each curve starts (rising) or stops (falling) to be positive.

    ``axis`` (points,) ascending, ``log_ratio`` (..., points). A curve that is already there at the first point gives 0, one that
    never gets there gives inf: the place is outside what was tested, and on which side is known.
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
    """``throughout``, ``nowhere``, ``from`` (wins above the crossing), ``up to`` (below it), ``in part`` (changes twice or more)."""
    positive = log_ratio >= 0
    changes = int((positive[1:] != positive[:-1]).sum())
    if changes == 0:
        return "throughout" if positive[0] else "nowhere"
    return "in part" if changes > 1 else "from" if positive[-1] else "up to"


def _describe(axis: np.ndarray, centre: np.ndarray, replicates: np.ndarray) -> tuple[str, float, float, float]:
    wins = _wins(centre)
    rising = bool(centre[0] < 0)
    if wins in ("throughout", "nowhere"):  # the nearest edge: where would it change?
        rising = wins == "nowhere"
    places = crossing(axis, replicates, rising)
    low, high = np.quantile(places, [0.025, 0.975], method="nearest")
    return wins, float(crossing(axis, centre, rising)[0]), float(low), float(high)


def _replicates(rows: pd.DataFrame, part: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """(REPLICATES, points) bootstrap log-speedups, the rounds of every point drawn anew."""
    columns = []
    for own, other, speedup in zip(part["subject_row"], part["baseline_row"], part["speedup"]):
        pairs = ratio.log_ratios(rows["samples_s"], rows["round_ids"], own, other)
        if pairs is None:
            columns.append(np.full(REPLICATES, np.log(speedup)))
            continue
        columns.append(np.median(pairs[rng.integers(len(pairs), size=(REPLICATES, len(pairs)))], axis=1))
    return np.column_stack(columns)


def crossovers(frame: pd.DataFrame, cells: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row per series of at least two cells along ``axis``, from ``cells`` = ``speedups(frame, ...)``.

    Columns: ``CELL`` without the axis, subject, baseline, axis, ``tested_from``, ``tested_to``, ``points``; measured
    ``wins`` (``from``, ``up to``, ``throughout``, ``nowhere``, ``in part``), ``crossing``, ``crossing_low``,
    ``crossing_high`` (0 and inf: outside the tested range, on that side); the same prefixed ``predicted_``. Raises
    RequestError for an unknown axis.
    """
    if axis not in AXES:
        raise unknown("axis", axis, AXES)
    rows, rng = prepare(frame), np.random.default_rng(0)
    fixed = [name for name in CELL if name != axis] + ["subject", "baseline"]
    found = []
    for key, part in cells.groupby(fixed, sort=False):
        entry = dict(zip(fixed, key)) | {"axis": axis, "tested_from": None, "tested_to": None, "points": 0}
        for prefix in ("", "predicted_"):
            known = part[part[f"{prefix}speedup"].notna()].drop_duplicates(axis).sort_values(axis)
            if len(known) < 2:
                continue
            places = known[axis].to_numpy(dtype=float)
            centre = np.log(known[f"{prefix}speedup"].to_numpy(dtype=float))
            if prefix:
                replicates = np.log(known[["predicted_speedup_low", "predicted_speedup_high"]].to_numpy(dtype=float).T)
            else:
                replicates = _replicates(rows, known, rng)
            words = _describe(places, centre, replicates)
            entry |= dict(zip((f"{prefix}wins", f"{prefix}crossing", f"{prefix}crossing_low", f"{prefix}crossing_high"), words))
            if not entry["points"]:
                entry |= {"tested_from": int(places[0]), "tested_to": int(places[-1]), "points": len(places)}
        if entry["points"]:
            found.append(entry)
    named = [f"{p}{n}" for p in ("", "predicted_") for n in ("wins", "crossing", "crossing_low", "crossing_high")]
    return pd.DataFrame(found, columns=[*fixed, "axis", "tested_from", "tested_to", "points", *named])


def in_words(row: "pd.Series | dict", prefix: str = "") -> str:
    """``"from N = 1420 (1380 to 1460)"``: one crossover as a reader says it; ``n/a`` where there is none to tell."""
    symbol = {"seq_len": "N", "rank": "k", "num_features": "m", "head_dim": "d", "num_heads": "h", "batch": "b"}[row["axis"]]
    wins, low, high = row[f"{prefix}wins"], row[f"{prefix}crossing_low"], row[f"{prefix}crossing_high"]
    if not isinstance(wins, str):
        return "n/a"
    tested = f"{row['tested_from']} to {row['tested_to']}"
    if wins in ("throughout", "nowhere"):
        sure = low == high and low in (0.0, np.inf)
        return f"{wins} ({symbol} = {tested})" + ("" if sure else ", not certain at every point")
    edge = [
        f"below {row['tested_from']}" if v == 0 else f"above {row['tested_to']}" if np.isinf(v) else f"{v:.0f}"
        for v in (low, high)
    ]
    return f"{wins} {symbol} = {row[f'{prefix}crossing']:.0f} ({edge[0]} to {edge[1]})"
