"""What was seen: run folders, their records, and how they are read back.

A run is a folder with ``run.json`` (what was asked for, and on which machine) and ``measurements.jsonl`` (one final record
per case, appended and synced as it is known). Only the last line can ever be torn, by a crash or a full disk, and it is
repaired when the run is taken up again. All of it is data: JSON in, checked against ``FIELDS``, JSON out.

Schema history (``SCHEMA`` is the one written; all others are upgraded while reading):

1. One list of samples per case, each case timed on its own; no knobs beyond rank and num_features.
2. Competitors are interleaved: ``round_ids`` says which samples are pairs. Adds compression, share_kv, share_heads, the
   sizes of level model, the prediction's band, and why and how a measurement stopped.
"""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from flurka_bench.errors import RequestError, unknown
from flurka_bench.workload import BACKENDS, COMPRESSIONS, DTYPES, LEVELS, ORDERS, PASSES

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2
STATUSES = ("ok", "oom", "timeout", "crashed", "incorrect", "invalid", "skipped", "unsupported")
META_NAME, RECORDS_NAME, LOCK_NAME = "run.json", "measurements.jsonl", "run.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a record: its type, unit and meaning. ``accepted`` lists a text's values, ``least`` bounds a number."""

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
    "case_id": Field(kind="text", meaning="readable id, unique in a run, equal on every machine", required=True),
    "status": Field(kind="text", meaning="how it ended; only ok carries times", required=True, accepted=STATUSES),
    "mechanism": Field(kind="text", meaning="one of the ten cells", required=True),
    "level": Field(kind="text", meaning="how much of a model is timed", required=True, accepted=LEVELS),
    "pass": Field(kind="text", meaning="forward, or forward and backward", required=True, accepted=PASSES),
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
    "compression": Field(kind="text", meaning="how E and F are made", required=True, accepted=COMPRESSIONS),
    "share_kv": Field(kind="flag", meaning="E = F", required=True),
    "share_heads": Field(kind="flag", meaning="one E for all heads", required=True),
    "num_layers": _size("blocks at level model"),
    "ffn_dim": _size("feed-forward width at level model", least=0),
    "vocab_size": _size("vocabulary at level model", least=0),
    "seed": Field(kind="count", meaning="of inputs, parameters and the order of rounds", required=True, least=0),
    "samples_s": Field(kind="numbers", meaning="time of one call, per repetition", unit="s", required=True, least=0),
    "round_ids": Field(kind="counts", meaning="round of each sample; equal ids are pairs", required=True, least=0),
    "median_s": _seconds("median of the samples"),
    "timer": Field(kind="text", meaning="how the samples were taken"),
    "num_calls": _size("calls per sample", required=False),
    "num_warmup": _size("calls before the first sample", required=False, least=0),
    "num_dropped": _size("samples dropped because the clock was throttled", required=False, least=0),
    "stop_reason": Field(kind="text", meaning="why no more samples were taken", accepted=("interval", "budget", "max_rounds")),
    "ratio_error": Field(kind="number", meaning="width of the interval of the ratio to the reference, over the ratio", least=0),
    "reference": Field(kind="text", meaning="case_id of the competitor that decided when to stop"),
    "graph_s": _seconds("one call replayed as a CUDA graph, cold cache"),
    "device_s": _seconds("time the device itself was busy in one call"),
    "limited_by": Field(
        kind="text", meaning="what the clock says bounds it", accepted=("launch-bound", "compute-bound", "memory-bound")
    ),
    "stages_s": Field(kind="table", meaning="time by stage", unit="s"),
    "predicted_stages_s": Field(kind="table", meaning="predicted time by stage", unit="s"),
    "flops": Field(kind="number", meaning="floating-point operations of one call", least=0),
    "bytes": Field(kind="number", meaning="bytes read and written by one call's kernels", unit="B", least=0),
    "peak_memory_bytes": Field(kind="number", meaning="most memory held during one call", unit="B", least=0),
    "memory_method": Field(kind="text", meaning="how the peak was found"),
    "predicted_s": _seconds("the cost model's time"),
    "predicted_low_s": _seconds("lower end of its band"),
    "predicted_high_s": _seconds("upper end of its band"),
    "bound": Field(kind="text", meaning="what the cost model says bounds it"),
    "stamp": Field(kind="table", meaning="clocks, temperature, load at the time"),
    "error": Field(kind="text", meaning="what went wrong, in one line"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A kind of run, named in its run.json, and the fields of its records. The command that writes it is named where it is mistaken."""

    kind: str
    fields: Mapping[str, Field]
    command: str


TIMING = Form(kind="timing", fields=FIELDS, command="flurka-bench run")


def check_record(record: Any, *, strict: bool = False, form: Form = TIMING) -> None:
    """Raise RequestError unless every field has its type, is finite and in range; ``strict`` also refuses unknown fields."""
    if not isinstance(record, dict):
        raise RequestError(f"a record must be an object, got {type(record).__name__}")
    for name, spec in form.fields.items():
        value = record.get(name)
        if value is None:
            if spec.required:
                raise RequestError(f"a record must have {name!r} ({spec.meaning})")
        elif not _fits(spec, value):
            least = "" if spec.least is None else f" of at least {spec.least}"
            wanted = f"one of {', '.join(spec.accepted)}" if spec.accepted else f"a {spec.kind}{least}"
            raise RequestError(f"field {name!r} must be {wanted}, got {str(value)[:60]!r}")
    if strict and (extra := record.keys() - form.fields.keys()):
        raise unknown("field of a record", min(extra), form.fields)
    if form is not TIMING:
        return
    if len(record["samples_s"]) != len(record["round_ids"]) and record["round_ids"]:
        raise RequestError(f"{len(record['samples_s'])} samples_s but {len(record['round_ids'])} round_ids")
    if record["status"] == "ok" and not (record["samples_s"] and record.get("median_s")):
        raise RequestError("a record with status ok must have samples_s and a median_s above 0")


def _fits(spec: Field, value: Any) -> bool:
    def number(entry: Any, whole: bool) -> bool:
        if isinstance(entry, bool) or not isinstance(entry, int if whole else int | float):
            return False
        return (abs(entry) < 10**300 or whole) and math.isfinite(entry) and (spec.least is None or entry >= spec.least)

    match spec.kind:
        case "text":
            return isinstance(value, str) and (not spec.accepted or value in spec.accepted)
        case "flag":
            return isinstance(value, bool)
        case "count" | "number":
            return number(value, spec.kind == "count")
        case "counts" | "numbers":
            return isinstance(value, list) and all(number(entry, spec.kind == "counts") for entry in value)
    scalars = str | int | float | bool | None
    return isinstance(value, dict) and all(isinstance(entry, scalars) for entry in value.values())


def _upgrade_1(record: dict[str, Any]) -> dict[str, Any]:
    defaults = {"compression": "dense", "share_kv": False, "share_heads": True, "num_layers": 1, "ffn_dim": 0, "vocab_size": 0}
    return {**defaults, "round_ids": [], **record, "schema": 2}


_UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _upgrade_1}


def _upgrade(data: dict[str, Any], where: str, upgrades: Mapping[int, Callable]) -> dict[str, Any]:
    version = data.get("schema")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise RequestError(f"{where} has no schema version: not written by flurka-bench")
    if version > SCHEMA:
        raise RequestError(f"{where} has schema {version}; this flurka-bench reads up to {SCHEMA} (install a newer one)")
    while version < SCHEMA:
        data = upgrades[version](data) if version in upgrades else data
        version += 1
    return data


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _loads(text: bytes | str) -> Any:
    """JSON without NaN and infinities; ValueError for anything else."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that was read: its folder, what run.json says, its records, and what the reader had to say about them."""

    folder: Path
    meta: dict[str, Any]
    records: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def read_meta(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises RequestError if the folder is not a run or was written by a newer flurka-bench."""
    path = Path(folder) / META_NAME
    if not path.is_file():
        what = "is a file" if Path(folder).is_file() else f"has no {META_NAME}" if Path(folder).is_dir() else "does not exist"
        raise RequestError(f"{str(folder)!r} is not a run: it {what} (give the folder that 'flurka-bench run' wrote)")
    try:
        meta = _loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    if not isinstance(meta, dict):
        raise RequestError(f"{path} must hold an object, got {type(meta).__name__}")
    meta = {**_upgrade(meta, str(path), {}), "schema": SCHEMA}
    for key, kind in {"suite": dict, "environment": dict, "device": str, "started": str}.items():
        if not isinstance(meta.get(key), kind):
            raise RequestError(f"{path} must have {key!r} as a {'table' if kind is dict else 'text'}")
    for key in ("name", "text"):
        if not isinstance(meta["suite"].get(key), str):
            raise RequestError(f"{path} must have suite.{key} as a text")
    return meta


def _check_kind(folder: Path, meta: Mapping[str, Any], form: Form) -> None:
    kind = meta.get("kind", TIMING.kind)
    if kind != form.kind:
        raise RequestError(
            f"{str(folder)!r} is a run of kind {kind!r}, not {form.kind!r} (give a folder that '{form.command}' wrote)"
        )


def iter_records(folder: Path, warnings: list[str] | None = None, form: Form = TIMING) -> Iterator[dict[str, Any]]:
    """The records of a run, one at a time, upgraded and checked; a torn last line is left out and said in ``warnings``.

    Raises RequestError with the line for any other damage, and for a case that has two records.
    """
    path = Path(folder) / RECORDS_NAME
    seen: set[str] = set()
    for number, line, is_last in _lines(path):
        where = f"{path}, line {number}"
        try:
            record = _loads(line)
        except ValueError as error:
            if is_last:
                if warnings is not None:
                    warnings.append(f"{where}: torn, left out (the case is measured again when the run goes on)")
                return
            raise RequestError(f"{where}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise RequestError(f"{where}: a record must be an object, got {type(record).__name__}")
        record = _upgrade(record, where, _UPGRADES)
        try:
            check_record(record, form=form)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
        if record["case_id"] in seen:
            raise RequestError(f"{where}: a second record of case {record['case_id']!r}")
        seen.add(record["case_id"])
        yield record


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    try:
        with open(path, "rb") as file:
            previous, number = None, 0
            for line in file:
                if previous is not None:
                    yield number, previous, False
                previous, number = line, number + 1
            if previous is not None:
                yield number, previous, True
    except FileNotFoundError:
        return
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}") from None


def read_run(folder: str | Path, form: Form = TIMING) -> Run:
    """A whole run. Raises RequestError if it is not one, is of another kind, is damaged, or was written by a newer flurka-bench."""
    folder = Path(folder)
    run = Run(folder=folder, meta=read_meta(folder), records=[])
    _check_kind(folder, run.meta, form)
    run.records = list(iter_records(folder, run.warnings, form))
    return run


def to_frame(runs: Run | Iterable[Run]) -> "pd.DataFrame":
    """All records of one or several runs, one row each, with the run's folder name and id: devices stay apart."""
    import pandas as pd

    rows = []
    for run in [runs] if isinstance(runs, Run) else runs:
        identity = {"run": run.folder.name, "run_id": run.meta.get("run_id", str(run.folder)), "suite": run.meta["suite"]["name"]}
        rows += [{**dict.fromkeys(FIELDS), **record, **identity} for record in run.records]
    return pd.DataFrame(rows, columns=None if rows else [*FIELDS, "run", "run_id", "suite"])


class RunWriter:
    """The one writer of a run folder: locks it, repairs it, appends to it.

    Raises RequestError if another process writes there, if the folder holds the run of another suite or device, or cannot
    be written.
    """

    def __init__(self, folder: str | Path, form: Form = TIMING) -> None:
        self.folder = Path(folder)
        self.form = form
        self.done: dict[str, str] = {}  # case_id -> status
        self.next_round = 0  # the first round id that no sample of this run has
        self.repairs: list[str] = []
        self.meta: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if self.folder.exists() and not self.folder.is_dir():
            raise RequestError(f"{str(self.folder)!r} is a file; --out must be a folder")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            self._take_lock()
            self._read_existing()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        import fcntl  # released by the system when this process ends, however it ends

        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._lock, 1000, 0).decode("utf-8", "replace").strip() or "another process"
            raise RequestError(f"{str(self.folder)!r} is being written by {holder}; wait for it, or give another --out") from None
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}, started {started}\n".encode(), 0)
        except OSError as error:
            raise self._cannot_write(error) from None

    def _read_existing(self) -> None:
        path = self.folder / RECORDS_NAME
        if (self.folder / META_NAME).exists():
            self.meta = read_meta(self.folder)
            _check_kind(self.folder, self.meta, self.form)
        elif path.exists() and path.stat().st_size:
            raise RequestError(f"{str(self.folder)!r} has {RECORDS_NAME} but no {META_NAME}: not a run (give another --out)")
        self._repair(path)
        for record in iter_records(self.folder, form=self.form):
            self.done[record["case_id"]] = record["status"]
            self.next_round = max([self.next_round, *(round_id + 1 for round_id in record.get("round_ids", ()))])

    def _repair(self, path: Path) -> None:
        """Cut off what follows the last whole record: a crash can only have torn the end."""
        good, line = 0, b""
        for _, line, is_last in _lines(path):
            good += 0 if is_last else len(line)
        if not line:
            return
        try:
            _loads(line)
            ending = b"" if line.endswith(b"\n") else b"\n"
            good += len(line)
        except ValueError:
            ending = b""
            self.repairs.append(f"{path}: the last line was torn ({len(line)} bytes) and is removed; its case is measured again")
        if ending or good != path.stat().st_size:
            try:
                with open(path, "r+b") as file:
                    file.truncate(good)
                    file.seek(good)
                    file.write(ending)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._cannot_write(error) from None

    def start(self, meta: Mapping[str, Any]) -> None:
        """Write run.json, or check that the run found here is of the same suite, device and seed, to be taken up again."""
        if self.meta:
            for key, what in {"suite": "suite", "device": "device", "seed": "seed"}.items():
                was, wanted = self.meta.get(key), meta.get(key)
                if was != wanted:
                    names = (was["name"], wanted["name"]) if key == "suite" else (was, wanted)
                    detail = "a different text of the same suite" if names[0] == names[1] else f"{names[0]!r}, not {names[1]!r}"
                    raise RequestError(f"{str(self.folder)!r} holds a run of another {what}: {detail} (give another --out)")
        else:
            self.meta = {"schema": SCHEMA, "kind": self.form.kind, **meta}
            self.save_meta()
        if self._file is not None:
            return
        try:
            descriptor = os.open(self.folder / RECORDS_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            self._file = os.fdopen(descriptor, "ab", buffering=0)
            self._sync_folder()
        except OSError as error:
            raise self._cannot_write(error) from None

    def save_meta(self) -> None:
        """Replace run.json in one step."""
        text = json.dumps(self.meta, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        temporary = self.folder / f".{META_NAME}.new"
        try:
            with open(temporary, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / META_NAME)
            self._sync_folder()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise self._cannot_write(error) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one final record and have it on the disk. RequestError for a malformed or second record, or a full disk."""
        assert self._file is not None, "append before start"
        record = {"schema": SCHEMA, **record}
        check_record(record, strict=True, form=self.form)
        if record["case_id"] in self.done:
            raise RequestError(f"case {record['case_id']!r} already has a record in {str(self.folder)!r}")
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(line):  # an unbuffered write may stop short, at a full disk or a file size limit
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise self._cannot_write(error) from None
        self.done[record["case_id"]] = record["status"]
        self.next_round = max([self.next_round, *(round_id + 1 for round_id in record.get("round_ids", ()))])

    def close(self) -> None:
        """Close the files and let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
        os.close(self._lock)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sync_folder(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _cannot_write(self, error: OSError) -> RequestError:
        done = f"; {len(self.done)} records are safe there, and the same command goes on from them" if self.done else ""
        return RequestError(
            f"cannot write to {str(self.folder)!r}: {error.strerror or error}{done} (mend it or give another --out)"
        )
