"""The answer in one table: per device, level, pass and dtype, how often and by how much the subject wins."""

import numpy as np
import pandas as pd

from flurka_bench.analysis.ratio import MISSING
from flurka_bench.measure.statistics import VERDICTS

SLICE = ["device", "level", "pass", "dtype"]
COUNTED = (*VERDICTS, MISSING)


def answers(views: "dict[str, pd.DataFrame]") -> pd.DataFrame:
    """One row per slice and baseline from ``{baseline: speedups(...)}``, strong baselines first.

    Columns: ``SLICE``, subject, baseline, ``kind`` (measured, or predicted where nothing was measured), cells, one count per
    verdict, median, best, best_low, best_high, worst (speedups), and best_cell (N, k, m as text). Speedups of a slice without any
    are nan.
    """
    rows = []
    for name, cells in views.items():
        for key, part in cells.groupby(SLICE, sort=False):
            prefix = "" if part["speedup"].notna().any() else "predicted_"
            known = part[part[f"{prefix}speedup"].notna()]
            counts = part[f"{prefix}verdict"].value_counts()
            row = dict(zip(SLICE, key)) | {"subject": part["subject"].iloc[0], "baseline": name, "cells": len(part)}
            row["kind"] = "predicted" if prefix and len(known) else "measured"
            row |= {word: int(counts.get(word, 0)) for word in COUNTED}
            row |= {"median": np.nan, "best": np.nan, "best_low": np.nan, "best_high": np.nan, "worst": np.nan, "best_cell": ""}
            if len(known):
                best = known.loc[known[f"{prefix}speedup"].idxmax()]
                row |= {"median": known[f"{prefix}speedup"].median(), "worst": known[f"{prefix}speedup"].min()}
                row |= {"best": best[f"{prefix}speedup"], "best_low": best[f"{prefix}speedup_low"]}
                row |= {"best_high": best[f"{prefix}speedup_high"], "best_cell": place(best)}
            rows.append(row)
    columns = [
        *SLICE,
        "subject",
        "baseline",
        "kind",
        "cells",
        *COUNTED,
        "median",
        "best",
        "best_low",
        "best_high",
        "worst",
        "best_cell",
    ]
    return pd.DataFrame(rows, columns=columns)


def place(cell: pd.Series) -> str:
    """``"N = 4096, k = 128, m = 32"``: where a cell lies."""
    symbols = {"seq_len": "N", "rank": "k", "num_features": "m"}
    return ", ".join(f"{symbol} = {cell[name]}" for name, symbol in symbols.items() if cell[name])


def in_words(row: "pd.Series | dict") -> list[str]:
    """One slice's row as sentences a reader can quote."""
    from flurka_bench.units import format_ratio

    decided = row["cells"] - row[MISSING]
    told = "predicted to be" if row["kind"] == "predicted" else "measured"
    if not decided:
        return [f"Nothing to compare with {row['baseline']}: none of {row['cells']} cells has both times."]
    first = f"{row['subject']} is {told} faster than {row['baseline']} in {row['FASTER']} of {decided} cells"
    rest = [
        f"{row[word]} {text}"
        for word, text in (("SLOWER", "slower"), ("SAME", "the same"), ("AMBIGUOUS", "not decided"))
        if row[word]
    ]
    sentences = [first + (f" ({', '.join(rest)})" if rest else "") + "."]
    interval = f" ({format_ratio(row['best_low'])} to {format_ratio(row['best_high'])})" if np.isfinite(row["best_high"]) else ""
    sentences.append(
        f"Its best is {format_ratio(row['best'])}{interval} at {row['best_cell']}; the median {format_ratio(row['median'])}."
    )
    if row[MISSING]:
        sentences.append(f"{row[MISSING]} cells have no time on one side.")
    return sentences
