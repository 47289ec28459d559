"""``run`` and ``suites`` as a user calls them, with the real worker on tiny cases."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from running import run_suite

from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.leading import headline, leading
from flurka_bench.answers.speedup import speedups
from flurka_bench.bench.session import Summary
from flurka_bench.cases.suite import parse_suite
from flurka_bench.cli.run import (
    _draw,
    _print_answer,
)
from flurka_bench.cli.targets import profile_of_run
from flurka_bench.results import (
    RunWriter,
    read_run,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.units import (
    format_ratio,
    format_seconds,
)
from flurka_bench.words.verdict import RULE

REPOSITORY = Path(__file__).parents[1]
FAKE = (sys.executable, str(REPOSITORY / "tests" / "fake_worker.py"))

TINY = """
name = "tiny"
[axes]
level = ["core", "layer"]
mechanism = ["full-math", "low-rank-sdpa", "kernel-relu", "flurka-relu"]
seq_len = 128
num_heads = 2
rank = 32
num_features = 16
[budget]
time = "30s"
case_time = "0.2s"
"""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tiny.toml").write_text(TINY)

    def call(*arguments, timeout=100):
        return subprocess.run(
            [sys.executable, "-m", "flurka_bench", *arguments], capture_output=True, text=True, timeout=timeout, cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    return call


def test_a_run_is_predicted_again_from_the_profile_it_keeps(command, tmp_path):
    """The records' predictions come back, whatever profile this machine has by then."""
    text = TINY.replace('"core", "layer"', '"core"').replace('"low-rank-sdpa", "kernel-relu", ', "")
    (tmp_path / "small.toml").write_text(text)
    first = command("run", "small.toml", "--device", "cpu", "--out", "run")
    assert first.returncode == 0, first.stderr
    (kept,) = read_run(tmp_path / "run").meta["predicted_from"]
    assert hashlib.sha256(kept["profile"].encode()).hexdigest() == kept["sha256"]
    (tmp_path / f"hardware-{kept['hardware']}.toml").write_text("")  # and nobody reads this
    core = ("--level", "core", "--mechanism", "full-math")
    arguments = (*core, "--seq-len", "128", "--num-heads", "2")
    again = command("predict", "--hardware", "run", *arguments, "--json")
    assert again.returncode == 0, again.stderr
    (predicted,) = [
        record["predicted_s"]
        for record in read_run(tmp_path / "run").records
        if record["mechanism"] == "full-math"
    ]
    assert json.loads(again.stdout)[0]["seconds"] == pytest.approx(predicted)
    checked = command("validate", "run", "--hardware", "run", "--json")
    assert checked.returncode == 0, checked.stderr
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    del meta["predicted_from"]  # as older runs are
    (tmp_path / "run" / "run.json").write_text(json.dumps(meta))
    with pytest.raises(RequestError, match="keeps no hardware profile"):
        profile_of_run(tmp_path / "run")


def test_cases_that_were_not_reached_are_said_and_tried_again(tmp_path, capsys):
    run_suite(parse_suite(TINY), out=tmp_path / "run", budget_s=1e-6, worker_command=FAKE)
    assert read_run(tmp_path / "run").records == []
    summary = Summary(folder=tmp_path / "run", num_cases=8, num_before=0, wall_s=1.0, num_late=8)
    _print_answer(tmp_path / "run", summary, as_json=False)
    said = capsys.readouterr().out
    assert "8 not reached in the time budget" in said and "the same command goes on" in said
    _print_answer(tmp_path / "run", summary, as_json=True)
    assert json.loads(capsys.readouterr().out)["num_not_reached"] == 8


def test_a_run_from_the_command_line_and_again(command, tmp_path):
    first = command("run", "tiny.toml", "--device", "cpu", "--stages")
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "results" / "tiny-cpu"
    run = read_run(folder)
    assert [entry["status"] for entry in run.records] == ["ok"] * 8
    for entry in run.records:
        assert entry["error"] is None and entry["predicted_s"] > 0
        assert (
            entry["peak_memory_bytes"] > 0 and entry["median_s"] > 0 and entry["stamp"]["time"] > 0
        )
        assert set(entry["stages_s"]) & {"scores", "features", "compress", "key_value", "output"}
    assert (
        run.meta["environment"]["cpu"]["model"] and run.meta["device"] == run.records[0]["device"]
    )
    assert "[8/8] layer forward" in first.stderr  # plain lines where there is no terminal
    assert all(
        text in first.stdout
        for text in ("fastest  ", "strong form", "paper's form", "low-rank parent", "8 ok in")
    )
    second = command("run", "tiny.toml", "--device", "cpu", "--json")
    answer = json.loads(second.stdout)
    assert second.returncode == 0 and answer["statuses"] == {"ok": 8} and len(answer["cells"]) == 2
    assert len(read_run(folder).records) == 8


@pytest.mark.parametrize("mechanisms", ['"full-math"', '"full-math", "low-rank"'])
def test_a_run_without_flurka_has_an_end_too(command, tmp_path, mechanisms):
    axes = f"axes = {{mechanism = [{mechanisms}], seq_len = 64, rank = 8}}"
    (tmp_path / "tiny.toml").write_text(axes + '\nbudget = {time = "1s"}')
    result = command("run", "tiny.toml", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert " ok in" in result.stdout.splitlines()[-1]


def test_a_spent_time_budget_has_an_end_too(command, tmp_path):
    first = command("run", "tiny.toml", "--device", "cpu", "--budget", "1ms")
    assert first.returncode == 0, first.stderr
    assert read_run(tmp_path / "results" / "tiny-cpu").records == []
    assert "8 not reached in the time budget" in first.stdout
    second = command("run", "tiny.toml", "--device", "cpu", "--budget", "1min")
    assert second.returncode == 0 and "8 ok in" in second.stdout


def test_the_end_table_where_flurka_was_skipped(tmp_path, capsys):
    cases = parse_suite(
        TINY.replace("seq_len = 128", "seq_len = [128, 256]").replace('["core", "layer"]', '"core"')
    ).cases()
    with RunWriter(tmp_path) as writer:
        writer.start(
            {
                "suite": {"name": "s", "text": ""},
                "environment": {},
                "device": "d",
                "started": "now",
                "seed": 0,
            }
        )
        for number, case in enumerate(cases):
            late = case.seq_len == 256 and case.mechanism.startswith("flurka")
            times = [] if late else [(number + 1) * 1e-3] * 10
            writer.append({
                **case.as_record(), "case_id": case.case_id, "status": "skipped" if late else "ok", "device": "d", "seed": 0,
                "samples_s": times, "round_ids": list(range(len(times))), "median_s": times[0] if times else None,
            })  # fmt: skip
    _print_answer(tmp_path, Summary(folder=tmp_path, num_cases=8, num_before=8), as_json=False)
    told = capsys.readouterr().out
    assert "N=256 d=64\nfastest  full-math: 5 ms\nFLuRKA   not measured (its records" in told
    assert "N=128 d=64\nfastest  full-math: 1 ms; FLuRKA's speedup over it 0.25×" in told
    assert (
        "SLOWER\nFLuRKA   flurka-relu k=32 m=16: 4 ms; its speedup over" in told
        and RULE in " ".join(told.split())
    )


def test_the_map_goes_where_the_json_is_not(monkeypatch, capsys):
    monkeypatch.setattr(
        "flurka_bench.cli.plot.draw", lambda folders, kinds, **_: print(folders, kinds)
    )
    _draw(Path("a"), quiet=True)
    said = capsys.readouterr()
    assert "heatmap" in said.err and not said.out
    _draw(Path("a"), quiet=False)
    assert "heatmap" in capsys.readouterr().out


def test_a_dry_run_measures_nothing(command, tmp_path):
    planned = json.loads(
        command("run", "tiny.toml", "--device", "cpu", "--dry-run", "--json").stdout
    )
    assert len({case["case_id"] for case in planned["cases"]}) == planned["total"]["num_cases"] == 8
    assert all(case["peak_memory_bytes"] > 0 for case in planned["cases"])
    assert not (tmp_path / "results").exists()
    table = command("run", "tiny.toml", "--device", "cpu", "--dry-run").stdout
    assert "8 cases; one call of each" in table and "flurka-relu.layer.forward" in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikc"], "unknown suite 'quikc' (did you mean 'quick'?)"),
        (["quick", "--device", "cdua"], "unknown device 'cdua' (did you mean 'cuda'?)"),
        (["quick", "--device", "cuda:99"], "device 'cuda:99' is not here"),
        (["quick", "--budget", "fast"], "--budget must be a positive number with a unit"),
        (["quick", "--budget", "20"], "--budget needs a unit"),
        (["quick", "--memory-limit", "8"], "--memory-limit needs a unit"),
        (["error-quick"], "flurka-bench quality error error-quick"),
        (["quick", "--device", "cpu", "--hardware", "h100"], "and what is timed here is a CPU"),
        (["quick", "--device", "cpu", "--hardware", "cpu,h100"], "takes one target"),
        (["quick", "--device", "cpu", "--dry-run", "--plot"], "--plot does not apply"),
        (["quick", "--cache", "hot"], "unknown --cache 'hot'"),
        (["quick", "--seed", "-1"], "--seed"),
        (["broken.toml"], "not valid TOML: "),
        (
            ["tiny.toml", "--device", "cpu", "--out", "tiny.toml"],
            "is a file; --out must be a folder",
        ),
    ],
)
def test_a_wrong_request_is_one_line_and_code_2(command, tmp_path, arguments, message):
    (tmp_path / "broken.toml").write_text("axes = {")
    result = command("run", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 2 and "Traceback" not in result.stderr


def test_ctrl_c_leaves_a_run_that_goes_on(command, tmp_path):
    (tmp_path / "tiny.toml").write_text(
        TINY.replace('"2s"', '"60s"')
        .replace('"0.2s"', '"8s"')
        .replace("seq_len = 128", "seq_len = 512")
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "flurka_bench", "run", "tiny.toml", "--device", "cpu", "--out", "run"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "run.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and "the same command goes on from there" in error
        and "Traceback" not in error
    )
    again = command("run", "tiny.toml", "--device", "cpu", "--out", "run", "--budget", "20s")
    assert again.returncode == 0 and len(read_run(tmp_path / "run").records) == 8


def test_real_memory_exhaustion_is_an_oom(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = """
    axes = {mechanism = ["full-math", "flurka-relu"], seq_len = [256, 16384, 32768], num_heads = 2, rank = 32, num_features = 16}
    budget = {case_time = "0.1s"}
    """
    run_suite(parse_suite(text), out=tmp_path / "run", memory_limit_bytes=1000 * 2**20)
    statuses = {
        (entry["mechanism"], entry["seq_len"]): entry
        for entry in read_run(tmp_path / "run").records
    }
    assert (
        statuses["full-math", 16384]["status"] == "oom"
        and "allocate memory" in statuses["full-math", 16384]["error"]
    )
    assert statuses["full-math", 32768]["error"].startswith(
        "skipped: larger than an OOM (full-math.core.forward"
    )
    assert {
        entry["status"] for (mechanism, _), entry in statuses.items() if mechanism == "flurka-relu"
    } == {"ok"}
    assert statuses["full-math", 256]["status"] == "ok"


def test_the_line_of_a_workload_has_the_numbers_of_the_end_table_and_of_the_report():
    """Rounds drift and competitors miss some of them, so that medians and pairs differ."""
    rng = np.random.default_rng(3)
    drift = np.exp(np.cumsum(rng.normal(0, 0.3, 12)))
    records = synthetic.records(
        mechanisms=("full-math", "full-sdpa", "low-rank", "low-rank-sdpa", "kernel-relu", "kernel-elu",
                    "flurka-relu", "flurka-elu"),
        seq_lens=(256, 512, 2048), ranks=(64, 128), features=(16,), rounds=12,
    )  # fmt: skip
    for record in records:
        kept = sorted(rng.choice(12, size=rng.integers(6, 13), replace=False))
        record["samples_s"] = [record["samples_s"][i] * drift[i] for i in kept]
        record["round_ids"] = [int(i) for i in kept]
        record["median_s"] = float(np.median(record["samples_s"]))
    frame = pd.DataFrame(records)
    views = {name: speedups(frame, "flurka", name) for name in BASELINES}
    differ = 0
    for lead in leading(frame):
        group = tuple(one for one in records if one["seq_len"] == lead.workload["seq_len"])
        line = headline(group)
        times = {one["case_id"]: one["median_s"] for one in group}
        ours = lead.ours["case_id"]
        for side in (lead.fastest, lead.ours):
            assert side["seconds"] == times[side["case_id"]]
        own = next(one for one in group if one["case_id"] == ours)
        knobs = f" k={own['rank']} m={own['num_features']} {format_seconds(own['median_s'])} = "
        assert line.startswith("layer forward float32 b=1 h=8 N=") and knobs in line
        assert (lead.fastest["case_id"] == ours) == (lead.behind is None)
        assert lead.behind is None or lead.behind.ratio < 1
        for name, view in views.items():
            view = view[view["source"] == "measured"]
            at = view[view["subject_case_id"] == ours].iloc[0]
            over = lead.over[name, "measured"]
            assert [over.ratio, over.low, over.high] == list(at[["ratio", "low", "high"]])
            assert over.verdict == at["verdict"]
            if name.startswith("strong-"):
                words = f"{format_ratio(over.ratio)} {at['baseline_mechanism']} {at['verdict']}"
                assert words in line
            medians = times[at["baseline_case_id"]] / times[at["subject_case_id"]]
            differ += format_ratio(medians) != format_ratio(over.ratio)
    assert differ > 3  # or the test could not tell the two estimators apart


def test_the_line_of_a_workload_without_flurka_or_without_times():
    records = synthetic.records(
        mechanisms=("full-math", "kernel-relu"), seq_lens=(256,), ranks=(8,)
    )
    assert ": fastest kernel-relu project_first m=16, " in headline(tuple(records))
    failed = tuple(one | {"status": "oom", "samples_s": [], "median_s": None} for one in records)
    assert f"none of {len(records)} cases has a time" in headline(failed)
    assert headline(()) == "nothing to measure"


def test_suites_are_listed_and_shown(command):
    listed = json.loads(command("suites", "list", "--json").stdout)
    assert {"quick", "core", "layer", "paper"} <= {row["name"] for row in listed}
    shown = json.loads(command("suites", "show", "tiny.toml", "--json").stdout)
    assert shown["text"] == TINY and len(shown["cases"]) == 8
    assert "8 cases at 2 workloads on cpu" in command("suites", "show", "tiny.toml").stdout
