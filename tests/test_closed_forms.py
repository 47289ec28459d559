"""Closed forms against the op lists they come from, on random shapes; and what the design says of
them, word for word."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest

sympy = pytest.importorskip("sympy")

from flurka_bench.cases.case import Case  # noqa: E402
from flurka_bench.cases.registry import MECHANISMS  # noqa: E402
from flurka_bench.cost.regions import (  # noqa: E402
    conditions,
    flops,
    holds,
    symbols,
)
from flurka_bench.lowering import lower  # noqa: E402
from flurka_bench.words.errors import RequestError  # noqa: E402
from flurka_bench.words.ops import total  # noqa: E402

S = symbols()
N, D, d, k, m = (S[name] for name in ("N", "D", "d", "k", "m"))


def same(relation, left, right) -> bool:
    return sympy.expand(relation.lhs - left) == 0 and sympy.expand(relation.rhs - right) == 0


class TestTheDesignsConditions:
    @pytest.mark.parametrize("similarity", ["favor", "relu"])
    def test_level_core(self, similarity):
        low_rank = conditions(f"flurka-{similarity}", "low-rank", "core")
        kernel = conditions(f"flurka-{similarity}", f"kernel-{similarity}", "core")
        assert str(low_rank.inequality) == "m*(N + k) < N*k"
        assert str(kernel.inequality) == "k*(N + m) < N*m"
        assert same(low_rank.solved_for_m, m, N * k / (N + k))
        assert same(kernel.solved_for_k, k, N * m / (N + m))
        assert same(kernel.solved_for_m, m, N * k / (N - k))
        assert low_rank.latex == r"m \left(N + k\right) < N k"

    def test_level_layer(self):
        options = {"share_kv": True}
        low_rank = conditions(
            "flurka-relu", "low-rank", "layer", "compress_first", "compress_first", **options
        )
        kernel = conditions(
            "flurka-relu", "kernel-relu", "layer", "compress_first", "project_first", **options
        )
        assert str(low_rank.inequality) == "m*(N + k) < N*k"
        assert same(kernel.solved_for_k, k, 2 * N * (D + m) / (N + 2 * D + 2 * m))

    def test_elu(self):
        kernel = conditions("flurka-elu", "kernel-elu", "core")
        assert same(kernel.inequality, k * (2 * N + d), N * d)
        assert kernel.solved_for_m is None

    def test_absorbed_to_leading_order(self):
        """For long sequences FLuRKA wins for k < 2 m h."""
        condition = conditions(
            "flurka-relu", "kernel-relu", "layer", "absorbed", "absorbed", share_kv=True
        )
        limit = sympy.limit(condition.solved_for_k.rhs, N, sympy.oo)
        assert sympy.simplify(limit - 2 * m * D / d) == 0

    def test_train_has_conditions_too(self):
        condition = conditions("flurka-relu", "low-rank", "core", pass_="train")
        assert condition.flops_y == 24 * N * d * k
        assert {symbol.name for symbol in condition.inequality.free_symbols} == {"N", "k", "m"}


FORMS = [
    (name, level, order)
    for name, cell in MECHANISMS.items()
    for level in ("core", "layer")
    for order in (cell.orders if level == "layer" else (None,))
]


def shapes(count: int, seed: int = 0):
    draw = random.Random(seed)
    for _ in range(count):
        length = 2 ** draw.randint(4, 14)
        sizes = {
            "head_dim": draw.choice([16, 32, 64, 128]),
            "num_heads": draw.choice([1, 2, 4, 8, 16]),
        }
        rank, features = draw.randint(1, length), draw.randint(1, 300)
        yield {"seq_len": length, "rank": rank, "num_features": features, **sizes}


def as_symbols(shape):
    width = shape["num_heads"] * shape["head_dim"]
    return {
        "N": shape["seq_len"],
        "D": width,
        "d": shape["head_dim"],
        "k": shape["rank"],
        "m": shape["num_features"],
    }


@pytest.mark.parametrize(("name", "level", "order"), FORMS)
def test_every_closed_form_counts_its_op_list(name, level, order):
    for pass_, share_kv in itertools.product(("forward", "train"), (False, True)):
        form = flops(name, level, order, pass_=pass_, share_kv=share_kv)
        for shape in shapes(3):
            case = Case(
                mechanism=name, level=level, order=order, pass_=pass_, share_kv=share_kv, **shape
            )
            heads = shape["num_heads"] if level == "core" else 1  # the core's form is per head
            numbers = {S[key]: value for key, value in as_symbols(shape).items()}
            assert heads * form.subs(numbers) == total(lower(case, "cuda"), "matmul_flops")


PAIRS = [pair for pair in itertools.permutations(FORMS, 2) if pair[0][1] == pair[1][1]]


@pytest.mark.parametrize("level", ["core", "layer"])
def test_every_pair_says_what_the_op_lists_say(level):
    """Inequality and both bounds agree with the counted FLOPs, for each pair in each order, on
    random shapes."""
    pairs = [pair for pair in PAIRS if pair[0][1] == level]
    random.Random(1).shuffle(pairs)
    drawn = list(shapes(4, seed=2))
    columns = {key: np.array([shape[key] for shape in drawn]) for key in drawn[0]}
    counts = {form: total(lower(Case(mechanism=form[0], level=level, order=form[2], **columns), "cuda"), "matmul_flops")
              for form in FORMS if form[1] == level}  # fmt: skip
    for (x, _, order_x), (y, _, order_y) in pairs[:40]:
        condition = conditions(x, y, level, order_x, order_y)
        fewer = counts[x, level, order_x] < counts[y, level, order_y]
        for shape, expected in zip(drawn, fewer):
            values = as_symbols(shape)
            assert condition.holds(**values) == expected
            for solved in (condition.solved_for_k, condition.solved_for_m):
                if (
                    solved is not None and shape["rank"] < shape["seq_len"]
                ):  # at k = N a bound can lie at infinity
                    numbers = {S[key]: value for key, value in values.items()}
                    assert bool(solved.subs(numbers)) == expected, (x, y, solved, values)


@pytest.mark.parametrize("similarity", ["favor", "relu", "elu"])
def test_by_flops_alone_flurka_never_beats_both_parents_at_level_core(similarity):
    """The proof: the first condition asks m < k N / (N + k) < k, the second k < m N / (N + m) <
    m."""
    low_rank = conditions(f"flurka-{similarity}", "low-rank", "core")
    kernel = conditions(f"flurka-{similarity}", f"kernel-{similarity}", "core")
    draw = np.random.default_rng(0)
    length = draw.integers(1, 2**16, 20_000)
    sizes = {
        "seq_len": length, "rank": draw.integers(1, length + 1), "num_features": draw.integers(1, 1024, 20_000),
        "head_dim": draw.integers(1, 256, 20_000), "num_heads": 8,
    }  # fmt: skip
    flurka, parent_low, parent_kernel = (
        Case(mechanism=name, **sizes)
        for name in (f"flurka-{similarity}", "low-rank", f"kernel-{similarity}")
    )
    wins_low, wins_kernel = holds(flurka, parent_low), holds(flurka, parent_kernel)
    if (
        similarity != "elu"
    ):  # elu has m = d features and no product with Ω: its condition holds apart
        assert same(low_rank.solved_for_m, m, N * k / (N + k)) and same(
            kernel.solved_for_k, k, N * m / (N + m)
        )
        for bound, of in ((N * k / (N + k), k), (N * m / (N + m), m)):
            assert sympy.simplify(of - bound).is_positive  # so both at once would ask m < k < m
        assert not np.any(wins_low & wins_kernel)
    assert wins_low.any() and wins_kernel.any()  # each alone is possible


def test_at_level_layer_flurka_beats_both_parents_in_between():
    """For m ≲ k ≲ 2 (D + m) at long N, and not outside: the region the paper's speedups live in."""
    length, features, heads, head_dim = 65536, 64, 8, 64
    width = heads * head_dim
    base = {
        "level": "layer",
        "seq_len": length,
        "num_features": features,
        "num_heads": heads,
        "head_dim": head_dim,
    }

    def wins(rank):
        shape = base | {"rank": rank, "share_kv": True}
        flurka = Case(mechanism="flurka-relu", order="compress_first", **shape)
        low_rank = Case(mechanism="low-rank", order="compress_first", **shape)
        kernel = Case(mechanism="kernel-relu", order="project_first", **shape)
        return bool(holds(flurka, low_rank)), bool(holds(flurka, kernel))

    upper = 2 * (width + features)
    assert wins(features - 8) == (False, True)
    assert wins(int(1.1 * features)) == (True, True)
    assert wins(int(0.95 * upper)) == (True, True)
    assert wins(int(1.05 * upper)) == (True, False)


def test_holds_takes_arrays():
    ranks = np.array([32, 512])
    flurka = Case(mechanism="flurka-relu", seq_len=4096, rank=ranks, num_features=64)
    assert holds(flurka, Case(mechanism="low-rank", seq_len=4096, rank=ranks)).tolist() == [
        False,
        True,
    ]


def test_equal_mechanisms_never_beat_each_other():
    assert conditions("full-math", "full-sdpa", "core").inequality == sympy.false
    assert not conditions("full-math", "full-sdpa", "core").holds(N=4, d=2)


def test_wrong_names_and_orders_are_refused():
    with pytest.raises(RequestError, match="did you mean"):
        conditions("flurka-rel", "low-rank")
    with pytest.raises(RequestError, match="has no order"):
        conditions("flurka-relu", "kernel-relu", "layer", "absorbed", "compress_first")


def test_the_module_loads_without_sympy():
    code = "import sys, flurka_bench.cost.regions; sys.exit('sympy' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
