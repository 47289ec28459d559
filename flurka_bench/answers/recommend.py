"""Which configuration to use for one workload: every mechanism, order, backend, rank, feature count
and head split, ranked.

A smaller rank or fewer features is always faster, so a ranking means something only above a floor
of quality: ranks and feature counts that the user names, or an error bar that an error run answers.
Where neither is given a floor is assumed and said. Imports neither torch nor pandas.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.frontier import (
    ErrorRun,
    Interval,
)
from flurka_bench.answers.words import (
    bound_reason,
    flop_reason,
    stage_reason,
)
from flurka_bench.cases.case import Case
from flurka_bench.cases.expand import expand
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.cost.predict import (
    Prediction,
    predict,
    speedup,
)
from flurka_bench.hardware import Profile
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import MAX_COMBINATIONS, ORDERS

# Linformer's own choice at N = 512 and above (Wang et al. 2020, section 5: "k = 256 ... comparable
# performance"), and as many features as a head is wide, which is what elu + 1 has. Neither promises
# an error: only --max-error looks at one.
ASSUMED_MIN_RANK = 256
RANKS = (16, 32, 64, 128, 256, 512, 1024, 2048)
NUM_FEATURES = (16, 32, 64, 128, 256, 512)
BACKENDS = ("eager", "compiled", "fused")
MAX_HEAD_DIMS = 32  # some thousand configurations each


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked: a workload at level layer, and what a configuration must keep to."""

    seq_len: int
    model_dim: int
    pass_: str = "forward"
    dtype: str = "float32"
    batch: int = 1
    head_dims: tuple[int, ...] = (32, 64, 128)
    backends: tuple[str, ...] = BACKENDS
    launch: str = "eager"
    min_rank: int | None = None
    min_features: int | None = None
    max_error: float | None = None
    inputs: str = "trained"
    max_memory_bytes: float | None = None
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        if len(self.head_dims) > MAX_HEAD_DIMS:
            raise RequestError(
                f"--head-dim takes at most {MAX_HEAD_DIMS} values, got {len(self.head_dims)}"
            )
        if not self.splits:
            asked = ", ".join(map(str, self.head_dims))
            raise RequestError(
                f"--model-dim {self.model_dim} is no multiple of any head width asked for ({asked}; --head-dim)"
            )
        if self.min_rank is not None and self.min_rank > self.seq_len:
            raise RequestError(
                f"--min-rank must be at most --seq-len {self.seq_len}, got {self.min_rank}"
            )

    @property
    def splits(self) -> tuple[int, ...]:
        """The head widths that divide the model's."""
        return tuple(width for width in self.head_dims if self.model_dim % width == 0)

    @property
    def floor_assumed(self) -> bool:
        """Whether no floor was given, so that the default one holds."""
        return self.min_rank is None and self.min_features is None and self.max_error is None

    @property
    def rank_floor(self) -> int:
        """Least rank considered."""
        if self.min_rank is not None:
            return self.min_rank
        return (
            min(ASSUMED_MIN_RANK, self.seq_len)
            if self.floor_assumed
            else min(RANKS[0], self.seq_len)
        )

    def features_floor(self, head_dim: int) -> int:
        """Least number of random features considered."""
        if self.min_features is not None:
            return self.min_features
        return head_dim if self.floor_assumed else NUM_FEATURES[0]

    def floor_in_words(self) -> str:
        """The floor as a sentence, saying whether it was assumed."""
        if self.max_error is not None:
            more = "".join(
                f", {name} >= {value}"
                for name, value in (("rank", self.min_rank), ("features", self.min_features))
                if value
            )
            return (
                f"quality floor: relative output error at most {self.max_error:g} at its 90th percentile over layers and seeds,"
                f" on {self.inputs!r} inputs{more}"
            )
        if self.floor_assumed:
            return (
                f"quality floor ASSUMED: rank >= {self.rank_floor}, num_features >= head_dim. A smaller rank or fewer features is"
                " always faster, so give your own: --min-rank, --min-features, or --max-error with --inputs"
            )
        features = self.min_features if self.min_features is not None else NUM_FEATURES[0]
        return f"quality floor: rank >= {self.rank_floor}, num_features >= {features}"


def beside_floors(case: Case) -> str:
    """Which floors say nothing of a configuration, because it has no such knob; empty where it has
    both.

    elu + 1 has features, as many as a head is wide: a floor holds for it as for the others.
    """
    cell = MECHANISMS[case.mechanism]
    if not cell.compressed and not cell.is_kernel:
        return "exact: no rank, no features"
    if not cell.compressed:
        return "no rank: all N keys"
    return "" if cell.is_kernel else "no features: softmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One configuration: what it takes (``prediction``, whose seconds are the clock's where
    ``measured``) and its error."""

    prediction: Prediction
    measured: bool = False
    error: Interval | None = None  # None: not measured there
    # its speedup over the fastest: SLOWER, AMBIGUOUS or SAME; None for the fastest itself and
    # outside of a ranking
    verdict: str | None = None

    @property
    def tied(self) -> bool:
        """Whether it cannot be told from the fastest."""
        return self.verdict in ("AMBIGUOUS", "SAME")

    def as_record(self) -> dict[str, Any]:
        """Flat, under the names of ``predict --json``, with what recommend adds."""
        error = {"error_low": None, "error_median": None, "error_high": None}
        if self.error is not None:
            error = {
                "error_low": self.error.low,
                "error_median": self.error.median,
                "error_high": self.error.high,
            }
        more = {
            "family": FAMILY_OF[self.prediction.case.mechanism],
            "measured": self.measured,
            "tied": self.tied,
            "verdict": self.verdict,
            "beside_floors": beside_floors(self.prediction.case) or None,
            "drop_in": is_exact(self.prediction.case),
        }
        return (
            self.prediction.as_record()
            | more
            | error
            | {"python": python_line(self.prediction.case)}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer for one target: candidates that meet everything, fastest first; and the nearest
    where none does, or where only exact attention meets the error bar.

    ``front`` are those that no other beats in time, memory and (where all have one) error at once.
    ``by_floor`` gives the fastest at other floors, each said in words. ``num_without_error`` counts
    those that an error bar left out unseen.
    """

    hardware: str
    request: Request
    candidates: tuple[Candidate, ...]
    front: tuple[Candidate, ...]
    by_floor: tuple[tuple[str, Candidate | None], ...]
    nearest: Candidate | None
    num_searched: int
    num_without_error: int = 0
    why_none: str = ""

    def fastest_by_family(self) -> list[Candidate]:
        """The first candidate of each family, fastest first."""
        found: dict[str, Candidate] = {}
        for each in self.candidates:
            found.setdefault(FAMILY_OF[each.prediction.case.mechanism], each)
        return list(found.values())


def space(request: Request) -> list[Case]:
    """Every configuration from a step below the floors upwards (to show what they cost), canonical
    and each once."""
    ranks = _from(_below(request.rank_floor, RANKS), RANKS, request.seq_len)
    blocks = []
    for head_dim in request.splits:
        floor = request.features_floor(head_dim)
        counts = _from(_below(floor, NUM_FEATURES), NUM_FEATURES, NUM_FEATURES[-1])
        blocks.append({
            "mechanism": list(MECHANISMS), "level": ["layer"], "pass": [request.pass_],
            "rank": sorted({*ranks, request.rank_floor}), "num_features": sorted({*counts, floor}),
            "order": ORDERS, "backend": request.backends, "dtype": [request.dtype],
            "batch": [request.batch], "num_heads": [request.model_dim // head_dim],
            "head_dim": [head_dim], "seq_len": [request.seq_len],
        })  # fmt: skip
    limit = MAX_HEAD_DIMS * MAX_COMBINATIONS
    return expand(*blocks, what="recommend", mend="fewer head widths", limit=limit).cases


def _below(floor: int, grid: Sequence[int]) -> int:
    """The grid's largest value below the floor, or the floor itself."""
    return max((value for value in grid if value < floor), default=floor)


def _above(case: Case, rank: int, features: float, request: Request) -> bool:
    """Whether a case keeps to floors; ``features`` counts in the request's own floor at that head
    width. A knob that it does not have (``beside_floors``) keeps to any."""
    cell = MECHANISMS[case.mechanism]
    enough = not cell.compressed or case.rank >= rank
    return enough and (
        not cell.is_kernel or case.num_features >= features * request.features_floor(case.head_dim)
    )


def _from(floor: int, grid: Sequence[int], limit: int) -> list[int]:
    """The floor itself and the grid's larger values up to the limit."""
    return sorted({floor, *(value for value in grid if floor < value <= limit)})


def recommend(
    request: Request,
    profile: Profile,
    *,
    errors: ErrorRun | None = None,
    records: Iterable[Mapping[str, Any]] = (),
) -> Recommendation:
    """Rank the whole space for one target.

    Args:
        request: the workload and what a configuration must keep to.
        profile: the target.
        errors: an error run; needed with ``max_error``, otherwise it fills in errors where it has
            them.
        records: a run's records on this target; what they hold is not predicted but taken from
            them.

    Raises:
        RequestError: ``max_error`` without an error run, a family of inputs that the run does not
            have, or backends that compute nothing of this request on this target.
    """
    if request.max_error is not None and errors is None:
        raise RequestError(
            "--max-error needs an error run (--error-run DIR; 'flurka-bench quality error' makes one)"
        )
    cases = [
        case for case in space(request) if profile.vendor == "nvidia" or case.backend != "fused"
    ]
    if not cases:
        raise RequestError(
            f"nothing can be computed with --backend {','.join(request.backends)} in the pass"
            f" {request.pass_} on {profile.name}: fused kernels are for the forward pass on NVIDIA"
            " GPUs (--backend eager,compiled)"
        )
    known = _measured(records)
    found = []
    for each in predict(cases, profile, launch=request.launch):
        own = known.get(each.case.case_id)
        found.append(_candidate(request, replace(each, **own) if own else each, bool(own), errors))
    found.sort(key=lambda each: each.prediction.seconds)
    possible = [each for each in found if _fits(request, each)]
    asked = [each for each in found if _above(each.prediction.case, request.rank_floor, 1, request)]
    fitting = [each for each in asked if _fits(request, each)]
    good = [each for each in fitting if _meets_error(request, each)]
    nearest, why = None, ""
    if all(_exact(each) for each in good) and (request.max_error is not None or not good):
        nearest, why = _nearest(request, asked, fitting, errors)
    ranked = tuple(replace(each, verdict=_against(each, good[0])) for each in good)
    return Recommendation(
        hardware=profile.name, request=request, candidates=ranked, front=_front(ranked), by_floor=_by_floor(request, possible),
        nearest=nearest, num_searched=len(asked), why_none=why,
        num_without_error=0 if request.max_error is None else sum(each.error is None for each in fitting),
    )  # fmt: skip


def _measured(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    from flurka_bench.words.statistics import median_interval

    found = {}
    for record in records:
        if record["status"] == "ok" and record["samples_s"]:
            median, low, high = median_interval(record["samples_s"])
            high = high if math.isfinite(high) else max(record["samples_s"])
            half = max(
                math.log(high / median), math.log(median / max(low, min(record["samples_s"])))
            )
            found[record["case_id"]] = {
                "seconds": median, "seconds_low": max(low, min(record["samples_s"])), "seconds_high": high,
                "log_scale": 0.0, "log_shape": half,
            }  # fmt: skip
    return found


def _candidate(
    request: Request, each: Prediction, measured: bool, errors: ErrorRun | None
) -> Candidate:
    case = each.case
    error = None
    if is_exact(case):
        error = Interval(0.0, 0.0, 0.0)
    elif errors is not None:
        error = errors.error_interval(
            mechanism=case.mechanism, rank=case.rank,
            num_features=case.num_features if MECHANISMS[case.mechanism].uses_features else None,
            seq_len=case.seq_len, head_dim=case.head_dim, family=request.inputs,
        )  # fmt: skip
    return Candidate(prediction=each, measured=measured, error=error)


def _fits(request: Request, each: Candidate) -> bool:
    memory = each.prediction.peak_memory_bytes
    return (
        each.prediction.fits_in_memory
        and (request.max_memory_bytes is None or memory <= request.max_memory_bytes)
        and (request.max_latency_s is None or each.prediction.seconds <= request.max_latency_s)
    )


def _meets_error(request: Request, each: Candidate) -> bool:
    """The 90th percentile over layers and seeds must meet the bar: a bar that holds half of the
    time is none."""
    return request.max_error is None or (
        each.error is not None and each.error.high <= request.max_error
    )


def is_exact(case: Case) -> bool:
    """Whether it computes softmax attention itself: what a trained model can take as it is."""
    return FAMILY_OF[case.mechanism] == "full"


def _exact(each: Candidate) -> bool:
    return is_exact(each.prediction.case)


def _nearest(
    request: Request, found: list[Candidate], fitting: list[Candidate], errors: ErrorRun | None
) -> tuple[Candidate | None, str]:
    if not fitting:
        smallest = min(found, key=lambda each: each.prediction.peak_memory_bytes)
        fastest = found[0]
        if request.max_latency_s is not None and fastest.prediction.seconds > request.max_latency_s:
            return fastest, "nothing is that fast; the fastest is shown"
        return smallest, "nothing fits into that much memory; the smallest is shown"
    with_error = [each for each in fitting if each.error is not None and not _exact(each)]
    if with_error:
        return min(
            with_error, key=lambda each: each.error.high
        ), "no approximation meets the error bar; the nearest is shown"
    if not any(not _exact(each) for each in fitting):
        return None, "no approximation keeps to the other limits"
    widths, run = ", ".join(map(str, request.splits)), errors.sizes_in_words(request.inputs)
    return None, (
        f"no approximation's error was measured at N = {request.seq_len} with heads of width {widths}; the error run has"
        f" {run} on {request.inputs!r} inputs, and nothing is extrapolated"
    )


def _against(each: Candidate, best: Candidate) -> str | None:
    return None if each is best else speedup(each.prediction, best.prediction).verdict


def _front(ranked: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Those that no faster one matches in memory and error (an error not measured is worse than
    any)."""
    front: list[Candidate] = []
    for each in ranked:
        error = each.error.high if each.error is not None else math.inf
        memory = each.prediction.peak_memory_bytes
        beaten = any(
            one.prediction.peak_memory_bytes <= memory
            and (one.error.high if one.error is not None else math.inf) <= error
            for one in front
        )
        if not beaten:
            front.append(each)
    return tuple(front)


def _by_floor(
    request: Request, possible: Sequence[Candidate]
) -> tuple[tuple[str, Candidate | None], ...]:
    """The fastest configuration as one floor after the other moves: how much the answer hangs on
    it."""

    def first(rank: int, features: float, error: float | None = None) -> Candidate | None:
        kept = (each for each in possible if _above(each.prediction.case, rank, features, request))
        return next(
            (
                each
                for each in kept
                if error is None or (each.error is not None and each.error.high <= error)
            ),
            None,
        )

    if request.max_error is not None:
        bars = [request.max_error * step for step in (0.5, 0.75, 1, 1.5, 2)]
        return tuple((f"error <= {bar:.3g}", first(request.rank_floor, 1, bar)) for bar in bars)
    own = request.rank_floor
    ranks = _from(_below(own, RANKS), RANKS, request.seq_len)[:5]
    rows = [
        (
            f"rank >= {rank}" + (" (assumed)" if request.floor_assumed and rank == own else ""),
            first(rank, 1),
        )
        for rank in ranks
    ]
    base = "head_dim" if request.floor_assumed else str(request.features_floor(0))
    for step, words in ((0.5, "half of"), (2, "twice"), (4, "four times")):
        rows.append((f"rank >= {own}, features >= {words} {base}", first(own, step)))
    return tuple(rows)


def because(best: Candidate, other: Candidate) -> str:
    """Why the fastest beats another candidate: the stage where it saves most, and what each waits
    for."""
    mine, theirs = best.prediction.stages, other.prediction.stages
    band = speedup(best.prediction, other.prediction)
    flops = best.prediction.flops / other.prediction.flops
    name, rival = best.prediction.case.mechanism, other.prediction.case.mechanism
    return (
        f"{name} is {band.ratio:.2f}x ({band.low:.2f} to {band.high:.2f}, {band.verdict}) as fast"
        f" as {rival}: it {stage_reason(mine, theirs)}, {flop_reason(flops)};"
        f" {bound_reason(best.prediction.bound, other.prediction.bound)}"
    )


_CLASSES = {
    "full": "FullAttention",
    "low-rank": "LinformerAttention",
    "kernel": "PerformerAttention",
    "flurka": "FLuRKAAttention",
}


def python_line(case: Case) -> str:
    """The line of Python that builds this layer, after ``python_imports``."""
    cell = MECHANISMS[case.mechanism]
    arguments = [f"model_dim={case.model_dim}", f"num_heads={case.num_heads}"]
    if cell.compressed:
        arguments += [f"seq_len={case.seq_len}", f"rank={case.rank}"]
    if cell.uses_features:
        arguments.append(f"num_features={case.num_features}")
    if cell.is_kernel:
        arguments.append(f'similarity="{cell.similarity}"')
    else:
        arguments.append(f"sdpa={cell.similarity == 'sdpa'}")
    arguments += [f'order="{case.order}"', f"dtype=torch.{case.dtype}"]
    built = f"{_CLASSES[FAMILY_OF[case.mechanism]]}({', '.join(arguments)})"
    return {
        "compiled": f"torch.compile({built}, dynamic=False)",
        "fused": f"fuse({built}.cuda())",
    }.get(case.backend, built)


def python_imports(case: Case) -> str:
    """What ``python_line`` needs, as one line."""
    line = f"import torch; from flurka_bench.attention import {_CLASSES[FAMILY_OF[case.mechanism]]}"
    return line + (
        "; from flurka_bench.attention.fused import fuse" if case.backend == "fused" else ""
    )
