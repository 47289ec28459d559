"""One protocol, two models: what turns a target's op lists into seconds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flurka_bench.cost.cpu import CpuModel
from flurka_bench.cost.gpu import GpuModel
from flurka_bench.cost.terms import (
    Terms,
    resident_share,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.ops import Op


class Model(Protocol):
    """One target's cost model; its constants are resolved when it is made.

    ``kernels`` names the lists that it takes (``lowering.lower``: "cuda", "cpu"). ``host_overlap``
    is the share of a dispatch that runs beside the kernel, and None where no queue lies between
    host and device. ``cache`` are the footprints, in units of the last cache, that stay in it and
    that do not. ``dispatch_s`` is the host's time for any op where it was measured. A device that
    ``reads_to_write`` fetches a line before it writes to it.
    """

    profile: Profile
    kernels: str
    num_threads: int
    host_overlap: float | None
    cache: tuple[float, float]
    dispatch_s: float | None
    reads_to_write: bool

    def list_terms(
        self,
        ops: Sequence[Op],
        l2_shares: Sequence[np.ndarray],
        launch: str,
        length: int,
        held_until: Mapping[str, int],
    ) -> list[Terms]:
        """Terms of each op of a list that runs again and again, sizes numbers or arrays of
        ``length``; ``held_until`` says what variables keep alive (``lowering.lower.Lowered``)."""
        ...


def model_of(profile: Profile) -> Model:
    """The model of a target."""
    return CpuModel(profile) if profile.kind == "cpu" else GpuModel(profile)


def l2_shares(ops: Sequence[Op], model: Model, *, warm: bool) -> Iterator[np.ndarray]:
    """Per op, the share of its bytes that the last cache serves.

    An operand is found there if little enough was touched since it was last used: the bytes of all
    ops between (its reuse distance) and the op's own. Outputs stay unless the op's own traffic
    evicts them. In a warm loop an operand's first use sees the traffic of one whole iteration since
    its last use. So the small compressed keys and values stay resident between their uses.
    """
    low, high = model.cache
    l2_bytes = model.profile.l2_bytes
    real = np.float32
    touched: Any = real(0)
    last: dict[str, Any] = {}
    sizes = [(op.bytes_read, op.bytes_written) for op in ops]
    whole: Any = real(0)
    for read, written in sizes:
        whole = whole + np.asarray(read + written, dtype=real)

    def resident(size: Any, distance: Any) -> np.ndarray:
        share = resident_share(distance, l2_bytes, low, high)
        found: np.ndarray = np.asarray(size, dtype=real) * share
        return found

    for op, (read, written) in zip(ops, sizes):
        own = np.asarray(read + written, dtype=real)
        first_use = np.maximum(whole, own)
        new: Any = 0
        if model.reads_to_write and warm:
            # A result is found only if what its memory held before is.
            fresh = [tensor.bytes for tensor in op.writes if tensor.name not in last]
            new = sum(fresh, start=0)
        found = resident(written - new, own) + resident(new, first_use)
        for tensor in op.reads:
            if tensor.name in last:
                found = found + resident(tensor.bytes, touched - last[tensor.name] + own)
            elif warm:
                found = found + resident(tensor.bytes, first_use)
        touched = touched + own
        for tensor in (*op.reads, *op.writes):
            last[tensor.name] = touched
        yield np.minimum(found / own, real(1))
