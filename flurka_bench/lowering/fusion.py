"""What a compiler makes of an eager op list: neighbours that only pass elements on become one
kernel.

The rules are those that decide in TorchInductor's default mode (torch/_inductor/scheduler.py):
matrix products and fused attention call a library, so nothing joins them; elementwise kernels,
reductions and copies over the same elements join, and so does what works element by element on such
a kernel's result. A tensor that only its own kernel reads is never written.
"""

from collections.abc import Sequence

import numpy as np

from flurka_bench.words.ops import (
    WORKS,
    Op,
    Tensor,
    total,
)
from flurka_bench.words.sizes import Number

FUSIBLE_KINDS = ("elementwise", "copy", "reduction", "softmax")


def fuse(ops: Sequence[Op]) -> list[Op]:
    """The compiled backend's list for an eager one."""
    groups: list[list[Op]] = []
    for op in ops:
        target = _joinable(groups, op) if op.kind in FUSIBLE_KINDS else None
        if target is None:
            groups.append([op])
        else:
            groups[target].append(op)
    readers: dict[str, set[int]] = {}
    for i, group in enumerate(groups):
        for op in group:
            for tensor in op.reads:
                readers.setdefault(tensor.name, set()).add(i)
    return [_merge(group, i, readers) for i, group in enumerate(groups)]


def _joinable(groups: list[list[Op]], op: Op) -> int | None:
    """The last group that makes something ``op`` reads, if the two can be one kernel."""
    reads = {tensor.name: tensor for tensor in op.reads}
    for i in range(len(groups) - 1, -1, -1):
        made = {tensor.name for member in groups[i] for tensor in member.writes} & reads.keys()
        if not made:
            # what lies between makes nothing that op reads, so op may move up to the group
            continue
        first = groups[i][0]
        if first.kind not in FUSIBLE_KINDS or first.phase != op.phase:
            return None
        elements = _elements(op)
        fits = any(_same(elements, _elements(member)) for member in groups[i])
        return i if fits or all(_same(elements, reads[name].numel) for name in made) else None
    return None


def _elements(op: Op) -> Number:
    return op.batch * op.rows * op.cols


def _same(a: Number, b: Number) -> bool:
    return a is b or bool(np.all(a == b))


def _merge(group: list[Op], index: int, readers: dict[str, set[int]]) -> Op:
    if len(group) == 1:
        return group[0]
    made: set[str] = set()
    reads: dict[str, Tensor] = {}
    writes: dict[str, Tensor] = {}
    for op in group:
        reads |= {tensor.name: tensor for tensor in op.reads if tensor.name not in made}
        made |= {tensor.name for tensor in op.writes}
        writes |= {
            tensor.name: tensor for tensor in op.writes if readers.get(tensor.name) != {index}
        }
    kinds = [op.kind for op in group]
    widest = max(FUSIBLE_KINDS.index(kind) for kind in kinds)
    shaped = group[kinds.index(FUSIBLE_KINDS[widest])]
    works = [op.work for op in group if op.kind == shaped.kind]
    return Op(
        stage=group[0].stage, kind=shaped.kind, name="+".join(op.name for op in group), dtype=shaped.dtype,
        batch=shaped.batch, rows=shaped.rows, cols=shaped.cols,
        vector_flops=total(group, "vector_flops"), special_flops=total(group, "special_flops"),
        reads=tuple(reads.values()), writes=tuple(writes.values()), phase=shaped.phase,
        work=min(works, key=WORKS.index),
    )  # fmt: skip
