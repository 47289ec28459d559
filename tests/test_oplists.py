"""Op lists: the design's formulas, bytes by hand, backward by the chain rule, one list for ints,
arrays and symbols."""

import numpy as np
import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.lowering import lower
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import total
from flurka_bench.words.sizes import STAGES

QUANTITIES = (
    "matmul_flops",
    "vector_flops",
    "special_flops",
    "recomputed_flops",
    "bytes_read",
    "bytes_written",
)
B, H, N, D_HEAD, K, M = 2, 3, 40, 6, 8, 5
WIDTH = H * D_HEAD
SHAPE = {"batch": B, "num_heads": H, "seq_len": N, "head_dim": D_HEAD, "rank": K, "num_features": M}


def flops(name, **changes):
    return total(lower(Case(mechanism=name, **(SHAPE | changes)), "cuda"), "matmul_flops")


CORE = {  # per batch and head
    "full-math": 4 * N * N * D_HEAD,
    "full-sdpa": 4 * N * N * D_HEAD,
    "low-rank": 8 * N * K * D_HEAD,
    "low-rank-sdpa": 8 * N * K * D_HEAD,
    "kernel-favor": 8 * N * M * D_HEAD,
    "kernel-relu": 8 * N * M * D_HEAD,
    "kernel-elu": 4 * N * D_HEAD**2,
    "flurka-favor": 4 * N * K * D_HEAD + 4 * N * M * D_HEAD + 4 * K * M * D_HEAD,
    "flurka-relu": 4 * N * K * D_HEAD + 4 * N * M * D_HEAD + 4 * K * M * D_HEAD,
    "flurka-elu": 4 * N * K * D_HEAD + 2 * K * D_HEAD**2 + 2 * N * D_HEAD**2,
}


@pytest.mark.parametrize("name", MECHANISMS)
def test_core_flops_are_the_designs(name):
    assert flops(name) == B * H * CORE[name]


LAYER = {  # per batch, heads sharing E, compress_first, E = F
    "low-rank": 4 * N * WIDTH**2 + 2 * N * K * WIDTH + 4 * K * WIDTH**2 + 4 * N * K * WIDTH,
    "kernel-relu": 8 * N * WIDTH**2 + 8 * N * M * WIDTH,
    "flurka-relu": 4 * N * WIDTH**2
    + 2 * N * K * WIDTH
    + 4 * K * WIDTH**2
    + 4 * N * M * WIDTH
    + 4 * K * M * WIDTH,
    "full-math": 8 * N * WIDTH**2 + 4 * N * N * WIDTH,
}


@pytest.mark.parametrize("name", LAYER)
def test_layer_flops_are_the_designs(name):
    order = "compress_first" if MECHANISMS[name].compressed else "project_first"
    assert flops(name, level="layer", order=order, share_kv=True) == B * LAYER[name]


def test_absorbed_flops_are_the_designs_to_leading_order():
    """FLuRKA 4 N m D² / d + 2 N k D, kernel 8 N m D² / d: what is left over does not grow with
    N."""
    for name, leading in (
        ("flurka-relu", 4 * M * WIDTH**2 // D_HEAD + 2 * K * WIDTH),
        ("kernel-relu", 8 * M * WIDTH**2 // D_HEAD),
    ):
        one, two = (
            flops(name, level="layer", order="absorbed", share_kv=True, seq_len=n)
            for n in (N, 2 * N)
        )
        assert two - one == B * N * leading


def test_a_trained_step_costs_three_forwards_where_everything_needs_a_gradient():
    """Each product has two gradients of its own size; products with Ω, a constant, have one."""
    for name in ("full-math", "full-sdpa", "low-rank", "kernel-elu", "flurka-elu"):
        assert flops(name, pass_="train") == 3 * flops(name)
    features = 2 * 2 * N * D_HEAD * M * B * H
    assert flops("kernel-relu", pass_="train") == 3 * flops("kernel-relu") - features


def test_flash_recomputes_its_scores_but_does_not_count_them():
    (forward, backward) = lower(Case(mechanism="full-sdpa", pass_="train", **SHAPE), "cuda")
    assert backward.matmul_flops == 2 * forward.matmul_flops
    assert backward.recomputed_flops == 2 * B * H * N * N * D_HEAD
    assert forward.recomputed_flops == 0


def op(ops, name):
    (found,) = (op for op in ops if op.name == name)
    return found


def test_bytes_by_hand_full_attention():
    """One head, N = 4, d = 2, float32: every number on paper. q, k, v and out are 32 bytes, scores
    64."""
    ops = lower(Case(mechanism="full-math", num_heads=1, seq_len=4, head_dim=2), "cuda")
    assert [(op.name, op.bytes_read, op.bytes_written) for op in ops] == [
        ("scale", 32, 32),
        ("scores", 32 + 32, 64),
        ("softmax", 64, 64),
        ("output", 64 + 32, 32),
    ]


def test_bytes_by_hand_low_rank():
    """k = 2: E and F (2, 4) 32 bytes, compressed keys 16, scores (4, 2) 32. In bfloat16 all of it
    halves."""
    case = Case(mechanism="low-rank", num_heads=1, seq_len=4, head_dim=2, rank=2)
    expected = [
        ("compress_keys", 32 + 32, 16),
        ("compress_values", 32 + 32, 16),
        ("scale", 16, 16),
        ("scores", 32 + 16, 32),
        ("softmax", 32, 32),
        ("output", 32 + 16, 32),
    ]
    assert [(op.name, op.bytes_read, op.bytes_written) for op in lower(case, "cuda")] == expected
    halves = [(name, read // 2, written // 2) for name, read, written in expected]
    assert [
        (op.name, op.bytes_read, op.bytes_written)
        for op in lower(case.replace(dtype="bfloat16"), "cuda")
    ] == halves


def test_bytes_by_hand_kernel():
    """m = 3: Ω (2, 3) 24 bytes, features (4, 3) 48, key-value product (3, 2) 24, mean of the keys'
    features 12, normaliser 16."""
    ops = lower(
        Case(mechanism="kernel-relu", num_heads=1, seq_len=4, head_dim=2, num_features=3), "cuda"
    )
    assert [(op.name, op.bytes_read, op.bytes_written) for op in ops] == [
        ("key_features", 32 + 24, 48),
        ("relu", 48, 48),
        ("add_constant", 48, 48),
        ("query_features", 32 + 24, 48),
        ("relu", 48, 48),
        ("add_constant", 48, 48),
        ("key_value", 48 + 32, 24),
        ("mean_key_value", 24, 24),
        ("key_mean", 48, 12),
        ("output", 48 + 24, 32),
        ("query_times_key_mean", 48 + 12, 48),
        ("normaliser", 48, 16),
        ("normalise", 32 + 16, 32),
    ]


def test_bytes_by_hand_flurka():
    """The kernel's list with two compressed rows in place of four keys, after the low-rank's two
    products."""
    ops = lower(
        Case(mechanism="flurka-relu", num_heads=1, seq_len=4, head_dim=2, rank=2, num_features=3),
        "cuda",
    )
    assert [(op.name, op.bytes_read, op.bytes_written) for op in ops] == [
        ("compress_keys", 32 + 32, 16),
        ("compress_values", 32 + 32, 16),
        ("key_features", 16 + 24, 24),
        ("relu", 24, 24),
        ("add_constant", 24, 24),
        ("query_features", 32 + 24, 48),
        ("relu", 48, 48),
        ("add_constant", 48, 48),
        ("key_value", 24 + 16, 24),
        ("mean_key_value", 24, 24),
        ("key_mean", 24, 12),
        ("output", 48 + 24, 32),
        ("query_times_key_mean", 48 + 12, 48),
        ("normaliser", 48, 16),
        ("normalise", 32 + 16, 32),
    ]


def test_bytes_by_hand_fused():
    """The fused kernels read q, k, v, Ω and the small sums, and write those sums and the result: no
    features."""
    ops = lower(
        Case(
            mechanism="flurka-relu",
            backend="fused",
            num_heads=1,
            seq_len=4,
            head_dim=2,
            rank=2,
            num_features=3,
        ),
        "cuda",
    )
    assert [(op.name, op.bytes_read, op.bytes_written) for op in ops] == [
        ("compress_keys", 32 + 32, 16),
        ("compress_values", 32 + 32, 16),
        ("key_side", 16 + 16 + 24, 24 + 12),
        ("query_side", 32 + 24 + 24 + 12, 32),
    ]


def test_shared_matrices_are_read_once_for_all_heads():
    ops = lower(Case(mechanism="low-rank", **SHAPE), "cuda")
    assert op(ops, "compress_keys").bytes_read == 4 * (K * N + B * H * N * D_HEAD)
    apart = lower(Case(mechanism="low-rank", share_heads=False, **SHAPE), "cuda")
    assert op(apart, "compress_keys").bytes_read == 4 * (H * K * N + B * H * N * D_HEAD)


def test_one_tensor_used_twice_is_one_tensor():
    """E = F is one parameter, and x one input: readers that track residency rely on the name."""
    reads = [
        {tensor.name for tensor in op.reads}
        for op in lower(Case(mechanism="low-rank", share_kv=True, **SHAPE), "cuda")
    ]
    assert "E" in reads[0] & reads[1]
    layer = lower(Case(mechanism="full-math", level="layer", **SHAPE), "cuda")
    assert sum("x" in {tensor.name for tensor in op.reads} for op in layer) == 3


def test_names_are_unique_per_piece_of_memory():
    for name in MECHANISMS:
        sizes = {}
        for op in lower(Case(mechanism=name, level="layer", pass_="train", **SHAPE), "cuda"):
            for tensor in (*op.reads, *op.writes):
                assert sizes.setdefault(tensor.name, tensor.bytes) == tensor.bytes


@pytest.mark.parametrize("backend", ["eager", "compiled", "fused"])
@pytest.mark.parametrize("name", MECHANISMS)
def test_arrays_count_what_ints_count(name, backend):
    if backend == "fused" and not MECHANISMS[name].is_kernel:
        pytest.skip("no fused kernels")
    lengths, ranks, features = [16, 64, 48], [4, 8, 16], [3, 5, 9]
    for level, pass_ in (("core", "forward"), ("layer", "forward"), ("layer", "train")):
        if backend == "fused" and pass_ == "train":
            continue
        base = Case(
            mechanism=name,
            level=level,
            pass_=pass_,
            backend=backend,
            batch=2,
            num_heads=2,
            head_dim=8,
        )
        arrays = base.replace(
            seq_len=np.array(lengths), rank=np.array(ranks), num_features=np.array(features)
        )
        together = lower(arrays, "cuda")
        for i, (n, k, m) in enumerate(zip(lengths, ranks, features)):
            alone = lower(base.replace(seq_len=n, rank=k, num_features=m), "cuda")
            assert [op.name for op in alone] == [op.name for op in together]
            for quantity in (*QUANTITIES, "batch", "rows", "cols", "inner"):
                got = [np.broadcast_to(getattr(op, quantity), 3)[i] for op in together]
                assert got == [getattr(op, quantity) for op in alone], quantity


@pytest.mark.parametrize("name", MECHANISMS)
def test_symbols_count_what_ints_count(name):
    sympy = pytest.importorskip("sympy")
    fields = {key: sympy.Symbol(key, positive=True) for key in SHAPE}
    for level, pass_ in (("core", "train"), ("layer", "train")):
        for order in MECHANISMS[name].orders if level == "layer" else (None,):
            form = {"mechanism": name, "level": level, "pass_": pass_, "order": order}
            symbolic, plain = (
                lower(Case(**form, **fields), "cuda"),
                lower(Case(**form, **SHAPE), "cuda"),
            )
            numbers = {fields[key]: value for key, value in SHAPE.items()}
            for quantity in QUANTITIES:
                assert sympy.sympify(total(symbolic, quantity)).subs(numbers) == total(
                    plain, quantity
                ), quantity


def test_arrays_of_batches_do_not_mix_one_and_many():
    case = Case(mechanism="low-rank", level="layer", **(SHAPE | {"batch": np.array([1, 2])}))
    with pytest.raises(RequestError, match="split the cases"):
        lower(case, "cuda")
    assert len(lower(case.replace(batch=np.array([1, 1])), "cuda")) == len(
        lower(case.replace(batch=1), "cuda")
    )


def test_large_arrays_do_not_wrap_around():
    case = Case(
        mechanism="full-math", batch=64, num_heads=64, seq_len=np.array([2**20]), head_dim=128
    )
    assert total(lower(case, "cuda"), "matmul_flops")[0] == pytest.approx(
        64 * 64 * 4 * 2.0**40 * 128, rel=1e-12
    )


@pytest.mark.parametrize("name", MECHANISMS)
def test_stages_are_the_known_ones_and_backward_keeps_them(name):
    ops = lower(Case(mechanism=name, level="layer", pass_="train", **SHAPE), "cuda")
    assert {op.stage for op in ops} <= set(STAGES)
    forward, backward = (
        {op.stage for op in ops if op.phase == phase} for phase in ("forward", "backward")
    )
    assert forward >= {"project", "merge"} and backward >= {"project", "merge"}
    assert backward <= forward


class TestCompiled:
    def test_feature_maps_become_one_kernel_a_side(self):
        """clamp and add fuse; the product with Ω before and the key-value product after stay with
        the library."""
        eager = lower(Case(mechanism="kernel-relu", **SHAPE), "cuda")
        compiled = lower(Case(mechanism="kernel-relu", backend="compiled", **SHAPE), "cuda")
        assert [op.name for op in compiled] == [
            "key_features", "relu+add_constant+key_mean", "query_features",
            "relu+add_constant+query_times_key_mean+normaliser", "key_value", "mean_key_value", "output", "normalise",
        ]  # fmt: skip
        fused = op(compiled, "relu+add_constant+key_mean")
        features = 4 * B * H * N * M
        assert (fused.bytes_read, fused.bytes_written) == (features, features + 4 * B * H * M)
        assert total(compiled, "flops") == total(eager, "flops")

    @pytest.mark.parametrize("name", MECHANISMS)
    @pytest.mark.parametrize("pass_", ["forward", "train"])
    def test_compiling_keeps_flops_and_saves_bytes_and_launches(self, name, pass_):
        for level in ("core", "layer"):
            for order in MECHANISMS[name].orders if level == "layer" else (None,):
                case = Case(mechanism=name, level=level, order=order, pass_=pass_, **SHAPE)
                eager, compiled = (
                    lower(case, "cuda"),
                    lower(case.replace(backend="compiled"), "cuda"),
                )
                if order == "absorbed" and pass_ == "forward":
                    # eager keeps W_q Omega while W_q is unchanged; compiled code cannot see a change
                    absorbs = op(compiled, "absorb_queries")
                    assert absorbs.matmul_flops == 2 * H * M * D_HEAD * WIDTH
                    compiled.remove(absorbs)
                assert len(compiled) <= len(eager)
                for quantity in ("matmul_flops", "vector_flops", "special_flops"):
                    assert total(compiled, quantity) == total(eager, quantity)
                for quantity in ("bytes_read", "bytes_written"):
                    assert total(compiled, quantity) <= total(eager, quantity)

    @pytest.mark.parametrize("name", MECHANISMS)
    def test_nothing_is_read_before_it_is_written(self, name):
        for pass_ in ("forward", "train"):
            case = Case(mechanism=name, level="layer", pass_=pass_, backend="compiled", **SHAPE)
            ops = lower(case, "cuda")
            made = {tensor.name for op in ops for tensor in op.writes}
            written = set()
            for step in ops:
                for tensor in step.reads:
                    assert (
                        tensor.name not in made or tensor.name in written or tensor in step.writes
                    ), tensor.name
                written |= {tensor.name for tensor in step.writes}


def test_bytes_by_tensor_and_dtype_of_fused_attention():
    """In bfloat16 q, k, v and the output halve; the sums of exponentials, one a query, stay
    float32."""
    case = Case(mechanism="full-sdpa", num_heads=2, seq_len=4, head_dim=2, dtype="bfloat16")
    forward = lower(case, "cuda")
    assert [(one.name, one.bytes_read, one.bytes_written) for one in forward] == [
        ("attention", 3 * 32, 32 + 2 * 4 * 4)
    ]
    (backward,) = (
        one for one in lower(case.replace(pass_="train"), "cuda") if "backward" in one.name
    )
    assert backward.bytes_read == 5 * 32 + 2 * 4 * 4 and backward.bytes_written == 3 * 32
    product = 2 * 2 * 4 * 4 * 2
    assert (backward.matmul_flops, backward.recomputed_flops) == (4 * product, product)


@pytest.mark.parametrize(("batch", "copies"), [(1, 0), (3, 2)])
def test_heads_with_matrices_of_their_own_are_copied_together_from_several_batches(batch, copies):
    """E_h x_h for all batches is one product a head: keys and values are each laid out for it."""
    case = Case(
        mechanism="low-rank", batch=batch, num_heads=2, seq_len=8, head_dim=4, rank=2,
        share_heads=False,
    )  # fmt: skip
    found = [one for one in lower(case, "cuda") if one.kind == "copy" and one.stage == "compress"]
    whole = [one for one in found if one.bytes_read == 4 * batch * 2 * 8 * 4]
    assert len(whole) == copies


def test_a_compiled_list_neither_writes_nor_reads_what_stays_inside_a_kernel():
    case = Case(mechanism="kernel-relu", num_heads=1, seq_len=8, head_dim=4, num_features=2)
    ops = lower(case.replace(backend="compiled"), "cuda")
    fused = [one for one in ops if "+" in one.name]
    assert fused
    reads = {tensor.name for one in ops for tensor in one.reads}
    last = {tensor.name for tensor in ops[-1].writes}
    for one in fused:
        assert {tensor.name for tensor in one.writes} <= reads | last
    made = {tensor.name for one in lower(case, "cuda") for tensor in one.writes}
    before: set[str] = set()
    for one in ops:
        assert {tensor.name for tensor in one.reads} & made <= before
        before |= {tensor.name for tensor in one.writes}
    eager = total(lower(case, "cuda"), "bytes_read") + total(lower(case, "cuda"), "bytes_written")
    assert total(ops, "bytes_read") + total(ops, "bytes_written") < eager
