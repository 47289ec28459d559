"""The one enumerator: from axes to canonical, distinct cases."""

import itertools

import pytest

from flurka_bench.answers.predicted import sweep
from flurka_bench.answers.recommend import Request, space
from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.cases.expand import BEST, combinations, expand
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import ORDERS

WORDS = {"what": "the test", "mend": "fewer values"}
AXES = {
    "order": ORDERS,
    "mechanism": list(registry.MECHANISMS),
    "level": ["core", "layer"],
    "backend": ["eager", "fused"],
    "rank": [8, 2048],
    "seq_len": [512, 1024],
    "num_features": [16, 64],
    "compression": ["dense", "mean-pool"],
}


def test_it_finds_what_a_plain_product_finds_in_the_same_order():
    """Knobs that a mechanism lacks are not walked through: neither cases nor order may change."""
    plain = {}
    for values in itertools.product(*AXES.values()):
        try:
            plain[registry.canonical(Case.of(dict(zip(AXES, values))))] = None
        except RequestError:
            continue
    found = expand(AXES, **WORDS)
    assert found.cases == list(plain)
    assert all(len(group) == 1 for group in found.groups)
    assert found.possible == set(registry.MECHANISMS)


def test_blocks_add_up_and_equal_cases_occur_once():
    first = {"mechanism": ["full-math"], "seq_len": [64, 128]}
    second = {"mechanism": ["full-math", "low-rank"], "seq_len": [128], "rank": [8, 16]}
    found = expand(first, second, **WORDS)
    assert [(case.mechanism, case.seq_len, case.rank) for case in found.cases] == [
        ("full-math", 64, None),
        ("full-math", 128, None),
        ("low-rank", 128, 8),
        ("low-rank", 128, 16),
    ]


def test_names_of_one_key_advance_together():
    axes = {("seq_len", "rank"): [(64, 8), (128, 16)], "batch": [1, 2]}
    assert [tuple(each.values()) for each in combinations(axes)] == [
        (64, 8, 1), (64, 8, 2), (128, 16, 1), (128, 16, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("level", ["core", "layer"])
def test_best_means_every_order_that_can_be_computed(level):
    """Fused kernels have no order absorbed: the others are the rivals."""
    axes = {"mechanism": ["flurka-relu"], "level": [level], "rank": [8], "num_features": [16]}
    for backend in ("eager", "fused"):
        found = expand(axes | {"order": [BEST], "backend": [backend]}, **WORDS)
        (rivals,) = found.groups
        orders = [case.order for case in rivals]
        layer = ["project_first", "compress_first"] + ["absorbed"] * (backend == "eager")
        assert orders == ([None] if level == "core" else layer)


def test_what_cannot_be_computed_has_its_first_reason():
    axes = {"mechanism": ["low-rank", "full-math"], "seq_len": [64], "rank": [128, 32]}
    found = expand(axes, **WORDS)
    ((wanted, error),) = found.impossible
    assert wanted.rank == 128 and "rank must be at most seq_len" in str(error)
    with pytest.raises(RequestError, match="did you mean 'low-rank'"):
        expand({"mechanism": ["low-rnk"]}, **WORDS)


def test_what_is_dropped_is_counted_and_possible():
    axes = {"mechanism": ["full-math"], "seq_len": [64, 128, 256]}
    found = expand(axes, **WORDS, keep=lambda case: case.seq_len > 128)
    assert [case.seq_len for case in found.cases] == [256]
    assert found.num_dropped == 2 and found.possible == {"full-math"}


def test_maps_and_recommendations_hold_canonical_cases_once():
    request = Request(seq_len=4096, model_dim=256, head_dims=(32, 64))
    for cases in (sweep(dtype="float32", passes=("forward",)), space(request)):
        assert cases == list(dict.fromkeys(map(registry.canonical, cases)))
        assert {case.mechanism for case in cases} == set(registry.MECHANISMS)


def test_a_map_without_a_case_says_why():
    with pytest.raises(RequestError, match="num_heads must be an integer of at least 1, got 0"):
        sweep(dtype="float32", model_dim=32, head_dim=64)
