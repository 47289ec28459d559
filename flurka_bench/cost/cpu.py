"""Seconds of a CPU's ops: cycles an element or multiply-add over the threads, cache or memory, and
page faults.

A CPU differs from a GPU in three things that decide between mechanisms. Matmuls are panels packed
for a register tile, so each short side costs its share, and they stream slower than additions.
Exponentials are polynomials on the same lanes. And where the allocator does not keep what is freed,
results are mapped anew and every page is cleared at first touch.

    t = dispatch + compute + memory + faults

Compute is cycles of one thread at the profile's clock, over the threads that the op is large enough
for. Constants: the defaults below are a starting point (one machine, uncalibrated only);
calibration measures all of them. docs/cost-model.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flurka_bench.cost.fitting import Residual
from flurka_bench.cost.terms import (
    Terms,
    constants_of,
)
from flurka_bench.hardware.measured import FIGURES
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.ops import (
    Op,
    Tensor,
)

# glibc's malloc: what no free chunk holds is mapped afresh from this size on, and given back when
# freed (DEFAULT_MMAP_THRESHOLD_MAX, where the dynamic threshold ends up).
MAPPED_BYTES = 32 * 2**20
# 1: freed memory is kept, as ``calibrate`` found it, and no result is mapped
REUSES = f"{FIGURES}.reuses_memory"
NARROW = 32  # four vectors of 256 bits (aten/src/ATen/native/cpu/Reduce.h)
GRAIN = 32768  # elements that a thread takes at least (at::internal::GRAIN_SIZE)
QUERY_BLOCK, KEY_BLOCK = (
    256,
    512,
)  # of the fused kernel at long inputs (aten/src/ATen/native/cpu/FlashAttentionKernel.cpp)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuConstants:
    """What the system does not report. Cycles are one thread's, per element unless said
    otherwise."""

    dispatch_s: float = 2e-6
    parallel_s: float = 3e-6  # to wake the threads and wait for the last
    cache_bytes_per_cycle: float = 16.0  # of one thread, beyond its own caches
    cache_share: float = (
        0.6  # of the last cache: footprints half of which it holds; neighbours take the rest
    )
    dram_efficiency: float = 1.0  # of the profile's bandwidth
    matmul_stream: float = (
        0.4  # of that, where a product reads its panels: packing does not run ahead of itself
    )
    fault_s_per_byte: float = 4e-10  # first touch of mapped memory: the kernel clears a page
    vector_cycles: float = 0.3
    row_cycles: float = 4.0  # a short inner loop, where operands broadcast
    reduction_row_cycles: float = 30.0
    maximum_row_cycles: float = 50.0
    narrow_maximum_cycles: float = (
        8.0  # along an axis with fewer neighbours than ``NARROW``: one element at a time
    )
    division_cycles: float = 0.6
    select_cycles: float = 3.0
    exp_cycles: float = 2.2
    elu_cycles: float = 5.0
    gelu_cycles: float = 5.0
    tanh_cycles: float = 5.0
    reduction_cycles: float = 0.5
    copy_cycles: float = 1.0
    softmax_cycles: float = 3.0
    softmax_row_cycles: float = 50.0
    softmax_backward_cycles: float = 1.0
    matmul_efficiency: float = 0.95  # of the peak, all sides long
    matmul_rows: float = 8.0  # a side this long takes twice its share
    matmul_cols: float = 8.0
    matmul_inner: float = 12.0
    product_cycles: float = 500.0  # of each product of a batch
    matmul_shared: float = (
        0.9  # of the cycles, where a batch shares its left operand (a compression all heads share)
    )
    attention_efficiency: float = 0.8
    attention_inner: float = 16.0  # a head dim this long takes twice its share
    score_cycles: float = 2.5  # exponential, maximum, sum
    query_cycles: float = 100.0  # a query row and block of keys: rescaling
    attention_backward_efficiency: float = 0.8  # of the forward's rate


class CpuResidual(Residual):
    """A machine's own rows are many, and timed more exactly than published ones."""

    AMPLITUDE = 0.15
    NOISE = 0.06


MATMUL_SIZES = ("batch", "rows", "inner", "cols")  # whose logs the residual takes


def cpu_constants(profile: Profile, dtype: str) -> CpuConstants:
    """The constants for a dtype: the defaults, over them what was measured, in float32 where not in
    ``dtype``."""
    measured = profile.measured
    return constants_of(
        CpuConstants, {}, measured.constants("cpu", "float32"), measured.constants("cpu", dtype)
    )


def cache_bounds(constants: CpuConstants) -> tuple[float, float]:
    """Footprints, in units of the last cache, that stay in it and that do not."""
    return 0.6 * constants.cache_share, 1.4 * constants.cache_share


def residual_of(profile: Profile, dtype: str) -> Residual | None:
    """What the constants leave unexplained of this machine's matmuls."""
    found = profile.measured.constants("cpu", dtype).get("residual")
    return CpuResidual.from_rows(found) if found else None


class CpuModel:
    """One CPU's model (see ``cost.model.Model``): no queue, no graphs, and its own cache."""

    kernels = "cpu"
    host_overlap: float | None = None
    dispatch_s: float | None = None  # fitted with the rows
    reads_to_write = True

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.num_threads = profile.num_sms
        self.cache = cache_bounds(cpu_constants(profile, "float32"))
        self._reuses_memory = reuses_memory(profile)
        self._known: dict[str, dict[str, Any]] = {}

    def list_terms(
        self,
        ops: Sequence[Op],
        l2_shares: Sequence[np.ndarray],
        launch: str,
        length: int,
        held_until: Mapping[str, int],
    ) -> list[Terms]:
        """Terms of a list that runs again and again; see ``cpu_terms`` and ``fresh_pages``."""
        fresh = [0] * len(ops) if self._reuses_memory else fresh_pages(ops, held_until)
        return [
            cpu_terms(
                op, self.profile, share, launch, length, faulting=pages, **self._own(op.dtype)
            )
            for op, share, pages in zip(ops, l2_shares, fresh)
        ]

    def _own(self, dtype: str) -> dict[str, Any]:
        if dtype not in self._known:
            constants = cpu_constants(self.profile, dtype)
            residual = residual_of(self.profile, dtype)
            self._known[dtype] = {"constants": constants, "residual": residual}
        return self._known[dtype]


def cpu_terms(
    op: Op,
    profile: Profile,
    l2_share: Any,
    launch: str,
    length: int,
    *,
    constants: CpuConstants | None = None,
    residual: Residual | None = None,
    faulting: Any = None,
    real: type = np.float32,
) -> Terms:
    """Seconds of one op whose sizes are numbers or arrays of ``length``.

    Args:
        op: as ``mechanisms.lower`` gives it.
        profile: a CPU.
        l2_share: share of its bytes found in the last cache.
        launch: ``none`` leaves out the dispatch; a CPU has no graphs.
        length: of the arrays.
        constants, residual: instead of what the profile holds.
        faulting: bytes of its results in fresh pages; None: those of results that are mapped where
            it runs alone.
        real: precision of the arithmetic.
    """
    c = constants or cpu_constants(profile, op.dtype)
    hz = profile.boost_clock_hz

    def column(value: Any) -> np.ndarray:
        array: np.ndarray = np.asarray(value, dtype=real)
        return array if array.ndim else np.full(length, array)

    moved = column(
        op.bytes_read + op.bytes_written + sum(tensor.bytes for tensor in _new(op))
    )  # lines are read to be written
    cycles, threads = _WORK[op.kind](op, c, profile, column)
    compute = cycles / (threads * real(hz))
    bandwidth = profile.memory_bandwidth_bytes_per_s * c.dram_efficiency
    cache = np.maximum(threads * real(c.cache_bytes_per_cycle * hz), real(bandwidth))
    stream = bandwidth * (c.matmul_stream if op.kind == "matmul" else 1.0)
    memory = moved * (l2_share / cache + (1 - l2_share) * real(1 / stream))
    working = compute + memory
    if op.kind == "matmul" and residual is not None:
        working = working * residual(
            np.log(np.stack([column(getattr(op, name)) for name in MATMUL_SIZES], axis=1))
        )
    faults = column(fresh_bytes_alone(op, profile) if faulting is None else faulting) * real(
        c.fault_s_per_byte
    )
    waking = np.where(threads > 1, real(c.parallel_s), real(0))
    return Terms(
        kernel=working + faults + waking,
        launch=0.0 if launch == "none" else c.dispatch_s,
        overlap=0.0,
        compute=compute,
        special=np.zeros_like(compute),
        memory=memory + faults,
        latency=waking,
    )


def reuses_memory(profile: Profile) -> bool:
    """Whether freed memory is kept: a run sees to it; profiles calibrated before it did say
    nothing, and then glibc maps."""
    found = profile.measured.figure("reuses_memory")
    return not profile.measured.knows("cpu") if found is None else bool(found)


def fresh_bytes_alone(op: Op, profile: Profile) -> Any:
    """Bytes of one op's large results, where it runs alone and they are mapped anew at every
    call."""
    if reuses_memory(profile):
        return 0
    return sum(
        (
            np.where(np.asarray(tensor.bytes) >= MAPPED_BYTES, tensor.bytes, 0)
            for tensor in _new(op)
        ),
        start=0,
    )


def _new(op: Op) -> list[Tensor]:
    """Results that are not written in place."""
    used = {tensor.name for tensor in op.reads}
    return [tensor for tensor in op.writes if tensor.name not in used]


def fresh_pages(ops: Sequence[Op], held_until: Mapping[str, int]) -> list[Any]:
    """Bytes of each op's results that lie in pages never touched, when the list runs again and
    again.

    A walk over births and deaths with glibc's rules: what fits into the free part of the heap is
    had for nothing, what does not grows it or, if large, is mapped. Two things are left out because
    they nearly cancel: free chunks that do not lie together, and the heap's top that is given back
    (with it predictions were twice as far off).
    """
    last_use = dict(held_until)
    results: set[str] = set()
    born: dict[str, int] = {}
    read: set[str] = set()
    for i, op in enumerate(ops):
        for tensor in op.writes:
            if tensor.name not in read:
                born.setdefault(tensor.name, i)
        for tensor in (*op.reads, *op.writes):
            last_use[tensor.name] = max(i, last_use.get(tensor.name, i))
            read.add(tensor.name)
        results -= {tensor.name for tensor in op.reads}
        results |= {tensor.name for tensor in op.writes}
    sizes = {
        tensor.name: np.asarray(tensor.bytes, dtype=np.float64)
        for op in ops
        for tensor in op.writes
        if tensor.name in born
    }
    dying: list[list[str]] = [[] for _ in ops]
    for name in born:
        dying[len(ops) - 1 if name in results else last_use[name]].append(name)
    heap: Any = np.float64(0)
    used: Any = heap
    fresh: list[Any] = []
    for _ in range(2):  # the second round starts from the heap that the first left
        fresh, on_heap = [], {}
        for i, op in enumerate(ops):
            faults: Any = 0.0
            for name in dict.fromkeys(
                tensor.name for tensor in op.writes if born.get(tensor.name) == i
            ):
                size = sizes[name]
                lacking = np.maximum(size - (heap - used), 0)
                mapped = (lacking > 0) & (size >= MAPPED_BYTES)
                faults = faults + np.where(mapped, size, lacking)
                on_heap[name] = np.where(mapped, 0, size)
                heap, used = heap + np.where(mapped, 0, lacking), used + on_heap[name]
            fresh.append(faults)
            for name in dying[i]:
                used = used - on_heap[name]
    return fresh


def _threads(profile: Profile, elements: np.ndarray) -> np.ndarray:
    whole = np.ceil(elements / elements.dtype.type(GRAIN))
    threads: np.ndarray = np.clip(whole, 1, profile.num_sms)
    return threads


def _flops_per_cycle(profile: Profile, dtype: str) -> float:
    """The peak of one thread."""
    peak = profile.peak_flops[profile.matmul_unit(dtype)]
    return peak / (profile.num_sms * profile.boost_clock_hz)


def _matmul(
    op: Op, c: CpuConstants, profile: Profile, column: Any
) -> tuple[np.ndarray, np.ndarray]:
    batch, rows, inner, cols = (column(size) for size in (op.batch, op.rows, op.inner, op.cols))
    real = batch.dtype.type
    flops_per_cycle = _flops_per_cycle(profile, op.dtype)
    shares = (
        (1 + real(c.matmul_rows) / rows)
        * (1 + real(c.matmul_cols) / cols)
        * (1 + real(c.matmul_inner) / inner)
    )
    flops = 2 * batch * rows * inner * cols
    cycles = flops * real(1 / (flops_per_cycle * c.matmul_efficiency)) * shares + batch * real(
        c.product_cycles
    )
    shared = column(op.reads[0].numel) < batch * rows * inner
    cycles = np.where(shared, real(c.matmul_shared), real(1)) * cycles
    return cycles, np.clip(flops / real(2 * GRAIN * 8), 1, profile.num_sms)


def _attention(
    op: Op, c: CpuConstants, profile: Profile, column: Any
) -> tuple[np.ndarray, np.ndarray]:
    heads, queries, head_dim, keys = (
        column(size) for size in (op.batch, op.rows, op.inner, op.cols)
    )
    real = heads.dtype.type
    flops_per_cycle = _flops_per_cycle(profile, op.dtype)
    products, efficiency = (2, c.attention_efficiency)
    if op.phase != "forward":
        products, efficiency = 5, c.attention_efficiency * c.attention_backward_efficiency
    a_score = (
        head_dim
        * real(2 * products / (flops_per_cycle * efficiency))
        * (1 + real(c.attention_inner) / head_dim)
    )
    blocks = np.ceil(keys / real(KEY_BLOCK))
    cycles = (
        heads * queries * (keys * (a_score + real(c.score_cycles)) + blocks * real(c.query_cycles))
    )
    tiles = heads * np.ceil(queries / real(QUERY_BLOCK))  # whole tiles of queries go to the threads
    return cycles, tiles / np.ceil(tiles / real(profile.num_sms))


def _softmax(
    op: Op, c: CpuConstants, profile: Profile, column: Any
) -> tuple[np.ndarray, np.ndarray]:
    rows = column(op.batch * op.rows)
    elements = rows * column(op.cols)
    each = c.softmax_cycles if op.phase == "forward" else c.softmax_backward_cycles
    return elements * rows.dtype.type(each) + rows * rows.dtype.type(
        c.softmax_row_cycles
    ), _threads(profile, elements)


def _streaming(
    op: Op, c: CpuConstants, profile: Profile, column: Any
) -> tuple[np.ndarray, np.ndarray]:
    rows = column(op.batch * op.rows)
    elements = rows * column(op.cols)
    real = rows.dtype.type
    cycles = elements * real(getattr(c, _cycles_of(op)))
    if op.kind == "reduction":
        return cycles + _reduction(op, c, column, rows, elements), _threads(profile, elements)
    if _broadcasts(op):
        cycles = cycles + rows * real(c.row_cycles)
    return cycles, _threads(profile, elements)


def _reduction(
    op: Op, c: CpuConstants, column: Any, rows: np.ndarray, elements: np.ndarray
) -> np.ndarray:
    """What a reduction takes beyond its elements: something a row, or, along an axis with few
    neighbours, no vectors."""
    real, maximum = rows.dtype.type, op.work == "maximum"
    if isinstance(op.inner, int) and op.inner == 1:
        each = c.maximum_row_cycles if maximum else c.reduction_row_cycles
        by_row: np.ndarray = rows * real(each)
        return by_row
    narrow = (column(op.inner) < NARROW) & maximum
    alone: np.ndarray = np.where(narrow, elements * real(c.narrow_maximum_cycles), real(0))
    return alone


# Whose ``_cycles`` an element of an elementwise kernel takes; a mask selects one at a time.
_CYCLES = {"expm1": "elu", "arithmetic": "vector"}


def _cycles_of(op: Op) -> str:
    """The constant of a streaming op: by what an element takes."""
    work = op.kind if op.kind in ("reduction", "copy") else _CYCLES.get(op.work, op.work)
    return f"{work}_cycles"


def _broadcasts(op: Op) -> bool:
    """Whether an operand is smaller than the result: then the loop runs row by row."""
    return any(
        np.any(np.asarray(tensor.numel) < np.asarray(op.writes[0].numel)) for tensor in op.reads
    )


_WORK = {
    "matmul": _matmul, "attention": _attention, "softmax": _softmax,
    "elementwise": _streaming, "reduction": _streaming, "copy": _streaming,
}  # fmt: skip
