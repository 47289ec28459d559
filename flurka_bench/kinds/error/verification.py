"""The bounds against what they bound: how often each holds in many draws, and how far above the
measured error it lies.

``table`` is what ``quality bounds`` prints and docs/error.md shows; a test holds every row of it to
its stated probability.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flurka_bench.attention.similarity import FavorFeatures
from flurka_bench.kinds.error import (
    bounds,
    projections,
)
from flurka_bench.kinds.error.implied import Similarity
from flurka_bench.kinds.error.inputs import (
    Clustered,
    Draw,
    Gaussian,
    generator,
)

DELTA = 0.1
VACUOUS_ABOVE = 1.0  # a bound on the relative error says nothing once the zero output would meet it


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One bound at one setting, both relative to |O|_F (or |A|_F); ``measured`` is a median over
    draws, or their mean square."""

    name: str
    setting: str
    # probability with which it holds; for "moment" bounds, those on a root mean square, 1
    stated: float
    held: float  # fraction of draws (and rows, where it is by row) in which it did
    bound: float
    measured: float
    limit: float  # the factor that bound / measured is stated to stay within at this setting

    @property
    def factor(self) -> float:
        """Bound over measured; below 1 only for lower limits."""
        return self.bound / self.measured

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than an output of zeros would."""
        return not self.bound < VACUOUS_ABOVE


def _head(draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    return draw.q[0], draw.k[0], draw.v[0]


def _relative(rows: Tensor, output: Tensor) -> float:
    """Row errors to one relative error of the output."""
    return float(rows.square().sum().sqrt() / output.norm())


def _favor_output(
    q: Tensor, keys: Tensor, values: Tensor, num_features: int, source: torch.Generator
) -> Tensor:
    """The implementation's output with independent features, for which the bound is stated (its own
    are orthogonal)."""
    d = q.shape[-1]
    features = FavorFeatures(head_dim=d, num_features=num_features, dtype=torch.float64)
    assert features.omega is not None
    features.omega.copy_(
        torch.randn(d, num_features, generator=source, dtype=torch.float64) * d**-0.25
    )
    return Similarity(keys.unsqueeze(0), features).attention(q.unsqueeze(0)).squeeze(0) @ values


def _spectrum(num_draws: int) -> Iterator[Row]:
    family = Clustered(clusters=16, contiguous=True)
    inputs = [
        _head(family.draw(seed, num_heads=1, seq_len=128, head_dim=16))[:2]
        for seed in range(num_draws)
    ]
    matrices = [bounds.attention(q, k) for q, k in inputs]
    spectra = [torch.linalg.svdvals(A) for A in matrices]
    for rank in (8, 32):
        pooled = projections.mean_pool(rank, 128)
        tails, errors, sketches, attained = [], [], [], []
        for (q, k), A, singular in zip(inputs, matrices, spectra):
            tails.append(bounds.spectral_tail(singular, rank) / float(A.norm()))
            errors.append(float((A - bounds.attention(q, pooled @ k) @ pooled).norm() / A.norm()))
        for seed in range(num_draws):
            A, singular = matrices[seed], spectra[seed]
            G = torch.randn(
                rank, 128, generator=generator("sketch", rank, seed), dtype=torch.float64
            )
            basis = torch.linalg.qr((G @ A).mT)[0]
            sketches.append(bounds.sketch_error(singular, rank) / float(A.norm()))
            attained.append(float((A - A @ basis @ basis.mT).norm() / A.norm()))
        held = sum(tail <= error * (1 + 1e-12) for tail, error in zip(tails, errors)) / len(tails)
        setting = f"clustered, N 128, d 16, k {rank}"
        yield Row(
            name="Eckart-Young (lower limit; mean-pool measured)",
            setting=setting,
            stated=1.0,
            held=held,
            bound=_median(tails),
            measured=_median(errors),
            limit=1.0,
        )
        yield _moment("spectrum, sketched F", setting, sketches, attained, limit=2.0)


def _compression(num_draws: int) -> Iterator[Row]:
    q, k, v = _head(Gaussian(scale=0.5).draw(0, num_heads=1, seq_len=128, head_dim=16))
    A = bounds.attention(q, k)
    full = A @ v
    for rank in (64, 512):  # k above N: the lemma does not mind, and its epsilon needs it
        exact = bounds.jl_root_mean_square(A, v, rank) / float(full.norm())
        epsilon = bounds.jl_epsilon(rank, A.shape[0] * v.shape[1], DELTA)
        limit = epsilon * float(A.norm() * v.norm()) / float(full.norm())
        sizes = epsilon * A.norm(dim=1, keepdim=True) * v.norm(dim=0)  # of each product
        measured, held = [], 0
        for seed in range(num_draws):
            R = projections.gaussian(rank, 128, generator("jl", rank, seed))
            difference = (A @ R.mT) @ (R @ v) - full
            measured.append(float(difference.norm() / full.norm()))
            held += bool((difference.abs() <= sizes).all())
        setting = f"gaussian-0.5, N 128, d 16, k {rank}"
        yield _moment(
            "Johnson-Lindenstrauss, A RᵀR v, exact mean square",
            setting,
            [exact],
            measured,
            limit=1.1,
        )
        yield Row(
            name="Johnson-Lindenstrauss, A RᵀR v, all products",
            setting=setting,
            stated=1 - DELTA,
            held=held / num_draws,
            bound=limit,
            measured=_median(measured),
            limit=math.inf if math.isinf(limit) else 10.0,
        )
    measured, predicted = [], []
    for seed in range(num_draws):
        source = generator("independent", seed)
        E, F = projections.draw("gaussian", 64, 128, source, share_kv=False)
        C = bounds.attention(q, E @ k)
        predicted.append(bounds.independent_root_mean_square(C, v, full) / float(full.norm()))
        measured.append(float((C @ (F @ v) - full).norm() / full.norm()))
    yield _moment(
        "Gaussian E, F independent, exact mean square",
        "gaussian-0.5, N 128, d 16, k 64",
        predicted,
        measured,
        limit=1.1,
    )
    yield from _pooled(num_draws)


def _pooled(num_draws: int) -> Iterator[Row]:
    for spread, rank in ((0.05, 32), (0.2, 32), (0.2, 8)):
        limits, errors, held = [], [], []
        for seed in range(num_draws):
            source = generator("segments", spread, seed)
            # 32 segments of four positions that share a key and a value up to ``spread``, on which
            # windows can fall
            q, k, v = torch.randn(3, 128, 16, generator=source, dtype=torch.float64)
            k, v = (x[:32].repeat_interleave(4, 0) + spread * x for x in (k, v))
            full, pooled = bounds.attention(q, k) @ v, projections.mean_pool(rank, 128)
            rows = (bounds.attention(q, pooled @ k) @ (pooled @ v) - full).norm(dim=-1)
            limit = bounds.mean_pool_rows(q, k, v, rank)
            held.append(bool((rows <= limit * (1 + 1e-9)).all()))
            limits.append(_relative(limit, full))
            errors.append(_relative(rows, full))
        yield Row(
            name="mean-pool, by window spread",
            setting=f"segments of 4, spread {spread}, N 128, d 16, k {rank}",
            stated=1.0,
            held=sum(held) / num_draws,
            bound=_median(limits),
            measured=_median(errors),
            limit=100.0,  # every window's error is taken to point the same way, and at the query
        )


def _favor_rows(
    name: str, qkv: tuple[Tensor, Tensor, Tensor], full: Tensor, num_features: int, seed: int
) -> Tensor:
    """Errors by row (n,) of one draw of features."""
    output = _favor_output(*qkv, num_features, generator(name, num_features, seed))
    errors: Tensor = (output - full).norm(dim=-1)
    return errors


def _favor(num_draws: int) -> Iterator[Row]:
    q, k, v = _head(Gaussian(scale=0.5).draw(0, num_heads=1, seq_len=64, head_dim=16))
    full = bounds.attention(q, k) @ v
    moments = bounds.favor_rows(q, k, v)
    for num_features in (64, 512, 2048):
        limit = bounds.favor_row_bound(moments, num_features, DELTA)
        yield _rows_held(
            "FAVOR+ with its normaliser",
            f"gaussian-0.5, N 64, d 16, m {num_features}",
            limit,
            full,
            partial(_favor_rows, "favor", (q, k, v), full, num_features),
            num_draws,
        )
    pooled = projections.mean_pool(16, 64)
    keys, values = pooled @ k, pooled @ v
    parent = (bounds.attention(q, keys) @ values - full).norm(dim=-1)
    for num_features in (16, 64, 512):
        limit = bounds.flurka_row_bound(parent, q, keys, values, num_features, DELTA)
        yield _rows_held(
            "FLuRKA: low-rank parent + FAVOR+ on k keys",
            f"gaussian-0.5, N 64, d 16, k 16, m {num_features}",
            limit,
            full,
            partial(_favor_rows, "flurka", (q, keys, values), full, num_features),
            num_draws,
        )


def _rows_held(
    name: str,
    setting: str,
    limit: Tensor,
    output: Tensor,
    errors: Callable[[int], Tensor],
    num_draws: int,
) -> Row:
    held, measured = 0.0, []
    for seed in range(num_draws):
        rows = errors(seed)
        held += float((rows <= limit).double().mean()) / num_draws
        measured.append(_relative(rows, output))
    bound = _relative(limit, output)
    return Row(
        name=name,
        setting=setting,
        stated=1 - DELTA,
        held=held,
        bound=bound,
        measured=_median(measured),
        limit=math.inf if math.isinf(bound) else 15.0,
    )


def _moment(
    name: str, setting: str, stated: list[float], measured: list[float], limit: float
) -> Row:
    """A statement about a root mean square over draws; it holds within four standard errors of the
    measured one."""
    squares = torch.tensor(measured, dtype=torch.float64).square()
    bound = math.sqrt(sum(value**2 for value in stated) / len(stated))
    error = float(squares.std() / math.sqrt(len(squares))) if len(squares) > 1 else 0.0
    return Row(
        name=name,
        setting=setting,
        stated=1.0,
        held=float(float(squares.mean()) <= bound**2 + 4 * error),
        bound=bound,
        measured=math.sqrt(float(squares.mean())),
        limit=limit,
    )


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).median())


def table(num_draws: int = 1000) -> Iterator[Row]:
    """Every bound at its stated settings, each against ``num_draws`` draws."""
    yield from _spectrum(num_draws)
    yield from _compression(num_draws)
    yield from _favor(num_draws)
