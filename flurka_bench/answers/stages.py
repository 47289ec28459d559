"""Why one case beats another: time by stage, what bounds it, and which FLOP condition holds."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import words
from flurka_bench.cases.case import Case
from flurka_bench.cost import regions
from flurka_bench.lowering import lower
from flurka_bench.words.ops import total
from flurka_bench.words.sizes import STAGES

_FIELDS = {field.name.rstrip("_"): field.name for field in fields(Case)}
_WHOLE = (
    "batch",
    "num_heads",
    "seq_len",
    "head_dim",
    "rank",
    "num_features",
    "num_layers",
    "ffn_dim",
    "vocab_size",
)


def case_of(record: Mapping[str, Any]) -> Case:
    """The case that a record (or a row of a frame; 0 and nan mean None) is about."""
    values: dict[str, Any] = {}
    for name, attribute in _FIELDS.items():
        value = record.get(name)
        if value is None or value != value:
            continue
        if name in _WHOLE:
            value = int(value)
            if value == 0 and name in ("rank", "num_features"):
                continue
        values[attribute] = bool(value) if name in ("share_kv", "share_heads") else value
    return Case(**values)


def stage_counts(case: Case, device: str) -> dict[str, dict[str, float]]:
    """FLOPs and bytes by stage of a case, in the order in which the stages run (forward and
    backward together), ``device`` as in ``mechanisms.lower``."""
    ops = lower(case, device)
    counts = {}
    for stage in STAGES:
        own = [op for op in ops if op.stage == stage]
        if own:
            counts[stage] = {
                "flops": total(own, "flops"),
                "bytes": total(own, "bytes_read") + total(own, "bytes_written"),
            }
    return counts


def _stages(record: Mapping[Any, Any], word: str) -> dict[str, float]:
    """Seconds by stage, ``measured`` or ``predicted``; empty where they are not known."""
    table = record.get({"measured": "stages_s", "predicted": "predicted_stages_s"}[word])
    known = table if isinstance(table, dict) else {}
    return {stage: float(seconds) for stage, seconds in known.items() if seconds is not None}


def stage_seconds(record: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """``("measured" | "predicted", seconds by stage)`` of a record; the dict is empty where neither
    is known."""
    measured = _stages(record, "measured")
    return ("measured", measured) if measured else ("predicted", _stages(record, "predicted"))


def reasons(own: Mapping[Hashable, Any], other: Mapping[Hashable, Any]) -> tuple[str, str, str]:
    """Why ``own`` is faster or slower than ``other`` (records): by stage, by what bounds them, by
    FLOPs. Each is empty where the records do not tell."""
    stage = bound = flops = ""
    for word in ("measured", "predicted"):
        mine, theirs = _stages(own, word), _stages(other, word)
        if mine and theirs:
            stage = words.stage_reason(mine, theirs, f", {word}")
            break
    bounds = [words.bound_of(record) for record in (own, other)]
    if all(bounds):
        bound = words.bound_reason(*bounds)
    counts = [record.get("flops") or 0 for record in (own, other)]
    if min(counts) > 0:
        flops = words.flop_reason(counts[0] / counts[1])
    return stage, bound, flops


def reason(own: Mapping[Any, Any], other: Mapping[Any, Any]) -> str:
    """``reasons`` in one sentence; FLOPs that the records lack are counted."""
    known: list[dict[Hashable, Any]] = [
        {**record, "flops": record.get("flops") or total(lower(case_of(record), "cuda"), "flops")}
        for record in (own, other)
    ]
    *first, needs = reasons(*known)
    return "; ".join([*filter(None, first), f"{own['mechanism']} {needs} of {other['mechanism']}"])


_FORM = ["mechanism", "level", "order", "pass", "share_kv", "share_heads", "compression"]


def flop_conditions(rows: pd.DataFrame, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Per pair of rows of ``prepare``'s frame where the first needs fewer matmul FLOPs than the
    second, and whether it does.

    ``"m*(N + k) < N*k (holds)"``; empty at level model, which has no closed form. Imports SymPy.
    """
    forms = list(rows[_FORM].itertuples(index=False, name=None))
    place = dict(zip(rows.index, range(len(rows))))
    used = sorted({index for pair in pairs for index in pair})
    flops = _matmul_flops(rows.loc[[index for index in used if rows.at[index, "level"] != "model"]])
    known: dict[tuple[Any, ...], str] = {}
    told = []
    for own, other in pairs:
        mine, theirs = forms[place[own]], forms[place[other]]
        if mine[1] == "model":
            told.append("")
            continue
        if (mine, theirs) not in known:
            options = dict(zip(("pass_", "share_kv", "share_heads", "compression"), mine[3:]))
            known[mine, theirs] = str(
                regions.inequality(mine[0], theirs[0], mine[1], mine[2], theirs[2], **options)
            )
        told.append(
            f"{known[mine, theirs]} ({'holds' if flops[own] < flops[other] else 'does not hold'})"
        )
    return told


def _matmul_flops(rows: pd.DataFrame) -> dict[int, float]:
    """Matmul FLOPs by row, counted for all rows of one form at once."""
    found: dict[int, float] = {}
    for _, part in rows.groupby([*_FORM, "batch"], dropna=False, sort=False):
        first = case_of(part.iloc[0])
        sizes = ("seq_len", "num_heads", "head_dim", "rank", "num_features")
        arrays = {name: part[name].to_numpy() for name in sizes if getattr(first, name) is not None}
        count = total(lower(first.replace(backend="eager", **arrays), "cuda"), "matmul_flops")
        found |= dict(zip(part.index, np.broadcast_to(np.asarray(count, dtype=float), len(part))))
    return found
