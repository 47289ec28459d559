"""Measured operator rows as the cost model sees them: for each op of a file, its prediction and
what calibration may move.

One entry a kind. ``validate``, ``calibrate --from`` and the scripts that fit and judge the model
walk this registry, so a new kind of op becomes fittable, checkable and calibratable by one entry
here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flurka_bench.cost.attention import (
    attention_constants,
    attention_terms,
)
from flurka_bench.cost.elementwise import (
    elementwise_constants,
    elementwise_terms,
)
from flurka_bench.cost.fitting import (
    NOISE,
    Rows,
)
from flurka_bench.cost.matmul import (
    constants_of,
    matmul_terms,
)
from flurka_bench.cost.softmax import (
    softmax_constants,
    softmax_terms,
)
from flurka_bench.cost.terms import missed_share
from flurka_bench.hardware.profile import Profile
from flurka_bench.hardware.rows import (
    ELEMENTWISE_OPS,
    PROTOCOL,
    SHAPES,
    STREAMING,
)
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.sizes import DTYPE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """How one kind of op in measured files is predicted and calibrated.

    ``predict(profile, rows, table)`` gives seconds (n,), in double precision; ``table`` replaces
    the shipped constants. ``constants(profile, rows, table)`` gives the values that calibration
    starts from, by name; ``prior_sd`` how far in log units each may move, learnt from the devices
    whose rows ship. What is found is stored in the profile's ``measured`` as the group
    ``group(rows)``; ``launch_of(rows)`` names the launch among them. ``features`` (n, f) are logs that
    say
    where in the space of shapes a row lies; ``noise`` the log-residuals' scale on one device.
    """

    kind: str
    ops: tuple[str, ...]
    columns: tuple[str, ...]
    predict: Callable[[Profile, Rows, Mapping[str, Any] | None], np.ndarray]
    constants: Callable[[Profile, Rows, Mapping[str, Any] | None], Mapping[str, float]]
    prior_sd: Mapping[str, float]
    group: Callable[[Rows], tuple[str, ...]]
    features: Callable[[Rows], np.ndarray]
    noise: float = NOISE
    has_residual: bool = False  # whether ``fitting.Residual`` takes what the constants leave
    launch_of: Callable[[Rows], str] = lambda rows: "launch_eager_s"


def _matmul_shape(rows: Rows) -> tuple[np.ndarray, ...]:
    """batch, rows, cols, inner of the files' B M N K, where N is the contracted dimension."""
    return tuple(rows.columns[name] for name in "BMKN")


def _matmul_layout(rows: Rows) -> str:
    return "batched" if rows.op == "bmm" else "linear"


def _predict_matmul(profile: Profile, rows: Rows, table: Mapping[str, Any] | None) -> np.ndarray:
    launch, operand_sets = PROTOCOL[rows.dtype]
    batch, m, cols, inner = _matmul_shape(rows)
    touched = operand_sets * DTYPE_BYTES[rows.dtype] * batch * (m * inner + inner * cols + m * cols)
    constants = constants_of(profile, rows.dtype, _matmul_layout(rows), table)
    return matmul_terms(
        profile,
        rows.dtype,
        batch,
        m,
        cols,
        inner,
        layout=_matmul_layout(rows),
        launch=launch,
        l2_share=1
        - missed_share(touched, profile.l2_bytes * constants.l2_capacity, constants.l2_sharpness),
        constants=constants,
        real=np.float64,
    ).seconds


def _matmul_constants(
    profile: Profile, rows: Rows, table: Mapping[str, Any] | None
) -> Mapping[str, float]:
    constants = constants_of(profile, rows.dtype, _matmul_layout(rows), table)
    launch = f"launch_{PROTOCOL[rows.dtype][0]}_s"
    return {
        name: getattr(constants, name)
        for name in (*MATMUL.prior_sd, launch)
        if name.startswith("launch") == (name == launch)
    }


MATMUL: Operator = Operator(
    kind="matmul",
    ops=("linear", "bmm"),
    columns=SHAPES["matmul"],
    predict=_predict_matmul,
    constants=_matmul_constants,
    prior_sd={
        "compute_efficiency": 0.1,
        "tile_overhead": 0.5,
        "wave_rounding": 0.15,
        "prologue_cycles": 0.15,
        "epilogue_cycles": 0.2,
        "split_s": 0.5,
        "dram_efficiency": 0.08,
        "l2_capacity": 0.3,
        "read_again": 0.5,
        "exposed_read": 0.7,
        "walk_price": 0.5,
        "walk_reach_bytes": 0.5,
        "picojoules_per_flop": 0.15,
        "launch_eager_s": 0.4,
        "launch_graph_s": 0.15,
        "launch_events_s": 0.2,
    },
    has_residual=True,
    launch_of=lambda rows: f"launch_{PROTOCOL[rows.dtype][0]}_s",
    group=lambda rows: ("matmul", rows.dtype, _matmul_layout(rows)),
    features=lambda rows: np.log(np.stack(_matmul_shape(rows), axis=1)),
)


def _predict_elementwise(
    profile: Profile, rows: Rows, table: Mapping[str, Any] | None
) -> np.ndarray:
    operands = len(STREAMING[rows.op].reads) + 1
    moved = operands * DTYPE_BYTES[rows.dtype] * rows.columns["B"] * rows.columns["H"]
    constants = elementwise_constants(profile, rows.op, table)
    return elementwise_terms(profile, moved, constants=constants, real=np.float64).seconds


def _predict_softmax(profile: Profile, rows: Rows, table: Mapping[str, Any] | None) -> np.ndarray:
    constants = softmax_constants(profile, table)
    return softmax_terms(
        profile,
        rows.columns["B"],
        rows.columns["H"],
        itemsize=DTYPE_BYTES[rows.dtype],
        constants=constants,
        real=np.float64,
    ).seconds


def _predict_attention(profile: Profile, rows: Rows, table: Mapping[str, Any] | None) -> np.ndarray:
    heads, length = rows.columns["batch"] * rows.columns["num_heads"], rows.columns["seq_len"]
    constants = attention_constants(profile, rows.dtype, table)
    return attention_terms(
        profile,
        rows.dtype,
        heads,
        length,
        length,
        rows.columns["head_dim"],
        constants=constants,
        real=np.float64,
    ).seconds


def _logs(*names: str) -> Callable[[Rows], np.ndarray]:
    return lambda rows: np.log(np.stack([rows.columns[name] for name in names], axis=1))


def _named(constants: Any, names: Mapping[str, float]) -> dict[str, float]:
    return {name: getattr(constants, name) for name in names}


ELEMENTWISE: Operator = Operator(
    kind="elementwise",
    ops=ELEMENTWISE_OPS,
    columns=SHAPES["rows"],
    predict=_predict_elementwise,
    constants=lambda profile, rows, table: _named(
        elementwise_constants(profile, rows.op, table), ELEMENTWISE.prior_sd
    ),
    prior_sd={
        "dram_efficiency": 0.1,
        "l2_bytes_per_clock_per_sm": 0.3,
        "l2_low": 0.15,
        "l2_high": 0.15,
        "launch_eager_s": 0.3,
        "host_overlap": 0.15,
    },
    group=lambda rows: ("elementwise", rows.op),
    features=_logs(*SHAPES["rows"]),
    noise=0.015,
)

SOFTMAX: Operator = Operator(
    kind="softmax",
    ops=("softmax",),
    columns=SHAPES["rows"],
    predict=_predict_softmax,
    constants=lambda profile, rows, table: _named(
        softmax_constants(profile, table), SOFTMAX.prior_sd
    ),
    prior_sd={
        "dram_efficiency": 0.1,
        "block_lane_ops_per_element": 0.3,
        "block_lane_ops_per_vector": 0.3,
        "warp_lane_ops_per_element": 0.4,
        "miss_low": 0.3,
        "miss_width": 0.4,
        "l2_bytes_per_clock_per_sm": 0.3,
        "l2_low": 0.2,
        "l2_high": 0.2,
        "overlap_exponent": 0.2,
        "lockstep_waves": 0.5,
        "latency_s": 0.4,
        "launch_eager_s": 0.3,
        "host_overlap": 0.2,
    },
    group=lambda rows: ("softmax",),
    features=_logs(*SHAPES["rows"]),
    noise=0.03,
)

ATTENTION: Operator = Operator(
    kind="attention",
    ops=("attention",),
    columns=SHAPES["attention"],
    predict=_predict_attention,
    constants=lambda profile, rows, table: _named(
        attention_constants(profile, rows.dtype, table), ATTENTION.prior_sd
    ),
    prior_sd={
        "matmul_efficiency": 0.1,
        "exposed_softmax": 0.2,
        "rescale_clocks": 0.5,
        "tile_s": 0.4,
        "alone_slowdown": 0.5,
        "combine_s": 0.5,
        "combine_traffic": 0.4,
        "sustained_slowdown": 0.7,
        "floor_s": 0.2,
    },
    group=lambda rows: ("attention", rows.dtype),
    features=_logs(*SHAPES["attention"]),
    noise=0.04,
)

OPERATORS: tuple[Operator, ...] = (MATMUL, ELEMENTWISE, SOFTMAX, ATTENTION)


def operator_of(rows: Rows) -> Operator:
    """The registry's entry for measured rows.

    Raises:
        RequestError: no entry for the op, a missing shape column, or a dtype that the project does
            not know.
    """
    for operator in OPERATORS:
        if rows.op in operator.ops:
            missing = [name for name in operator.columns if name not in rows.columns]
            if missing:
                raise RequestError(
                    f"rows of op {rows.op!r} need the columns {', '.join(operator.columns)};"
                    f" missing: {', '.join(missing)}"
                )
            if rows.dtype not in DTYPE_BYTES:
                raise unknown("dtype", rows.dtype, DTYPE_BYTES)
            return operator
    raise unknown("op", rows.op, [op for operator in OPERATORS for op in operator.ops])
