"""The worker's side of the kind "error": draws an input, measures configurations against it.

Full attention of an input is computed once (once per pass, where it is too long to keep), and all
configurations are measured against it. What is drawn or fitted for an input depends on names and
seeds alone, so that a resumed run gives the numbers that an uninterrupted one would have.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flurka_bench.attention.similarity import FeatureMap
from flurka_bench.bench.outcomes import LATE, NOBODY
from flurka_bench.bench.protocol import Beat, Message, Say
from flurka_bench.cases import registry
from flurka_bench.devices.device import CpuDevice
from flurka_bench.devices.environment import capture
from flurka_bench.kinds.error import implied, inputs, projections
from flurka_bench.kinds.error.kind import Input
from flurka_bench.kinds.error.metrics import (
    BLOCK_BYTES,
    Candidate,
    Errors,
    Reference,
    measure,
)
from flurka_bench.kinds.error.suite import Configuration

# above this the implied matrix is not the implementation's, and the record says "incorrect"
MISMATCH_LIMIT = 1e-6
_MAX_TOGETHER = 48
_REFIT_INPUTS = 4  # eight moved errors on the trained encoder by at most 0.003, at twice the cost


class _Source:
    """Where an input and those to train on come from: its family at its size and layer."""

    def __init__(self, at: Input, family: inputs.Family) -> None:
        self.at, self.family = at, family

    def draw(self, seed: int, *, train: bool = False) -> inputs.Draw:
        """An input of this family, size and layer."""
        at = self.at
        sizes = {"num_heads": at.num_heads, "seq_len": at.seq_len, "head_dim": at.head_dim}
        return self.family.draw(seed, **sizes, layer=at.layer, train=train)


class _Training:
    """The training inputs of one family, size and layer, and the E and F fitted on them."""

    def __init__(self, source: _Source, num_inputs: int) -> None:
        draws = [source.draw(seed, train=True) for seed in range(num_inputs)]
        self.inputs = [(draw, implied.reference(draw)) for draw in draws]
        self._fitted: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def fit(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """E and F for the softmax, which no seed changes."""
        if rank not in self._fitted:
            self._fitted[rank] = projections.learn(
                [reference for _, reference in self.inputs], rank
            )
        return self._fitted[rank]

    def refit(self, rank: int, features: FeatureMap) -> torch.Tensor:
        """F for a feature map on the keys that the softmax's E gives, by ridge least squares around
        the softmax's F."""
        (E, F), some = self.fit(rank), self.inputs[:_REFIT_INPUTS]
        attend = [implied.compressed_keys(draw, E, features).attention for draw, _ in some]
        return projections.least_squares([reference for _, reference in some], attend, F)


class _TrainingCache:
    """The training inputs of one layer at a time, drawn when first asked for."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._kept: _Training | None = None

    def get(self, source: _Source, num_inputs: int) -> _Training:
        """Those of the source's family, size and layer."""
        at = source.at
        key = (at.label, at.seq_len, at.head_dim, at.layer, num_inputs)
        if self._kept is None or key != self._key:
            self._kept = None  # free the last layer's before drawing the next
            self._key, self._kept = key, _Training(source, num_inputs)
        return self._kept


class _Candidates:
    """Builds the candidates of one input."""

    def __init__(
        self,
        at: Input,
        reference: Reference,
        draw: inputs.Draw,
        training: Callable[[], _Training],
    ) -> None:
        self.at, self.reference, self.draw, self.training = at, reference, draw, training
        ranks = [item.rank or 0 for item in at.configurations if item.projection == "optimal"]
        self._num_vectors = max(ranks, default=0)
        self._vectors: torch.Tensor | None = None

    def candidate(self, wanted: Configuration) -> Candidate:
        """One configuration as a candidate."""
        at, rank, projection = self.at, wanted.rank or 0, wanted.projection
        if projection == "optimal":
            if self._vectors is None:
                source = inputs.generator("optimal", at.label, at.seq_len, at.seed)
                self._vectors = projections.right_singular_vectors(
                    self.reference, self._num_vectors, source
                )
            return implied.optimal(self._vectors, rank)
        cell = registry.get(wanted.mechanism)
        features = implied.feature_map(
            cell.similarity,
            head_dim=at.head_dim,
            num_features=wanted.num_features,
            source=inputs.generator("features", at.head_dim, wanted.num_features, at.seed),
        )
        if projection is None:  # nothing is compressed, so there are features
            assert features is not None
            return implied.uncompressed(self.draw, features)
        if projection == "learned":
            training = self.training()
            E, parent = training.fit(rank)
            F = parent if features is None else training.refit(rank, features)
            return implied.compressed(self.draw, E, F, features, parent_F=parent)
        source = inputs.generator("projection", projection, rank, at.seq_len, at.seed)
        E, F = projections.draw(projection, rank, at.seq_len, source, share_kv=wanted.share_kv)
        kind = projection if projection in projections.FIXED else "dense"
        return implied.compressed(self.draw, E, F, features, kind=kind)

    def size_bytes(self, wanted: Configuration) -> int:
        """About what a candidate keeps: its thin factors."""
        inner = wanted.num_features or wanted.rank or 0
        return 8 * self.at.num_heads * self.at.seq_len * inner


class ErrorBench:
    """See ``bench.kind.Bench``. Keeps the last family and the inputs its layer was fitted on."""

    def __init__(self) -> None:
        self.hello: Message = {"device": "cpu", "environment": capture(CpuDevice())}
        self.calls_s: dict[str, float] = {}
        self._training = _TrainingCache()
        self._family_key: tuple[Any, ...] = ()
        self._family: inputs.Family | None = None

    def run(self, group: Message, say: Say, beat: Beat) -> None:
        """Measure what ``ErrorPlan.message`` made."""
        started, found = time.monotonic(), dict(group["input"])
        found["configurations"] = tuple(Configuration(**each) for each in found["configurations"])
        at = Input(**found)
        waiting = [(index, at.configurations[each]) for index, each in enumerate(group["cases"])]

        def tell(index: int, outcome: dict[str, Any]) -> None:
            say({"say": "outcome", "index": index, **outcome})

        say({"say": "phase", "case_id": at.title, "phase": "full attention"})
        for together, outcomes in self._measured(at, waiting, group):
            for (index, _), outcome in zip(together, outcomes, strict=True):
                tell(index, outcome)
            self.calls_s = {"errors": time.monotonic() - started}
            say({"say": "phase", "case_id": at.title, "phase": "errors"})
            beat(NOBODY)
        self.calls_s = {"errors": time.monotonic() - started}

    def _source(self, at: Input) -> _Source:
        key = (at.name, sorted(at.parameters.items()))
        if self._family is None or key != self._family_key:
            self._family_key, self._family = key, inputs.family(at.name, **at.parameters)
        return _Source(at, self._family)

    def _measured(
        self, at: Input, waiting: "list[_Waiting]", group: Message
    ) -> "Iterator[tuple[list[_Waiting], list[dict[str, Any]]]]":
        """The cases in batches, with their outcomes."""
        started, deadline_s = time.monotonic(), group["deadline_s"]
        try:
            source = self._source(at)
            draw = source.draw(at.seed)
            reference = implied.reference(draw)
        except (MemoryError, RuntimeError) as error:  # sizes that this machine does not hold
            yield waiting, [_failed(error)] * len(waiting)
            return
        candidates = _Candidates(
            at, reference, draw, lambda: self._training.get(source, group["training_inputs"])
        )
        for number, together in enumerate(_batches(waiting, candidates.size_bytes)):
            late = deadline_s is not None and time.monotonic() - started > deadline_s
            if number and late:
                yield together, [{"status": "skipped", "error": LATE}] * len(together)
                continue
            lanczos = inputs.generator("lanczos", at.label, at.seq_len, at.seed)
            try:
                built = [candidates.candidate(item) for _, item in together]
                results = measure(reference, built, lanczos, spectral=group["spectral"])
            except (MemoryError, RuntimeError) as error:
                yield together, [_failed(error)] * len(together)
                continue
            yield together, [_outcome(errors) for errors in results]


def _failed(error: MemoryError | RuntimeError) -> dict[str, Any]:
    """Status and error of a case; torch reports exhausted memory and failed decompositions as
    RuntimeError."""
    status = "oom" if isinstance(error, MemoryError) or "memory" in str(error) else "crashed"
    return {"status": status, "error": " ".join(str(error).split())[:300] or type(error).__name__}


_Waiting = tuple[int, Configuration]  # index among the cases of the message


def _batches(
    items: list[_Waiting], size: Callable[[Configuration], int]
) -> Iterator[list[_Waiting]]:
    """As many together as keep their factors within half a block, at least one."""
    batch: list[_Waiting] = []
    held = 0
    for item in items:
        own = size(item[1])
        if batch and (held + own > BLOCK_BYTES // 2 or len(batch) == _MAX_TOGETHER):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += own
    if batch:
        yield batch


def _outcome(errors: Errors) -> dict[str, Any]:
    by_head = (
        "matrix_frobenius",
        "matrix_spectral",
        "kl_nats",
        "output_frobenius",
        "output_cosine",
    )
    values: dict[str, Any] = {}
    for name in by_head:
        tensor = getattr(errors, name)
        if tensor is not None:
            values[name] = [float(f"{value:.5g}") for value in tensor.tolist()]
    values |= {"output_error": errors.output_error, "factor_mismatch": errors.factor_mismatch}
    for parent, (error, step) in errors.parents.items():
        values |= {f"{parent}_error": error, f"{parent}_step": step}
    scalars = [
        item
        for value in values.values()
        for item in (value if isinstance(value, list) else [value])
    ]
    if not all(math.isfinite(value) for value in scalars):
        return {"status": "invalid", "error": "an error is not a finite number"}
    if errors.factor_mismatch > MISMATCH_LIMIT:
        line = (
            "the implied matrix and the implementation differ by"
            f" {errors.factor_mismatch:.1e} of the output"
        )
        return values | {"status": "incorrect", "error": line}
    return values | {"status": "ok"}
