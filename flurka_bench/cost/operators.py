"""Measured operator rows as the cost model sees them: for each op of a file, its prediction and what calibration may move.

One entry a kind. ``validate``, ``calibrate --from`` and the scripts that fit and judge the model walk this registry, so a
new kind of op becomes fittable, checkable and calibratable by one entry here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flurka_bench.cost.fitting import Rows
from flurka_bench.cost.matmul import constants_of, matmul_terms
from flurka_bench.errors import RequestError, unknown
from flurka_bench.hardware.profile import Profile
from flurka_bench.workload import DTYPE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """How one kind of op in measured files is predicted and calibrated.

    ``predict(profile, rows, table)`` gives seconds (n,), in double precision; ``table`` replaces the shipped constants.
    ``constants(profile, rows, table)`` gives the values that calibration starts from, by name; ``prior_sd`` how far in log
    units each may move, learnt from the devices whose rows ship. What is found is stored in the profile's ``measured`` as
    ``prefix(rows) + name``; ``launch_of(rows)`` names the launch among them. ``features`` (n, f) are logs that say where in the space of shapes a row lies.
    """

    kind: str
    ops: tuple[str, ...]
    columns: tuple[str, ...]
    predict: Callable[[Profile, Rows, Mapping[str, Any] | None], np.ndarray]
    constants: Callable[[Profile, Rows, Mapping[str, Any] | None], Mapping[str, float]]
    prior_sd: Mapping[str, float]
    prefix: Callable[[Rows], str]
    launch_of: Callable[[Rows], str]
    features: Callable[[Rows], np.ndarray]


def _matmul_shape(rows: Rows) -> tuple[np.ndarray, ...]:
    """batch, rows, cols, inner of the files' B M N K, where N is the contracted dimension."""
    return tuple(rows.columns[name] for name in "BMKN")


def _matmul_layout(rows: Rows) -> str:
    return "batched" if rows.op == "bmm" else "linear"


# How the files were timed, by dtype: with the host's dispatch and the same operands again and again (float32), between
# two device events (float16), or as six calls with their own operands in a replayed graph (bfloat16).
MATMUL_PROTOCOL = {"float32": ("eager", 1), "float64": ("eager", 1), "float16": ("events", 1), "bfloat16": ("graph", 6)}


def _predict_matmul(profile: Profile, rows: Rows, table: Mapping[str, Any] | None) -> np.ndarray:
    launch, operand_sets = MATMUL_PROTOCOL[rows.dtype]
    batch, m, cols, inner = _matmul_shape(rows)
    touched = operand_sets * DTYPE_BYTES[rows.dtype] * batch * (m * inner + inner * cols + m * cols)
    constants = constants_of(profile, rows.dtype, _matmul_layout(rows), table)
    return matmul_terms(
        profile, rows.dtype, batch, m, cols, inner, layout=_matmul_layout(rows), launch=launch,
        working_set_bytes=touched, constants=constants, real=np.float64,
    ).seconds  # fmt: skip


def _matmul_constants(profile: Profile, rows: Rows, table: Mapping[str, Any] | None) -> Mapping[str, float]:
    constants = constants_of(profile, rows.dtype, _matmul_layout(rows), table)
    launch = f"launch_{MATMUL_PROTOCOL[rows.dtype][0]}_s"
    return {
        name: getattr(constants, name) for name in (*MATMUL.prior_sd, launch) if name.startswith("launch") == (name == launch)
    }


MATMUL = Operator(
    kind="matmul",
    ops=("linear", "bmm"),
    columns=("B", "M", "N", "K"),
    predict=_predict_matmul,
    constants=_matmul_constants,
    prior_sd={
        "compute_efficiency": 0.1,
        "tile_overhead": 0.2,
        "wave_rounding": 0.3,
        "prologue_cycles": 0.3,
        "epilogue_cycles": 0.3,
        "dram_efficiency": 0.15,
        "picojoules_per_flop": 0.3,
        "launch_eager_s": 0.3,
        "launch_graph_s": 0.2,
        "launch_events_s": 0.4,
    },
    launch_of=lambda rows: f"launch_{MATMUL_PROTOCOL[rows.dtype][0]}_s",
    prefix=lambda rows: f"matmul.{rows.dtype}.{_matmul_layout(rows)}.",
    features=lambda rows: np.log(np.stack(_matmul_shape(rows), axis=1)),
)

OPERATORS: tuple[Operator, ...] = (MATMUL,)


def operator_of(rows: Rows) -> Operator:
    """The registry's entry for measured rows.

    Raises:
        RequestError: no entry for the op, a missing shape column, or a dtype that the project does not know.
    """
    for operator in OPERATORS:
        if rows.op in operator.ops:
            missing = [name for name in operator.columns if name not in rows.columns]
            if missing:
                raise RequestError(
                    f"rows of op {rows.op!r} need the columns {', '.join(operator.columns)}; missing: {', '.join(missing)}"
                )
            if rows.dtype not in DTYPE_BYTES:
                raise unknown("dtype", rows.dtype, DTYPE_BYTES)
            return operator
    raise unknown("op", rows.op, [op for operator in OPERATORS for op in operator.ops])
