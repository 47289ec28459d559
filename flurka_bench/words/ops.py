"""What a mechanism asks of the hardware: a list of ops, one per launched kernel.

This is the project's one arithmetic. Lowering (``mechanisms.lower``) writes these lists; the cost
model, the peak-memory estimate and the closed-form regions read them, and nothing else counts FLOPs
or bytes. Every quantity is an int, a NumPy array (a sweep's worth of cases at once) or a SymPy
expression, as the case's fields were.
"""

from dataclasses import dataclass

from flurka_bench.words.sizes import (
    DTYPE_BYTES,
    Number,
)

KINDS = ("matmul", "softmax", "elementwise", "reduction", "copy", "attention")
# What an element of an elementwise kernel or a reduction takes, the dearest first ("maximum" is
# also a minimum). A fused kernel takes what the dearest of its parts does.
WORKS = (
    "select", "gelu", "expm1", "tanh", "exp", "division", "maximum", "sum", "arithmetic",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A named piece of device memory. Two ops that name the same tensor touch the same bytes."""

    name: str
    numel: Number
    dtype: str
    role: str = (
        "activation"  # activation, input, parameter, buffer (constants such as Omega), gradient
    )

    @property
    def bytes(self) -> Number:
        """Size in bytes."""
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One launched kernel.

    The four dimensions mean, by kind:

    =============  ===============================================================================
    matmul         ``batch`` products (rows, inner) @ (inner, cols)
    softmax        ``batch * rows`` rows of ``cols`` elements (``inner`` is 1)
    reduction      ``batch * rows`` rows of ``cols`` elements, each to one; ``inner`` elements apart
                   in memory (1: adjacent)
    elementwise    ``batch * rows * cols`` elements
    copy           the same, nothing computed
    attention      fused softmax(Q K^T / sqrt(d)) V: ``batch`` heads, ``rows`` queries, ``cols``
                   keys, ``inner`` = head_dim
    =============  ===============================================================================

    FLOPs are split by the unit that does them: ``matmul_flops`` (multiply-add = 2; tensor cores
    where the dtype has them), ``vector_flops`` (adds, multiplies, comparisons on the ordinary
    lanes) and ``special_flops`` (exp, rsqrt, division, tanh: the special function units).
    ``recomputed_flops`` are matmul FLOPs a fused backward does again; they cost time but are not
    part of the algorithm's count. ``work`` says what an element takes where lanes do the work.
    """

    stage: str
    kind: str
    name: str
    dtype: str
    batch: Number = 1
    rows: Number = 1
    cols: Number = 1
    inner: Number = 1
    matmul_flops: Number = 0
    vector_flops: Number = 0
    special_flops: Number = 0
    recomputed_flops: Number = 0
    reads: tuple[Tensor, ...] = ()
    writes: tuple[Tensor, ...] = ()
    phase: str = "forward"  # forward, backward, optimizer
    work: str = "arithmetic"  # of WORKS

    @property
    def bytes_read(self) -> Number:
        """Bytes of all operands, each counted once."""
        return sum((tensor.bytes for tensor in self.reads), start=0)

    @property
    def bytes_written(self) -> Number:
        """Bytes of all results."""
        return sum((tensor.bytes for tensor in self.writes), start=0)

    @property
    def flops(self) -> Number:
        """All floating-point operations of the algorithm, whichever unit does them."""
        return self.matmul_flops + self.vector_flops + self.special_flops


def total(ops: "list[Op]", quantity: str) -> Number:
    """The sum of one attribute (``matmul_flops``, ``bytes_read``, ...) over a list of ops."""
    return sum((getattr(op, quantity) for op in ops), start=0)
