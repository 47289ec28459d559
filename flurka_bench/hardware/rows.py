"""Operators as measured files and ``calibrate`` know them: names, shapes, operands, how they are
timed. The clock that measures rows and the model that is fitted to them read the same table."""

from dataclasses import dataclass

# The columns of an operator's sizes, by the file that ``calibrate`` writes them to. In a product N
# is the contracted side; in "cross" the keys have a length of their own.
SHAPES = {
    "matmul": ("B", "M", "N", "K"),
    "rows": ("B", "H"),
    "attention": ("batch", "num_heads", "seq_len", "head_dim"),
    "cross": ("batch", "num_heads", "seq_len", "head_dim", "num_keys"),
}
NUM_FITTED = 20  # rows of an op and dtype that a GPU's fit may see; the rest judge it
MATMULS = ("linear", "bmm", "bmm_shared")  # the last on a CPU alone
ATTENTION = ("attention", "attention_backward")  # the last on a CPU alone

# How rows are timed, by dtype: with the host's dispatch and the same operands again and again
# (float32), between two device events (float16), or, products, as six calls with their own
# operands in a replayed graph (bfloat16).
PROTOCOL = {
    "float32": ("eager", 1),
    "float64": ("eager", 1),
    "float16": ("events", 1),
    "bfloat16": ("graph", 6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """One operator on B rows of H elements.

    ``reads`` and ``writes`` are operands: "BH", one side of it, or a "mask" of BH. ``work`` is of
    ``words.ops.WORKS``.
    """

    kind: str = "elementwise"
    work: str = "arithmetic"
    reads: tuple[str, ...] = ("BH",)
    writes: str = "BH"
    in_place: bool = False
    backward: bool = False


def _softmax(*reads: str, backward: bool = False) -> Streaming:
    return Streaming(kind="softmax", reads=reads, backward=backward)


def _reduction(work: str, writes: str = "B") -> Streaming:
    return Streaming(kind="reduction", work=work, writes=writes)


# In place with a trailing underscore; row: the second operand is (1, H), column: (B, 1).
STREAMING = {
    "add": Streaming(reads=("BH", "BH")),
    "mul": Streaming(reads=("BH", "BH")),
    "div": Streaming(reads=("BH", "BH"), work="division"),
    "relu": Streaming(),
    "exp": Streaming(work="exp"),
    "elu": Streaming(work="expm1"),
    "gelu": Streaming(work="gelu"),
    "tanh": Streaming(work="tanh"),
    "addu_": Streaming(in_place=True),
    "exp_": Streaming(work="exp", in_place=True),
    "sub_column_": Streaming(reads=("BH", "B"), in_place=True),
    "mul_row": Streaming(reads=("BH", "H")),
    "div_column": Streaming(reads=("BH", "B"), work="division"),
    "sum": _reduction("sum"),
    "amax": _reduction("maximum"),
    "amax_columns": _reduction("maximum", "H"),
    "where": Streaming(reads=("mask", "BH"), work="select"),
    "transpose": Streaming(kind="copy"),
    "softmax": _softmax("BH"),
    "softmax_backward": _softmax("BH", "BH", backward=True),
    "addu": Streaming(),
    "mulu": Streaming(),
}
# What published files of GPUs hold, softmax apart; on a CPU all but the last two are timed.
ELEMENTWISE_OPS = ("add", "mul", "div", "addu", "mulu", "relu", "exp", "tanh", "gelu")
CPU_ROWS = tuple(name for name in STREAMING if name not in ("addu", "mulu"))
