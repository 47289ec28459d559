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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.words.errors import (
    RequestError,
    short,
    unknown,
)
from flurka_bench.words.parts import COMPRESSIONS
from flurka_bench.words.sizes import (
    BACKENDS,
    DTYPES,
    LARGEST_SIZE,
    LEVELS,
    ORDERS,
    PASSES,
    STAGES,
)

SCHEMA = 3
LARGEST_COUNT = 2**53  # the last whole number up to which a float holds every one
LARGEST_NUMBER = 1e30  # no case has as many FLOPs; squares of it are floats yet
LONGEST_S = 1e9  # 30 years
LONGEST_TEXT = 100_000  # characters
LONGEST_SHOWN = 60  # of a wrong value
STATUSES = ("ok", "oom", "timeout", "crashed", "incorrect", "invalid", "skipped", "unsupported")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record: its type, unit and meaning.

    ``accepted`` lists a text's values, or a table's names. ``least`` and ``most`` bound a number,
    and those of a list or a table of numbers; without ``most`` a count ends
    where a float no longer holds it, a number at ``LARGEST_NUMBER``, a time at ``LONGEST_S``.
    """

    kind: str  # text, count, number, flag, texts, counts, numbers, table, table of numbers
    meaning: str
    unit: str = ""
    required: bool = False  # present and not null
    accepted: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None

    @property
    def limit(self) -> float:
        """The largest number that may stand here."""
        if self.most is not None:
            return self.most
        if self.kind in ("count", "counts"):
            return LARGEST_COUNT
        return LONGEST_S if self.unit == "s" else LARGEST_NUMBER


def _size(meaning: str, required: bool = True, least: int = 1) -> Field:
    return Field(kind="count", meaning=meaning, required=required, least=least, most=LARGEST_SIZE)


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
    "mechanism": Field(
        kind="text", meaning="one of the ten cells", required=True, accepted=tuple(MECHANISMS)
    ),
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
        kind="text", meaning="how E and F are made", required=True, accepted=tuple(COMPRESSIONS)
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
        kind="numbers",
        meaning="time of one call while it warmed up, per block, in order",
        unit="s",
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
        accepted=("interval", "budget", "max_rounds", "worker_died"),
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
    "stages_s": Field(
        kind="table of numbers", meaning="time by stage", unit="s", accepted=STAGES, least=0
    ),
    "predicted_stages_s": Field(
        kind="table of numbers",
        meaning="predicted time by stage",
        unit="s",
        accepted=STAGES,
        least=0,
    ),
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
    "predicted_log_shape": Field(
        kind="number", meaning="the part of the band that is the case's own", least=0
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
            raise RequestError(f"field {name!r} must be {_wanted(spec)}, got {_shown(value)}")
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
    _check_band(record)
    _check_knobs(record)


def _check_band(record: Mapping[str, Any]) -> None:
    """Raise RequestError unless a prediction is a positive time inside its band."""
    low, middle, high = (
        record.get(name) for name in ("predicted_low_s", "predicted_s", "predicted_high_s")
    )
    if middle is None:
        return
    low, high = middle if low is None else low, middle if high is None else high
    if not 0 < low <= middle <= high:
        raise RequestError(
            "fields 'predicted_low_s', 'predicted_s' and 'predicted_high_s' must be above 0 and in"
            f" this order, got {low:g}, {middle:g}, {high:g}"
        )


def _check_knobs(record: Mapping[str, Any]) -> None:
    """Raise RequestError unless the record has the knobs that its mechanism and level ask for."""
    cell = MECHANISMS[record["mechanism"]]
    for name, needed in (
        ("rank", cell.compressed),
        ("num_features", cell.is_kernel),
        ("order", record["level"] != "core"),
    ):
        if needed and record.get(name) is None:
            raise RequestError(
                f"field {name!r} must not be null for {record['mechanism']} at level"
                f" {record['level']}"
            )


def _wanted(spec: Field) -> str:
    """What a field takes, in words."""
    if spec.accepted and spec.kind == "text":
        return f"one of {', '.join(spec.accepted)}"
    names = f" by {', '.join(spec.accepted)}" if spec.accepted else ""
    bounds = ""
    if spec.kind in ("count", "number", "counts", "numbers", "table of numbers"):
        bounds = "" if spec.least is None else f" of at least {spec.least}"
        bounds += f"{' and' if bounds else ' of'} at most {spec.limit:g}"
    return f"a {spec.kind}{names}{bounds}"


def _shown(value: Any) -> str:
    """A wrong value, in at most ``LONGEST_SHOWN`` characters."""
    return short(value)[:LONGEST_SHOWN]


def is_text(value: Any) -> bool:
    """Whether it is a text that can be written: no half of a surrogate pair, and of bounded
    length."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and _can_be_written(value)


def _can_be_written(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(spec: Field, value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    least = -spec.limit if spec.least is None else spec.least
    return least <= value <= spec.limit  # nan is in no range


def _fits(spec: Field, value: Any) -> bool:
    match spec.kind:
        case "text":
            return is_text(value) and (not spec.accepted or value in spec.accepted)
        case "flag":
            return isinstance(value, bool)
        case "count" | "number":
            return _is_number(spec, value, spec.kind == "count")
        case "texts":
            return isinstance(value, list) and all(map(is_text, value))
        case "counts" | "numbers":
            whole = spec.kind == "counts"
            return isinstance(value, list) and all(
                _is_number(spec, entry, whole) for entry in value
            )
        case "table of numbers":
            return isinstance(value, dict) and all(
                name in spec.accepted and _is_number(spec, entry, whole=False)
                for name, entry in value.items()
            )
    return isinstance(value, dict) and all(
        is_text(name)
        and (
            entry is None
            or isinstance(entry, bool)
            or (is_text(entry) if isinstance(entry, str) else _is_number(spec, entry, whole=False))
        )
        for name, entry in value.items()
    )


# What readers take from run.json, by dotted name; all else there is only shown.
_SHARE = Field(kind="number", meaning="of all CPUs", least=0, most=1.5)
_SIZE_B = Field(kind="number", meaning="of memory or a disk", unit="B", least=0)
META_FIELDS: dict[str, Field] = {
    "kind": Field(kind="text", meaning="of run"),
    "suite.name": Field(kind="text", meaning="the suite's name", required=True),
    "suite.text": Field(kind="text", meaning="its file as written", required=True),
    "device": Field(kind="text", meaning="the device's own name", required=True),
    "started": Field(kind="text", meaning="when", required=True),
    "device_name": Field(kind="text", meaning="as torch calls it"),
    "run_id": Field(kind="text", meaning="different for every run"),
    "host": Field(kind="text", meaning="name of the machine"),
    "version": Field(kind="text", meaning="of flurka-bench"),
    "seed": Field(kind="count", meaning="of inputs and parameters", least=0),
    "wall_s": Field(kind="number", meaning="in all sessions", unit="s", least=0),
    "time_in_calls_s": Field(kind="number", meaning="in all sessions", unit="s", least=0),
    "environment.warnings": Field(kind="texts", meaning="what disturbs a measurement"),
    "environment.torch.num_threads": Field(
        kind="count", meaning="threads of an operator", least=1, most=4096
    ),
    "environment.cpu.busy_fraction": _SHARE,
    "environment.cpu.steal_fraction": _SHARE,
    "environment.memory_available_bytes": _SIZE_B,
    "environment.disk_free_bytes": _SIZE_B,
}
_SESSION_FIELDS = {name: META_FIELDS[name] for name in ("wall_s", "time_in_calls_s")}
MAX_DEPTH = 20  # of tables and lists in run.json
_TEXT_LIMITS = {"suite.text": 4_000_000}  # what a suite's file may have


def check_meta(meta: Mapping[str, Any]) -> None:
    """Raise RequestError unless what readers take from run.json has its type and range, and all
    texts can be written."""
    for table in ("suite", "environment"):
        if not isinstance(meta.get(table), dict):
            raise RequestError(f"field {table!r} must be a table, got {_shown(meta.get(table))}")
    for name, spec in META_FIELDS.items():
        value: Any = meta
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and spec.required:
            raise RequestError(f"must have {name!r} ({spec.meaning})")
        fits = value is None or _fits(spec, value)
        if name in _TEXT_LIMITS and isinstance(value, str):  # its letters are looked at below
            fits = len(value) <= _TEXT_LIMITS[name]
        if not fits:
            raise RequestError(f"field {name!r} must be {_wanted(spec)}, got {_shown(value)}")
    sessions = meta.get("sessions", [])
    if not isinstance(sessions, list) or not all(
        isinstance(each, dict)
        and all(_fits(spec, each.get(name)) for name, spec in _SESSION_FIELDS.items())
        for each in sessions
    ):
        raise RequestError(
            f"field 'sessions' must be a list of tables with {', '.join(_SESSION_FIELDS)} in"
            f" seconds, got {_shown(sessions)}"
        )
    _check_depth(meta, "", MAX_DEPTH)


def _check_depth(value: Any, where: str, left: int) -> None:
    """Raise RequestError for texts that cannot be written and numbers that no reader can show, at
    any depth."""
    if isinstance(value, str):
        if not _can_be_written(value):
            raise RequestError(f"field {where!r} must be a text, got {_shown(value)}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= LARGEST_NUMBER:
            raise RequestError(
                f"field {where!r} must be a number of at most {LARGEST_NUMBER:g}, got"
                f" {_shown(value)}"
            )
    elif isinstance(value, dict | list):
        if not left:
            raise RequestError(f"field {where[:LONGEST_SHOWN]!r} is nested too deeply")
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in pairs:
            if isinstance(key, str) and not is_text(key):
                raise RequestError(f"field {where!r} has the name {_shown(key)}: no text")
            _check_depth(entry, f"{where}.{key}".removeprefix("."), left - 1)


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


def upgrade(
    data: dict[str, Any],
    where: str,
    upgrades: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]],
) -> dict[str, Any]:
    """Data of an older schema in the form of this one. Raises RequestError for a newer one, or
    none."""
    version = data.get("schema")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RequestError(f"{where} has no schema version: not written by flurka-bench")
    if version > SCHEMA:
        raise RequestError(
            f"{where} has schema {_shown(version)}; this flurka-bench reads up to {SCHEMA} (install a newer one)"
        )
    while version < SCHEMA:
        data = upgrades[version](data) if version in upgrades else data
        version += 1
    return data
