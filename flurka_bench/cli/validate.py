"""``validate``: how far the model's predictions lie from measured times, by op or mechanism."""

import csv
import gzip
import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from flurka_bench.cli.common import print_json, print_table
from flurka_bench.errors import RequestError
from flurka_bench.files import write_atomically
from flurka_bench.text import csv_cell

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile
    from flurka_bench.workload import Case


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
            help="The device that the rows are of: a name, an alias or a profile file (.toml)."
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
    from flurka_bench.hardware import load

    profile = load(hardware)
    if datasheet_only:
        profile = profile.with_measured({}, {})
    header, table = (_run_table(source)) if source.is_dir() else _csv_table(source)
    mine = _of_device(profile, header, table)
    if {"op", "latency_ms"} <= set(header):
        groups = _operators(source, profile, mine)
    elif {"mechanism", "latency_ms"} <= set(header):
        groups = _cases(profile, header, table, mine)
    else:
        raise RequestError(
            f"{source} needs a column latency_ms and a column op or mechanism; it has {', '.join(header) or 'none'}"
        )
    if not groups:
        raise RequestError(f"{source} has no row that can be predicted for {profile.name}")
    if predictions:
        _write(predictions, header, table, groups)
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


def _csv_table(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as stream
        ):
            reader = csv.reader(stream)
            header = next(reader, [])
            table = [row for row in reader if row]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"cannot read {path}: {error}") from None
    if not table or any(len(row) != len(header) for row in table):
        raise RequestError(
            f"{path} has no rows, or rows of another length than its header of {len(header)} columns"
        )
    return header, table


def _run_table(folder: Path) -> tuple[list[str], list[list[str]]]:
    """A run's finished records in the form of a whole-case file."""
    from flurka_bench.results import read_run
    from flurka_bench.workload import Case

    names = [*Case(mechanism="").as_record(), "case_id", "latency_ms"]
    table = []
    for record in read_run(folder).records:
        if record["status"] == "ok":
            values = {**record, "latency_ms": record["median_s"] * 1e3}
            table.append(["" if values.get(name) is None else str(values[name]) for name in names])
    if not table:
        raise RequestError(f"{folder} holds no finished case (status ok)")
    return names, table


def _of_device(profile: "Profile", header: list[str], table: list[list[str]]) -> np.ndarray:
    """Mask of the rows to judge: this device's where the file names it, all where it names one
    other device or none."""
    if "device" not in header:
        return np.ones(len(table), dtype=bool)
    devices = np.array([row[header.index("device")] for row in table])
    mine = np.isin(devices, [profile.name, *profile.aliases, *profile.device_names])
    found = sorted(set(devices.tolist()))
    if mine.any():
        return mine
    if len(found) > 1:
        raise RequestError(
            f"no row is of {profile.name!r}; the file holds {', '.join(found)} (choose one with --hardware)"
        )
    print(f"note: the rows say {found[0]!r}, predictions are for {profile.name}", file=sys.stderr)
    return np.ones(len(table), dtype=bool)


def _operators(path: Path, profile: "Profile", mine: np.ndarray) -> list[Group]:
    from flurka_bench.cost.cpu_rows import predict_rows
    from flurka_bench.cost.fitting import read_rows
    from flurka_bench.cost.operators import operator_of

    groups = []
    for rows in read_rows(path):
        rows = rows.take(np.flatnonzero(mine[rows.columns["line"]]))
        if len(rows):
            on_cpu = profile.kind == "cpu"
            predicted = (
                predict_rows(profile, rows)
                if on_cpu
                else operator_of(rows).predict(profile, rows, None)
            )
            lines = rows.columns["line"]
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


def _cases(
    profile: "Profile", header: list[str], table: list[list[str]], mine: np.ndarray
) -> list[Group]:
    """Groups by mechanism and dtype; rows that are no case of this project are left out with their
    number."""
    from flurka_bench.cost.predict import predict

    lines: list[int] = []
    cases: list[Case] = []
    seconds: list[float] = []
    left_out: dict[str, int] = {}
    for line in np.flatnonzero(mine):
        row = dict(zip(header, table[line]))
        try:
            cases.append(_case(row))
            seconds.append(_latency_s(row["latency_ms"]))
            lines.append(int(line))
        except RequestError as error:
            left_out[str(error)] = left_out.get(str(error), 0) + 1
            del cases[len(lines) :]
    for reason, count in left_out.items():
        print(f"left out {count} rows: {reason}", file=sys.stderr)
    predicted = (
        np.array([each.seconds for each in predict(cases, profile)]) if cases else np.zeros(0)
    )
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
_WORDS = ("mechanism", "level", "pass", "order", "backend", "dtype", "compression")
_FLAGS = ("share_kv", "share_heads")


def _case(row: dict[str, str]) -> "Case":
    """The case that a row of a whole-case file is of, in canonical form."""
    from flurka_bench.mechanisms import canonical
    from flurka_bench.workload import Case

    row = {"vocab_size": row.get("vocab", ""), **row}
    values: dict[str, Any] = {
        ("pass_" if name == "pass" else name): row[name] for name in _WORDS if row.get(name)
    }
    for name in _COUNTS:
        if row.get(name):
            if not row[name].isdigit():
                raise RequestError(f"column {name} must hold whole numbers, got {row[name]!r}")
            values[name] = int(row[name])
    values |= {name: row[name].strip().lower() in ("true", "1") for name in _FLAGS if row.get(name)}
    return canonical(Case(**values))


def _latency_s(text: str) -> float:
    try:
        value = float(text) * 1e-3
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise RequestError(f"column latency_ms must hold finite numbers above 0, got {text!r}")
    return value


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
