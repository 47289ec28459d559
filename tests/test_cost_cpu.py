"""A CPU's model: terms that move as they should, a heap that reuses, constants found again from
rows they made."""

from dataclasses import replace

import numpy as np
import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cost.cpu import (
    MAPPED_BYTES,
    REUSES,
    CpuConstants,
    cpu_terms,
    fresh_pages,
    reuses_memory,
)
from flurka_bench.cost.cpu_rows import (
    ROW_OPS,
    calibrate_cpu,
    predict_rows,
)
from flurka_bench.cost.fitting import Rows
from flurka_bench.cost.model import model_of
from flurka_bench.cost.predict import (
    predict,
    predict_ops,
)
from flurka_bench.devices.shapes import cpu_probes
from flurka_bench.hardware.detect import detect_cpu
from flurka_bench.lowering import lower
from flurka_bench.lowering.fusion import fuse
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import (
    WORKS,
    Op,
    Tensor,
)

CPU = detect_cpu(2)
MAPPING = CPU.with_measured({REUSES: 0.0}, {})  # glibc as it is by itself


def op(kind="elementwise", name="add", reads=("x",), writes=("y",), numel=1_000_000, **sizes):
    tensors = {each: Tensor(name=each, numel=numel, dtype="float32") for each in (*reads, *writes)}
    reads, writes = (tuple(tensors[each] for each in group) for group in (reads, writes))
    return Op(
        stage="other",
        kind=kind,
        name=name,
        dtype="float32",
        rows=numel,
        reads=reads,
        writes=writes,
        **sizes,
    )


def seconds(one, profile=CPU, **options):
    return float(cpu_terms(one, profile, np.float32(0.5), "eager", 1, **options).seconds[0])


def rows_of(profile, constants=None):
    """The probes' rows as a machine with these constants would time them."""
    groups = []
    probes = cpu_probes("float32")
    for name in dict.fromkeys(probe.op for probe in probes):
        mine = [probe.shape for probe in probes if probe.op == name]
        columns = {key: np.array([float(shape[key]) for shape in mine]) for key in mine[0]}
        one = Rows(op=name, dtype="float32", device="", columns=columns, seconds=np.ones(len(mine)))
        groups.append(replace(one, seconds=predict_rows(profile, one, constants=constants)))
    return groups


def test_fresh_results_cost_page_faults_and_results_in_place_do_not():
    small, large = (op(numel=int(factor * MAPPED_BYTES / 4)) for factor in (0.9, 1.1))
    in_place = op(numel=int(1.1 * MAPPED_BYTES / 4), writes=("x",))
    faults = large.bytes_written * CpuConstants().fault_s_per_byte
    assert seconds(large, MAPPING) - seconds(in_place, MAPPING) > 0.9 * faults
    assert seconds(small, MAPPING) < 0.5 * seconds(large, MAPPING)
    assert seconds(large, MAPPING, faulting=0.0) == pytest.approx(
        seconds(large, MAPPING) - faults, rel=1e-3
    )
    assert seconds(large) == pytest.approx(
        seconds(large, MAPPING) - faults, rel=1e-3
    )  # where freed memory is kept


def test_profiles_calibrated_before_reuse_say_nothing_and_map():
    assert reuses_memory(CPU) and not reuses_memory(MAPPING)
    assert not reuses_memory(CPU.with_measured({"cpu.float32.exp_cycles": 2.0}, {}))
    case = [Case(mechanism="full-math", seq_len=4096)]
    assert predict(case, MAPPING)[0].seconds > 1.2 * predict(case, CPU)[0].seconds


def test_the_heap_serves_again_what_was_freed():
    """Two results that are never alive together need one piece; one larger than the threshold finds
    no room and is mapped."""
    ops = [
        op(reads=("x",), writes=("a",)),
        op(reads=("a",), writes=("b",)),
        op(reads=("b",), writes=("c",)),
    ]
    assert [float(each) for each in fresh_pages(ops, {})] == [
        0,
        0,
        0,
    ]  # the heap of the round before
    huge = op(reads=("x",), writes=("d",), numel=MAPPED_BYTES)
    assert [float(each) for each in fresh_pages([*ops, huge], {})] == [0, 0, 0, 4 * MAPPED_BYTES]


def test_a_maximum_along_an_axis_with_few_neighbours_takes_one_element_at_a_time():
    reduction = replace(op(), kind="reduction", work="sum", rows=16, cols=62_500, inner=64)

    def cycles(work, apart):
        one = seconds(replace(reduction, work=work, inner=apart))
        return (one - seconds(reduction)) * CPU.boost_clock_hz

    assert cycles("maximum", 16) > 1e6 > 100 > abs(cycles("maximum", 64))
    assert abs(cycles("sum", 16)) < 100


LAYER = Case(mechanism="flurka-favor", level="layer", pass_="train", rank=64, num_features=32)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("mechanism", ["flurka-favor", "flurka-relu", "flurka-elu"])
def test_what_an_op_is_called_costs_nothing(mechanism, backend):
    case = LAYER.replace(mechanism=mechanism, backend=backend)
    ops = lower(case, "cpu")
    renamed = [replace(one, name=f"op{at}") for at, one in enumerate(ops)]
    found = [
        [float(each.terms.seconds[0]) for each in predict_ops(some, model_of(CPU))]
        for some in (ops, renamed)
    ]
    assert found[0] == found[1]


def test_the_tape_says_what_an_element_takes():
    def works(mechanism):
        ops = lower(LAYER.replace(mechanism=mechanism), "cpu")
        return {one.work for one in ops if one.kind in ("elementwise", "reduction")}

    assert works("flurka-favor") == {"arithmetic", "division", "exp", "maximum", "sum"}
    assert works("flurka-relu") == {"arithmetic", "division", "select", "sum"}
    assert works("flurka-elu") == {"arithmetic", "division", "exp", "expm1", "sum"}
    exp = op(name="e", work="exp", reads=("x",), writes=("y",))
    add = op(name="a", reads=("y",), writes=("z",))
    assert [one.work for one in fuse([exp, add])] == [
        "exp"
    ]  # a fused kernel takes its dearest part
    model = lower(LAYER.replace(level="model"), "cpu")
    assert {one.work for one in model if "gelu" in one.name} == {"gelu"}
    for work in set(WORKS) - {"maximum", "sum"}:
        one = replace(op(), work=work)
        none, some = (by_hand(one, **{field(work): cycles}) for cycles in (0.0, 50.0))
        assert some - none == pytest.approx(50e6 / (2 * HZ), rel=1e-3), work


def field(work):
    return {"expm1": "elu", "arithmetic": "vector"}.get(work, work) + "_cycles"


@pytest.mark.parametrize("side", ["rows", "inner", "cols"])
def test_short_sides_waste_a_products_rate(side):
    def rate(length):
        sizes = {"rows": 512, "inner": 512, "cols": 512, side: length}
        x, y, z = (
            Tensor(name=name, numel=sizes[a] * sizes[b], dtype="float32")
            for name, a, b in (
                ("x", "rows", "inner"),
                ("y", "inner", "cols"),
                ("z", "rows", "cols"),
            )
        )
        one = Op(
            stage="other",
            kind="matmul",
            name="m",
            dtype="float32",
            reads=(x, y),
            writes=(z,),
            **sizes,
        )
        return sizes["rows"] * sizes["inner"] * sizes["cols"] / seconds(one)

    assert rate(16) < 0.8 * rate(128) < rate(512)


def test_every_probe_has_a_model():
    assert {probe.op for probe in cpu_probes("float32")} <= set(ROW_OPS)
    with pytest.raises(RequestError, match="fft"):
        predict_rows(
            CPU,
            Rows(
                op="fft", dtype="float32", device="", columns={"B": np.ones(1)}, seconds=np.ones(1)
            ),
        )
    with pytest.raises(RequestError, match="lack the column 'H'"):
        predict_rows(
            CPU,
            Rows(
                op="add", dtype="float32", device="", columns={"B": np.ones(1)}, seconds=np.ones(1)
            ),
        )


def test_calibration_finds_a_machine_again():
    truth = CpuConstants(
        fault_s_per_byte=9e-10,
        exp_cycles=1.5,
        matmul_efficiency=0.6,
        score_cycles=5.0,
        dram_efficiency=2.0,
    )
    groups = rows_of(MAPPING, truth)
    fitted = calibrate_cpu(MAPPING, groups)
    for group in groups:
        error = np.abs(predict_rows(fitted, group) / group.seconds - 1)
        assert error.mean() < 0.05, group.op
    assert fitted.measured["cpu.float32.fault_s_per_byte"] == pytest.approx(9e-10, rel=0.1)
    before, after = (
        predict([Case(mechanism="full-sdpa", seq_len=2048)], each)[0].seconds
        for each in (MAPPING, fitted)
    )
    assert after > 1.1 * before  # each score takes twice as long besides its products


def test_arrays_and_single_cases_agree():
    cases = [
        Case(mechanism="flurka-favor", level="layer", rank=64, num_features=32, seq_len=n)
        for n in (1024, 4096, 8192)
    ]
    together = [each.seconds for each in predict(cases, CPU)]
    assert together == pytest.approx([predict([case], CPU)[0].seconds for case in cases], rel=1e-4)
    assert together == sorted(together)


# One op by hand: constants under which one term alone binds. 2 threads; all else nearly free.
FREE = CpuConstants(
    dispatch_s=0.0, parallel_s=0.0, cache_bytes_per_cycle=1e9, dram_efficiency=1.0, matmul_stream=1.0,
    fault_s_per_byte=0.0, vector_cycles=0.0, row_cycles=0.0, softmax_cycles=0.0, softmax_row_cycles=0.0,
    softmax_backward_cycles=0.0, matmul_efficiency=1e9, matmul_rows=0.0, matmul_cols=0.0, matmul_inner=0.0,
    product_cycles=0.0, matmul_shared=1.0, attention_efficiency=1e9, attention_inner=0.0,
    score_cycles=0.0, query_cycles=0.0, attention_backward_efficiency=1.0,
)  # fmt: skip
BANDWIDTH, HZ = CPU.memory_bandwidth_bytes_per_s, CPU.boost_clock_hz


def by_hand(one, l2_share=0.0, **changes):
    """Seconds of an op of which only what ``changes`` says takes time, and memory where it is not
    in the cache."""
    found = cpu_terms(
        one,
        CPU,
        np.float64(l2_share),
        "none",
        1,
        constants=replace(FREE, **changes),
        real=np.float64,
    )
    return float(found.seconds[0])


def heads(phase):
    names = (Tensor(name=name, numel=8 * 600 * 64, dtype="float32") for name in "qo")
    q, o = names
    return Op(
        stage="scores", kind="attention", name="attention", dtype="float32", batch=8, rows=512,
        cols=600, inner=64, reads=(q,), writes=(o,), phase=phase,
    )  # fmt: skip


def test_a_line_is_read_before_it_is_written():
    assert by_hand(op()) == pytest.approx(3 * 4e6 / BANDWIDTH, rel=1e-6)  # x, y, and y once more
    assert by_hand(op(writes=("x",))) == pytest.approx(2 * 4e6 / BANDWIDTH, rel=1e-6)


def test_attention_does_two_products_and_its_backward_five():
    peak = CPU.peak_flops[CPU.matmul_unit("float32")]
    product_s = 2 * 8 * 512 * 600 * 64 / peak
    for phase, products in (("forward", 2), ("backward", 5)):
        found = by_hand(heads(phase), 1.0, attention_efficiency=1.0)
        assert found == pytest.approx(products * product_s, rel=1e-3)


def test_a_part_of_a_block_of_keys_rescales_as_a_whole_one():
    found = by_hand(heads("forward"), 1.0, query_cycles=100.0)
    assert found == pytest.approx(8 * 512 * 2 * 100 / (2 * HZ), rel=1e-3)  # 600 keys: two blocks


def product(batch=4, shared=False, **sizes):
    x, y, z = (
        Tensor(
            name=name, numel=(1 if shared and name == "x" else batch) * 256 * 256, dtype="float32"
        )
        for name in "xyz"
    )
    return Op(
        stage="scores", kind="matmul", name="scores", dtype="float32", batch=batch, rows=256,
        cols=256, inner=256, reads=(x, y), writes=(z,),
    )  # fmt: skip


def test_a_product_streams_slower_and_a_shared_operand_saves_cycles():
    moved = 4 * 4 * 4 * 256 * 256  # x, y, z and the lines of z, read to be written
    assert by_hand(product()) == pytest.approx(moved / BANDWIDTH, rel=1e-3)
    assert by_hand(product(), matmul_stream=0.4) == pytest.approx(
        moved / (0.4 * BANDWIDTH), rel=1e-3
    )
    own, shared = (
        by_hand(product(shared=each), 1.0, matmul_efficiency=1.0, matmul_shared=0.5)
        for each in (False, True)
    )
    peak = CPU.peak_flops[CPU.matmul_unit("float32")]
    assert own == pytest.approx(2 * 4 * 256**3 / peak, rel=1e-3)
    assert shared == pytest.approx(own / 2, rel=1e-3)


def test_threads_are_woken_for_large_ops_only():
    assert by_hand(op(), 1.0, parallel_s=1.0) == pytest.approx(1.0, rel=1e-3)
    assert by_hand(op(numel=1000), 1.0, parallel_s=1.0) < 1e-3


def test_softmax_has_cycles_of_its_own_each_way():
    for phase, cycles in (("forward", 3.0), ("backward", 7.0)):
        one = replace(op(kind="softmax", name="softmax", numel=1_000_000), phase=phase)
        found = by_hand(one, 1.0, softmax_cycles=3.0, softmax_backward_cycles=7.0)
        assert found == pytest.approx(cycles * 1e6 / (2 * HZ), rel=1e-3)
