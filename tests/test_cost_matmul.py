"""The matmul model: goldens by hand, bounds that no machine can beat, monotonicity, units, and
constants with a place."""

import dataclasses
import json

import numpy as np
import pytest

from flurka_bench.cost import matmul
from flurka_bench.cost.fitting import Residual
from flurka_bench.cost.matmul import (
    MatmulConstants,
    constants_of,
    matmul_terms,
)
from flurka_bench.cost.terms import LAUNCHES
from flurka_bench.hardware import (
    load,
    names,
)
from flurka_bench.words.errors import RequestError

GPUS = [name for name in names() if load(name).kind == "gpu"]
A100, H100, V100 = "a100-sxm-80gb", "h100-sxm-80gb", "v100-pcie-32gb"

# Every effect switched off: one tile of 128 x 128, full waves, no overheads, everything in L2, no
# power limit.
BARE = MatmulConstants(
    compute_efficiency=1.0, feed_bytes_per_clock_per_sm=1e9, feed_exponent=8.0, tile_overhead=0.0, walk_reach_bytes=1e15,
    walk_price=0.0, read_again=0.0, exposed_read=0.0, host_overlap=0.0,
    wave_rounding=1.0, prologue_cycles=0.0, epilogue_cycles=0.0, epilogue_exponent=1.0, split_s=-1.0, min_split_inner=512,
    inner_step=1, l2_capacity=1e9, l2_sharpness=2.0, dram_efficiency=1.0, l2_bytes_per_clock_per_sm=1e9,
    overlap_exponent=8.0, picojoules_per_flop=0.0, picojoules_per_byte=0.0, static_w=0.0, clock_exponent=0.25,
    power_window_s=1e-3, launch_eager_s=3e-5, launch_graph_s=2e-6, launch_events_s=5e-6, tiles=((128, 128),),
)  # fmt: skip


def bare(**changes):
    return dataclasses.replace(BARE, **changes)


def seconds(constants, batch, rows, cols, inner, *, hardware=A100, launch="none", **more):
    terms = matmul_terms(
        load(hardware),
        "bfloat16",
        batch,
        rows,
        cols,
        inner,
        launch=launch,
        constants=constants,
        real=np.float64,
        **more,
    )
    return terms.seconds


def test_one_full_wave_takes_what_the_multipliers_take():
    # 108 SMs, 108 tiles of 128 x 128: each SM does 2 * 128 * 128 * 1000 FLOPs at 312e12 / 108
    # FLOP/s.
    expected = 2 * 128 * 128 * 1000 * 108 / 312e12
    assert seconds(BARE, 1, 108 * 128, 128, 1000) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("num_tiles", "waves"), [(1, 1), (108, 1), (109, 2), (216, 2), (217, 3)])
def test_a_started_wave_costs_a_whole_one(num_tiles, waves):
    one = seconds(BARE, 1, 128, 128, 512)
    assert seconds(BARE, num_tiles, 128, 128, 512) == pytest.approx(waves * one, rel=1e-6)
    assert seconds(BARE, num_tiles, 100, 70, 512) == pytest.approx(
        waves * one, rel=1e-6
    )  # the tile is padded


def test_without_rounding_a_started_wave_costs_its_share():
    one = seconds(BARE, 1, 128, 128, 512)
    assert seconds(bare(wave_rounding=0.0), 162, 128, 128, 512) == pytest.approx(
        1.5 * one, rel=1e-6
    )
    assert seconds(bare(wave_rounding=0.5), 162, 128, 128, 512) == pytest.approx(
        1.75 * one, rel=1e-6
    )


def test_translation_misses_cost_half_of_their_price_at_the_reach():
    # 1024 x 1024 operands in bfloat16 are 2 MiB each: at that reach a step takes 1 + 0.5 / 2 as
    # long.
    one, walked = (
        seconds(BARE, 1, 1024, 1024, 1024),
        seconds(bare(walk_price=0.5, walk_reach_bytes=2**21), 1, 1024, 1024, 1024),
    )
    assert walked == pytest.approx(1.25 * one, rel=1e-6)
    far = seconds(bare(walk_price=0.5, walk_reach_bytes=2**21), 1, 1024, 1024, 2**20)
    assert far == pytest.approx(
        1.5 * seconds(BARE, 1, 1024, 1024, 2**20), rel=1e-3
    )  # and no more than its price


def test_bands_of_rows_read_the_right_operand_again():
    # 108 x 4 x 64 x 64 results in flight over 1728 columns are bands of 1024 rows: eight bands,
    # seven further reads.
    again = bare(
        read_again=1.0, dram_efficiency=1e-3, l2_capacity=1e-9
    )  # bound by memory, nothing stays in L2
    once = dataclasses.replace(again, read_again=0.0)
    added = seconds(again, 1, 8192, 1728, 512) - seconds(once, 1, 8192, 1728, 512)
    assert added == pytest.approx(
        7 * 2 * 1728 * 512 / (1e-3 * load(A100).memory_bandwidth_bytes_per_s), rel=1e-3
    )


def test_the_left_operand_alone_is_exposed_on_its_way_from_memory():
    cold = bare(exposed_read=0.25)
    cold_s, bare_s = (seconds(each, 1, 4096, 128, 512, l2_share=0) for each in (cold, BARE))
    assert cold_s - bare_s == pytest.approx(
        0.25 * 2 * 4096 * 512 / load(A100).memory_bandwidth_bytes_per_s, rel=1e-3
    )
    assert seconds(cold, 1, 4096, 128, 512) == pytest.approx(
        seconds(BARE, 1, 4096, 128, 512), rel=1e-6
    )  # in L2


def test_dispatch_hides_kernels_shorter_than_its_overlap():
    host = bare(launch_eager_s=1e-2, host_overlap=0.3)
    kernel = seconds(BARE, 1, 4096, 4096, 4096)
    assert seconds(host, 1, 4096, 4096, 4096, launch="eager") == pytest.approx(1e-2, rel=1e-3)
    long = seconds(
        bare(launch_eager_s=kernel, host_overlap=0.3), 1, 4096, 4096, 4096, launch="eager"
    )
    assert long == pytest.approx(1.7 * kernel, rel=1e-3)


def test_the_fastest_candidate_tile_wins():
    both = bare(tiles=((128, 128), (256, 128)))
    # 54 x 4 tiles of 128 x 128 are two full waves; 27 x 4 of 256 x 128 one wave of twice the work:
    # a tie, and never worse.
    assert seconds(both, 1, 54 * 128, 4 * 128, 64) == pytest.approx(
        seconds(BARE, 1, 54 * 128, 4 * 128, 64), rel=1e-6
    )
    narrow = seconds(both, 1, 109 * 128, 128, 64)
    assert narrow == pytest.approx(
        min(
            seconds(BARE, 1, 109 * 128, 128, 64),
            seconds(bare(tiles=((256, 128),)), 1, 109 * 128, 128, 64),
        )
    )


def test_overheads_add_up_by_hand():
    clock = 1.41e9
    constants = bare(prologue_cycles=1410.0, epilogue_cycles=2820.0)  # 1 and 2 microseconds
    assert seconds(constants, 1, 128, 128, 512) - seconds(BARE, 1, 128, 128, 512) == pytest.approx(
        3e-6, rel=1e-6
    )
    assert load(A100).boost_clock_hz == clock
    two_waves = seconds(constants, 216, 128, 128, 512) - seconds(BARE, 216, 128, 128, 512)
    assert two_waves == pytest.approx(5e-6, rel=1e-6)  # one prologue, two epilogues


def test_a_split_inner_dimension_uses_the_idle_sms():
    constants = bare(split_s=1e-6, min_split_inner=512)
    whole, split = seconds(BARE, 1, 128, 128, 65536), seconds(constants, 1, 128, 128, 65536)
    # 108 parts of 607 elements, one microsecond to start the second pass, and float32 parts written
    # and read, half in L2.
    parts = 108
    summing = 1e-6 + parts * 128 * 128 * 8 / 2 / load(A100).memory_bandwidth_bytes_per_s
    assert split == pytest.approx(whole / parts + summing, rel=1e-6)
    assert seconds(constants, 1, 128, 128, 600) == seconds(
        BARE, 1, 128, 128, 600
    )  # too short to split


def test_cold_operands_come_from_dram_at_its_bandwidth():
    constants = bare(l2_capacity=1.0)
    profile = load(A100)
    moved = 2 * (16 * 8192 + 8192 * 8192 + 16 * 8192)
    cold = matmul_terms(
        profile,
        "bfloat16",
        1,
        16,
        8192,
        8192,
        constants=constants,
        launch="none",
        l2_share=0,
    )
    warm = matmul_terms(profile, "bfloat16", 1, 16, 8192, 8192, constants=bare(), launch="none")
    assert cold.memory == pytest.approx(moved / profile.memory_bandwidth_bytes_per_s, rel=1e-5)
    assert warm.memory < 0.01 * cold.memory


def test_the_power_limit_slows_long_calls_only():
    # 2 pJ/FLOP at 312 TFLOP/s are 624 W; at 400 W and a clock exponent of 0 the time is 624 / 400
    # of the free one.
    constants = bare(picojoules_per_flop=2.0, clock_exponent=0.0, power_window_s=0.0)
    rows, cols, inner = 108 * 128, 128, 4096
    free = seconds(BARE, 1, rows, cols, inner)
    assert seconds(constants, 1, rows, cols, inner) == pytest.approx(free * 624 / 400, rel=1e-6)
    window = bare(picojoules_per_flop=2.0, clock_exponent=0.0, power_window_s=1.0)
    assert seconds(window, 1, rows, cols, inner) == pytest.approx(free, rel=1e-3)
    cooler = bare(picojoules_per_flop=1.0, clock_exponent=0.0, power_window_s=0.0)
    assert seconds(cooler, 1, rows, cols, inner) == pytest.approx(
        free, rel=1e-9
    )  # 312 W: under the limit


@pytest.mark.parametrize("launch", [*LAUNCHES, "events"])
def test_launch_is_added_once(launch):
    expected = {"eager": 3e-5, "graph": 2e-6, "events": 5e-6, "none": 0.0}[launch]
    difference = seconds(BARE, 3, 512, 512, 512, launch=launch) - seconds(BARE, 3, 512, 512, 512)
    assert difference == pytest.approx(expected, abs=1e-12)


@pytest.fixture(scope="module")
def shapes():
    random = np.random.default_rng(7)
    return tuple(
        np.exp(random.uniform(0, np.log(high), 400)).astype(int) + 1
        for high in (256, 65536, 16384, 16384)
    )


@pytest.mark.parametrize("name", GPUS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_never_above_peak_flops_or_bandwidth(name, dtype, shapes):
    profile = load(name).with_measured({}, {})
    batch, rows, cols, inner = shapes
    for layout in matmul.LAYOUTS:
        terms = matmul_terms(
            profile,
            dtype,
            *shapes,
            layout=layout,
            launch="none",
            l2_share=0,
            real=np.float64,
        )
        flops = 2.0 * batch * rows * cols * inner
        moved = matmul.DTYPE_BYTES[dtype] * batch * (rows * inner + inner * cols + rows * cols)
        assert np.isfinite(terms.seconds).all() and (terms.seconds > 0).all()
        assert (
            flops / terms.seconds <= profile.peak_flops[profile.matmul_unit(dtype)] * (1 + 1e-9)
        ).all()
        assert (moved / terms.seconds <= profile.memory_bandwidth_bytes_per_s * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", [A100, H100, V100, "t4", "b200-sxm"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_more_products_never_take_less_time(name, dtype):
    profile = load(name).with_measured({}, {})
    batch = np.arange(1, 400)
    seconds = matmul_terms(
        profile, dtype, batch, 333, 256, 512, layout="batched", launch="none", real=np.float64
    ).seconds
    assert (
        np.diff(seconds) >= -0.02 * seconds[:-1]
    ).all()  # another tile may win; a wave of it is never much cheaper
    assert seconds[-1] > 3 * seconds[0]


def test_more_peak_bandwidth_or_power_never_hurts(shapes):
    base = load("l4").with_measured({}, {})

    def scaled(group, name, factor):
        figures = dict(getattr(base, group))
        figures[name] = dataclasses.replace(figures[name], value=figures[name].value * factor)
        return dataclasses.replace(base, **{group: figures})

    before = matmul_terms(base, "bfloat16", *shapes, real=np.float64).seconds
    for group, name in (
        ("peaks", "tensor.bfloat16"),
        ("datasheet", "memory_bandwidth_bytes_per_s"),
        ("datasheet", "tdp_w"),
    ):
        after = matmul_terms(scaled(group, name, 1.5), "bfloat16", *shapes, real=np.float64).seconds
        assert (after <= before * 1.001).all(), name
        assert (after < before * 0.999).any(), name


def test_float32_arithmetic_is_precise_enough(shapes):
    profile = load(H100)
    exact = matmul_terms(profile, "bfloat16", *shapes, real=np.float64).seconds
    quick = matmul_terms(profile, "bfloat16", *shapes).seconds
    assert quick.dtype == np.float32
    # A size that lies on a tile's edge may fall to either side of a rounding; the rest agrees to
    # rounding.
    assert np.quantile(np.abs(quick / exact - 1), 0.99) < 1e-4


def test_sizes_broadcast_and_parts_tell_the_bound():
    terms = matmul_terms(
        load(H100),
        "bfloat16",
        1,
        np.array([1, 8192]),
        8192,
        8192,
        launch="none",
        l2_share=0,
    )
    assert terms.seconds.shape == (2,)
    assert list(terms.memory > terms.compute) == [True, False]
    empty = matmul_terms(load(H100), "bfloat16", 1, 1, 1, 1, launch="graph")
    assert empty.seconds.shape == () and empty.launch + empty.latency > 0.9 * empty.seconds


def test_wrong_words_are_refused_with_the_accepted_ones():
    with pytest.raises(RequestError, match=r"grap.*did you mean 'graph'"):
        matmul_terms(load(H100), "bfloat16", 1, 1, 1, 1, launch="grap")
    with pytest.raises(RequestError, match="batched, linear"):
        matmul_terms(load(H100), "bfloat16", 1, 1, 1, 1, layout="conv")
    odd = dataclasses.replace(load(H100), matmul_library="abacus")
    with pytest.raises(RequestError, match="matmul_library"):
        matmul_terms(odd, "bfloat16", 1, 1, 1, 1)


def test_no_constant_is_keyed_by_a_device_and_every_library_has_its_tiles():
    text = matmul.CONSTANTS.read_text(encoding="utf-8")
    table = json.loads(text)
    for name in names():
        profile = load(name)
        assert f'"{name}"' not in text
        for dtype in ("float32", "float16", "bfloat16"):
            for layout in matmul.LAYOUTS:
                constants = constants_of(profile, dtype, layout)
                assert all(rows >= 16 and cols >= 16 for rows, cols in constants.tiles)
    for unit in table.values():
        families = {family for families in unit["libraries"].values() for family in families}
        assert families <= set(unit["generations"])


def test_measured_numbers_stand_over_shipped_ones():
    profile = load(H100).with_measured(
        {
            "matmul.bfloat16.linear.compute_efficiency": 0.5,
            "matmul.bfloat16.linear.launch_graph_s": 9e-6,
        },
        {},
    )
    assert constants_of(profile, "bfloat16", "linear").compute_efficiency == 0.5
    assert constants_of(profile, "bfloat16", "batched").compute_efficiency == 0.5  # stands in
    assert constants_of(profile, "bfloat16", "batched").launch_graph_s != 9e-6  # but for the launch
    assert (
        constants_of(profile, "float16", "linear").compute_efficiency == 0.5
    )  # the same units and kernels
    assert constants_of(profile, "float32", "linear").compute_efficiency != 0.5


def test_the_residual_moves_predictions_near_its_rows_and_nowhere_else():
    anchors = np.log(np.array([[1.0, 4096.0, 1024.0, 1024.0]]))
    residual = Residual.fitted(np.repeat(anchors, 20, axis=0), np.full(20, 0.2))
    again = Residual.from_rows(residual.as_rows())
    near, far = again(anchors), again(anchors + 20.0)
    assert 1.1 < near < 1.23
    assert abs(np.log(far)) < 0.03
    profile = load(H100).with_measured({"matmul.bfloat16.linear.residual": residual.as_rows()}, {})
    ratio = matmul_terms(profile, "bfloat16", 1, 4096, 1024, 1024, real=np.float64).seconds / matmul_terms(
        load(H100).with_measured({}, {}), "bfloat16", 1, 4096, 1024, 1024, real=np.float64
    ).seconds  # fmt: skip
    assert ratio == pytest.approx(near, rel=1e-3)


def test_bytes_from_memory_draw_power_too():
    """With no energy per FLOP and 1 nJ per byte, no static power and time that grows with the
    excess, a call takes its joules over the board's limit."""
    c = bare(picojoules_per_byte=1000.0, clock_exponent=0.0, power_window_s=0.0, l2_capacity=1e-9)
    profile = load(A100)
    t = matmul_terms(
        profile, "bfloat16", 1, 8192, 8192, 128, launch="none", constants=c, l2_share=0,
        real=np.float64,
    )  # fmt: skip
    joules = 2 * (8192 * 128 * 2 + 8192 * 8192) * 1e-9
    assert t.seconds == pytest.approx(joules / profile.tdp_w, rel=1e-3)
    assert float(t.compute) > 0.9 * float(t.seconds)  # the limit's part counts as arithmetic
