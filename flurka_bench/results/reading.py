"""Run folders read back, checked line by line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flurka_bench.results.index import CaseIndex
from flurka_bench.results.records import (
    FIELDS,
    SCHEMA,
    TIMING,
    UPGRADES,
    Form,
    check_meta,
    check_record,
    upgrade,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.text import legible

if TYPE_CHECKING:
    import pandas as pd

META_NAME, RECORDS_NAME = "run.json", "measurements.jsonl"


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def loads(text: bytes | str) -> Any:
    """JSON without NaN and infinities; ValueError for anything else."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


@dataclass(slots=True, kw_only=True)
class Run:
    """A run that was read: its folder, what run.json says, its records, and what the reader had to
    say about them."""

    folder: Path
    meta: dict[str, Any]
    records: list[dict[str, Any]]
    warnings: list[str] = field(default_factory=list)


def read_meta(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises RequestError if the folder is not a run or was written by a newer
    flurka-bench."""
    path = Path(folder) / META_NAME
    if not path.is_file():
        what = (
            "is a file"
            if Path(folder).is_file()
            else f"has no {META_NAME}"
            if Path(folder).is_dir()
            else "does not exist"
        )
        raise RequestError(
            f"{str(folder)!r} is not a run: it {what} (give the folder that 'flurka-bench run' wrote)"
        )
    try:
        meta = loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    if not isinstance(meta, dict):
        raise RequestError(f"{path} must hold an object, got {type(meta).__name__}")
    meta = {**upgrade(meta, str(path), {}), "schema": SCHEMA}
    try:
        check_meta(meta)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    return meta


def check_kind(folder: Path, meta: Mapping[str, Any], form: Form) -> None:
    """Raise RequestError if the run is of another kind than ``form``."""
    kind = meta.get("kind", TIMING.kind)
    if kind != form.kind:
        raise RequestError(
            f"{str(folder)!r} is a run of kind {kind!r}, not {form.kind!r} (give a folder that '{form.command}' wrote)"
        )


def iter_records(
    folder: Path, warnings: list[str] | None = None, form: Form = TIMING
) -> Iterator[dict[str, Any]]:
    """The records of a run, one at a time, upgraded and checked; a torn last line is left out and
    said in ``warnings``.

    Raises RequestError with the line for any other damage, and for a case that has two records.
    """
    path = Path(folder) / RECORDS_NAME
    seen = CaseIndex()
    for number, line, is_last in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            record = loads(line)
        except ValueError as error:
            if is_last:
                if warnings is not None:
                    warnings.append(
                        f"{where}: torn, left out (the case is measured again when the run goes on)"
                    )
                return
            raise RequestError(f"{where}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise RequestError(f"{where}: a record must be an object, got {type(record).__name__}")
        record = upgrade(record, where, UPGRADES)
        try:
            check_record(record, form=form)
        except RequestError as error:
            raise RequestError(f"{where}: {error}") from None
        if record["case_id"] in seen:
            raise RequestError(f"{where}: a second record of case {record['case_id']!r}")
        seen.add(record["case_id"], record["status"])
        yield record


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """A file's lines as (number, bytes, whether it is the last); none where there is no file."""
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
    """A whole run. RequestError if it is not one, is of another kind, damaged, or written by a
    newer flurka-bench."""
    folder = Path(folder)
    run = Run(folder=folder, meta=read_meta(folder), records=[])
    check_kind(folder, run.meta, form)
    run.records = list(iter_records(folder, run.warnings, form))
    return run


def to_frame(runs: Run | Iterable[Run]) -> "pd.DataFrame":
    """All records of one or several runs, one row each, with the run's folder name and id: devices
    stay apart."""
    import pandas as pd

    rows = []
    for run in [runs] if isinstance(runs, Run) else runs:
        identity = {
            "run": legible(run.folder.name),
            "run_id": run.meta.get("run_id", legible(str(run.folder))),
            "suite": run.meta["suite"]["name"],
        }
        rows += [{**dict.fromkeys(FIELDS), **record, **identity} for record in run.records]
    return pd.DataFrame(rows, columns=None if rows else [*FIELDS, "run", "run_id", "suite"])
