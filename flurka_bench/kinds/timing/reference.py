"""What a case's output should be, from the textbook formulas, on a sample of query rows: the
correctness gate's witness.

Nothing here calls the code it judges. The formulas take any floating dtype: in float64 they are the
reference; in the case's own dtype their distance from float64 is what that dtype can be expected to
lose, from which the tolerance follows. Keys are walked in chunks and similarities head by head, so
that long inputs stay small in memory.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from flurka_bench.attention.compression import Compression
from flurka_bench.attention.encoder import Encoder
from flurka_bench.attention.modules import AttentionLayer
from flurka_bench.attention.similarity import RELU_EPSILON
from flurka_bench.words import parts

CHUNK = 8192  # positions cast and projected at once
ROWS = 512  # query rows attended at once where all are wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One attention, as tensors: at level core q, k, v (b, h, N, d); at level layer x (b, N, D) and
    the projections."""

    similarity: str  # "softmax", or the name of a feature map
    num_heads: int
    qkv: tuple[Tensor, Tensor, Tensor] | None = None
    x: Tensor | None = None
    weights: tuple[Tensor, Tensor, Tensor, Tensor] | None = (
        None  # of q, k, v and the output, each (D, D), out x in
    )
    compression: tuple[Tensor, Tensor] | None = None  # E and F, each (k, N) or (h, k, N)
    omega: Tensor | None = None  # (d, m), already scaled by d^-1/4 (and m^-1/2 for relu)


def encoder_rows(
    encoder: Encoder, inputs: Tensor, batch_index: int, rows: Tensor, dtype: torch.dtype
) -> Tensor:
    """An encoder's output at ``rows`` of one batch element, computed in ``dtype``: (r, D), or (r,
    vocab_size)."""

    def norm(module: nn.LayerNorm, x: Tensor) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
        return (x - mean) / (variance + module.eps).sqrt() * module.weight.to(
            dtype
        ) + module.bias.to(dtype)

    x = (
        inputs[batch_index]
        if encoder.embedding is None
        else encoder.embedding.weight[inputs[batch_index]]
    )
    x = x.to(dtype)
    everything = torch.arange(len(x), device=x.device)
    for i, layer in enumerate(encoder.layers):
        problem = layer_problem(layer.attention, norm(layer.norm_attention, x)[None])
        wanted = rows if i == len(encoder.layers) - 1 else everything
        attended = torch.cat([query_rows(problem, 0, some, dtype) for some in wanted.split(ROWS)])
        x = x[wanted] + attended
        hidden = norm(layer.norm_ffn, x) @ layer.ffn_in.weight.to(dtype).T
        x = (
            x
            + hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2 @ layer.ffn_out.weight.to(dtype).T
        )
    x = norm(encoder.norm, x)
    return x if encoder.head is None else x @ encoder.head.weight.to(dtype).T


def layer_problem(layer: AttentionLayer, x: Tensor) -> Problem:
    """A layer's attention over x (b, N, D)."""
    projections = (layer.to_q, layer.to_k, layer.to_v, layer.to_out)
    return replace(
        core_problem(layer.similarity, layer.compression, layer.num_heads, x.shape[1]),
        x=x,
        weights=tuple(projection.weight for projection in projections),
    )


def core_problem(
    similarity: nn.Module,
    compression: Compression | None,
    num_heads: int,
    num_positions: int | None = None,
) -> Problem:
    """The two choices as tensors; the caller adds q, k, v or x. ``num_positions``: of an input
    shorter than the compression's."""
    name = getattr(similarity, "name", "softmax")
    return Problem(
        similarity=name,
        num_heads=num_heads,
        compression=None if compression is None else compression.matrices(num_positions),
        omega=None if name == "softmax" else similarity.omega,
    )


def query_rows(problem: Problem, batch_index: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The output at ``rows`` of one batch element, computed in ``dtype``: (h, r, d) at level core,
    (r, D) at level layer."""
    q = _operand(problem, 0, batch_index, dtype, rows)
    k, v = (_keys_or_values(problem, which, batch_index, dtype) for which in (1, 2))
    heads = torch.stack([_head(problem, q[i], k[i], v[i]) for i in range(problem.num_heads)])
    if problem.x is None:
        return heads
    return heads.transpose(0, 1).flatten(1) @ problem.weights[3].to(dtype).T


def _operand(
    problem: Problem, which: int, batch_index: int, dtype: torch.dtype, rows: Tensor | slice
) -> Tensor:
    """Rows of q (``which`` 0), k (1) or v (2), (h, r, d)."""
    if problem.x is None:
        return problem.qkv[which][batch_index, :, rows].to(dtype)
    return _project(problem, which, problem.x[batch_index, rows].to(dtype))


def _project(problem: Problem, which: int, x: Tensor) -> Tensor:
    projected = x @ problem.weights[which].to(x.dtype).T
    return projected.unflatten(-1, (problem.num_heads, -1)).transpose(0, 1)


def _keys_or_values(problem: Problem, which: int, batch_index: int, dtype: torch.dtype) -> Tensor:
    """All rows of k (1) or v (2), (h, L, d), compressed where the problem says so."""
    length = problem.qkv[1].shape[2] if problem.x is None else problem.x.shape[1]
    chunks = [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]
    if problem.compression is None:
        return torch.cat(
            [_operand(problem, which, batch_index, dtype, chunk) for chunk in chunks], dim=1
        )
    matrix = problem.compression[which - 1]
    x = problem.x
    if x is not None and matrix.ndim == 2:  # E (x W) = (E x) W spares the N-long product
        return _project(
            problem,
            which,
            sum(matrix[:, c].to(x.device, dtype) @ x[batch_index, c].to(dtype) for c in chunks),
        )
    operands = ((c, _operand(problem, which, batch_index, dtype, c)) for c in chunks)
    return sum(matrix[..., c].to(rows.device, dtype) @ rows for c, rows in operands)


def _head(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head's output at its query rows: q (r, d), k and v (L, d) -> (r, d)."""
    if problem.similarity == "softmax":
        weights = torch.softmax(q @ k.T / math.sqrt(q.shape[-1]), dim=-1)
        return weights @ v
    phi_q, phi_k = _features(problem, q, "query"), _features(problem, k, "key")
    key_sum = phi_k.to(torch.promote_types(k.dtype, torch.float32)).sum(0)
    scale = 1 / len(
        k
    )  # of both numerator and normaliser: half precision has no room for sums over long inputs
    numerator = phi_q @ (phi_k.T @ (v * math.sqrt(scale))) * math.sqrt(scale)
    return numerator / (phi_q @ (key_sum * scale).to(k.dtype))[:, None]


def _features(problem: Problem, x: Tensor, side: str) -> Tensor:
    """phi of one head's rows x (r, d); ``side`` is "query" or "key"."""
    formula = parts.resolve(parts.similarity(problem.similarity).reference)
    phi: Tensor = formula(x, problem.omega, side)
    return phi


def elu(x: Tensor, omega: Tensor | None, side: str) -> Tensor:
    """elu(x) + 1."""
    return torch.nn.functional.elu(x) + 1


def relu(x: Tensor, omega: Tensor, side: str) -> Tensor:
    """relu(x Omega) + epsilon."""
    return torch.relu(x @ omega.to(x.dtype)) + RELU_EPSILON


def favor(x: Tensor, omega: Tensor, side: str) -> Tensor:
    """exp(x Omega - |x|^2 / 2), up to a factor for all keys and one for each query: both leave the
    quotient as it is."""
    exponent = x @ omega.to(x.dtype) - x.square().sum(-1, keepdim=True) / (
        2 * math.sqrt(x.shape[-1])
    )
    largest = exponent.amax() if side == "key" else exponent.amax(-1, keepdim=True)
    return torch.exp(exponent - largest)
