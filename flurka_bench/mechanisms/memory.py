"""Peak live memory of a case, read off its op list: what must exist at once."""

from collections.abc import Sequence

import numpy as np

from flurka_bench.mechanisms.lowering import lower
from flurka_bench.ops import Op, Tensor
from flurka_bench.workload import Case, Number

RESIDENT_ROLES = ("parameter", "input", "buffer")  # there before the first kernel, and after the last


def peak_memory_bytes(case: Case) -> Number:
    """The most bytes of tensors alive at once while ``case`` runs, its parameters and inputs included.

    Kernels' private workspaces and the allocator's rounding are not in it. Arrays in, arrays out.
    """
    return peak_live_bytes(lower(case))


def peak_live_bytes(ops: Sequence[Op]) -> Number:
    """Liveness over an op list: a tensor is born where it is first written and dies after its last use.

    What autograd saves is what the backward ops read, so it stays alive by itself. What nobody reads after it was last
    written is a result (the output, the leaves' gradients) and stays to the end.
    """
    resident: dict[str, Tensor] = {}
    last_use: dict[str, int] = {}
    results: set[str] = set()
    for i, op in enumerate(ops):
        for tensor in (*op.reads, *op.writes):
            if tensor.role in RESIDENT_ROLES:
                resident[tensor.name] = tensor
            last_use[tensor.name] = i
        results -= {tensor.name for tensor in op.reads}
        results |= {tensor.name for tensor in op.writes}
    dying: list[list[Tensor]] = [[] for _ in ops]
    tensors = {tensor.name: tensor for op in ops for tensor in op.writes}
    for name, tensor in tensors.items():
        if name not in resident and name not in results:
            dying[last_use[name]].append(tensor)

    live: Number = sum((tensor.bytes for tensor in resident.values()), start=0)
    peak, alive = live, set(resident)
    for op, dead in zip(ops, dying):
        for tensor in op.writes:
            if tensor.name not in alive:
                alive.add(tensor.name)
                live = live + tensor.bytes
        peak = np.maximum(peak, live)
        for tensor in dead:
            live = live - tensor.bytes
    return peak
