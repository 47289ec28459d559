"""The page's data as compact JSON: columns instead of objects, words once, pairs of cases once
however many views show them."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.crossover import in_words
from flurka_bench.answers.speedup import CELL
from flurka_bench.answers.stages import flop_conditions
from flurka_bench.render.content import Content
from flurka_bench.words.text import json_text

# Every sample is kept to the last digit while the page stays small, to six significant digits
# beyond.
MAX_EXACT_SAMPLES = 120_000
_RECORD_COLUMNS = (
    "case_id", "status", "mechanism", "level", "pass", "backend", "order", "device", "dtype", "batch", "num_heads", "seq_len",
    "head_dim", "rank", "num_features", "compression", "share_kv", "share_heads", "num_layers", "ffn_dim", "vocab_size", "seed",
    "median_s", "flops", "bytes", "peak_memory_bytes", "predicted_s", "predicted_low_s", "predicted_high_s", "bound",
    "limited_by", "graph_s", "device_s", "stages_s", "predicted_stages_s", "error", "samples_s", "round_ids",
)  # fmt: skip
_SIDES = {"": "measured", "predicted_": "predicted"}


def _number(value: float, digits: int = 5) -> float | None:
    if value is None or value != value or math.isinf(value):
        return None
    return float(f"{value:.{digits}g}")


def _column(values: list[Any]) -> dict[str, Any]:
    """A column as it is, or as codes into a list of words where that is shorter."""
    simple = all(isinstance(value, (str, int, float, bool, type(None))) for value in values)
    keys = (
        [(type(value), value) for value in values]
        if simple
        else [json.dumps(value, sort_keys=True) for value in values]
    )
    words = {key: value for key, value in zip(keys, values)}
    if len(words) > max(4, len(values) // 4):
        return {"values": values}
    place = {key: index for index, key in enumerate(words)}
    return {"words": list(words.values()), "codes": [place[key] for key in keys]}


def _plain(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def records_payload(records: pd.DataFrame) -> dict[str, Any]:
    """{column: {"values"} or {"words", "codes"}}; an absent rank or num_features is null, as in the
    records."""
    count = sum(len(samples) for samples in records["samples_s"] if samples is not None)
    columns = {}
    for name in _RECORD_COLUMNS:
        if name not in records or records[name].isna().all():
            continue
        values = [_plain(value) for value in records[name]]
        if name.startswith("predicted_") and name.endswith("_s") and "stages" not in name:
            values = [_number(value, 6) for value in values]
        if name in ("rank", "num_features"):
            values = [value or None for value in values]
        if name == "samples_s" and count > MAX_EXACT_SAMPLES:
            values = [[_number(sample, 6) for sample in samples or []] for samples in values]
        if name in ("stages_s", "predicted_stages_s"):
            values = [
                {stage: _number(s, 3) for stage, s in table.items()} if table else None
                for table in values
            ]
        columns[name] = (
            {"values": values} if name in ("case_id", "samples_s", "median_s") else _column(values)
        )
    return columns


class _Pairs:
    """Pairs of records with their ratio, interval and verdict, each stored once."""

    def __init__(self) -> None:
        self.place: dict[tuple[str, int, int], int] = {}
        self.columns: dict[str, list] = {
            name: [] for name in ("own", "other", "ratio", "low", "high", "verdict")
        }

    def add(
        self, side: str, own: int, other: int, numbers: tuple[float, float, float], verdict: str
    ) -> int:
        if own < 0 or other < 0 or numbers[0] != numbers[0]:
            return -1
        key = (side, own, other)
        if key not in self.place:
            self.place[key] = len(self.place)
            for name, value in zip(
                self.columns, (int(own), int(other), *(_number(n) for n in numbers), verdict)
            ):
                self.columns[name].append(value)
        return self.place[key]


def views_payload(content: Content) -> dict[str, Any]:
    """Grids of cells, pairs, and per subject and baseline which pair stands in which cell."""
    pairs, grids, views = _Pairs(), [], {}
    for subject, by_baseline in content.views.items():
        views[subject] = {}
        for name, cells in by_baseline.items():
            grid = {
                column: _column([_plain(value) for value in cells[column]])
                for column in CELL
                if cells[column].nunique() > 1
            }
            grid |= {
                column: {"words": [_plain(cells[column].iloc[0])], "codes": None}
                for column in CELL
                if cells[column].nunique() == 1
            }
            if grid not in grids:
                grids.append(grid)
            view: dict[str, Any] = {"grid": grids.index(grid), "count": len(cells)}
            for prefix, side in _SIDES.items():
                if not cells[f"{prefix}speedup"].notna().any():
                    view[side] = []
                    continue
                columns = [
                    f"{prefix}{c}"
                    for c in (
                        "subject_row",
                        "baseline_row",
                        "speedup",
                        "speedup_low",
                        "speedup_high",
                        "verdict",
                    )
                ]
                view[side] = [
                    pairs.add(side, own, other, (a, b, c), v)
                    for own, other, a, b, c, v in cells[columns].itertuples(index=False)
                ]
            if cells["subjects"].nunique() > 1:  # cells of fewer mechanisms than others are marked
                view["subjects"] = _column(list(cells["subjects"]))
            reasons = [text if isinstance(text, str) else None for text in cells["missing"]]
            view["missing"] = (
                _column(reasons) if any(reasons) and not content.predicted_only else None
            )
            views[subject][name] = view
    rows = list(zip(pairs.columns["own"], pairs.columns["other"]))
    columns = pairs.columns | {
        "verdict": _column(pairs.columns["verdict"]),
        "flops": _column(flop_conditions(content.records, rows)),
    }
    return {"grids": grids, "pairs": columns, "views": views}


def crossings_payload(content: Content) -> dict[str, Any]:
    """Columns, one entry per series: where it lies, and both crossings in words and numbers."""
    crossings = content.crossings
    columns = {
        name: _column([_plain(value) for value in crossings[name]])
        for name in (*CELL, "subject", "baseline", "axis")
    }
    for prefix, side in _SIDES.items():
        if crossings[f"{prefix}wins"].notna().any():
            columns[side] = _column([in_words(row, prefix) for row in crossings.to_dict("records")])
    return columns | {"count": len(crossings)}


def payload(content: Content) -> dict[str, Any]:
    """Everything the page's script reads."""
    return {
        "title": content.title,
        "predicted_only": content.predicted_only,
        "count": len(content.records),
        "records": records_payload(content.records),
        "baselines": {name: BASELINES[name].label for name in BASELINES},
        "crossings": crossings_payload(content),
        **views_payload(content),
    }


def embed(data: Any) -> str:
    """JSON that is safe inside a script element: no '<', '>' or '&' survives, so nothing in it can
    close or open a tag."""
    text = json_text(json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
