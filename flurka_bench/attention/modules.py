"""Attention layers: x (b, N, D) -> (b, N, D), in any order the mechanism has.

One class holds the layer; the four public ones are the four ways to make the two choices.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from flurka_bench.attention.compression import Compression, make_compression
from flurka_bench.attention.functional import (
    head_linear,
    linear,
    merge_heads,
    split_heads,
)
from flurka_bench.attention.masks import (
    attended_keys,
    kept_keys,
    zero_padding,
)
from flurka_bench.attention.similarity import (
    FeatureMap,
    Softmax,
    feature_map,
    key_value,
    level_keys,
    level_queries,
    mean_product,
    normaliser,
)
from flurka_bench.attention.stages import stage
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)

# Fused optimizers (``Adam(fused=True)``) write to weights without counting it as a new version, so
# steps are counted here.
_num_optimizer_steps = 0


def _count_step(*_: object) -> None:
    global _num_optimizer_steps
    _num_optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """W_q Omega, and what it was computed from: it holds good while its sources are unchanged.

    A source is a tensor of the layer, and an alias of the memory that it had then. The alias keeps
    that memory from being given to another tensor, so an equal address means the same memory.
    """

    weight: Tensor
    sources: tuple[tuple[Tensor, Tensor, int], ...]  # the tensor, its alias, its version
    num_steps: int  # of optimizers, all in the process

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """A copied or unpickled layer has other tensors and starts without: None."""
        return type(None), ()

    @classmethod
    def of(cls, weight: Tensor, *tensors: Tensor) -> "_Prepared | None":
        """None where a source is an inference tensor, whose changes nobody counts."""
        if any(tensor.is_inference() for tensor in tensors):
            return None
        sources = tuple((t, t.detach(), t._version) for t in tensors)
        return cls(weight=weight, sources=sources, num_steps=_num_optimizer_steps)

    def holds_for(self, *tensors: Tensor) -> bool:
        """Whether these are the sources, and nothing has been written to them since."""
        return self.num_steps == _num_optimizer_steps and all(
            now is then
            and now._version == version
            and now.data_ptr() == alias.data_ptr()
            and now.dtype == alias.dtype
            and now.device == alias.device
            for now, (then, alias, version) in zip(tensors, self.sources, strict=True)
        )


class AttentionLayer(nn.Module):
    """Projections of x around a compression (or None) and a similarity, in one of
    ``workload.ORDERS``.

    All orders give the same result; the cost differs.

    ``to_q``, ``to_k``, ``to_v`` and ``to_out`` are ``nn.Linear`` without bias, initialised as
    ``nn.Linear`` is. They may be replaced (LoRA, quantised) or hooked where they are called:
    ``project_first`` calls all four; ``compress_first`` calls ``to_q`` and ``to_out``, and where
    heads share E also ``to_k`` and ``to_v``, on the compressed rows, so these two must be linear.
    Where an order reads a weight instead, and where a bias would be compressed, anything but a
    plain ``nn.Linear`` is refused (RequestError).

    A new layer's output has about the standard deviation of full attention's, whatever the
    mechanism (``Compression`` says how E is drawn for that), so one learning rate can serve all.
    ``nn.MultiheadAttention`` draws its projections larger (Xavier over the three together), which
    makes its output about 1.5 times as large.
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        similarity: Softmax | FeatureMap,
        compression: Compression | None = None,
        *,
        order: str | None = None,
        causal: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if causal:
            raise RequestError(
                "causal attention is not available: compression mixes positions, so a compressed key holds the future;"
                " all mechanisms are compared non-causally (leave causal=False)"
            )
        if num_heads < 1 or model_dim % num_heads:
            raise RequestError(
                f"model_dim must be a multiple of num_heads, got model_dim {model_dim}, num_heads {num_heads}"
            )
        self.model_dim, self.num_heads = model_dim, num_heads
        self.similarity, self.compression = similarity, compression
        options = {"bias": False, "device": device, "dtype": dtype}
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nn.Linear(model_dim, model_dim, **options) for _ in range(4)
        )
        self.order = order or self.orders[-1]
        if self.order not in self.orders:
            raise unknown("order for this mechanism", self.order, self.orders)
        self._keeps_query_weight = False
        self._prepared: _Prepared | None = None

    @property
    def orders(self) -> tuple[str, ...]:
        """The orders this mechanism has, the cheapest at small num_features last."""
        absorbs = isinstance(self.similarity, FeatureMap) and self.similarity.absorbs_queries
        compresses = self.compression is not None
        return (
            "project_first",
            *(("compress_first",) if compresses else ()),
            *(("absorbed",) if absorbs else ()),
        )

    def redraw_features(self, generator: torch.Generator | None = None) -> None:
        """Draw new random features; nothing to do for softmax and elu."""
        if isinstance(self.similarity, FeatureMap):
            self.similarity.redraw(generator)

    def prepare_inference(self) -> None:
        """Compute W_q Omega once and keep it, for calls in which no gradient is recorded, until
        ``train()``.

        It is computed anew whenever the weight or Omega changed (other values, dtype, device or
        tensor) and after any optimizer's step. One change cannot be seen: writing through ``.data``
        (``layer.to_q.weight.data.mul_(2)``), which PyTorch does not count; write under
        ``torch.no_grad()`` instead, or call this again. ``torch.compile`` cannot ask whether a
        tensor changed, so a compiled layer computes W_q Omega in each call; so does any layer under
        ``torch.autocast``.
        """
        self.eval()
        self._keeps_query_weight = True
        if self.order == "absorbed":
            with torch.no_grad():
                self._query_weight()

    def train(self, mode: bool = True) -> "AttentionLayer":
        """As ``nn.Module.train``; what ``prepare_inference`` computed is forgotten."""
        self._keeps_query_weight, self._prepared = False, None
        return super().train(mode)

    def prepared_tensors(self) -> list[Tensor]:
        """What ``prepare_inference`` keeps beside the parameters: W_q Omega, or nothing."""
        return [] if self._prepared is None else [self._prepared.weight]

    def _casts(self) -> bool:
        """Whether autocast is on, which would keep W_q Omega in its dtype for calls outside it."""
        return torch.is_autocast_enabled(self.to_q.weight.device.type)

    def _query_weight(self) -> Tensor:
        """W_q Omega (h * m, D). Kernels: those of ``_absorb``; none where it was kept."""
        keeps = self._keeps_query_weight and not torch.is_grad_enabled()
        if not keeps or torch.compiler.is_compiling() or self._casts():
            return self._absorb(self._weight("to_q"))
        sources = self._weight("to_q"), self.similarity.omega
        if self._prepared is not None and self._prepared.holds_for(*sources):
            return self._prepared.weight
        weight = self._absorb(sources[0])
        self._prepared = _Prepared.of(weight, *sources)
        return weight

    def forward(
        self,
        x: Tensor,
        keep_mask: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """x (b, N, D) -> (b, N, D). Padded rows of the result mean nothing.

        The masks are those of ``attention.functional``: ``keep_mask`` bool (b, N), True = keep;
        ``key_padding_mask`` bool (b, N), True = padding, as in ``nn.MultiheadAttention``. Raises
        RequestError for both at once and for anything that is not bool (b, N) beside x.
        """
        keep = kept_keys(keep_mask, key_padding_mask, x, x.shape[-2])
        if keep is not None:
            x = zero_padding(x, keep)
        if self.order == "absorbed":
            return self._absorbed(x, keep)
        with stage("project"):
            q = self._heads(self.to_q(x))
        if self.compression is None:
            with stage("project"):
                k, v = (self._heads(_kept(child, x, keep)) for child in (self.to_k, self.to_v))
            out = self.similarity(q, k, v, attended_keys(keep))
        else:
            k, v = (
                self._project_then_compress(x, keep)
                if self.order == "project_first"
                else self._compress_then_project(x, keep)
            )
            out = self.similarity(q, k, v, attended_keys(self.compression.kept_rows(keep)))
        with stage("merge"):
            return self.to_out(merge_heads(out))

    def _heads(self, x: Tensor) -> Tensor:
        """(b, N, D) -> (b, h, N, d). A similarity with kernels of its own takes any strides, the
        others a copy if b > 1."""
        if self.similarity.any_strides:
            return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return split_heads(x, self.num_heads)

    def _project_then_compress(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """E (x W): keys and values (b, h, k, d).

        Kernels: project: 2 matmuls; compress: 2 of ``Compression``.
        """
        with stage("project"):
            k, v = (_kept(child, x, keep) for child in (self.to_k, self.to_v))
        with stage("compress"):
            if self.compression.share_heads:
                return self._heads(self.compression.shared_rows(k, False, keep)), self._heads(
                    self.compression.shared_rows(v, True, keep)
                )
            k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (k, v))
            return (
                self.compression.head_rows(k, False, keep),
                self.compression.head_rows(v, True, keep),
            )

    def _compress_then_project(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, Tensor]:
        """(E x) W: keys and values (b, h, k, d); the N-long ones are never formed.

        Kernels: compress: 1 of ``Compression`` if E = F, else 2; project: 2 matmuls.
        """
        compress = (
            self.compression.shared_rows
            if self.compression.share_heads
            else self.compression.input_rows
        )
        with stage("compress"):
            rows_k = compress(x, False, keep)
            rows_v = rows_k if self.compression.shared else compress(x, True, keep)
        with stage("project"):
            if self.compression.share_heads:
                for name in ("to_k", "to_v"):
                    if _has_bias(getattr(self, name)):
                        raise self._refusal(name, "would compress its bias too")
                return self._heads(self.to_k(rows_k)), self._heads(self.to_v(rows_v))
            return (
                head_linear(rows_k, self._per_head_in("to_k")),
                head_linear(rows_v, self._per_head_in("to_v")),
            )

    def _weight(self, name: str) -> Tensor:
        """The weight (D, D) of a projection that the order does not call. Raises RequestError
        unless the child is a plain ``nn.Linear`` of that shape, whose weight says all it does."""
        child = getattr(self, name)
        if not _is_plain(child) or child.weight.shape != (self.model_dim, self.model_dim):
            raise self._refusal(name, "reads its weight instead of calling it")
        return child.weight

    def _refusal(self, name: str, why: str) -> RequestError:
        """What a child that this order cannot use is answered with."""
        child = getattr(self, name)
        kind = type(child)
        got = kind.__name__ if kind is nn.Linear else f"{kind.__module__}.{kind.__qualname__}"
        if kind is nn.Linear:
            got += f"({child.in_features}, {child.out_features}, bias={child.bias is not None})"
            got += "" if _is_plain(child) or child.bias is not None else " with hooks"
        width, called = self.model_dim, "project_first"
        if (
            self.order == "absorbed"
            and self.compression is not None
            and (
                name in ("to_q", "to_out")
                or (self.compression.share_heads and not _has_bias(child))
            )
        ):
            called += " or compress_first"
        return RequestError(
            f"order {self.order!r} {why}: {name} must be nn.Linear({width}, {width}, bias=False)"
            f" without hooks, got {got}; order={called} takes it"
        )

    def _per_head_in(self, name: str) -> Tensor:
        """W (h * d, D) as (h, D, d), a view: x (D) -> the head's d."""
        return self._weight(name).unflatten(0, (self.num_heads, -1)).transpose(1, 2)

    def _absorb(self, weight: Tensor) -> Tensor:
        """W Omega as a linear weight (h * m, D). Kernels: 1 matmul of h products (m, d) @ (d,
        D)."""
        per_head = weight.unflatten(0, (self.num_heads, -1))
        omega = self.similarity.omega.t().expand(self.num_heads, -1, -1)
        return torch.bmm(omega, per_head).flatten(0, 1)

    def _absorbed(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x (W_q Omega) for the queries' features, and W_o inside the small key-value product.

        Kernels: project: W_q Omega (1 matmul; none once prepared); keys: as
            ``_compress_then_project`` or
        ``_absorbed_keys``; merge into the product: 1 ``head_linear``; features: 1 matmul,
        ``activate_queries``, ``level_queries``; output: normaliser (product, row sum), division, 1 matmul (b, N, h *
        m) @ (b, h * m, D).
        """
        features, (b, n, _), h = self.similarity, x.shape, self.num_heads
        if self.compression is not None:
            k, v = self._compress_then_project(x, keep)
            keep_rows = attended_keys(self.compression.kept_rows(keep))
            keep_rows = None if keep_rows is None else keep_rows[:, None, :, None]
            with stage("features"):
                phi_k, shift = features.key_features(k, keep_rows)
                phi_k, scale = level_keys(phi_k, -2)
            with stage("key_value"):
                kv, key_mean = key_value(phi_k, v)
        else:
            kv, key_mean, shift, scale = self._absorbed_keys(x, keep)
        with stage("merge"):
            per_head_out = self._weight("to_out").unflatten(1, (h, -1)).permute(1, 2, 0)
            kvo = head_linear(kv, per_head_out).flatten(1, 2)
        with stage("project"):
            weight = self._query_weight()
        with stage("features"):
            y = linear(x, weight).view(b, n, h, features.num_features)
            phi_q = features.activate_queries(y, None if shift is None else shift.transpose(1, 2))
            phi_q = level_queries(phi_q, None if scale is None else scale.transpose(1, 2))
        with stage("output"):
            phi_q = phi_q / normaliser(phi_q, key_mean.transpose(1, 2))
            return torch.bmm(phi_q.flatten(2), kvo)

    def _absorbed_keys(
        self, x: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """phi(K)^T V = (phi(K)^T x) W_v for uncompressed keys: kv (b, h, m, d), the mean of phi(K)
        (b, h, 1, m), the shift, the scale of ``level_keys``.

        Kernels: where phi(k) needs k Omega alone: project: W_k Omega; features: 1 matmul,
            ``activate_keys``. Else project:
        1 matmul; features: ``key_features``. Then features: ``level_keys``; key_value: ``mean_product``
        (b, h * m, N) @ (b, N, D), mean, 1 ``head_linear``.
        """
        features, (b, n, _), h = self.similarity, x.shape, self.num_heads
        keep = None if keep is None else attended_keys(keep)[:, :, None, None]
        if features.absorbs_keys:
            with stage("project"):
                weight = self._absorb(self._weight("to_k"))
            with stage("features"):
                y = linear(x, weight).view(b, n, h, features.num_features)
                phi_k, shift = features.activate_keys(y, None, keep, rows=1)
        else:
            with stage("project"):
                k = self.to_k(x).view(b, n, h, features.head_dim)
            with stage("features"):
                phi_k, shift = features.key_features(k, keep, rows=1)
        with stage("features"):
            phi_k, scale = level_keys(phi_k, 1)
        with stage("key_value"):
            kx = mean_product(phi_k.flatten(2), x)
            key_mean = phi_k.mean(1, keepdim=True).transpose(1, 2)
            kv = head_linear(kx.unflatten(1, (h, -1)), self._per_head_in("to_v"))
        shift, scale = (None if t is None else t.transpose(1, 2) for t in (shift, scale))
        return kv, key_mean, shift, scale


def _kept(child: nn.Module, x: Tensor, keep: Tensor | None) -> Tensor:
    """The projection of x (b, N, D), zero where a position is not kept, as x is. Kernels: those of
    the child."""
    rows = child(x)
    if keep is None or _is_plain(child):
        return rows
    return zero_padding(rows, keep)  # a bias, or another kind of child, may map zeros elsewhere


def _has_bias(child: nn.Module) -> bool:
    """Whether a projection says that it adds a bias; quantised ones say it by a method."""
    bias = getattr(child, "bias", None)
    return (bias() if callable(bias) else bias) is not None


def _is_plain(child: nn.Module) -> bool:
    """Whether a projection is x W^T and nothing else, so that its weight can stand for it."""
    return (
        type(child) is nn.Linear
        and child.bias is None
        and "forward" not in vars(child)  # as offloading wrappers do
        and not (child._forward_hooks or child._forward_pre_hooks)
        and not (child._backward_hooks or child._backward_pre_hooks)
    )


class FullAttention(AttentionLayer):
    """Softmax attention over all keys, scores materialised or by ``scaled_dot_product_attention``.

    >>> import torch
    >>> FullAttention(model_dim=64, num_heads=4)(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])
    """

    def __init__(
        self, model_dim: int, num_heads: int, *, sdpa: bool = True, **layer: object
    ) -> None:
        super().__init__(model_dim, num_heads, Softmax(sdpa=sdpa), **layer)


class LinformerAttention(AttentionLayer):
    """Softmax attention over keys and values compressed to ``rank`` rows (Wang et al. 2020, arXiv
    2006.04768).

    >>> import torch
    >>> layer = LinformerAttention(model_dim=64, num_heads=4, seq_len=100, rank=16)
    >>> layer(torch.randn(2, 90, 64)).shape
    torch.Size([2, 90, 64])
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        seq_len: int,
        rank: int,
        *,
        sdpa: bool = True,
        compression: str = "dense",
        share_kv: bool = False,
        share_heads: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **layer: object,
    ) -> None:
        options = {"device": device, "dtype": dtype}
        shares = {"share_kv": share_kv, "share_heads": share_heads}
        rows = make_compression(
            seq_len=seq_len, rank=rank, num_heads=num_heads, kind=compression, **shares, **options
        )
        super().__init__(model_dim, num_heads, Softmax(sdpa=sdpa), rows, **layer, **options)


class PerformerAttention(AttentionLayer):
    """Attention by a feature map: favor, relu or elu (Choromanski et al. 2021, arXiv 2009.14794;
    Katharopoulos et al. 2020).

    >>> import torch
    >>> layer = PerformerAttention(model_dim=64, num_heads=4, num_features=32)
    >>> layer(torch.randn(2, 100, 64)).shape
    torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        num_features: int | None = None,
        *,
        similarity: str = "favor",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **layer: object,
    ) -> None:
        options = {"device": device, "dtype": dtype}
        features = feature_map(
            similarity, model_dim // num_heads, num_features, generator=generator, **options
        )
        super().__init__(model_dim, num_heads, features, **layer, **options)


class FLuRKAAttention(AttentionLayer):
    """Both: keys and values compressed to ``rank`` rows, attended to by a feature map (FLuRKA,
    arXiv 2306.15799).

    >>> import torch
    >>> layer = FLuRKAAttention(model_dim=64, num_heads=4, seq_len=100, rank=16, num_features=32, similarity="relu")
    >>> layer.order
    'absorbed'
    >>> keep = torch.arange(100).expand(2, -1) < torch.tensor([[100], [70]])  # True where a position is not padding
    >>> layer(torch.randn(2, 100, 64), keep_mask=keep).shape
    torch.Size([2, 100, 64])
    """

    def __init__(
        self,
        model_dim: int,
        num_heads: int,
        seq_len: int,
        rank: int,
        num_features: int | None = None,
        *,
        similarity: str = "favor",
        compression: str = "dense",
        share_kv: bool = False,
        share_heads: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **layer: object,
    ) -> None:
        options = {"device": device, "dtype": dtype}
        shares = {"share_kv": share_kv, "share_heads": share_heads}
        rows = make_compression(
            seq_len=seq_len, rank=rank, num_heads=num_heads, kind=compression, **shares, **options
        )
        features = feature_map(
            similarity, model_dim // num_heads, num_features, generator=generator, **options
        )
        super().__init__(model_dim, num_heads, features, rows, **layer, **options)
