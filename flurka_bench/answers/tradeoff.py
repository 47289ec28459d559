"""Errors beside times: what both runs know, and which configurations no other beats in time, error
and memory."""

from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import ratio, words
from flurka_bench.answers.frontier import ErrorRun
from flurka_bench.words.statistics import median_interval
from flurka_bench.words.units import (
    format_ratio,
    format_seconds,
)

_ERROR_COLUMNS = ("error_low", "error_median", "error_high")


def join_time(frame: pd.DataFrame, run: ErrorRun, *, family: str, seq_len: int) -> pd.DataFrame:
    """Timed cases at ``seq_len`` with the error to expect on ``family``: a row per case that both
    runs know.

    ``frame`` is ``results.to_frame`` of a timing run. Adds seconds, error_low, error_median and
    error_high; and seconds_low and seconds_high, the confidence interval of the median time (the
    range of the samples where they are too few for one).
    """
    rows = []
    for record in frame[(frame["status"] == "ok") & (frame["seq_len"] == seq_len)].to_dict(
        "records"
    ):
        knobs = {
            name: None if pd.isna(record[name]) else int(record[name])
            for name in ("rank", "num_features")
        }
        found = run.error_interval(
            mechanism=record["mechanism"], seq_len=seq_len, head_dim=int(record["head_dim"]), family=family,
            compression=record["compression"], **knobs,
        )  # fmt: skip
        if found is not None:
            _, low, high = median_interval(record["samples_s"])
            times = {"seconds": record["median_s"], "seconds_low": max(low, min(record["samples_s"])),
                     "seconds_high": min(high, max(record["samples_s"]))}  # fmt: skip
            rows.append(record | times | dict(zip(_ERROR_COLUMNS, found)))
    return pd.DataFrame(
        rows, columns=[*frame.columns, "seconds", "seconds_low", "seconds_high", *_ERROR_COLUMNS]
    )


def pareto_front(*costs: ratio.Array) -> ratio.Array:
    """Which points no other beats: as good in every cost and better in one (smaller is better). A
    boolean array."""
    points = np.stack(costs, axis=1)
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    front: ratio.Array = np.logical_not((no_worse & better).any(axis=0))
    return front


def form(row: Any) -> str:
    """A row's configuration in words, like "low-rank (mean-pool, k = 16)"."""
    pooled = ["mean-pool"] if row["rank"] > 0 and row["compression"] == "mean-pool" else []
    knobs = pooled + words.sizes(row, words.KNOBS)
    return f"{row['mechanism']} ({', '.join(knobs)})" if knobs else row["mechanism"]


def sentence(rows: pd.DataFrame, family: str) -> str:
    """What ``join_time`` found, in words: the exact baseline, and of what is faster the most
    accurate and the fastest."""
    strong = rows[rows["mechanism"] == "full-sdpa"]["seconds"].min()
    faster = rows[(rows["seconds"] < strong) & (rows["error_median"] > 0)]
    size = (
        f"N = {int(rows['seq_len'].iloc[0])}, d = {int(rows['head_dim'].iloc[0])}, {family} inputs"
    )
    if strong != strong:
        return (
            f"At {size}, full-sdpa was not timed, so there is no exact baseline to be faster than."
        )
    if faster.empty:
        return f"At {size}, no approximation was faster than exact attention by full-sdpa ({format_seconds(strong)})."
    best, quickest = (
        faster.loc[faster["error_median"].idxmin()],
        faster.loc[faster["seconds"].idxmin()],
    )

    def name(row: Any) -> str:
        low, middle, high = (f"{row[f'error_{part}']:.2f}" for part in ("low", "median", "high"))
        return f"{form(row)} with a relative output error of {middle} ({low} to {high})"

    exact = rows.loc[rows.loc[rows["mechanism"] == "full-sdpa", "seconds"].idxmin()]

    def over_exact(row: Any) -> str:
        found = ratio.estimate(*(one.get(name) for one in (row, exact) for name in ratio.SIDE))
        return format_ratio(found.ratio)

    return (
        f"At {size}, exact attention takes {format_seconds(strong)} (full-sdpa); of what is faster, the most accurate is "
        f"{name(best)} at {over_exact(best)}, and the fastest is {name(quickest)} at "
        f"{over_exact(quickest)}."
    )
