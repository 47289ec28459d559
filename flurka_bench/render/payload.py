"""The page's data as compact JSON: columns instead of objects, words once, pairs of cases once
however many views show them."""

import json
import math
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from flurka_bench.answers import words
from flurka_bench.answers.answer import SLICE
from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.crossover import told
from flurka_bench.answers.sources import MEASURED, SOURCES, of, present
from flurka_bench.answers.speedup import CELL
from flurka_bench.answers.stages import flop_conditions, reasons
from flurka_bench.render.content import Content
from flurka_bench.render.figures import heatmap, style
from flurka_bench.words.text import csv_cell, json_text
from flurka_bench.words.units import UNKNOWN, format_bytes, format_ratio, format_seconds

# Every sample is kept to the last digit while the page stays small, to six significant digits
# beyond.
MAX_EXACT_SAMPLES = 120_000
_RECORD_COLUMNS = (
    "case_id", "status", "mechanism", "level", "pass", "backend", "order", "device", "dtype", "batch", "num_heads", "seq_len",
    "head_dim", "rank", "num_features", "compression", "share_kv", "share_heads", "num_layers", "ffn_dim", "vocab_size", "seed",
    "median_s", "flops", "bytes", "peak_memory_bytes", "predicted_s", "predicted_low_s", "predicted_high_s", "bound",
    "limited_by", "graph_s", "device_s", "stages_s", "predicted_stages_s", "error", "samples_s", "round_ids",
)  # fmt: skip
_PAIR = ["subject_row", "baseline_row", "ratio", "low", "high", "verdict"]


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


# What the detail of a cell says of both cases: the line's title, the column of its texts.
_DETAILS = {
    "": "form", "median of samples": "median", "samples": "samples", "predicted": "predicted", "band": "band", "bound": "bound",
    "peak memory": "memory", "GFLOP": "gflop", "case": "case",
}  # fmt: skip


def _texts(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    """One record's numbers as the page says them."""
    low, high = (format_seconds(row[f"predicted_{end}_s"]) for end in ("low", "high"))
    samples = row["samples_s"] if row["samples_s"] is not None else []
    spread = [format_seconds(end) for end in (min(samples), max(samples))] if len(samples) else []
    flops = row.get("flops")
    return {
        "form": words.form(row),
        "case": row["case_id"],
        "median": format_seconds(row["seconds"]),
        "samples": f"{len(samples)} samples",
        "spread": " to ".join(spread) or "none",
        "predicted": format_seconds(row["predicted_s"]),
        "band": f"{low} to {high}",
        "bound": words.bound_of(row) or UNKNOWN,
        "memory": format_bytes(row.get("peak_memory_bytes")),
        "gflop": f"{flops / 1e9:.3g}" if flops and flops == flops else UNKNOWN,
        "stages": _stage_texts(row.get("stages_s")),
        "predicted_stages": _stage_texts(row.get("predicted_stages_s")),
    }


def _stage_texts(stages: Any) -> list[str] | None:
    """The sum, then each stage's time, in the order of the stages."""
    if not isinstance(stages, dict) or not stages:
        return None
    return [
        format_seconds(seconds or 0.0)
        for seconds in (sum(map(float, filter(None, stages.values()))), *stages.values())
    ]


def texts_payload(records: pd.DataFrame) -> dict[str, Any]:
    """{column: texts} of every record, to be shown as they are."""
    found = [_texts(row) for row in records.to_dict("records")]
    return {name: _column([each[name] for each in found]) for name in (found[0] if found else ())}


def guarded(records: pd.DataFrame) -> dict[str, Any]:
    """The columns of which a spreadsheet would take a text for a formula, made safe for it."""
    found = {}
    for name in _RECORD_COLUMNS:
        if name not in records or records[name].dtype != object:
            continue
        safe = [
            csv_cell(value) if isinstance(value, str) else _plain(value) for value in records[name]
        ]
        if safe != [_plain(value) for value in records[name]]:
            found[name] = _column(safe)
    return found


def words_payload() -> dict[str, Any]:
    """The vocabulary of the page's script; {names} in it are filled in there."""
    return {
        "symbols": words.SYMBOLS,
        "axes": {
            name: f"{words.SYMBOLS[name]}, {words.LONG_NAMES.get(name, name)}"
            for name in ("seq_len", *words.KNOBS, "head_dim", "num_heads", "batch")
        },
        "slice": SLICE,
        "names": words.SYMBOLS | _NAMES,
        "signs": words.SIGNS,
        "undecided": words.UNDECIDED,
        "unknown": UNKNOWN,
        "absent": words.NOT_RUN,
        "impossible": words.IMPOSSIBLE,
        "impossible_short": words.IMPOSSIBLE.partition(":")[0],
        "no_time": words.NO_TIME,
        "no_prediction": words.NO_PREDICTION,
        "thin": "* at {symbol} = {values}: {names} only",
        "off": "predicted {predicted}, measured {measured}: {off}",
        "ramp": ["1/{limit}×", "{limit}×"],
    }


_NAMES = {
    "pass": "pass", "compression": "compression", "share_kv": "E = F", "share_heads": "E shared by heads",
    "num_layers": "layers", "ffn_dim": "ffn width", "vocab_size": "vocabulary",
}  # fmt: skip


class _Pairs:
    """Pairs of records with their ratio, interval and verdict, each stored once."""

    def __init__(self) -> None:
        self.place: dict[tuple[str, int, int], int] = {}
        names = ("own", "other", "ratio", "text", "interval", "verdict")
        self.columns: dict[str, list[Any]] = {name: [] for name in names}

    def add(
        self, side: str, own: int, other: int, numbers: tuple[float, float, float], verdict: str
    ) -> int:
        ratio, *ends = numbers
        if own < 0 or other < 0 or ratio != ratio:
            return -1
        key = (side, own, other)
        if key not in self.place:
            self.place[key] = len(self.place)
            told = words.interval(*ends) or "interval unknown"
            values = (int(own), int(other), _number(ratio), format_ratio(ratio), told, verdict)
            for name, value in zip(self.columns, values):
                self.columns[name].append(value)
        return self.place[key]


def _limits(cells: pd.DataFrame) -> dict[str, Any]:
    """Where colours saturate, by cell: one limit for all maps of a slice, so that they compare."""
    limits = {}
    for key, part in cells.groupby(SLICE, sort=False):
        limits[key] = heatmap.colour_limit(part["ratio"].dropna().tolist())
    places = of(cells, MEASURED)[SLICE]
    return _column([limits[key] for key in places.itertuples(index=False, name=None)])


def _off(cells: pd.DataFrame) -> dict[str, Any] | None:
    """How far the predicted speedup is from the measured one, by cell, where both are known."""
    measured, predicted = (of(cells, source)["ratio"].to_numpy() for source in SOURCES)
    share = (predicted / measured - 1).tolist()
    told = [
        None if value != value else f"{'+' if value >= 0 else '−'}{100 * abs(value):.1f} %"
        for value in share
    ]
    return _column(told) if any(told) else None


def impossible(records: pd.DataFrame) -> dict[int, list[int]]:
    """Of each rank the lengths N that are shorter: no case compresses to more keys than there
    are."""
    lengths, ranks = (sorted(set(records[name].astype(int))) for name in ("seq_len", "rank"))
    found = {rank: [n for n in lengths if n < rank] for rank in ranks}
    return {rank: shorter for rank, shorter in found.items() if shorter}


def views_payload(content: Content) -> dict[str, Any]:
    """Grids of cells, pairs, and per subject and baseline which pair stands in which cell."""
    pairs = _Pairs()
    grids: list[dict[str, Any]] = []
    views: dict[str, dict[str, Any]] = {}
    for subject, by_baseline in content.views.items():
        views[subject] = {}
        for name, cells in by_baseline.items():
            places = of(cells, MEASURED)
            grid = {
                column: _column([_plain(value) for value in places[column]])
                for column in CELL
                if places[column].nunique() > 1
            }
            grid |= {
                column: {"words": [_plain(places[column].iloc[0])], "codes": None}
                for column in CELL
                if places[column].nunique() == 1
            }
            if grid not in grids:
                grids.append(grid)
            view: dict[str, Any] = {"grid": grids.index(grid), "count": len(places)}
            held = present(cells)
            for source in SOURCES:
                rows = of(cells, source)[_PAIR] if source in held else cells.iloc[:0][_PAIR]
                view[source] = [
                    pairs.add(source, own, other, (a, b, c), v)
                    for own, other, a, b, c, v in rows.itertuples(index=False)
                ]
            if places["subjects"].nunique() > 1:  # cells of fewer mechanisms than others are marked
                view["subjects"] = _column(list(places["subjects"]))
            missing = [text if isinstance(text, str) else None for text in places["missing"]]
            if any(missing) and not content.predicted_only:
                view["missing"] = _column(missing)
                view["short"] = _column([words.hole_label(text) for text in missing])
            view |= {"limit": _limits(cells), "off": _off(cells)}
            views[subject][name] = view
    rows = list(zip(pairs.columns["own"], pairs.columns["other"]))
    known = content.records.to_dict("records")
    told = [reasons(known[own], known[other]) for own, other in rows]
    conditions = [
        f"fewer matmul FLOPs where {condition}" if condition else ""
        for condition in flop_conditions(content.records, rows)
    ]
    parts = [*zip(*told)] if told else [(), (), ()]
    return {
        "grids": grids,
        "pairs": pairs.columns | {"verdict": _column(pairs.columns["verdict"])},
        "reasons": [_column(list(part)) for part in (*parts, conditions)],
        "views": views,
    }


def crossings_payload(content: Content) -> dict[str, Any]:
    """Columns, one entry per series: where it lies, and both crossings in words and numbers."""
    crossings = told(content.crossings)
    named = [*CELL, "subject", "baseline", "axis"]
    columns = {name: _column([_plain(value) for value in crossings[name]]) for name in named}
    columns |= {
        source: _column(list(crossings[source])) for source in SOURCES if source in crossings
    }
    return columns | {"count": len(crossings)}


def payload(content: Content) -> dict[str, Any]:
    """Everything the page's script reads."""
    return {
        "title": content.title,
        "predicted_only": content.predicted_only,
        "count": len(content.records),
        "records": records_payload(content.records),
        "texts": texts_payload(content.records),
        "details": list(_DETAILS.items()),
        "guarded": guarded(content.records),
        "words": words_payload(),
        "impossible": impossible(content.records),
        "colours": {
            "light": style.RAMP,
            "dark": style.DARK_RAMP,
            "stages": style.STAGE_COLOURS,
        },
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
