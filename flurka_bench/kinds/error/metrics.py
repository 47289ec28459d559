"""Errors of an approximation against float64 full attention, in row blocks: no N x N matrix is ever
held for a long input.

Every mechanism's implied attention matrix is a product of two thin factors, L (N x r) times R (r x
N): softmax scores or normalised features times F or the transposed features. So a row block of the
difference A - L R is cheap, and so is its product with a vector, which is all that the spectral
norm needs.

Shapes: h heads, N positions, d head_dim, r inner rank of the factors, n rows of a block, c
    candidates measured together.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK_BYTES = (
    1024 * 16384 * 8
)  # all working arrays together stay within one block of 1024 x N float64 at N = 16384
# the block of A, that of the approximation, one temporary, and as much again for all that is thin
_WORKING_ARRAYS = 4
_LANCZOS_STEPS, _LANCZOS_TOLERANCE = 40, 1e-3


@dataclass(frozen=True, slots=True)
class Candidate:
    """An approximation, as factors and as the real implementation's output.

    ``left(q, attention)`` gives the rows of L (h, n, r) for a block of queries (h, n, d);
    ``attention`` is the same block of full attention, for those (the optimum) that need it.
    ``right`` is R: (h, r, N), or (r, N) shared by the heads. ``output(q)`` is the output (h, n, d)
    of the implementation itself, None where there is none (the optimum); ``parents`` those of the
    mechanisms that this one descends from, with the same E, F and features.
    """

    left: Callable[[Tensor, Tensor], Tensor]
    right: Tensor
    output: Callable[[Tensor], Tensor] | None = None
    parents: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    is_distribution: bool = False  # the rows of L R are known to be non-negative and to sum to one


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors by head, (h,) each; ``None`` where the quantity is not defined. All but KL and cosine
    are relative."""

    matrix_frobenius: Tensor
    matrix_spectral: Tensor | None
    kl_nats: Tensor | None  # mean over rows of KL(full || approximation)
    output_frobenius: Tensor
    output_cosine: Tensor  # mean over rows
    output_error: float  # over all heads at once: what the layer's output sees
    factor_mismatch: (
        float  # between the factors' output and the implementation's, relative to the full output
    )
    parents: dict[
        str, tuple[float, float]
    ]  # the parent's own error, and the step from it to here, as output_error


class Reference:
    """Full softmax attention of one input, by row blocks; kept whole where that fits the working
    budget."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, *, block_bytes: int = BLOCK_BYTES) -> None:
        """q, k, v: (h, N, d) float64."""
        self.q, self.k, self.v = q, k, v
        h, N, d = q.shape
        self.block_rows = max(1, min(N, block_bytes // (_WORKING_ARRAYS * h * N * 8)))
        self.block_bytes = block_bytes
        self._scaled_keys = k.mT / math.sqrt(d)
        self._whole: Tensor | None = None
        self._buffers: list[Tensor] = []
        self._output: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, N, d)."""
        h, N, d = self.q.shape
        return h, N, d

    @property
    def fits(self) -> bool:
        """Whether the whole matrix is one block."""
        return self.block_rows >= self.q.shape[1]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Row ranges and their rows of A (h, n, N); a block is valid until the next is drawn and
        must not be written to."""
        if self._whole is not None:
            yield slice(0, self.q.shape[1]), self._whole
            return
        N = self.q.shape[1]
        for start in range(0, N, self.block_rows):
            rows = slice(start, min(start + self.block_rows, N))
            block = self.buffer(0, rows.stop - start)
            torch.matmul(self.q[:, rows], self._scaled_keys, out=block)
            block.sub_(block.amax(dim=-1, keepdim=True)).exp_().div_(
                block.sum(dim=-1, keepdim=True)
            )
            if self.fits:
                self._whole = block
            yield rows, block

    def release(self) -> None:
        """Give back the room for blocks of a long input, which the next pass over it allocates
        again."""
        if not self.fits:
            self._buffers = []

    def buffer(self, index: int, num_rows: int) -> Tensor:
        """Room (h, n, N) for a block, the same each time: made afresh per block, blocks and the
        small results kept between
        them tear the heap into pieces that are never reused, and a long input's memory grows to N x
        N after all."""  # fmt: skip
        h, N, _ = self.shape
        while len(self._buffers) <= index:
            self._buffers.append(self.q.new_empty(h * self.block_rows * N))
        return self._buffers[index][: h * num_rows * N].view(h, num_rows, N)

    @property
    def output(self) -> Tensor:
        """Full attention's output (h, N, d)."""
        if self._output is None:
            output = torch.empty_like(self.v)
            for rows, block in self.blocks():
                output[:, rows] = block @ self.v
            self._output = output
        return self._output


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """L R into ``out`` (h, n, N). An R that heads share makes one plain product, so that it is not
    repeated per head."""
    if right.dim() == 3:
        return torch.matmul(left, right, out=out)
    torch.mm(left.reshape(-1, left.shape[-1]), right, out=out.view(-1, out.shape[-1]))
    return out


def spectral_norms(
    reference: Reference, candidates: list[Candidate], source: torch.Generator
) -> Tensor:
    """Largest singular values (1 + c, h): of A itself, then of A - L R for each candidate.

    Lanczos on DᵀD, all candidates at once so that each block of A is computed once a step (a power
    iteration with memory: the same products, fewer of them). Stops when no value moves by more than
    1e-3 of itself; it converges from below.
    """
    h, N, _ = reference.shape
    count = len(candidates) + 1
    kept: list[Tensor] = []  # the left factors, where A is one block anyway

    def lefts(rows: slice, block: Tensor) -> Iterator[Tensor]:
        if kept:
            return iter(kept)
        made = (candidate.left(reference.q[:, rows], block) for candidate in candidates)
        if not reference.fits:
            return made
        kept.extend(made)
        return iter(kept)

    def gram(x: Tensor) -> Tensor:  # (h, c, N) -> DᵀD x for each vector
        inner = [
            candidate.right @ x[:, j].unsqueeze(-1) for j, candidate in enumerate(candidates, 1)
        ]
        outer = [torch.zeros_like(vector) for vector in inner]
        total = torch.zeros_like(x)
        for rows, block in reference.blocks():
            y = x @ block.mT
            for j, left in enumerate(lefts(rows, block), 1):
                y[:, j] -= (left @ inner[j - 1]).squeeze(-1)
                outer[j - 1] += left.mT @ y[:, j].unsqueeze(-1)
            total += y @ block
        for j, candidate in enumerate(candidates, 1):
            total[:, j] -= (candidate.right.mT @ outer[j - 1]).squeeze(-1)
        return total

    steps = min(_LANCZOS_STEPS, N)
    basis = reference.q.new_zeros(h, count, steps, N)
    x = torch.randn(h, count, N, generator=source, dtype=torch.float64)
    x /= x.norm(dim=-1, keepdim=True)
    tridiagonal = torch.zeros(h, count, steps, steps, dtype=torch.float64)
    largest = previous = torch.zeros(h, count, dtype=torch.float64)
    for step in range(steps):
        basis[:, :, step] = x
        z = gram(x).unsqueeze(-1)  # (h, c, N, 1)
        so_far = basis[:, :, : step + 1]
        coefficients = so_far @ z
        tridiagonal[:, :, step, step] = coefficients[:, :, step, 0]
        z -= (
            so_far.mT @ coefficients
        )  # against all earlier vectors, twice: Lanczos alone loses their orthogonality
        z -= so_far.mT @ (so_far @ z)
        norm = z.norm(dim=-2)
        largest = (
            torch.linalg.eigvalsh(tridiagonal[:, :, : step + 1, : step + 1])[..., -1]
            .clamp_min(0)
            .sqrt()
        )
        if step >= 2 and bool((largest - previous <= _LANCZOS_TOLERANCE * largest).all()):
            break
        previous = largest
        if step + 1 < steps:
            tridiagonal[:, :, step, step + 1] = tridiagonal[:, :, step + 1, step] = norm[..., 0]
            x = z.squeeze(-1) / norm.clamp_min(1e-300)
    return largest.mT


def measure(
    reference: Reference,
    candidates: list[Candidate],
    source: torch.Generator,
    *,
    spectral: bool = True,
) -> list[Errors]:
    """The errors of each candidate, with one pass over the blocks of A for all and one more for
    each Lanczos step."""
    h, N, _ = reference.shape
    sums = [_Sums(h) for _ in candidates]
    norm, full_square = torch.zeros(2, h, dtype=torch.float64)
    values = [candidate.right @ reference.v for candidate in candidates]
    for rows, block in reference.blocks():
        q, full = reference.q[:, rows], block @ reference.v
        full_square += _square(full)
        norm += _square(block)
        room, scratch = (reference.buffer(index, block.shape[1]) for index in (1, 2))
        entropy = torch.xlogy(block, block, out=scratch).sum(dim=(1, 2))
        for candidate, compressed, sum_ in zip(candidates, values, sums):
            left = candidate.left(q, block)
            by_factors = left @ compressed
            output = by_factors if candidate.output is None else candidate.output(q)
            sum_.output += _square(output - full)
            sum_.cosine += torch.nn.functional.cosine_similarity(output, full, dim=-1).sum(-1)
            sum_.mismatch += float((output - by_factors).square().sum())
            for name, parent in candidate.parents.items():
                other = parent(q)
                errors = sum_.parents.setdefault(name, [0.0, 0.0])
                errors[0] += float((other - full).square().sum())
                errors[1] += float((other - output).square().sum())
            approximation = _multiply(left, candidate.right, room)
            sum_.matrix += _square(torch.sub(approximation, block, out=scratch))
            if (
                candidate.is_distribution
            ):  # an entry that is exactly 0 where A's is not counts as 1e-300, not as infinity
                logs = approximation.clamp_(min=1e-300).log_()
                sum_.kl += entropy - torch.mul(block, logs, out=scratch).sum(dim=(1, 2))
    total = float(full_square.sum())
    spectra = spectral_norms(reference, candidates, source) if spectral else None
    return [
        Errors(
            matrix_frobenius=(sum_.matrix / norm).sqrt(),
            matrix_spectral=None if spectra is None else spectra[j] / spectra[0],
            kl_nats=(sum_.kl / N).clamp_min(0) if candidate.is_distribution else None,
            output_frobenius=(sum_.output / full_square).sqrt(),
            output_cosine=sum_.cosine / N,
            output_error=math.sqrt(float(sum_.output.sum()) / total),
            factor_mismatch=math.sqrt(sum_.mismatch / total),
            parents={
                name: (math.sqrt(error / total), math.sqrt(step / total))
                for name, (error, step) in sum_.parents.items()
            },
        )
        for j, (candidate, sum_) in enumerate(zip(candidates, sums), 1)
    ]


class _Sums:
    """What one candidate's errors are made of, summed over blocks."""

    def __init__(self, num_heads: int) -> None:
        self.matrix, self.output, self.cosine, self.kl = torch.zeros(
            4, num_heads, dtype=torch.float64
        )
        self.mismatch = 0.0
        self.parents: dict[str, list[float]] = {}


def _square(x: Tensor) -> Tensor:
    """Squared Frobenius norm by head, (h, n, c) -> (h,)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=(1, 2))
    return norms.square()
