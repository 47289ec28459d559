"""What must not move: named pins, each a value made of JSON, and how two such values differ.

A pin reaches the package through ``doors`` alone. ``scripts/pin.py`` writes the goldens again.
"""

import gzip
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pins import doors

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = doors.TESTS / "fixtures"
REFERENCE = Path("results/reference")  # relative: the commands print it as it is given
RUNS = ("quick-cpu-1-thread", "layer-cpu-1-thread")
ERROR_RUNS = ("error", "error-limits")
CPU = str(REFERENCE / "cpu-1-thread.toml")
TARGETS = (
    "h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm", "l40s", "t4", "v100-sxm2-32gb", "rtx-4090",
    "mi300x", "apple-m2-ultra", CPU,
)  # fmt: skip
MECHANISMS = (
    "full-math,full-sdpa,kernel-favor,kernel-relu,kernel-elu,"
    "low-rank,low-rank-sdpa,flurka-favor,flurka-relu,flurka-elu"
)
ORDERS = "project_first,compress_first,absorbed"
SIZES = {"rank": "64,250", "num_features": "32,128", "head_dim": "64,96"}
RELATIVE = 1e-6
COMPRESS_FROM_BYTES = 20_000
# What tells a row from its neighbours, so that a row that moved is named.
IDENTITY = (
    "name", "hardware", "device", "run", "case_id", "subject_case_id", "baseline_case_id",
    "mechanism", "subject", "baseline", "level", "pass", "order", "backend", "dtype", "batch",
    "num_heads", "seq_len", "head_dim", "rank", "num_features", "model_dim", "axis",
)  # fmt: skip


def _predict(**options: str) -> Any:
    """``predict --json`` of all mechanisms in all orders."""
    options = {"mechanism": MECHANISMS, "order": ORDERS, "dtype": "float32", **options}
    arguments = [
        part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    return doors.answer("predict", *arguments)


def _targets() -> Any:
    """Ten targets, each with every other mechanism: layers forward and attention in training."""
    names = MECHANISMS.split(",")
    found = []
    for index, target in enumerate(TARGETS):
        half = ",".join(names[index % 2 :: 2])
        several = {"hardware": target, "mechanism": half, "seq_len": "1000,4096,20000"}
        found += _predict(**several, **SIZES, level="layer")
        found += _predict(**several, rank="96", level="core", **{"pass": "train"})
    return found


def _forms(target: str, dtypes: str, backends: str) -> dict[str, Any]:
    """One target in depth: level model, backends, dtypes, odd sizes, launches and caches."""
    odd = {"batch": "3", "num_heads": "5", "head_dim": "40", "rank": "96", "num_features": "48"}
    layer = {"hardware": target, "level": "layer"}
    core = {"hardware": target, "level": "core", "seq_len": "777,6000"}
    train = {"pass": "train"}
    few = {"mechanism": "full-math,low-rank-sdpa,kernel-favor,flurka-elu"}
    return {
        "model": _predict(hardware=target, level="model", seq_len="512,2047", **few, **train),
        "train": _predict(**layer, **train, **SIZES, seq_len="1500,8192"),
        "backends": _predict(**core, backend=backends, num_features="16,256"),
        "dtypes": _predict(**core, dtype=dtypes, **SIZES),
        "fused layer": _predict(**layer, backend=backends, mechanism="flurka-relu,kernel-favor"),
        "odd": _predict(**layer, **odd, seq_len="777,12345"),
        "odd train": _predict(**core, **odd, **train),
        "cold": _predict(**core, cache="cold", launch="graph"),
        "none": _predict(**core, cache="cold", launch="none", batch="16"),
    }


def _recommendations() -> dict[str, Any]:
    train = ("--pass", "train", "--min-rank", "256", "--head-dim", "64", "--backend", "eager")
    wide = ("--seq-len", "16384", "--model-dim", "1024")
    on_cpu = ("--hardware", CPU, "--backend", "eager", "--head-dim", "64", "--model-dim", "512")
    tight = ("--max-memory", "40MB", "--max-latency", "40ms", "--min-features", "32")
    run = ("--run", str(REFERENCE / RUNS[1]))
    return {
        "two targets": doors.answer("recommend", "--hardware", "h100,l40s", *wide, *train),
        "bar of error": doors.answer("recommend", *on_cpu, "--max-error", "0.2"),
        "with a run": doors.answer("recommend", *on_cpu, *run, *tight, "--top", "40"),
    }


def _predicted_regions() -> Any:
    sizes = ("--seq-len", "4096,16384", "--rank", "128,512", "--num-features", "32,64")
    over = ("--baseline", "best-other,strong-low-rank,full-sdpa")
    return doors.answer("regions", "--hardware", "h100", "--model-dim", "512", *sizes, *over)


def _closed_forms() -> Any:
    pair = ("--pair", "flurka-relu,low-rank-sdpa")
    sizes = ("--seq-len", "4096", "--rank", "256", "--num-features", "64")
    return {level: doors.answer("regions", "--flops", *pair, "--level", level, *sizes)
            for level in ("core", "layer")}  # fmt: skip


def _plans() -> dict[str, Any]:
    """What each shipped suite expands to on each kind of device, and a plan with predictions."""
    ids = {}
    for path in sorted((doors.REPOSITORY / "suites").glob("*.toml")):
        for kind in ("cpu", "cuda"):
            shown = doors.answer("suites", "show", path.stem, "--device", kind)
            cases = [case.pop("case_id") for case in shown["cases"]]
            fields = sorted({name for case in shown["cases"] for name in case})
            ids[f"{path.stem} on {kind}"] = {"fields": fields, "cases": cases}
    dry = doors.answer("run", "quick", "--device", "cpu", "--dry-run", "--hardware", CPU)
    return {"expanded": ids, "dry run": dry}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _tables() -> dict[str, Any]:
    """The exported tables of the committed runs: columns, a hash of each row, a few rows."""
    found: dict[str, Any] = {}
    for name in RUNS:
        for format_ in ("json", "csv", "markdown"):
            code, text = doors.call("export", str(REFERENCE / name), "--format", format_)
            head: Any
            if format_ == "json":
                rows = json.loads(text)
                ids = [row["case_id"] for row in rows]
                head, lines = list(rows[0]), [json.dumps(row) for row in rows]
            else:
                above = 1 if format_ == "csv" else 2  # lines of the head
                head, lines = text.splitlines()[:above], text.splitlines()[above:]
            found[f"{name}.{format_}"] = {
                "exit code": code,
                "head": head,
                "rows": {case_id: _digest(line) for case_id, line in zip(ids, lines, strict=True)},
                "some": [line[-400:] for line in lines[:: len(lines) // 3]],
            }
    return found


def _fields() -> dict[str, Any]:
    """Old runs whole as they are read today, and the fields of the committed error runs."""
    found: dict[str, Any] = {}
    for schema in (1, 2, 3):
        folder = FIXTURES / f"run-schema-{schema}"
        text = doors.call("export", str(folder.relative_to(doors.REPOSITORY)), "--format", "json")
        found[f"schema {schema}"] = json.loads(text[1])
    for name in ERROR_RUNS:
        records = doors.error_records(doors.REPOSITORY / REFERENCE / name)
        found[name] = {
            "fields": sorted({key for record in records for key in record}),
            "some": records[:: max(len(records) // 2, 1)],
            "num": len(records),
            "cases": _digest("\n".join(record["case_id"] for record in records)),
        }
    return found


def _older(value: dict[str, Any], schema: int, name: str) -> dict[str, Any]:
    """A record or run.json with the keys that one of ``schema`` had."""
    text = (FIXTURES / f"run-schema-{schema}" / name).read_text()
    fixture = json.loads(text if name == "run.json" else text.splitlines()[0])
    shared = {key: value[key] for key in fixture if key in value}
    unknown = {key: None for key in ("predicted_s",) if key in fixture}
    return {**shared, **unknown, "schema": schema}


def _resumes() -> dict[str, Any]:
    """A run of each schema, and today's, that lacks four cases: the fake worker gets exactly these.

    Then nothing is left, and ``run --json`` prints the same answer without a worker.
    """
    source = doors.REPOSITORY / REFERENCE / RUNS[0]
    meta = json.loads((source / "run.json").read_text())
    meta["suite"]["text"] = meta["suite"]["text"].replace('"2s"', '"0.005s"')
    lines = (source / "measurements.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    missing = (3, 40, 72, 73)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        suite = Path(temporary) / "quick.toml"
        suite.write_text(meta["suite"]["text"])
        for name in ("schema 1", "schema 2", "schema 3", "today"):
            folder = Path(temporary) / name
            folder.mkdir()
            kept = [record for index, record in enumerate(records) if index not in missing]
            own = meta
            if name != "today":
                schema = int(name[-1])
                kept = [_older(record, schema, "measurements.jsonl") for record in kept]
                own = _older(meta, schema, "run.json") | {"seed": meta["seed"]}
            (folder / "run.json").write_text(json.dumps(own))
            path = folder / "measurements.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in kept))
            found[name] = _resume(folder, suite, own["device"])
        found["a whole run again"] = _whole_run(Path(temporary), meta, records)
    return found


def _whole_run(place: Path, meta: dict[str, Any], records: list[dict[str, Any]]) -> Any:
    """``run --json`` on a folder in which nothing is left to measure: one length, for time."""
    folder, suite = place / "whole", place / "short.toml"
    text = meta["suite"]["text"].replace("[2048, 4096]", "2048")
    suite.write_text(text)
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(meta | {"suite": meta["suite"] | {"text": text}}))
    kept = [json.dumps(record) + "\n" for record in records if record["seq_len"] == 2048]
    (folder / "measurements.jsonl").write_text("".join(kept))
    command = ("run", str(suite), "--device", "cpu", "--hardware", CPU, "--out", str(folder))
    return {**doors.answer(*command), "folder": "FOLDER"}


def _resume(folder: Path, suite: Path, device: str) -> dict[str, Any]:
    path = folder / "measurements.jsonl"
    before = path.read_bytes()
    try:
        num_before = doors.go_on(folder, suite.read_text(), device)
    except Exception as error:
        return {"refused": type(error).__name__, "touched": path.read_bytes() != before}
    after = path.read_bytes()
    new = [json.loads(line) for line in after[len(before) :].splitlines()]
    return {
        "num_before": num_before,
        "only appended": after.startswith(before),
        "new": [record["case_id"] for record in new],
        "statuses": [record["status"] for record in new],
        "fields": [list(record) for record in new[:1]],
        "run.json": list(json.loads((folder / "run.json").read_text())),
        "then": doors.go_on(folder, suite.read_text(), device),
        "nothing left": path.read_bytes() == after,
    }


PINS: dict[str, Callable[[], Any]] = {
    "predict-targets": _targets,
    "predict-h100": lambda: _forms(
        "h100", "float32,bfloat16,float16,float64", "eager,compiled,fused"
    ),
    "predict-cpu": lambda: _forms(CPU, "float32,bfloat16,float64", "eager,compiled"),
    "recommend": _recommendations,
    "regions-predicted": _predicted_regions,
    "regions-flops": _closed_forms,
    "regions-layer": lambda: doors.answer("regions", str(REFERENCE / RUNS[1])),
    "plans": _plans,
    "tables": _tables,
    "fields": _fields,
    "resume": _resumes,
}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value


def _paths(name: str) -> tuple[Path, Path]:
    return GOLDEN / f"{name}.json", GOLDEN / f"{name}.json.gz"


def write(name: str, value: Any) -> Path:
    """Write a golden: floats to nine digits, compressed where it is large, the same bytes for the
    same value."""
    plain, packed = _paths(name)
    for path in (plain, packed):
        path.unlink(missing_ok=True)
    GOLDEN.mkdir(exist_ok=True)
    text = json.dumps(_rounded(value), indent=1, ensure_ascii=False) + "\n"
    if len(text) < COMPRESS_FROM_BYTES:
        plain.write_text(text)
        return plain
    packed.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    return packed


def read(name: str) -> Any:
    """A golden as it was written; None where there is none."""
    plain, packed = _paths(name)
    if plain.exists():
        return json.loads(plain.read_text())
    return json.loads(gzip.decompress(packed.read_bytes())) if packed.exists() else None


def differences(golden: Any, now: Any, place: str = "") -> Iterator[tuple[float, str]]:
    """How ``now`` differs from ``golden``: (size, sentence). The size of a number that moved is the
    relative change; that of anything else, infinity."""
    if isinstance(golden, dict) and isinstance(now, dict):
        yield from _keys(golden, now, place)
    elif isinstance(golden, list) and isinstance(now, list):
        yield from _rows(golden, now, place)
    elif _is_number(golden) and _is_number(now):
        whole = isinstance(golden, int) and isinstance(now, int)
        if (
            golden != now
            if whole
            else not math.isclose(golden, now, rel_tol=RELATIVE, abs_tol=1e-15)
        ):
            size = abs(now - golden) / max(abs(golden), 1e-300)
            yield size, f"{place}: {golden!r} -> {now!r} ({size:.2g})"
    elif golden != now:
        yield math.inf, f"{place}: {_short(golden)} -> {_short(now)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 90 else f"{text[:87]}..."


def _keys(golden: dict, now: dict, place: str) -> Iterator[tuple[float, str]]:
    for key in golden:
        if key not in now:
            yield math.inf, f"{place}.{key}: gone, was {_short(golden[key])}"
        else:
            yield from differences(golden[key], now[key], f"{place}.{key}" if place else key)
    for key in now:
        if key not in golden:
            yield math.inf, f"{place}.{key}: new, {_short(now[key])}"
    if set(golden) == set(now) and list(golden) != list(now):
        yield math.inf, f"{place}: the order of keys is another: {_short(list(now))}"


def _names(rows: list) -> list[str] | None:
    """What each row calls itself, if all are tables (or texts) and no two are called the same."""
    if rows and all(isinstance(row, str) for row in rows):
        return rows if len(set(rows)) == len(rows) else None
    if not rows or not all(isinstance(row, dict) for row in rows):
        return None
    names = [
        ",".join(str(row[key]) for key in IDENTITY if row.get(key) is not None) for row in rows
    ]
    return names if len(set(names)) == len(names) else None


def _rows(golden: list, now: list, place: str) -> Iterator[tuple[float, str]]:
    was, are = _names(golden), _names(now)
    if was is None or are is None:
        if len(golden) != len(now):
            yield math.inf, f"{place}: {len(golden)} entries -> {len(now)}"
        for index, (old, new) in enumerate(zip(golden, now)):
            yield from differences(old, new, f"{place}[{index}]")
        return
    rows = dict(zip(are, now))
    for name, old in zip(was, golden):
        if name in rows:
            yield from differences(old, rows[name], f"{place}[{name}]")
        else:
            yield math.inf, f"{place}[{name}]: row gone"
    for name in are:
        if name not in was:
            yield math.inf, f"{place}[{name}]: row new"
    if set(was) == set(are) and was != are:
        first = next(index for index, pair in enumerate(zip(was, are)) if pair[0] != pair[1])
        yield math.inf, f"{place}: rows in another order from row {first}: now {are[first]}"


def report(found: list[tuple[float, str]], most: int) -> str:
    """The worst differences in lines, what is not a number first."""
    lines = [text for _, text in sorted(found, key=lambda each: -each[0])[:most]]
    left = len(found) - len(lines)
    return "\n".join([*lines, *([f"... and {left} more"] if left else [])])


def value(name: str) -> Any:
    """What a pin gives today, as JSON would give it back."""
    return json.loads(json.dumps(PINS[name]()))


def check(name: str, now: Any) -> list[tuple[float, str]]:
    """How a pin that gives ``now`` differs from its golden."""
    golden = read(name)
    if golden is None:
        return [(math.inf, f"no golden {name!r}: python scripts/pin.py {name}")]
    return list(differences(golden, _rounded(now)))
