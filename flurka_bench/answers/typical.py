"""The rows that stand for a run where one picture shows one workload."""

import pandas as pd

from flurka_bench.answers.speedup import WORKLOAD


def largest_workload(frame: pd.DataFrame) -> pd.DataFrame:
    """The timed records of the workload with most of them; of equals the one with the longest N.

    Args:
        frame: records as ``prepare`` leaves them.
    """
    timed = frame[frame["seconds"].notna()]
    if timed.empty:
        return timed
    parts = [part for _, part in timed.groupby(WORKLOAD, sort=False)]
    return max(parts, key=lambda part: (len(part), part["seq_len"].iloc[0]))


def fastest_forms(frame: pd.DataFrame) -> pd.DataFrame:
    """At the largest workload and the middle k and m: the fastest form of each mechanism.

    A mechanism whose features are as many as a head is wide stays, whatever m is.
    """
    rows = largest_workload(frame)
    if rows.empty:
        return rows
    for knob in ("rank", "num_features"):
        own = rows["mechanism"].str.endswith("-elu")
        tested = sorted(set(rows.loc[~own, knob]) - {0})
        if tested:
            middle = tested[len(tested) // 2]
            rows = rows[rows[knob].isin([0, middle]) | (own & (knob == "num_features"))]
    return rows.loc[rows.groupby("mechanism", sort=False)["seconds"].idxmin()]
