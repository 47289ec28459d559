"""Fitting, calibration and validate: on synthetic truth that must be found again, and on real
timings where they are at hand."""

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from flurka_bench.cli.main import build_app
from flurka_bench.cost.calibration import calibrate
from flurka_bench.cost.fitting import (
    Rows,
    absolute_percentage_error,
    fit_log,
    order_right,
    read_rows,
    stratified,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.hardware import (
    load,
    write_profile,
)
from flurka_bench.hardware.files import parse_profile
from flurka_bench.words.errors import RequestError


def linear_rows(count=400, seed=0, dtype="bfloat16", op="linear"):
    random = np.random.default_rng(seed)
    columns = {
        name: np.exp(random.uniform(np.log(64), np.log(8192), count)).round() for name in "MNK"
    }
    columns["B"] = np.ones(count)
    return Rows(op=op, dtype=dtype, device="", columns=columns, seconds=np.ones(count))


def truth(rows, profile, measured, noise=0.0, seed=1):
    """The rows as a device with these measured numbers would time them."""
    true = profile.with_measured(measured, {})
    jitter = np.exp(noise * np.random.default_rng(seed).standard_normal(len(rows)))
    seconds = operator_of(rows).predict(true, rows, None) * jitter
    return Rows(
        op=rows.op, dtype=rows.dtype, device=rows.device, columns=rows.columns, seconds=seconds
    )


def test_fit_log_finds_a_plain_optimum_and_shrinks_to_the_prior():
    target = np.array([0.3, -0.2])
    mix = np.array([[1.0, 0.5], [0.2, 1.0], [1.0, -1.0], [0.5, 0.1]])
    found, covariance = fit_log(lambda x: mix @ (x - target), np.array([10.0, 10.0]))
    assert found == pytest.approx(target, abs=1e-3)
    assert (np.diag(covariance) > 0).all()
    held, _ = fit_log(lambda x: mix @ (x - target), np.array([1e-3, 1e-3]))
    assert np.abs(held).max() < 1e-2


def test_fit_log_shrugs_off_an_outlier():
    random = np.random.default_rng(0)
    noise = 0.02 * random.standard_normal(40)
    noise[7] = 3.0
    found, _ = fit_log(lambda x: x[0] - 0.1 + noise, np.array([1.0]))
    assert found[0] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("name", ["h200-sxm", "a100-pcie-80gb"])
def test_calibration_recovers_synthetic_truth(name):
    profile = load(name).with_measured({}, {})
    rows = linear_rows()
    shipped = operator_of(rows).constants(profile, rows, None)
    prefix = "matmul.bfloat16.linear."
    real = {
        prefix + "compute_efficiency": 0.88 * shipped["compute_efficiency"],
        prefix + "launch_graph_s": 1.2 * shipped["launch_graph_s"],
    }
    rows = truth(rows, profile, real, noise=0.01)
    picked = stratified(operator_of(rows).features(rows), 20, 3)
    fitted = calibrate(profile, rows.take(picked), None)
    held_out = np.setdiff1d(np.arange(len(rows)), picked)
    error = {}
    for label, each in (("before", profile), ("after", fitted)):
        predicted = operator_of(rows).predict(each, rows.take(held_out), None)
        error[label] = absolute_percentage_error(predicted, rows.seconds[held_out]).mean()
    assert error["after"] < 0.4 * error["before"]
    assert error["after"] < 3
    assert fitted.measured[prefix + "compute_efficiency"] == pytest.approx(
        real[prefix + "compute_efficiency"], rel=0.12
    )
    again = parse_profile(write_profile(fitted), "again")
    assert operator_of(rows).predict(again, rows, None) == pytest.approx(
        operator_of(rows).predict(fitted, rows, None), rel=1e-3
    )


def test_calibration_keeps_other_ops_and_the_datasheet():
    profile = load("h200-sxm").with_measured({"softmax.latency_s": 1e-6}, {})
    rows = truth(linear_rows(30), profile, {})
    fitted = calibrate(profile, rows, None)
    assert fitted.measured["softmax.latency_s"] == 1e-6
    assert (
        fitted.datasheet == profile.datasheet
        and fitted.peaks == profile.peaks
        and fitted.name == profile.name
    )


def test_stratified_rows_cover_the_shapes_and_follow_the_seed():
    features = np.log(np.random.default_rng(0).uniform(1, 1e4, (1000, 3)))
    one, same, other = (stratified(features, 20, seed) for seed in (0, 0, 1))
    assert len(set(one)) == 20 and (one == same).all() and (one != other).any()
    for column in features.T:  # no half of any size's range is left out
        assert 4 <= (column[one] > np.median(column)).sum() <= 16
    with pytest.raises(RequestError, match="asked for 20"):
        stratified(features[:5], 20, 0)


def test_order_right_counts_only_pairs_that_differ():
    measured = np.array([1.0, 1.1, 3.0, 9.0])
    assert order_right(measured, measured, 1.2) == 1.0
    assert order_right(1 / measured, measured, 1.2) == 0.0
    assert np.isnan(order_right(np.ones(3), np.ones(3), 1.2))


def write(path, header, rows):
    with gzip.open(path, "wt") if path.suffix == ".gz" else path.open("w") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


HEADER = ["device", "op", "dtype", "B", "M", "N", "K", "latency_ms"]


def test_read_rows_groups_and_keeps_places(tmp_path):
    path = write(tmp_path / "a.csv.gz", HEADER, [
        ["x", "linear", "bfloat16", 1, 8, 16, 32, 0.5],
        ["y", "linear", "bfloat16", 1, 8, 16, 32, 0.25],
        ["x", "bmm", "float32", 2, 8, 16, 32, 2],
    ])  # fmt: skip
    groups = {(rows.op, rows.device): rows for rows in read_rows(path)}
    assert set(groups) == {("linear", "x"), ("linear", "y"), ("bmm", "x")}
    assert groups["bmm", "x"].columns["line"].tolist() == [2]
    assert groups["linear", "y"].seconds.tolist() == [0.25e-3]


GOOD = ["h200-sxm", "linear", "bfloat16", "1", "8", "16", "32", "0.5"]
NUMBERS = ["", "\u00b2", "9" * 5000, "-1", "0", "nan", "inf", "1_0", "\u0664", "1e400", "0x10", " "]


@pytest.mark.parametrize("name", HEADER[2:])
def test_a_bad_cell_is_named_by_line_column_and_what_was_expected(tmp_path, name):
    for cell in [*NUMBERS, "abc", "9" * 900, "1.5" if name in "BMNK" else "1e-9"]:
        row = [cell if key == name else good for key, good in zip(HEADER, GOOD)]
        path = write(tmp_path / "bad.csv", HEADER, [GOOD, row])
        with pytest.raises(RequestError) as caught:
            read_rows(path)
        said = str(caught.value)
        assert "\n" not in said and len(said) < 300
        cells = "" if len(cell) > 1000 else f", column {name}"
        assert said.startswith(f"{path}, line 3{cells}: expected "), said


@pytest.mark.parametrize(("data", "says"), [
    (b"", "empty"),
    (b"\n\n", "empty"),
    (b"op,dtype,latency_ms\n", "no rows below its header"),
    (b"op;dtype;latency_ms\n1;2;3\n", "lacks the columns op, dtype"),
    (b"op,dtype,latency_ms\nadd,float32\n", "line 2: expected 3 columns as in the header, got 2"),
    (b"op,dtype,op,latency_ms\na,b,c,1\n", "line 1: .*'op' as columns 1 and 3"),
    (b'op,dtype,latency_ms\nadd,float32,1\nadd,"float32,1\n', "line 3: no CSV"),
    (b"op,dtype,latency_ms\nadd,float32,1\nadd,\xff,1\n", "line 3, character 5: .*0xff"),
    ("op,dtype,latency_ms\nadd,float32,1\n".encode("utf-16"), "line 1, character 1: .*UTF-8"),
    ("op,dtype,latency_ms\nadd,float32,1\n".encode("utf-16-le"), "line 1: .*zero byte"),
    (gzip.compress(b"op,dtype,latency_ms\n"), "name must end in .gz"),
    (b"op,dtype,latency_ms\n" + b"a" * 200_000, "line 2: a line of more than 100000"),
    (b'op,dtype,latency_ms\n"' + b"a\n" * 90_000, "line 2: no CSV: field larger"),
])  # fmt: skip
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, data, says):
    (tmp_path / "bad.csv").write_bytes(data)
    with pytest.raises(RequestError, match=says) as caught:
        read_rows(tmp_path / "bad.csv")
    assert "\n" not in str(caught.value) and "bad.csv" in str(caught.value)


def test_a_damaged_gzipped_file_is_refused_wherever_it_is_damaged(tmp_path):
    table = [[*GOOD[:4], str(size), *GOOD[5:]] for size in range(1, 200)]
    whole = write(tmp_path / "rows.csv.gz", HEADER, table).read_bytes()
    bad = tmp_path / "bad.csv.gz"
    for cut in range(0, len(whole), 7):
        bad.write_bytes(whole[:cut])
        with pytest.raises(RequestError, match=r"bad\.csv"):
            read_rows(bad)
    refused = 0
    for at in range(0, len(whole), 5):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            read_rows(bad)
        except RequestError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.9 * len(whole) / 5  # what is left is the header's time stamp


def test_a_byte_order_mark_and_line_ends_of_other_systems_change_nothing(tmp_path):
    text = write(tmp_path / "a.csv", HEADER, [GOOD, GOOD]).read_bytes()
    plain = read_rows(tmp_path / "a.csv")
    for data in (
        b"\xef\xbb\xbf" + text,
        text.replace(b"\r\n", b"\n"),
        text.replace(b"\r\n", b"\r"),
    ):
        (tmp_path / "b.csv").write_bytes(data)
        assert repr(read_rows(tmp_path / "b.csv")) == repr(plain)


def judged(path, *options):
    words = ["validate", str(path), "--hardware", "h200-sxm", *options]
    build_app("validate")(words, standalone_mode=False)


CASE_HEADER = ["mechanism", "dtype", "batch", "rank", "share_kv", "vocab", "latency_ms"]


def test_whole_cases_are_read_as_strictly(tmp_path, capsys):
    good = ["low-rank", "bfloat16", "4", "128", "true", "0", "1.0"]
    judged(write(tmp_path / "good.csv", CASE_HEADER, [good]), "--json")
    assert json.loads(capsys.readouterr().out)[0]["count"] == 1
    for name in CASE_HEADER:
        for cell in ["magic", ""] if name == "mechanism" else [*NUMBERS[1:], "abc"]:
            if (name, cell) in {("share_kv", "0"), ("vocab", "0")}:
                continue
            row = [cell if key == name else value for key, value in zip(CASE_HEADER, good)]
            with pytest.raises(RequestError) as caught:
                judged(write(tmp_path / "bad.csv", CASE_HEADER, [row]))
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_shapes_too_large_for_a_prediction_give_no_percentage(tmp_path):
    huge = ["h200-sxm", "linear", "bfloat16", *[str(2**40)] * 4, "0.5"]
    with pytest.raises(RequestError, match=r"bad\.csv, line 2: .*too large"):
        judged(write(tmp_path / "bad.csv", HEADER, [huge]))
    with pytest.raises(RequestError, match="too large"):
        fit_log(lambda shift: np.array([np.inf]), np.array([0.1]))


def run_validate(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flurka_bench", "validate", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_validate_prints_errors_by_op_and_writes_every_row(tmp_path):
    profile = load("h200-sxm").with_measured({}, {})
    rows = truth(linear_rows(50), profile, {})
    table = [
        [
            "h200-sxm",
            "linear",
            "bfloat16",
            *(int(rows.columns[name][i]) for name in "BMNK"),
            rows.seconds[i] * 1e3 * 1.25,
        ]
        for i in range(50)
    ]
    table.insert(10, ["b200-sxm", "linear", "bfloat16", 1, 8, 16, 32, 1.0])
    path = write(tmp_path / "rows.csv.gz", HEADER, table)
    done = run_validate(
        path,
        "--hardware",
        "h200",
        "--datasheet-only",
        "--json",
        "--predictions",
        tmp_path / "out.csv",
    )
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    assert record["op"] == "linear" and record["count"] == 50
    for key in ("mape", "median_ape", "p90_ape"):
        assert record[key] == pytest.approx(20.0, abs=0.01)  # predicted / measured = 1 / 1.25
    with (tmp_path / "out.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert len(written) == 51 and written[10]["predicted_ms"] == ""
    assert float(written[0]["predicted_ms"]) == pytest.approx(rows.seconds[0] * 1e3, rel=1e-4)


def test_validate_takes_whole_cases(tmp_path):
    header = [
        "device",
        "dtype",
        "level",
        "pass",
        "mechanism",
        "batch",
        "num_heads",
        "seq_len",
        "head_dim",
        "rank",
        "num_features",
        "latency_ms",
    ]
    rows = [
        ["h200-sxm", dtype, "core", "forward", name, 4, 8, 2048, 64, rank, features, 1.0]
        for dtype, name, rank, features in (
            ("bfloat16", "full-math", "", ""),
            ("bf16", "low-rank", 128, ""),
            ("bfloat16", "kernel-elu", "", 64),
            ("bfloat16", "kernel-elu", "", 16),
        )
    ]
    path = write(
        tmp_path / "cases.csv",
        header,
        [*rows, ["h200-sxm", "bfloat16", "core", "forward", "magic", 4, 8, 2048, 64, "", "", 1.0]],
    )
    done = run_validate(path, "--hardware", "h200_sxm", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [record["op"] for record in records] == ["full-math", "kernel-elu", "low-rank"]
    assert [(record["count"], record["dtype"]) for record in records] == [(1, "bfloat16")] * 3
    assert "kernel-elu has m = head_dim = 64 features, and the row says 16" in done.stderr
    assert "left out 1 rows: unknown mechanism 'magic'" in done.stderr


def test_validate_refuses_what_is_no_measurement(tmp_path):
    path = write(tmp_path / "none.csv", ["a", "b"], [[1, 2]])
    done = run_validate(path, "--hardware", "h200-sxm")
    assert done.returncode == 2 and "latency_ms" in done.stderr and done.stderr.count("\n") == 1
    assert run_validate(tmp_path / "absent.csv", "--hardware", "h200-sxm").returncode == 2
    assert run_validate(path, "--hardware", "h2000").returncode == 2


# Errors of the shipped constants on the rows that they were fitted to, in percent;
# docs/cost-model.md has the table with devices left out. A change of the model that costs a third
# more than today fails here.
SEEN = {
    ("linear_bf16", "h200-sxm"): 9, ("linear_bf16", "b200-sxm"): 9, ("linear_bf16", "a100-sxm-80gb"): 11.5,
    ("linear_bf16", "rtx-pro-6000"): 13, ("linear_fp16", "a100-sxm-80gb"): 9, ("linear_fp16", "a40"): 9.5,
    ("bmm", "a100-pcie-40gb"): 15, ("bmm", "v100-pcie-32gb"): 14, ("linear", "a100-pcie-40gb"): 13,
    ("linear", "v100-pcie-32gb"): 9,
}  # fmt: skip


@pytest.mark.parametrize(("file", "device"), SEEN)
def test_real_timings_stay_within_the_stated_error(shared_data, file, device):
    (rows,) = (
        rows
        for rows in read_rows(shared_data / "gpu_ops" / f"{file}.csv.gz")
        if rows.device == device
    )
    predicted = operator_of(rows).predict(load(device).with_measured({}, {}), rows, None)
    assert absolute_percentage_error(predicted, rows.seconds).mean() < SEEN[file, device]
    assert order_right(predicted, rows.seconds, 1.2) > 0.98


@pytest.mark.parametrize(
    ("file", "device", "limit"), [("linear_bf16", "b200-sxm", 8.5), ("bmm", "a100-pcie-40gb", 6.5)]
)
def test_twenty_rows_of_the_device_bring_the_error_down(shared_data, file, device, limit):
    (rows,) = (
        rows
        for rows in read_rows(shared_data / "gpu_ops" / f"{file}.csv.gz")
        if rows.device == device
    )
    operator = operator_of(rows)
    errors = []
    for seed in (0, 1):
        picked = stratified(operator.features(rows), 20, seed)
        held_out = np.setdiff1d(np.arange(len(rows)), picked)
        own = calibrate(load(device).with_measured({}, {}), rows.take(picked))
        errors.append(
            absolute_percentage_error(
                operator.predict(own, rows.take(held_out), None), rows.seconds[held_out]
            ).mean()
        )
    assert np.mean(errors) < limit


def test_a_word_among_numbers_is_named(tmp_path):
    path = tmp_path / "word.csv"
    path.write_text("op,dtype,M,latency_ms\nlinear,float32,8,0.1\nlinear,float32,8,abc\n")
    with pytest.raises(RequestError, match=r"line 3, column latency_ms: expected .*, got 'abc'"):
        read_rows(path)


def test_ops_of_one_file_need_not_share_their_columns(tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_text("op,dtype,M,H,latency_ms\nlinear,float32,8,,0.1\nadd,float32,,4,0.2\n")
    add, linear = read_rows(path)
    assert (
        add.op,
        "M" in add.columns,
        add.columns["H"].tolist(),
        add.columns["line"].tolist(),
    ) == ("add", False, [4.0], [1])
    assert (linear.op, "H" in linear.columns, linear.seconds.tolist()) == ("linear", False, [1e-4])
