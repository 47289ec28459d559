"""The form of a record: its fields, their checks, and how older ones are brought up to date.

Schema history (``SCHEMA`` is the one written; all others are upgraded while reading):

1. One list of samples per case, each case timed on its own; no knobs beyond rank and num_features.
2. Competitors are interleaved: ``round_ids`` says which samples are pairs. Adds compression,
share_kv, share_heads, the
   sizes of level model, the prediction's band, and why and how a measurement stopped.
3. All samples are kept: those of the warm-up, those dropped (until then only counted), and those
behind graph_s and device_s.
   Adds the timer's own share of a sample.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flurka_bench.errors import RequestError, unknown
from flurka_bench.workload import BACKENDS, COMPRESSIONS, DTYPES, LEVELS, ORDERS, PASSES

SCHEMA = 3
STATUSES = ("ok", "oom", "timeout", "crashed", "incorrect", "invalid", "skipped", "unsupported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record: its type, unit and meaning. ``accepted`` lists a text's values,
    ``least`` bounds a number."""

    kind: str  # text, count, number, flag, numbers, counts, table
    meaning: str
    unit: str = ""
    required: bool = False  # present and not null
    accepted: tuple[str, ...] = ()
    least: float | None = None


def _size(meaning: str, required: bool = True, least: int = 1) -> Field:
    return Field(kind="count", meaning=meaning, required=required, least=least)


def _seconds(meaning: str) -> Field:
    return Field(kind="number", meaning=meaning, unit="s", least=0)


FIELDS: dict[str, Field] = {
    "schema": Field(kind="count", meaning="version of this record's form", required=True, least=1),
    "case_id": Field(
        kind="text", meaning="readable id, unique in a run, equal on every machine", required=True
    ),
    "status": Field(
        kind="text",
        meaning="how it ended; only the times of ok count",
        required=True,
        accepted=STATUSES,
    ),
    "mechanism": Field(kind="text", meaning="one of the ten cells", required=True),
    "level": Field(
        kind="text", meaning="how much of a model is timed", required=True, accepted=LEVELS
    ),
    "pass": Field(
        kind="text", meaning="forward, or forward and backward", required=True, accepted=PASSES
    ),
    "order": Field(kind="text", meaning="order of projection and compression", accepted=ORDERS),
    "backend": Field(kind="text", meaning="how it is launched", required=True, accepted=BACKENDS),
    "dtype": Field(kind="text", meaning="element type", required=True, accepted=DTYPES),
    "device": Field(kind="text", meaning="the device's own name", required=True),
    "batch": _size("b"),
    "num_heads": _size("h"),
    "seq_len": _size("N"),
    "head_dim": _size("d"),
    "rank": _size("k; null where nothing is compressed", required=False),
    "num_features": _size("m; null for softmax", required=False),
    "compression": Field(
        kind="text", meaning="how E and F are made", required=True, accepted=COMPRESSIONS
    ),
    "share_kv": Field(kind="flag", meaning="E = F", required=True),
    "share_heads": Field(kind="flag", meaning="one E for all heads", required=True),
    "num_layers": _size("blocks at level model"),
    "ffn_dim": _size("feed-forward width at level model", least=0),
    "vocab_size": _size("vocabulary at level model", least=0),
    "seed": Field(
        kind="count",
        meaning="of inputs, parameters and the order of rounds",
        required=True,
        least=0,
    ),
    "samples_s": Field(
        kind="numbers", meaning="time of one call, per repetition", unit="s", required=True, least=0
    ),
    "round_ids": Field(
        kind="counts", meaning="round of each sample; equal ids are pairs", required=True, least=0
    ),
    "median_s": _seconds("median of the samples"),
    "timer": Field(kind="text", meaning="how the samples were taken"),
    "num_calls": _size("calls per sample", required=False),
    "num_warmup": _size("calls before the first sample", required=False, least=0),
    "warmup_s": Field(
        kind="numbers", meaning="time of one call while it warmed up, per block, in order", unit="s"
    ),
    "num_dropped": _size(
        "samples dropped because the device was throttled or the clock stepped back",
        required=False,
        least=0,
    ),
    "dropped_s": Field(kind="numbers", meaning="time of one call, per dropped sample", unit="s"),
    "dropped_round_ids": Field(kind="counts", meaning="round of each dropped sample", least=0),
    "drop_reason": Field(kind="text", meaning="why the last dropped sample does not count"),
    "overhead_fraction": Field(
        kind="number", meaning="share of a sample that the timer itself takes", least=0
    ),
    "stop_reason": Field(
        kind="text",
        meaning="why no more samples were taken",
        accepted=("interval", "budget", "max_rounds"),
    ),
    "ratio_error": Field(
        kind="number",
        meaning="width of the interval of the ratio to the reference, over the ratio",
        least=0,
    ),
    "reference": Field(kind="text", meaning="case_id of the competitor that decided when to stop"),
    "graph_samples_s": Field(
        kind="numbers", meaning="samples of graph_s that count", unit="s", least=0
    ),
    "device_samples_s": Field(
        kind="numbers", meaning="samples of device_s that count", unit="s", least=0
    ),
    "graph_s": _seconds("one call replayed as a CUDA graph, cache as in timer"),
    "device_s": _seconds("time the device itself was busy in one call"),
    "limited_by": Field(
        kind="text",
        meaning="what the clock says bounds it",
        accepted=("launch-bound", "compute-bound", "memory-bound"),
    ),
    "stages_s": Field(kind="table", meaning="time by stage", unit="s"),
    "predicted_stages_s": Field(kind="table", meaning="predicted time by stage", unit="s"),
    "flops": Field(kind="number", meaning="floating-point operations of one call", least=0),
    "bytes": Field(
        kind="number", meaning="bytes read and written by one call's kernels", unit="B", least=0
    ),
    "peak_memory_bytes": Field(
        kind="number", meaning="most memory held during one call", unit="B", least=0
    ),
    "memory_method": Field(kind="text", meaning="how the peak was found"),
    "predicted_s": _seconds("the cost model's time"),
    "predicted_low_s": _seconds("lower end of its band"),
    "predicted_high_s": _seconds("upper end of its band"),
    "predicted_log_scale": Field(
        kind="number", meaning="the part of the band that all cases on a device share", least=0
    ),
    "bound": Field(kind="text", meaning="what the cost model says bounds it"),
    "stamp": Field(kind="table", meaning="clocks, temperature, load at the time"),
    "error": Field(kind="text", meaning="what went wrong, in one line"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kind of run, named in its run.json, the fields of its records, and the command that writes
    it, for error messages."""

    kind: str
    fields: Mapping[str, Field]
    command: str


TIMING = Form(kind="timing", fields=FIELDS, command="flurka-bench run")


def check_record(record: Any, *, strict: bool = False, form: Form = TIMING) -> None:
    """Raise RequestError unless every field has its type, is finite and in range; ``strict`` also
    refuses unknown fields."""
    if not isinstance(record, dict):
        raise RequestError(f"a record must be an object, got {type(record).__name__}")
    for name, spec in form.fields.items():
        value = record.get(name)
        if value is None:
            if spec.required:
                raise RequestError(f"a record must have {name!r} ({spec.meaning})")
        elif not _fits(spec, value):
            least = "" if spec.least is None else f" of at least {spec.least}"
            wanted = (
                f"one of {', '.join(spec.accepted)}" if spec.accepted else f"a {spec.kind}{least}"
            )
            raise RequestError(f"field {name!r} must be {wanted}, got {str(value)[:60]!r}")
    if strict and (extra := record.keys() - form.fields.keys()):
        raise unknown("field of a record", min(extra), form.fields)
    if form is not TIMING:
        return
    if len(record["samples_s"]) != len(record["round_ids"]) and record["round_ids"]:
        raise RequestError(
            f"{len(record['samples_s'])} samples_s but {len(record['round_ids'])} round_ids"
        )
    if record["status"] == "ok" and not (record["samples_s"] and record.get("median_s")):
        raise RequestError("a record with status ok must have samples_s and a median_s above 0")


def _fits(spec: Field, value: Any) -> bool:
    def number(entry: Any, whole: bool) -> bool:
        if isinstance(entry, bool) or not isinstance(entry, int if whole else int | float):
            return False
        return (
            (abs(entry) < 10**300 or whole)
            and math.isfinite(entry)
            and (spec.least is None or entry >= spec.least)
        )

    match spec.kind:
        case "text":
            return isinstance(value, str) and (not spec.accepted or value in spec.accepted)
        case "flag":
            return isinstance(value, bool)
        case "count" | "number":
            return number(value, spec.kind == "count")
        case "counts" | "numbers":
            return isinstance(value, list) and all(
                number(entry, spec.kind == "counts") for entry in value
            )
    scalars = str | int | float | bool | None
    return isinstance(value, dict) and all(isinstance(entry, scalars) for entry in value.values())


def _upgrade_1(record: dict[str, Any]) -> dict[str, Any]:
    defaults = {
        "compression": "dense",
        "share_kv": False,
        "share_heads": True,
        "num_layers": 1,
        "ffn_dim": 0,
        "vocab_size": 0,
    }
    return {**defaults, "round_ids": [], **record, "schema": 2}


# From 2 to 3 fields were only added: an older record lacks them.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _upgrade_1,
    2: lambda record: {**record, "schema": 3},
}


def upgrade(data: dict[str, Any], where: str, upgrades: Mapping[int, Callable]) -> dict[str, Any]:
    """Data of an older schema in the form of this one. Raises RequestError for a newer one, or
    none."""
    version = data.get("schema")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RequestError(f"{where} has no schema version: not written by flurka-bench")
    if version > SCHEMA:
        raise RequestError(
            f"{where} has schema {version}; this flurka-bench reads up to {SCHEMA} (install a newer one)"
        )
    while version < SCHEMA:
        data = upgrades[version](data) if version in upgrades else data
        version += 1
    return data
