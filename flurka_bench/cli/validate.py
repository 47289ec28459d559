"""``validate``: how far the model's predictions lie from measured times, by op or mechanism."""

import csv
import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    MECHANISMS,
    canonical,
    not_applicable,
)
from flurka_bench.cli.common import (
    print_json,
    print_table,
)
from flurka_bench.cli.targets import load_target
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import write_atomically
from flurka_bench.words.text import csv_cell

if TYPE_CHECKING:
    from flurka_bench.cost.tables import Table
    from flurka_bench.hardware import Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows of one op (or mechanism) and dtype: their lines in the file, measured and predicted
    seconds."""

    op: str
    dtype: str
    lines: np.ndarray
    measured_s: np.ndarray
    predicted_s: np.ndarray

    def as_record(self) -> dict[str, Any]:
        """Count and errors in percent: mean, median and 90th percentile of |predicted / measured -
        1|."""
        from flurka_bench.cost.fitting import absolute_percentage_error

        error = absolute_percentage_error(self.predicted_s, self.measured_s)
        return {
            "op": self.op,
            "dtype": self.dtype,
            "count": len(error),
            "mape": float(error.mean()),
            "median_ape": float(np.median(error)),
            "p90_ape": float(np.quantile(error, 0.9)),
        }


def validate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Measured rows (CSV, may be gzipped) or the folder of a run."
        ),
    ],
    hardware: Annotated[
        str,
        typer.Option(
            help="The device that the rows are of: a name, an alias, a profile file (.toml), or cpu for this machine."
        ),
    ],
    datasheet_only: Annotated[
        bool, typer.Option("--datasheet-only", help="Leave out what was measured on the device.")
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Write every row of FILE with its predicted_ms to this CSV.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compare predictions with measured times: operators, whole cases, or a run. Errors are
    percentages.

    Operator files have the columns op, dtype, latency_ms and the op's sizes; whole-case files
    mechanism, level, pass, dtype, the case's sizes and latency_ms. Where a column device names
    several, only the rows of --hardware count.

    Example: flurka-bench validate linear_bf16.csv.gz --hardware h200 --predictions predicted.csv
    """
    from flurka_bench.cost.tables import (
        lacks,
        read_table,
    )

    profile = load_target(hardware)
    if datasheet_only:
        profile = profile.with_measured({}, {})
    table = _run_table(source) if source.is_dir() else read_table(source)
    mine = _of_device(profile, table)
    if {"op", "latency_ms"} <= set(table.header):
        groups = _operators(table, profile, mine)
    elif {"mechanism", "latency_ms"} <= set(table.header):
        groups = _cases(profile, table, mine)
    else:
        raise lacks(table, "a column latency_ms, or a column op or mechanism")
    if not groups:
        raise RequestError(f"{source} has no row that can be predicted for {profile.name}")
    if predictions:
        _write(predictions, table.header, table.rows, groups)
    records = [group.as_record() for group in groups]
    if json:
        print_json(records)
        return
    known = "calibrated" if profile.is_calibrated else "datasheet only"
    print_table(
        ("op", "dtype", "rows", "mean error", "median", "90 % within"),
        [
            (
                r["op"],
                r["dtype"],
                r["count"],
                *(f"{r[key]:.1f} %" for key in ("mape", "median_ape", "p90_ape")),
            )
            for r in records
        ],
        title=f"Absolute error of predictions for {profile.name} ({known})",
    )


def _run_table(folder: Path) -> "Table":
    """A run's finished records in the form of a whole-case file."""
    from flurka_bench.cost.tables import Table
    from flurka_bench.results import (
        RECORDS_NAME,
        read_run,
    )

    names = [*Case(mechanism="").as_record(), "case_id", "latency_ms"]
    rows, lines = [], []
    for line, record in enumerate(read_run(folder).records, 1):
        if record["status"] == "ok":
            values = {**record, "latency_ms": record["median_s"] * 1e3}
            rows.append(["" if values.get(name) is None else str(values[name]) for name in names])
            lines.append(line)
    if not rows:
        raise RequestError(f"{folder} holds no finished case (status ok)")
    return Table(path=folder / RECORDS_NAME, header=names, rows=rows, lines=lines)


def _of_device(profile: "Profile", table: "Table") -> np.ndarray:
    """Mask of the rows to judge: this device's where the file names it, all where it names one
    other device or none."""
    everything = np.ones(len(table.rows), dtype=bool)
    if "device" not in table.header:
        return everything
    own = {profile.name, *profile.aliases, *profile.device_names}
    devices = table.column("device")
    mine = np.array([device in own for device in devices])
    if mine.any():
        return mine
    found = sorted(set(devices))
    if len(found) > 1:
        shown = ", ".join(repr(name[:60]) for name in found[:20])
        raise RequestError(
            f"no row is of {profile.name!r}; the file holds {shown} (choose one with --hardware)"
        )
    print(f"note: the rows say {found[0]!r}, predictions are for {profile.name}", file=sys.stderr)
    return everything


def _operators(table: "Table", profile: "Profile", mine: np.ndarray) -> list[Group]:
    from flurka_bench.cost.cpu_rows import predict_rows
    from flurka_bench.cost.fitting import rows_of
    from flurka_bench.cost.operators import operator_of

    groups = []
    for rows in rows_of(table):
        rows = rows.take(np.flatnonzero(mine[rows.columns["line"]]))
        if not len(rows):
            continue
        lines = rows.columns["line"]
        try:
            predicted = (
                predict_rows(profile, rows)
                if profile.kind == "cpu"
                else operator_of(rows).predict(profile, rows, None)
            )
        except RequestError as error:
            raise RequestError(f"{table.path}, line {table.lines[lines[0]]}: {error}") from None
        _check_finite(table, lines, predicted)
        groups.append(
            Group(
                op=rows.op,
                dtype=rows.dtype,
                lines=lines,
                measured_s=rows.seconds,
                predicted_s=predicted,
            )
        )
    return groups


LONGEST_S = 1e9  # 30 years; a measured row takes 12 days at most


def _check_finite(table: "Table", lines: np.ndarray, predicted_s: np.ndarray) -> None:
    """Raise RequestError where sizes, each of them in range, together leave what can be
    predicted."""
    wrong = np.flatnonzero(~((predicted_s > 0) & (predicted_s <= LONGEST_S)))  # nan is neither
    if len(wrong):
        raise RequestError(
            f"{table.path}, line {table.lines[lines[wrong[0]]]}: expected sizes whose prediction is"
            " a time, got a shape too large for one"
        )


def _cases(profile: "Profile", table: "Table", mine: np.ndarray) -> list[Group]:
    """Groups by mechanism and dtype; rows that are no case of this project are left out with their
    number."""
    from flurka_bench.cost.predict import predict

    lines: list[int] = []
    cases: list[Case] = []
    seconds: list[float] = []
    left_out: dict[str, list[int]] = {}
    for line in np.flatnonzero(mine).tolist():
        row = dict(zip(table.header, table.rows[line]))
        measured_s = table.seconds(line, "latency_ms", row["latency_ms"])
        wanted = _case(table, line, row)
        try:
            cases.append(_canonical(wanted))
        except RequestError as error:
            left_out.setdefault(str(error), []).append(table.lines[line])
            continue
        seconds.append(measured_s)
        lines.append(line)
    for reason, places in list(left_out.items())[:MOST_REASONS]:
        where = f"line {places[0]}" + (" and others" if len(places) > 1 else "")
        print(f"left out {len(places)} rows: {reason} ({where})", file=sys.stderr)
    if len(left_out) > MOST_REASONS:
        more = sum(map(len, list(left_out.values())[MOST_REASONS:]))
        print(f"left out {more} rows for other reasons", file=sys.stderr)
    predicted = (
        np.array([each.seconds for each in predict(cases, profile)]) if cases else np.zeros(0)
    )
    _check_finite(table, np.array(lines, dtype=int), predicted)
    keys = [(case.mechanism, case.dtype) for case in cases]
    groups = []
    for key in sorted(set(keys)):
        at = np.array([i for i, each in enumerate(keys) if each == key])
        groups.append(
            Group(
                op=key[0],
                dtype=key[1],
                lines=np.array(lines)[at],
                measured_s=np.array(seconds)[at],
                predicted_s=predicted[at],
            )
        )
    return groups


_COUNTS = (
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
_MAY_BE_ZERO = ("ffn_dim", "vocab_size")
_WORDS = ("mechanism", "level", "pass", "order", "backend", "dtype", "compression")
_FLAGS = ("share_kv", "share_heads")
MOST_REASONS = 10  # for which rows are left out, that are printed


def _case(table: "Table", line: int, row: dict[str, str]) -> "Case":
    """The case that a row of a whole-case file asks for."""
    row = {"vocab_size": row.get("vocab", ""), **row}
    values: dict[str, Any] = {
        ("pass_" if name == "pass" else name): row[name] for name in _WORDS if row.get(name)
    }
    if "mechanism" not in values:
        raise table.wrong(line, "mechanism", f"one of {', '.join(MECHANISMS)}", "")
    for name in _COUNTS:
        if text := row.get(name):
            zero = text == "0" and name in _MAY_BE_ZERO
            values[name] = 0 if zero else table.size(line, name, text)
    for name in _FLAGS:
        if text := row.get(name):
            word = text.strip().lower()
            if word not in ("true", "false", "1", "0"):
                raise table.wrong(line, name, "true or false", text)
            values[name] = word in ("true", "1")
    return Case(**values)


def _canonical(case: Case) -> Case:
    """The case in canonical form. RequestError where a row says other features than were timed."""
    why = not_applicable(case).get("num_features")
    if why and MECHANISMS[case.mechanism].is_kernel:
        raise RequestError(f"{case.mechanism} {why}, and the row says {case.num_features}")
    return canonical(case)


def _write(path: Path, header: list[str], table: list[list[str]], groups: Iterable[Group]) -> None:
    """The file's rows in their order, with ``predicted_ms``; empty where a row is of another device
    or no known case."""
    predicted = dict(
        pair for group in groups for pair in zip(group.lines.tolist(), group.predicted_s.tolist())
    )
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow([*map(csv_cell, header), "predicted_ms"])
    for line, row in enumerate(table):
        known = f"{predicted[line] * 1e3:.6g}" if line in predicted else ""
        writer.writerow([*map(csv_cell, row), known])
    write_atomically(path, stream.getvalue(), option="--predictions", follow_links=True)
