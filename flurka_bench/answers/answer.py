"""The answer in one table: per device, level, pass and dtype, how often and by how much the subject
wins."""

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import words
from flurka_bench.answers.baselines import (
    BASELINES,
    baseline,
)
from flurka_bench.answers.sources import MEASURED, PREDICTED, SECONDS, leading, of
from flurka_bench.answers.speedup import prepare
from flurka_bench.words.blocks import Column
from flurka_bench.words.units import format_ratio
from flurka_bench.words.verdict import MISSING, VERDICTS

SLICE = ["device", "level", "pass", "dtype"]
COUNTED = (*VERDICTS, MISSING)


def answers(views: "dict[str, pd.DataFrame]") -> pd.DataFrame:
    """One row per slice and baseline from ``{baseline: speedups(...)}``, strong baselines first.

    Columns: ``SLICE``, subject, baseline, ``kind`` (measured, or predicted where nothing was
        measured), cells, one count per
    verdict, median, best, best_low, best_high, worst (speedups), and best_cell (N, k, m as text).
    Speedups of a slice without any are nan.
    """
    rows = []
    for name, cells in views.items():
        for key, part in cells.groupby(SLICE, sort=False):
            source = leading(part)
            part = of(part, source)
            known = part[part["ratio"].notna()]
            counts = part["verdict"].value_counts()
            row = dict(zip(SLICE, key)) | {
                "subject": part["subject"].iloc[0],
                "baseline": name,
                "cells": len(part),
            }
            row["kind"] = source
            row |= {word: int(counts.get(word, 0)) for word in COUNTED}
            row |= {
                "median": np.nan,
                "best": np.nan,
                "best_low": np.nan,
                "best_high": np.nan,
                "worst": np.nan,
                "best_cell": "",
            }
            if len(known):
                best = known.loc[known["ratio"].idxmax()]
                row |= {"median": known["ratio"].median(), "worst": known["ratio"].min()}
                row |= {"best": best["ratio"], "best_low": best["low"]}
                row |= {"best_high": best["high"], "best_cell": words.place(best)}
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


def fastest_by_length(frame: pd.DataFrame) -> pd.DataFrame:
    """Per slice and N, the fastest mechanism at the middle k and m (elu + 1 and uncompressed ones
    take part as they are).

    Columns: ``SLICE``, batch, num_heads, head_dim, rank, num_features, seq_len, mechanism, order,
        backend, ``s``, kind (measured,
    or predicted where the slice has no measurement).
    """
    rows = prepare(frame)
    shape = [*SLICE, "batch", "num_heads", "head_dim"]
    found = []
    for key, part in rows.groupby(shape, sort=False):
        kind = MEASURED if part["seconds"].notna().any() else PREDICTED
        value = SECONDS[kind]
        part, middle = words.at_middle(part)
        part = part[part[value].notna()]
        best = part.loc[part.groupby("seq_len")[value].idxmin()]
        for row in best.to_dict("records"):
            form = {name: row[name] for name in ("seq_len", "mechanism", "order", "backend")}
            found.append(dict(zip(shape, key)) | middle | form | {"s": row[value], "kind": kind})
    return pd.DataFrame(
        found,
        columns=[
            *shape,
            "rank",
            "num_features",
            "seq_len",
            "mechanism",
            "order",
            "backend",
            "s",
            "kind",
        ],
    )


def fastest_in_words(rows: pd.DataFrame) -> str:
    """``"At h = 8, d = 64, k = 256, m = 64 the fastest is full-sdpa for N = 512 to 2048,
    flurka-relu for N = 4096 to 16384."``"""
    runs: list[list[Any]] = []
    for row in rows.sort_values("seq_len").to_dict("records"):
        if runs and runs[-1][0] == row["mechanism"]:
            runs[-1][2] = row["seq_len"]
        else:
            runs.append([row["mechanism"], row["seq_len"], row["seq_len"]])
    if not runs:
        return ""
    told = ", ".join(
        f"{name} for N = {low}" + (f" to {high}" if high != low else "") for name, low, high in runs
    )
    first = rows.iloc[0]
    sizes = ", ".join(words.sizes(first, (*words.WIDTHS, *words.KNOBS)))
    return f"At {sizes} the fastest is {told} ({first['kind']})."


def in_words(row: Mapping[Any, Any]) -> list[str]:
    """One slice's row as sentences a reader can quote."""
    decided, opponent = row["cells"] - row[MISSING], baseline(row["baseline"]).label
    opponent = (
        opponent
        if opponent.startswith("the ")
        else f"the {opponent}"
        if row["baseline"] in BASELINES
        else opponent
    )
    told = "predicted to be" if row["kind"] == "predicted" else "measured"
    if not decided:
        return [f"Nothing to compare with {opponent}: none of {row['cells']} cells has both times."]
    first = (
        f"{row['subject']} is {told} faster than {opponent} in {row['FASTER']} of {decided} cells"
    )
    rest = [f"{row[word]} {words.VERDICT_WORDS[word]}" for word in VERDICTS[1:] if row[word]]
    sentences = [first + (f" ({', '.join(rest)})" if rest else "") + "."]
    best = words.estimate(row["best"], row["best_low"], row["best_high"])
    sentences.append(
        f"Its best is {best} at {row['best_cell']}; the median {format_ratio(row['median'])}."
    )
    if row[MISSING]:
        sentences.append(f"{row[MISSING]} cells have no time on one side.")
    return sentences


def slices(answer: pd.DataFrame) -> list[tuple[tuple[Any, ...], pd.DataFrame]]:
    """The answer by (device, level, pass, dtype), the slices with most cells first."""
    found = [(key, part) for key, part in answer.groupby(SLICE, sort=False)]
    return sorted(found, key=lambda entry: -int(entry[1]["cells"].max()))


def answer_columns(*, short: bool = False) -> list[Column]:
    """The columns of a slice's table, one line a baseline; ``short`` for lines of 80 columns."""
    counted = [Column(words.VERDICT_WORDS[word], extra=word == MISSING) for word in COUNTED]
    return [
        Column("over" if short else "baseline", "word"),
        *counted,
        Column("median", extra=True),
        Column("best (interval)", "word" if short else "number"),
        Column("at", "word"),
        Column("least", extra=True),
    ]


def answer_row(row: Mapping[Hashable, Any], *, short: bool = False) -> list[str]:
    """One baseline's line of the answer's table, under ``answer_columns``."""
    return [
        row["baseline"] if short else baseline(row["baseline"]).label,
        *(str(row[word]) for word in COUNTED),
        format_ratio(row["median"]),
        words.estimate(row["best"], row["best_low"], row["best_high"]),
        row["best_cell"],
        format_ratio(row["worst"]),
    ]
