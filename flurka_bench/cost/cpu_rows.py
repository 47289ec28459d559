"""Measured operators of a CPU: rows of a file as ops, their seconds, and the constants of
``cost.cpu`` fitted to them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from flurka_bench.cost.cpu import (
    MATMUL_SIZES,
    REUSES,
    CpuConstants,
    CpuResidual,
    cache_bounds,
    cpu_constants,
    cpu_terms,
    fresh_bytes_alone,
    residual_of,
    reuses_memory,
)
from flurka_bench.cost.fitting import (
    Rows,
    fit_log,
)
from flurka_bench.cost.terms import (
    Terms,
    resident_share,
)
from flurka_bench.hardware.measured import (
    Measured,
    clamped,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.hardware.rows import (
    ATTENTION,
    MATMULS,
    SHAPES,
    STREAMING,
)
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.ops import (
    Op,
    Tensor,
)

PRIOR_SD = 1.0  # log units: the defaults are one machine's
NOISE = 0.05

ROW_OPS = (*STREAMING, *MATMULS, *ATTENTION)


def op_of(rows: Rows) -> Op:
    """Measured rows as one op whose sizes are arrays.

    Raises:
        RequestError: an op that the model does not know, or a size that its rows lack.
    """
    try:
        if rows.op in STREAMING:
            return _streaming_op(rows)
        if rows.op in MATMULS:
            batch, m, inner, cols = (rows.columns[name] for name in SHAPES["matmul"])
            if rows.op == "linear":
                batch, m = np.ones_like(m), batch * m
            left = m * inner * (1 if rows.op == "bmm_shared" else batch)
            tensors = [left, batch * inner * cols, batch * m * cols]
            return _op(rows, "matmul", tensors, 2, batch=batch, rows=m, inner=inner, cols=cols)
        if rows.op in ATTENTION:
            return _attention_op(rows)
    except KeyError as missing:
        raise RequestError(f"rows of op {rows.op!r} lack the column {missing}") from None
    raise unknown("op", rows.op, ROW_OPS)


def _op(measured: Rows, kind: str, numels: Sequence[Any], num_reads: int, **fields: Any) -> Op:
    tensors = [
        Tensor(name=str(at), numel=numel, dtype=measured.dtype) for at, numel in enumerate(numels)
    ]
    return Op(
        stage="other", kind=kind, name=measured.op, dtype=measured.dtype,
        reads=tuple(tensors[:num_reads]), writes=tuple(tensors[num_reads:]), **fields,
    )  # fmt: skip


def _attention_op(rows: Rows) -> Op:
    columns = rows.columns
    heads, queries = columns["batch"] * columns["num_heads"], columns["seq_len"]
    keys, head_dim = columns.get("num_keys", queries), columns["head_dim"]
    long, short = heads * queries * head_dim, heads * keys * head_dim
    sizes = {"batch": heads, "rows": queries, "inner": head_dim, "cols": keys}
    if rows.op == "attention":
        return _op(rows, "attention", [long, short, short, long], 3, **sizes)
    tensors = [long, long, long, short, short, long, short, short]
    return _op(rows, "attention", tensors, 5, phase="backward", **sizes)


def _streaming_op(rows: Rows) -> Op:
    known = STREAMING[rows.op]
    b, h = rows.columns["B"], rows.columns["H"]
    numel = {"BH": b * h, "B": b, "H": h, "mask": b * h}
    tensors = [*(numel[each] for each in known.reads), numel[known.writes]]
    one = _op(
        rows, known.kind, tensors, len(known.reads), rows=b, cols=h, work=known.work,
        phase="backward" if known.backward else "forward",
    )  # fmt: skip
    if rows.op == "amax_columns":
        one = replace(one, rows=8 * h, cols=b / 8, inner=h)  # of eight blocks
    if known.reads[0] == "mask":
        one = replace(one, reads=(replace(one.reads[0], dtype="bool"), *one.reads[1:]))
    return replace(one, writes=one.reads[:1]) if known.in_place else one


def predict_rows(profile: Profile, rows: Rows, **options: Any) -> np.ndarray:
    """Seconds (n,) of measured rows: the same call again and again, so its own bytes are what the
    cache must hold."""
    return _row_terms(profile, rows, **options).seconds


def _row_terms(profile: Profile, rows: Rows, **options: Any) -> Terms:
    op = op_of(rows)
    options.setdefault("residual", residual_of(profile, rows.dtype))
    share = resident_share(
        op.bytes_read + op.bytes_written,
        profile.l2_bytes,
        *cache_bounds(options.get("constants") or cpu_constants(profile, "float32")),
    )
    return cpu_terms(op, profile, share, "eager", len(rows), real=np.float64, **options)


def features(rows: Rows) -> np.ndarray:
    """Logs of the sizes (n, f), for choosing rows spread over the shapes."""
    sizes = [value for name, value in rows.columns.items() if name != "line"]
    logs: np.ndarray = np.log(np.stack(sizes, axis=1))
    return logs


def calibrate_cpu(profile: Profile, groups: Sequence[Rows]) -> Profile:
    """The profile with the constants of one dtype fitted to all rows of this machine at once, since
    ops share them.

    Args:
        profile: a CPU's.
        groups: rows by op, of one dtype.

    Raises:
        RequestError: an op that the model does not know.
    """
    dtype = groups[0].dtype
    group = ("cpu", dtype)
    reuses = {REUSES: float(reuses_memory(profile))}
    kept = Measured({**profile.measured.without(*group), **reuses})
    bare = profile.with_measured(kept, profile.measured_about)
    start = cpu_constants(bare, dtype)
    names = [field.name for field in fields(CpuConstants)]

    def at(shift: np.ndarray) -> CpuConstants:
        return replace(
            start,
            **{
                name: clamped(
                    "cpu", ".".join((*group, name)), float(getattr(start, name) * np.exp(by))
                )
                for name, by in zip(names, shift)
            },
        )

    def left(shift: np.ndarray) -> np.ndarray:
        constants = at(shift)
        logs = [
            np.log(predict_rows(bare, rows, constants=constants) / rows.seconds) for rows in groups
        ]
        return np.concatenate(logs)

    shift, _ = fit_log(left, np.full(len(names), PRIOR_SD), noise=NOISE)
    found = at(shift)
    seen = [name for name in names if name != "fault_s_per_byte" or not reuses_memory(bare)]
    figures: dict[str, Any] = {name: getattr(found, name) for name in seen}
    anchors, logs = [], []
    for rows in (rows for rows in groups if rows.op in MATMULS):
        terms, op = _row_terms(bare, rows, constants=found), op_of(rows)
        fixed = terms.launch + terms.latency + fresh_bytes_alone(op, bare) * found.fault_s_per_byte
        working = terms.seconds - fixed
        logs.append(np.log(np.maximum(rows.seconds - fixed, 0.1 * working) / working))
        sizes = [np.broadcast_to(getattr(op, name), working.shape) for name in MATMUL_SIZES]
        anchors.append(np.log(np.stack(sizes, axis=1)))
    if logs:
        residual = CpuResidual.fitted(np.concatenate(anchors), np.concatenate(logs))
        figures["residual"] = residual.as_rows()
    return profile.with_measured(kept.with_group(group, figures), profile.measured_about)
