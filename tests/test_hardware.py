"""Hardware profiles: every shipped figure is checked against physics, and a slip of the pen is an
error."""

import dataclasses
import math
import re
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flurka_bench.cli.targets import (
    calibrated_file,
    check_device,
    load_targets,
    own_profile,
)
from flurka_bench.cost.attention import AttentionConstants
from flurka_bench.cost.cpu import (
    REUSES,
    CpuConstants,
)
from flurka_bench.cost.elementwise import ElementwiseConstants
from flurka_bench.cost.fitting import Residual
from flurka_bench.cost.matmul import MatmulConstants
from flurka_bench.cost.matmul import constants_of as matmul_constants
from flurka_bench.cost.operators import ELEMENTWISE
from flurka_bench.cost.softmax import SoftmaxConstants
from flurka_bench.cost.terms import shipped_table
from flurka_bench.devices.probe import FoundDevice
from flurka_bench.hardware import (
    detect,
    load,
    names,
    write_calibration,
    write_profile,
)
from flurka_bench.hardware.basis import basis
from flurka_bench.hardware.detect import (
    detect_cpu,
    from_cuda_properties,
    recognise,
)
from flurka_bench.hardware.files import (
    FOLDER,
    parse_profile,
)
from flurka_bench.hardware.measured import (
    FAMILIES,
    LAYOUTS,
    Measured,
    check,
    quantities,
)
from flurka_bench.hardware.rows import ELEMENTWISE_OPS
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import DTYPES

REFERENCE = Path(__file__).parent.parent / "results" / "reference"

REQUIRED = {
    "p100-pcie-16gb", "v100-pcie-32gb", "v100-sxm2-32gb", "t4", "a10", "a40", "a100-pcie-40gb", "a100-sxm-40gb", "a100-pcie-80gb",
    "a100-sxm-80gb", "l4", "l40s", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000", "h100-pcie-80gb", "h100-sxm-80gb",
    "h200-sxm", "gh200-96gb", "b200-sxm", "b300-sxm", "gb200", "mi210", "mi250x", "mi300x", "apple-m1-max", "p4",
}  # fmt: skip


def ridge_flops_per_byte(profile, dtype):
    """Arithmetic intensity at which compute and memory peaks meet (Williams et al. 2009)."""
    return profile.peak_flops[profile.matmul_unit(dtype)] / profile.memory_bandwidth_bytes_per_s


def test_every_promised_target_ships():
    assert set(names()) >= REQUIRED


@pytest.mark.parametrize("name", names())
def test_profile_round_trips_and_is_physical(name):
    profile = load(name)
    assert profile.name == name
    again = parse_profile(write_profile(profile), "again")
    assert again == profile
    for key, figure in {**profile.datasheet, **profile.peaks}.items():
        assert figure.source in profile.sources, (
            f"{key} cites {figure.source}, which [sources] does not explain"
        )
    # The ridge point of every accelerator since Pascal lies between 5 and 1000 FLOPs a byte.
    for dtype in ("float32", "float16"):
        assert 5 < ridge_flops_per_byte(profile, dtype) < 1000
    # Matrix units do a power of two FLOPs a clock and SM (CDNA too): catches sparse figures and
    # wrong clocks.
    for unit in ("tensor.float16", "tensor.bfloat16", "tensor.tf32"):
        if unit in profile.peak_flops:
            rate = profile.peak_flops[unit] / (profile.num_sms * profile.tensor_clock_hz)
            assert rate == pytest.approx(2 ** round(math.log2(rate)), rel=0.03), (unit, rate)


def test_textbook_figures():
    a100 = load("a100")
    assert a100.name == "a100-sxm-80gb"
    assert a100.peak_flops["tensor.bfloat16"] == 312e12
    assert ridge_flops_per_byte(a100, "bfloat16") == pytest.approx(153, rel=0.01)
    assert load("h200").memory_bandwidth_bytes_per_s == 4.8e12
    assert load("b200").peak_flops["tensor.bfloat16"] == 2.25e15
    assert load("a100").matmul_unit("float32") == "vector.float32"
    assert load("v100").matmul_unit("bfloat16") == "vector.float32"


def test_no_two_targets_share_a_name():
    seen = {}
    for name in names():
        for key in (name, *load(name).aliases):
            assert key not in seen, f"{key} names both {seen[key]} and {name}"
            seen[key] = name


def test_unknown_name_offers_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'h100'"):
        load("h1000")
    with pytest.raises(RequestError, match="cannot read"):
        load("/nowhere/profile.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "memory_bandwidth_bytes_per_s = { value = 2.039e12",
            "memory_bandwidth_bytes_per_s = { value = 2039",
            "between",
        ),
        ("boost_clock_hz = { value = 1.41e9", "boost_clock_hz = { value = 1410", "between"),
        ('unit = "Hz"', 'unit = "MHz"', "must be in Hz"),
        ("num_sms = { value = 108", "num_sms = { value = 84", "SMs x lanes"),
        (
            '"vector.float32" = { value = 19.5e12',
            '"vector.float32" = { value = 39e12',
            "SMs x lanes",
        ),
        ("l2_bytes =", "l2_size =", "l2_bytes"),
        ("schema = 1", "schema = 2", "schema"),
        ('vendor = "nvidia"', "vendor = 3", "vendor"),
        ("num_sms = { value = 108", "num_sms = { value = true", "number"),
        ("num_sms = {", "num_sms = [", "not valid TOML"),
        ("schema = 1", "schema = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_slip_of_the_pen_is_an_error(old, new, message):
    text = write_profile(load("a100"))
    assert old in text
    with pytest.raises(RequestError, match=message):
        parse_profile(text.replace(old, new), "profile.toml")


def test_measured_numbers_stay_apart():
    profile = load("a100")
    launch = "microbenchmark.launch_eager_s"
    calibrated = profile.with_measured({launch: 2.2e-6}, {"rows": 20, "from": 'a "file"\n'})
    again = parse_profile(write_profile(calibrated), "again")
    assert again.measured == {launch: 2.2e-6}
    assert again.measured_about["from"] == 'a "file"\n'
    assert again.datasheet == profile.datasheet
    with pytest.raises(RequestError, match="finite"):
        profile.with_measured({launch: math.nan}, {})


def constants_read():
    """The figures of each family that the cost model reads from a profile."""
    return {
        "matmul": {field.name for field in fields(MatmulConstants)} - {"tiles"},
        "elementwise": {field.name for field in fields(ElementwiseConstants)},
        "softmax": {field.name for field in fields(SoftmaxConstants)},
        "attention": {field.name for field in fields(AttentionConstants)},
        "cpu": {field.name for field in fields(CpuConstants)} | {"residual"},
    }


def test_what_may_be_measured_is_what_the_cost_model_reads():
    read = constants_read()
    for family in FAMILIES:
        kind = family.segments[0][0]
        if kind != "microbenchmark":
            assert set(family.figures) == read[kind], kind
    assert set(ELEMENTWISE_OPS) == set(ELEMENTWISE.ops)
    assert {REUSES, "microbenchmark.launch_eager_s"} <= set(quantities("cpu"))


def test_every_shipped_constant_lies_in_the_range_of_what_may_be_measured():
    for kind, figures in shipped_table().items():
        for name, value in figures.items():
            check("gpu", f"{kind}.{name}", value)
    for field in fields(CpuConstants):
        check("cpu", f"cpu.float32.{field.name}", getattr(CpuConstants(), field.name))
    for profile in map(load, names()):
        for dtype, layout in product(DTYPES, LAYOUTS) if profile.kind == "gpu" else ():
            constants = asdict(matmul_constants(profile, dtype, layout))
            for name in constants.keys() - {"tiles", "residual"}:
                check("gpu", f"matmul.{dtype}.{layout}.{name}", constants[name])


def test_a_calibration_of_a_shipped_target_is_written_over_it():
    measured = {"microbenchmark.launch_eager_s": 2.2e-6, "matmul.float32.linear.split_s": 1e-6}
    for name in ("a10", "h200-sxm"):
        own = load(name).with_measured(measured, {"date": "2025-01-01"})
        text = write_calibration(own)
        assert len(text) < 400 and parse_profile(text, "again") == own
        assert parse_profile(write_profile(own), "whole") == own  # as it was written before
    # What does not ship, or differs in its datasheet, is written whole.
    for other in (
        dataclasses.replace(load("a10"), name="mine"),
        dataclasses.replace(load("a10"), title="x"),
    ):
        text = write_calibration(other.with_measured(measured, {}))
        assert "[datasheet]" in text and parse_profile(text, "again").measured == measured


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('base = "a11"', "base.*did you mean 'a10'"),
        ("base = 3", "base"),
        ('base = "a10"\ntitle = "x"', "beside base 'title'"),
        ('base = "a10"\nmeasured = 3', "measured must be a table"),
        ('base = "a10"\n[measured]\n"microbenchmark.launch_eager_s" = 1e9', "from 1e-08 to 0.01"),
    ],
)
def test_an_overlay_that_is_wrong_is_refused(line, why):
    with pytest.raises(RequestError, match=why):
        parse_profile(f"schema = 1\n{line}\n", "own.toml")


def test_measured_numbers_are_found_by_group():
    names = (
        "matmul.bfloat16.linear.split_s",
        "microbenchmark.matmul_flops_per_s.float32",
        "softmax.l2_low",
    )
    table = Measured(dict(zip(names, (1.0, 2.0, 3.0))))
    assert table.constants("matmul", "bfloat16", "linear") == {"split_s": 1.0}
    assert table.constants("matmul", "bfloat16") == {} and table.knows("matmul", "bfloat16")
    assert not table.knows("matmul", "float16") and not table.knows("soft")
    assert table.figure("matmul_flops_per_s.float32") == 2.0 and table.figure("x") is None
    assert dict(table.without("softmax")) == dict(zip(names[:2], (1.0, 2.0)))
    assert table.with_group(("softmax",), {"l2_high": 4.0}).constants("softmax") == {
        "l2_low": 3.0,
        "l2_high": 4.0,
    }
    assert table == dict(table) and list(table) == list(names)


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.toml")), ids=lambda path: path.stem)
def test_reference_profiles_are_read(path):
    profile = load(str(path))
    assert profile.is_calibrated and parse_profile(write_profile(profile), "again") == profile


def refused(kind, name, value):
    with pytest.raises(RequestError) as caught:
        check(kind, name, value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 350, str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_each_measured_figure_is_held_to_its_name_shape_and_range(kind):
    for place, (name, quantity) in enumerate(quantities(kind).items()):
        row = [*[1.0] * (quantity.columns - 1), quantity.high] if quantity.columns else None
        good = [row] if row else quantity.high
        check(kind, name, good)
        above, below = 1.01 * quantity.high, quantity.low - 0.01 * abs(quantity.high)
        for number in (above, below, math.nan, math.inf, -math.inf, 10**400, True, "1", None):
            wrong = [[*row[:-1], number]] if row else number
            assert repr(name) in refused(kind, name, wrong)
        for shape in (1.0, [], [1.0], [[1.0] * 4], [row, [1.0]]) if row else ([good], [], {}):
            assert repr(name)[1:-1] in refused(kind, name, shape)
        letter = 1 + place % (len(name) - 2)
        misspelt = name[:letter] + name[letter + 1 :]
        # the nearest of hundreds of names takes its time; bfloat16 without its b is another dtype
        if place % 20 == 0 and misspelt not in quantities(kind):
            assert "did you mean" in refused(kind, misspelt, good)
    assert "figure of a CPU" in refused("gpu", "cpu.float32.exp_cycles", 2.0)
    assert "quoted" in refused("gpu", "matmul", {"bfloat16": {}})


@pytest.mark.parametrize("value", ["-1.0", "1e9", "1e-9", "[0.5]", "0.0", "nan", "true"])
def test_a_measured_slip_in_a_file_names_the_file_and_the_range(value, tmp_path):
    name = "matmul.bfloat16.linear.compute_efficiency"
    text = write_profile(load("a10").with_measured({name: 0.8}, {}))
    path = tmp_path / "own.toml"
    path.write_text(text.replace('efficiency" = 0.8', f'efficiency" = {value}'))
    with pytest.raises(RequestError, match=r"compute_efficiency.*from 0\.05 to 2 \(ratio\)"):
        load(str(path))


def test_a_residual_that_no_fit_gives_is_refused_where_it_is_used():
    rows = [[0.0, 8.0, 8.0, 8.0, 900.0]]
    with pytest.raises(RequestError, match="residual"):
        Residual.from_rows(rows)(np.array([[0.0, 8.0, 8.0, 8.0]]))
    assert Residual.from_rows(rows)(np.array([[0.0, 30.0, 30.0, 30.0]])) < 20


def test_this_machine_is_what_calibrate_left_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not own_profile().is_calibrated and own_profile("no such GPU") is None
    calibrated = detect_cpu().with_measured({"cpu.float32.dispatch_s": 1e-6}, {"source": "a test"})
    calibrated_file(calibrated).write_text(write_profile(calibrated), encoding="utf-8")
    assert load_targets(["cpu", "cpu"]) == [calibrated] == [own_profile()]


def test_a_profile_must_be_of_the_kind_of_device_that_is_timed(capsys):
    cpu, gpu = (
        FoundDevice(device="cpu", kind="cpu"),
        FoundDevice(device="cuda:0", kind="cuda", name="Tesla T4"),
    )
    with pytest.raises(RequestError, match=r"h100-sxm-80gb is a GPU, and .* is a CPU \(cpu\)"):
        check_device(load("h100"), cpu)
    with pytest.raises(RequestError, match=r"cpu is a CPU, and .* is a GPU \(cuda:0\)"):
        check_device(own_profile(), gpu)
    check_device(load("t4"), gpu)
    check_device(own_profile(), cpu)
    assert not capsys.readouterr().err
    check_device(load("h100"), gpu)
    assert (
        "describes NVIDIA H100 SXM5 80 GB; the device here is Tesla T4" in capsys.readouterr().err
    )


def test_the_device_at_hand_is_recognised_by_exact_name_only():
    assert recognise("NVIDIA H100 PCIe").name == "h100-pcie-80gb"
    assert recognise("NVIDIA H100") is None
    cpu = detect_cpu()
    assert cpu.kind == "cpu" and parse_profile(write_profile(cpu), "again") == cpu
    unknown_gpu = from_cuda_properties(
        "NVIDIA RTX 5000 Ada Generation", (8, 9), 100, 2.55e9, 32e9, 72e6, 576e9, 102400
    )
    assert unknown_gpu.name == "nvidia-rtx-5000-ada-generation"
    assert unknown_gpu.peak_flops["vector.float32"] == pytest.approx(
        65.3e12, rel=0.01
    )  # NVIDIA's datasheet: 65.3 TFLOP/s
    assert unknown_gpu.peak_flops["tensor.bfloat16"] == pytest.approx(
        261.1e12, rel=0.01
    )  # 1044.4 sparse FP8 / 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("value = 108", "value = " + "9" * 400),  # beyond any float
        ("value = 108", "value = " + "9" * 5000),  # beyond what Python reads as decimal digits
        ("value = 108", "value = 0x" + "f" * 5000),  # beyond what Python writes as such
        ("num_sms = { value = 108", "num_sms = { " + "a" + ".a" * 3000 + " = 1, value = 108"),
        *[
            ("[datasheet]", f'[measured]\n"{name}" = {value}\n[datasheet]')
            for name in ("softmax.latency_s", "matmul.float32.linear.residual", "launch_s")
            for value in ("9" * 400, "[" * 3000 + "]" * 3000)
        ],
        ("[datasheet]\n", '[datasheet]\n"a\\nb" = 3\n'),
        ("schema = 1", "schema = true"),
        ("schema = 1", "schema = 0x" + "f" * 5000),
    ],
)
def test_values_without_end_are_an_error_of_one_short_line(old, new):
    text = write_profile(load("a100"))
    assert old in text
    with pytest.raises(RequestError) as caught:
        parse_profile(text.replace(old, new, 1), "profile.toml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# A calibrated one: every kind of table is in it. Long tables and most operators are cut, to be
# parsed in a millisecond.
SHIPPED_TEXT = re.sub(r"\], \[[^\n]*\]\]", "]]", (FOLDER / "t4.toml").read_text(encoding="utf-8"))
SHIPPED_TEXT = re.sub(
    r'\n"(elementwise\.[^a]|matmul\.float32\.linear|softmax|error)[^\n]*', "", SHIPPED_TEXT
)
WORDS = "[ ] { } = # nan inf -1 0 1e400 true [measured] 1979-05-27 é value unit 0x1f datasheet.peak_flops a.b=1 schema=1"
LONG = [
    "9" * 21,
    "9" * 400,
    "-" + "9" * 400,
    "9" * 5000,
    "0x" + "f" * 5000,
    "[" * 3000 + "]" * 3000,
    "a" + ".a" * 3000 + "=1",
]
TOKENS = st.sampled_from([*WORDS.split(), "\n", '"', "''", "\x00", "\ud7ff", '"\\n"', *LONG])
VALUE = re.compile(r"(?<= = )[^{\n,}]+")


@st.composite
def mangled(draw):
    text = SHIPPED_TEXT
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):  # a whole value, so that what stands there is still TOML
            start, stop = draw(
                st.sampled_from([found.span() for found in VALUE.finditer(text)] or [(0, 0)])
            )
        else:
            start = draw(st.integers(0, len(text)))
            stop = min(len(text), start + draw(st.sampled_from([0, 1, 3, 10, 40, 400])))
        text = (
            text[:start] + draw(st.one_of(TOKENS, st.text(max_size=6), st.just(""))) + text[stop:]
        )
    return text


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(mangled())
def test_mangled_profiles_give_clean_errors(text):
    try:
        profile = parse_profile(text, "mangled.toml")
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        assert parse_profile(write_profile(profile), "again") == profile


def test_what_a_target_rests_on_is_said():
    sheet = load("h100")
    assert (basis(sheet).kind, sheet.measured) == ("datasheet", {})
    assert basis(sheet).line.startswith("h100-sxm-80gb: datasheet only")
    default = basis(detect_cpu(2))
    assert default.kind == "default" and "no profile for this CPU was found" in default.line
    for on in (basis(sheet), default):
        assert "'flurka-bench calibrate'" in on.next_step
    own = sheet.with_measured(
        {
            "matmul.bfloat16.linear.compute_efficiency": 0.8,
            "attention.launch_graph_s": 2e-6,
            "microbenchmark.launch_eager_s": 1e-5,
        },
        {"date": "2026-01-02", "num_rows": 222, "source": "measured on it in 52 s"},
    )
    assert basis(own).kind == "calibration"
    assert basis(own).words == (
        "calibrated on 2026-01-02 with 222 rows (measured on it in 52 s): matmul bfloat16,"
        " attention; the rest is from the datasheet"
    )
    for name in names():
        kind = basis(load(name)).kind
        assert kind == ("calibration" if load(name).measured else "datasheet"), name


# Bits of the bus and gigabits a second and pin, as the vendors' specifications give them.
BUSES = {
    "p4": (256, 6.0), "t4": (256, 10.0), "a10": (384, 12.5), "a40": (384, 14.5), "l4": (192, 12.5),
    "l40s": (384, 18.0), "rtx-3090": (384, 19.5), "rtx-4090": (384, 21.0), "rtx-5090": (512, 28.0),
    "rtx-pro-6000": (512, 28.0), "p100-pcie-16gb": (4096, 1.43), "v100-pcie-32gb": (4096, 1.754),
    "v100-sxm2-32gb": (4096, 1.754), "a100-pcie-40gb": (5120, 2.43), "a100-sxm-40gb": (5120, 2.43),
    "a100-pcie-80gb": (5120, 3.024), "a100-sxm-80gb": (5120, 3.186), "h100-sxm-80gb": (5120, 5.23),
    "h100-pcie-80gb": (5120, 3.186), "b200-sxm": (8192, 8.0), "b300-sxm": (8192, 8.0),
    "gb200": (8192, 8.0), "h200-sxm": (6144, 6.25),
    "mi210": (4096, 3.2), "mi250x": (8192, 3.2), "mi300x": (8192, 5.2),
}  # fmt: skip


@pytest.mark.parametrize("name", BUSES)
def test_bandwidth_is_the_bus_times_the_data_rate(name):
    bits, gigabits = BUSES[name]
    expected = bits / 8 * gigabits * 1e9
    # 8 TB/s of Blackwell is quoted rounded
    tolerance = 0.025 if name in ("b200-sxm", "b300-sxm", "gb200") else 0.01
    assert load(name).memory_bandwidth_bytes_per_s == pytest.approx(expected, rel=tolerance)


CPUFREQ = "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"
CACHE = "/sys/devices/system/cpu/cpu0/cache/index{}/size"


@pytest.mark.parametrize(
    ("files", "clock_hz"),
    [
        ({CPUFREQ: "3600000\n", "/proc/cpuinfo": "cpu MHz\t\t: 2400.0\n"}, 3.6e9),  # in kHz
        ({"/proc/cpuinfo": "model name\t: X\ncpu MHz\t\t: 2400.5\n"}, 2.4005e9),
        ({CPUFREQ: "<unknown>\n"}, 2.5e9),
        ({}, 2.5e9),
    ],
)
def test_a_clock_is_read_in_the_units_of_its_file(monkeypatch, files, clock_hz):
    monkeypatch.setattr(detect, "_read", lambda path: files.get(path, ""))
    assert detect._clock_hz()[0] == pytest.approx(clock_hz)


@pytest.mark.parametrize(
    ("sizes", "bytes_"),
    [(("32K", "512K", "16M"), 16 * 2**20), (("48K", "1G"), 2**30), (("", "x", "9"), 8 * 2**20)],
)
def test_the_last_cache_is_read_in_binary_units(monkeypatch, sizes, bytes_):
    files = {CACHE.format(index): text for index, text in enumerate(sizes)}
    monkeypatch.setattr(detect, "_read", lambda path: files.get(path, ""))
    assert detect.last_level_cache_bytes()[0] == bytes_
