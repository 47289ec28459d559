"""Whole cases: sums, residency, bounds, bands, speedups and the shell's verb."""

import json
import math

import numpy as np
import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.cost import uncertainty
from flurka_bench.cost.attention import attention_terms
from flurka_bench.cost.model import model_of
from flurka_bench.cost.predict import (
    BOUNDS,
    predict,
    predict_many,
    predict_ops,
    speedup,
)
from flurka_bench.cost.softmax import softmax_terms
from flurka_bench.hardware import load
from flurka_bench.lowering import (
    lower,
    peak_memory_bytes,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import (
    Op,
    Tensor,
    total,
)
from flurka_bench.words.sizes import (
    LEVELS,
    SIZES,
)

H100 = load("h100").with_measured({}, {})
MODEL = model_of(H100)
CASE = Case(
    mechanism="flurka-relu",
    dtype="bfloat16",
    batch=2,
    num_heads=8,
    seq_len=8192,
    head_dim=64,
    rank=256,
    num_features=64,
)


def stream(name: str, reads: str, writes: str, bytes_: float) -> Op:
    tensors = [Tensor(name=tensor, numel=bytes_ / 4, dtype="float32") for tensor in (reads, writes)]
    return Op(
        stage="output",
        kind="elementwise",
        name=name,
        dtype="float32",
        reads=(tensors[0],),
        writes=(tensors[1],),
    )


@pytest.mark.parametrize("mechanism", sorted(MECHANISMS))
@pytest.mark.parametrize("level", ["core", "layer"])
def test_stages_sum_to_the_total_and_the_band_holds_it(mechanism, level):
    case = CASE.replace(mechanism=mechanism, level=level)
    for launch in ("eager", "graph", "none"):
        (p,) = predict([case], H100, launch=launch)
        assert sum(p.stages.values()) == pytest.approx(p.seconds, rel=1e-4)
        assert 0 < p.seconds_low < p.seconds < p.seconds_high
        assert p.bound in BOUNDS
        assert p.flops == total(lower(case, "cuda"), "flops")


def test_launches_order():
    """Device time alone is least, a graph adds its launches, the host's dispatch adds most."""
    seconds = [
        predict([CASE], H100, launch=launch)[0].seconds for launch in ("none", "graph", "eager")
    ]
    assert seconds == sorted(seconds)
    assert seconds[1] - seconds[0] == pytest.approx(
        sum(p.terms.launch for p in predict_ops(lower(CASE, "cuda"), MODEL, launch="graph")),
        rel=1e-3,
    )


def test_host_runs_ahead_of_long_kernels():
    """Eager: small cases take the sum of the dispatches, large ones the device's time and the first
    dispatch."""
    small, large = (CASE.replace(mechanism="full-math", seq_len=n) for n in (128, 16384))
    dispatches = sum(p.terms.launch for p in predict_ops(lower(small, "cuda"), MODEL))
    (p,) = predict([small], H100)
    assert p.seconds == pytest.approx(dispatches, rel=1e-3)
    assert p.bound == "launch"
    (p,) = predict([large], H100)
    alone = predict([large], H100, launch="none")[0].seconds
    assert alone < p.seconds < alone + 60e-6


def test_measured_dispatch_replaces_the_default():
    quick = H100.with_measured({"microbenchmark.launch_eager_s": 5e-6}, {})
    small = CASE.replace(mechanism="full-math", seq_len=128)
    assert predict([small], quick)[0].seconds == pytest.approx(
        5e-6 * len(lower(small, "cuda")), rel=0.5
    )


def test_an_operand_just_written_is_read_from_l2():
    """The same read costs less after a small producer than after one whose result pushed it out."""
    near = predict_ops(
        [stream("a", "x", "y", 4e6), stream("b", "y", "z", 4e6)], MODEL, launch="none", cache="cold"
    )
    far = predict_ops(
        [stream("a", "x", "y", 4e6), stream("big", "p", "q", 4e9), stream("b", "y", "z", 4e6)],
        MODEL,
        launch="none",
        cache="cold",
    )
    assert near[1].terms.kernel < 0.7 * far[2].terms.kernel
    assert near[1].terms.kernel < near[0].terms.kernel  # x came from DRAM


def test_warm_is_never_slower_than_cold_and_alike_for_large_cases():
    for case, alike in (
        (CASE.replace(seq_len=512), False),
        (CASE.replace(mechanism="full-math", seq_len=32768), True),
    ):
        cold, warm = (
            predict([case], H100, launch="none", cache=cache)[0].seconds
            for cache in ("cold", "warm")
        )
        assert warm <= cold
        assert (warm == pytest.approx(cold, rel=0.01)) == alike


def test_arrays_agree_with_single_cases():
    """A sweep gives what its cases give one by one, in chunks or not, mixed batches of one
    included."""
    random = np.random.default_rng(0)
    cases = [
        CASE.replace(
            mechanism=mechanism, level=level, batch=int(batch), seq_len=int(length), rank=int(rank)
        )
        for mechanism in ("low-rank", "flurka-relu", "full-sdpa")
        for level in ("core", "layer")
        for batch, length, rank in zip(
            random.integers(1, 3, 6), random.integers(512, 20_000, 6), random.integers(16, 512, 6)
        )
    ]
    together = predict(cases, H100)
    for case, p in zip(cases, together):
        (alone,) = predict([case], H100)
        assert p.seconds == pytest.approx(alone.seconds, rel=2e-4), case.case_id
        assert p.peak_memory_bytes == alone.peak_memory_bytes
    sweep = CASE.replace(seq_len=np.arange(1024, 1024 + 1000))
    parts = list(predict_many(sweep, H100, chunk=300))
    assert [len(part) for part in parts] == [300, 300, 300, 100]
    whole = next(predict_many(sweep, H100, chunk=1000))
    np.testing.assert_allclose(
        np.concatenate([part.seconds for part in parts]), whole.seconds, rtol=2e-4
    )


def test_arrays_of_different_lengths_are_refused():
    with pytest.raises(RequestError, match="one length"):
        list(predict_many(CASE.replace(seq_len=np.arange(10) + 512, rank=np.arange(9) + 16), H100))


def test_longer_is_slower():
    for mechanism in MECHANISMS:
        seconds = np.concatenate(
            [
                p.seconds
                for p in predict_many(
                    CASE.replace(mechanism=mechanism, seq_len=2 ** np.arange(9, 17)), H100
                )
            ]
        )
        assert (np.diff(seconds) >= -1e-3 * seconds[:-1]).all(), mechanism


def test_out_of_memory_is_predicted():
    (p,) = predict([CASE.replace(mechanism="full-math", seq_len=131_072)], H100)
    assert not p.fits_in_memory
    assert p.peak_memory_bytes > 2 * 2 * 8 * 131_072**2
    assert predict([CASE], H100)[0].fits_in_memory


def test_scale_cancels_in_a_speedup():
    """Two cases of the same kinds of op: the ratio's band is narrower than the two bands put
    together."""
    a, b = predict(
        [CASE.replace(mechanism="full-sdpa", seq_len=n) for n in (8192, 16384)], H100, launch="none"
    )
    s = speedup(a, b)
    assert s.ratio == pytest.approx(b.seconds / a.seconds)
    independent = np.exp(
        np.hypot(np.hypot(a.log_scale, a.log_shape), np.hypot(b.log_scale, b.log_shape))
    )
    assert s.high / s.ratio < independent
    assert s.verdict == "FASTER"
    assert speedup(b, a).verdict == "SLOWER"
    assert speedup(a, a).verdict == "AMBIGUOUS"


def test_speedup_across_devices_is_refused():
    with pytest.raises(RequestError, match="one device"):
        speedup(predict([CASE], H100)[0], predict([CASE], load("l4"))[0])


def test_calibration_narrows_the_band():
    own = H100.with_measured({"attention.bfloat16.floor_s": 3e-6}, {})
    case = CASE.replace(mechanism="full-sdpa", seq_len=16384)
    (datasheet,), (calibrated,) = (
        predict([case], profile, launch="none") for profile in (H100, own)
    )
    assert np.hypot(calibrated.log_scale, calibrated.log_shape) < np.hypot(
        datasheet.log_scale, datasheet.log_shape
    )
    assert calibrated.log_scale == 0


def test_conformal_half_width_by_hand():
    """Nine of ten calibration residuals, rounded up as split conformal prediction asks: the tenth
    of ten (11 x 0.9 = 9.9)."""
    assert (
        uncertainty.conformal_half_width(
            np.array([-0.1, 0.2, -0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, -1.0])
        )
        == 1.0
    )
    assert uncertainty.conformal_half_width(np.linspace(0, 1, 101)) == pytest.approx(0.91)


def test_conformal_bands_cover_new_draws():
    random = np.random.default_rng(1)
    hits = [
        np.abs(random.standard_t(4, 2000))
        <= uncertainty.conformal_half_width(random.standard_t(4, 500))
        for _ in range(40)
    ]
    assert np.mean(hits) == pytest.approx(0.9, abs=0.01)


def test_sum_of_bands():
    """Scale adds up; shape noise lies between adding up and averaging out."""
    widths = uncertainty.Sum()
    band = {long: uncertainty.Band(scale=0.1, shape=0.2) for long in (True, False)}
    for _ in range(4):
        widths.add(np.array([1.0]), np.array([1.0]), band)
    scale, shape = widths.half_widths(np.array([4.0]))
    assert scale == pytest.approx(0.1)
    assert 0.2 / np.sqrt(4) < shape < 0.2


def run(capsys, *arguments: str):
    from flurka_bench.cli.main import main

    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    return stop.value.code, capsys.readouterr()


def test_verb_prints_the_contract(capsys):
    options = "--hardware h100,l4 --mechanism flurka-relu,full-sdpa --level layer --seq-len 2048,4096 --dtype bfloat16 --json"
    code, out = run(capsys, *options.split())
    records = json.loads(out.out)
    assert code == 0
    assert len(records) == 8
    needed = {
        "level",
        "pass",
        "backend",
        "order",
        "hardware",
        *SIZES,
        "dtype",
        "flops",
        "bytes",
        "bound",
    }
    for record in records:
        assert needed <= set(record)
        assert record["seconds_low"] < record["seconds"] < record["seconds_high"]
    assert [record["hardware"] for record in records] == ["h100-sxm-80gb"] * 4 + ["l4"] * 4
    assert {record["order"] for record in records if record["mechanism"] == "full-sdpa"} == {
        "project_first"
    }


def test_best_order_is_the_fastest(capsys):
    arguments = (
        "--hardware",
        "h100",
        "--mechanism",
        "flurka-relu",
        "--level",
        "layer",
        "--seq-len",
        "65536",
        "--dtype",
        "bfloat16",
        "--json",
    )
    best = json.loads(run(capsys, *arguments)[1].out)[0]["seconds"]
    orders = json.loads(
        run(capsys, *arguments, "--order", "project_first,compress_first,absorbed")[1].out
    )
    assert len(orders) == 3
    assert best == pytest.approx(min(record["seconds"] for record in orders), rel=1e-4)


def test_what_does_not_apply_collapses_and_is_said(capsys):
    options = "--hardware h100 --mechanism full-sdpa,flurka-relu --rank 64,128 --num-features 32,64"
    code, out = run(capsys, *options.split(), "--json")
    records = json.loads(out.out)
    assert code == 0 and len(records) == 1 + 4
    assert "--rank 64,128 does not apply to full-sdpa" in out.err
    assert "--num-features 32,64 does not apply to full-sdpa (has no features)" in out.err


@pytest.mark.parametrize("name", MECHANISMS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_knob_is_carried_out_or_said_not_to_be(capsys, name, level):
    """A knob given to one mechanism alone reaches its case, or a line says that it does not: over
    all mechanisms, levels and knobs."""
    wanted = {"rank": 32, "num_features": 16, "order": "project_first"}
    sound = {"rank", "num_features", "order"}
    sound -= set() if MECHANISMS[name].compressed else {"rank"}
    sound -= set() if MECHANISMS[name].uses_features else {"num_features"}
    sound -= {"order"} if level == "core" else set()
    for knob, value in wanted.items():
        option = f"--{knob.replace('_', '-')}"
        fixed = ["--hardware", "h100", "--mechanism", name, "--level", level, "--seq-len", "64"]
        rest = ["--rank", "64"] if knob != "rank" and MECHANISMS[name].compressed else []
        code, out = run(capsys, *fixed, *rest, option, str(value), "--json")
        if knob in sound:
            assert code == 0 and [record[knob] for record in json.loads(out.out)] == [value]
            assert not out.err
        else:
            assert code == 0 and f"{option} {value} does not apply to {name} (" in out.err
            assert out.err.count("\n") == 1 and json.loads(out.out)[0][knob] != value


def test_the_elu_forms_are_told_of_and_take_their_own_width(capsys):
    code, out = run(capsys, "--hardware", "h100", "--num-features", "16", "--json")
    features = {record["mechanism"]: record["num_features"] for record in json.loads(out.out)}
    assert code == 0 and set(features) == set(MECHANISMS)
    assert features["flurka-elu"] == features["kernel-elu"] == 64 and features["flurka-relu"] == 16
    assert "kernel-elu, flurka-elu (has m = head_dim = 64 features)" in out.err
    code, out = run(capsys, "--hardware", "h100", "--mechanism", "flurka-elu", "--num-features=64")
    assert code == 0 and not out.err


def test_an_order_that_a_mechanism_lacks_is_said(capsys):
    options = "--hardware h100 --level layer --mechanism full-sdpa --order absorbed --json"
    code, out = run(capsys, *options.split())
    assert code == 0 and json.loads(out.out)[0]["order"] == "project_first"
    assert "full-sdpa (has one order, project_first)" in out.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--hardware t4 --dtype bf16", "t4 has no bfloat16 units"),
        ("--hardware p4 --dtype half", "p4 has no float16 units"),
        ("--hardware cpu --dtype bf16", "nothing is known of bfloat16 on cpu"),
        ("--hardware cpu --launch graph", "a CPU, which has no graphs"),
        ("--hardware h100,mi210 --backend eager,fused", "none on mi210"),
        ("--hardware h100 --dtype bf16", ""),
        ("--hardware cpu --dtype float64", ""),
    ],
)
def test_what_a_target_lacks_is_said(capsys, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out = run(capsys, "--mechanism", "kernel-relu", *options.split(), "--json")
    assert code == 0 and json.loads(out.out)
    assert said in out.err and bool(said) == bool(out.err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--hardware apple-m1-max --dtype double", "apple-m1-max has no float64 units"),
        ("--hardware mi210 --backend fused", "fused kernels are for NVIDIA GPUs"),
        ("--launch grph", "did you mean 'graph'"),
        ("--mechanism FLURKA-RLEU", "did you mean 'flurka-relu'"),
        ("--dtype bfloat", "did you mean 'bfloat16'"),
        ("--seq-len 16kB", "16k is 16384"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(capsys, options, said):
    fixed = [] if "--hardware" in options else ["--hardware", "h100"]
    code, out = run(capsys, *fixed, *options.split())
    assert code == 2 and said in out.err and out.err.count("\n") == 1 and not out.out


def test_words_that_mean_the_same_give_the_same(capsys):
    first, second = (
        run(capsys, "--json", *options.split())
        for options in (
            "--hardware rtx4090 --seq-len 16k --dtype BF16",
            "--hardware RTX_4090,4090 --seq-len 16384 --dtype bfloat16",
        )
    )
    assert first == second and first[0] == 0
    assert {record["seq_len"] for record in json.loads(first[1].out)} == {16384}


def test_table_and_errors(capsys):
    code, out = run(capsys, "--hardware", "a100", "--seq-len", "1024", "--dtype", "bfloat16")
    assert code == 0
    assert "flurka-relu" in out.out
    code, out = run(capsys, "--hardware", "a1000")
    assert code == 2
    assert "a100" in out.err
    code, out = run(
        capsys, "--hardware", "h100", "--mechanism", "low-rank", "--seq-len", "64", "--rank", "128"
    )
    assert code == 2
    assert "--rank" in out.err
    for sizes in (["--seq-len", "9" * 30], ["--seq-len", str(2**40), "--batch", str(2**40)]):
        code, out = run(capsys, "--hardware", "h100", *sizes)
        assert code == 2
        assert "--seq-len" in out.err and "2^" in out.err
    huge = ["--seq-len", str(2**40), "--batch", "2000", "--json"]
    code, out = run(capsys, "--hardware", "h100", "--mechanism", "full-math", *huge)
    assert code == 0
    assert (
        json.loads(out.out)[0]["peak_memory_bytes"] > 2**64
    )  # more bytes than a machine's integer counts
    code, out = run(capsys, "--hardware", "h100,h100-sxm", "--mechanism", "full-math", "--json")
    assert len(json.loads(out.out)) == 1  # two names of one target
    code, out = run(
        capsys,
        "--hardware",
        "h100",
        "--mechanism",
        "low-rank",
        "--seq-len",
        "64,4096",
        "--rank",
        "128",
        "--dtype",
        "bfloat16",
        "--json",
    )
    assert code == 0
    assert len(json.loads(out.out)) == 1
    assert "left out 1" in out.err


@pytest.mark.parametrize(
    ("mechanism", "products", "exponentials"),
    [("kernel-relu", 2, 0), ("kernel-favor", 2, 1), ("kernel-elu", 1, 1)],
)
def test_fused_feature_kernels_pay_for_what_their_ops_count(mechanism, products, exponentials):
    h100 = load("h100")
    case = Case(
        mechanism=mechanism,
        backend="fused",
        dtype="bfloat16",
        batch=8,
        num_heads=16,
        seq_len=16384,
        head_dim=64,
        num_features=64,
    )
    ops = [op for op in lower(case, "cuda") if op.kind == "attention"]
    assert len(ops) == 2
    for op, each in zip(ops, predict_ops(ops, model_of(h100), launch="none")):
        expected = attention_terms(
            h100, op.dtype, op.batch, op.rows, op.cols, op.inner, products=products, exponentials=exponentials,
            bytes_moved=op.bytes_read + op.bytes_written, launch="none",
        )  # fmt: skip
        as_softmax = attention_terms(
            h100, op.dtype, op.batch, op.rows, op.cols, op.inner, launch="none"
        )
        assert each.terms.kernel == pytest.approx(float(expected.kernel), rel=1e-6)
        busy, softmax_busy = (
            float(t.compute.item() + t.special.item()) for t in (each.terms, as_softmax)
        )
        # ReLU features spare the exponentials, elu + 1 a product; these kernels may still wait for
        # memory.
        assert (
            busy == pytest.approx(softmax_busy, rel=1e-4)
            if mechanism == "kernel-favor"
            else busy < 0.95 * softmax_busy
        )


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("mechanism", ["full-sdpa", "flurka-relu"])
def test_peak_memory_is_that_of_the_recorded_list(mechanism, backend):
    case = Case(
        mechanism=mechanism, level="layer", pass_="train", backend=backend, rank=64, num_features=64
    )
    (one,) = predict([case], load("h100"))
    assert one.peak_memory_bytes == peak_memory_bytes(case, "cuda")


def test_a_band_is_as_wide_below_as_above_and_holds_both_parts():
    low, high = uncertainty.interval(2.0, 0.3, 0.4)
    assert (low, high) == pytest.approx((2 * math.exp(-0.5), 2 * math.exp(0.5)))
    band = uncertainty.ratio_band(1.5, (0.4, 0.1), (0.0, 0.4))
    assert (band.low, band.high) == pytest.approx((1.5 * math.exp(-0.5), 1.5 * math.exp(0.5)))


def test_noise_of_shapes_adds_partly_in_quadrature():
    """Two ops of 1 s with a shape of 0.1: between 0.1 (one error for both) and 0.1 / sqrt(2)."""
    collected = uncertainty.Sum()
    for _ in range(2):
        band = {each: uncertainty.Band(scale=0.2, shape=0.1) for each in (False, True)}
        collected.add(np.array([1.0]), np.array([1.0]), band)
    scale, shape = collected.half_widths(np.array([2.0]))
    rho = uncertainty.SHAPE_CORRELATION
    assert 0 < rho < 1
    assert float(scale[0]) == pytest.approx(0.2)
    assert float(shape[0]) == pytest.approx(0.1 * math.sqrt((1 + rho) / 2))


def test_an_op_reaches_its_model_with_its_products_and_passes():
    """Attention: two products forward, five backward with the one computed again; softmax: three
    walks forward, two backward."""
    profile = load("h100")
    case = Case(mechanism="full-sdpa", seq_len=512, pass_="train", dtype="bfloat16")
    ops = [op for op in lower(case, "cuda") if op.kind == "attention"]
    for op, products in zip(ops, (2.0, 5.0), strict=True):
        found = predict_ops([op], model_of(profile), launch="none")[0].terms.kernel
        backward = products == 5
        moved = op.bytes_read + op.bytes_written
        by_hand = attention_terms(
            profile, "bfloat16", 8, 512, 512, 64, products=products, backward=backward,
            bytes_moved=moved, launch="none",
        )  # fmt: skip
        assert float(found[0]) == pytest.approx(float(by_hand.kernel), rel=1e-5)
    case = Case(mechanism="full-math", seq_len=8192, pass_="train")
    ops = [op for op in lower(case, "cuda") if op.kind == "softmax"]
    for op, passes in zip(ops, (3, 2), strict=True):
        found = predict_ops([op], model_of(profile), launch="none", cache="cold")[0].terms.kernel
        by_hand = softmax_terms(
            profile, 8 * 8192, 8192, bytes_read=op.bytes_read, bytes_written=op.bytes_written,
            passes=passes, l2_share=np.float32(0), launch="none",
        )  # fmt: skip
        assert float(found[0]) == pytest.approx(float(by_hand.kernel), rel=1e-2)
