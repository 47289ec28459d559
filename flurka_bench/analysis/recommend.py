"""Which configuration to use for one workload: the whole space searched by the cost model, under the floors quality asks for.

A smaller k or m is always faster, so an answer without a floor says nothing. Where none is given the defaults below are assumed
and said, and ``moves`` shows how the answer changes with the floor. NumPy only: neither torch nor pandas.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flurka_bench.analysis.baselines import FAMILY_OF
from flurka_bench.analysis.stages import reason
from flurka_bench.cost.predict import BOUNDS, predict, predict_many
from flurka_bench.cost.uncertainty import ratio_band
from flurka_bench.errors import RequestError
from flurka_bench.hardware import Profile
from flurka_bench.mechanisms import MECHANISMS, canonical
from flurka_bench.quality.frontier import ErrorRun
from flurka_bench.workload import Case

# Linformer's usual k (arXiv 2006.04768, figure 2: near full attention from k = 128 to 256 on) and m = d of the common head.
DEFAULT_MIN_RANK, DEFAULT_MIN_FEATURES = 256, 64
RANKS = (32, 64, 128, 256, 512, 1024, 2048)
NUM_FEATURES = (16, 32, 64, 128, 256, 512)
HEAD_DIMS = (32, 64, 128, 256)
FLOOR_SCALES = (0.25, 0.5, 1, 2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked: a workload, the floors on quality and the ceilings on cost; None means no limit."""

    seq_len: int
    model_dim: int
    batch: int = 1
    pass_: str = "forward"
    dtype: str = "float32"
    launch: str = "eager"
    head_dims: tuple[int, ...] = HEAD_DIMS
    min_rank: int | None = None
    min_features: int | None = None
    max_error: float | None = None
    max_memory_bytes: float | None = None
    max_latency_s: float | None = None

    def __post_init__(self) -> None:
        if not any(self.model_dim % d == 0 for d in self.head_dims):
            dims = ", ".join(map(str, self.head_dims))
            raise RequestError(f"--model-dim must be a multiple of a head_dim ({dims}; --head-dim), got {self.model_dim}")
        if self.min_rank is not None and self.min_rank > self.seq_len:
            raise RequestError(f"--min-rank must be at most --seq-len, got {self.min_rank} > {self.seq_len}")

    @property
    def floors(self) -> tuple[int, int]:
        """(rank, num_features) that an answer must have at least; the defaults where no floor of any kind was given."""
        given = (self.min_rank, self.min_features, self.max_error) != (None, None, None)
        defaults = (1, 1) if given else (min(DEFAULT_MIN_RANK, self.seq_len), DEFAULT_MIN_FEATURES)
        return self.min_rank or defaults[0], self.min_features or defaults[1]

    @property
    def assumption(self) -> str:
        """The floor in words, and whether it was asked for."""
        rank, num_features = self.floors
        asked = (self.min_rank, self.min_features, self.max_error) != (None, None, None)
        error = f", error at most {self.max_error:g}" if self.max_error is not None else ""
        said = f"rank k >= {rank}, num_features m >= {num_features}{error}"
        if asked:
            return f"quality floor: {said}"
        return f"no quality floor was given: assumed {said} (set --min-rank, --min-features or --max-error)"


@dataclass(slots=True, kw_only=True)
class Candidate:
    """One configuration with its time: predicted, or measured where a run has it. ``error`` is (low, median, high) or None."""

    case: Case
    seconds: float
    seconds_low: float
    seconds_high: float
    peak_memory_bytes: float
    bound: str
    log_scale: float
    log_shape: float
    source: str = "predicted"
    error: tuple[float, float, float] | None = None
    tied: bool = False
    family_best: bool = False
    pareto: bool = False

    @property
    def family(self) -> str:
        """full, low-rank, kernel or flurka."""
        return FAMILY_OF[self.case.mechanism]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """The answer for one target. ``ranked``: one candidate per mechanism, order, backend and head split, fastest first.

    ``front``: no other candidate is better in time, memory and error (k and m stand for the error where none is known).
    ``moves``: the fastest at scaled floors. ``notes`` are what a reader must know; ``reason`` is why the first beats the best
    of the other families.
    """

    profile: Profile
    request: Request
    ranked: Sequence[Candidate]
    front: Sequence[Candidate]
    moves: Sequence[tuple[int, int, Candidate | None]]
    reason: str
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def families(self) -> list[Candidate]:
        """The fastest of each family, fastest first."""
        return [candidate for candidate in self.ranked if candidate.family_best]


def own_dtype(profile: Profile) -> str:
    """The dtype one would use there: bfloat16 or float16 where matrix units take it, else float32."""
    return next((name for name in ("bfloat16", "float16") if f"tensor.{name}" in profile.peaks), "float32")


def _sizes(request: Request, uses_rank: bool, uses_features: bool) -> dict[str, np.ndarray]:
    """The grid of head split, rank and num_features as flat arrays; floors and their scaled forms are on it."""
    rank_floor, feature_floor = request.floors
    scaled = [max(1, round(scale * rank_floor)) for scale in FLOOR_SCALES]
    ranks = sorted({k for k in (*RANKS, *scaled) if k <= request.seq_len}) if uses_rank else [0]
    features = (
        sorted({*NUM_FEATURES, *(max(1, round(scale * feature_floor)) for scale in FLOOR_SCALES)}) if uses_features else [0]
    )
    dims = [d for d in request.head_dims if request.model_dim % d == 0]
    d, k, m = (axis.ravel() for axis in np.meshgrid(dims, ranks, features, indexing="ij"))
    found = {"head_dim": d, "num_heads": request.model_dim // d}
    return found | ({"rank": k} if uses_rank else {}) | ({"num_features": m} if uses_features else {})


def search(profile: Profile, request: Request) -> list[Candidate]:
    """Every mechanism x order x backend x head split x k x m, predicted; floors are not applied yet."""
    found = []
    for cell in MECHANISMS.values():
        sizes = _sizes(request, cell.uses_rank, cell.uses_features)
        for order in cell.orders:
            for backend in ("eager", "compiled", "fused") if profile.kind == "gpu" else ("eager", "compiled"):
                first = Case(
                    mechanism=cell.name, level="layer", pass_=request.pass_, order=order, backend=backend, dtype=request.dtype,
                    batch=request.batch, seq_len=request.seq_len, **{name: int(values[0]) for name, values in sizes.items()},
                )  # fmt: skip
                try:
                    first = canonical(first)
                except RequestError:
                    continue  # the mechanism has no such kernels
                varied = sizes | ({"num_features": sizes["head_dim"]} if cell.similarity == "elu" else {})
                at = 0
                for part in predict_many(first.replace(**varied), profile, launch=request.launch):
                    for row in range(len(part)):
                        case = first.replace(**{name: int(values[at]) for name, values in varied.items()})
                        found.append(_candidate(case, part, row))
                        at += 1
    return found


def _candidate(case: Case, part: Any, row: int) -> Candidate:
    names = ("seconds", "seconds_low", "seconds_high", "peak_memory_bytes", "log_scale", "log_shape")
    return Candidate(case=case, bound=BOUNDS[part.bound[row]], **{name: float(getattr(part, name)[row]) for name in names})


def use_measured(candidates: list[Candidate], records: Iterable[Mapping[str, Any]]) -> tuple[list[Candidate], int]:
    """Put measured times where a record of the same case has one; drop cases that failed. Returns the number replaced."""
    measured = {record["case_id"]: record for record in records}
    kept, replaced = [], 0
    for candidate in candidates:
        record = measured.get(candidate.case.case_id)
        if record is None:
            kept.append(candidate)
        elif record["status"] == "ok":
            samples = np.log(record["samples_s"])
            error = 1.96 * float(np.std(samples)) / np.sqrt(len(samples)) if len(samples) > 1 else 0.02
            candidate.seconds, candidate.source = float(record["median_s"]), "measured"
            candidate.seconds_low, candidate.seconds_high = (candidate.seconds * float(np.exp(sign * error)) for sign in (-1, 1))
            candidate.log_scale, candidate.log_shape = 0.0, float(error)
            candidate.peak_memory_bytes = float(record.get("peak_memory_bytes") or candidate.peak_memory_bytes)
            kept.append(candidate)
            replaced += 1
    return kept, replaced


def known_errors(candidates: Iterable[Candidate], errors: ErrorRun, inputs: str) -> list[str]:
    """Set ``error`` where the error run has it, at its longest N where the workload is longer (and say so in the notes)."""
    longest = max((summary.seq_len for summary in errors.summaries), default=0)
    seen: dict[tuple, Any] = {}
    notes = set()
    for candidate in candidates:
        case = candidate.case
        n = min(case.seq_len, longest)
        key = (case.mechanism, case.rank, case.num_features, case.head_dim, case.compression)
        if key not in seen:
            rank = case.rank if case.rank is None or case.rank <= n else None
            missing = case.rank is not None and rank is None
            seen[key] = None if missing else errors.error_interval(
                mechanism=case.mechanism, rank=rank, num_features=case.num_features, seq_len=n, head_dim=case.head_dim,
                family=inputs, compression=case.compression,
            )  # fmt: skip
        candidate.error = tuple(seen[key]) if seen[key] is not None else None
        if n < case.seq_len:
            notes.add(
                f"errors are those at N = {n}, the longest measured, on {inputs} inputs; at N = {case.seq_len} they may be larger"
            )
    return sorted(notes)


def _allowed(candidate: Candidate, request: Request, floors: tuple[int, int], profile: Profile) -> bool:
    case = candidate.case
    ceiling = min(request.max_memory_bytes or np.inf, profile.memory_bytes)
    return (
        (case.rank is None or case.rank >= floors[0])
        and (case.num_features is None or case.num_features >= floors[1])
        and candidate.peak_memory_bytes <= ceiling
        and (request.max_latency_s is None or candidate.seconds <= request.max_latency_s)
        and (request.max_error is None or (candidate.error is not None and candidate.error[1] <= request.max_error))
    )


def _form(candidate: Candidate) -> tuple:
    case = candidate.case
    return case.mechanism, case.order, case.backend, case.head_dim


def recommend(
    profile: Profile, request: Request, *, records: Iterable[Mapping[str, Any]] = (), errors: ErrorRun | None = None,
    inputs: str | None = None,
) -> Recommendation:  # fmt: skip
    """Search, filter, rank. ``records`` of a run on this target replace predictions; ``errors`` gives configurations theirs.

    Raises:
        RequestError: nothing satisfies the limits (which, and what the nearest has), or --max-error without an error run.
    """
    if request.max_error is not None and errors is None:
        raise RequestError("--max-error needs measured errors: give an error run with --errors (flurka-bench quality run)")
    candidates, replaced = use_measured(search(profile, request), records)
    notes = [f"{replaced} of {len(candidates)} configurations are measured, the others predicted"] if replaced else []
    if len(request.head_dims) > 1:
        notes.append(
            "the head split is free, and m counts per head: fewer heads have fewer features in all (fix it with --head-dim)"
        )
    if errors is not None:
        notes += known_errors(candidates, errors, inputs or errors.families[0])
    candidates.sort(key=lambda candidate: candidate.seconds)
    allowed = [candidate for candidate in candidates if _allowed(candidate, request, request.floors, profile)]
    if not allowed:
        raise RequestError(_nothing(candidates, request, profile))
    forms: dict[tuple, Candidate] = {}
    for candidate in allowed:
        forms.setdefault(_form(candidate), candidate)
    ranked = list(forms.values())
    best = ranked[0]
    for candidate in ranked:
        band = ratio_band(
            candidate.seconds / best.seconds, (best.log_scale, candidate.log_scale), (best.log_shape, candidate.log_shape)
        )
        candidate.tied = candidate is not best and band.low <= 1
    for candidate in {candidate.family: candidate for candidate in reversed(ranked)}.values():
        candidate.family_best = True
    front = pareto(allowed)
    for candidate in front:
        candidate.pareto = True
    rank_floor, feature_floor = request.floors
    moves = []
    for scale in FLOOR_SCALES:
        floors = (min(max(1, round(scale * rank_floor)), request.seq_len), max(1, round(scale * feature_floor)))
        moves.append((*floors, next((each for each in candidates if _allowed(each, request, floors, profile)), None)))
    return Recommendation(
        profile=profile, request=request, ranked=ranked, front=front, moves=moves, notes=[*notes, request.assumption],
        reason=_why(ranked, profile, request),
    )  # fmt: skip


def _nothing(candidates: Sequence[Candidate], request: Request, profile: Profile) -> str:
    rank, num_features = request.floors
    at_floor = [
        each
        for each in candidates
        if (each.case.rank or rank) >= rank and (each.case.num_features or num_features) >= num_features
    ]
    least_s = min((each.seconds for each in at_floor), default=np.nan)
    least_bytes = min((each.peak_memory_bytes for each in at_floor), default=np.nan)
    errors = [each.error[1] for each in candidates if each.error is not None]
    least_error = f", the least error {min(errors):.3g}" if errors else ""
    return (
        f"no configuration on {profile.title} satisfies all limits ({request.assumption}): the fastest at the floor takes "
        f"{least_s * 1e3:.3g} ms, the leanest {least_bytes / 1e9:.3g} GB{least_error} (--max-latency, --max-memory, --max-error)"
    )


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates (fastest first) that no other beats in time, memory and error together; with an unknown error, k and m
    count instead: more of either may be more accurate."""  # fmt: skip
    kept: list[Candidate] = []
    for one in candidates:
        if not any(_beats(other, one) for other in kept):
            kept.append(one)
    return kept


def _quality(candidate: Candidate) -> tuple[float, ...]:
    """Smaller is better in every place: the negative k and m, infinite where nothing is given up."""
    case = candidate.case
    return (-(case.rank or np.inf), -(np.inf if case.num_features is None else case.num_features))


def _beats(a: Candidate, b: Candidate) -> bool:
    """Whether a is no worse than b in all respects (it is at least as fast already)."""
    if a.peak_memory_bytes > b.peak_memory_bytes:
        return False
    if a.error is not None and b.error is not None:
        return a.error[1] <= b.error[1]
    return all(x <= y for x, y in zip(_quality(a), _quality(b)))


def _why(ranked: Sequence[Candidate], profile: Profile, request: Request) -> str:
    """Why the first beats the fastest of the other families, by stage, bound and FLOPs of the prediction."""
    best = ranked[0]
    other = next((candidate for candidate in ranked if candidate.family != best.family), None)
    if other is None:
        return "nothing else satisfies the limits"
    found = predict([best.case, other.case], profile, launch=request.launch)
    own, theirs = (each.as_record() | {"predicted_stages_s": each.stages} for each in found)
    tie = "tied with" if other.tied else f"{other.seconds / best.seconds:.2f}× faster than"
    return f"{tie} {other.case.mechanism}: {reason(own, theirs)}"


def python_line(case: Case) -> str:
    """One line of Python that builds the layer of a case."""
    cell = MECHANISMS[case.mechanism]
    sizes = {"model_dim": case.model_dim, "num_heads": case.num_heads}
    dtype = f"torch.{case.dtype}"
    if case.backend == "fused":
        rows = None
        if cell.compressed:
            rows = f"Compression(seq_len={case.seq_len}, rank={case.rank}, num_heads={case.num_heads}, dtype={dtype})"
        arguments = (
            f"{cell.similarity!r}, {case.head_dim}"
            + (f", {case.num_features}" if cell.uses_features else "")
            + f", dtype={dtype}"
        )
        features = f"FusedFeatures(feature_map({arguments}))"
        made = f"AttentionLayer({case.model_dim}, {case.num_heads}, {features}, {rows}, order={case.order!r}, dtype={dtype})"
        imports = "from flurka_bench.attention import AttentionLayer, Compression, feature_map"
        imports += "; from flurka_bench.attention.fused import FusedFeatures"
        return f"import torch; {imports}; layer = {made}"
    name = {
        "full": "FullAttention",
        "low-rank": "LinformerAttention",
        "kernel": "PerformerAttention",
        "flurka": "FLuRKAAttention",
    }
    made_by = name[FAMILY_OF[case.mechanism]]
    if cell.compressed:
        sizes |= {"seq_len": case.seq_len, "rank": case.rank}
    if cell.uses_features:
        sizes["num_features"] = case.num_features
    words = [f"{key}={value}" for key, value in sizes.items()]
    words += [f"similarity={cell.similarity!r}"] if cell.is_kernel else [f"sdpa={cell.similarity == 'sdpa'}"]
    words += [f"compression={case.compression!r}"] if case.compression != "dense" else []
    words += ["share_kv=True"] if case.share_kv else []
    words += [f"order={case.order!r}"] if len(cell.orders) > 1 else []
    made = f"{made_by}({', '.join(words)}, dtype={dtype})"
    made = f"torch.compile({made})" if case.backend == "compiled" else made
    return f"import torch; from flurka_bench.attention import {made_by}; layer = {made}"


def as_records(found: Recommendation) -> list[dict[str, Any]]:
    """The ranked candidates and the front, fastest first, under ``predict --json``'s names and what ranks them."""
    chosen = {candidate.case.case_id: candidate for candidate in (*found.ranked, *found.front)}
    records = []
    cases = [candidate.case for candidate in chosen.values()]
    own = {each.case.case_id: each for each in predict(cases, found.profile, launch=found.request.launch)}
    for rank, candidate in enumerate(sorted(chosen.values(), key=lambda each: each.seconds), start=1):
        prediction = own[candidate.case.case_id].as_record()
        records.append(
            prediction
            | {"seconds": candidate.seconds, "seconds_low": candidate.seconds_low, "seconds_high": candidate.seconds_high}
            | {"peak_memory_bytes": candidate.peak_memory_bytes, "place": rank, "family": candidate.family}
            | {"source": candidate.source, "tied": candidate.tied, "family_best": candidate.family_best}
            | {"pareto": candidate.pareto, "error": candidate.error and dict(zip(("low", "median", "high"), candidate.error))}
            | {"python": python_line(candidate.case), "assumption": found.request.assumption}
            | ({"reason": found.reason} if rank == 1 else {})
        )  # fmt: skip
    return records
