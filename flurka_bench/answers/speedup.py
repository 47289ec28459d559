"""Speedups of a subject over a baseline, cell by cell, measured and predicted, each with its
interval and verdict.

A *cell* is a workload with the knobs that the two sides have (rank, num_features, kind of
compression). On each side stands the fastest case that fits the cell, so a speedup compares what a
user would run. Measured and predicted choose for themselves: the predicted speedup is what one
would have believed without a clock.
"""

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
from flurka_bench.cases.registry import FIXED_FEATURES
from flurka_bench.words import sizes

WORKLOAD = ["device", *sizes.WORKLOAD]
KNOBS = ["rank", "num_features", "compression", "share_kv", "share_heads"]
CELL = WORKLOAD + KNOBS
SHOWN = ["case_id", "mechanism", "order", "backend"]
_DEFAULTS = {
    "device": "", "num_layers": 1, "ffn_dim": 0, "vocab_size": 0, "rank": 0, "num_features": 0, "compression": "dense",
    "share_kv": False, "share_heads": True, "order": None, "status": "ok", "error": None, "median_s": np.nan, "samples_s": None,
    "round_ids": None, "predicted_s": np.nan, "predicted_low_s": np.nan, "predicted_high_s": np.nan, "predicted_log_scale": 0.0,
    "bound": None,
    "flops": np.nan, "bytes": np.nan, "peak_memory_bytes": np.nan,
}  # fmt: skip
_WHOLE = [
    "batch",
    "num_heads",
    "seq_len",
    "head_dim",
    "num_layers",
    "ffn_dim",
    "vocab_size",
    "rank",
    "num_features",
]
_FLOATS = [
    "median_s",
    "predicted_s",
    "predicted_low_s",
    "predicted_high_s",
    "flops",
    "bytes",
    "peak_memory_bytes",
]


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """The records with every column that analysis reads: an absent rank or num_features is 0, a
    failed case has no seconds.

    Adds ``seconds`` (median_s where the status is ok), ``family`` and a plain index. Does nothing
    to a frame it has made.
    """
    if frame.attrs.get("prepared"):
        return frame
    frame = frame.reset_index(drop=True).copy()
    for name, default in _DEFAULTS.items():
        if name not in frame:
            frame[name] = default
    for name in _WHOLE:
        frame[name] = pd.to_numeric(frame[name]).fillna(_DEFAULTS.get(name, 0)).astype("int64")
    for name in _FLOATS:
        frame[name] = pd.to_numeric(frame[name]).astype("float64")
    scale = pd.to_numeric(frame["predicted_log_scale"]).astype("float64")
    frame["predicted_log_scale"] = scale.fillna(_DEFAULTS["predicted_log_scale"])
    for name in ("compression", "share_kv", "share_heads"):
        frame[name] = frame[name].where(frame[name].notna(), _DEFAULTS[name])
    if "run_id" in frame and len(
        frame
    ):  # two runs on one device stay apart: their rounds are not pairs
        shared = frame.groupby("device")["run_id"].transform("nunique") > 1
        frame.loc[shared, "device"] = (
            frame.loc[shared, "device"] + " [" + frame.loc[shared, "run"] + "]"
        )
    frame["order"] = frame["order"].astype(object).where(frame["order"].notna(), None)
    frame["seconds"] = frame["median_s"].where(frame["status"] == "ok")
    frame["family"] = frame["mechanism"].map(FAMILY_OF)
    # Columns with one value tell no cells apart: matching by the others alone is several times
    # faster.
    frame.attrs = {
        "prepared": True,
        "varying": " ".join(name for name in CELL if frame[name].nunique() > 1),
    }
    return frame


def _best(rows: pd.DataFrame, keys: list[str], value: str) -> pd.DataFrame:
    """The row of least ``value`` in each group."""
    rows = rows[rows[value].notna()]
    return rows.loc[rows.groupby(keys, sort=False)[value].idxmin()] if len(rows) else rows


def _paper(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[
        (rows["backend"] == "eager") & (rows["order"].isna() | (rows["order"] == "project_first"))
    ]


def _telling(keys: list[str], rows: pd.DataFrame) -> list[str]:
    """Those of the keys that tell rows apart; never none."""
    return [name for name in keys if name in rows.attrs["varying"].split()] or keys[:1]


def _match(grid: pd.DataFrame, rows: pd.DataFrame, keys: list[str], value: str) -> pd.Series:
    """Per cell of ``grid``, the index in ``rows`` of the best row that shares ``keys``; -1 where
    there is none."""
    keys = _telling(keys, rows)
    best = _best(rows, keys, value)
    if best.empty:
        return pd.Series(-1, index=grid.index, dtype="int64")
    keyed = best[keys].assign(_row=best.index)
    found = grid[keys].merge(keyed, on=keys, how="left")["_row"]
    return pd.Series(found.fillna(-1).astype("int64").to_numpy(), index=grid.index)


def _fastest(
    grid: pd.DataFrame, rows: pd.DataFrame, opponent: Baseline, subjects: pd.Series, value: str
) -> pd.Series:
    """Per cell, the index of the fastest opponent against that cell's subject mechanism."""
    rows = _paper(rows) if opponent.paper else rows
    allowed = {subject: opponent.mechanisms(str(subject)) for subject in subjects.unique()}
    result, least = np.full(len(grid), -1, dtype="int64"), np.full(len(grid), np.inf)
    for mechanism in [
        name for name in FAMILY_OF if any(name in names for names in allowed.values())
    ]:
        candidates = rows[rows["mechanism"] == mechanism]
        if candidates.empty:
            continue
        found = _match(grid, candidates, WORKLOAD + list(knobs(mechanism)), value).to_numpy()
        seconds = rows[value].reindex(found).to_numpy()
        faces = subjects.map(
            {subject: mechanism in names for subject, names in allowed.items()}
        ).to_numpy(dtype=bool)
        better = faces & (found >= 0) & ~(seconds >= least)
        least[better], result[better] = seconds[better], found[better]
    return pd.Series(result, index=grid.index)


def _subjects(cells: pd.DataFrame, own: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Per cell, which of the subject's mechanisms have a time there, as ``"flurka-elu,
    flurka-relu"``."""
    keys = _telling(keys, own)
    timed = own[own["seconds"].notna() | own["predicted_s"].notna()]
    held: dict[tuple, set[str]] = {}
    for *key, mechanism in timed[[*keys, "mechanism"]].itertuples(index=False, name=None):
        held.setdefault(tuple(key), set()).add(mechanism)
    names = [
        ", ".join(sorted(held.get(key, ())))
        for key in cells[keys].itertuples(index=False, name=None)
    ]
    return pd.Series(names, index=cells.index, dtype=object)


def _grid(rows: pd.DataFrame, mechanisms: tuple[str, ...], opponents: set[str]) -> pd.DataFrame:
    """The cells: the subject's workloads and knobs, times the opponents' knobs that the subject
    lacks."""
    own = rows[rows["mechanism"].isin(mechanisms)]
    grid = own[CELL].drop_duplicates()
    subject_knobs = {name for mechanism in mechanisms for name in knobs(mechanism)}
    if any(mechanism in FIXED_FEATURES for mechanism in mechanisms):
        subject_knobs.add("num_features")  # at its one value, head_dim
    extra = [
        name
        for name in KNOBS
        if name not in subject_knobs and any(name in knobs(opponent) for opponent in opponents)
    ]
    if extra and len(grid):
        others = rows[
            rows["mechanism"].map(
                lambda name: name in opponents and set(extra) & set(knobs(name)) != set()
            )
        ]
        cells = others[WORKLOAD + extra].drop_duplicates()
        grid = grid.drop(columns=extra).merge(cells, on=WORKLOAD, how="inner")[CELL]
    return grid.reset_index(drop=True)


def speedups(
    frame: pd.DataFrame,
    subject: str = "flurka",
    against: str = "best-other",
    known: ratio.Estimates | None = None,
) -> pd.DataFrame:
    """One row per cell: ``speedup`` = baseline's seconds / subject's seconds, above 1 where the
    subject wins.

    Columns: the cell's (``WORKLOAD`` and ``KNOBS``; 0 means the knob does not exist), ``subject``,
        ``baseline``, ``subjects``
    (those of a family that have a time in the cell); measured
    ``subject_*`` and ``baseline_*`` (row, case_id, mechanism, order, backend, s), ``speedup``,
    ``speedup_low``, ``speedup_high``, ``verdict`` (FASTER, SLOWER, SAME, AMBIGUOUS, or MISSING with
    the reason in ``missing``); and the same, prefixed ``predicted_``. ``known`` shares estimates
    between calls on one frame. Raises RequestError for a name that is no subject or baseline.
    """
    rows = prepare(frame)
    opponent, mechanisms = baseline(against), subject_mechanisms(subject)
    opponents = {name for mechanism in mechanisms for name in opponent.mechanisms(mechanism)}
    cells = _grid(rows, mechanisms, opponents)
    own = rows[rows["mechanism"].isin(mechanisms)]
    own_keys = (
        CELL
        if len(knobs(mechanisms[0])) == len(KNOBS)
        else WORKLOAD + sorted({k for m in mechanisms for k in knobs(m)})
    )
    cells["subject"], cells["baseline"] = subject, against
    for prefix, value in (("", "seconds"), ("predicted_", "predicted_s")):
        found = _match(cells[CELL], own, own_keys, value)
        chosen = rows["mechanism"].reindex(found).fillna(mechanisms[0]).to_numpy()
        facing = _fastest(cells[CELL], rows, opponent, pd.Series(chosen, index=cells.index), value)
        for side, index in (("subject", found), ("baseline", facing)):
            picked = rows.reindex(index)
            cells[f"{prefix}{side}_row"] = index
            for name in SHOWN:
                cells[f"{prefix}{side}_{name}"] = picked[name].to_numpy()
            cells[f"{prefix}{side}_s"] = picked[value].to_numpy(dtype="float64")
    _measured(cells, rows, known)
    _predicted(cells, rows)
    cells["subjects"] = _subjects(cells, own, own_keys) if len(cells) else ""
    cells["missing"] = _why_missing(cells, rows, own, own_keys, opponent)
    return cells


def _measured(cells: pd.DataFrame, rows: pd.DataFrame, known: ratio.Estimates | None) -> None:
    pairs = cells[["subject_row", "baseline_row"]].to_numpy()
    columns = [rows[name].to_numpy() for name in ("samples_s", "round_ids", "seconds")]
    intervals = ratio.measured(*columns, pairs, known)
    cells["speedup"], cells["speedup_low"], cells["speedup_high"] = intervals.T
    cells["verdict"] = ratio.verdicts(*intervals.T)


def _predicted(cells: pd.DataFrame, rows: pd.DataFrame) -> None:
    pairs = cells[["predicted_subject_row", "predicted_baseline_row"]].to_numpy()
    names = ("predicted_s", "predicted_low_s", "predicted_high_s", "predicted_log_scale")
    bands = ratio.predicted(*(rows[name].to_numpy() for name in names), pairs)
    cells["predicted_speedup"], cells["predicted_speedup_low"], cells["predicted_speedup_high"] = (
        bands.T
    )
    cells["predicted_verdict"] = ratio.verdicts(*bands.T)


def _why_missing(
    cells: pd.DataFrame,
    rows: pd.DataFrame,
    own: pd.DataFrame,
    own_keys: list[str],
    opponent: Baseline,
) -> list:
    """Per cell, None or why there is no measured speedup: the failed side's status and error."""
    reasons = pd.Series([None] * len(cells), index=cells.index, dtype=object)
    holes = cells[cells["speedup"].isna()]
    if holes.empty:
        return list(reasons)
    rows = rows.assign(failed=np.where(rows["status"] == "ok", np.nan, 1.0))
    own = rows.loc[own.index]
    sides = {
        "subject": _match(holes[CELL], own, own_keys, "failed"),
        "baseline": _fastest(
            holes[CELL],
            rows,
            opponent,
            own["mechanism"].iloc[0] + holes["subject"].str[:0],
            "failed",
        ),
    }
    for index, cell in holes.iterrows():
        parts = []
        for side, label in (("subject", cell["subject"]), ("baseline", cell["baseline"])):
            if cell[f"{side}_row"] >= 0:
                continue
            row = sides[side].get(index, -1)
            error = f" ({rows.at[row, 'error']})" if row >= 0 and rows.at[row, "error"] else ""
            parts.append(
                f"{rows.at[row, 'mechanism']}: {rows.at[row, 'status']}{error}"
                if row >= 0
                else f"{label}: not in this run"
            )
        reasons[index] = "; ".join(parts)
    return list(reasons)


def all_speedups(
    frame: pd.DataFrame, subject: str = "flurka", names: list[str] | None = None
) -> pd.DataFrame:
    """``speedups`` against every named baseline (all of them by default), one below the other; the
    strong ones lead."""
    rows, known = prepare(frame), {}
    return pd.concat(
        [speedups(rows, subject, name, known) for name in names or BASELINES], ignore_index=True
    )


def summary(frame: pd.DataFrame, subject: str = "flurka") -> pd.DataFrame:
    """The end table: per cell the fastest mechanism, and the subject's speedup over its parents and
    full attention.

    One row per workload, rank and num_features, best lead of the subject first within a workload.
    Columns: ``CELL``, ``subject_*`` and ``fastest_*`` of the cell (case_id, mechanism, order,
    backend, s), and per baseline NAME: ``NAME`` and ``NAME_predicted``, each with ``_low``,
    ``_high`` and ``_verdict``, and ``NAME_mechanism``.
    """
    rows, known = prepare(frame), {}
    result = None
    for name in BASELINES:
        cells = speedups(rows, subject, name, known)
        if result is None:
            result = cells[[*CELL, *(f"subject_{field}" for field in (*SHOWN, "s"))]].copy()
            ours = cells["subject_s"].notna() & ~(cells["speedup"] < 1)
            for field in (*SHOWN, "s"):
                result[f"fastest_{field}"] = cells[f"subject_{field}"].where(
                    ours, cells[f"baseline_{field}"]
                )
        for bound in ("", "_low", "_high"):
            result[f"{name}{bound}"] = cells[f"speedup{bound}"]
            result[f"{name}_predicted{bound}"] = cells[f"predicted_speedup{bound}"]
        result[f"{name}_verdict"] = cells["verdict"]
        result[f"{name}_predicted_verdict"] = cells["predicted_verdict"]
        result[f"{name}_mechanism"] = cells["baseline_mechanism"]
    assert result is not None
    return result.sort_values(
        [*WORKLOAD[:-3], "best-other"],
        ascending=[True] * (len(WORKLOAD) - 3) + [False],
        ignore_index=True,
    )


def leading(frame: pd.DataFrame) -> pd.DataFrame:
    """What the end of a run says of each workload, and its progress line too: one row per workload.

    Columns: ``WORKLOAD``; ``subject_cases`` (how many of FLuRKA there are); ``fastest_*`` and
    ``subject_*`` (``SHOWN``, ``KNOBS``, s; None where nothing has a time), the fastest case of all
    and FLuRKA's fastest; ``over_fastest`` (FLuRKA's speedup over the former; nan where it is the
    fastest itself) with ``_low``, ``_high`` and ``_verdict``; and ``summary``'s columns per
    baseline at FLuRKA's fastest case. The estimator is the paired ratio throughout: where medians
    name another case the fastest and the pairs do not say that FLuRKA is slower, FLuRKA is the
    fastest.
    """
    rows = prepare(frame)
    cells = summary(rows).sort_values("subject_s", kind="stable")
    cells = cells.drop_duplicates(WORKLOAD).set_index(WORKLOAD) if len(cells) else cells
    place = dict(zip(zip(rows["device"], rows["case_id"]), rows.index))
    columns = [rows[name].to_numpy() for name in ("samples_s", "round_ids", "seconds")]
    found = []
    for key, part in rows.groupby(WORKLOAD, sort=False):
        entry = dict(zip(WORKLOAD, key))
        entry["subject_cases"] = int((part["family"] == "flurka").sum())
        cell = cells.loc[key] if len(cells) and key in cells.index else None
        entry |= {f"over_fastest{bound}": np.nan for bound in ("", "_low", "_high")}
        best = own = None
        if part["seconds"].notna().any():
            best = part["seconds"].idxmin()
        if cell is not None and cell["subject_s"] == cell["subject_s"]:
            own = place[entry["device"], cell["subject_case_id"]]
        if own is not None and own != best:
            found_ratio = ratio.measured(*columns, np.array([[own, best]]))
            if found_ratio[0, 0] >= 1:
                best = own
            else:
                value, low, high = found_ratio[0]
                entry |= {"over_fastest": value, "over_fastest_low": low}
                entry |= {"over_fastest_high": high}
                entry["over_fastest_verdict"] = ratio.verdicts(*found_ratio.T)[0]
        if cell is not None:
            entry |= {name: cell[name] for name in cell.index if not name.startswith("fastest_")}
        for side, index in (("fastest", best), ("subject", own)):
            for name in (*SHOWN, *KNOBS):
                entry[f"{side}_{name}"] = None if index is None else rows.at[index, name]
            entry[f"{side}_s"] = np.nan if index is None else rows.at[index, "seconds"]
        found.append(entry)
    return pd.DataFrame(found)
