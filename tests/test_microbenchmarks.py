"""Microbenchmarks and calibrate: rows have the published columns, the bound holds, the fit is
judged on unseen rows."""

import csv
import json
import math
import time
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from fake_cuda import open_fake
from running import Inline
from typer.testing import CliRunner

from flurka_bench.cli.main import build_app
from flurka_bench.cost.calibration import fit
from flurka_bench.devices import microbenchmarks
from flurka_bench.devices.device import (
    CpuDevice,
    Reading,
)
from flurka_bench.devices.microbenchmarks import (
    Calibration,
    knee,
    measure,
)
from flurka_bench.devices.shapes import (
    Probe,
    attention_probes,
    matmul_probes,
    probes_for,
    streaming_probes,
)
from flurka_bench.hardware import load
from flurka_bench.hardware.rows import SHAPES
from flurka_bench.words.errors import RequestError

SMALL = [
    Probe(op="linear", dtype="float32", shape={"B": 1, "M": 64, "N": 32, "K": 16}),
    Probe(op="bmm", dtype="float32", shape={"B": 2, "M": 64, "N": 32, "K": 16}),
    Probe(op="softmax", dtype="float32", shape={"B": 64, "H": 64}),
    Probe(
        op="attention",
        dtype="float32",
        shape={"batch": 1, "num_heads": 2, "seq_len": 64, "head_dim": 32},
    ),
    *(
        Probe(op=op, dtype="float32", shape={"B": 16, "H": 64})
        for op in ("add", "mul", "addu", "mulu", "relu", "exp", "tanh", "gelu")
    ),
]


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr(microbenchmarks, "_figure_probes", lambda torch, device, dtypes: ())


def test_rows_have_the_published_columns(tmp_path, no_figures):
    found = measure(CpuDevice(), probes=SMALL, budget_s=20.0)
    assert not found.left_out
    assert [row["op"] for row in found.rows] == [probe.op for probe in SMALL]
    assert all(0 < row["latency_ms"] < 1000 for row in found.rows)
    files = found.write_rows(tmp_path / "here")
    assert [path.name for path in files] == [
        "here.matmul.csv",
        "here.rows.csv",
        "here.attention.csv",
    ]
    for path, columns in zip(files, SHAPES.values()):
        with path.open() as stream:
            rows = list(csv.DictReader(stream))
        assert list(rows[0]) == ["device", "op", "dtype", *columns, "latency_ms"]


def test_figures_of_a_cpu():
    found = {}
    for _, measure_figure in microbenchmarks._figure_probes(torch, CpuDevice(), ["float32"]):
        found |= measure_figure(0.02)
    assert {
        "launch_eager_s",
        "copy_bandwidth_bytes_per_s",
        "matmul_flops_per_s.float32",
        "sustained_fraction",
    } <= set(found)
    assert found.pop("reuses_memory") in (0, 1)
    assert all(math.isfinite(value) and value > 0 for value in found.values())
    assert found["launch_eager_s"] < 1e-3
    assert found["sustained_fraction"] <= 1


def test_the_time_bound_holds_and_says_what_it_cut(no_figures):
    probes = [
        Probe(op="linear", dtype="float32", shape={"B": 1, "M": 512, "N": 512, "K": 512})
    ] * 300
    start = time.monotonic()
    found = measure(CpuDevice(), probes=probes, budget_s=2.0)
    assert time.monotonic() - start < 6.0
    assert len(found.rows) + len(found.left_out) == 300
    assert found.rows
    assert all(text.endswith("time bound") for text in found.left_out)


def test_what_cannot_run_is_left_out_and_named(monkeypatch, no_figures):
    real = microbenchmarks._operands

    def operands(torch, device, probe):
        if probe.op == "bmm":
            raise RuntimeError("CUDA out of memory\nmore lines")
        return real(torch, device, probe)

    monkeypatch.setattr(microbenchmarks, "_operands", operands)
    found = measure(CpuDevice(), probes=SMALL[:2], budget_s=2.0)
    assert [row["op"] for row in found.rows] == ["linear"]
    assert found.left_out == ["bmm float32 2 x 64 x 32 x 16: CUDA out of memory"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shapes_are_spread_and_repeatable(dtype):
    probes = matmul_probes(dtype, max_flops=2e9, count=30)
    assert probes == matmul_probes(dtype, max_flops=2e9, count=30)
    for op in ("linear", "bmm"):
        flops = np.array(
            [2 * math.prod(probe.shape.values()) for probe in probes if probe.op == op]
        )
        assert len(flops) == 30
        assert flops.max() <= 2e9
        assert flops.max() / flops.min() > 100
    assert len(attention_probes(dtype, max_flops=4e9, count=16)) == 16
    sweep = [
        p.num_bytes
        for p in streaming_probes(dtype, cache_bytes=2**25, large_bytes=10**9, count=14)
        if p.op == "add"
    ]
    assert len(sweep) == 14
    assert min(sweep) <= 2e6
    assert max(sweep) >= 1.9e8


def test_bytes_by_hand():
    assert SMALL[0].num_bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert SMALL[1].num_bytes == 4 * 2 * (64 * 32 + 32 * 16 + 64 * 16)
    assert SMALL[2].num_bytes == 8 * 64 * 64
    assert SMALL[3].num_bytes == 4 * 4 * 2 * 64 * 32
    assert Probe(op="add", dtype="float32", shape={"B": 2, "H": 5}).num_bytes == 120


def test_knee_of_the_cache_sweep():
    footprints = [1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6, 128e6]
    found = knee(footprints, [100e9, 110e9, 105e9, 100e9, 60e9, 12e9, 10e9, 10e9])
    assert found == {"cache_bandwidth_bytes_per_s": 110e9, "cache_capacity_bytes": 16e6}
    assert "cache_capacity_bytes" not in knee(footprints, [10e9] * 8)  # no knee shows


class FakeTensor:
    """Any operation on it is one kernel of 50 µs."""

    def __init__(self, gpu):
        self.gpu = gpu

    def op(self, *arguments, **options):
        self.gpu.kernel(50e-6)
        return self

    def numel(self):
        return 1000

    __matmul__ = __add__ = __mul__ = add_ = copy_ = op


@pytest.fixture
def fake_gpu(monkeypatch):
    gpu, device = open_fake(monkeypatch)
    torch, tensor = device.torch, FakeTensor(gpu)
    for name in ("randn", "ones", "zeros"):
        setattr(torch, name, lambda *shape, **options: tensor)
    for name in ("bmm", "softmax", "relu", "exp", "tanh", "add", "mul", "div"):
        setattr(torch, name, tensor.op)
    functional = types.SimpleNamespace(
        linear=tensor.op, gelu=tensor.op, scaled_dot_product_attention=tensor.op
    )
    torch.nn = types.SimpleNamespace(functional=functional)
    torch.inference_mode = nullcontext
    torch.float32, torch.float16, torch.bfloat16 = "float32", "float16", "bfloat16"
    torch.cuda.get_device_name = lambda index: "NVIDIA Fake"
    return gpu, device


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_on_a_gpu_every_row_is_of_one_call_by_its_dtypes_protocol(fake_gpu, dtype):
    _, device = fake_gpu
    probes = [Probe(op=probe.op, dtype=dtype, shape=probe.shape) for probe in SMALL]
    found = measure(device, dtypes=[dtype], probes=probes, budget_s=4.0)
    assert not found.left_out
    for row in found.rows:
        assert row["latency_ms"] == pytest.approx(50e-3, rel=0.15), (
            row
        )  # not six calls' time, not the launch's
    assert found.device == "NVIDIA Fake"
    assert found.figures["launch_graph_s"] > 0
    assert {probe.dtype for probe in probes_for(device, [dtype])} == {dtype}


def test_throttled_rows_are_no_rows(fake_gpu, monkeypatch):
    _, device = fake_gpu
    monkeypatch.setattr(device, "reading", lambda: Reading(reasons=("hardware thermal",)))
    found = measure(device, dtypes=["float32"], probes=SMALL[:1], budget_s=1.0)
    assert found.rows == []
    assert found.left_out == ["linear float32 1 x 64 x 32 x 16: throttled throughout"]


# The command, on rows made from a device that is the h200 but for known changes.


def synthetic_rows(profile, count=60):
    """Add rows as the model itself predicts them, a fifth slower, with 1 % noise."""
    from flurka_bench.cost.fitting import Rows
    from flurka_bench.cost.operators import operator_of

    rng = np.random.default_rng(0)
    columns = {
        "B": rng.integers(64, 100_000, count).astype(float),
        "H": rng.choice([128.0, 1024.0, 4096.0], count),
    }
    rows = Rows(
        op="add", dtype="float32", device=profile.name, columns=columns, seconds=np.ones(count)
    )
    seconds = (
        operator_of(rows).predict(profile, rows, None) * 1.2 * np.exp(rng.normal(0, 0.01, count))
    )
    return [
        {
            "device": profile.name,
            "op": "add",
            "dtype": "float32",
            "B": int(b),
            "H": int(h),
            "latency_ms": float(s) * 1e3,
        }
        for b, h, s in zip(columns["B"], columns["H"], seconds)
    ]


def invoke(*arguments):
    done = CliRunner().invoke(build_app(), ["calibrate", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_calibrate_from_rows_improves_what_it_did_not_see(tmp_path):
    Calibration(device="", rows=synthetic_rows(load("h200"))).write_rows(tmp_path / "rows")
    out = tmp_path / "mine.toml"
    done = invoke(
        "--from", tmp_path / "rows.rows.csv", "--hardware", "h200", "--out", out, "--json"
    )
    answer = json.loads(done.stdout)
    (fit,) = answer["fits"]
    assert (fit["op"], fit["num_fitted"], fit["num_held_out"]) == ("add", 20, 40)
    assert fit["before"] > 0.14
    assert fit["after"] < 0.05
    written = load(str(out))
    assert written.is_calibrated
    assert any(name.startswith("elementwise.add.") for name in written.measured)
    assert written.datasheet == load("h200").datasheet
    assert written.measured_about["num_rows"] == 60
    text = out.read_text()
    assert text.startswith('schema = 1\nbase = "h200-sxm"\n') and "[datasheet]" not in text


def test_calibrate_takes_only_this_devices_rows(tmp_path):
    rows = synthetic_rows(load("h200"))
    others = [{**row, "device": "t4"} for row in rows]
    Calibration(device="", rows=rows[:9] + others).write_rows(tmp_path / "x")
    answer = json.loads(
        invoke(
            "--from",
            tmp_path / "x.rows.csv",
            "--hardware",
            "h200",
            "--out",
            tmp_path / "o.toml",
            "--json",
        ).stdout
    )
    assert [(fit["num_fitted"], fit["num_held_out"]) for fit in answer["fits"]] == [(6, 3)]
    with pytest.raises(RequestError, match=r"no row is of 'v100.*h200.*, 't4'"):
        invoke(
            "--from", tmp_path / "x.rows.csv", "--hardware", "v100", "--out", tmp_path / "o.toml"
        )


def test_requests_that_are_wrong(tmp_path):
    with pytest.raises(RequestError, match="--from needs --hardware"):
        invoke("--from", tmp_path / "x.csv")
    refused = invoke("--device", "cpu", "--dtype", "float31")
    assert refused.exit_code == 2 and "--dtype" in refused.output
    with pytest.raises(RequestError, match="cannot read"):
        invoke("--from", tmp_path / "absent.csv", "--hardware", "h200")


def test_calibrate_measures_writes_rows_and_profile(tmp_path, monkeypatch):
    rows = [{**row, "device": "this CPU"} for row in synthetic_rows(load("h200"), 12)]
    measured = Calibration(
        device="this CPU",
        rows=rows,
        figures={"launch_eager_s": 3e-6},
        left_out=["bmm: time bound"],
        seconds=1.0,
    )
    monkeypatch.setattr(microbenchmarks, "measure", lambda device, **options: measured)
    monkeypatch.setattr("flurka_bench.kinds.calibration.Local", Inline)
    out = tmp_path / "here.toml"
    done = invoke("--device", "cpu", "--out", out)
    assert "left out: bmm: time bound" in done.stdout
    assert (tmp_path / "here.rows.csv").is_file()
    profile = load(str(out))
    assert profile.kind == "cpu"
    assert profile.measured["microbenchmark.launch_eager_s"] == 3e-6
    assert profile.measured_about["threads"] >= 1


def test_an_op_without_a_model_is_said_and_skipped():
    from flurka_bench.cost.fitting import Rows

    group = Rows(
        op="cumsum",
        dtype="float32",
        device="",
        columns={"B": np.ones(9), "H": np.ones(9)},
        seconds=np.ones(9),
    )
    profile, (found,) = fit(load("h200"), [group])
    assert profile.measured == load("h200").measured
    assert "unknown op 'cumsum'" in found.note
