"""Fit the cost model's global constants to measured operators and write them where the package reads them.

    python scripts/fit_cost_model.py ../shared/data/gpu_ops [--kind matmul] [--exclude DEVICE] [--dry-run]

One entry of FITS a kind of op. scripts/cost_model_table.py uses the same functions to leave one device out.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.cost import matmul
from flurka_bench.cost.fitting import Rows, fit_log, read_rows
from flurka_bench.cost.operators import operator_of
from flurka_bench.hardware import profile as hardware

ROWS_PER_DEVICE = 500  # of each file; more change the constants by less than their own uncertainty
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one global fit moves: files, the table of constants, paths into it with the prior's width in log units."""

    name: str
    files: tuple[str, ...]
    path: Path
    free: Mapping[tuple[str, ...], float]


def _free(unit: str, groups: Mapping[str, Iterable[str]], width: float = 0.5) -> dict[tuple[str, ...], float]:
    return {(unit, *group.split("."), name): width for group, names in groups.items() for name in names}


_FAMILY = (
    "compute_efficiency",
    "feed_bytes_per_clock_per_sm",
    "feed_exponent",
    "wave_rounding",
    "prologue_cycles",
    "epilogue_cycles",
    "epilogue_exponent",
    "picojoules_per_flop",
)
_COMMON = (
    "split_s",
    "l2_capacity",
    "reread",
    "dram_efficiency",
    "l2_bytes_per_clock_per_sm",
    "overlap_exponent",
    "power_window_s",
)
_TENSOR = {
    "common": (*_COMMON, "launch_events_s"),
    "generations.mma": _FAMILY,
    "generations.wgmma": _FAMILY,
    "generations.early": ("launch_graph_s",),
    "generations.late": ("launch_graph_s",),
}

FITS: dict[str, Fit] = {
    "matmul-tensor": Fit(
        name="matmul-tensor", files=("linear_bf16", "linear_fp16"), path=matmul.CONSTANTS, free=_free("tensor", _TENSOR)
    ),
}


def load(folder: Path, files: Iterable[str]) -> list[Rows]:
    """The rows of several operator files, one entry per op, dtype and device."""
    return [rows for name in files for rows in read_rows(folder / f"{name}.csv.gz")]


def datasheet_only(name: str) -> hardware.Profile:
    """The shipped profile without its measured numbers."""
    return hardware.load(name).with_measured({}, {})


def sample(rows: Rows, count: int, seed: int) -> Rows:
    """At most ``count`` rows, drawn without regard to their times."""
    if len(rows) <= count:
        return rows
    return rows.take(np.sort(np.random.default_rng(seed).choice(len(rows), count, replace=False)))


def lookup(table: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of nested tables."""
    for key in path:
        table = table[key]
    return table


def moved(table: Mapping[str, Any], paths: Iterable[tuple[str, ...]], shift: Iterable[float]) -> dict[str, Any]:
    """A copy of the table with the values at some paths multiplied by exp(shift)."""
    table = copy.deepcopy(dict(table))
    for path, by in zip(paths, shift):
        parent = lookup(table, path[:-1])
        parent[path[-1]] = float(parent[path[-1]] * np.exp(by))
    return table


def fit(
    fit_: Fit, groups: list[Rows], table: Mapping[str, Any], *, max_steps: int = 30, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """The table with its free constants fitted to the groups; every device and op weighs the same."""
    picked = [sample(rows, ROWS_PER_DEVICE, SEED) for rows in groups]
    profiles = {rows.device: datasheet_only(rows.device) for rows in picked}
    paths = list(fit_.free)

    def residual(shift: np.ndarray) -> np.ndarray:
        trial = moved(table, paths, shift)
        return np.concatenate(
            [np.log(operator_of(rows).predict(profiles[rows.device], rows, trial) / rows.seconds) for rows in picked]
        )

    shift, covariance = fit_log(residual, np.array(list(fit_.free.values())), max_steps=max_steps)
    result = moved(table, paths, shift)
    for path, sd in zip(paths, np.sqrt(np.diag(covariance))):
        say(f"{'.'.join(path):62s} {lookup(table, path):12.4g} -> {lookup(result, path):12.4g}  (± {100 * sd:.1f} %)")
    return result


def rounded(value: Any) -> Any:
    """Four significant digits: what the fit can tell."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, float):
        value = float(f"{value:.4g}")
        return int(value) if value.is_integer() and abs(value) < 1e6 else value
    return value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument("--fit", nargs="*", default=list(FITS), choices=list(FITS))
    parser.add_argument("--exclude", nargs="*", default=[], help="devices to leave out")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    for name in arguments.fit:
        entry = FITS[name]
        groups = [rows for rows in load(arguments.folder, entry.files) if rows.device not in arguments.exclude]
        table = json.loads(entry.path.read_text(encoding="utf-8"))
        table = fit(entry, groups, table, say=print)
        if not arguments.dry_run:
            entry.path.write_text(json.dumps(rounded(table), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
