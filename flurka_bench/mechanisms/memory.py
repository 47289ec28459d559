"""Peak live memory of a case, read off its op list: what must exist at once."""

from collections.abc import Mapping, Sequence

import numpy as np

from flurka_bench.mechanisms.lowering import lower_with_lifetimes
from flurka_bench.ops import Op, Tensor
from flurka_bench.workload import Case, Number


def peak_memory_bytes(case: Case, device: str = "cuda") -> Number:
    """The most bytes of tensors alive at once while ``case`` runs, its parameters and inputs
    included.

    Kernels' private workspaces and the allocator's rounding are not in it. Arrays in, arrays out;
    ``device`` as in ``lower``.
    """
    lowered = lower_with_lifetimes(case, device)
    return peak_live_bytes(lowered.ops, lowered.leaves, lowered.held_until)


def peak_live_bytes(
    ops: Sequence[Op], leaves: Sequence[Tensor], held_until: Mapping[str, int] | None = None
) -> Number:
    """Liveness over an op list: a tensor is born where it is first written and dies after its last
    use.

    ``leaves`` and ``held_until`` as in ``lowering.Lowered``. What autograd saves is what the
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
        peak = (
            max(peak, live)
            if isinstance(peak, int) and isinstance(live, int)
            else np.maximum(peak, live)
        )
        for tensor in dead:
            live = live - tensor.bytes
    return peak if isinstance(peak, np.ndarray) else int(peak)
