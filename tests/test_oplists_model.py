"""Level model: the encoder stack's ops against the real one, and its optimizer step."""

import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.lowering import (
    lower,
    peak_memory_bytes,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import total

SHAPE = {
    "batch": 2,
    "num_heads": 2,
    "seq_len": 12,
    "head_dim": 4,
    "rank": 3,
    "num_features": 5,
    "level": "model",
}


@pytest.mark.parametrize("vocab_size", [0, 11])
@pytest.mark.parametrize("pass_", ["forward", "train"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_matmul_flops_are_torchs_own(name, pass_, vocab_size):
    pytest.importorskip("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from flurka_bench.kinds.timing.workbench import build

    for order in MECHANISMS[name].orders:
        case = Case(
            mechanism=name, pass_=pass_, order=order, num_layers=3, ffn_dim=10, vocab_size=vocab_size, **SHAPE
        )  # fmt: skip
        bench = build(case)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            bench.run()
        assert total(lower(case, "cuda"), "matmul_flops") == counter.get_total_flops()


def test_a_stack_is_so_many_layers():
    """Each layer adds the same: FLOPs are linear in num_layers, by the textbook's 4 D² + 2 D f a
    token, and attention."""
    stacks = [
        total(lower(Case(mechanism="full-math", num_layers=n, **SHAPE), "cuda"), "matmul_flops")
        for n in (1, 2, 3)
    ]
    b, h, n, d = 2, 2, 12, 4
    width = h * d
    layer = (
        8 * b * n * width**2 + 4 * b * h * n * n * d + 4 * b * n * width * 4 * width
    )  # ffn_dim = 4 D unless said
    assert stacks == [layer, 2 * layer, 3 * layer]


def test_the_optimizer_is_a_phase_of_its_own():
    """AdamW reads parameter, gradient and two moments, and writes all but the gradient: 28 bytes a
    parameter."""
    case = Case(mechanism="kernel-relu", pass_="train", num_layers=1, ffn_dim=16, **SHAPE)
    step = [op for op in lower(case, "cuda") if op.phase == "optimizer"]
    width = 8
    parameters = 4 * width**2 + 2 * width * 16 + 3 * 2 * width
    assert total(step, "bytes_read") + total(step, "bytes_written") == 28 * parameters
    assert {op.phase for op in lower(case.replace(pass_="forward"), "cuda")} == {"forward"}
    assert total(step, "matmul_flops") == 0


def test_training_keeps_activations_so_memory_grows_with_depth():
    case = Case(mechanism="full-math", num_layers=2, **SHAPE)
    forward = [peak_memory_bytes(case.replace(num_layers=n), "cuda") for n in (2, 4)]
    train = [peak_memory_bytes(case.replace(num_layers=n, pass_="train"), "cuda") for n in (2, 4)]
    assert train[1] - train[0] > 3 * (forward[1] - forward[0])


def test_depth_must_be_one_number():
    import numpy as np

    case = Case(mechanism="full-math", num_layers=np.array([1, 2]), **SHAPE)
    with pytest.raises(RequestError, match="num_layers must be one number"):
        lower(case, "cuda")
    assert len(lower(case.replace(num_layers=np.array([2, 2])), "cuda")) == len(
        lower(case.replace(num_layers=2), "cuda")
    )
