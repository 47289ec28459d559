"""Judge the cost model on rows and devices that it was not fitted to, and print the table of
docs/cost-model.md.

    python scripts/cost_model_table.py ../shared/data/gpu_ops [--only matmul-tensor] [--rows 200]
    [--ablation]

Datasheet only: the global constants are fitted again without the device (all its files), then
    predict all its rows; ``host
known`` adds the dispatch time of the host, which float32 rows hold and no datasheet of a device
gives.
Calibrated: the same constants, moved by 20 (``--rows``) of the device's rows (stratified by shape),
    predict its other
rows; the mean over SEEDS. Seen: the shipped constants on the rows they were fitted to, for
comparison. ``own regime`` draws the calibration rows from the line's own shapes. ``--ablation``
switches one term off at a time, fits all constants again without each device and prints the error
on the devices left out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from fit_cost_model import FITS, Fit, datasheet_only, fit, host_known, load

from flurka_bench.cost.calibration import calibrate
from flurka_bench.cost.fitting import (
    Rows,
    absolute_percentage_error,
    order_right,
    stratified,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.hardware.profile import Profile

SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table: which rows of which fit's files it judges, and the goals in
    percent."""

    title: str
    fit: str
    ops: tuple[str, ...]
    dtype: str
    goals: tuple[float, float]
    where: Callable[[Mapping[str, np.ndarray]], np.ndarray] = lambda columns: np.ones(
        len(next(iter(columns.values()))), bool
    )


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
    Line(
        title="linear bfloat16, all rows",
        fit="matmul-tensor",
        ops=("linear",),
        dtype="bfloat16",
        goals=(11, 8),
    ),
    Line(
        title="linear float16", fit="matmul-tensor", ops=("linear",), dtype="float16", goals=(8, 6)
    ),
    Line(
        title="batched matmul float32, aligned",
        fit="matmul-vector",
        ops=("bmm",),
        dtype="float32",
        goals=(10, 4),
        where=aligned,
    ),
    Line(
        title="batched matmul float32, all rows",
        fit="matmul-vector",
        ops=("bmm",),
        dtype="float32",
        goals=(10, 4),
    ),
    Line(
        title="linear float32", fit="matmul-vector", ops=("linear",), dtype="float32", goals=(10, 5)
    ),
]


Seeded = tuple[
    tuple[np.ndarray, np.ndarray], ...
]  # by seed: held-out rows, their predicted seconds


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Predictions for one device's rows, with the device left out of the fit and then
    calibrated."""

    rows: Rows
    seen: np.ndarray
    unseen: np.ndarray
    host: np.ndarray
    calibrated: Seeded
    own_regime: dict[str, Seeded]  # by line: calibration rows from the line's shapes alone


def calibrations(
    rows: Rows, profile: Profile, table: Mapping[str, Any], candidates: np.ndarray, count: int
) -> Seeded:
    """Calibrate on stratified rows among the candidates, predict the other candidates; once a
    seed."""
    operator = operator_of(rows)
    result = []
    for seed in SEEDS:
        picked = candidates[stratified(operator.features(rows)[candidates], count, seed)]
        held_out = np.setdiff1d(candidates, picked)
        own = calibrate(profile, rows.take(picked), table)
        result.append((held_out, operator.predict(own, rows.take(held_out), table)))
    return tuple(result)


def judge(name: str, folder: Path, count: int = CALIBRATION_ROWS) -> list[Judged]:
    """Run the protocol for one fit."""
    entry = FITS[name]
    groups = load(folder, entry.files)
    shipped = json.loads(entry.path.read_text(encoding="utf-8"))
    judged = []
    for device in sorted({rows.device for rows in groups}):
        table = fit(entry, [rows for rows in groups if rows.device != device], shipped)
        profile = datasheet_only(device)
        for rows in (rows for rows in groups if rows.device == device):
            predict = operator_of(rows).predict
            own_regime = {}
            for line in (
                line for line in LINES if rows.op in line.ops and rows.dtype == line.dtype
            ):
                mask = line.where(rows.columns)
                if not mask.all() and mask.sum() > 2 * count:
                    own_regime[line.title] = calibrations(
                        rows, profile, table, np.flatnonzero(mask), count
                    )
            judged.append(
                Judged(
                    rows=rows,
                    seen=predict(profile, rows, shipped),
                    unseen=predict(profile, rows, table),
                    host=predict(host_known(profile, rows), rows, table),
                    calibrated=calibrations(rows, profile, table, np.arange(len(rows)), count),
                    own_regime=own_regime,
                )
            )
    return judged


# One term off at a time: the constants' values that switch it off, wherever in the table they
# stand.
ABLATIONS: dict[str, dict[str, Any]] = {
    "the model": {},
    "waves cost their share": {"wave_rounding": 0.0},
    "one tile, 128 x 128": {"tiles": [[128, 128]], "tiles_batched": [[128, 128]]},
    "no split of the inner dimension": {"split_s": -1.0},
    "tiles equally efficient": {"tile_overhead": 0.0, "feed_bytes_per_clock_per_sm": 1e6},
    "no epilogue, no prologue": {"epilogue_cycles": 0.0, "prologue_cycles": 0.0},
    "no power limit": {"picojoules_per_flop": 0.0, "picojoules_per_byte": 0.0},
    "no L2: all operands from DRAM": {"l2_capacity": 1e-6},
    "no translation misses": {"walk_price": 0.0},
    "no bands read again": {"read_again": 0.0},
    "no exposed read": {"exposed_read": 0.0},
    "no dispatch beside the kernel": {"host_overlap": 0.0},
}


def without(
    entry: Fit, table: Mapping[str, Any], off: Mapping[str, Any]
) -> tuple[Fit, dict[str, Any]]:
    """The fit and the table with some constants held at given values wherever they stand."""

    def held(value: Any) -> Any:
        return (
            {key: off.get(key, held(each)) for key, each in value.items()}
            if isinstance(value, dict)
            else value
        )

    free = {name: paths for name, paths in entry.free.items() if name.rsplit(".", 1)[-1] not in off}
    prior = {path: value for path, value in entry.prior.items() if path[-1] not in off}
    return replace(entry, free=free, prior=prior), held(table)


def ablation(name: str, folder: Path) -> None:
    """Print the error on devices left out, one term off at a time; the throttled ones do not
    count."""
    entry = FITS[name]
    groups = load(folder, entry.files)
    shipped = json.loads(entry.path.read_text(encoding="utf-8"))
    lines = [line for line in LINES if line.fit == name]
    print(f"{'':34s}" + "".join(f"{line.title[:34]:>36s}" for line in lines))
    for label, off in ABLATIONS.items():
        fewer, start = without(entry, shipped, off)
        found: dict[str, list[float]] = {line.title: [] for line in lines}
        for device in sorted({rows.device for rows in groups} - set(entry.throttled)):
            table = fit(fewer, [rows for rows in groups if rows.device != device], start)
            for rows in (rows for rows in groups if rows.device == device):
                error = absolute_percentage_error(
                    operator_of(rows).predict(datasheet_only(device), rows, table), rows.seconds
                )
                for line in lines:
                    if rows.op in line.ops and rows.dtype == line.dtype:
                        found[line.title].append(error[line.where(rows.columns)].mean())
        print(
            f"{label:34s}" + "".join(f"{np.mean(found[line.title]):36.1f}" for line in lines),
            flush=True,
        )


def errors(line: Line, one: Judged) -> tuple[float, ...]:
    """One device on a line: mean errors (seen, unseen, host known, calibrated, own regime), order
    (unseen, calibrated)."""
    mask = line.where(one.rows.columns)
    measured = one.rows.seconds
    mape = [
        float(absolute_percentage_error(predicted, measured)[mask].mean())
        for predicted in (one.seen, one.unseen, one.host)
    ]
    calibrated, order = [], []
    for held_out, predicted in one.calibrated:
        kept = mask[held_out]
        calibrated.append(
            absolute_percentage_error(predicted[kept], measured[held_out][kept]).mean()
        )
        order.append(100 * order_right(predicted[kept], measured[held_out][kept], 1.2))
    unseen_order = 100 * order_right(one.unseen[mask], measured[mask], 1.2)
    own = [
        absolute_percentage_error(predicted, measured[rows]).mean()
        for rows, predicted in one.own_regime.get(line.title, ())
    ]
    regime = float(np.mean(own)) if own else float("nan")
    return (*mape, float(np.mean(calibrated)), regime, unseen_order, float(np.mean(order)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument("--only", nargs="*", default=list(FITS), choices=list(FITS))
    parser.add_argument("--ablation", action="store_true", help="what each term buys")
    parser.add_argument(
        "--rows", type=int, default=CALIBRATION_ROWS, help="calibration rows a device"
    )
    arguments = parser.parse_args()
    head = (
        "seen",
        "unseen",
        "goal",
        "host known",
        "calibr.",
        "goal",
        "own regime",
        "order unseen",
        "calibr.",
    )
    for name in arguments.only:
        if arguments.ablation:
            ablation(name, arguments.folder)
            continue
        judged = judge(name, arguments.folder, arguments.rows)
        print(f"{name:38s}" + "".join(f"{word:>13s}" for word in head))
        for line in (line for line in LINES if line.fit == name):
            mine = [
                one for one in judged if one.rows.op in line.ops and one.rows.dtype == line.dtype
            ]
            table = {f"  {one.rows.device}": errors(line, one) for one in mine}
            for title, values in {
                line.title: tuple(np.mean(list(table.values()), axis=0)),
                **table,
            }.items():
                goals = [f"{goal:g}" if title == line.title else "" for goal in line.goals]
                cells = ["" if np.isnan(value) else f"{value:.1f}" for value in values[:5]]
                cells[2:2] = goals[:1]
                cells[5:5] = goals[1:]
                print(
                    f"{title:38s}"
                    + "".join(
                        f"{cell:>13s}"
                        for cell in (*cells, *(f"{value:.2f}" for value in values[5:]))
                    )
                )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
