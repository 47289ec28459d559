"""compare on synthetic runs whose truth is known."""

import copy
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from flurka_bench.answers.compare import (
    compare_runs,
    environment_differences,
)
from flurka_bench.cases.case import Case
from flurka_bench.cli.main import build_app
from flurka_bench.results import (
    RunWriter,
    read_run,
)

WORKLOAD = {"level": "layer", "seq_len": 2048, "num_heads": 4, "head_dim": 64}
CASES = {
    "flurka": Case(
        mechanism="flurka-relu", order="compress_first", rank=128, num_features=64, **WORKLOAD
    ),
    "low-rank": Case(mechanism="low-rank-sdpa", order="compress_first", rank=128, **WORKLOAD),
    "kernel": Case(mechanism="kernel-relu", order="project_first", num_features=64, **WORKLOAD),
    "full": Case(mechanism="full-sdpa", order="project_first", **WORKLOAD),
}
SECONDS = {"flurka": 10e-3, "low-rank": 15e-3, "kernel": 13e-3, "full": 80e-3}
ENVIRONMENT = {
    "captured": "2026-01-01", "cpu": {"model": "CPU X", "governor": "performance", "busy_fraction": 0.02, "load_1m": 0.3},
    "packages": {"torch": "2.13.0"}, "variables": {},
}  # fmt: skip


def write_run(folder, *, seconds=SECONDS, noise=0.01, num_rounds=20, seed=0, statuses=None, **meta):
    """A run folder with these true times: noise is per sample, and a drift common to a round comes
    on top."""
    rng = np.random.default_rng(seed)
    drift = np.exp(np.cumsum(rng.normal(0, 0.02, num_rounds)))
    with RunWriter(folder) as writer:
        writer.start(
            {"suite": {"name": "t", "text": "t"}, "device": "CPU X", "seed": 0, "run_id": str(folder),
             "started": "2026-01-01T00:00:00+0000", "environment": ENVIRONMENT, **meta}
        )  # fmt: skip
        for name, case in CASES.items():
            status = (statuses or {}).get(name, "ok")
            samples = (
                list(seconds[name] * drift * np.exp(rng.normal(0, noise, num_rounds)))
                if status == "ok"
                else []
            )
            writer.append(
                {**case.as_record(), "case_id": case.case_id, "status": status, "device": "CPU X", "seed": 0,
                 "samples_s": samples, "round_ids": list(range(len(samples))),
                 "median_s": float(np.median(samples)) if samples else None}
            )  # fmt: skip
    return folder


def scaled(**factors):
    return {
        name: value * factors.get(name.replace("-", "_"), 1.0) for name, value in SECONDS.items()
    }


@pytest.fixture
def cases_only(monkeypatch):
    """Speedups cost a second a run; where they are not what is tested they are left out."""
    monkeypatch.setattr("flurka_bench.answers.compare._speedup_changes", lambda a, b: [])


def compare(tmp_path, fail=None, before=None, **after):
    write_run(tmp_path / "a", **(before or {}))
    write_run(tmp_path / "b", **{"seed": 1, **after})
    return compare_runs(read_run(tmp_path / "a"), read_run(tmp_path / "b"), fail=fail)


def by_name(found):
    names = {case.case_id: name for name, case in CASES.items()}
    return {names[case.case_id]: case for case in found.cases}


def test_a_run_against_itself_is_the_same(tmp_path):
    folder = write_run(tmp_path / "a")
    found = compare_runs(read_run(folder), read_run(folder), fail=0.01)
    assert {case.verdict for case in found.cases} == {"SAME"}
    assert all(case.paired for case in found.cases)
    assert (found.differences, found.regressions, found.common_ratio) == ([], [], 1.0)
    assert {change.change for change in found.speedups} == {1.0}
    assert not any(change.flipped for change in found.speedups)


def test_a_slower_case_is_found_and_fails(tmp_path, cases_only):
    found = compare(tmp_path, fail=0.05, seconds=scaled(kernel=1.5))
    cases = by_name(found)
    assert cases["kernel"].verdict == "SLOWER"
    assert cases["kernel"].ratio == pytest.approx(1 / 1.5, rel=0.15)
    assert "kernel-relu" in found.regressions[0].case_id
    assert not cases["kernel"].paired  # two occasions


def test_a_faster_case_does_not_fail(tmp_path, cases_only):
    found = compare(
        tmp_path, fail=0.05, before={"noise": 0.001}, noise=0.001, seconds=scaled(flurka=0.5)
    )
    assert by_name(found)["flurka"].verdict == "FASTER"
    assert "flurka-relu" not in "".join(case.case_id for case in found.regressions)


def test_a_machine_half_as_fast_changes_no_speedup(tmp_path):
    """Every case is slower, and no speedup has changed: the interval of the change is that of
    pairs."""
    found = compare(tmp_path, seconds={name: 2 * value for name, value in SECONDS.items()})
    assert {case.verdict for case in found.cases} == {"SLOWER"}
    assert found.common_ratio == pytest.approx(0.5, rel=0.2)
    assert found.speedups
    for change in found.speedups:
        assert change.low < 1 < change.high
        assert change.change == pytest.approx(1, rel=0.03)


def test_a_flip_is_named(tmp_path):
    found = compare(tmp_path, seconds=scaled(flurka=2.0))
    flipped = {change.baseline for change in found.speedups if change.flipped}
    assert {"strong-kernel", "strong-low-rank", "best-other"} <= flipped
    change = next(change for change in found.speedups if change.baseline == "strong-kernel")
    assert (change.a, change.b) == (pytest.approx(1.3, rel=0.02), pytest.approx(0.65, rel=0.02))
    assert (change.verdict_a, change.verdict_b, change.verdict) == ("FASTER", "SLOWER", "SLOWER")
    full = next(change for change in found.speedups if change.baseline == "strong-full")
    assert not full.flipped
    assert full.verdict == "SLOWER"


def test_a_case_that_failed_is_a_regression_and_one_that_never_ran_is_not(tmp_path, cases_only):
    found = compare(
        tmp_path,
        fail=0.05,
        before={"statuses": {"full": "oom"}},
        statuses={"kernel": "crashed", "full": "oom"},
    )
    assert [case.case_id for case in found.regressions if case.status_b == "crashed"] == [
        CASES["kernel"].case_id
    ]
    assert by_name(found)["full"].verdict == "MISSING"
    assert not by_name(found)["full"].regressed


def test_few_samples_decide_by_their_median(tmp_path, cases_only):
    found = compare(
        tmp_path, fail=0.05, before={"num_rounds": 2}, num_rounds=2, seconds=scaled(low_rank=3.0)
    )
    case = by_name(found)["low-rank"]
    assert (case.verdict, case.regressed) == ("AMBIGUOUS", True)


def test_noise_alone_does_not_fail(tmp_path, cases_only):
    """Without a threshold nothing regresses; with one, an estimate beyond it whose interval holds 1
    does not either."""
    assert compare(tmp_path / "x", seconds=scaled(kernel=9.0)).regressions == []
    found = compare(tmp_path / "y", fail=0.001, before={"noise": 0.5}, noise=0.5)
    for case in found.cases:
        assert not (case.regressed and case.low < 1 < case.high)


def test_environment_differences_leave_out_what_always_differs():
    a = {
        "device": "CPU X",
        "seed": 0,
        "suite": {"name": "t", "text": "1"},
        "environment": ENVIRONMENT,
    }
    b = copy.deepcopy(a)
    b["environment"]["captured"], b["environment"]["cpu"]["load_1m"] = "2026-02-02", 0.9
    b["environment"]["cpu"]["busy_fraction"] = 0.05
    assert environment_differences(a, b) == []
    b["environment"]["cpu"] |= {"governor": "powersave", "busy_fraction": 0.6}
    b["environment"]["packages"]["torch"] = "2.6.0"
    b["environment"]["variables"]["OMP_NUM_THREADS"] = "1"
    b["suite"]["text"], b["seed"] = "2", 5
    found = {item.name: (item.a, item.b) for item in environment_differences(a, b)}
    assert found == {
        "suite": ("t", "t, another text"),
        "seed": ("0", "5"),
        "cpu.governor": ("performance", "powersave"),
        "cpu.busy_fraction": ("0.02", "0.6"),
        "packages.torch": ("2.13.0", "2.6.0"),
        "variables.OMP_NUM_THREADS": ("none", "1"),
    }


def test_a_run_without_a_recorded_environment_is_one_line():
    a = {"environment": ENVIRONMENT}
    assert [
        (item.name, item.a, item.b) for item in environment_differences(a, {"environment": {}})
    ] == [("environment", "recorded", "not recorded")]


def test_command(tmp_path):
    a, b = (
        write_run(tmp_path / "a"),
        write_run(tmp_path / "b", seed=1, seconds=scaled(kernel=1.5), version="9"),
    )
    runner = CliRunner()
    done = runner.invoke(build_app(), ["compare", str(a), str(b), "--fail", "5%"])
    assert done.exit_code == 1
    assert (
        done.stdout.index("version")
        < done.stdout.index("Cases, B against A")
        < done.stdout.index("Speedups of FLuRKA")
    )
    assert "kernel-relu" in done.stdout
    answer = json.loads(runner.invoke(build_app(), ["compare", str(a), str(b), "--json"]).stdout)
    assert len(answer["cases"]) == len(CASES)
    assert {"differences", "speedups", "only_a", "only_b", "regressions"} <= answer.keys()


def test_exit_codes(tmp_path, cases_only):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1, seconds=scaled(kernel=1.5))
    runner = CliRunner()
    assert runner.invoke(build_app(), ["compare", str(a), str(b), "--fail", "5%"]).exit_code == 1
    assert runner.invoke(build_app(), ["compare", str(a), str(b)]).exit_code == 0
    assert runner.invoke(build_app(), ["compare", str(a), str(a), "--fail", "5%"]).exit_code == 0
    done = runner.invoke(build_app(), ["compare", str(a), str(b), "--fail", "500%", "--json"])
    assert done.exit_code == 2 and "at most 100%" in done.output


@pytest.mark.parametrize(
    ("statuses", "folder", "words"),
    [
        ({}, "empty", "no case in common"),
        (dict.fromkeys(CASES, "oom"), "b", "none of the 4 cases in common"),
    ],
)
def test_a_gate_that_compared_nothing_fails(tmp_path, cases_only, statuses, folder, words):
    a = write_run(tmp_path / "a", statuses=statuses)
    write_run(tmp_path / "b", seed=1)
    with RunWriter(tmp_path / "empty") as writer:
        writer.start({"suite": {"name": "t", "text": "t"}, "device": "CPU X", "seed": 0,
                      "run_id": "e", "started": "now", "environment": ENVIRONMENT})  # fmt: skip
    arguments = ["compare", str(a), str(tmp_path / folder)]
    done = CliRunner().invoke(build_app(), [*arguments, "--fail", "5%"])
    assert done.exit_code == 1 and words in done.stderr and "nothing was compared" in done.stderr
    assert CliRunner().invoke(build_app(), arguments).exit_code == 0  # without a gate: an answer
    done = CliRunner().invoke(build_app(), [*arguments, "--fail", "5%", "--json"])
    assert done.exit_code == 1 and words in json.loads(done.stdout)["nothing_compared"]
