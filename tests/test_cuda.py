"""On a machine with a GPU: every mechanism, order, dtype and backend gives the right output there.
Skips without one."""

import dataclasses

import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device ('make cuda' on a machine with one)"
)

SHAPE = {
    "batch": 2,
    "num_heads": 4,
    "seq_len": 512,
    "head_dim": 64,
    "rank": 128,
    "num_features": 64,
}


def cases():
    for name, mechanism in MECHANISMS.items():
        for dtype in ("float32", "float16", "bfloat16", "float64"):
            yield Case(mechanism=name, level="core", dtype=dtype, **SHAPE)
        for order in mechanism.orders:
            for pass_ in ("forward", "train"):
                for dtype in ("float32", "bfloat16"):
                    yield Case(
                        mechanism=name,
                        level="layer",
                        pass_=pass_,
                        order=order,
                        dtype=dtype,
                        **SHAPE,
                    )


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.case_id)
def test_eager_matches_the_reference(case):
    from flurka_bench.kinds.timing.workbench import build

    bench = build(case, seed=0, device="cuda")
    bench.check()
    bench.release()


@pytest.mark.parametrize("backend", ["compiled", "fused"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(MECHANISMS))
def test_other_backends_match_the_reference(name, dtype, backend):
    from flurka_bench.kinds.timing.workbench import (
        UnsupportedCase,
        build,
    )

    case = Case(mechanism=name, level="core", dtype=dtype, backend=backend, **SHAPE)
    try:
        bench = build(case, seed=0, device="cuda")
    except UnsupportedCase as error:
        pytest.skip(str(error))
    bench.check()
    for seq_len in (77, 1000):  # not a multiple of any tile
        build(
            dataclasses.replace(case, seq_len=seq_len, rank=min(128, seq_len)),
            seed=0,
            device="cuda",
        ).check()
