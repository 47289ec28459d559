"""How far the prediction can be trusted: errors of times and speedups, overlap of the winning
regions, and the worst cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import words
from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.speedup import (
    CELL,
    prepare,
    side_by_side,
)
from flurka_bench.words.blocks import Column, Table, table
from flurka_bench.words.units import (
    format_ratio,
    format_seconds,
)
from flurka_bench.words.verdict import VERDICTS

DECIDED = ("FASTER", "SLOWER")
NUM_WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Predicted beside measured.

    ``times``: one row over all and one per bottleneck (``bound``): count, mape, median_ape, p90_ape
        (fractions), bias
    (median of predicted / measured), coverage (share of measurements inside the band). ``signs``:
    one row per baseline: cells, decided (cells whose measured verdict is FASTER or SLOWER),
    sign_agreement and iou over the decided, ratio_mape. ``confusion``: measured verdict, predicted
    verdict, count, per baseline. ``bounds``: predicted bound, the bound that the counters or the
    achieved rates tell (``limited_by``), count. ``worst``: the cells whose speedup is farthest off,
    each with its explanation.
    """

    times: pd.DataFrame
    signs: pd.DataFrame
    confusion: pd.DataFrame
    bounds: pd.DataFrame
    worst: pd.DataFrame


def overlap(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union of two winning regions (boolean arrays); 1 where both are empty,
    which is agreement too."""
    union = (measured | predicted).sum()
    return float((measured & predicted).sum() / union) if union else 1.0


def time_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have both times, with ``error`` = predicted / measured - 1 and ``inside``
    (within the band)."""
    rows = prepare(frame)
    both = rows[rows["seconds"].notna() & rows["predicted_s"].notna()].copy()
    both["error"] = both["predicted_s"] / both["seconds"] - 1
    both["inside"] = (both["predicted_low_s"] <= both["seconds"]) & (
        both["seconds"] <= both["predicted_high_s"]
    )
    return both


def _times(both: pd.DataFrame) -> pd.DataFrame:
    parts = {"all": both} | {f"{bound}-bound": part for bound, part in both.groupby("bound")}
    if "limited_by" in both:
        parts |= {f"measured {limit}": part for limit, part in both.groupby("limited_by")}
    rows = []
    for name, part in parts.items():
        if part.empty:
            continue
        ape = part["error"].abs()
        rows.append(
            {
                "bottleneck": name,
                "count": len(part),
                "mape": ape.mean(),
                "median_ape": ape.median(),
                "p90_ape": ape.quantile(0.9),
                "bias": (part["error"] + 1).median(),
                "coverage": part["inside"].mean(),
            }
        )
    return pd.DataFrame(
        rows, columns=["bottleneck", "count", "mape", "median_ape", "p90_ape", "bias", "coverage"]
    )


def _signs(cells: pd.DataFrame) -> dict[str, Any]:
    decided = cells[cells["verdict"].isin(DECIDED)]
    won, expected = (
        (decided["verdict"] == "FASTER").to_numpy(),
        (decided["predicted_speedup"] > 1).to_numpy(),
    )
    return {
        "cells": len(cells),
        "decided": len(decided),
        "sign_agreement": float((won == expected).mean()) if len(decided) else np.nan,
        "iou": overlap(won, expected) if len(decided) else np.nan,
        "ratio_mape": float((cells["predicted_speedup"] / cells["speedup"] - 1).abs().mean())
        if len(cells)
        else np.nan,
    }


def agreement(
    frame: pd.DataFrame, subject: str, cells_by_baseline: "dict[str, pd.DataFrame]"
) -> Agreement:
    """Compare the two, given ``speedups(frame, subject, name)`` by baseline name (computed once by
    the caller, used by all)."""
    rows = prepare(frame)
    signs, confusion, pooled = [], [], []
    for name, cells in cells_by_baseline.items():
        both = side_by_side(cells)
        known = both[both["speedup"].notna() & both["predicted_speedup"].notna()]
        signs.append({"subject": subject, "baseline": name} | _signs(known))
        counts = (
            known.groupby(["verdict", "predicted_verdict"]).size().rename("count").reset_index()
        )
        confusion.append(counts.assign(baseline=name))
        pooled.append(known)
    counted = ["baseline", "verdict", "predicted_verdict", "count"]
    times = time_errors(rows)
    return Agreement(
        times=_times(times),
        signs=pd.DataFrame(
            signs,
            columns=[
                "subject",
                "baseline",
                "cells",
                "decided",
                "sign_agreement",
                "iou",
                "ratio_mape",
            ],
        ),
        confusion=pd.concat(confusion)[counted] if confusion else pd.DataFrame(columns=counted),
        bounds=_bounds(times),
        worst=_worst(rows, pd.concat(pooled, ignore_index=True) if pooled else pd.DataFrame()),
    )


def _bounds(both: pd.DataFrame) -> pd.DataFrame:
    if "limited_by" not in both or not both["limited_by"].notna().any():
        return pd.DataFrame(columns=["bound", "limited_by", "count"])
    measured = both["limited_by"].str.removesuffix("-bound")
    return (
        both.assign(limited_by=measured)
        .groupby(["bound", "limited_by"])
        .size()
        .rename("count")
        .reset_index()
    )


def _worst(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    columns = [*CELL, "subject", "baseline", "speedup", "predicted_speedup", "off", "explanation"]
    if cells.empty:
        return pd.DataFrame(columns=columns)
    off = np.log(cells["predicted_speedup"] / cells["speedup"])
    cells = cells.assign(off=np.exp(off.abs())).loc[
        off.abs().sort_values(ascending=False, kind="stable").index
    ]
    cells = cells.drop_duplicates(["subject_row", "baseline_row"]).head(NUM_WORST)
    told = [_explain_cell(rows, cell) for cell in cells.to_dict("records")]
    return cells.assign(explanation=told)[columns].reset_index(drop=True)


def _explain_cell(rows: pd.DataFrame, cell: Mapping[str, Any]) -> str:
    """What was measured, against its own prediction; and where the prediction took another form for
    the fastest, which."""
    text = explain(rows.loc[cell["subject_row"]], rows.loc[cell["baseline_row"]])
    for side in ("subject", "baseline"):
        if cell[f"predicted_{side}_row"] != cell[f"{side}_row"]:
            form = words.form(cell, f"predicted_{side}_")
            text += f"; predicted to be the fastest {side}: {form}"
    return text


def explain(own: pd.Series, other: pd.Series) -> str:
    """Which of the two times is mispredicted, by how much, and in which stage."""
    parts = []
    for row in (own, other):
        error = np.log(row["predicted_s"] / row["seconds"])
        factor, side = np.exp(abs(error)), "slow" if error > 0 else "fast"
        parts.append(
            (
                abs(error),
                f"{row['mechanism']} predicted {factor:.2f}× too {side}{_stage_error(row)}",
            )
        )
    parts.sort(reverse=True)
    return "; ".join(text for _, text in parts)


def _stage_error(row: pd.Series) -> str:
    measured, expected = row.get("stages_s"), row.get("predicted_stages_s")
    if not isinstance(expected, dict) or not expected:
        return ""
    if not isinstance(measured, dict) or not measured:
        stage = max(expected, key=lambda name: expected[name])
        return f" (most of it expected in {stage}, {expected[stage] / sum(expected.values()):.0%}; stages were not timed)"
    stages = [name for name in expected if name in measured]
    if not stages:
        return ""
    stage = max(stages, key=lambda name: abs(expected[name] - measured[name]))
    return f" (mostly {stage}: {format_seconds(expected[stage])} predicted, {format_seconds(measured[stage])} measured)"


def tables(found: Agreement) -> list[Table]:
    """The agreement for every form in which it is shown; no table is empty."""
    worst = [
        (_label(r["baseline"]), _place(r), format_ratio(r["speedup"]),
         format_ratio(r["predicted_speedup"]), r["explanation"])
        for r in found.worst.to_dict("records")
    ]  # fmt: skip
    every = [
        _times_table(found.times),
        _signs_table(found.signs),
        *_confusions(found),
        table(
            (Column("baseline", "word"), Column("cell", "word"), "measured", "predicted",
             Column("why", "long")),
            worst,
            f"The {len(worst)} cells whose speedup is farthest off",
        ),
    ]  # fmt: skip
    return [each for each in every if each.rows]


def _times_table(times: pd.DataFrame) -> Table:
    shares = ("mape", "median_ape", "p90_ape")
    return table(
        ("", "cases", "mean error", "median", "90th percentile", "predicted / measured",
         "inside the band"),
        [
            (r["bottleneck"], r["count"], *(words.percent(r[name]) for name in shares),
             f"{r['bias']:.2f}", words.percent(r["coverage"]))
            for r in times.to_dict("records")
        ],
        "Times, by bottleneck",
    )  # fmt: skip


def _signs_table(signs: pd.DataFrame) -> Table:
    return table(
        ("baseline", "cells", "decided", "same winner", "overlap (IoU) of the winning regions",
         "mean error of the speedup"),
        [
            (_label(r["baseline"]), r["cells"], r["decided"], words.percent(r["sign_agreement"]),
             f"{r['iou']:.2f}", words.percent(r["ratio_mape"]))
            for r in signs.to_dict("records")
            if r["decided"]
        ],
        "Who wins, where the cells differ by more than the noise",
    )  # fmt: skip


def _confusions(found: Agreement) -> list[Table]:
    """Verdicts and bottlenecks, measured against predicted; without rows where none is known."""
    counts = (
        found.confusion.groupby(["verdict", "predicted_verdict"])["count"].sum().to_dict()
        if len(found.confusion)
        else {}
    )
    bounds = {(r["limited_by"], r["bound"]): r["count"] for r in found.bounds.to_dict("records")}
    usual = ("compute", "memory", "launch")
    kinds = (*usual, *sorted({kind for pair in bounds for kind in pair} - {*usual}))
    return [
        table(
            ("", *names),
            [(down, *(counted.get((down, across), 0) for across in names)) for down in names]
            if counted
            else [],
            title,
        )
        for names, counted, title in (
            (VERDICTS, counts,
             "Verdicts, measured (down) against predicted (across), all baselines"),
            (kinds, bounds,
             "Bottlenecks, as measured (down) against predicted (across), in cases"),
        )
    ]  # fmt: skip


def _label(name: str) -> str:
    return BASELINES[name].label if name in BASELINES else name


def _place(row: Mapping[str, Any]) -> str:
    """``"layer forward float32, h = 8, d = 64, N = 512, k = 64, m = 16"``: a cell in a line."""
    return f"{row['level']} {row['pass']} {row['dtype']}, {words.where(row)}"
