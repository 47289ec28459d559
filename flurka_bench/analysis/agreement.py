"""How far the prediction can be trusted: errors of times and speedups, overlap of the winning regions, and the worst cells."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flurka_bench.analysis.speedup import CELL, prepare

DECIDED = ("FASTER", "SLOWER")
NUM_WORST = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Predicted beside measured.

    ``times``: one row over all and one per bottleneck (``bound``): count, mape, median_ape, p90_ape (fractions), bias
    (median of predicted / measured), coverage (share of measurements inside the band). ``signs``: one row per baseline:
    cells, decided (cells whose measured verdict is FASTER or SLOWER), sign_agreement and iou over the decided,
    ratio_mape. ``confusion``: measured verdict, predicted verdict, count, per baseline. ``worst``: the cells whose speedup
    is farthest off, each with its explanation.
    """

    times: pd.DataFrame
    signs: pd.DataFrame
    confusion: pd.DataFrame
    worst: pd.DataFrame


def overlap(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Intersection over union of two winning regions (boolean arrays); 1 where both are empty, which is agreement too."""
    union = (measured | predicted).sum()
    return float((measured & predicted).sum() / union) if union else 1.0


def time_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have both times, with ``error`` = predicted / measured - 1 and ``inside`` (within the band)."""
    rows = prepare(frame)
    both = rows[rows["seconds"].notna() & rows["predicted_s"].notna()].copy()
    both["error"] = both["predicted_s"] / both["seconds"] - 1
    both["inside"] = (both["predicted_low_s"] <= both["seconds"]) & (both["seconds"] <= both["predicted_high_s"])
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
    return pd.DataFrame(rows, columns=["bottleneck", "count", "mape", "median_ape", "p90_ape", "bias", "coverage"])


def _signs(cells: pd.DataFrame) -> dict:
    decided = cells[cells["verdict"].isin(DECIDED)]
    won, expected = (decided["verdict"] == "FASTER").to_numpy(), (decided["predicted_speedup"] > 1).to_numpy()
    return {
        "cells": len(cells),
        "decided": len(decided),
        "sign_agreement": float((won == expected).mean()) if len(decided) else np.nan,
        "iou": overlap(won, expected) if len(decided) else np.nan,
        "ratio_mape": float((cells["predicted_speedup"] / cells["speedup"] - 1).abs().mean()) if len(cells) else np.nan,
    }


def agreement(frame: pd.DataFrame, subject: str, cells_by_baseline: "dict[str, pd.DataFrame]") -> Agreement:
    """Compare the two, given ``speedups(frame, subject, name)`` by baseline name (computed once by the caller, used by all)."""
    rows = prepare(frame)
    signs, confusion, pooled = [], [], []
    for name, cells in cells_by_baseline.items():
        known = cells[cells["speedup"].notna() & cells["predicted_speedup"].notna()]
        signs.append({"subject": subject, "baseline": name} | _signs(known))
        counts = known.groupby(["verdict", "predicted_verdict"]).size().rename("count").reset_index()
        confusion.append(counts.assign(baseline=name))
        pooled.append(known)
    counted = ["baseline", "verdict", "predicted_verdict", "count"]
    return Agreement(
        times=_times(time_errors(rows)),
        signs=pd.DataFrame(signs, columns=["subject", "baseline", "cells", "decided", "sign_agreement", "iou", "ratio_mape"]),
        confusion=pd.concat(confusion)[counted] if confusion else pd.DataFrame(columns=counted),
        worst=_worst(rows, pd.concat(pooled) if pooled else pd.DataFrame()),
    )


def _worst(rows: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    columns = [*CELL, "subject", "baseline", "speedup", "predicted_speedup", "off", "explanation"]
    if cells.empty:
        return pd.DataFrame(columns=columns)
    off = np.log(cells["predicted_speedup"] / cells["speedup"])
    cells = cells.assign(off=np.exp(off.abs())).loc[off.abs().sort_values(ascending=False, kind="stable").index]
    cells = cells.drop_duplicates(["subject_row", "baseline_row"]).head(NUM_WORST)
    words = [explain(rows.loc[own], rows.loc[other]) for own, other in zip(cells["subject_row"], cells["baseline_row"])]
    return cells.assign(explanation=words)[columns].reset_index(drop=True)


def explain(own: pd.Series, other: pd.Series) -> str:
    """Which of the two times is mispredicted, by how much, and in which stage."""
    parts = []
    for row in (own, other):
        error = np.log(row["predicted_s"] / row["seconds"])
        factor, side = np.exp(abs(error)), "slow" if error > 0 else "fast"
        parts.append((abs(error), f"{row['mechanism']} predicted {factor:.2f}× too {side}{_stage_error(row)}"))
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
    return f" (mostly {stage}: {expected[stage] * 1e3:.3g} ms predicted, {measured[stage] * 1e3:.3g} ms measured)"
