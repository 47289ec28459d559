"""From a case to its op list: the stages of each mechanism, as the eager code runs them, over symbolic tensors."""

from flurka_bench.mechanisms.builder import Tape, Var
from flurka_bench.mechanisms.names import Mechanism, as_floats, canonical, get
from flurka_bench.ops import Op
from flurka_bench.workload import Case


def lower(case: Case) -> list[Op]:
    """The kernels that ``case`` launches, in order; ``case`` is brought into canonical form first (RequestError if impossible)."""
    case = as_floats(canonical(case))
    mechanism = get(case.mechanism)
    tape = Tape(case.dtype, train=case.pass_ == "train")
    out = _core(tape, case, mechanism)
    if tape.train:
        tape.backward(out)
    return tape.ops


def _core(tape: Tape, case: Case, mechanism: Mechanism) -> Var:
    shape = (case.batch, case.num_heads, case.seq_len, case.head_dim)
    q, k, v = (tape.leaf(name, *shape, role="input") for name in "qkv")
    if mechanism.compressed:
        with tape.stage("compress"):
            lead = () if case.share_heads else (case.num_heads,)
            e = tape.leaf("E", *lead, case.rank, case.seq_len)
            f = e if case.share_kv else tape.leaf("F", *lead, case.rank, case.seq_len)
            k, v = tape.matmul(e, k, "compress_keys"), tape.matmul(f, v, "compress_values")
    return _attend(tape, case, mechanism, q, k, v)


def _attend(tape: Tape, case: Case, mechanism: Mechanism, q: Var, k: Var, v: Var) -> Var:
    if mechanism.similarity == "sdpa":
        with tape.stage("scores"):
            return tape.attention(q, k, v)
    if mechanism.similarity == "softmax":
        with tape.stage("scores"):
            weights = tape.softmax(tape.matmul(tape.scale(q), tape.transpose(k), "scores"))
        with tape.stage("output"):
            return tape.matmul(weights, v, "output")
    with tape.stage("features"):
        omega = None
        if mechanism.uses_features:
            omega = tape.leaf("omega", case.head_dim, case.num_features, role="buffer")
        phi_q, phi_k = (_features(tape, mechanism, x, omega) for x in (q, k))
    with tape.stage("key_value"):
        key_value = tape.matmul(tape.transpose(phi_k), v, "key_value")
        key_sum = tape.reduce(phi_k, (-2,), "key_sum")
    with tape.stage("output"):
        normaliser = tape.reduce(tape.multiply(phi_q, key_sum), (-1,), "normaliser")
        return tape.divide(tape.matmul(phi_q, key_value, "output"), normaliser)


def _features(tape: Tape, mechanism: Mechanism, x: Var, omega: Var | None) -> Var:
    if mechanism.similarity == "elu":
        return tape.unary("elu", x, vector=2, special=1)
    projected = tape.matmul(tape.scale(x), omega, "features")
    if mechanism.similarity == "relu":
        return tape.relu(projected)
    norm = tape.reduce(tape.multiply(x, x), (-1,), "norm")
    return tape.exp(tape.subtract(projected, norm))
