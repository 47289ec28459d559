"""How E and F (k x N) are chosen: what an approximation by compression depends on most.

gaussian     independent N(0, 1/k) entries, as in the Johnson-Lindenstrauss lemma and as dense E, F
             are initialised.
orthonormal  rows orthonormal, uniform over all such (Haar).
mean-pool    windows of N/k positions, averaged; E = F.
learned      both by least squares of the output on other inputs of the same family, starting from
             mean-pool: see ``learn``.
optimal      no E at all: the best rank-k matrix there is (SVD of the attention matrix), the lower
             limit of every mechanism whose implied matrix has rank k or less, so of all of them at
             their k or m.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flurka_bench.kinds.error.metrics import Reference
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.parts import COMPRESSIONS, resolve

# Compressions without weights are projections of their own name.
FIXED = {name: entry for name, entry in COMPRESSIONS.items() if entry.projection == name}
PROJECTIONS = ("gaussian", "orthonormal", *FIXED, "learned", "optimal")
# Trials on layers 0, 2 and 4 of the trained encoder at k = 16, 64 and 256, errors on unseen
# documents: at three times this rate k = 256 never left its start, and L-BFGS on all inputs at once
# fits them too closely within three iterations.
LEARNING_RATE, MAX_STEPS, _CHECK_EVERY, _PATIENCE = 1e-4, 240, 20, 60
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0, math.inf)  # in units of the normal matrix's mean diagonal


def check(projection: str, rank: int, seq_len: int) -> None:
    """Raise RequestError for an unknown projection or a rank that it cannot have at this
    seq_len."""
    if projection not in PROJECTIONS:
        raise unknown("projection", projection, PROJECTIONS)
    if not 1 <= rank <= seq_len:
        raise RequestError(f"rank must be between 1 and seq_len = {seq_len}, got {rank}")
    windows = projection == "learned" or (projection in FIXED and FIXED[projection].windows)
    if windows and seq_len % rank:
        raise RequestError(
            f"projection {projection!r} needs a rank that divides seq_len = {seq_len}, got {rank}"
        )


def gaussian(rank: int, seq_len: int, source: torch.Generator) -> Tensor:
    """(k, N) with independent N(0, 1/k) entries."""
    entries = torch.randn(rank, seq_len, generator=source, dtype=torch.float64)
    root: float = rank**0.5
    return entries / root


def orthonormal(rank: int, seq_len: int, source: torch.Generator) -> Tensor:
    """(k, N), uniform over matrices with orthonormal rows."""
    basis, upper = torch.linalg.qr(
        torch.randn(seq_len, rank, generator=source, dtype=torch.float64)
    )
    signed: Tensor = basis * upper.diagonal().sign()
    return signed.mT.contiguous()


def mean_pool(rank: int, seq_len: int) -> Tensor:
    """(k, N): row j averages the j-th window of N/k positions."""
    window = seq_len // rank
    return torch.eye(rank, dtype=torch.float64).repeat_interleave(window, dim=1) / window


def draw(
    projection: str, rank: int, seq_len: int, source: torch.Generator, *, share_kv: bool
) -> tuple[Tensor, Tensor]:
    """E and F of a projection that needs no data; the same tensor twice where ``share_kv``
    (a compression without
    weights: always)."""
    if projection in FIXED:
        E = resolve(FIXED[projection].matrix)(rank, seq_len)
        return E, E
    make = {"gaussian": gaussian, "orthonormal": orthonormal}[projection]
    E = make(rank, seq_len, source)
    return E, E if share_kv else make(rank, seq_len, source)


def least_squares(
    training: Sequence[Reference],
    compressed_attention: Sequence[Callable[[Tensor], Tensor]],
    start: Tensor,
) -> Tensor:
    """F (k, N) that minimises the sum over training inputs and heads of |A - C F|² + ridge |F -
    start|².

    C (h, n, k) = ``compressed_attention[i](q)`` are rows of the mechanism's attention to the
    compressed keys of ``training[i]``. The ridge is the one of ``RIDGES`` with the smallest output
    error on the last training input, left out until it is chosen; the largest holds F at ``start``.
    The normal equations are summed over row blocks, so A is never held whole for a long input.
    """
    rank, seq_len = start.shape
    gram, cross, held_gram, held_cross = (
        torch.zeros(rank, columns, dtype=torch.float64) for columns in (rank, seq_len) * 2
    )
    scores = []
    for index, (reference, attend) in enumerate(zip(training, compressed_attention)):
        held_out = index == len(training) - 1
        sums = (held_gram, held_cross) if held_out else (gram, cross)
        for rows, block in reference.blocks():
            C = attend(reference.q[:, rows])
            flat = C.reshape(-1, rank)
            sums[0].addmm_(flat.mT, flat)
            sums[1].addmm_(flat.mT, block.reshape(-1, seq_len))
            scores += [C] if held_out else []
        reference.release()
    C, reference = scores[0] if len(scores) == 1 else torch.cat(scores, 1), training[-1]

    def solve(ridge: float, gram: Tensor, cross: Tensor) -> Tensor:
        if math.isinf(ridge):
            return start
        damped = gram + ridge * gram.diagonal().mean() * torch.eye(rank, dtype=torch.float64)
        step: Tensor = torch.linalg.solve(damped, cross - gram @ start)
        return start + step

    def error(ridge: float) -> float:
        return float(
            (reference.output - C @ (solve(ridge, gram, cross) @ reference.v)).square().sum()
        )

    best = min(RIDGES, key=error)
    return solve(best, gram.add_(held_gram), cross.add_(held_cross))


def learn(training: list[Reference], rank: int) -> tuple[Tensor, Tensor]:
    """E and F (k, N each) for softmax attention, by least squares of its output on ``training``
    inputs (at least three).

    Minimises the mean over inputs of |O - softmax(Q (E K)ᵀ / sqrt(d)) F V|² / |O|². E stands inside
    the softmax, so this has no closed form: from mean-pool for E, and ``least_squares`` for F, both
    follow the gradient (Adam, in float32, one input a step) while the error on the last input,
    which neither start nor gradient has seen, still falls.
    """
    *seen, left_out = training
    pool = mean_pool(rank, left_out.shape[1])
    F = (
        least_squares(seen, [_softmax_scores(item, pool) for item in seen], pool)
        .float()
        .requires_grad_()
    )
    E = pool.float().requires_grad_()
    single = [[x.float() for x in (item.q, item.k, item.v, item.output)] for item in training]
    for item in training:
        item.release()

    def loss(q: Tensor, k: Tensor, v: Tensor, output: Tensor) -> Tensor:
        scores = torch.softmax(q @ (E @ k).mT / math.sqrt(q.shape[-1]), dim=-1)
        return (scores @ (F @ v) - output).square().sum() / output.square().sum()

    optimizer = torch.optim.Adam([E, F], lr=LEARNING_RATE)
    best, best_step, found = math.inf, 0, (E, F)
    for step in range(MAX_STEPS + 1):
        if step % _CHECK_EVERY == 0:
            with torch.no_grad():
                error = float(loss(*single[-1]))
            if error < best:
                best, best_step, found = error, step, (E.detach().double(), F.detach().double())
            elif step - best_step >= _PATIENCE:
                break
        optimizer.zero_grad()
        loss(*single[step % len(seen)]).backward()
        optimizer.step()
    return found


def _softmax_scores(reference: Reference, E: Tensor) -> Callable[[Tensor], Tensor]:
    keys = (E @ reference.k).mT / math.sqrt(reference.k.shape[-1])
    return lambda q: torch.softmax(q @ keys, dim=-1)


def right_singular_vectors(reference: Reference, rank: int, source: torch.Generator) -> Tensor:
    """The first ``rank`` right singular vectors (h, k, N) of full attention.

    Exact where A is one block. Else by subspace iteration over row blocks (Halko, Martinsson and
    Tropp 2011, algorithm 4.4, three passes, ten extra vectors): the error of the projection on them
    is attained, and at most a little above the optimum.
    """
    h, N, _ = reference.shape
    if reference.fits:
        ((_, A),) = reference.blocks()
        # Ascending; the square costs half the digits, and errors need fewer.
        vectors: Tensor = torch.linalg.eigh(A.mT @ A)[1]
        return vectors.flip(-1)[..., :rank].mT.contiguous()
    basis = torch.randn(h, N, min(N, rank + 10), generator=source, dtype=torch.float64)
    for _ in range(3):
        basis = torch.linalg.qr(basis)[0]
        basis = sum(
            (block.mT @ (block @ basis) for _, block in reference.blocks()),
            start=torch.zeros_like(basis),
        )
    basis = torch.linalg.qr(basis)[0]
    images = (block @ basis for _, block in reference.blocks())
    width = basis.shape[-1]
    gram = sum((image.mT @ image for image in images), start=basis.new_zeros(h, width, width))
    rotation: Tensor = torch.linalg.eigh(gram)[1].flip(-1)[
        ..., :rank
    ]  # Ritz vectors, largest first
    found: Tensor = basis @ rotation
    return found.mT.contiguous()
