"""Predictions against a table of measured times: operators, whole cases, or a run's records."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    MECHANISMS,
    canonical,
    not_applicable,
)
from flurka_bench.cost.cpu_rows import predict_rows
from flurka_bench.cost.fitting import (
    absolute_percentage_error,
    rows_of,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.cost.predict import predict
from flurka_bench.cost.tables import (
    Table,
    lacks,
    of_device,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.text import csv_cell

LONGEST_S = 1e9  # 30 years; a measured row takes 12 days at most


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
        error = absolute_percentage_error(self.predicted_s, self.measured_s)
        return {
            "op": self.op,
            "dtype": self.dtype,
            "count": len(error),
            "mape": float(error.mean()),
            "median_ape": float(np.median(error)),
            "p90_ape": float(np.quantile(error, 0.9)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A table's rows in groups; ``other_device`` is what the rows say where that is another device
    than the one predicted, ``left_out`` maps a reason to the lines of rows that are no case."""

    groups: list[Group]
    other_device: str | None = None
    left_out: dict[str, list[int]] = field(default_factory=dict)


def validate(table: Table, profile: Profile) -> Validation:
    """Predict a table's rows: operators (columns op, latency_ms) or whole cases (mechanism,
    latency_ms).

    Raises:
        RequestError: a table of neither form, without a row that can be predicted, or with a cell
            that is not what its column holds.
    """
    mine, other_device = of_device(profile, table.devices)
    left_out: dict[str, list[int]] = {}
    if {"op", "latency_ms"} <= set(table.header):
        groups = _operators(table, profile, mine)
    elif {"mechanism", "latency_ms"} <= set(table.header):
        groups = _cases(table, profile, mine, left_out)
    else:
        raise lacks(table, "a column latency_ms, or a column op or mechanism")
    return Validation(groups=groups, other_device=other_device, left_out=left_out)


def run_table(path: Path, records: Iterable[Mapping[str, Any]]) -> Table:
    """The finished records of a run in the form of a whole-case file.

    Raises:
        RequestError: no record is of a finished case.
    """
    names = [*Case(mechanism="").as_record(), "case_id", "latency_ms"]
    rows, lines = [], []
    for line, record in enumerate(records, 1):
        if record["status"] == "ok":
            values = {**record, "latency_ms": record["median_s"] * 1e3}
            rows.append(["" if values.get(name) is None else str(values[name]) for name in names])
            lines.append(line)
    if not rows:
        raise RequestError(f"{path.parent} holds no finished case (status ok)")
    return Table(path=path, header=names, rows=rows, lines=lines)


def predictions_csv(table: Table, groups: Iterable[Group]) -> str:
    """The table as CSV, its rows in their order, with ``predicted_ms``; empty where a row is of
    another device or no known case."""
    predicted = dict(
        pair for group in groups for pair in zip(group.lines.tolist(), group.predicted_s.tolist())
    )
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow([*map(csv_cell, table.header), "predicted_ms"])
    for line, row in enumerate(table.rows):
        known = f"{predicted[line] * 1e3:.6g}" if line in predicted else ""
        writer.writerow([*map(csv_cell, row), known])
    return stream.getvalue()


def _operators(table: Table, profile: Profile, mine: np.ndarray) -> list[Group]:
    groups = []
    for rows in rows_of(table):
        rows = rows.take(np.flatnonzero(mine[rows.columns["line"]]))
        if not len(rows):
            continue
        lines = rows.columns["line"]
        try:
            if profile.kind == "cpu":
                predicted = predict_rows(profile, rows)
            else:
                predicted = operator_of(rows).predict(profile, rows, None)
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


def _check_finite(table: Table, lines: np.ndarray, predicted_s: np.ndarray) -> None:
    """Raise RequestError where sizes, each of them in range, together leave what can be
    predicted."""
    wrong = np.flatnonzero(~((predicted_s > 0) & (predicted_s <= LONGEST_S)))  # nan is neither
    if len(wrong):
        raise RequestError(
            f"{table.path}, line {table.lines[lines[wrong[0]]]}: expected sizes whose prediction is"
            " a time, got a shape too large for one"
        )


def _cases(
    table: Table, profile: Profile, mine: np.ndarray, left_out: dict[str, list[int]]
) -> list[Group]:
    """Groups by mechanism and dtype; rows that are no case of this project go to ``left_out``."""
    cases: list[Case] = []
    places: list[int] = []
    measured: list[float] = []
    for place in np.flatnonzero(mine).tolist():
        row = dict(zip(table.header, table.rows[place]))
        seconds = table.seconds(place, "latency_ms", row["latency_ms"])
        wanted = _case(table, place, row)
        try:
            cases.append(_canonical(wanted))
        except RequestError as error:
            left_out.setdefault(str(error), []).append(table.lines[place])
            continue
        measured.append(seconds)
        places.append(place)
    predicted = np.array([each.seconds for each in predict(cases, profile)])
    lines, measured_s = np.array(places, dtype=int), np.array(measured)
    _check_finite(table, lines, predicted)
    keys = [(case.mechanism, case.dtype) for case in cases]
    groups = []
    for key in sorted(set(keys)):
        at = np.array([i for i, each in enumerate(keys) if each == key])
        groups.append(
            Group(
                op=key[0],
                dtype=key[1],
                lines=lines[at],
                measured_s=measured_s[at],
                predicted_s=predicted[at],
            )
        )
    return groups


_MAY_BE_ZERO = ("ffn_dim", "vocab_size")
_COUNTS = (*SIZES, "num_layers", *_MAY_BE_ZERO)
_WORDS = ("mechanism", "level", "pass", "order", "backend", "dtype", "compression")
_FLAGS = ("share_kv", "share_heads")


def _case(table: Table, place: int, row: dict[str, str]) -> Case:
    """The case that a row of a whole-case file asks for."""
    row = {"vocab_size": row.get("vocab", ""), **row}
    values: dict[str, Any] = {
        ("pass_" if name == "pass" else name): row[name] for name in _WORDS if row.get(name)
    }
    if "mechanism" not in values:
        raise table.wrong(place, "mechanism", f"one of {', '.join(MECHANISMS)}", "")
    for name in _COUNTS:
        if text := row.get(name):
            zero = text == "0" and name in _MAY_BE_ZERO
            values[name] = 0 if zero else table.size(place, name, text)
    for name in _FLAGS:
        if text := row.get(name):
            word = text.strip().lower()
            if word not in ("true", "false", "1", "0"):
                raise table.wrong(place, name, "true or false", text)
            values[name] = word in ("true", "1")
    return Case(**values)


def _canonical(case: Case) -> Case:
    """The case in canonical form. RequestError where a row says other features than were timed."""
    why = not_applicable(case).get("num_features")
    if why and MECHANISMS[case.mechanism].is_kernel:
        raise RequestError(f"{case.mechanism} {why}, and the row says {case.num_features}")
    return canonical(case)
