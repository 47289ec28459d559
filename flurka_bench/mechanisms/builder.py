"""A small tape: symbolic tensors in, ops out; the backward pass is derived from the forward, never written by hand.

Every method of ``Tape`` that computes something appends the ``Op`` its eager kernel is and, where a gradient is needed,
remembers how the gradient flows, kernel by kernel, as PyTorch's derivative formulas do (tools/autograd/derivatives.yaml).
``backward`` walks that memory from the end. Sizes may be ints, NumPy arrays or SymPy symbols: nothing here compares them,
except that a literal 1 broadcasts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flurka_bench.ops import Op, Tensor
from flurka_bench.workload import Number

Shape = tuple[Number, ...]

# Floating-point operations of an element of a softmax: comparison, subtraction, sum, product with 1 / sum; and one exponential.
SOFTMAX_VECTOR_FLOPS = 4
SOFTMAX_BACKWARD_VECTOR_FLOPS = 4  # product, sum, subtraction, product
ADAMW_VECTOR_FLOPS = 12  # weight decay 1, first moment 3, second moment 4, both corrections 2, epsilon and update 2


@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """A tensor as the code sees it: a shape over a piece of memory. A view shares its ``tensor`` with its base."""

    tensor: Tensor
    shape: Shape
    requires_grad: bool = False


def is_one(size: Number) -> bool:
    """Whether a size is the literal 1 that broadcasts. Arrays and symbols are not."""
    return isinstance(size, int) and size == 1


def broadcast(*shapes: Shape) -> Shape:
    """The common shape, right-aligned, where a literal 1 or a missing dimension gives way."""
    result: list[Number] = [1] * max(len(shape) for shape in shapes)
    for shape in shapes:
        for i, size in enumerate(shape, start=len(result) - len(shape)):
            if is_one(result[i]):
                result[i] = size
    return tuple(result)


class Tape:
    """Collects the ops of one case.

    ``dtype`` is that of tensors unless said otherwise; with ``train`` the gradient's way back is remembered.
    """

    def __init__(self, dtype: str, train: bool) -> None:
        self.dtype = dtype
        self.train = train
        self.ops: list[Op] = []
        self.leaves: list[Tensor] = []
        self._stage = "other"
        self._phase = "forward"
        self._steps: list[tuple[str, Var, tuple[Var, ...], Callable[[Var], tuple[Var | None, ...]]]] = []
        self.held_until: dict[str, int] = {}
        self._frames: list[list[str]] = []
        self._parameters: list[Var] = []
        self._gradients: dict[int, Var] = {}  # of leaves, by the leaf's id
        self._names: dict[str, int] = {}
        self._unique: set[str] = set()
        self._products: dict[tuple[int, ...], tuple[Shape, Number]] = {}

    # What tensors and sizes are

    def size(self, *sizes: Number) -> Number:
        """The product of sizes. Remembered, since with arrays each product is a pass over memory."""
        sizes = tuple(size for size in sizes if not is_one(size))
        if len(sizes) < 2:
            return sizes[0] if sizes else 1
        key = tuple(id(size) for size in sizes)
        if key not in self._products:
            self._products[key] = (sizes, self.size(*sizes[:-1]) * sizes[-1])
        return self._products[key][1]

    def leaf(self, name: str, *shape: Number, role: str = "parameter", requires_grad: bool | None = None, dtype: str = "") -> Var:
        """A tensor that exists before the first op: a parameter, an input or a buffer.

        In training all but buffers require a gradient unless ``requires_grad`` says otherwise.
        """
        wanted = role != "buffer" if requires_grad is None else requires_grad
        out = self._new(name, shape, role=role, requires_grad=self.train and wanted, dtype=dtype)
        self.leaves.append(out.tensor)
        if role == "parameter":
            self._parameters.append(out)
        return out

    def _new(self, name: str, shape: Shape, *, role: str = "activation", requires_grad: bool = False, dtype: str = "") -> Var:
        count = self._names.get(name, 0) + 1
        while (unique := name if count == 1 else f"{name}.{count}") in self._unique:
            count += 1
        self._names[name] = count
        self._unique.add(unique)
        return Var(Tensor(name=unique, numel=self.size(*shape), dtype=dtype or self.dtype, role=role), shape, requires_grad)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Ops appended inside belong to this stage, and so do the backward ops derived from them."""
        before, self._stage = self._stage, name
        yield
        self._stage = before

    @contextmanager
    def frame(self) -> Iterator[None]:
        """A function of the eager code: what it ``hold``s stays in memory until it returns."""
        self._frames.append([])
        yield
        self.held_until |= dict.fromkeys(self._frames.pop(), len(self.ops) - 1)

    def hold(self, *held: Var) -> None:
        """Local variables of the innermost frame."""
        self._frames[-1].extend(x.tensor.name for x in held)

    def _emit(self, kind: str, name: str, dims: Shape, reads: tuple[Var, ...], writes: tuple[Var, ...], **flops: Number) -> None:
        batch, rows, inner, cols = dims
        self.ops.append(
            Op(
                stage=self._stage, kind=kind, name=name, dtype=self.dtype, batch=batch, rows=rows, inner=inner, cols=cols,
                reads=tuple({var.tensor.name: var.tensor for var in reads}.values()),
                writes=tuple(var.tensor for var in writes), phase=self._phase, **flops,
            )
        )  # fmt: skip

    def _step(self, out: Var, inputs: tuple[Var, ...], pull: Callable[[Var], tuple[Var | None, ...]]) -> None:
        """Remembers that ``pull`` turns the gradient of ``out`` into those of ``inputs`` (None where none is needed)."""
        if self._phase == "forward" and out.requires_grad:
            self._steps.append((self._stage, out, inputs, pull))

    # Views: no kernel, no memory

    def view(self, x: Var, *shape: Number, copied_back: bool = False) -> Var:
        """The same memory under another shape: reshape, transpose, expand, slice.

        With ``copied_back`` the gradient is laid out anew on its way back, as reshaping a transposed tensor needs.
        """
        out = Var(x.tensor, shape, x.requires_grad)
        self._step(out, (x,), lambda g: (self.copy(g, *x.shape) if copied_back else Var(g.tensor, x.shape),))
        return out

    def transpose(self, x: Var) -> Var:
        """The last two dimensions swapped."""
        return self.view(x, *x.shape[:-2], x.shape[-1], x.shape[-2])

    # Kernels

    def copy(self, x: Var, *shape: Number, name: str = "copy", copied_back: bool = False) -> Var:
        """The same numbers in new, contiguous memory, under ``shape``."""
        out = self._new(name, shape, requires_grad=x.requires_grad)
        self._emit("copy", name, self._flat(out.shape), (x,), (out,))
        self._step(out, (x,), lambda g: (self.copy(g, *x.shape) if copied_back else Var(g.tensor, x.shape),))
        return out

    def matmul(self, a: Var, b: Var, name: str, bias: Var | None = None) -> Var:
        """(…, r, i) @ (…, i, c) -> (…, r, c), batch dimensions broadcast; the gradients are the chain rule's two products.

        A right operand without batch dimensions makes it one tall product, as torch folds it. A left one is expanded over
        the batch (``torch.bmm`` of a view), so that its gradient is a product a batch, summed afterwards.
        """
        rows, inner, cols = a.shape[-2], a.shape[-1], b.shape[-1]
        lead = broadcast(a.shape[:-2], b.shape[:-2])
        needs_grad = a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)
        out = self._new(name, (*lead, rows, cols), requires_grad=needs_grad)
        reads = (a, b) if bias is None else (a, b, bias)
        self._matmul_op(name, lead, (rows, inner, cols), reads, out, tall=len(b.shape) == 2)
        inputs = (a, b) if bias is None else (a, b, bias)

        def pull(g: Var) -> tuple[Var | None, ...]:
            return (
                self._matmul_grad(a, name, lead, (rows, cols, inner), (g, b), tall=len(b.shape) == 2),
                self._matmul_grad(b, name, lead, (inner, rows, cols), (a, g), summed=len(b.shape) == 2),
                *(() if bias is None else (g,)),
            )

        self._step(out, inputs, pull)
        return out

    def _matmul_op(self, name: str, lead: Shape, dims: Shape, reads: tuple[Var, ...], out: Var, *, tall: bool) -> None:
        rows, inner, cols = dims
        flops = 2 * self.size(*lead, rows, inner, cols)
        whole = (1, self.size(*lead, rows), inner, cols) if tall else (self.size(*lead), rows, inner, cols)
        self._emit("matmul", name, whole, reads, (out,), matmul_flops=flops)

    def _matmul_grad(
        self, of: Var, name: str, lead: Shape, dims: Shape, reads: tuple[Var, Var], *, tall: bool = False, summed: bool = False
    ) -> Var | None:
        """The product that is the gradient of one operand; ``summed`` over the batch inside the product."""
        if not of.requires_grad:
            return None
        rows, inner, cols = dims
        name = f"{name}_backward"
        if summed:  # one product whose inner dimension runs over the batch too
            out = self._grad(of)
            flops = 2 * self.size(*lead, rows, inner, cols)
            self._emit("matmul", name, (1, rows, self.size(*lead, inner), cols), reads, (out,), matmul_flops=flops)
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
        self._emit("softmax", name, dims, (x,), (out,), vector_flops=SOFTMAX_VECTOR_FLOPS * numel, special_flops=special)

        def pull(g: Var) -> tuple[Var]:
            grad = self._grad(x, of_view=True)
            vector = SOFTMAX_BACKWARD_VECTOR_FLOPS * numel
            self._emit("softmax", f"{name}_backward", dims, (g, out), (grad,), vector_flops=vector)
            return (grad,)

        self._step(out, (x,), pull)
        return out

    def attention(self, q: Var, k: Var, v: Var, name: str = "attention") -> Var:
        """Fused softmax(Q Kᵀ / √d) V: q (…, N, d), k and v (…, M, d) -> (…, N, d); the scores never reach memory.

        Backward: four products that the algorithm asks for, and Q Kᵀ once more, which the fused kernel recomputes.
        """
        lead, rows, inner, cols = q.shape[:-2], q.shape[-2], q.shape[-1], k.shape[-2]
        out = self._new(name, q.shape, requires_grad=q.requires_grad or k.requires_grad or v.requires_grad)
        scores = self.size(*lead, rows, cols)
        dims = (self.size(*lead), rows, inner, cols)
        product = 2 * scores * inner
        statistics = self._new("logsumexp", (*lead, rows), dtype="float32")
        self._emit(
            "attention", name, dims, (q, k, v), (out, statistics),
            matmul_flops=2 * product, vector_flops=(SOFTMAX_VECTOR_FLOPS + 1) * scores, special_flops=scores,
        )  # fmt: skip

        def pull(g: Var) -> tuple[Var, Var, Var]:
            grads = (self._grad(q, of_view=True), self._grad(k, of_view=True), self._grad(v, of_view=True))
            self._emit(
                "attention", f"{name}_backward", dims, (g, q, k, v, out, statistics), grads,
                matmul_flops=4 * product, recomputed_flops=product,
                vector_flops=(SOFTMAX_BACKWARD_VECTOR_FLOPS + 2) * scores, special_flops=scores,
            )  # fmt: skip
            return grads

        self._step(out, (q, k, v), pull)
        return out

    def pointwise(
        self, name: str, *inputs: Var, vector: int = 0, special: int = 0, in_place: bool = False, dtype: str = ""
    ) -> Var:
        """One elementwise kernel over the broadcast of its inputs, with FLOPs an element. Carries no gradient by itself.

        ``in_place`` puts the result in the first input's memory.
        """
        shape, requires_grad = broadcast(*(x.shape for x in inputs), ()), any(x.requires_grad for x in inputs)
        if in_place:
            out = Var(inputs[0].tensor, shape, requires_grad)
        else:
            out = self._new(name, shape, requires_grad=requires_grad, dtype=dtype)
        self._emit(
            "elementwise", name, self._flat(out.shape), inputs, (out,),
            vector_flops=vector and vector * out.tensor.numel, special_flops=special and special * out.tensor.numel,
        )  # fmt: skip
        return out

    def add(self, a: Var, b: Var, name: str = "add", *, in_place: bool = False) -> Var:
        """a + b: the gradient passes on, summed where an operand was broadcast."""
        out = self.pointwise(name, a, b, vector=1, in_place=in_place)
        self._step(out, (a, b), lambda g: (g, g))
        return out

    def subtract(self, a: Var, b: Var, name: str = "subtract", *, scaled: bool = False, in_place: bool = False) -> Var:
        """a - b, or a - s b: as ``add``; the second gradient is negated and scaled by kernels of their own."""
        out = self.pointwise(name, a, b, vector=2 if scaled else 1, in_place=in_place)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            if not b.requires_grad:
                return g, None
            negated = self.pointwise("negate", g, vector=1)
            return g, self.pointwise(f"{name}_backward", negated, vector=1) if scaled else negated

        self._step(out, (a, b), pull)
        return out

    def multiply(self, a: Var, b: Var, name: str = "multiply") -> Var:
        """a * b elementwise."""
        out = self.pointwise(name, a, b, vector=1)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            first = self.pointwise(f"{name}_backward", g, b, vector=1) if a.requires_grad else None
            return first, self.pointwise(f"{name}_backward", g, a, vector=1) if b.requires_grad else None

        self._step(out, (a, b), pull)
        return out

    def divide(self, a: Var, b: Var, name: str = "divide") -> Var:
        """a / b elementwise; the divisor's gradient, -g (a / b) / b, is four kernels in torch."""
        out = self.pointwise(name, a, b, special=1)

        def pull(g: Var) -> tuple[Var | None, Var | None]:
            second = None
            if b.requires_grad:
                start = len(self.ops)
                ratio = self.pointwise(f"{name}_backward", self.pointwise(f"{name}_backward", a, b, special=1), b, special=1)
                second = self.pointwise(f"{name}_backward", self.pointwise("negate", g, vector=1), ratio, vector=1)
                self._hold(self.ops[start:])  # one C++ expression, whose temporaries die at its end
            return self.pointwise(f"{name}_backward", g, b, special=1) if a.requires_grad else None, second

        self._step(out, (a, b), pull)
        return out

    def unary(
        self, name: str, x: Var, *, vector: int = 0, special: int = 0, saves: str | None = "output",
        backward_vector: int = 1, backward_special: int = 0, in_place: bool = False,
    ) -> Var:  # fmt: skip
        """f(x) elementwise, in one kernel each way; the way back reads what it ``saves``: "output", "input", or None."""
        out = self.pointwise(name, x, vector=vector, special=special, in_place=in_place)
        saved = {"output": (out,), "input": (x,), None: ()}[saves]

        def pull(g: Var) -> tuple[Var]:
            return (self.pointwise(f"{name}_backward", g, *saved, vector=backward_vector, special=backward_special),)

        self._step(out, (x,), pull)
        return out

    def scale(self, x: Var, name: str = "scale", *, in_place: bool = False) -> Var:
        """A constant times x."""
        return self.unary(name, x, vector=1, saves=None, in_place=in_place)

    def exp(self, x: Var, name: str = "exp", *, in_place: bool = False) -> Var:
        """e^x."""
        return self.unary(name, x, special=1, in_place=in_place)

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
            return (self.pointwise(f"{name}_backward", mask, g, zero, vector=1),)

        self._step(out, (x,), pull)
        return out

    def reduce(self, x: Var, dim: int, name: str, *, keepdim: bool = True, mean: bool = False) -> Var:
        """Sum, mean or (where no gradient is asked for) maximum over one dimension, one FLOP an element read.

        The gradient of a sum is a view that repeats it; that of a mean is divided, element by element.
        """
        axis = dim % len(x.shape)
        out = self._reduced(x, (axis,), name, keepdim=keepdim)

        def pull(g: Var) -> tuple[Var]:
            expanded = Var(g.tensor, x.shape)
            return (self.pointwise(f"{name}_backward", expanded, vector=1) if mean else expanded,)

        self._step(out, (x,), pull)
        return out

    def _reduced(self, x: Var, axes: tuple[int, ...], name: str, *, keepdim: bool) -> Var:
        """The kernel of a reduction over ``axes``."""
        kept = tuple(size for i, size in enumerate(x.shape) if i not in axes)
        gone = tuple(size for i, size in enumerate(x.shape) if i in axes)
        shape = tuple(1 if i in axes else size for i, size in enumerate(x.shape)) if keepdim else kept
        out = self._new(name, shape, requires_grad=x.requires_grad)
        self._emit("reduction", name, (1, self.size(*kept), 1, self.size(*gone)), (x,), (out,), vector_flops=self.size(*x.shape))
        return out

    def detach(self, x: Var) -> Var:
        """The same memory, through which no gradient flows."""
        return Var(x.tensor, x.shape)

    def gelu(self, x: Var, name: str = "gelu") -> Var:
        """x Φ(x), by the error function; its derivative takes an exponential too."""
        return self.unary(name, x, vector=4, special=1, saves="input", backward_vector=8, backward_special=2)

    def embedding(self, tokens: Var, weight: Var, name: str = "embedding") -> Var:
        """Rows of ``weight`` (V, D) by tokens (b, N) -> (b, N, D); the gradient is a whole table, zeros included."""
        out = self._new(name, (*tokens.shape, weight.shape[-1]), requires_grad=weight.requires_grad)
        picked = Var(replace(weight.tensor, name=f"{weight.tensor.name}_rows", numel=out.tensor.numel), out.shape)
        self._emit("copy", name, self._flat(out.shape), (tokens, picked), (out,))

        def pull(g: Var) -> tuple[Var]:
            grad = self._grad(weight)
            self._emit(
                "elementwise", f"{name}_backward", self._flat(weight.shape), (g, tokens), (grad,), vector_flops=g.tensor.numel
            )
            return (grad,)

        self._step(out, (weight,), pull)
        return out

    def layer_norm(self, x: Var, weight: Var, bias: Var, name: str = "layer_norm") -> Var:
        """Normalisation over the last dimension with gain and offset; saves a mean and a reciprocal deviation a row."""
        out = self._new(name, x.shape, requires_grad=x.requires_grad or weight.requires_grad)
        numel, rows = out.tensor.numel, self.size(*x.shape[:-1])
        statistics = self._new(f"{name}_statistics", (2, rows))
        dims = (1, rows, 1, x.shape[-1])
        self._emit("softmax", name, dims, (x, weight, bias), (out, statistics), vector_flops=7 * numel, special_flops=rows)

        def pull(g: Var) -> tuple[Var, Var, Var]:
            grads = (self._grad(x, of_view=True), self._grad(weight), self._grad(bias))
            self._emit("softmax", f"{name}_backward", dims, (g, x, statistics, weight), grads[:1], vector_flops=9 * numel)
            self._emit("reduction", f"{name}_backward_parameters", dims, (g, x, statistics), grads[1:], vector_flops=4 * numel)
            return grads

        self._step(out, (x, weight, bias), pull)
        return out

    # The way back

    def backward(self, out: Var) -> None:
        """Appends the backward ops, starting from a given gradient of ``out`` that lies ready in memory."""
        grads: dict[int, Var] = {id(out): self._new("grad_output", out.shape, role="input")}
        owned: set[str] = set()  # memory that nothing else refers to, so that sums go in place
        self._phase = "backward"
        for stage, produced, inputs, pull in reversed(self._steps):
            gradient = grads.pop(id(produced), None)
            if gradient is None:
                continue
            with self.stage(stage):
                start = len(self.ops)
                pulled = [
                    (x, self._reduce_to(g, x)) for x, g in zip(inputs, pull(gradient), strict=True) if g and x.requires_grad
                ]
                made = {tensor.name for op in self.ops[start:] for tensor in op.writes}
                self._hold(self.ops[start:], but=made)  # what a node was given and has saved goes when it is done
                for x, g in pulled:
                    seen = grads.get(id(x))
                    grads[id(x)] = g if seen is None else self._accumulate(seen, g, owned)
        self._phase, self._gradients = "forward", grads

    def adamw(self) -> None:
        """One fused kernel over all parameters: both moments and the parameter itself are read and written."""
        self._phase, before = "optimizer", self._phase
        reads, writes, numel = [], [], 0
        for parameter in self._parameters:
            moments = [self.leaf(f"moment_{parameter.tensor.name}", *parameter.shape, role="buffer") for _ in range(2)]
            reads += [parameter, self._gradients[id(parameter)], *moments]
            writes += [parameter, *moments]
            numel = numel + parameter.tensor.numel
        flops = {"vector_flops": ADAMW_VECTOR_FLOPS * numel, "special_flops": 2 * numel}  # a root and a division
        self._emit("elementwise", "adamw", (1, 1, 1, numel), tuple(reads), tuple(writes), **flops)
        self._phase = before

    def _hold(self, ops: list[Op], but: set[str] = frozenset()) -> None:
        """The tensors of ``ops`` stay in memory until the last of them is done."""
        names = {tensor.name for op in ops for tensor in (*op.reads, *op.writes)} - but
        self.held_until |= dict.fromkeys(names, len(self.ops) - 1)

    def _accumulate(self, a: Var, b: Var, owned: set[str]) -> Var:
        """The sum of two gradients of one tensor, in place where the first's memory is already a sum of our own."""
        if a.tensor.name in owned:
            self._emit("elementwise", "accumulate", self._flat(a.shape), (a, b), (a,), vector_flops=a.tensor.numel)
            return a
        out = self.pointwise("accumulate", a, b, vector=1)
        owned.add(out.tensor.name)
        return out

    def _grad(self, of: Var, *, of_view: bool = False) -> Var:
        """New memory for the gradient of ``of``; one that is kept (role "gradient") where ``of`` is a leaf."""
        leaf = of.tensor.role in ("parameter", "input") and not of_view
        return self._new(f"grad_{of.tensor.name}", of.shape, role="gradient" if leaf else "activation")

    def _reduce_to(self, g: Var, x: Var) -> Var:
        """The gradient summed over the dimensions along which ``x`` was broadcast."""
        lead = len(g.shape) - len(x.shape)
        dims = tuple(i for i, size in enumerate(g.shape) if i < lead or (is_one(x.shape[i - lead]) and not is_one(size)))
        if not dims:
            return g
        return Var(self._reduced(g, dims, f"{g.tensor.name}_sum", keepdim=True).tensor, x.shape)

    def _flat(self, shape: Shape) -> Shape:
        """(batch, rows, inner, cols) of a kernel over every element of ``shape``."""
        return (1, self.size(*shape[:-1]), 1, shape[-1]) if shape else (1, 1, 1, 1)
