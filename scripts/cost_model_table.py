"""Judge the cost model on rows and devices that it was not fitted to, and print the table of docs/cost-model.md.

    python scripts/cost_model_table.py ../shared/data/gpu_ops [--only matmul-tensor]

Datasheet only: the global constants are fitted again without the device (all its files), then predict all its rows.
Calibrated: the same constants, moved by 20 of the device's rows (stratified by shape), predict its other rows; the mean over
SEEDS. Seen: the shipped constants on the rows they were fitted to, for comparison.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fit_cost_model import FITS, datasheet_only, fit, load

from flurka_bench.cost.calibration import calibrate
from flurka_bench.cost.fitting import Rows, absolute_percentage_error, order_right, stratified
from flurka_bench.cost.operators import operator_of

SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: which rows of which fit's files it judges, and the goals in percent."""

    title: str
    fit: str
    ops: tuple[str, ...]
    dtype: str
    goals: tuple[float, float]
    where: Callable[[Mapping[str, np.ndarray]], np.ndarray] = lambda columns: np.ones(len(next(iter(columns.values()))), bool)


def attention_shapes(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """M of at least 1024, N and K of 512 to 8192."""
    n, k = columns["N"], columns["K"]
    return (columns["M"] >= 1024) & (n >= 512) & (n <= 8192) & (k >= 512) & (k <= 8192)


def aligned(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """All of M, N, K multiples of 4."""
    return (columns["M"] % 4 == 0) & (columns["N"] % 4 == 0) & (columns["K"] % 4 == 0)


LINES: list[Line] = [
    Line(
        title="linear bfloat16, attention's shapes",
        fit="matmul-tensor",
        ops=("linear",),
        dtype="bfloat16",
        goals=(8, 5.5),
        where=attention_shapes,
    ),
    Line(title="linear bfloat16, all rows", fit="matmul-tensor", ops=("linear",), dtype="bfloat16", goals=(11, 8)),
    Line(title="linear float16", fit="matmul-tensor", ops=("linear",), dtype="float16", goals=(8, 6)),
    Line(
        title="batched matmul float32, aligned", fit="matmul-vector", ops=("bmm",), dtype="float32", goals=(10, 4), where=aligned
    ),
    Line(title="batched matmul float32, all rows", fit="matmul-vector", ops=("bmm",), dtype="float32", goals=(10, 4)),
    Line(title="linear float32", fit="matmul-vector", ops=("linear",), dtype="float32", goals=(10, 5)),
]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Predictions for one device's rows: by the shipped constants, with the device left out, and calibrated (seed -> rows, seconds)."""

    rows: Rows
    seen: np.ndarray
    unseen: np.ndarray
    calibrated: tuple[tuple[np.ndarray, np.ndarray], ...]


def judge(name: str, folder: Path) -> list[Judged]:
    """Run the protocol for one fit."""
    entry = FITS[name]
    groups = load(folder, entry.files)
    shipped = json.loads(entry.path.read_text(encoding="utf-8"))
    judged = []
    for device in sorted({rows.device for rows in groups}):
        table = fit(entry, [rows for rows in groups if rows.device != device], shipped)
        profile = datasheet_only(device)
        for rows in (rows for rows in groups if rows.device == device):
            operator = operator_of(rows)
            calibrated = []
            for seed in SEEDS:
                picked = stratified(operator.features(rows), CALIBRATION_ROWS, seed)
                held_out = np.setdiff1d(np.arange(len(rows)), picked)
                own = calibrate(profile, rows.take(picked), table)
                calibrated.append((held_out, operator.predict(own, rows.take(held_out), table)))
            judged.append(
                Judged(
                    rows=rows,
                    seen=operator.predict(profile, rows, shipped),
                    unseen=operator.predict(profile, rows, table),
                    calibrated=tuple(calibrated),
                )
            )
    return judged


def errors(line: Line, one: Judged) -> tuple[float, ...]:
    """Mean absolute percentage errors (seen, unseen, calibrated) and order (unseen, calibrated) of one device on a line's rows."""
    mask = line.where(one.rows.columns)
    measured = one.rows.seconds
    mape = [float(absolute_percentage_error(predicted, measured)[mask].mean()) for predicted in (one.seen, one.unseen)]
    calibrated, order = [], []
    for held_out, predicted in one.calibrated:
        kept = mask[held_out]
        calibrated.append(absolute_percentage_error(predicted[kept], measured[held_out][kept]).mean())
        order.append(100 * order_right(predicted[kept], measured[held_out][kept], 1.2))
    unseen_order = 100 * order_right(one.unseen[mask], measured[mask], 1.2)
    return (*mape, float(np.mean(calibrated)), unseen_order, float(np.mean(order)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument("--only", nargs="*", default=list(FITS), choices=list(FITS))
    arguments = parser.parse_args()
    head = f"{'':38s} {'seen':>6s} {'unseen':>7s} {'goal':>5s} {'calibr.':>7s} {'goal':>5s} {'order unseen':>12s} {'calibr.':>8s}"
    for name in arguments.only:
        judged = judge(name, arguments.folder)
        print(head)
        for line in (line for line in LINES if line.fit == name):
            table = {
                one.rows.device: errors(line, one) for one in judged if one.rows.op in line.ops and one.rows.dtype == line.dtype
            }
            for device, values in {
                line.title: tuple(np.mean(list(table.values()), axis=0)),
                **{f"  {key}": row for key, row in table.items()},
            }.items():
                seen, unseen, calibrated, order, order_calibrated = values
                goals = (f"{line.goals[0]:5g}", f"{line.goals[1]:5g}") if device == line.title else ("", "")
                print(
                    f"{device:38s} {seen:6.1f} {unseen:7.1f} {goals[0]:>5s} {calibrated:7.1f} {goals[1]:>5s} {order:12.2f} {order_calibrated:8.2f}"
                )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
