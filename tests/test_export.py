"""export: every format gives back what the records hold."""

import io
import json

import pandas as pd
import pytest
from test_compare import CASES, write_run
from typer.testing import CliRunner

from flurka_bench.cli.main import build_app
from flurka_bench.results import (
    FIELDS,
    read_run,
)
from flurka_bench.words.errors import RequestError


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "one", statuses={"full": "oom"})


def exported(*arguments):
    done = CliRunner().invoke(build_app(), ["export", *map(str, arguments)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.stdout


def check(rows, run):
    """Rows (samples as lists) equal the run's records, value by value."""
    records = read_run(run).records
    assert len(rows) == len(records) == len(CASES)
    for row, record in zip(rows, records):
        assert set(FIELDS) <= set(row)
        for name in FIELDS:
            expected = record.get(name)
            if expected is None:
                assert row[name] is None or row[name] != row[name]
            else:
                assert row[name] == expected, name


def test_json(run):
    check(json.loads(exported(run, "--format", "json")), run)


def test_csv(run, tmp_path):
    assert exported(run, "--out", tmp_path / "x.csv").strip() == str(tmp_path / "x.csv")
    frame = (
        pd.read_csv(tmp_path / "x.csv", dtype_backend="numpy_nullable")
        .astype(object)
        .where(lambda f: f.notna(), None)
    )
    rows = frame.to_dict("records")
    for row in rows:
        for name in ("samples_s", "round_ids"):
            row[name] = json.loads(row[name])
    check(rows, run)
    assert (
        "2048.0" not in (tmp_path / "x.csv").read_text()
    )  # whole numbers stay whole beside missing ones


def test_parquet(run, tmp_path):
    pytest.importorskip("pyarrow")
    exported(run, "--format", "parquet", "--out", tmp_path / "x.parquet")
    frame = pd.read_parquet(io.BytesIO((tmp_path / "x.parquet").read_bytes()))
    rows = frame.to_dict("records")
    for row in rows:
        row |= {name: list(row[name]) for name in ("samples_s", "round_ids")}
    check(rows, run)


def test_markdown(run):
    lines = exported(run, "--format", "markdown").splitlines()
    assert len(lines) == 2 + len(CASES)
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert "oom" in lines[-1]
    assert " ms to " in lines[2]


def test_several_runs_keep_their_identity(run, tmp_path):
    other = write_run(tmp_path / "two", seed=3)
    rows = json.loads(exported(run, other, "--format", "json"))
    assert [row["run"] for row in rows] == ["one"] * len(CASES) + ["two"] * len(CASES)
    assert len({row["run_id"] for row in rows}) == 2


def test_errors(run, tmp_path):
    with pytest.raises(RequestError, match=r"--out FILE\.parquet"):
        exported(run, "--format", "parquet")
    refused = CliRunner().invoke(build_app(), ["export", str(run), "--format", "cvs"])
    assert refused.exit_code == 2 and "did you mean 'csv'" in refused.output
    with pytest.raises(RequestError, match=r"cannot write .* Is a directory .*another --out"):
        exported(run, "--out", tmp_path)
    with pytest.raises(RequestError, match=r"not a run"):
        exported(tmp_path / "nowhere")
