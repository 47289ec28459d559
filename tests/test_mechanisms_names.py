"""The ten cells and the one form of a case."""

import itertools

import numpy as np
import pytest
import sympy

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    MECHANISMS,
    canonical,
    get,
)
from flurka_bench.words.errors import RequestError

KNOBS = {"rank": 32, "num_features": 16, "seq_len": 64, "head_dim": 8, "num_heads": 2}


def case(name="flurka-relu", **changes):
    return Case(mechanism=name, **(KNOBS | changes))


def test_the_ten_cells_are_two_choices():
    assert set(MECHANISMS) == {
        "full-math", "full-sdpa", "kernel-favor", "kernel-relu", "kernel-elu",
        "low-rank", "low-rank-sdpa", "flurka-favor", "flurka-relu", "flurka-elu",
    }  # fmt: skip
    assert len({(cell.compressed, cell.similarity) for cell in MECHANISMS.values()}) == 10


@pytest.mark.parametrize("similarity", ["favor", "relu", "elu"])
def test_parents_are_the_cells_beside_it(similarity):
    flurka = get(f"flurka-{similarity}")
    low_rank, kernel, full = (get(flurka.parents[key]) for key in ("low_rank", "kernel", "full"))
    assert (low_rank.compressed, low_rank.similarity) == (flurka.compressed, "softmax")
    assert (kernel.compressed, kernel.similarity) == (False, flurka.similarity)
    assert (full.compressed, full.similarity) == (False, "softmax")


def test_orders_are_those_that_exist():
    everything = {name: cell.orders for name, cell in MECHANISMS.items()}
    assert (
        everything["full-math"]
        == everything["full-sdpa"]
        == everything["kernel-elu"]
        == ("project_first",)
    )
    assert everything["low-rank"] == everything["low-rank-sdpa"] == everything["flurka-elu"]
    assert everything["flurka-elu"] == ("project_first", "compress_first")
    assert everything["kernel-favor"] == everything["kernel-relu"] == ("project_first", "absorbed")
    assert (
        everything["flurka-favor"]
        == everything["flurka-relu"]
        == ("project_first", "compress_first", "absorbed")
    )


def test_unknown_names_offer_the_nearest():
    for changes, word in [
        ({"mechanism": "flurka-rleu"}, "flurka-relu"),
        ({"level": "cor"}, "core"),
        ({"pass_": "forwards"}, "forward"),
        ({"backend": "eagre"}, "eager"),
        ({"dtype": "float23"}, "float32"),
        ({"order": "compress-first"}, "compress_first"),
        ({"compression": "meanpool"}, "mean-pool"),
    ]:
        with pytest.raises(RequestError, match=f"did you mean '{word}'"):
            canonical(case().replace(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rank": 65}, "rank 65 > seq_len 64"),
        ({"rank": 0}, "at least 1, got 0 .--rank"),
        ({"rank": None}, "--rank"),
        ({"num_features": None}, "--num-features"),
        ({"num_features": -3}, "--num-features"),
        ({"head_dim": 0}, "--head-dim"),
        ({"batch": 1.5}, "integer of at least 1, got 1.5"),
        ({"num_heads": True}, "got True"),
        ({"seq_len": "many"}, "got 'many'"),
        ({"rank": np.array([8, 65])}, "in every case"),
        ({"seq_len": np.array([64.5, 128.0])}, "must hold integers"),
        ({"share_kv": "yes"}, "--share-kv"),
    ],
)
def test_the_impossible_is_refused_with_the_flag(changes, says):
    with pytest.raises(RequestError, match=says):
        canonical(case(**changes))


def test_an_order_that_a_mechanism_lacks_is_refused():
    with pytest.raises(
        RequestError,
        match="kernel-relu has no order 'compress_first'; accepted: project_first, absorbed",
    ):
        canonical(case("kernel-relu", level="layer", order="compress_first"))


def test_duplicates_collapse():
    """Full attention is one case however many ranks, features, orders and compressions a sweep asks
    for."""
    grid = itertools.product(
        (8, 32), (4, 16), (None, "project_first", "absorbed"), ("dense", "conv"), (True, False)
    )
    cases = {
        canonical(
            case(
                "full-math",
                level="layer",
                rank=k,
                num_features=m,
                order=order,
                compression=kind,
                share_kv=share,
            )
        ).case_id
        for k, m, order, kind, share in grid
    }
    assert len(cases) == 1


def test_knobs_that_do_not_apply_are_dropped_and_those_that_do_are_kept():
    assert canonical(case("kernel-relu")).rank is None
    assert canonical(case("low-rank")).num_features is None
    assert canonical(case("flurka-elu")).num_features == KNOBS["head_dim"]
    assert (
        canonical(case("flurka-favor")).rank == 32
        and canonical(case("flurka-favor")).num_features == 16
    )
    assert canonical(case(order="absorbed")).order is None  # level core
    assert canonical(case(level="layer")).order == "project_first"
    assert canonical(case(level="layer", num_layers=3, ffn_dim=5, vocab_size=7)) == canonical(
        case(level="layer")
    )
    model = canonical(case(level="model", num_layers=3, vocab_size=7))
    assert (model.num_layers, model.ffn_dim, model.vocab_size) == (3, 4 * 16, 7)


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("level", ["core", "layer", "model"])
def test_canonical_is_idempotent(name, level):
    once = canonical(case(name, level=level))
    assert canonical(once) == once


def test_arrays_and_symbols_pass():
    ranks = canonical(case(rank=np.array([1, 64]), seq_len=np.array([64, 64])))
    assert ranks.rank.tolist() == [1, 64]
    n = sympy.Symbol("N")
    assert canonical(case(seq_len=n)).seq_len == n


def test_numpy_integers_become_plain_ones():
    assert type(canonical(case(rank=np.int64(4))).rank) is int
