"""A small tape: symbolic tensors in, ops out; the backward pass is derived from the forward, never
written by hand.

Every method of ``Tape`` appends the ``Op`` its eager kernel is and, where a gradient is needed,
tells the recorder how it flows, kernel by kernel, as PyTorch's derivative formulas do
(tools/autograd/derivatives.yaml).
"""

from dataclasses import replace

from flurka_bench.lowering.recorder import (
    Recorder,
    Shape,
    Var,
    broadcast,
)
from flurka_bench.words.sizes import Number

# Floating-point operations of an element of a softmax: comparison, subtraction, sum, product with 1
# / sum; and one exponential.
SOFTMAX_VECTOR_FLOPS = 4
SOFTMAX_BACKWARD_VECTOR_FLOPS = 4  # product, sum, subtraction, product


class Tape(Recorder):
    """The kernels: each method is one launch in PyTorch's eager mode, its gradient those of the
    derivative formula."""

    def view(self, x: Var, *shape: Number, copied_back: bool = False) -> Var:
        """The same memory under another shape: reshape, transpose, expand, slice.

        With ``copied_back`` the gradient is laid out anew on its way back, as reshaping a
        transposed tensor needs.
        """
        out = Var(x.tensor, shape, x.requires_grad)
        self._step(
            out,
            (x,),
            lambda g: (self.copy(g, *x.shape) if copied_back else Var(g.tensor, x.shape),),
        )
        return out

    def transpose(self, x: Var) -> Var:
        """The last two dimensions swapped."""
        return self.view(x, *x.shape[:-2], x.shape[-1], x.shape[-2])

    def copy(self, x: Var, *shape: Number, name: str = "copy", copied_back: bool = False) -> Var:
        """The same numbers in new, contiguous memory, under ``shape``."""
        out = self._new(name, shape, requires_grad=x.requires_grad)
        self._emit("copy", name, self._flat(out.shape), (x,), (out,))
        self._step(
            out,
            (x,),
            lambda g: (self.copy(g, *x.shape) if copied_back else Var(g.tensor, x.shape),),
        )
        return out

    def matmul(self, a: Var, b: Var, name: str, *, scaled: bool = False) -> Var:
        """(…, r, i) @ (…, i, c) -> (…, r, c), batch dimensions broadcast; the gradients are the
        chain rule's two products.

        A right operand without batch dimensions makes it one tall product, as torch folds it. A
        left one is expanded over the batch (``torch.bmm`` of a view), so that its gradient is a
        product a batch, summed afterwards. ``scaled`` multiplies by a constant inside the product,
        and on the way back the gradient before its products.
        """
        rows, inner, cols = a.shape[-2], a.shape[-1], b.shape[-1]
        lead = broadcast(a.shape[:-2], b.shape[:-2])
        out = self._new(name, (*lead, rows, cols), requires_grad=a.requires_grad or b.requires_grad)
        tall = len(b.shape) == 2
        self._matmul_op(name, lead, (rows, inner, cols), (a, b), out, tall=tall)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            if scaled:
                g = self.pointwise(f"{name}_backward", g, vector=1)
            return (
                self._matmul_grad(a, name, lead, (rows, cols, inner), (g, b), tall=tall),
                self._matmul_grad(b, name, lead, (inner, rows, cols), (a, g), summed=tall),
            )

        self._step(out, (a, b), pull)
        return out

    def _matmul_op(
        self, name: str, lead: Shape, dims: Shape, reads: tuple[Var, ...], out: Var, *, tall: bool
    ) -> None:
        rows, inner, cols = dims
        flops = 2 * self.size(*lead, rows, inner, cols)
        whole = (
            (1, self.size(*lead, rows), inner, cols)
            if tall
            else (self.size(*lead), rows, inner, cols)
        )
        self._emit("matmul", name, whole, reads, (out,), matmul_flops=flops)

    def _matmul_grad(
        self,
        of: Var,
        name: str,
        lead: Shape,
        dims: Shape,
        reads: tuple[Var, Var],
        *,
        tall: bool = False,
        summed: bool = False,
    ) -> Var | None:
        """The product that is the gradient of one operand; ``summed`` over the batch inside the
        product."""
        if not of.requires_grad:
            return None
        rows, inner, cols = dims
        name = f"{name}_backward"
        if summed:  # one product whose inner dimension runs over the batch too
            out = self._grad(of)
            flops = 2 * self.size(*lead, rows, inner, cols)
            self._emit(
                "matmul",
                name,
                (1, rows, self.size(*lead, inner), cols),
                reads,
                (out,),
                matmul_flops=flops,
            )
            return out
        out = self._new(f"grad_{of.tensor.name}", (*lead, rows, cols))
        self._matmul_op(name, lead, dims, reads, out, tall=tall)
        return out

    def softmax(self, x: Var, name: str = "softmax") -> Var:
        """Softmax over the last dimension."""
        out = self._new(name, x.shape, requires_grad=x.requires_grad)
        batch, rows, cols = self.size(*x.shape[:-2]), x.shape[-2], x.shape[-1]
        dims, numel = (batch, rows, 1, cols), out.tensor.numel
        special = numel + self.size(*x.shape[:-1])  # the exponentials and a reciprocal a row
        self._emit(
            "softmax",
            name,
            dims,
            (x,),
            (out,),
            vector_flops=SOFTMAX_VECTOR_FLOPS * numel,
            special_flops=special,
        )

        def pull(g: Var) -> tuple[Var]:
            grad = self._grad(x, of_view=True)
            vector = SOFTMAX_BACKWARD_VECTOR_FLOPS * numel
            self._emit("softmax", f"{name}_backward", dims, (g, out), (grad,), vector_flops=vector)
            return (grad,)

        self._step(out, (x,), pull)
        return out

    def attention(self, q: Var, k: Var, v: Var, name: str = "attention") -> Var:
        """Fused softmax(Q Kᵀ / √d) V: q (…, N, d), k and v (…, M, d) -> (…, N, d); the scores never
        reach memory.

        Backward: four products that the algorithm asks for, and Q Kᵀ once more, which the fused
            kernel recomputes.
        """
        lead, rows, inner, cols = q.shape[:-2], q.shape[-2], q.shape[-1], k.shape[-2]
        out = self._new(
            name, q.shape, requires_grad=q.requires_grad or k.requires_grad or v.requires_grad
        )
        scores = self.size(*lead, rows, cols)
        dims = (self.size(*lead), rows, inner, cols)
        product = 2 * scores * inner
        statistics = self._new("logsumexp", (*lead, rows), dtype="float32")
        self._emit(
            "attention", name, dims, (q, k, v), (out, statistics),
            matmul_flops=2 * product, vector_flops=(SOFTMAX_VECTOR_FLOPS + 1) * scores, special_flops=scores,
        )  # fmt: skip

        def pull(g: Var) -> tuple[Var, Var, Var]:
            grads = (
                self._grad(q, of_view=True),
                self._grad(k, of_view=True),
                self._grad(v, of_view=True),
            )
            self._emit(
                "attention", f"{name}_backward", dims, (g, q, k, v, out, statistics), grads,
                matmul_flops=4 * product, recomputed_flops=product,
                vector_flops=(SOFTMAX_BACKWARD_VECTOR_FLOPS + 2) * scores, special_flops=scores,
            )  # fmt: skip
            return grads

        self._step(out, (q, k, v), pull)
        return out

    def fused(
        self,
        name: str,
        dims: Shape,
        inputs: tuple[Var, ...],
        *outs: tuple[str, Shape, str],
        **flops: Number,
    ) -> list[Var]:
        """A kernel of our own that is shaped like fused attention: outputs as (name, shape, dtype).
        It has no way back."""
        results = [self._new(out, shape, dtype=dtype) for out, shape, dtype in outs]
        self._emit("attention", name, dims, inputs, tuple(results), **flops)
        return results

    def pointwise(
        self,
        name: str,
        *inputs: Var,
        vector: int = 0,
        special: int = 0,
        in_place: bool = False,
        dtype: str = "",
        work: str = "arithmetic",
    ) -> Var:
        """One elementwise kernel over the broadcast of its inputs, with FLOPs an element. Carries
        no gradient by itself.

        ``in_place`` puts the result in the first input's memory.
        """
        shape, requires_grad = (
            broadcast(*(x.shape for x in inputs), ()),
            any(x.requires_grad for x in inputs),
        )
        if in_place:
            out = Var(inputs[0].tensor, shape, requires_grad)
        else:
            out = self._new(name, shape, requires_grad=requires_grad, dtype=dtype)
        self._emit(
            "elementwise", name, self._flat(out.shape), inputs, (out,), work,
            vector_flops=vector and vector * out.tensor.numel, special_flops=special and special * out.tensor.numel,
        )  # fmt: skip
        return out

    def add(self, a: Var, b: Var, name: str = "add", *, in_place: bool = False) -> Var:
        """a + b: the gradient passes on, summed where an operand was broadcast."""
        out = self.pointwise(name, a, b, vector=1, in_place=in_place)
        self._step(out, (a, b), lambda g: (g, g))
        return out

    def subtract(
        self,
        a: Var,
        b: Var,
        name: str = "subtract",
        *,
        scaled: bool = False,
        in_place: bool = False,
    ) -> Var:
        """a - b, or a - s b: as ``add``; the second gradient is negated and scaled by kernels of
        their own."""
        out = self.pointwise(name, a, b, vector=2 if scaled else 1, in_place=in_place)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            if not b.requires_grad:
                return g, None
            negated = self.pointwise("negate", g, vector=1)
            return g, self.pointwise(f"{name}_backward", negated, vector=1) if scaled else negated

        self._step(out, (a, b), pull)
        return out

    def multiply(self, a: Var, b: Var, name: str = "multiply", *, in_place: bool = False) -> Var:
        """a * b elementwise."""
        out = self.pointwise(name, a, b, vector=1, in_place=in_place)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            first = self.pointwise(f"{name}_backward", g, b, vector=1) if a.requires_grad else None
            return first, self.pointwise(
                f"{name}_backward", g, a, vector=1
            ) if b.requires_grad else None

        self._step(out, (a, b), pull)
        return out

    def divide(self, a: Var, b: Var, name: str = "divide", *, in_place: bool = False) -> Var:
        """a / b elementwise; the divisor's gradient, -g (a / b) / b, is four kernels in torch."""

        def quotient(name: str, a: Var, b: Var, *, in_place: bool = False) -> Var:
            return self.pointwise(name, a, b, special=1, in_place=in_place, work="division")

        out = quotient(name, a, b, in_place=in_place)
        back = f"{name}_backward"

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            second = None
            if b.requires_grad:
                start = len(self.ops)
                ratio = quotient(back, quotient(back, a, b), b)
                negated = self.pointwise("negate", g, vector=1)
                second = self.pointwise(back, negated, ratio, vector=1)
                self._hold(self.ops[start:])  # one C++ expression, whose temporaries die at its end
            return quotient(back, g, b) if a.requires_grad else None, second

        self._step(out, (a, b), pull)
        return out

    def unary(
        self, name: str, x: Var, *, vector: int = 0, special: int = 0, saves: str | None = "output",
        backward_vector: int = 1, backward_special: int = 0, in_place: bool = False,
        work: str = "arithmetic", backward_work: str = "arithmetic",
    ) -> Var:  # fmt: skip
        """f(x) elementwise, in one kernel each way; the way back reads what it ``saves``: "output",
        "input", or None."""
        out = self.pointwise(name, x, vector=vector, special=special, in_place=in_place, work=work)
        saved = {"output": (out,), "input": (x,), None: ()}[saves]

        def pull(g: Var) -> tuple[Var]:
            grad = self.pointwise(
                f"{name}_backward", g, *saved,
                vector=backward_vector, special=backward_special, work=backward_work,
            )  # fmt: skip
            return (grad,)

        self._step(out, (x,), pull)
        return out

    def scale(self, x: Var, name: str = "scale", *, in_place: bool = False) -> Var:
        """A constant times x."""
        return self.unary(name, x, vector=1, saves=None, in_place=in_place)

    def exp(self, x: Var, name: str = "exp", *, in_place: bool = False) -> Var:
        """e^x."""
        return self.unary(name, x, special=1, in_place=in_place, work="exp")

    def add_constant(self, x: Var, name: str = "add_constant") -> Var:
        """x + c in place; the gradient passes on untouched."""
        out = self.pointwise(name, x, vector=1, in_place=True)
        self._step(out, (x,), lambda g: (g,))
        return out

    def clamp_min(self, x: Var, name: str = "relu") -> Var:
        """max(x, c); the way back makes a mask of the saved input and selects by it."""
        out = self.pointwise(name, x, vector=1)

        def pull(g: Var) -> tuple[Var]:
            zero = self.pointwise(f"{name}_zero")
            mask = self.pointwise(f"{name}_mask", x, vector=1, dtype="bool")
            back = f"{name}_backward"
            return (self.pointwise(back, mask, g, zero, vector=1, work="select"),)

        self._step(out, (x,), pull)
        return out

    def reduce(
        self, x: Var, dim: int, name: str, *, keepdim: bool = True, mean: bool = False, work: str = "sum"
    ) -> Var:  # fmt: skip
        """Sum, mean or (``work="maximum"``, where no gradient is asked for) maximum over one
        dimension, one FLOP an element read.

        The gradient of a sum is a view that repeats it; that of a mean is divided, element by
        element.
        """
        axis = dim % len(x.shape)
        out = self._reduced(x, (axis,), name, keepdim=keepdim, work=work)

        def pull(g: Var) -> tuple[Var]:
            expanded = Var(g.tensor, x.shape)
            return (self.pointwise(f"{name}_backward", expanded, vector=1) if mean else expanded,)

        self._step(out, (x,), pull)
        return out

    def half_squares(self, x: Var, dim: int, name: str) -> Var:
        """The squared norms of float16 rows (…, d) -> (…, 1), less the least over ``dim``: a norm
        in float32, four small kernels, and two on the way back."""
        with self.as_dtype("float32"):
            norms = self._reduced(x, (len(x.shape) - 1,), name, keepdim=True)
            squares = self.pointwise(f"{name}_square", norms, vector=1, in_place=True)
            rows = (dim % len(x.shape),)
            least = self._reduced(squares, rows, f"{name}_minimum", keepdim=True, work="maximum")
            squares = self.pointwise(f"{name}_less", squares, least, vector=1, in_place=True)
        out = self.pointwise(f"{name}_round", squares)

        def pull(g: Var) -> tuple[Var]:
            doubled = self.pointwise(f"{name}_backward", g, vector=1)
            return (self.pointwise(f"{name}_backward", x, doubled, vector=1),)

        self._step(out, (x,), pull)
        return out

    def detach(self, x: Var) -> Var:
        """The same memory, through which no gradient flows."""
        return Var(x.tensor, x.shape)

    def gelu(self, x: Var, name: str = "gelu") -> Var:
        """x Φ(x), by the error function; its derivative takes an exponential too."""
        return self.unary(
            name, x, vector=4, special=1, saves="input", backward_vector=8, backward_special=2,
            work="gelu", backward_work="gelu",
        )  # fmt: skip

    def embedding(self, tokens: Var, weight: Var, name: str = "embedding") -> Var:
        """Rows of ``weight`` (V, D) by tokens (b, N) -> (b, N, D); the gradient is a whole table,
        zeros included."""
        out = self._new(name, (*tokens.shape, weight.shape[-1]), requires_grad=weight.requires_grad)
        picked = Var(
            replace(weight.tensor, name=f"{weight.tensor.name}_rows", numel=out.tensor.numel),
            out.shape,
        )
        self._emit("copy", name, self._flat(out.shape), (tokens, picked), (out,))

        def pull(g: Var) -> tuple[Var]:
            grad = self._grad(weight)
            self._emit(
                "elementwise",
                f"{name}_backward",
                self._flat(weight.shape),
                (g, tokens),
                (grad,),
                vector_flops=g.tensor.numel,
            )
            return (grad,)

        self._step(out, (weight,), pull)
        return out

    def layer_norm(self, x: Var, weight: Var, bias: Var, name: str = "layer_norm") -> Var:
        """Normalisation over the last dimension with gain and offset; saves a mean and a reciprocal
        deviation a row."""
        out = self._new(name, x.shape, requires_grad=x.requires_grad or weight.requires_grad)
        numel, rows = out.tensor.numel, self.size(*x.shape[:-1])
        statistics = self._new(f"{name}_statistics", (2, rows))
        dims = (1, rows, 1, x.shape[-1])
        self._emit(
            "softmax",
            name,
            dims,
            (x, weight, bias),
            (out, statistics),
            vector_flops=7 * numel,
            special_flops=rows,
        )

        def pull(g: Var) -> tuple[Var, Var, Var]:
            grads = (self._grad(x, of_view=True), self._grad(weight), self._grad(bias))
            self._emit(
                "softmax",
                f"{name}_backward",
                dims,
                (g, x, statistics, weight),
                grads[:1],
                vector_flops=9 * numel,
            )
            self._emit(
                "reduction",
                f"{name}_backward_parameters",
                dims,
                (g, x, statistics),
                grads[1:],
                vector_flops=4 * numel,
            )
            return grads

        self._step(out, (x, weight, bias), pull)
        return out
