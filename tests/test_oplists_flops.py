"""Op lists count what the real modules do: matmul FLOPs equal torch's own counter, exactly."""

import itertools

import pytest
from forms import FORMS
from hypothesis import given, settings
from hypothesis import strategies as st

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.lowering import lower
from flurka_bench.words.ops import total

torch = pytest.importorskip("torch")
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from flurka_bench.kinds.timing.workbench import build  # noqa: E402


def counted(case: Case) -> int:
    """Matmul FLOPs of one pass of the real module, fused attention taken apart into its
    products."""
    bench = build(case)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        bench.run()
    return counter.get_total_flops()


@st.composite
def shapes(draw):
    window, rank = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    return {
        "batch": draw(st.integers(1, 3)), "num_heads": draw(st.integers(1, 3)), "head_dim": draw(st.integers(1, 6)),
        "seq_len": window * rank, "rank": rank, "num_features": draw(st.integers(1, 7)),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "level", "order", "pass_"), FORMS)
@settings(max_examples=4, deadline=None)
@given(shape=shapes())
def test_matmul_flops_are_torchs_own(name, level, order, pass_, shape):
    sharing = itertools.product(("dense", "mean-pool", "conv"), (False, True), (True, False))
    for compression, share_kv, share_heads in (
        sharing if MECHANISMS[name].compressed else [("dense", False, True)]
    ):
        case = Case(
            mechanism=name, level=level, order=order, pass_=pass_,
            compression=compression, share_kv=share_kv, share_heads=share_heads, **shape,
        )  # fmt: skip
        assert total(lower(case, "cuda"), "matmul_flops") == counted(case), case.case_id


def test_a_wrong_count_would_be_seen():
    """The comparison is exact: one rank more is a different number."""
    case = Case(
        mechanism="flurka-relu", num_heads=2, seq_len=12, head_dim=4, rank=3, num_features=5
    )
    assert total(lower(case.replace(rank=4), "cuda"), "matmul_flops") != counted(case)
