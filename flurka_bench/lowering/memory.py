"""Peak live memory of a case, read off its op list: what must exist at once."""

from collections.abc import Mapping, Sequence

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.lowering.lower import lower_with_lifetimes
from flurka_bench.words.ops import (
    Op,
    Tensor,
)
from flurka_bench.words.sizes import (
    DTYPE_BYTES,
    Number,
)


def peak_memory_bytes(case: Case, device: str, num_threads: int = 1) -> Number:
    """The most bytes of tensors alive at once while ``case`` runs, its parameters and inputs
    included.

    On a CPU of ``num_threads`` the scratch of fused attention is in it, which comes from the same
    allocator; other kernels' workspaces and the allocator's rounding are not. Arrays in, arrays
    out; ``device`` as in ``lower``.
    """
    lowered = lower_with_lifetimes(case, device)
    return peak_live_bytes(
        lowered.ops,
        lowered.leaves,
        lowered.held_until,
        num_threads=num_threads if device == "cpu" else 0,
    )


def _scratch_bytes(op: Op, num_threads: int) -> Number:
    """What fused attention allocates for itself on a CPU: for each thread a tile of scores in
    float32 (backward: of the weights and of their gradient, 16-bit types a copy of each) and
    statistics; and the result's gradient laid out anew, where it does not come tokens first.

    Tiles as in torch's aten/src/ATen/native/cpu/FlashAttentionKernel.cpp.
    """
    if op.kind != "attention" or num_threads == 0:
        return 0
    tile_rows = np.where(op.rows >= 768, 256, np.where(op.rows >= 192, 64, 32))
    tile_rows, tile_cols = np.minimum(tile_rows, op.rows), np.minimum(512, op.cols)
    backward = op.phase == "backward"
    itemsize = DTYPE_BYTES[op.dtype]
    scores = (4 + (itemsize if itemsize < 4 else 0)) * tile_rows * tile_cols
    rest = 4 * tile_rows * (1 if backward else 2 + op.inner)
    found = num_threads * ((2 if backward else 1) * scores + rest)
    if backward and op.reads[0].role == "input":  # the given gradient lies heads first: a copy
        found = found + op.reads[0].bytes
    return found if isinstance(op.rows, np.ndarray) or np.ndim(found) else int(found)


def peak_live_bytes(
    ops: Sequence[Op],
    leaves: Sequence[Tensor],
    held_until: Mapping[str, int] | None = None,
    *,
    num_threads: int = 0,
) -> Number:
    """Liveness over an op list: a tensor is born where it is first written and dies after its last
    use.

    ``leaves`` and ``held_until`` as in ``lowering.Lowered``; ``num_threads`` is a CPU's, 0 on a
    GPU. What autograd saves is what the
    backward ops read, so it stays alive by itself. What nobody reads after it was last written is a
    result (the output, the leaves' gradients) and stays to the end.
    """
    alive = {tensor.name: tensor for tensor in leaves}
    last_use: dict[str, int] = dict(held_until or {})
    results: set[str] = set()
    for i, op in enumerate(ops):
        alive |= {tensor.name: tensor for tensor in op.reads if tensor.role == "input"}
        for tensor in (*op.reads, *op.writes):
            last_use[tensor.name] = max(i, last_use.get(tensor.name, i))
        results -= {tensor.name for tensor in op.reads}
        results |= {tensor.name for tensor in op.writes}
    dying: list[list[Tensor]] = [[] for _ in ops]
    for name, tensor in {tensor.name: tensor for op in ops for tensor in op.writes}.items():
        if name not in alive and name not in results:
            dying[last_use[name]].append(tensor)

    live: Number = sum((tensor.bytes for tensor in alive.values()), start=0)
    peak, born = live, set(alive)
    for op, dead in zip(ops, dying, strict=True):
        for tensor in op.writes:
            if tensor.name not in born:
                born.add(tensor.name)
                live = live + tensor.bytes
        needed = live + _scratch_bytes(op, num_threads)
        peak = (
            max(peak, needed)
            if isinstance(peak, int) and isinstance(needed, int)
            else np.maximum(peak, needed)
        )
        for tensor in dead:
            live = live - tensor.bytes
    return peak if isinstance(peak, np.ndarray) else int(peak)
