"""From a case to its op list: one op per kernel that its backend launches."""

from dataclasses import dataclass

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    as_floats,
    canonical,
    get,
)
from flurka_bench.lowering.builder import Tape
from flurka_bench.lowering.fusion import fuse
from flurka_bench.lowering.layer import Layer
from flurka_bench.lowering.model import encoder
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import (
    Op,
    Tensor,
)


def lower(case: Case, device: str) -> list[Op]:
    """The kernels that ``case`` launches, in order.

    ``case`` is brought into canonical form first (RequestError if impossible). Its sizes may be
    ints, SymPy symbols, or arrays of one shape: then the list is that of all cases at once (in
    float64, which is exact to 2^53). Arrays of batches hold either ones alone or none: a batch of
    one launches fewer copies, which is another list. Pass "train" is forward and backward from a
    given gradient of the result, and at level model AdamW's step in a phase of its own
    ("optimizer"), so that a reader can leave it out. ``device`` is "cuda" or "cpu", for the little
    in which their kernels differ: fused attention's gradients come tokens first on a CPU.
    """
    return lower_with_lifetimes(case, device).ops


@dataclass(frozen=True, slots=True, kw_only=True)
class Lowered:
    """What a case launches, and what it keeps in memory meanwhile.

    ``leaves`` are there before the first op. ``held_until`` gives the op up to which a variable
    keeps a tensor that nobody needs; compiled code has no variables and frees at the last use.
    """

    ops: list[Op]
    leaves: list[Tensor]
    held_until: dict[str, int]


def lower_with_lifetimes(case: Case, device: str) -> Lowered:
    """As ``lower``, with what decides how long tensors live."""
    tape = _record(case, device)
    if case.backend == "compiled":
        return Lowered(ops=fuse(tape.ops), leaves=tape.leaves, held_until={})
    return Lowered(ops=tape.ops, leaves=tape.leaves, held_until=tape.held_until)


def _record(case: Case, device: str) -> Tape:
    """The tape of ``case`` with its eager ops, forward and in training backward."""
    case = _one_batch(as_floats(canonical(case)))
    mechanism = get(case.mechanism)
    tape = Tape(case.dtype, train=case.pass_ == "train")
    if case.level == "core":
        shape = (case.batch, case.num_heads, case.seq_len, case.head_dim)
        q, k, v = (tape.leaf(name, *shape, role="input") for name in "qkv")
        out = Layer(tape, case, mechanism).core(q, k, v, tokens_first=device == "cpu")
    elif case.level == "layer":
        layer = Layer(tape, case, mechanism)
        out = layer.layer(tape.leaf("x", case.batch, case.seq_len, case.model_dim, role="input"))
    else:
        out = encoder(tape, case, mechanism)
    if tape.train:
        tape.backward(out)
        if case.level == "model":
            tape.adamw()
        tape.held_until[out.tensor.name] = len(tape.ops) - 1  # the caller keeps the result
    return tape


def _one_batch(case: Case) -> Case:
    """The case with an array of ones as batch made the literal 1, for which copies fall away."""
    if not isinstance(case.batch, np.ndarray):
        return case
    ones = case.batch == 1
    if np.all(ones):
        return case.replace(batch=1)
    if np.any(ones):
        raise RequestError(
            "an array of batches must be 1 everywhere or nowhere: other copies are launched (split the cases)"
        )
    return case
