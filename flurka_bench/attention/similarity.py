"""Similarity of queries and keys: the second of a mechanism's two choices, stated once.

Shape letters as in ``workload``; L is the number of key rows: N, or k after compression. Feature
maps work in two layouts that differ in where the heads are: heads first (b, h, L, m) and tokens
first (b, L, h, m), the latter straight from a projection. ``rows`` names the dimension that runs
over keys. ``keep`` (b, L) is True where a key is kept, at least one in each sequence: layers and
functional cores see to that (``masks.attended_keys``).

A feature map phi replaces softmax(q k^T / sqrt(d)) by phi(q) phi(k)^T / sum over keys. The quotient
is all that counts, so whatever multiplies both, or one query's features, is left out where that
saves work or range:

- means over keys stand for sums;
- FAVOR+ features of a query lack exp(-|q|^2 / 2), and carry two stabilisers, derived at
  ``FavorFeatures``.

float16 alone holds no number above 65,504 (bfloat16 has float32's range). There a feature is divided
by its mean over keys, and the queries' feature multiplied by it (``level_keys``,
``level_queries``), so that phi(k)^T v / L is a weighted mean of the values; 1 / L is applied inside
the product (``_MeanProduct``); and queries are normalised before they meet that mean. So the output
of finite values is finite, whatever the length. The other dtypes need none of these kernels.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flurka_bench.attention.stages import stage
from flurka_bench.words.errors import RequestError, unknown
from flurka_bench.words.parts import SIMILARITIES, resolve

# as performer-pytorch's and google-research's kernel_epsilon: keeps the normaliser above zero
RELU_EPSILON = 1e-3


# The least mean that float16 features are divided by: features of a mean below it, which a few keys
# among more than 32,768 make, still stay below 65,504 after the division.
SMALLEST_KEY_SCALE = 2**-15


class Softmax(nn.Module):
    """softmax(q k^T / sqrt(d)) v, the scores in memory or inside
    ``scaled_dot_product_attention``."""

    def __init__(self, *, sdpa: bool) -> None:
        super().__init__()
        self.sdpa = self.any_strides = sdpa

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """q (b, h, N, d), k and v (b, h, L, d), keep (b, L) -> (b, h, N, d).

        Kernels, sdpa: 1 fused attention. Materialised: scores: scale of the keys (L d, the smaller
            operand), matmul,
        softmax; output: matmul.
        """
        with stage("scores"):
            if self.sdpa:
                mask = None if keep is None else keep[:, None, None, :]
                return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            scores = torch.matmul(q, (k * (1 / math.sqrt(q.shape[-1]))).transpose(-1, -2))
            if keep is not None:
                scores.masked_fill_(~keep[:, None, None, :], -math.inf)
            weights = torch.softmax(scores, dim=-1)
        with stage("output"):
            return torch.matmul(weights, v)


def orthogonal_gaussian(
    head_dim: int,
    num_features: int,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Omega (d, m) in float64: columns orthogonal in blocks of d, norms as a Gaussian's
    (Choromanski et al. 2021, section 3.2).

    Each column alone is N(0, I), so estimates stay unbiased.
    """
    blocks = []
    for _ in range(-(-num_features // head_dim)):
        gaussian = torch.randn(head_dim, head_dim, generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(gaussian)
        blocks.append(
            orthogonal * upper.diagonal().sign()
        )  # the sign makes it uniform over rotations (Mezzadri 2007)
    norms = torch.randn(head_dim, num_features, generator=generator, dtype=torch.float64).norm(
        dim=0
    )
    return (torch.cat(blocks, dim=1)[:, :num_features] * norms).to(device)


class FeatureMap(nn.Module):
    """Attention by features: (phi(q) (phi(k)^T v)) / (phi(q) . sum of phi(k)). Subclasses say what
    phi is.

    ``omega`` (d, m) is a buffer, one for all heads, with the scale d^-1/4 of queries and keys (and
    1 / sqrt(m) for ReLU) already in it; None where phi works on q and k themselves.
    """

    name = ""
    # Whether phi(q) is a function of q Omega alone, and phi(k) of k Omega: what the order
    # "absorbed" needs.
    absorbs_queries = False
    absorbs_keys = False
    any_strides = False  # whether q, k, v may come with heads and batch apart in memory, at no cost
    omega: Tensor | None

    def __init__(
        self,
        *,
        head_dim: int,
        num_features: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.head_dim, self.num_features = head_dim, num_features
        omega = self._scale() * orthogonal_gaussian(head_dim, num_features, generator, device)
        self.register_buffer("omega", omega.to(dtype or torch.get_default_dtype()))

    def _scale(self) -> float:
        return self.head_dim**-0.25

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw new features in place; shapes, dtype and device stay."""
        if self.omega is not None:
            self.omega.copy_(
                self._scale() * orthogonal_gaussian(self.head_dim, self.num_features, generator)
            )

    def project(self, x: Tensor) -> Tensor:
        """x (..., d) -> x Omega (..., m). Kernels: 1 matmul."""
        return torch.matmul(x, self.omega)

    def activate_keys(
        self, y: Tensor, k: Tensor | None, keep: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor | None]:
        """phi(k) from y = k Omega, and what the queries' features need to know of the keys.
        ``keep`` broadcasts to y."""
        raise NotImplementedError

    def activate_queries(self, y: Tensor, shift: Tensor | None) -> Tensor:
        """phi(q) from y = q Omega, up to a factor per query; may overwrite y."""
        raise NotImplementedError

    def key_features(
        self, k: Tensor, keep: Tensor | None = None, rows: int = -2
    ) -> tuple[Tensor, Tensor | None]:
        """phi(k) of k (b, h, L, d), or of (b, L, h, d) with ``rows`` = 1. Kernels: ``project``,
        ``activate_keys``."""
        return self.activate_keys(self.project(k), k, keep, rows)

    def query_features(self, q: Tensor, shift: Tensor | None) -> Tensor:
        """phi(q) of q (b, h, N, d). Kernels: ``project``, ``activate_queries``."""
        return self.activate_queries(self.project(q), shift)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None) -> Tensor:
        """q (b, h, N, d), k and v (b, h, L, d), keep (b, L) -> (b, h, N, d).

        Kernels: features: those of ``key_features``, ``level_keys``, ``query_features``,
            ``level_queries``; key_value: those of
            ``key_value``; output:
        matmul, product with the key sum, row sum (the normaliser, not a matmul: BLAS is slow at one
        column), division (in float16 of the features, before the matmul).
        """
        with stage("features"):
            phi_k, shift = self.key_features(k, None if keep is None else keep[:, None, :, None])
            phi_k, scale = level_keys(phi_k, -2)
            phi_q = level_queries(self.query_features(q, shift), scale)
        with stage("key_value"):
            kv, key_mean = key_value(phi_k, v)
        with stage("output"):
            if scale is not None:
                return torch.matmul(phi_q / normaliser(phi_q, key_mean), kv)
            return torch.matmul(phi_q, kv) / normaliser(phi_q, key_mean)


def key_value(phi_k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """phi(k) (b, h, L, m), v (b, h, L, d) -> phi(k)^T v / L (b, h, m, d) and the mean of phi(k) (b,
    h, 1, m).

    Kernels: ``mean_product``, mean.
    """
    return mean_product(phi_k, v), phi_k.mean(-2, keepdim=True)


def mean_product(phi_k: Tensor, v: Tensor) -> Tensor:
    """phi(k)^T v / L: (..., L, m) and (..., L, d) -> (..., m, d).

    Kernels: matmul, scale (m d, in place); in float16 1 matmul, which scales before it rounds.
    """
    if phi_k.dtype == torch.float16:
        lead = phi_k.shape[:-2]
        product = _MeanProduct.apply(phi_k.flatten(0, -3), v.flatten(0, -3))
        return product.unflatten(0, lead)
    return torch.matmul(phi_k.transpose(-1, -2), v).mul_(1 / phi_k.shape[-2])


class _MeanProduct(torch.autograd.Function):
    """a^T b / L of a (B, L, m) and b (B, L, d). The way back scales the gradient, the smallest of
    the three, before its products; autograd's own way would scale these after they overflowed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        unread = a.new_empty(1, 1, 1)
        return torch.baddbmm(unread, a.transpose(1, 2), b, beta=0, alpha=1 / a.shape[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        grad = grad * (1 / a.shape[1])
        return torch.bmm(b, grad.transpose(1, 2)), torch.bmm(a, grad)


def level_keys(phi_k: Tensor, rows: int) -> tuple[Tensor, Tensor | None]:
    """In float16: each feature over its mean over keys (dimension ``rows``), and that mean, for
    ``level_queries``. Else phi(k) itself and None.

    The result does not depend on the mean, which is a constant to the gradient. Kernels, float16:
    mean, lower limit (in place), division (in place where no gradient is recorded).
    """
    if phi_k.dtype != torch.float16:
        return phi_k, None
    scale = phi_k.detach().mean(rows, keepdim=True).clamp_min_(SMALLEST_KEY_SCALE)
    return phi_k / scale if phi_k.requires_grad else phi_k.div_(scale), scale


def level_queries(phi_q: Tensor, scale: Tensor | None) -> Tensor:
    """phi(q) times what ``level_keys`` divided by, relative to a head's largest: phi(q) . phi(k) as
    it was but for a factor a head.

    Kernels, float16: maximum over features, division, product (in place where no gradient is
    recorded). Else none.
    """
    if scale is None:
        return phi_q
    scale = scale / scale.amax(-1, keepdim=True)
    return phi_q * scale if phi_q.requires_grad else phi_q.mul_(scale)


def normaliser(phi_q: Tensor, key_mean: Tensor) -> Tensor:
    """phi(q) . mean of phi(k), one per query and head: (..., m) -> (..., 1). Kernels: product, row
    sum."""
    return (phi_q * key_mean).sum(-1, keepdim=True)


class ReluFeatures(FeatureMap):
    """phi(x) = relu(x Omega / (d^1/4 sqrt(m))) + 1e-3 (Performer-ReLU, Choromanski et al. 2021,
    section 4)."""

    name = "relu"
    absorbs_queries = True
    absorbs_keys = True

    def _scale(self) -> float:
        return self.head_dim**-0.25 * self.num_features**-0.5

    def activate_keys(
        self, y: Tensor, k: Tensor | None, keep: Tensor | None, rows: int
    ) -> tuple[Tensor, None]:
        """Kernels: relu, add (in place)."""
        phi = y.clamp_min(0).add_(
            RELU_EPSILON
        )  # clamp_min, unlike relu, does not keep its result for the backward pass
        return phi if keep is None else phi.masked_fill(~keep, 0), None

    def activate_queries(self, y: Tensor, shift: None) -> Tensor:
        """Kernels: relu, add (in place)."""
        return y.clamp_min(0).add_(RELU_EPSILON)


class EluFeatures(FeatureMap):
    """phi(x) = elu(x) + 1, m = d, no random features (Katharopoulos et al. 2020, equation 7).

    The 1 is the next number above 1 that the dtype holds: a query whose features all underflow
    attends evenly, not 0 / 0.
    """

    name = "elu"

    def __init__(self, *, head_dim: int, **unused: object) -> None:
        nn.Module.__init__(self)
        self.head_dim = self.num_features = head_dim
        self.omega = None

    @staticmethod
    def _one(y: Tensor) -> float:
        return 1 + torch.finfo(y.dtype).eps

    def project(self, x: Tensor) -> Tensor:
        """x itself. Kernels: none."""
        return x

    def activate_keys(
        self, y: Tensor, k: Tensor | None, keep: Tensor | None, rows: int
    ) -> tuple[Tensor, None]:
        """Kernels: elu, add (in place)."""
        phi = nn.functional.elu(y).add_(self._one(y))
        return phi if keep is None else phi.masked_fill(~keep, 0), None

    def activate_queries(self, y: Tensor, shift: None) -> Tensor:
        """Kernels: elu, add (in place)."""
        return nn.functional.elu(y).add_(self._one(y))


class FavorFeatures(FeatureMap):
    """FAVOR+ (Choromanski et al. 2021, lemma 1): phi(x)_j = exp(w_j . x - |x|^2 / 2) / sqrt(m), x
    scaled by d^-1/4.

    Stabilised without an epsilon, exactly: with c_j the maximum over keys of w_j . k - |k|^2 / 2,

        phi(q) . phi(k)  ~  sum over j of  exp(w_j . q + c_j - a)  exp(w_j . k - |k|^2 / 2 - c_j)

    where a, the maximum over j of w_j . q + c_j, and |q|^2 / 2 belong to the query alone and cancel
    in the quotient, and c_j cancels within each product. No exponent is above zero, so nothing
    overflows; the query's largest feature is 1 and meets a key feature that is 1, so the normaliser
    never underflows. (Performer's single maximum over keys needs an epsilon for that.) c and a are
    constants to the gradient, since the result does not depend on them.
    """

    name = "favor"
    absorbs_queries = True

    def activate_keys(
        self, y: Tensor, k: Tensor | None, keep: Tensor | None, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Kernels: square of k, row sum (in float16 those of ``_HalfSquares``), subtraction
        (scaled, in place), maximum over keys, subtraction, exp (both in place).

        The shift c is (b, h, 1, m), or (b, 1, h, m) where ``rows`` is 1.
        """
        if k.dtype == torch.float16:
            squares = _HalfSquares.apply(k, keep, rows)
        else:
            squares = (k * k).sum(-1, keepdim=True)
        y.sub_(squares, alpha=0.5 * self.head_dim**-0.5)
        if keep is not None:
            y.masked_fill_(~keep, -math.inf)
        shift = y.detach().amax(rows, keepdim=True)
        return y.sub_(shift).exp_(), shift

    def activate_queries(self, y: Tensor, shift: Tensor) -> Tensor:
        """Kernels: addition of the shift, maximum over features, subtraction, exp (in place but for
        the maximum).

        The addition is in place only where no gradient is recorded: y may be a view, and autograd
        answers a change of a view with nine more kernels.
        """
        y = y + shift if y.requires_grad else y.add_(shift)
        return y.sub_(y.detach().amax(-1, keepdim=True)).exp_()


class _HalfSquares(torch.autograd.Function):
    """|k|^2 of float16 keys, less the least of all kept keys: a constant of the head, which FAVOR+'s
    stabiliser takes up. |k|^2 itself leaves float16's range from |k| = 256 on.

    What is still above 65,504 is infinite, and the key's features are 0, as they should be. Kernels:
    norm (in float32), square, minimum over keys, subtraction, rounding; the last four over (L, 1).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(k: Tensor, keep: Tensor | None, rows: int) -> Tensor:
        squares = torch.linalg.vector_norm(k, dim=-1, keepdim=True, dtype=torch.float32).square_()
        kept = squares if keep is None else squares.masked_fill(~keep, math.inf)
        return squares.sub_(kept.amin(rows, keepdim=True)).to(k.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (k,) = ctx.saved_tensors
        return k * (2 * grad), None, None


def feature_map(
    kind: str, head_dim: int, num_features: int | None = None, **options: Any
) -> FeatureMap:
    """The feature map of that name, ours or another package's; options: generator, device, dtype.

    Raises RequestError for a name that is no feature map's and for a wrong ``num_features``.
    """
    feature_maps = [name for name, entry in SIMILARITIES.items() if entry.features != "none"]
    if kind not in feature_maps:
        raise unknown("similarity", kind, feature_maps)
    if SIMILARITIES[kind].features == "head_dim":
        if num_features not in (None, head_dim):
            raise RequestError(
                f"{kind} has num_features = head_dim = {head_dim}, got {num_features};"
                " leave num_features out"
            )
    elif num_features is None or num_features < 1:
        raise RequestError(
            f"num_features must be a positive integer for {kind!r}, got {num_features}"
        )
    built: FeatureMap = resolve(SIMILARITIES[kind].torch)(
        head_dim=head_dim, num_features=num_features, **options
    )
    return built
