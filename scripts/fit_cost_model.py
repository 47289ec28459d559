"""Fit the cost model's global constants to measured operators and write them where the package
reads them.

    python scripts/fit_cost_model.py ../shared/data/gpu_ops [--kind matmul] [--exclude DEVICE]
    [--dry-run]

One entry of FITS a kind of op. scripts/cost_model_table.py uses the same functions to leave one
device out.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench import hardware
from flurka_bench.cost import matmul
from flurka_bench.cost.fitting import (
    Rows,
    fit_log,
    read_rows,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.words.files import write_atomically

ROWS_PER_DEVICE = 500  # of each file; more change the constants by less than their own uncertainty
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one global fit moves, and where it starts.

    ``prior`` gives, for each path into the table of constants, the value before any row is seen
    (round numbers from datasheets and physics; see docs/cost-model.md). ``free`` gives for each
    parameter the paths it multiplies and its prior's width in log units: one for all families of
    kernels together, and a narrower one for each family's own part, so that a family none of whose
    devices is seen falls back on what the others say. ``own_scale`` (log units) lets each group of
    rows differ as a whole; ``hosts`` says where each op's eager dispatch stands, which is no
    device's: the fit takes every host's own, and the median of all hosts is shipped. ``throttled``
    devices' rows are judged but never fitted.
    """

    files: tuple[str, ...]
    path: Path
    prior: Mapping[tuple[str, ...], float]
    free: Mapping[str, tuple[tuple[tuple[str, ...], ...], float]]
    own_scale: float = 0.0
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    throttled: tuple[str, ...] = ()


FAMILY_WIDTH = 0.35


WIDTHS = {
    "compute_efficiency": 0.15,
    "dram_efficiency": 0.2,
    "tile_overhead": 0.3,
    "wave_rounding": 0.2,
    "exposed_read": 1.0,
    "picojoules_per_flop": 0.15,
    "prologue_cycles": 0.3,
}


def _fit(
    files: tuple[str, ...],
    path: Path,
    unit: str,
    shared: Mapping[str, float],
    families: Mapping[str, Mapping[str, float]],
    **more: Any,
) -> Fit:
    """A fit of ``shared`` constants (``group.name`` -> prior) and of ``families``' own (name ->
    family -> prior)."""
    prior, free = {}, {}
    for where, value in shared.items():
        at = (unit, *where.split("."))
        prior[at] = value
        free[where] = ((at,), 0.5)
    for name, by_family in families.items():
        paths = {family: (unit, "generations", family, name) for family in by_family}
        width = WIDTHS.get(name, 0.5) if unit == "vector" else 0.5
        prior |= {paths[family]: value for family, value in by_family.items()}
        if name == "picojoules_per_flop" and unit == "vector":
            free[f"all.{name}"] = (tuple(paths.values()), width)
        elif len(set(by_family.values())) == 1 and len(by_family) > 1:
            free[f"all.{name}"] = (tuple(paths.values()), width)
            free |= {
                f"{family}.{name}": ((at,), min(width, FAMILY_WIDTH))
                for family, at in paths.items()
            }
        else:  # families that differ by design share nothing
            free |= {f"{family}.{name}": ((at,), 0.5) for family, at in paths.items()}
    return Fit(files=files, path=path, prior=prior, free=free, **more)


_BOTH = {"common.overlap_exponent": 2.0, "common.power_window_s": 3e-4,
         "common.dram_efficiency": 0.85, "common.l2_bytes_per_clock_per_sm": 64.0}  # fmt: skip
MATMUL_TENSOR = _fit(
    ("linear_bf16", "linear_fp16"),
    matmul.CONSTANTS,
    "tensor",
    {**_BOTH, "common.split_s": 2.5e-6, "common.launch_events_s": 2e-6, "generations.early.launch_graph_s": 1.5e-6,
     "generations.late.launch_graph_s": 1.5e-6},
    {
        "compute_efficiency": {"mma": 0.75, "wgmma": 0.8},
        "tile_overhead": {"mma": 0.17, "wgmma": 0.09},
        "feed_bytes_per_clock_per_sm": {"mma": 64.0, "wgmma": 128.0},
        # one tile a block; persistent blocks of many sizes
        "wave_rounding": {"mma": 0.8, "wgmma": 0.2},
        "prologue_cycles": {"mma": 500.0, "wgmma": 1500.0},
        "epilogue_cycles": {"mma": 3000.0, "wgmma": 1500.0},
        "epilogue_exponent": {"mma": 0.5, "wgmma": 0.5},
        "picojoules_per_flop": {"mma": 1.5, "wgmma": 0.8},
        "l2_capacity": {"l2-split": 0.1, "l2-whole": 0.4},  # two halves; whole
    },
)  # fmt: skip
# 0.85 (TDP - 30 W) / peak of each architecture's board with the most power for its peak, as the
# boards are built to sustain: P40, V100 SXM2, RTX 2080 Ti, A100 PCIe, RTX 4090, H100 PCIe, RTX
# 5090. One factor for all of them is fitted.
_SIMT_ENERGY = {
    "pascal": 15.9,
    "volta": 14.6,
    "turing": 13.9,
    "ampere": 9.6,
    "ada": 4.3,
    "hopper": 5.3,
    "blackwell": 5.3,
    "blackwell-rtx": 4.4,
}
_SIMT = ("maxwell", "volta-simt", "ampere-simt")
MATMUL_VECTOR = _fit(
    ("bmm", "linear"),
    matmul.CONSTANTS,
    "vector",
    {**{name: value for name, value in _BOTH.items() if name != "common.dram_efficiency"},
     "common.host_overlap": 0.3,
     "common.power_window_s": 1e-3, "common.epilogue_exponent": 0.5,
     "layouts.linear.split_s": 3e-6},
    {
        "compute_efficiency": dict.fromkeys(_SIMT, 0.9),
        "tile_overhead": dict.fromkeys(_SIMT, 0.1),
        "walk_price": {"maxwell": 1.5, "volta-simt": 0.3, "ampere-simt": 0.3},
        "walk_reach_bytes": dict.fromkeys(_SIMT, 2e8),
        "exposed_read": dict.fromkeys(_SIMT, 0.2),
        "wave_rounding": dict.fromkeys(_SIMT, 0.9),
        "epilogue_cycles": dict.fromkeys(_SIMT, 2000.0),
        "dram_efficiency": dict.fromkeys(_SIMT, 0.75),
        # two halves, each with copies, since Ampere
        "l2_capacity": {"maxwell": 1.0, "volta-simt": 1.0, "ampere-simt": 0.5},
        "picojoules_per_flop": _SIMT_ENERGY,
    },
    own_scale=0.01,
    hosts={op: ("vector", "layouts", layout, "launch_eager_s") for op, layout in (("bmm", "batched"), ("linear", "linear"))},
    throttled=("p4", "t4"),
)  # fmt: skip

FITS: dict[str, Fit] = {"matmul-tensor": MATMUL_TENSOR, "matmul-vector": MATMUL_VECTOR}


def load(folder: Path, files: Iterable[str]) -> list[Rows]:
    """The rows of several operator files, one entry per op, dtype and device."""
    return [rows for name in files for rows in read_rows(folder / f"{name}.csv.gz")]


def datasheet_only(name: str) -> hardware.Profile:
    """The shipped profile without its measured numbers."""
    return hardware.load(name).with_measured({}, {})


def dispatch(rows: Rows) -> float:
    """Seconds that the host takes to dispatch an eager op: what its shortest calls take."""
    return float(np.quantile(rows.seconds, 0.02))


def host_known(profile: hardware.Profile, rows: Rows) -> hardware.Profile:
    """The profile with the host's dispatch of this op as an empty op would show it; unchanged where
    rows hold none."""
    operator = operator_of(rows)
    if operator.launch_of(rows) != "launch_eager_s":
        return profile
    return profile.with_measured(
        {".".join((*operator.group(rows), "launch_eager_s")): dispatch(rows)}, {}
    )


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


def at_prior(entry: Fit, table: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the table in which nothing that the fit may move remembers any row."""
    table = copy.deepcopy(dict(table))
    for path, value in entry.prior.items():
        lookup(table, path[:-1])[path[-1]] = value
    return table


def moved(entry: Fit, table: Mapping[str, Any], shift: np.ndarray) -> dict[str, Any]:
    """A copy of the table at the prior, with every free parameter's paths multiplied by exp(its
    shift)."""
    table = copy.deepcopy(dict(table))
    for (paths, _), by in zip(entry.free.values(), shift):
        for path in paths:
            lookup(table, path[:-1])[path[-1]] *= float(np.exp(by))
    return table


def fit(
    entry: Fit,
    groups: list[Rows],
    table: Mapping[str, Any],
    *,
    max_steps: int = 30,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The table with its free constants fitted to the groups, from the prior.

    Where the entry allows it, each group has a scale of its own in the fit, which is not shipped: a
    device that is slow as a whole shall not bend what says how time goes with the shape.
    """
    picked = [
        sample(rows, ROWS_PER_DEVICE, SEED) for rows in groups if rows.device not in entry.throttled
    ]
    profiles = [host_known(datasheet_only(rows.device), rows) for rows in picked]
    start = at_prior(entry, table)
    for op, path in entry.hosts.items():
        lookup(start, path[:-1])[path[-1]] = float(
            np.median([dispatch(rows) for rows in groups if rows.op == op])
        )
    widths = [width for _, width in entry.free.values()]
    scales = len(picked) if entry.own_scale else 0

    def residual(shift: np.ndarray) -> np.ndarray:
        trial = moved(entry, start, shift)
        own = shift[len(widths) :] if scales else np.zeros(len(picked))
        return np.concatenate(
            [
                np.log(operator_of(rows).predict(profile, rows, trial) / rows.seconds) + scale
                for rows, profile, scale in zip(picked, profiles, own)
            ]
        )

    shift, covariance = fit_log(
        residual, np.array([*widths, *(entry.own_scale,) * scales]), max_steps=max_steps
    )
    result = moved(entry, start, shift)
    for path, before in entry.prior.items():
        say(f"{'.'.join(path):60s} {before:10.4g} -> {lookup(result, path):10.4g}")
    for rows, scale in zip(picked, shift[len(widths) :]):
        say(f"  {rows.device:18s} {rows.op:8s} {rows.dtype:9s} own scale {scale:+.3f}")
    sd = dict(zip(entry.free, 100 * np.sqrt(np.diag(covariance))))
    say("posterior sd, %: " + ", ".join(f"{name} {value:.1f}" for name, value in sd.items()))
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument("--fit", nargs="*", default=list(FITS), choices=list(FITS))
    parser.add_argument("--exclude", nargs="*", default=[], help="devices to leave out")
    parser.add_argument("--dry-run", action="store_true", help="print, write nothing")
    arguments = parser.parse_args()
    for name in arguments.fit:
        entry = FITS[name]
        groups = [
            rows
            for rows in load(arguments.folder, entry.files)
            if rows.device not in arguments.exclude
        ]
        table = json.loads(entry.path.read_text(encoding="utf-8"))
        table = fit(entry, groups, table, say=print)
        if not arguments.dry_run:
            write_atomically(entry.path, json.dumps(rounded(table), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
