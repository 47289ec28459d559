"""Level model as ops: a pre-norm encoder stack around any mechanism, as ``attention.encoder`` runs
it, and AdamW's step."""

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import Mechanism
from flurka_bench.lowering.builder import Tape
from flurka_bench.lowering.layer import Layer
from flurka_bench.lowering.recorder import Var
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import Number


def encoder(tape: Tape, case: Case, mechanism: Mechanism) -> Var:
    """x (b, N, D), or with a vocabulary tokens (b, N), -> (b, N, D) or logits (b, N,
    vocab_size)."""
    width = case.model_dim
    vocab_size = _one_number("vocab_size", case.vocab_size)
    with tape.stage("other"):
        if vocab_size == 0:
            x = tape.leaf("x", case.batch, case.seq_len, width, role="input")
        else:
            tokens = tape.leaf(
                "tokens", case.batch, case.seq_len, role="input", requires_grad=False, dtype="int64"
            )
            x = tape.embedding(tokens, tape.leaf("embedding", vocab_size, width))
    for _ in range(_one_number("num_layers", case.num_layers)):
        x = _encoder_layer(tape, case, mechanism, x)
    with tape.stage("other"):
        x = tape.layer_norm(x, tape.leaf("norm_weight", width), tape.leaf("norm_bias", width))
        return (
            x if vocab_size == 0 else tape.matmul(x, tape.leaf("head", width, vocab_size), "logits")
        )


def _encoder_layer(tape: Tape, case: Case, mechanism: Mechanism, x: Var) -> Var:
    """x + attention(norm(x)), then x + W_2 gelu(W_1 norm(x)); no biases but the norms'."""
    width, layer = case.model_dim, Layer(tape, case, mechanism)

    def norm(x: Var) -> Var:
        return tape.layer_norm(x, tape.leaf("norm_weight", width), tape.leaf("norm_bias", width))

    with tape.frame():
        tape.hold(x)
        with tape.stage("other"):
            normed = norm(x)
        attended = layer.layer(normed)
        tape.hold(attended)
        with tape.stage("other"):
            x = tape.add(x, attended, "residual")
            normed = norm(x)
            tape.hold(x, normed)
        with tape.stage("ffn"):
            hidden = tape.gelu(
                tape.matmul(normed, tape.leaf("ffn_in", width, case.ffn_dim), "ffn_in")
            )
            update = tape.matmul(hidden, tape.leaf("ffn_out", case.ffn_dim, width), "ffn_out")
        with tape.stage("other"):
            return tape.add(x, update, "residual")


def _one_number(name: str, value: Number) -> int:
    """A size that decides which ops there are. Raises RequestError for symbols and for arrays of
    different numbers."""
    if isinstance(value, np.ndarray) and value.size and np.all(value == value.flat[0]):
        value = int(value.flat[0])
    if not isinstance(value, int):
        raise RequestError(
            f"{name} must be one number at level model, since it decides which ops there are; split the cases"
        )
    return value
