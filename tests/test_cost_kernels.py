"""Streaming kernels, softmax and fused attention: goldens by hand, monotone growth, physical
limits."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flurka_bench.cost import terms
from flurka_bench.cost.attention import (
    KERNELS,
    AttentionConstants,
    _splits,
    attention_constants,
    attention_terms,
    kernel_of,
)
from flurka_bench.cost.elementwise import (
    ElementwiseConstants,
    elementwise_constants,
    elementwise_terms,
)
from flurka_bench.cost.matmul import matmul_terms
from flurka_bench.cost.softmax import (
    SoftmaxConstants,
    resident_threads,
    softmax_constants,
    softmax_terms,
)
from flurka_bench.hardware import (
    load,
    names,
)
from flurka_bench.words.errors import RequestError

DEVICES = ("p100-pcie-16gb", "t4", "a100-pcie-40gb", "h200-sxm", "b300-sxm", "l4", "rtx-pro-6000")


def datasheet(name: str):
    return load(name).with_measured({}, {})


def plain(cls, kind: str, **changes):
    """The shipped constants of a kind with some replaced."""
    values = {name: terms.shipped_table()[kind][name] for name in cls.__dataclass_fields__}
    return cls(**values | changes)


def test_copy_from_dram_golden():
    """1 GB on an A100 at 0.9 of 1,555 GB/s: 714.5 µs; nothing of it fits in L2."""
    c = plain(ElementwiseConstants, "elementwise", dram_efficiency=0.9)
    t = elementwise_terms(
        datasheet("a100-pcie-40gb"), 1e9, launch="none", constants=c, real=np.float64
    )
    assert t.seconds == pytest.approx(1e9 / (0.9 * 1.555e12), rel=1e-6)


def test_copy_from_l2_golden():
    """10 MB stay in 40 MB of L2: 108 SMs x 1.41 GHz x 20 bytes a clock."""
    c = plain(ElementwiseConstants, "elementwise", l2_bytes_per_clock_per_sm=20.0)
    t = elementwise_terms(
        datasheet("a100-pcie-40gb"), 1e7, launch="none", constants=c, real=np.float64
    )
    assert t.seconds == pytest.approx(1e7 / (108 * 1.41e9 * 20), rel=1e-6)


def test_exponentials_bind_where_memory_does_not():
    """1e9 exponentials on 108 SMs x 16 x 1.41 GHz take 410 µs however few bytes there are."""
    c = plain(ElementwiseConstants, "elementwise", lane_ops_per_special=0.0)
    t = elementwise_terms(
        datasheet("a100-pcie-40gb"),
        1e3,
        special_flops=1e9,
        launch="none",
        constants=c,
        real=np.float64,
    )
    assert t.seconds == pytest.approx(1e9 / (108 * 16 * 1.41e9), rel=1e-4)
    assert t.special > t.memory


def test_dispatch_hides_short_kernels_and_adds_to_long_ones():
    """A kernel shorter than the dispatch's overlap costs nothing; a long one the dispatch's first
    part."""
    profile = datasheet("a100-pcie-40gb")
    c = plain(ElementwiseConstants, "elementwise", launch_eager_s=30e-6, host_overlap=0.5)
    short = elementwise_terms(profile, 1e4, constants=c, real=np.float64)
    assert short.seconds == pytest.approx(30e-6, rel=1e-4)
    long = elementwise_terms(profile, 1e9, constants=c, real=np.float64)
    assert long.seconds == pytest.approx(15e-6 + long.kernel, rel=1e-4)
    graph = elementwise_terms(profile, 1e9, constants=c, launch="graph", real=np.float64)
    assert graph.seconds == pytest.approx(long.kernel + c.launch_graph_s)


def test_softmax_reads_again_what_left_the_cache():
    """Rows of 2,048 floats: P100's 448 in flight exceed its 4 MB of L2, so three reads and a write
    reach DRAM; T4's 160 fit."""
    for device, accesses in (("p100-pcie-16gb", 4), ("t4", 2)):
        profile = datasheet(device)
        # Rows of 2,048 floats: 256 threads, so 2,048 / 256 = 8 blocks a SM on a P100, 4 on a T4.
        in_flight = profile.num_sms * resident_threads(profile) / 256 * 2048 * 4
        c = plain(SoftmaxConstants, "softmax", miss_low=0.4, miss_width=0.3)
        t = softmax_terms(profile, 1e5, 2048, launch="none", constants=c, real=np.float64)
        bandwidth = (
            profile.memory_bandwidth_bytes_per_s * profile.memory_usable_share * c.dram_efficiency
        )
        assert (in_flight > 0.7 * profile.l2_bytes) == (accesses == 4)
        assert t.memory == pytest.approx(accesses * 1e5 * 2048 * 4 / bandwidth, rel=1e-6)


def test_softmax_switches_kernels_at_1024_columns():
    """One column more walks each row three times, so that an element costs more, though few more
    bytes move."""
    profile = datasheet("p100-pcie-16gb")
    narrow, wide = (softmax_terms(profile, 1e5, cols, launch="none") for cols in (1024, 1025))
    assert wide.kernel > 1.4 * narrow.kernel


@pytest.mark.parametrize(
    ("kernel", "head_dim", "tile"),
    [("flash2", 64, (128, 128)), ("flash3", 72, (192, 144)), ("flash4", 128, (256, 128))],
)
def test_tiles_are_the_published_ones(kernel, head_dim, tile):
    from flurka_bench.cost.attention import _tile

    rows, columns = _tile(KERNELS[kernel], np.array([float(head_dim)]))
    assert (rows[0], columns[0]) == tile


def test_attention_wave_golden():
    """One full wave of FlashAttention 2 tiles on 188 SMs, by hand: products, exposed exponentials,
    rescaling, start and end."""
    profile = datasheet("rtx-pro-6000")
    c = plain(AttentionConstants, "attention", alone_slowdown=0.0, sustained_slowdown=0.0)
    clock = profile.boost_clock_hz
    softmax = c.exposed_softmax * (1 / 16 + 3 / 128) / clock
    score = (
        4 * 64 * 188 / (503.8e12 * c.matmul_efficiency)
        + softmax
        + 64 / 128 * c.rescale_clocks / clock
    )
    expected = 128 * 4096 * score + c.tile_s / 2**2  # two blocks on an SM
    t = attention_terms(
        profile, "bfloat16", 4, 4096, 4096, 64, launch="none", constants=c, real=np.float64
    )  # 4 x 32 tiles
    assert t.seconds == pytest.approx(expected + c.floor_s, rel=1e-9)
    two = attention_terms(
        profile, "bfloat16", 6, 4096, 4096, 64, launch="none", constants=c, real=np.float64
    )  # 192 tiles: two waves
    assert two.seconds - c.floor_s == pytest.approx(2 * expected, rel=1e-9)


def test_key_splits_follow_the_published_rules():
    def splits(kernel, tiles, blocks, sms):
        return _splits(KERNELS[kernel], np.array([float(tiles)]), np.array([float(blocks)]), sms)[0]

    assert splits("flash2", 8, 64, 108) == 1
    assert splits("flash4", 40, 80, 148) == 3  # floor(148 / 40)
    assert splits("flash4", 16, 4, 148) == 1  # four blocks stay in one piece
    assert splits("flash3", 66, 66, 132) == 2  # two whole waves' worth
    assert splits("flash3", 110, 100, 132) == 1  # more than 0.8 of the SMs are busy already
    assert (
        splits("flash3", 75, 75, 132) == 2
    )  # three by efficiency, but no piece below an even share


def test_float32_never_runs_a_flash_kernel():
    assert kernel_of(datasheet("h200-sxm"), "float32") is KERNELS["efficient"]
    assert kernel_of(datasheet("h200-sxm"), "bfloat16") is KERNELS["flash3"]


def test_faster_exponentials_help_attention_at_small_head_dims_most():
    """B300 doubles them over B200: worth more at 64 than at 128 dimensions, and never a factor of
    two."""
    gain = {}
    for head_dim in (64, 128):
        b200, b300 = (
            attention_terms(
                datasheet(name), "bfloat16", 512, 4096, 4096, head_dim, launch="none"
            ).kernel
            for name in ("b200-sxm", "b300-sxm")
        )
        gain[head_dim] = float(b200 / b300)
    assert 1 < gain[128] < gain[64] < 2


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_monotone_in_every_size(device, data):
    """More heads, queries, keys, rows or bytes never take less time, nor wider heads while the
    kernel keeps its tile."""
    profile = datasheet(device)
    heads, length, step = (
        data.draw(st.integers(1, 64)),
        data.draw(st.integers(1, 9000)),
        data.draw(st.integers(1, 512)),
    )
    base = dict(heads=heads + 200, queries=float(length), keys=float(length), head_dim=8.0)
    first = attention_terms(profile, "float32", **base, launch="none", real=np.float64).kernel
    for name in base:
        more = min(step, 56) if name == "head_dim" else step
        grown = attention_terms(
            profile, "float32", **base | {name: base[name] + more}, launch="none", real=np.float64
        ).kernel
        assert grown >= first * (1 - 1e-9), name
    moved = elementwise_terms(
        profile, np.array([length * 1e3, (length + step) * 1e3]), real=np.float64
    ).seconds
    assert moved[1] >= moved[0] * (1 - 1e-12)
    rows = softmax_terms(profile, np.array([length, length + step]), 512, real=np.float64).seconds
    assert rows[1] >= rows[0] * (1 - 1e-12)


@pytest.mark.parametrize("device", sorted(set(names()) - {"cpu"}))
def test_nothing_beats_the_datasheet(device):
    """No prediction exceeds peak FLOP/s, peak bandwidth beyond the cache, or the special function
    units."""
    profile = load(device)
    random = np.random.default_rng(0)
    heads, length = random.integers(1, 513, 200), random.integers(16, 32_769, 200)
    head_dim = random.choice([32, 64, 72, 128, 256], 200)
    for dtype in ("float32", "bfloat16"):
        seconds = attention_terms(
            profile, dtype, heads, length, length, head_dim, launch="none", real=np.float64
        ).seconds
        assert (
            4.0 * heads * length**2.0 * head_dim / seconds
            <= profile.peak_flops[profile.matmul_unit(dtype)]
        ).all()
    moved = profile.l2_bytes * random.uniform(2, 1000, 200)
    assert (
        moved / elementwise_terms(profile, moved, launch="none", real=np.float64).seconds
        <= profile.memory_bandwidth_bytes_per_s
    ).all()
    rows, cols = random.integers(10_000, 100_000, 200), random.integers(16, 8193, 200)
    seconds = softmax_terms(profile, rows, cols, launch="none", real=np.float64).seconds
    units = profile.num_sms * profile.special_per_clock_per_sm * profile.boost_clock_hz
    assert (rows * cols / seconds <= units).all()
    beyond = 8.0 * rows * cols > 2 * profile.l2_bytes
    assert (8.0 * rows * cols / seconds <= profile.memory_bandwidth_bytes_per_s)[beyond].all()


def test_measured_numbers_stand_over_the_shipped_ones():
    profile = datasheet("h200-sxm")
    own = profile.with_measured(
        {
            "elementwise.add.dram_efficiency": 0.5,
            "elementwise.gelu.dram_efficiency": 0.6,
            "softmax.latency_s": 1e-3,
        },
        {},
    )
    assert elementwise_constants(own).dram_efficiency == 0.5
    assert elementwise_constants(own, "gelu").dram_efficiency == 0.6
    assert softmax_constants(own).latency_s == 1e-3
    assert attention_constants(own, "bfloat16") == attention_constants(profile, "bfloat16")


def test_what_ecc_takes_from_the_bandwidth_it_takes_from_every_kind():
    """Cold calls bound by memory alone take as much longer as the usable share is smaller."""
    whole = datasheet("l4")
    share = dataclasses.replace(whole.datasheet["memory_usable_share"], value=0.5)
    full = dataclasses.replace(share, value=1.0)
    half, whole = (
        dataclasses.replace(whole, datasheet={**whole.datasheet, "memory_usable_share": each})
        for each in (share, full)
    )
    options = {"launch": "none", "real": np.float64}

    def memory(profile):
        return [
            float(each.memory)
            for each in (
                matmul_terms(profile, "bfloat16", 1, 8192, 8192, 64, l2_share=0, **options),
                elementwise_terms(profile, 1e9, l2_share=0, **options),
                softmax_terms(profile, 1e5, 512, l2_share=0, **options),
                attention_terms(profile, "bfloat16", 8, 512, 512, 64, bytes_moved=1e10, **options),
            )
        ]

    assert np.array(memory(half)) / memory(whole) == pytest.approx(2, rel=1e-6)


def test_unknown_launch_offers_the_accepted_ones():
    with pytest.raises(RequestError, match="eager, graph, none"):
        elementwise_terms(datasheet("t4"), 1e6, launch="egaer")


def test_both_precisions_agree():
    profile = datasheet("h200-sxm")
    heads, length = np.array([1, 4, 32, 512]), np.array([12544, 9216, 1000, 4096])
    single, double = (
        attention_terms(profile, "bfloat16", heads, length, length, 64, real=real).seconds
        for real in (np.float32, np.float64)
    )
    np.testing.assert_allclose(single, double, rtol=1e-4)


def test_a_block_softmax_walks_its_rows_three_times_in_l2_and_in_memory():
    """100,000 rows of 4,096 float32: 1.6 GB in, as much out. Arithmetic is free but for the special
    units, which take a twentieth."""
    h200, rows, cols = datasheet("h200-sxm"), 1e5, 4096
    free = {
        "dram_efficiency": 1.0, "block_lane_ops_per_row": 0.0, "block_lane_ops_per_vector": 0.0,
        "block_lane_ops_per_element": 0.0, "overlap_exponent": 16.0, "lockstep_waves": 0.0,
        "latency_s": 0.0,
    }  # fmt: skip
    array = 4 * rows * cols
    bandwidth = 4.8e12 * h200.memory_usable_share
    for passes in (3, 2):
        in_l2 = plain(
            SoftmaxConstants, "softmax", **free, miss_low=1e9, l2_bytes_per_clock_per_sm=1e-9
        )
        found = softmax_terms(
            h200,
            rows,
            cols,
            passes=passes,
            l2_share=1.0,
            launch="none",
            constants=in_l2,
            real=np.float64,
        )
        assert found.seconds == pytest.approx((passes + 1) * array / bandwidth, rel=1e-3)
        missing = plain(
            SoftmaxConstants,
            "softmax",
            **free,
            miss_low=-10.0,
            miss_width=1.0,
            l2_bytes_per_clock_per_sm=1e9,
        )
        found = softmax_terms(
            h200,
            rows,
            cols,
            passes=passes,
            l2_share=0.0,
            launch="none",
            constants=missing,
            real=np.float64,
        )
        assert found.seconds == pytest.approx((passes + 1) * array / bandwidth, rel=1e-3)


def test_a_split_writes_partial_results_in_float32_and_reads_them_again():
    """One head, one block of queries: pieces by ``_splits``, each of 64 x 128 partial sums, out and
    in: 8 bytes an element and pass."""
    h200 = datasheet("h200-sxm")
    sizes = {"heads": 1, "queries": 64, "keys": 65536, "head_dim": 128}
    found = []
    for traffic in (0.0, 1000.0):
        c = plain(
            AttentionConstants, "attention", combine_traffic=traffic, combine_s=0.0,
            sustained_slowdown=0.0,
        )  # fmt: skip
        t = attention_terms(h200, "bfloat16", **sizes, launch="none", constants=c, real=np.float64)
        found.append(t.latency)
    kernel = kernel_of(h200, "bfloat16")
    columns = next(tile[2] for tile in kernel.tiles if tile[0] >= 128)
    blocks = np.ceil(np.array([65536.0]) / columns)
    splits = float(_splits(kernel, np.array([1.0]), blocks, h200.num_sms)[0])
    assert splits > 1
    bandwidth = 0.9 * 4.8e12 * h200.memory_usable_share
    added = 8 * 1000 * splits * 64 * 128 / bandwidth
    assert found[1] - found[0] == pytest.approx(added, rel=1e-6)


def test_a_backward_product_takes_its_own_efficiency():
    found = []
    for efficiency in (1.0, 0.5):
        c = plain(
            AttentionConstants, "attention", backward_efficiency=efficiency, exposed_softmax=0.0,
            rescale_clocks=0.0, tile_s=0.0, floor_s=0.0, sustained_slowdown=0.0,
        )  # fmt: skip
        options = {"products": 5.0, "backward": True, "launch": "none", "constants": c}
        t = attention_terms(
            datasheet("h200-sxm"), "float32", 8, 256, 256, 64, **options, real=np.float64
        )
        found.append(float(t.compute))
    assert found[1] > 1.8 * found[0]  # a call too short for the power limit


@pytest.mark.parametrize("name", ["t4", "l4", "a10", "l40s", "h200-sxm"])
def test_memory_that_keeps_part_of_its_bandwidth_gives_no_more(name):
    profile = datasheet(name)
    c = plain(ElementwiseConstants, "elementwise", dram_efficiency=0.9)
    t = elementwise_terms(profile, 1e11, launch="none", constants=c, real=np.float64)
    usable = 0.9 * profile.memory_bandwidth_bytes_per_s * profile.memory_usable_share
    assert t.memory == pytest.approx(1e11 / usable, rel=1e-6)
