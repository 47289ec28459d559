"""Similarity of queries and keys as ops, stage by stage as ``attention.similarity`` runs them.

Shapes as there: q (b, h, N, d), k and v (b, h, L, d), features (…, m); in the order "absorbed" the
queries' features are (b, N, h, m), straight from their projection.
"""

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import Mechanism
from flurka_bench.lowering.builder import Tape
from flurka_bench.lowering.recorder import Var
from flurka_bench.words.sizes import Number


def softmax_attention(tape: Tape, q: Var, k: Var, v: Var) -> Var:
    """softmax(q kᵀ / √d) v with the scores in memory; the scale goes into the keys, the smaller
    operand."""
    with tape.frame():
        with tape.stage("scores"):
            scores = tape.matmul(q, tape.transpose(tape.scale(k)), "scores")
            weights = tape.softmax(scores)
            tape.hold(scores)
        with tape.stage("output"):
            return tape.matmul(weights, v, "output")


def sdpa_attention(tape: Tape, q: Var, k: Var, v: Var) -> Var:
    """The same in one kernel, ``scaled_dot_product_attention``."""
    with tape.stage("scores"):
        return tape.attention(q, k, v)


class FeatureMap:
    """phi of one case on a tape. Subclasses say what phi is: ``activate_keys`` and
    ``activate_queries``, or ``activate`` where both are one function."""

    # FAVOR+ passes a maximum over keys to the queries, which fused kernels write beside their sums;
    # the gradient of its key norms lies in memory as the keys do (in float16).
    has_shift = False
    vector_flops, special_flops = 5, 1  # of a feature in a fused kernel

    def __init__(self, tape: Tape, case: Case, mechanism: Mechanism) -> None:
        self.tape, self.num_features = tape, case.num_features
        self.omega = (
            tape.leaf("omega", case.head_dim, case.num_features, role="buffer")
            if mechanism.uses_features
            else None
        )

    def activate(self, y: Var) -> Var:
        """phi from y = x Ω, of keys and of queries."""
        raise NotImplementedError

    def key_features(self, k: Var, rows: int = -2) -> tuple[Var, Var | None]:
        """phi(k) and the shift that FAVOR+ passes to the queries; ``rows`` is the dimension that
        runs over keys."""
        y = k if self.omega is None else self.tape.matmul(k, self.omega, "key_features")
        return self.activate_keys(y, k, rows)

    def activate_keys(self, y: Var, k: Var | None, rows: int) -> tuple[Var, Var | None]:
        """phi(k) from y = k Ω, and what the queries' features need to know of the keys."""
        return self.activate(y), None

    def query_features(self, q: Var, shift: Var | None) -> Var:
        """phi(q), up to a factor per query."""
        return self.activate_queries(
            q if self.omega is None else self.tape.matmul(q, self.omega, "query_features"), shift
        )

    def activate_queries(self, y: Var, shift: Var | None) -> Var:
        """phi(q) from y = q Ω."""
        return self.activate(y)

    def level_keys(self, phi_k: Var, rows: int) -> tuple[Var, Var | None]:
        """phi(k) over its mean over keys, and that mean, in float16; else phi(k) and None."""
        tape = self.tape
        if tape.dtype != "float16":
            return phi_k, None
        scale = tape.reduce(tape.detach(phi_k), rows, "key_scale", mean=True)
        scale = tape.pointwise("key_scale_limit", scale, vector=1, in_place=True)
        return tape.divide(phi_k, scale, "level_keys", in_place=not tape.train), scale

    def level_queries(self, phi_q: Var, scale: Var | None) -> Var:
        """phi(q) times what ``level_keys`` divided by, relative to a head's largest."""
        if scale is None:
            return phi_q
        tape = self.tape
        largest = tape.reduce(scale, -1, "largest_key_scale", work="maximum")
        scale = tape.divide(scale, largest, "key_scale_share")
        return tape.multiply(phi_q, scale, "level_queries", in_place=not tape.train)

    def mean_product(self, phi_k: Var, v: Var) -> Var:
        """phi(k)ᵀ v / L, scaled afterwards, or in float16 within."""
        tape, rows = self.tape, self.tape.transpose(phi_k)
        if tape.dtype == "float16":
            return tape.matmul(rows, v, "key_value", scaled=True)
        return tape.scale(tape.matmul(rows, v, "key_value"), "mean_key_value", in_place=True)

    def attend(self, q: Var, k: Var, v: Var) -> Var:
        """(phi(q) (phi(k)ᵀ v)) / (phi(q) · mean of phi(k))."""
        tape = self.tape
        with tape.frame():
            with tape.stage("features"):
                phi_k, shift = self.key_features(k)
                phi_k, scale = self.level_keys(phi_k, -2)
                phi_q = self.level_queries(self.query_features(q, shift), scale)
            with tape.stage("key_value"):
                kv, key_mean = self.key_value(phi_k, v)
            tape.hold(phi_k, phi_q, kv, key_mean)
            with tape.stage("output"):
                if scale is not None:
                    weights = tape.divide(phi_q, self.normaliser(phi_q, key_mean), "normalise")
                    return tape.matmul(weights, kv, "output")
                return tape.divide(
                    tape.matmul(phi_q, kv, "output"), self.normaliser(phi_q, key_mean), "normalise"
                )

    def attend_fused(self, q: Var, k: Var, v: Var) -> Var:
        """``attend`` in two kernels that never write a feature (``attention.fused``): keys' side,
        queries' side.

        Each is shaped like fused attention: m features stand for the queries, then for the keys.
        Splitting keys over programs, which depends on the GPU and adds a small third kernel, is not
        in it.
        """
        tape, m, (*lead, n, d), rows = self.tape, self.num_features, q.shape, k.shape[-2]
        heads, own = tape.size(*lead), () if self.omega is None else (self.omega,)
        products = 1 if self.omega is None else 2  # elu's features take none

        def flops(length: Number) -> dict[str, Number]:
            features = tape.size(heads, length, m)
            return {
                "matmul_flops": 2 * products * features * d,
                "vector_flops": self.vector_flops * features,
                "special_flops": self.special_flops * features,
            }

        with tape.stage("key_value"):
            sums = [("key_value", (*lead, m, d), tape.dtype), ("key_mean", (*lead, m), "float32")]
            sums += [("key_maximum", (*lead, m), "float32")] if self.has_shift else []
            kept = tape.fused("key_side", (heads, m, d, rows), (k, v, *own), *sums, **flops(rows))
        with tape.stage("output"):
            inputs = (q, *own, *kept)
            (out,) = tape.fused(
                "query_side", (heads, n, d, m), inputs, ("output", q.shape, tape.dtype), **flops(n)
            )
        return out

    def key_value(self, phi_k: Var, v: Var) -> tuple[Var, Var]:
        """phi(k)ᵀ v / L, and the mean of phi(k)."""
        return self.mean_product(phi_k, v), self.tape.reduce(phi_k, -2, "key_mean", mean=True)

    def normaliser(self, phi_q: Var, key_mean: Var) -> Var:
        """phi(q) · mean of phi(k), one a query and head."""
        return self.tape.reduce(
            self.tape.multiply(phi_q, key_mean, "query_times_key_mean"), -1, "normaliser"
        )


class Relu(FeatureMap):
    """ReLU random features."""

    vector_flops, special_flops = 1, 0

    def activate(self, y: Var) -> Var:
        """relu(y) + 1e-3."""
        return self.tape.add_constant(self.tape.clamp_min(y))


class Elu(FeatureMap):
    """elu + 1, without Ω."""

    def activate(self, y: Var) -> Var:
        """elu(y) + 1."""
        elu = self.tape.unary(
            "elu", y, vector=2, special=1, saves="input", backward_vector=2, backward_special=1,
            work="expm1", backward_work="exp",
        )  # fmt: skip
        return self.tape.add_constant(elu)


class Favor(FeatureMap):
    """FAVOR+."""

    has_shift = True

    def activate_keys(self, y: Var, k: Var | None, rows: int) -> tuple[Var, Var | None]:
        """exp(y - |k|² / 2 - c), and the shift c."""
        tape = self.tape
        assert k is not None  # no order absorbs FAVOR+'s keys
        if tape.dtype == "float16":
            squares = tape.half_squares(k, rows, "key_norm")
        else:
            squares = tape.reduce(tape.multiply(k, k, "square"), -1, "key_norm")
        y = tape.subtract(y, squares, "subtract_key_norm", scaled=True, in_place=True)
        shift = tape.reduce(tape.detach(y), rows, "key_maximum", work="maximum")
        y = tape.subtract(y, shift, "subtract_key_maximum", in_place=True)
        return tape.exp(y, "key_exp", in_place=True), shift

    def activate_queries(self, y: Var, shift: Var | None) -> Var:
        """exp(y + c - a)."""
        tape = self.tape
        assert shift is not None
        y = tape.add(y, shift, "add_key_maximum", in_place=not tape.train)
        largest = tape.reduce(tape.detach(y), -1, "query_maximum", work="maximum")
        y = tape.subtract(y, largest, "subtract_query_maximum", in_place=True)
        return tape.exp(y, "query_exp", in_place=True)
