"""The eager op list against what torch launches: every kernel and every byte, seen by a dispatch
mode."""

from collections import Counter

import pytest
from forms import FORMS

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.lowering import lower
from flurka_bench.words.ops import total

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from flurka_bench.kinds.timing.workbench import build  # noqa: E402

# aten operators that move no bytes
VIEWS = {
    "view",
    "_unsafe_view",
    "transpose",
    "t",
    "permute",
    "expand",
    "unsqueeze",
    "squeeze",
    "detach",
    "alias",
    "slice",
}
KINDS = {
    "mm": "matmul", "bmm": "matmul", "baddbmm": "matmul",
    "_softmax": "softmax", "_softmax_backward_data": "softmax",
    "linalg_vector_norm": "reduction", "amin": "reduction",
    "sum": "reduction", "mean": "reduction", "amax": "reduction", "clone": "copy", "copy_": "copy",
    "_scaled_dot_product_flash_attention_for_cpu": "attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "attention",
}  # fmt: skip


def distinct_bytes(tensor) -> int:
    """Bytes in memory: a dimension of stride 0 repeats the same ones."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride else 1
    return count


class KernelLog(TorchDispatchMode):
    """Kind, bytes read and bytes written of every operator below autograd that is not a view."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.__name__.split(".")[0]
        if name not in VIEWS and not name.startswith(("empty", "new_empty")):
            reads = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            # the first argument of copy_ is where it writes; that of our baddbmm is times 0, unread
            reads = reads[1:] if name in ("copy_", "baddbmm") else reads
            reads = {(tensor.data_ptr(), tensor.shape): tensor for tensor in reads}.values()
            writes = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
            kind = KINDS.get(name, "elementwise")
            self.rows.append(
                (kind, sum(map(distinct_bytes, reads)), sum(map(distinct_bytes, writes)))
            )
        return out


def launched(case: Case):
    bench = build(case)
    with KernelLog() as log:
        if case.pass_ == "train":
            bench.run()
        else:  # inference mode would hide what a matmul is made of
            with torch.no_grad():
                bench.module(*bench.inputs)
    return log.rows


def summary(rows):
    return (
        Counter(kind for kind, _, _ in rows),
        sum(row[1] for row in rows),
        sum(row[2] for row in rows),
    )


def lowered(case: Case):
    return [(op.kind, op.bytes_read, op.bytes_written) for op in lower(case, device="cpu")]


SHAPE = {"num_heads": 3, "seq_len": 20, "head_dim": 6, "rank": 10, "num_features": 7}


@pytest.mark.parametrize(("name", "level", "order", "pass_"), FORMS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("share_kv", [False, True])
def test_every_kernel_and_byte_of_the_usual_compression(
    name, level, order, pass_, batch, share_kv, dtype="float32"
):
    case = Case(
        mechanism=name,
        level=level,
        order=order,
        pass_=pass_,
        batch=batch,
        share_kv=share_kv,
        dtype=dtype,
        **SHAPE,
    )
    expected, got = summary(launched(case)), summary(lowered(case))
    if name == "low-rank-sdpa" and level == "core" and pass_ == "train" and batch > 1:
        expected = (
            expected[0] - Counter(copy=2),
            *(size - 2 * 4 * 10 * 6 * 3 * batch for size in expected[1:]),
        )
    assert got == expected


@pytest.mark.parametrize(
    ("name", "level", "order", "pass_"), [form for form in FORMS if MECHANISMS[form[0]].is_kernel]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_kernel_and_byte_of_float16(name, level, order, pass_, batch):
    """float16 levels its features: kernels that the other dtypes do not launch."""
    test_every_kernel_and_byte_of_the_usual_compression(
        name, level, order, pass_, batch, False, "float16"
    )


@pytest.mark.parametrize(
    ("name", "level", "order", "pass_"), [form for form in FORMS if MECHANISMS[form[0]].compressed]
)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("compression", "share_heads"),
    [("dense", False), ("conv", True), ("conv", False), ("mean-pool", True)],
)
def test_rarer_compressions_differ_by_no_more_than_copies(
    name, level, order, pass_, batch, compression, share_heads
):
    """Strides of the rarer forms are not followed to the last small copy."""
    case = Case(
        mechanism=name, level=level, order=order, pass_=pass_, batch=batch,
        compression=compression, share_heads=share_heads, **SHAPE,
    )  # fmt: skip
    (kinds, read, written), (kinds_got, read_got, written_got) = (
        summary(launched(case)),
        summary(lowered(case)),
    )
    copies = abs(kinds.pop("copy", 0) - kinds_got.pop("copy", 0))
    assert kinds_got == kinds
    assert copies <= 4
    assert read_got + written_got == pytest.approx(read + written, rel=0.2)


def test_flops_of_the_vector_units_are_counted():
    """exp is a special function, and a row softmax does four vector operations and one exponential
    an element."""
    ops = lower(Case(mechanism="full-math", num_heads=1, seq_len=5, head_dim=3), "cuda")
    (softmax,) = (op for op in ops if op.kind == "softmax")
    assert (softmax.vector_flops, softmax.special_flops) == (4 * 25, 25 + 5)
    assert total(ops, "special_flops") == 30
