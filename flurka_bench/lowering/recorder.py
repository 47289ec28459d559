"""The recorder under the tape: symbolic tensors, the ops they go through, and the walk back that
derives gradients.

Sizes may be ints, NumPy arrays or SymPy symbols: nothing here compares them, except that a literal
1 broadcasts.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

from flurka_bench.words.ops import (
    Op,
    Tensor,
)
from flurka_bench.words.sizes import Number

Shape = tuple[Number, ...]

ADAMW_VECTOR_FLOPS = (
    12  # weight decay 1, first moment 3, second moment 4, both corrections 2, epsilon and update 2
)


@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """A tensor as the code sees it: a shape over a piece of memory. A view shares its ``tensor``
    with its base."""

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


class Recorder:
    """Collects the ops of one case and remembers how gradients flow back through them.

    ``dtype`` is that of tensors unless said otherwise; with ``train`` the gradient's way back is
    remembered.
    """

    def __init__(self, dtype: str, train: bool) -> None:
        self.dtype = dtype
        self.train = train
        self.ops: list[Op] = []
        self.leaves: list[Tensor] = []
        self._stage = "other"
        self._phase = "forward"
        self._steps: list[
            tuple[str, Var, tuple[Var, ...], Callable[[Var], tuple[Var | None, ...]]]
        ] = []
        self.held_until: dict[str, int] = {}
        self._frames: list[list[str]] = []
        self._parameters: list[Var] = []
        self._gradients: dict[int, Var] = {}  # of leaves, by the leaf's id
        self._names: dict[str, int] = {}
        self._unique: set[str] = set()
        self._products: dict[tuple[int, ...], tuple[Shape, Number]] = {}

    # What tensors and sizes are

    def size(self, *sizes: Number) -> Number:
        """The product of sizes. Remembered, since with arrays each product is a pass over
        memory."""
        sizes = tuple(size for size in sizes if not is_one(size))
        if len(sizes) < 2:
            return sizes[0] if sizes else 1
        key = tuple(id(size) for size in sizes)
        if key not in self._products:
            self._products[key] = (sizes, self.size(*sizes[:-1]) * sizes[-1])
        return self._products[key][1]

    def leaf(
        self,
        name: str,
        *shape: Number,
        role: str = "parameter",
        requires_grad: bool | None = None,
        dtype: str = "",
    ) -> Var:
        """A tensor that exists before the first op: a parameter, an input or a buffer.

        In training all but buffers require a gradient unless ``requires_grad`` says otherwise.
        """
        wanted = role != "buffer" if requires_grad is None else requires_grad
        out = self._new(name, shape, role=role, requires_grad=self.train and wanted, dtype=dtype)
        self.leaves.append(out.tensor)
        if role == "parameter":
            self._parameters.append(out)
        return out

    def _new(
        self,
        name: str,
        shape: Shape,
        *,
        role: str = "activation",
        requires_grad: bool = False,
        dtype: str = "",
    ) -> Var:
        count = self._names.get(name, 0) + 1
        while (unique := name if count == 1 else f"{name}.{count}") in self._unique:
            count += 1
        self._names[name] = count
        self._unique.add(unique)
        return Var(
            Tensor(name=unique, numel=self.size(*shape), dtype=dtype or self.dtype, role=role),
            shape,
            requires_grad,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Ops appended inside belong to this stage, and so do the backward ops derived from
        them."""
        before, self._stage = self._stage, name
        yield
        self._stage = before

    @contextmanager
    def as_dtype(self, dtype: str) -> Iterator[None]:
        """Tensors made inside have this dtype."""
        before, self.dtype = self.dtype, dtype
        yield
        self.dtype = before

    @contextmanager
    def frame(self) -> Iterator[None]:
        """A function of the eager code: what it ``hold``s stays in memory until it returns."""
        self._frames.append([])
        yield
        self.held_until |= dict.fromkeys(self._frames.pop(), len(self.ops) - 1)

    def hold(self, *held: Var) -> None:
        """Local variables of the innermost frame."""
        self._frames[-1].extend(x.tensor.name for x in held)

    def _emit(
        self,
        kind: str,
        name: str,
        dims: Shape,
        reads: tuple[Var, ...],
        writes: tuple[Var, ...],
        work: str = "arithmetic",
        **flops: Number,
    ) -> None:
        batch, rows, inner, cols = dims
        self.ops.append(
            Op(
                stage=self._stage, kind=kind, name=name, dtype=self.dtype, batch=batch, rows=rows, inner=inner, cols=cols,
                reads=tuple({var.tensor.name: var.tensor for var in reads}.values()),
                writes=tuple(var.tensor for var in writes), phase=self._phase, work=work, **flops,
            )
        )  # fmt: skip

    def _step(
        self, out: Var, inputs: tuple[Var, ...], pull: Callable[[Var], tuple[Var | None, ...]]
    ) -> None:
        """Remembers that ``pull`` turns the gradient of ``out`` into those of ``inputs`` (None
        where none is needed)."""
        if self._phase == "forward" and out.requires_grad:
            self._steps.append((self._stage, out, inputs, pull))

    # The way back

    def backward(self, out: Var) -> None:
        """Appends the backward ops, starting from a given gradient of ``out`` that lies ready in
        memory."""
        grads: dict[int, Var] = {id(out): self._new("grad_output", out.shape, role="input")}
        self._phase = "backward"
        for stage, produced, inputs, pull in reversed(self._steps):
            gradient = grads.pop(id(produced), None)
            if gradient is None:
                continue
            with self.stage(stage):
                start = len(self.ops)
                pulled = [
                    (x, self._reduce_to(g, x))
                    for x, g in zip(inputs, pull(gradient), strict=True)
                    if g and x.requires_grad
                ]
                made = {tensor.name for op in self.ops[start:] for tensor in op.writes}
                self._hold(
                    self.ops[start:], but=made
                )  # what a node was given and has saved goes when it is done
                for x, g in pulled:
                    seen = grads.get(id(x))
                    if seen is not None:
                        shared = sum(other.tensor is seen.tensor for other in grads.values()) > 1
                        g = self._accumulate(
                            seen, g, in_place=not shared and seen.tensor.role != "input"
                        )
                    grads[id(x)] = g
        self._phase, self._gradients = "forward", grads

    def adamw(self) -> None:
        """One fused kernel over all parameters: both moments and the parameter itself are read and
        written."""
        self._phase, before = "optimizer", self._phase
        reads, writes, numel = [], [], 0
        for parameter in self._parameters:
            moments = [
                self.leaf(f"moment_{parameter.tensor.name}", *parameter.shape, role="buffer")
                for _ in range(2)
            ]
            reads += [parameter, self._gradients[id(parameter)], *moments]
            writes += [parameter, *moments]
            numel = numel + parameter.tensor.numel
        flops = {
            "vector_flops": ADAMW_VECTOR_FLOPS * numel,
            "special_flops": 2 * numel,
        }  # a root and a division
        self._emit(
            "elementwise",
            "adamw",
            (1, 1, 1, numel),
            tuple(reads),
            tuple(writes),
            "division",
            **flops,
        )
        self._phase = before

    def _hold(self, ops: list[Op], but: Set[str] = frozenset()) -> None:
        """The tensors of ``ops`` stay in memory until the last of them is done."""
        names = {tensor.name for op in ops for tensor in (*op.reads, *op.writes)} - but
        self.held_until |= dict.fromkeys(names, len(self.ops) - 1)

    def _accumulate(self, a: Var, b: Var, *, in_place: bool) -> Var:
        """The sum of two gradients of one tensor, in the first's memory where nothing else needs
        it."""
        out = a if in_place else self._new("accumulate", a.shape)
        self._emit(
            "elementwise",
            "accumulate",
            self._flat(a.shape),
            (a, b),
            (out,),
            vector_flops=a.tensor.numel,
        )
        return out

    def _grad(self, of: Var, *, of_view: bool = False) -> Var:
        """New memory for the gradient of ``of``; one that is kept (role "gradient") where ``of`` is
        a leaf."""
        leaf = of.tensor.role in ("parameter", "input") and not of_view
        return self._new(
            f"grad_{of.tensor.name}", of.shape, role="gradient" if leaf else "activation"
        )

    def _reduce_to(self, g: Var, x: Var) -> Var:
        """The gradient summed over the dimensions along which ``x`` was broadcast."""
        lead = len(g.shape) - len(x.shape)
        dims = tuple(
            i
            for i, size in enumerate(g.shape)
            if i < lead or (is_one(x.shape[i - lead]) and not is_one(size))
        )
        if not dims:
            return g
        return Var(self._reduced(g, dims, f"{g.tensor.name}_sum", keepdim=True).tensor, x.shape)

    def _reduced(
        self, x: Var, axes: tuple[int, ...], name: str, *, keepdim: bool, work: str = "sum"
    ) -> Var:
        """The kernel of a reduction over ``axes``."""
        kept = tuple(size for i, size in enumerate(x.shape) if i not in axes)
        gone = tuple(size for i, size in enumerate(x.shape) if i in axes)
        shape = (
            tuple(1 if i in axes else size for i, size in enumerate(x.shape)) if keepdim else kept
        )
        out = self._new(name, shape, requires_grad=x.requires_grad)
        dims = (1, self.size(*kept), self.size(*x.shape[max(axes) + 1 :]), self.size(*gone))
        self._emit("reduction", name, dims, (x,), (out,), work, vector_flops=self.size(*x.shape))
        return out

    def _flat(self, shape: Shape) -> Shape:
        """(batch, rows, inner, cols) of a kernel over every element of ``shape``."""
        return (1, self.size(*shape[:-1]), 1, shape[-1]) if shape else (1, 1, 1, 1)
