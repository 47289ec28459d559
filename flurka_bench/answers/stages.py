"""Why one case beats another: time by stage, what bounds it, and which FLOP condition holds."""

from collections.abc import Mapping, Sequence
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
    values = {}
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


def stage_seconds(record: Mapping[str, Any]) -> tuple[str, dict[str, float]]:
    """``("measured" | "predicted", seconds by stage)`` of a record; the dict is empty where neither
    is known."""
    for word, name in (("measured", "stages_s"), ("predicted", "predicted_stages_s")):
        table = record.get(name)
        if isinstance(table, dict) and table:
            return word, {
                stage: float(seconds) for stage, seconds in table.items() if seconds is not None
            }
    return "predicted", {}


def reason(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """In words and numbers, why ``own`` is faster or slower than ``other`` (records): stage, bound,
    FLOP condition."""
    word, mine = stage_seconds(own)
    other_word, theirs = stage_seconds(other)
    parts = []
    if mine and theirs and word == other_word:
        parts.append(words.stage_reason(mine, theirs, f", {word}"))
    bounds = [record.get("limited_by") or record.get("bound") for record in (own, other)]
    if all(isinstance(bound, str) for bound in bounds):
        parts.append(words.bound_reason(*map(str, bounds)))
    flops = [
        record["flops"]
        if record.get("flops", 0) > 0
        else total(lower(case_of(record), "cuda"), "flops")
        for record in (own, other)
    ]
    needs = words.flop_reason(float(flops[0] / flops[1]))
    parts.append(f"{own['mechanism']} {needs} of {other['mechanism']}")
    return "; ".join(parts)


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
    known: dict[tuple, str] = {}
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
    found = {}
    for _, part in rows.groupby([*_FORM, "batch"], dropna=False, sort=False):
        first = case_of(part.iloc[0])
        sizes = ("seq_len", "num_heads", "head_dim", "rank", "num_features")
        arrays = {name: part[name].to_numpy() for name in sizes if getattr(first, name) is not None}
        count = total(lower(first.replace(backend="eager", **arrays), "cuda"), "matmul_flops")
        found |= dict(zip(part.index, np.broadcast_to(np.asarray(count, dtype=float), len(part))))
    return found
