"""Bounds on the error that can be computed, each stated with its assumptions, probability and
source in docs/error.md.

Conventions: q, k, v are (N, d) of one head in float64; A = softmax(q kᵀ / sqrt(d)), O = A v; for
    feature maps x and y stand for
q and k times d^(-1/4), so that the kernel of softmax is SM(x, y) = exp(x . y). ``delta`` is the
probability with which a bound may fail. Bounds are absolute (Frobenius norm, or norm of a row)
unless the name says relative; infinity means that nothing can be said.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flurka_bench.attention.similarity import RELU_EPSILON
from flurka_bench.words.errors import RequestError


def attention(q: Tensor, k: Tensor) -> Tensor:
    """Full attention A (N, N)."""
    return torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)


# --- Compression
# --------------------------------------------------------------------------------------------------


def spectral_tail(singular_values: Tensor, rank: int) -> float:
    """sqrt of the sum of squared singular values beyond ``rank``: no matrix of that rank is closer
    (Eckart and Young 1936).

    So it bounds every mechanism's matrix error from below, at rank k (low-rank), m (kernel) or
    min(k, m) (FLuRKA), and it is the error of the optimal projection.
    """
    return float(singular_values[..., rank:].square().sum(-1).sqrt())


def sketch_error(singular_values: Tensor, rank: int) -> float:
    """Root-mean-square bound on |A - A FᵀF|_F for F an orthonormal basis (k rows) of the rows of G
    A, G Gaussian.

    Minimum over p >= 2 of sqrt(1 + (k - p) / (p - 1)) tail(k - p) (Halko, Martinsson and Tropp
    2011, theorem 10.5 for Aᵀ).
    """
    return min(
        (
            math.sqrt(1 + (rank - p) / (p - 1)) * spectral_tail(singular_values, rank - p)
            for p in range(2, rank + 1)
        ),
        default=math.inf,
    )


def jl_root_mean_square(A: Tensor, v: Tensor, rank: int) -> float:
    """Exactly the root of E |A RᵀR v - A v|_F², R (k x N) with independent N(0, 1/k) entries:
    Linformer's theorem 1.

    sqrt((|A|_F² |v|_F² + |A v|_F²) / k), from Var(a RᵀR b) = (|a|² |b|² + (a . b)²) / k.
    """
    return math.sqrt(float(A.square().sum() * v.square().sum() + (A @ v).square().sum()) / rank)


def jl_epsilon(rank: int, num_products: int, delta: float) -> float:
    """The least epsilon in (0, 2/3] with which ``num_products`` products satisfy |a RᵀR b - a . b|
    <= epsilon |a| |b| together.

    From 4 num_products exp(-(epsilon² - epsilon³) k / 4) <= delta: the Johnson-Lindenstrauss tail 2
    exp(-(epsilon² - epsilon³) k / 4) for |R(a + b)|² and |R(a - b)|² of unit a and b (Dasgupta and
    Gupta 2003), by polarisation. Infinite where k is too small for any epsilon: epsilon² - epsilon³
    is at most 4/27, so k must be at least 27 ln(4 num_products / delta).
    """
    needed = 4 * math.log(4 * num_products / delta) / rank
    if needed > 4 / 27:
        return math.inf
    low, high = 0.0, 2 / 3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle**2 - middle**3 < needed else (low, middle)
    return high


def linformer_rank(seq_len: int, epsilon: float) -> float:
    """k = 5 ln N / (epsilon² - epsilon³), as the proof of Linformer's theorem 1 sets it (arXiv
    2006.04768)."""
    return 5 * math.log(seq_len) / (epsilon**2 - epsilon**3)


def independent_root_mean_square(C: Tensor, v: Tensor, output: Tensor) -> float:
    """Exactly the root of E |C F v - O|_F² over F (k x N) with independent N(0, 1/k) entries, given
    the scores C (N x k).

    sqrt(|O|² + |C|² |v|² / k): more than |O| at every k. A Gaussian F independent of E gives an
    output that is zero in the mean, so the relative error exceeds 1 however large k is.
    """
    rank = C.shape[-1]
    return math.sqrt(float(output.square().sum() + C.square().sum() * v.square().sum() / rank))


def shared_gaussian_limit(q: Tensor, k: Tensor, v: Tensor, variance: float) -> Tensor:
    """What softmax(q (E k)ᵀ / sqrt(d)) (E v) tends to as rows are added to E with independent N(0,
    variance) entries.

    variance (q kᵀ / sqrt(d)) v, without any softmax: rows (E_j k, E_j v) are jointly Gaussian, and
    a softmax average of Gaussian keys is an exponential tilt, which moves the mean of E_j v by
    Cov(E_j v, E_j k) q / sqrt(d) = variance vᵀk q / sqrt(d).
    """
    return variance * (q @ (k.mT @ v)) / math.sqrt(q.shape[-1])


def mean_pool_rows(q: Tensor, k: Tensor, v: Tensor, rank: int) -> Tensor:
    """Bound on each row's output error |o_i - o'_i| (N,) of mean-pooling to ``rank`` windows,
    certain, from O(N k) numbers.

    With rho_c the largest |k_j - its window's mean|, eta_ic = |q_i| rho_c / sqrt(d), sigma_c the
    root mean square of |v_j
    - its window's mean v_c| and A'_ic the attention to window c (derived in docs/error.md):

        |o_i - o'_i| <= sum over c of A'_ic (sinh(eta_ic) sigma_c + max(cosh(eta_ic) - 1, 1 - 1 /
        M_i) |v_c - o'_i|), M_i = sum over c of A'_ic cosh(eta_ic)

    Keys that differ within a window cost in second order, or in first order times how much its
    values differ.
    """
    N, d = q.shape
    keys, values = (x.view(rank, N // rank, -1) for x in (k, v))
    pooled, means = keys.mean(1), values.mean(1)
    rho = (keys - pooled.unsqueeze(1)).norm(dim=-1).amax(1)
    sigma = (values - means.unsqueeze(1)).square().sum(-1).mean(1).sqrt()
    eta = q.norm(dim=-1, keepdim=True) * rho / math.sqrt(d)
    weights = attention(q, pooled)
    distance = torch.cdist(weights @ means, means)
    M = (weights * eta.cosh()).sum(-1, keepdim=True)
    shift = torch.maximum(eta.cosh() - 1, (1 - 1 / M).expand_as(eta))
    bound: Tensor = (weights * (eta.sinh() * sigma + shift * distance)).sum(-1)
    return bound


# --- FAVOR+
# --------------------------------------------------------------------------------------------------


def kummer(a: float, b: float, z: float) -> float:
    """Kummer's confluent hypergeometric function 1F1(a; b; z) for positive a, b and z >= 0, by its
    series of positive terms."""
    total = term = 1.0
    index = 0
    while index < 10_000:
        term *= (a + index) * z / ((b + index) * (index + 1))
        total += term
        index += 1
        if term < 1e-17 * total:
            return total
    raise RequestError(f"1F1({a}, {b}, {z}) does not converge in {index} terms")


def favor_relative_variance(
    square: float, *, head_dim: int, num_features: int, orthogonal: bool = True
) -> float:
    """Var(phi(x) . phi(y)) / SM(x, y)² of FAVOR+, exactly, where ``square`` = |x + y|².

    Independent features: (exp(z) - 1) / m, z = |x + y|² (Choromanski et al. 2021, lemma 2).
        Orthogonal in blocks of d with
    Gaussian norms, as the implementation draws them: the same plus, for the share of pairs in a
    common block, their covariance exp(-z) 1F1(d; d/2; z/2) - 1, which is negative (derived in
    docs/error.md).
    """
    single = math.expm1(square) / num_features
    if not orthogonal:
        return single
    whole, rest = divmod(num_features, head_dim)
    pairs = whole * head_dim * (head_dim - 1) + rest * (rest - 1)
    covariance = math.exp(-square) * kummer(head_dim, head_dim / 2, square / 2) - 1
    return single + pairs / num_features**2 * covariance


@dataclass(frozen=True, slots=True)
class FavorRows:
    """Second moments of FAVOR+ attention with independent features, by row and for one feature:
    divide by m.

    With delta_ij the relative error of the estimate of SM(x_i, y_j): ``output`` (N,) is m E |sum_j
    A_ij delta_ij (v_j - o_i)|² and ``normaliser`` (N,) is m Var of the normaliser over itself. Both
    are exact: Cov(delta_ij, delta_il) = (exp((x_i + y_j) . (x_i + y_l)) - 1) / m.
    """

    output: Tensor
    normaliser: Tensor


def favor_rows(q: Tensor, k: Tensor, v: Tensor) -> FavorRows:
    """The moments for q (n, d) against keys k (L, d) and values v (L, c). O(n L²): for inputs of a
    few hundred positions."""
    scale = q.shape[-1] ** -0.25
    x, y = q * scale, k * scale
    A = attention(q, k)
    output = A @ v
    squares, sums = [], []
    for i in range(len(q)):
        z = x[i] + y
        weights = torch.expm1(z @ z.mT) * (A[i][:, None] * A[i][None, :])
        centred = v - output[i]
        squares.append((weights * (centred @ centred.mT)).sum())
        sums.append(weights.sum())
    return FavorRows(torch.stack(squares), torch.stack(sums))


def favor_row_bound(moments: FavorRows, num_features: int, delta: float) -> Tensor:
    """Bound on |o_i - o'_i| (N,) of FAVOR+ with independent features, each row's holding with
    probability 1 - delta.

    The normaliser's effect is exact: o'_i - o_i = (sum_j A_ij delta_ij (v_j - o_i)) / (1 + y_i),
    y_i the normaliser's relative error. Chebyshev gives |y_i| <= sqrt(2 normaliser / (m delta)) and
    the numerator's norm <= sqrt(2 output / (m delta)), each with probability 1 - delta / 2.
    Infinite where the first is not below 1: the normaliser may then vanish, and nothing can be
    said.
    """
    y = (2 * moments.normaliser / (num_features * delta)).sqrt()
    numerator = (2 * moments.output / (num_features * delta)).sqrt()
    return torch.where(y < 1, numerator / (1 - y), torch.full_like(y, math.inf))


def flurka_row_bound(
    parent_error: Tensor, q: Tensor, keys: Tensor, values: Tensor, num_features: int, delta: float
) -> Tensor:
    """Bound on FLuRKA-FAVOR's row errors (N,): its low-rank parent's plus FAVOR+'s on the k
    compressed keys and values.

    By the triangle inequality, with the probability of ``favor_row_bound``. ``parent_error`` (N,)
    may itself be a bound (``mean_pool_rows``) or measured.
    """
    return parent_error + favor_row_bound(favor_rows(q, keys, values), num_features, delta)


# --- Other kernels
# --------------------------------------------------------------------------------------------------


def relu_kernel(x: Tensor, y: Tensor, num_features: int) -> Tensor:
    """E phi(x) . phi(y) (N, L) of the ReLU features: an arc-cosine kernel of order 1 and what the
    implementation's constant adds.

    |x| |y| (sin t + (pi - t) cos t) / (2 pi), t the angle (Cho and Saul 2009), + c sqrt(m) (|x| +
    |y|) / sqrt(2 pi) + m c², c = 1e-3. It is not softmax's kernel and does not tend to it; as m
    grows without end the constant wins and attention becomes uniform.
    """
    a, b = x.norm(dim=-1, keepdim=True), y.norm(dim=-1, keepdim=True).mT
    cosine = (x @ y.mT / (a * b)).clamp(-1, 1)
    angle = cosine.acos()
    arc = a * b * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)
    kernel: Tensor = (
        arc
        + RELU_EPSILON * math.sqrt(num_features / (2 * math.pi)) * (a + b)
        + num_features * RELU_EPSILON**2
    )
    return kernel


def expected_relu_attention(q: Tensor, k: Tensor, num_features: int) -> Tensor:
    """The attention (N, N) that kernel-relu estimates: its expected kernel, normalised."""
    scale = q.shape[-1] ** -0.25
    kernel = relu_kernel(q * scale, k * scale, num_features)
    return kernel / kernel.sum(-1, keepdim=True)


def elu_attention(q: Tensor, k: Tensor) -> Tensor:
    """Attention by elu + 1 (N, N), for elu has no randomness: another kernel, of rank at most d."""
    phi_q, phi_k = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    kernel = phi_q @ phi_k.mT
    return kernel / kernel.sum(-1, keepdim=True)
