"""An attention layer as ops: projections of x (b, N, D) around a compression and a similarity, in
one of three orders.

Kernel for kernel what ``attention.modules.AttentionLayer`` launches, the copies between heads first
and tokens first included: a batch of one needs fewer of them, so batch = 1 is lowered apart from batch > 1.
"""

from collections.abc import Callable
from typing import Any

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import Mechanism
from flurka_bench.lowering.builder import Tape
from flurka_bench.lowering.compression import Compression
from flurka_bench.lowering.recorder import (
    Var,
    is_one,
)
from flurka_bench.lowering.similarity import FeatureMap
from flurka_bench.words import parts


class Layer:
    """One mechanism on a tape: ``core`` over q, k, v and ``layer`` over x."""

    def __init__(self, tape: Tape, case: Case, mechanism: Mechanism) -> None:
        self.tape, self.case, self.mechanism = tape, case, mechanism
        self.similarity = parts.similarity(mechanism.similarity)
        self._attention: Callable[..., Any] = parts.resolve(self.similarity.ops)
        self.features: FeatureMap | None = (
            self._attention(tape, case, mechanism) if mechanism.is_kernel else None
        )
        # kernels that need no copies
        self.any_strides = mechanism.similarity == "sdpa" or case.backend == "fused"
        self.compression: Compression | None = (
            parts.resolve(parts.compression(case.compression).ops)(
                tape, case, any_strides=self.any_strides
            )
            if mechanism.compressed
            else None
        )
        if case.level != "core":
            width = case.model_dim
            self.w_q, self.w_k, self.w_v, self.w_out = (
                tape.leaf(f"W_{name}", width, width) for name in ("q", "k", "v", "out")
            )

    @property
    def _features(self) -> FeatureMap:
        """The feature map of a mechanism that has one."""
        assert self.features is not None
        return self.features

    @property
    def _compression(self) -> Compression:
        """The compression of a mechanism that has one."""
        assert self.compression is not None
        return self.compression

    def core(self, q: Var, k: Var, v: Var, *, tokens_first: bool = False) -> Var:
        """q, k, v (b, h, N, d) -> (b, h, N, d); fused attention's gradients may come
        ``tokens_first``, unlike the inputs."""
        with self.tape.frame():
            if tokens_first and self.mechanism.similarity == "sdpa":
                q = self.tape.view(q, *q.shape, copied_back=True)
                if self.compression is None:
                    k, v = (self.tape.view(x, *x.shape, copied_back=True) for x in (k, v))
            if self.mechanism.similarity == "softmax" and self.compression is None:
                # its gradient comes transposed, and k.grad is not
                k = self.tape.view(k, *k.shape, copied_back=True)
            if self.compression is not None:
                with self.tape.stage("compress"):
                    k, v = (
                        self.compression.head_rows(k),
                        self.compression.head_rows(v, of_values=True),
                    )
                self.tape.hold(k, v)
            return self._attend(q, k, v)

    def layer(self, x: Var) -> Var:
        """x (b, N, D) -> (b, N, D)."""
        tape = self.tape
        if self.case.order == "absorbed":
            return self._absorbed(x)
        with tape.frame():
            with tape.stage("project"):
                q = self._heads(tape.matmul(x, self.w_q, "project_queries"))
            if self.compression is None:
                with tape.stage("project"):
                    k = self._heads(
                        tape.matmul(x, self.w_k, "project_keys"), transposed_back=is_one(x.shape[0])
                    )
                    v = self._heads(tape.matmul(x, self.w_v, "project_values"))
            elif self.case.order == "project_first":
                k, v = self._project_then_compress(x)
            else:
                k, v = self._compress_then_project(x)
            out = self._attend(q, k, v)
            tape.hold(q, k, v, out)
            with tape.stage("merge"):
                return tape.matmul(self._merge(out), self.w_out, "merge")

    def _attend(self, q: Var, k: Var, v: Var) -> Var:
        if self.features is not None:
            return (
                self.features.attend_fused(q, k, v)
                if self.case.backend == "fused"
                else self.features.attend(q, k, v)
            )
        out: Var = self._attention(self.tape, q, k, v)
        return out

    def _heads(self, x: Var, *, transposed_back: bool = False) -> Var:
        """(b, L, D) -> (b, h, L, d): a view for fused kernels, which take any strides; else a copy
        unless b = 1, and one back.

        The gradient of softmax's keys comes transposed out of its product. Where what made x can
        take it so (``transposed_back``), there is no copy back.
        """
        copied_back = not (transposed_back and self.mechanism.similarity == "softmax")
        b, rows, _ = x.shape
        shape = (b, self.case.num_heads, rows, self.case.head_dim)
        if self.any_strides:
            return self.tape.view(x, *shape)
        if is_one(b):
            # the gradient of float16's key norms lies as the keys do, and takes the other in
            has_norms = self.features is not None and self.features.has_shift
            lies_so = has_norms and self.tape.dtype == "float16"
            return self.tape.view(
                x, *shape, copied_back=copied_back and not (transposed_back and lies_so)
            )
        return self.tape.copy(x, *shape, name="split_heads", copied_back=copied_back)

    def _merge(self, x: Var) -> Var:
        """(b, h, N, d) -> (b, N, D): a view where tokens come first already, else a copy, and
        unless b = 1 one back."""
        shape = (self.case.batch, self.case.seq_len, self.case.model_dim)
        if self.any_strides:
            return self.tape.view(x, *shape)
        return self.tape.copy(
            x, *shape, name="merge_heads", copied_back=not is_one(self.case.batch)
        )

    def _project_then_compress(self, x: Var) -> tuple[Var, Var]:
        """E (x W): keys and values (b, h, k, d)."""
        tape, compression = self.tape, self._compression
        with tape.frame():
            with tape.stage("project"):
                k, v = (
                    tape.matmul(x, self.w_k, "project_keys"),
                    tape.matmul(x, self.w_v, "project_values"),
                )
            tape.hold(k, v)
            with tape.stage("compress"):
                if self.case.share_heads:
                    k = self._heads(compression.shared_rows(k), transposed_back=True)
                    return k, self._heads(compression.shared_rows(v, of_values=True))
                shape = (
                    self.case.batch,
                    self.case.num_heads,
                    self.case.seq_len,
                    self.case.head_dim,
                )
                k, v = (tape.view(rows, *shape, copied_back=True) for rows in (k, v))
                return compression.head_rows(k, tokens_first=True), compression.head_rows(
                    v, of_values=True, tokens_first=True
                )

    def _compress_then_project(self, x: Var) -> tuple[Var, Var]:
        """(E x) W: keys and values (b, h, k, d); the N-long ones are never formed."""
        tape, compression = self.tape, self._compression
        compress = compression.shared_rows if self.case.share_heads else compression.input_rows
        with tape.frame():
            with tape.stage("compress"):
                rows_k = compress(x)
                rows_v = rows_k if self.case.share_kv else compress(x, of_values=True)
            tape.hold(rows_k, rows_v)
            with tape.stage("project"):
                if self.case.share_heads:
                    k = self._heads(
                        tape.matmul(rows_k, self.w_k, "project_keys"),
                        transposed_back=is_one(x.shape[0]),
                    )
                    return k, self._heads(tape.matmul(rows_v, self.w_v, "project_values"))
                # a convolution leaves heads last but one in memory, which folds as it lies
                folds = self.case.compression == "conv"
                k = self._head_linear(
                    rows_k, self._per_head(self.w_k), "project_keys", heads_first=folds
                )
                v = self._head_linear(
                    rows_v, self._per_head(self.w_v), "project_values", heads_first=folds
                )
                if is_one(self.case.batch) or self.any_strides:
                    return k, v
                return tape.copy(k, *k.shape, copied_back=True), tape.copy(
                    v, *v.shape, copied_back=True
                )

    def _per_head(self, weight: Var) -> Var:
        """W (D, D) as (h, D, d), a view."""
        return self.tape.view(
            weight, self.case.num_heads, self.case.model_dim, self.case.head_dim, copied_back=True
        )

    def _head_linear(self, x: Var, weight: Var, name: str, *, heads_first: bool = False) -> Var:
        """x (b, h, r, c) times (h, c, o), a matrix a head: a copy unless b = 1 or memory has
        ``heads_first``; one product."""
        b, h, r, c = x.shape
        tape, rows = self.tape, self.tape.size(b, r)
        in_place = is_one(b) or heads_first
        folded = (
            tape.view(x, h, rows, c) if in_place else tape.copy(x, h, rows, c, copied_back=True)
        )
        return tape.view(tape.matmul(folded, weight, name), b, h, r, weight.shape[-1])

    def _absorb(self, weight: Var, name: str) -> Var:
        """W Ω as (D, h m): one product of h matrices (m, d) @ (d, D)."""
        tape, case = self.tape, self.case
        per_head = tape.view(weight, case.num_heads, case.head_dim, case.model_dim)
        omega = self._features.omega
        assert omega is not None  # what is absorbed multiplies by Ω
        product = tape.matmul(tape.transpose(omega), per_head, name)
        return tape.view(product, case.model_dim, tape.size(case.num_heads, case.num_features))

    def _absorbed(self, x: Var) -> Var:
        """x (W_q Ω) for the queries' features, and W_out inside the small key-value product."""
        tape, case, features = self.tape, self.case, self._features
        b, n, h, m, width = (
            case.batch,
            case.seq_len,
            case.num_heads,
            case.num_features,
            case.model_dim,
        )
        all_features = tape.size(h, m)
        with tape.frame():
            if self.compression is not None:
                k, v = self._compress_then_project(x)
                with tape.stage("features"):
                    phi_k, shift = features.key_features(k)
                    phi_k, scale = features.level_keys(phi_k, -2)
                with tape.stage("key_value"):
                    kv, key_mean = features.key_value(phi_k, v)
                tape.hold(k, v, phi_k)
            else:
                kv, key_mean, shift, scale = self._absorbed_keys(x)
            with tape.stage("merge"):
                per_head_out = tape.view(self.w_out, h, case.head_dim, width, copied_back=True)
                kvo = self._head_linear(
                    kv, per_head_out, "merge", heads_first=self.compression is None
                )
                shape = (b, all_features, width)
                kvo = (
                    tape.view(kvo, *shape)
                    if is_one(b)
                    else tape.copy(kvo, *shape, copied_back=True)
                )
            with tape.stage("project"):
                if tape.train or case.backend == "compiled":  # which cannot see that W_q changed
                    weight = self._absorb(self.w_q, "absorb_queries")
                else:  # computed once, before inference
                    weight = tape.leaf("W_q_omega", width, all_features, role="buffer")
            with tape.stage("features"):
                y = tape.view(tape.matmul(x, weight, "query_features"), b, n, h, m)
                phi_q = features.activate_queries(
                    y, None if shift is None else tape.view(shift, b, 1, h, m)
                )
                phi_q = features.level_queries(
                    phi_q, None if scale is None else tape.view(scale, b, 1, h, m)
                )
            tape.hold(kv, key_mean, kvo, y)
            with tape.stage("output"):
                normaliser = features.normaliser(phi_q, tape.view(key_mean, b, 1, h, m))
                phi_q = tape.divide(phi_q, normaliser, "normalise")
                tape.hold(phi_q)
                return tape.matmul(tape.view(phi_q, b, n, all_features), kvo, "output")

    def _absorbed_keys(self, x: Var) -> tuple[Var, Var, Var | None, Var | None]:
        """phi(K)ᵀ V = (phi(K)ᵀ x) W_v for keys that are not compressed: kv (b, h, m, d), the mean
        of phi(K), the shift, the scale of ``level_keys``."""
        tape, case, features = self.tape, self.case, self._features
        b, n, h, d, m, width = (
            case.batch, case.seq_len, case.num_heads, case.head_dim, case.num_features, case.model_dim,
        )  # fmt: skip
        all_features = tape.size(h, m)
        with tape.frame():
            if self.similarity.absorbs_keys:
                with tape.stage("project"):
                    weight = self._absorb(self.w_k, "absorb_keys")
                with tape.stage("features"):
                    y = tape.view(tape.matmul(x, weight, "key_features"), b, n, h, m)
                    phi_k, shift = features.activate_keys(y, None, rows=1)
                tape.hold(y)
            else:
                with tape.stage("project"):
                    k = tape.view(tape.matmul(x, self.w_k, "project_keys"), b, n, h, d)
                with tape.stage("features"):
                    phi_k, shift = features.key_features(k, rows=1)
                tape.hold(k)
            with tape.stage("features"):
                phi_k, scale = features.level_keys(phi_k, 1)
            tape.hold(phi_k)
            with tape.stage("key_value"):
                kx = features.mean_product(tape.view(phi_k, b, n, all_features), x)
                key_mean = tape.reduce(phi_k, 1, "key_mean", mean=True)
                tape.hold(kx)
                kv = self._head_linear(
                    tape.view(kx, b, h, m, width), self._per_head(self.w_v), "project_values"
                )
        return kv, key_mean, shift, scale
