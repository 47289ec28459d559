"""Fit and judge the models of streaming kernels, softmax and fused attention; write constants and
bands.

    python scripts/kernel_models.py fit ../shared/data/gpu_ops [--kind softmax] [--dry-run]
    python scripts/kernel_models.py table ../shared/data/gpu_ops [--kind softmax]
    python scripts/kernel_models.py bands ../shared/data/gpu_ops

``fit`` finds the shipped constants from all devices. ``table`` judges: *unseen* leaves one device
out of the fit and predicts its rows from the datasheet; *calibrated* moves the constants by 20 of
its rows (stratified by shape; mean over SEEDS) and predicts the others. The float32 files hold the
host's dispatch, which no datasheet of a device gives: ``host known`` takes it as an input, the
median of the device's rows under HOST_BYTES (which are dispatch and nothing else); ``unseen``
beside it takes the other hosts' median. ``bands`` writes the conformal half-widths and prints how
they cover rows that did not set them: the other half of the rows, and each device by the bands of
the others.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.cost import (
    terms,
    uncertainty,
)
from flurka_bench.cost.calibration import calibrate
from flurka_bench.cost.elementwise import DISPATCH
from flurka_bench.cost.fitting import (
    Rows,
    absolute_percentage_error,
    fit_log,
    order_right,
    read_rows,
    stratified,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.hardware import load
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.files import write_atomically

SEEDS = (0, 1, 2, 3, 4)
CALIBRATION_ROWS = 20
ROWS_PER_GROUP = 400
HOST_BYTES = 3e5

# What each fit starts from, and how far in log units each constant may move: round numbers from
# physics and published kernels, so that no left-out device has a say in them. What physics pins
# down moves least. The L2 bandwidth of streaming kernels stays at half of the A100 whitepaper's
# 5,120 bytes a clock over 108 SMs: only one device of the data shows it.
FREE: dict[str, dict[str, tuple[float, float]]] = {
    "elementwise": {
        "dram_efficiency": (0.9, 0.1),
        "l2_low": (0.5, 0.5),
        "l2_high": (1.0, 0.3),
        "host_overlap": (0.5, 0.3),
    },
    "softmax": {
        "dram_efficiency": (0.9, 0.05),
        "block_lane_ops_per_row": (300, 0.5),
        "block_lane_ops_per_element": (20, 0.4),
        "block_lane_ops_per_vector": (80, 0.4),
        "warp_lane_ops_per_element": (8, 0.5),
        "miss_low": (0.5, 0.4),
        "miss_width": (0.5, 0.5),
        "l2_bytes_per_clock_per_sm": (47, 0.3),
        "l2_low": (0.5, 0.3),
        "l2_high": (1.0, 0.3),
        "overlap_exponent": (2.0, 0.3),
        "lockstep_waves": (2.0, 0.5),
        "latency_s": (2e-6, 0.4),
        "host_overlap": (0.5, 0.3),
    },
    "attention": {
        "matmul_efficiency": (0.95, 0.02),
        "exposed_softmax": (0.4, 0.3),
        "rescale_clocks": (0.03, 0.5),
        "tile_s": (4e-6, 0.5),
        "alone_slowdown": (0.1, 0.5),
        "combine_s": (3e-6, 0.5),
        "combine_traffic": (1.0, 0.5),
        "sustained_slowdown": (0.05, 0.7),
        "floor_s": (3e-6, 0.3),
    },
}
PRIOR_WEIGHT = 3.0  # rows of one device are no independent draws
FILES = {
    "elementwise": ("add", "mul", "div", "addu", "mulu", "relu", "tanh", "gelu"),
    "softmax": ("softmax",),
    "attention": ("attention_bf16",),
}
MATMULS = (
    "matmul-tensor",
    "matmul-vector",
)  # fitted by fit_cost_model.py; their bands are made here with the others
GOALS = {"elementwise": (5, 1.5), "softmax": (12, 4), "attention": (12, 8)}
WHERE: dict[str, Callable[[Rows], np.ndarray]] = {
    "attention": lambda rows: rows.columns["seq_len"] >= 512,
}


def groups(folder: Path, kind: str) -> list[Rows]:
    """The rows of a kind, one entry per op and device."""
    return [rows for name in FILES[kind] for rows in read_rows(folder / f"{name}.csv.gz")]


def fitted(kind: str, data: list[Rows]) -> list[Rows]:
    """Only the rows that a kind is fitted to and that the table judges."""
    return [rows.take(WHERE[kind](rows)) if kind in WHERE else rows for rows in data]


def host_known(profile: Profile, rows: Rows) -> Profile:
    """The profile with the host's dispatch of this op, as timing an empty op on that host would
    give it."""
    if rows.op == "attention":
        return profile
    small = rows.columns["B"] * rows.columns["H"] * 8 < HOST_BYTES
    own = float(np.median(rows.seconds[small]))
    return profile.with_measured(
        {**profile.measured, ".".join((*operator_of(rows).group(rows), "launch_eager_s")): own}, {}
    )


def bare(name: str) -> Profile:
    """The shipped profile without anything measured."""
    return load(name).with_measured({}, {})


def fit(
    kind: str,
    data: list[Rows],
    table: Mapping[str, Any],
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The table with this kind's free constants fitted; every op and device weighs the same."""
    picked = []
    for rows in fitted(kind, data):
        index = np.random.default_rng(0).permutation(len(rows))[:ROWS_PER_GROUP]
        picked.append((host_known(bare(rows.device), rows), rows.take(np.sort(index))))
    names = list(FREE[kind])

    def moved(shift: np.ndarray) -> dict[str, Any]:
        trial = copy.deepcopy(dict(table))
        for name, by in zip(names, shift):
            trial[kind][name] = float(FREE[kind][name][0] * np.exp(by))
        if kind == "attention":  # more than the peak is no efficiency
            trial[kind]["matmul_efficiency"] = min(trial[kind]["matmul_efficiency"], 1.0)
        return trial

    def residual(shift: np.ndarray) -> np.ndarray:
        trial = moved(shift)
        return np.concatenate(
            [
                np.log(operator_of(rows).predict(profile, rows, trial) / rows.seconds)
                for profile, rows in picked
            ]
        )

    width = np.array([sd for _, sd in FREE[kind].values()]) / PRIOR_WEIGHT
    shift, covariance = fit_log(residual, width)
    result = moved(shift)
    if kind != "attention":
        launches = [
            profile.measured[".".join((*operator_of(rows).group(rows), "launch_eager_s"))]
            / DISPATCH.get(rows.op, 1.0)
            for profile, rows in picked
        ]
        result[kind]["launch_eager_s"] = float(np.median(launches))
    for name, sd in zip(names, np.sqrt(np.diag(covariance))):
        say(
            f"{kind}.{name:32s} {table[kind][name]:10.4g} -> {result[kind][name]:10.4g}  (± {100 * sd:.1f} %)"
        )
    return result


@dataclass(frozen=True, kw_only=True)
class Judged:
    """log(predicted / measured) of one op on one device it was not fitted on; calibrated: seed ->
    (held-out index, residuals)."""

    rows: Rows
    unseen: np.ndarray
    host: np.ndarray
    calibrated: tuple[tuple[np.ndarray, np.ndarray], ...]


def judge(
    kind: str, folder: Path, table: Mapping[str, Any], *, every_row: bool = False
) -> list[Judged]:
    """The protocol of the table for one kind; with ``every_row`` it predicts the rows too that are
    not fitted."""
    data = groups(folder, kind) if every_row else fitted(kind, groups(folder, kind))
    result = []
    for device in sorted({rows.device for rows in data}):
        without = fit(kind, [rows for rows in data if rows.device != device], table)
        for rows in (rows for rows in data if rows.device == device):
            operator, profile = operator_of(rows), bare(device)

            def residual(
                own: Profile, picked: Rows, operator=operator, without=without
            ) -> np.ndarray:
                return np.log(operator.predict(own, picked, without) / picked.seconds)

            calibrated = []
            for seed in SEEDS:
                chosen = stratified(operator.features(rows), CALIBRATION_ROWS, seed)
                rest = np.setdiff1d(np.arange(len(rows)), chosen)
                calibrated.append(
                    (
                        rest,
                        residual(calibrate(profile, rows.take(chosen), without), rows.take(rest)),
                    )
                )
            result.append(
                Judged(
                    rows=rows,
                    unseen=residual(profile, rows),
                    host=residual(host_known(profile, rows), rows),
                    calibrated=tuple(calibrated),
                )
            )
    return result


def mape(residual: np.ndarray) -> float:
    """Mean absolute percentage error of log(predicted / measured)."""
    return float(absolute_percentage_error(np.exp(residual), 1.0).mean())


def _order(one: Judged, residual: np.ndarray, index: Any = slice(None)) -> float:
    measured = one.rows.seconds[index]
    return 100 * order_right(measured * np.exp(residual), measured, 1.2)


def show(kind: str, judged: list[Judged]) -> None:
    """Print one block of the table: each device, then the mean over devices with the goals."""
    print(
        f"{kind:24s} {'unseen':>7s} {'host known':>10s} {'goal':>5s} {'calibrated':>10s} {'goal':>5s}"
        f" {'order':>7s} {'calibr.':>8s}"
    )
    lines = {}
    for device in sorted({one.rows.device for one in judged}):
        own = [one for one in judged if one.rows.device == device]
        lines[device] = np.mean(
            [
                (mape(one.unseen), mape(one.host), np.mean([mape(r) for _, r in one.calibrated]), _order(one, one.host),
                 np.mean([_order(one, r, index) for index, r in one.calibrated]))
                for one in own
            ],
            axis=0,
        )  # fmt: skip
    for name, (unseen, host, calibrated, order, order_calibrated) in {
        **lines,
        "mean": np.mean(list(lines.values()), axis=0),
    }.items():
        goals = GOALS[kind] if name == "mean" else ("", "")
        print(
            f"  {name:22s} {unseen:7.2f} {host:10.2f} {goals[0]:>5} {calibrated:10.2f} {goals[1]:>5}"
            f" {order:7.2f} {order_calibrated:8.2f}",
            flush=True,
        )


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """log(predicted / measured) of rows that were not fitted: by device (left out of the fit), and
    after calibration."""

    kernel_s: np.ndarray
    device: np.ndarray
    unseen: np.ndarray
    calibrated: tuple[
        tuple[np.ndarray, np.ndarray], ...
    ]  # (index into the arrays above, residuals)


def residuals(kind: str, folder: Path) -> Residuals:
    """The protocol's residuals of one entry of the bands, pooled over ops and devices."""
    if kind in FREE:
        table = json.loads(terms.CONSTANTS.read_text(encoding="utf-8"))
        parts = [
            (one.rows, one.host, one.calibrated)
            for one in judge(kind, folder, table, every_row=True)
        ]
    else:
        from cost_model_table import judge as judge_matmul

        parts = [
            (
                one.rows,
                np.log(one.unseen / one.rows.seconds),
                tuple(
                    (index, np.log(predicted / one.rows.seconds[index]))
                    for index, predicted in one.calibrated
                ),
            )
            for one in judge_matmul(kind, folder)
        ]
    kernel, device, unseen, calibrated, start = [], [], [], [], 0
    for rows, left_out, seeds in parts:
        dispatch = np.quantile(rows.seconds, 0.02) if rows.dtype == "float32" else 0.0
        kernel.append(rows.seconds - dispatch)
        device += [rows.device] * len(rows)
        unseen.append(left_out)
        calibrated += [(index + start, each) for index, each in seeds]
        start += len(rows)
    return Residuals(
        kernel_s=np.concatenate(kernel),
        device=np.array(device),
        unseen=np.concatenate(unseen),
        calibrated=tuple(calibrated),
    )


def half_widths(r: Residuals, keep: np.ndarray) -> dict[str, dict[str, float]]:
    """The conformal half-widths by regime, from the rows of a mask."""
    result = {}
    for long, name in ((False, "small"), (True, "large")):
        mask = keep & (uncertainty.regime(r.kernel_s) == long)
        centred = r.unseen.copy()
        for device in np.unique(r.device[mask]):
            own = mask & (r.device == device)
            centred[own] -= np.median(centred[own])
        calibrated = [each[mask[index]] for index, each in r.calibrated]
        result[name] = {
            "datasheet": uncertainty.conformal_half_width(r.unseen[mask]),
            "shape": uncertainty.conformal_half_width(centred[mask]),
            "calibrated": uncertainty.conformal_half_width(np.concatenate(calibrated)),
        }
    return result


def coverage(
    r: Residuals, widths: Mapping[str, Mapping[str, float]], keep: np.ndarray
) -> tuple[float, float]:
    """Shares of the rows of a mask inside the bands: from the datasheet, and calibrated."""
    long = uncertainty.regime(r.kernel_s)

    def width(name: str) -> np.ndarray:
        return np.where(long, widths["large"][name], widths["small"][name])

    calibrated = [
        (np.abs(each) <= width("calibrated")[index])[keep[index]] for index, each in r.calibrated
    ]
    return float(np.mean((np.abs(r.unseen) <= width("datasheet"))[keep])), float(
        np.mean(np.concatenate(calibrated))
    )


def show_bands(kind: str, r: Residuals) -> dict[str, dict[str, float]]:
    """Print how often bands cover rows that did not set them; returns the bands from all rows."""
    halves = np.random.default_rng(0).random(len(r.unseen)) < 0.5
    shares = coverage(r, half_widths(r, halves), ~halves)
    print(
        f"{kind}: bands from one half of the rows cover {100 * shares[0]:.1f} % of the other (calibrated {100 * shares[1]:.1f} %)"
    )
    for device in np.unique(r.device):
        own = r.device == device
        shares = coverage(r, half_widths(r, ~own), own)
        print(
            f"  {device:16s} by the other devices' bands: {100 * shares[0]:5.1f} % (calibrated {100 * shares[1]:5.1f} %)",
            flush=True,
        )
    return half_widths(r, np.ones(len(r.unseen), bool))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("fit", "table", "bands"))
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument(
        "--kind",
        nargs="*",
        default=list(FREE),
        choices=[*FREE, *MATMULS],
        help="matmuls for bands alone",
    )
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    table = json.loads(terms.CONSTANTS.read_text(encoding="utf-8"))
    for kind in arguments.kind:
        if arguments.what == "fit":
            table = fit(kind, groups(arguments.folder, kind), table, say=print)
            continue
        if arguments.what == "table":
            show(kind, judge(kind, arguments.folder, table))
            continue
        bands = json.loads(uncertainty.BANDS.read_text(encoding="utf-8"))
        bands[kind] = {
            regime: {name: float(f"{value:.3g}") for name, value in widths.items()}
            for regime, widths in show_bands(kind, residuals(kind, arguments.folder)).items()
        }
        if not arguments.dry_run:
            write_atomically(uncertainty.BANDS, json.dumps(bands, indent=1) + "\n")
    if arguments.what == "fit" and not arguments.dry_run:
        rounded = {
            kind: {name: float(f"{value:.4g}") for name, value in values.items()}
            for kind, values in table.items()
        }
        write_atomically(terms.CONSTANTS, json.dumps(rounded, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
