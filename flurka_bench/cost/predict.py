"""Cases x hardware profile -> seconds with bands: op lists through the op models, summed as the
host launches them.

Cases that differ only in sizes share one op list whose sizes are arrays, so a sweep of millions
costs a few passes over arrays; ``predict`` groups a mixed list by itself, ``predict_many`` takes
one case with arrays. No torch, no clock.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import canonical
from flurka_bench.cost import uncertainty
from flurka_bench.cost.attention import attention_terms
from flurka_bench.cost.cpu import (
    cache_bounds,
    cpu_list_terms,
)
from flurka_bench.cost.elementwise import (
    elementwise_constants,
    elementwise_terms,
)
from flurka_bench.cost.matmul import constants_of as matmul_constants
from flurka_bench.cost.matmul import matmul_terms
from flurka_bench.cost.softmax import softmax_terms
from flurka_bench.cost.terms import (
    LAUNCHES,
    Terms,
    resident_share,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.lowering.lower import (
    Lowered,
    lower_with_lifetimes,
)
from flurka_bench.lowering.memory import peak_live_bytes
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.ops import Op
from flurka_bench.words.sizes import (
    DTYPE_BYTES,
    SIZES,
    Number,
)

CACHES = ("cold", "warm")
BOUNDS = ("launch", "compute", "memory", "special")
# cases at once: their arrays stay in a core's cache, and memory stays bounded however long the
# sweep
CHUNK = 4096
# The host's time for a kernel of compiled code, in eager ops: the wrapper calls a launcher, no
# dispatcher and no autograd. No data at hand settles it.
COMPILED_DISPATCH = 0.4
# what ``calibrate`` measures: an empty op in a loop without synchronisation
DISPATCH_FIGURE = "microbenchmark.launch_eager_s"
_VARYING = (
    *SIZES,
    "ffn_dim",
)  # sizes that may differ within one op list; layers and vocabulary decide which ops there are


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What one case takes on a target.

    ``seconds_low`` to ``seconds_high`` covers 90 %. ``stages`` are seconds by stage and sum to
    ``seconds``. ``bound`` names what most of the time waits for. ``log_scale`` and ``log_shape``
    are the band's half-widths in log-seconds: the device's scale, common to all cases on it, and
    the noise of this case's shapes.
    """

    case: Case
    hardware: str
    seconds: float
    seconds_low: float
    seconds_high: float
    bound: str
    stages: dict[str, float]
    flops: float
    bytes: float
    peak_memory_bytes: float
    fits_in_memory: bool
    log_scale: float
    log_shape: float

    def as_record(self) -> dict[str, Any]:
        """Flat, under the names of records and of ``predict --json``."""
        own = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "case"
        }
        return self.case.as_record() | own


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """A sweep's predictions as columns (arrays of one length); the fields are those of
    ``Prediction``."""

    seconds: np.ndarray
    seconds_low: np.ndarray
    seconds_high: np.ndarray
    bound: np.ndarray  # index into BOUNDS
    stages: dict[str, np.ndarray]
    flops: np.ndarray
    bytes: np.ndarray
    peak_memory_bytes: np.ndarray
    log_scale: np.ndarray
    log_shape: np.ndarray

    def __len__(self) -> int:
        return len(self.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpPrediction:
    """One op with its seconds as a single call (``terms.seconds``), its kernel's own, and the parts
    of it."""

    op: Op
    terms: Terms


def predict_ops(
    ops: Sequence[Op], profile: Profile, *, launch: str = "eager", cache: str = "warm", length: int = 1,
    held_until: Mapping[str, int] | None = None,
) -> list[OpPrediction]:  # fmt: skip
    """Seconds of each op of a list, in order.

    Args:
        ops: as ``mechanisms.lower`` gives them; sizes are numbers or arrays of ``length``.
        profile: the hardware target.
        launch: ``eager`` (the host dispatches each op), ``graph`` or ``none`` (device time alone).
        cache: ``warm`` (the list runs again and again) or ``cold`` (nothing of it is in L2 before).
        length: of the arrays.
        held_until: as ``lowering.lower.Lowered`` gives it: what variables keep alive. Only a
            CPU's allocator asks.

    Raises:
        RequestError: an unknown launch or cache.
    """
    if launch not in LAUNCHES:
        raise unknown("launch", launch, LAUNCHES)
    if cache not in CACHES:
        raise unknown("cache", cache, CACHES)
    shares = _l2_shares(ops, profile, warm=cache == "warm")
    if profile.kind == "cpu":
        terms = cpu_list_terms(ops, profile, shares, launch, length, held_until or {})
    else:
        terms = [_op_terms(op, profile, share, launch, length) for op, share in zip(ops, shares)]
    return [OpPrediction(op=op, terms=each) for op, each in zip(ops, terms)]


def _l2_shares(ops: Sequence[Op], profile: Profile, *, warm: bool) -> Iterator[np.ndarray]:
    """Per op, the share of its bytes that L2 serves.

    An operand is found there if little enough was touched since it was last used: the bytes of all
    ops between (its reuse distance) and the op's own. What an op writes stays, as far as the op
    itself leaves room. In a warm loop the distance of a first use is that of the whole list. So the
    small compressed keys and values stay resident between their uses.
    """
    c = elementwise_constants(profile)
    on_cpu = profile.kind == "cpu"
    low, high = cache_bounds(profile) if on_cpu else (c.l2_low, c.l2_high)
    real = np.float32
    touched = real(0)
    last: dict[str, Any] = {}
    sizes = [(op.bytes_read, op.bytes_written) for op in ops]
    whole = real(0)
    for read, written in sizes:
        whole = whole + np.asarray(read + written, dtype=real)
    for op, (read, written) in zip(ops, sizes):
        own = np.asarray(read + written, dtype=real)
        # A line is read before it is written: on a CPU a result is found there only if what its
        # memory held before is.
        new = (
            sum((tensor.bytes for tensor in op.writes if tensor.name not in last), start=0)
            if on_cpu and warm
            else 0
        )
        found = np.asarray(written - new, dtype=real) * resident_share(
            own, profile.l2_bytes, low, high
        )
        found = found + np.asarray(new, dtype=real) * resident_share(
            np.maximum(whole, own), profile.l2_bytes, low, high
        )
        for tensor in op.reads:
            if tensor.name in last:
                distance = touched - last[tensor.name] + own
            elif warm:
                distance = np.maximum(whole, own)
            else:
                continue
            found = found + np.asarray(tensor.bytes, dtype=real) * resident_share(
                distance, profile.l2_bytes, low, high
            )
        touched = touched + own
        for tensor in (*op.reads, *op.writes):
            last[tensor.name] = touched
        yield np.minimum(found / own, real(1))


def _op_terms(op: Op, profile: Profile, l2_share: np.ndarray, launch: str, length: int) -> Terms:
    if op.kind == "matmul":
        return _matmul(op, profile, l2_share, launch, length)
    if op.kind == "attention":
        scores = np.asarray(op.batch * op.rows * op.cols, dtype=np.float64)
        return attention_terms(
            profile, op.dtype, _column(op.batch, length), op.rows, op.cols, op.inner,
            products=(op.matmul_flops + op.recomputed_flops) / (2 * scores * op.inner),
            exponentials=op.special_flops / scores, backward=op.phase == "backward",
            bytes_moved=_column(op.bytes_read + op.bytes_written, length), launch=launch,
        )  # fmt: skip
    if op.kind == "softmax":
        return softmax_terms(
            profile, _column(op.batch * op.rows, length), op.cols, itemsize=DTYPE_BYTES[op.dtype],
            bytes_read=_column(op.bytes_read, length), bytes_written=_column(op.bytes_written, length),
            passes=3 if op.phase == "forward" else 2, l2_share=l2_share, launch=launch,
        )  # fmt: skip
    return elementwise_terms(
        profile, _column(op.bytes_read + op.bytes_written, length), vector_flops=op.vector_flops,
        special_flops=op.special_flops, l2_share=l2_share, launch=launch,
    )  # fmt: skip


def _column(value: Number, length: int) -> np.ndarray:
    column = np.asarray(value, dtype=np.float32)
    return column if column.ndim else np.full(length, column)


def _matmul(op: Op, profile: Profile, l2_share: np.ndarray, launch: str, length: int) -> Terms:
    """The matmul model's terms in the form of the others; its L2 model takes the bytes touched
    between two uses."""
    layout = "linear" if isinstance(op.batch, int) and op.batch == 1 else "batched"
    c = matmul_constants(profile, op.dtype, layout)
    miss = np.clip(1 - l2_share, np.float32(1e-4), np.float32(1 - 1e-4))
    touched = np.float32(profile.l2_bytes * c.l2_capacity) * (miss / (1 - miss)) ** np.float32(
        1 / c.l2_sharpness
    )
    t = matmul_terms(
        profile, op.dtype, _column(op.batch, length), op.rows, op.cols, op.inner,
        layout=layout, launch="none", working_set_bytes=touched, constants=c,
    )  # fmt: skip
    launch_s = {"none": 0.0, "graph": c.launch_graph_s, "eager": c.launch_eager_s}[launch]
    overlap = elementwise_constants(profile).host_overlap if launch == "eager" else 0.0
    return Terms(
        kernel=t.seconds, launch=launch_s, overlap=overlap, compute=t.compute + t.power,
        special=np.zeros_like(t.compute), memory=np.maximum(t.dram, t.l2), latency=t.latency,
    )  # fmt: skip


def _device_of(profile: Profile) -> str:
    """Whose kernels a list is of, as ``mechanisms.lower`` names it."""
    return "cpu" if profile.kind == "cpu" else "cuda"


def predict_lowered(
    ops: Sequence[Op],
    case: Case,
    profile: Profile,
    *,
    length: int = 1,
    launch: str = "eager",
    cache: str = "warm",
    own: Lowered | None = None,
) -> Predictions:
    """Predictions for an op list, by default one for which sizes are numbers; ``case`` says whose
    list it is.

    The list may be another's than this project's (see scripts/whole_cases.py); memory is that of
    the case's ``own``.
    """
    own = own or lower_with_lifetimes(case, _device_of(profile))
    predictions = predict_ops(
        ops, profile, launch=launch, cache=cache, length=length, held_until=own.held_until
    )
    overlap = 0.0 if profile.kind == "cpu" else elementwise_constants(profile).host_overlap
    dispatch = _dispatch(profile, case.backend)
    total = host = device = np.zeros(length, dtype=np.float32)
    stages: dict[str, Any] = {}
    waits = {name: np.zeros(length, dtype=np.float32) for name in BOUNDS}
    widths = uncertainty.Sum()
    band = {}
    host_band = uncertainty.bands("dispatch", case.dtype, profile)
    for prediction in predictions:
        op, terms = prediction.op, prediction.terms
        launch_s = np.float32(dispatch(terms.launch) if launch == "eager" else terms.launch)
        if launch == "eager" and profile.kind == "gpu":
            # Two clocks: the host dispatches op after op, the device starts a kernel when it is
            # dispatched and free.
            host = host + launch_s
            device = np.maximum(device, host - launch_s * np.float32(overlap)) + terms.kernel
            after = np.maximum(device, host)
        else:
            after = total + terms.kernel + launch_s
        spent = after - total
        total = after
        stages[op.stage] = stages.get(op.stage, 0) + spent
        on_kernel = np.minimum(spent, terms.kernel)
        _attribute(waits, terms, spent, on_kernel)
        key = (op.kind, op.dtype)
        if key not in band:
            band[key] = uncertainty.bands(*key, profile)
        widths.add(on_kernel, terms.kernel, band[key])
        widths.add(spent - on_kernel, terms.kernel, host_band if launch == "eager" else band[key])
    scale, shape = widths.half_widths(total)
    low, high = uncertainty.interval(total, scale, shape)

    def column(value: Number) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (length,))

    num_threads = profile.num_sms if profile.kind == "cpu" else 0
    peak = peak_live_bytes(own.ops, own.leaves, own.held_until, num_threads=num_threads)
    return Predictions(
        seconds=total, seconds_low=low, seconds_high=high,
        bound=np.stack([waits[name] for name in BOUNDS]).argmax(axis=0).astype(np.int8),
        stages={name: np.broadcast_to(value, (length,)) for name, value in stages.items()},
        flops=column(sum(op.flops for op in ops)), bytes=column(sum(op.bytes_read + op.bytes_written for op in ops)),
        peak_memory_bytes=column(peak), log_scale=scale, log_shape=shape,
    )  # fmt: skip


def _dispatch(profile: Profile, backend: str) -> Callable[[float], float]:
    """The host's seconds from one op to the next, given those of the op's kind alone."""
    share = COMPILED_DISPATCH if backend == "compiled" else 1.0
    own = (
        profile.measured.get(DISPATCH_FIGURE) if profile.kind == "gpu" else None
    )  # a CPU's is fitted with its rows
    return lambda launch_s: share * (launch_s if own is None else own)


def _attribute(
    waits: dict[str, np.ndarray], terms: Terms, spent: np.ndarray, on_kernel: np.ndarray
) -> None:
    """Adds an op's seconds to what they wait for: the launch's share, and the kernel's largest
    part."""
    compute, special = terms.compute, terms.special
    memory_bound = terms.memory > np.maximum(compute, special)
    special_bound = ~memory_bound & (special > compute)
    waits["launch"] += spent - on_kernel
    waits["memory"] += np.where(memory_bound, on_kernel, np.float32(0))
    waits["special"] += np.where(special_bound, on_kernel, np.float32(0))
    waits["compute"] += np.where(memory_bound | special_bound, np.float32(0), on_kernel)


def predict_many(
    case: Case, profile: Profile, *, launch: str = "eager", cache: str = "warm", chunk: int = CHUNK
) -> Iterator[Predictions]:
    """Predictions of one case whose sizes are arrays of one length (or numbers), chunk by chunk.

    Only a chunk's arrays are alive at a time, so ten million cases need no more memory than
    ``chunk``. Sizes that do not vary in a chunk are taken as numbers. Raises RequestError for
    impossible sizes or arrays of different lengths.
    """
    arrays = {
        name: np.asarray(value)
        for name in _VARYING
        if isinstance(value := getattr(case, name), np.ndarray)
    }
    lengths = {len(array) for array in arrays.values()} or {1}
    if len(lengths) > 1:
        raise RequestError(f"all sizes must be arrays of one length, got lengths {sorted(lengths)}")
    for start in range(0, lengths.pop(), chunk):
        part = {name: array[start : start + chunk] for name, array in arrays.items()}
        length = len(next(iter(part.values()))) if part else 1
        single = {
            name: int(array[0]) if (array == array[0]).all() else array
            for name, array in part.items()
        }
        part_case = case.replace(**single)
        lowered = lower_with_lifetimes(part_case, _device_of(profile))
        yield predict_lowered(
            lowered.ops, part_case, profile, length=length, launch=launch, cache=cache, own=lowered
        )


def predict(
    cases: Sequence[Case], profile: Profile, *, launch: str = "eager", cache: str = "warm"
) -> list[Prediction]:
    """Predictions in the order of ``cases``, which may mix mechanisms, levels and sizes.

    Raises:
        RequestError: a case is impossible (see ``mechanisms.canonical``), or an unknown launch or
            cache.
    """
    cases = [canonical(case) for case in cases]
    groups: dict[tuple, list[int]] = {}
    for i, case in enumerate(cases):
        key = tuple(
            (value is None, name == "batch" and value == 1) if name in _VARYING else value
            for name, value in case.as_record().items()
        )
        groups.setdefault(key, []).append(i)
    result: list[Any] = [None] * len(cases)
    for members in groups.values():
        first = cases[members[0]]
        columns = {
            name: np.array([getattr(cases[i], name) for i in members])
            for name in _VARYING
            if getattr(first, name) is not None
        }
        at = 0
        for part in predict_many(first.replace(**columns), profile, launch=launch, cache=cache):
            for row in range(len(part)):
                result[members[at]] = _row(cases[members[at]], profile, part, row)
                at += 1
    return result


def _row(case: Case, profile: Profile, part: Predictions, row: int) -> Prediction:
    peak = float(part.peak_memory_bytes[row])
    return Prediction(
        case=case, hardware=profile.name, seconds=float(part.seconds[row]), seconds_low=float(part.seconds_low[row]),
        seconds_high=float(part.seconds_high[row]), bound=BOUNDS[part.bound[row]],
        stages={name: float(values[row]) for name, values in part.stages.items()}, flops=float(part.flops[row]),
        bytes=float(part.bytes[row]), peak_memory_bytes=peak, fits_in_memory=peak <= profile.memory_bytes,
        log_scale=float(part.log_scale[row]), log_shape=float(part.log_shape[row]),
    )  # fmt: skip


def speedup(a: Prediction, b: Prediction) -> uncertainty.Speedup:
    """How many times faster ``a`` is than ``b`` on their device, with a 90 % band in which the
    device's scale cancels.

    Raises:
        RequestError: the two are predictions for different hardware, where no scale cancels.
    """
    if a.hardware != b.hardware:
        raise RequestError(
            f"a speedup compares two cases on one device, got {a.hardware!r} and {b.hardware!r}"
        )
    return uncertainty.ratio_band(
        b.seconds / a.seconds, (a.log_scale, b.log_scale), (a.log_shape, b.log_shape)
    )
