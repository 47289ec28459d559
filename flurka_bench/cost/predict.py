"""Cases x hardware profile -> seconds with bands: op lists through the op models, summed as the
host launches them.

Cases that differ only in sizes share one op list whose sizes are arrays, so a sweep of millions
costs a few passes over arrays; ``predict`` groups a mixed list by itself, ``predict_many`` takes
one case with arrays. No torch, no clock.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import canonical
from flurka_bench.cost import uncertainty
from flurka_bench.cost.model import (
    Model,
    l2_shares,
    model_of,
)
from flurka_bench.cost.terms import (
    LAUNCHES,
    Terms,
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
    SIZES,
    Number,
)
from flurka_bench.words.verdict import Estimate

CACHES = ("cold", "warm")
BOUNDS = ("launch", "compute", "memory", "special")
# cases at once: their arrays stay in a core's cache, and memory stays bounded however long the
# sweep
CHUNK = 4096
# The host's time for a kernel of compiled code, in eager ops: the wrapper calls a launcher, no
# dispatcher and no autograd. No data at hand settles it.
COMPILED_DISPATCH = 0.4
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
    ops: Sequence[Op], model: Model, *, launch: str = "eager", cache: str = "warm", length: int = 1,
    held_until: Mapping[str, int] | None = None,
) -> list[OpPrediction]:  # fmt: skip
    """Seconds of each op of a list, in order.

    Args:
        ops: as ``lowering.lower`` gives them; sizes are numbers or arrays of ``length``.
        model: the hardware target's.
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
    shares = list(l2_shares(ops, model, warm=cache == "warm"))
    terms = model.list_terms(ops, shares, launch, length, held_until or {})
    return [OpPrediction(op=op, terms=each) for op, each in zip(ops, terms)]


def predict_lowered(
    ops: Sequence[Op],
    case: Case,
    model: Model,
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
    own = own or lower_with_lifetimes(case, model.kernels)
    predictions = predict_ops(
        ops, model, launch=launch, cache=cache, length=length, held_until=own.held_until
    )
    clock = _Clock(model, case, launch, length)
    for prediction in predictions:
        clock.add(prediction.op, prediction.terms)
    scale, shape = clock.widths.half_widths(clock.total)
    low, high = uncertainty.interval(clock.total, scale, shape)

    def column(value: Number) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (length,))

    peak = peak_live_bytes(own.ops, own.leaves, own.held_until, num_threads=model.num_threads)
    return Predictions(
        seconds=clock.total,
        seconds_low=low,
        seconds_high=high,
        bound=np.stack([clock.waits[name] for name in BOUNDS]).argmax(axis=0).astype(np.int8),
        stages={name: np.broadcast_to(value, (length,)) for name, value in clock.stages.items()},
        flops=column(sum(op.flops for op in ops)),
        bytes=column(sum(op.bytes_read + op.bytes_written for op in ops)),
        peak_memory_bytes=column(peak),
        log_scale=scale,
        log_shape=shape,
    )


class _Clock:
    """Adds ops up as host and device run them: the sum, its stages, what it waits for, its band."""

    def __init__(self, model: Model, case: Case, launch: str, length: int) -> None:
        self.total = self._host = self._device = np.zeros(length, dtype=np.float32)
        self.stages: dict[str, Any] = {}
        self.waits = {name: np.zeros(length, dtype=np.float32) for name in BOUNDS}
        self.widths = uncertainty.Sum()
        self._model, self._eager = model, launch == "eager"
        self._share = COMPILED_DISPATCH if case.backend == "compiled" else 1.0
        self._bands: dict[tuple[str, str], dict[bool, uncertainty.Band]] = {}
        self._dispatch_band = uncertainty.bands("dispatch", case.dtype, model.profile)

    def _launch_s(self, terms: Terms) -> np.float32:
        """The host's seconds from one op to the next, or a graph's."""
        if not self._eager:
            return np.float32(terms.launch)
        own = self._model.dispatch_s
        return np.float32(self._share * (terms.launch if own is None else own))

    def add(self, op: Op, terms: Terms) -> None:
        """The next op of the list."""
        launch_s = self._launch_s(terms)
        overlap = self._model.host_overlap
        if self._eager and overlap is not None:
            # Two clocks: the host dispatches op after op, the device starts a kernel when it is
            # dispatched and free.
            self._host = self._host + launch_s
            ready = self._host - launch_s * np.float32(overlap)
            self._device = np.maximum(self._device, ready) + terms.kernel
            after = np.maximum(self._device, self._host)
        else:
            after = self.total + terms.kernel + launch_s
        spent, self.total = after - self.total, after
        self.stages[op.stage] = self.stages.get(op.stage, 0) + spent
        on_kernel = np.minimum(spent, terms.kernel)
        _attribute(self.waits, terms, spent, on_kernel)
        key = (op.kind, op.dtype)
        if key not in self._bands:
            self._bands[key] = uncertainty.bands(*key, self._model.profile)
        band = self._bands[key]
        self.widths.add(on_kernel, terms.kernel, band)
        waiting = self._dispatch_band if self._eager else band
        self.widths.add(spent - on_kernel, terms.kernel, waiting)


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
    model = model_of(profile)
    for start in range(0, lengths.pop(), chunk):
        part = {name: array[start : start + chunk] for name, array in arrays.items()}
        length = len(next(iter(part.values()))) if part else 1
        single = {
            name: int(array[0]) if (array == array[0]).all() else array
            for name, array in part.items()
        }
        part_case = case.replace(**single)
        lowered = lower_with_lifetimes(part_case, model.kernels)
        yield predict_lowered(
            lowered.ops, part_case, model, length=length, launch=launch, cache=cache, own=lowered
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
    groups: dict[tuple[Any, ...], list[int]] = {}
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
        case=case,
        hardware=profile.name,
        seconds=float(part.seconds[row]),
        seconds_low=float(part.seconds_low[row]),
        seconds_high=float(part.seconds_high[row]),
        bound=BOUNDS[part.bound[row]],
        stages={name: float(values[row]) for name, values in part.stages.items()},
        flops=float(part.flops[row]),
        bytes=float(part.bytes[row]),
        peak_memory_bytes=peak,
        fits_in_memory=peak <= profile.memory_bytes,
        log_scale=float(part.log_scale[row]),
        log_shape=float(part.log_shape[row]),
    )


def speedup(a: Prediction, b: Prediction) -> Estimate:
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
