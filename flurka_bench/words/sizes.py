"""The words everyone uses: what is computed (a case), on what shape, in which form.

Shape letters, used in comments and docstrings throughout the project::

    b  batch          N  seq_len       d  head_dim       D  model_dim = h * d
    h  num_heads      k  rank          m  num_features   f  ffn_dim

A ``Case`` is one thing to time or to predict: a mechanism with its knobs, at a workload. Its
numeric fields are plain ints for one case, NumPy arrays for many, or SymPy symbols for closed
forms; everything that counts FLOPs and bytes is arithmetic on them. Categorical fields are always
one string.
"""

import math
from collections.abc import Iterable, Sized
from typing import Any

from flurka_bench.words.errors import RequestError

Number = Any  # int | float | numpy.ndarray | sympy.Expr: whatever supports + - * / and comparison

LEVELS = ("core", "layer", "model")
PASSES = ("forward", "train")
ORDERS = ("project_first", "compress_first", "absorbed")
BACKENDS = ("eager", "compiled", "fused")
DTYPES = ("float64", "float32", "bfloat16", "float16")
# The fields of a case that are one of a few names, with those names (``registry.CHOICES`` adds the
# mechanism's and the compression's).
CHOICES = {
    "level": LEVELS, "pass": PASSES, "order": ORDERS, "backend": BACKENDS, "dtype": DTYPES,
}  # fmt: skip
# Other words for a dtype, which requests may use in any case of letters; records name it as DTYPES
# does.
DTYPE_ALIASES = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "f16": "float16", "fp32": "float32", "f32": "float32",
    "float": "float32", "fp64": "float64", "f64": "float64", "double": "float64",
}  # fmt: skip
DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "bool": 1, "int64": 8}

# The stages a mechanism runs, in this order where it has them; the same names in op lists, code,
# profiler and plots. "ffn" and "other" (norms, residuals, embedding, optimizer) exist at level
# model only.
STAGES = (
    "project",
    "compress",
    "features",
    "scores",
    "key_value",
    "output",
    "merge",
    "ffn",
    "other",
)

# No size of a case is larger: beyond it a number is a slip, and products of a few sizes leave what
# floats can hold.
LARGEST_SIZE = 2**40

# The most combinations that one request is expanded to: some seconds of work, and a guard against a
# slip of the keyboard. The largest shipped suite has 4,320.
MAX_COMBINATIONS = 50_000


def check_combinations(
    what: str, *axes: Iterable[Sized], mend: str, limit: int = MAX_COMBINATIONS
) -> None:
    """Count before anything is expanded: raise RequestError where the products of the axes'
    lengths, added up, are more than the limit.

    ``what`` asks for them, and ``mend`` says what makes them fewer.
    """
    num = sum(math.prod(len(values) for values in each) for each in axes)
    if num > limit:
        raise RequestError(f"{what} asks for {num} combinations; the limit is {limit} ({mend})")


# The sizes of a case, in the order in which ids, tables and records give them.
SIZES = ("batch", "num_heads", "seq_len", "head_dim", "rank", "num_features")

# What competitors share to be compared: everything but the mechanism and its knobs. Under the names
# that records use.
WORKLOAD = (
    "level", "pass", "dtype", "batch", "num_heads", "seq_len", "head_dim", "num_layers", "ffn_dim", "vocab_size",
)  # fmt: skip


def dtype_name(text: str) -> str:
    """The dtype that ``text`` means: ``"BF16"`` -> ``"bfloat16"``; unknown text comes back as it
    is."""
    word = str(text).strip().lower()
    return DTYPE_ALIASES.get(word, word if word in DTYPES else text)
