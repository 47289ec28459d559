"""The runner, its worker and its group: whole runs with fake cases, and the rules of sampling with
a fake clock."""

import itertools
import json
import math
import random
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from running import run_suite

from flurka_bench.bench import executor
from flurka_bench.bench.budget import LostTime
from flurka_bench.bench.kind import Place
from flurka_bench.bench.outcomes import is_out_of_memory, is_poisoned
from flurka_bench.bench.process import Worker
from flurka_bench.cases.case import Case
from flurka_bench.cases.suite import parse_suite
from flurka_bench.devices.probe import find_device
from flurka_bench.devices.timers import ProfilerTimer
from flurka_bench.kinds.timing.bench import case_of
from flurka_bench.kinds.timing.group import (
    GroupRun,
    Options,
    Tools,
)
from flurka_bench.kinds.timing.judging import (
    Peaks,
    figures,
    make_record,
)
from flurka_bench.kinds.timing.race import _look
from flurka_bench.lowering import lower
from flurka_bench.results import read_run
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import total

TESTS = Path(__file__).parent
FAKE = (sys.executable, str(TESTS / "fake_worker.py"))

SUITE = """
name = "fake"
axes = {mechanism = ["full-math", "kernel-relu", "low-rank", "flurka-relu"], seq_len = [128, 256], rank = 32, num_features = 16}
[budget]
case_time = "0.1s"
timeout = "20s"
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Runs the suite with a fake worker that follows a plan; gives (records by case name, summary,
    events)."""

    def run(plan=None, text=SUITE, **options):
        monkeypatch.setenv("FLURKA_BENCH_FAKE", json.dumps(plan or {}))
        events = []
        options = {
            "out": tmp_path / "run",
            "worker_command": FAKE,
            "on_event": events.append,
            **options,
        }
        summary = run_suite(parse_suite(text), **options)
        records = read_run(options["out"]).records
        return (
            {f"{entry['mechanism']}@{entry['seq_len']}": entry for entry in records},
            summary,
            events,
        )

    return run


def test_a_whole_run(fake, tmp_path):
    records, summary, events = fake()
    assert len(records) == 8 and {entry["status"] for entry in records.values()} == {"ok"}
    for entry in records.values():
        assert len(entry["samples_s"]) == len(entry["round_ids"]) >= 5
        assert (
            entry["median_s"] == pytest.approx(2e-5, rel=0.9) and entry["peak_memory_bytes"] == 1500
        )
        assert entry["device"] == "fake device" and entry["stop_reason"] in (
            "interval",
            "budget",
            "max_rounds",
        )
        assert entry["reference"].startswith("flurka-relu")
    meta = read_run(tmp_path / "run").meta
    assert (
        meta["suite"]["text"] == SUITE
        and meta["environment"] == {"fake": True}
        and meta["sessions"][0]["num_records"] == 8
    )
    assert 0 < meta["time_in_calls_s"] <= meta["wall_s"] == pytest.approx(summary.wall_s)
    assert [event.num_done for event in events if event.kind == "record"] == list(range(1, 9))
    assert {event.text.partition(": ")[2] for event in events if event.kind == "phase"} >= {
        "build",
        "check",
        "warm-up",
    }


def test_competitors_share_rounds_and_workloads_do_not(fake):
    records, _, _ = fake()
    rounds = {name: set(entry["round_ids"]) for name, entry in records.items()}
    for seq_len in (128, 256):
        reference = rounds[f"flurka-relu@{seq_len}"]
        for mechanism in ("full-math", "kernel-relu", "low-rank"):
            assert len(rounds[f"{mechanism}@{seq_len}"] & reference) >= 5
    assert not rounds["flurka-relu@128"] & rounds["flurka-relu@256"]


def test_the_same_call_goes_on_and_then_has_nothing_to_do(fake, tmp_path):
    fake()
    path = tmp_path / "run" / "measurements.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    records, summary, events = fake()
    assert (
        len(records) == 8
        and summary.num_before == 5
        and path.read_bytes().startswith(b"".join(lines[:5]))
    )
    assert "torn" in next(event.text for event in events if event.kind == "note")
    new = [set(entry["round_ids"]) for entry in read_run(tmp_path / "run").records[5:]]
    old = [set(entry["round_ids"]) for entry in read_run(tmp_path / "run").records[:5]]
    assert not set.union(*new) & set.union(*old)  # samples of two sessions are never pairs
    _, summary, _ = fake(worker_command=("/bin/false",))  # no worker is started for nothing
    assert summary.num_before == 8 and summary.wall_s == 0


def test_predictions_and_figures_stand_beside_the_measurement(fake):
    predicted = {
        "predicted_s": 1e-3,
        "predicted_low_s": 5e-4,
        "predicted_high_s": 2e-3,
        "bound": "memory",
    }
    records, _, _ = fake(predict=lambda case: predicted)
    entry = records["full-math@128"]
    assert (entry["predicted_s"], entry["bound"]) == (1e-3, "memory")
    assert entry["flops"] >= 4 * 128 * 128 * 64 * 8 and entry["bytes"] > 0


def test_faster_than_physics_is_invalid(fake):
    def peaks(case):
        flops = 1e3 if case.mechanism == "full-math" else 1e18
        return Peaks(
            flops_per_s=flops,
            bandwidth_bytes_per_s=1e3 if case.mechanism == "kernel-relu" else 1e18,
        )

    records, _, _ = fake(peaks=peaks)
    assert (
        records["full-math@128"]["status"] == "invalid"
        and "peak FLOPs" in records["full-math@128"]["error"]
    )
    assert (
        records["kernel-relu@128"]["status"] == "invalid"
        and "peak bandwidth" in records["kernel-relu@128"]["error"]
    )
    assert (
        records["low-rank@128"]["status"] == "ok"
        and records["low-rank@128"]["limited_by"] == "compute-bound"
    )


def test_a_memory_budget_skips_what_does_not_fit(fake):
    records, _, _ = fake(text=SUITE + 'memory = "3MB"\n')
    assert (
        records["full-math@256"]["status"] == "skipped"
        and "memory budget" in records["full-math@256"]["error"]
    )
    assert records["flurka-relu@128"]["status"] == "ok"


def test_a_time_budget_holds(fake):
    started = time.monotonic()
    _, summary, _ = fake(
        {"cost_s": 5e-3},
        text=SUITE.replace('case_time = "0.1s"', 'case_time = "60s"\ntarget = "0.0001%"'),
        budget_s=3.0,
    )
    assert 1.5 < summary.wall_s < 6 and time.monotonic() - started < 12


def test_what_a_spent_time_budget_leaves_no_time_for_is_skipped(fake, tmp_path):
    """Calls of 50 ms, each needed at least eight times, on a budget for about four of eight
    cases."""
    started = time.monotonic()
    records, summary, events = fake({"cost_s": 0.05}, budget_s=1.6)
    assert summary.wall_s < 2.5 and time.monotonic() - started < 12
    assert set(summary.statuses) == {"ok"} and 2 <= len(records) < 8
    assert summary.num_late == 8 - len(records)
    assert read_run(tmp_path / "run").meta["sessions"][-1]["num_late"] == summary.num_late
    for entry in records.values():
        assert entry["error"] is None and len(entry["samples_s"]) >= 1
    flops = {case.case_id: figures(case, "cpu").flops for case in parse_suite(SUITE).cases()}
    for seq_len in (128, 256):  # the slowest go first
        reached = [entry["flops"] for entry in records.values() if entry["seq_len"] == seq_len]
        missed = [
            count
            for case_id, count in flops.items()
            if f".n{seq_len}." in case_id
            and case_id not in {entry["case_id"] for entry in records.values()}
        ]
        assert max(reached, default=0) <= min(missed, default=math.inf)
    (note,) = [event.text for event in events if event.kind == "note"]
    assert "time budget of 1.6 s was spent" in note and "the same command goes on" in note
    before = (tmp_path / "run" / "measurements.jsonl").read_bytes()
    records, summary, _ = fake(budget_s=100)  # the next call measures what was not reached
    assert len(records) == 8 and summary.num_late == 0
    assert (tmp_path / "run" / "measurements.jsonl").read_bytes().startswith(before)


def test_an_older_runs_record_of_a_case_that_came_too_late_stays_final(fake, tmp_path):
    fake()
    path = tmp_path / "run" / "measurements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    old = json.loads(lines[-1]) | {"status": "skipped", "error": "skipped: time budget"}
    old |= {"samples_s": [], "round_ids": [], "median_s": None}
    path.write_text("".join(lines[:-1]) + json.dumps(old) + "\n")
    records, summary, _ = fake(worker_command=("/bin/false",))
    assert len(records) == 8 and summary.num_before == 8


def test_lost_time_is_the_gaps_that_the_runner_cannot_have_slept():
    now = [0.0]
    lost = LostTime(lambda: now[0])
    for step, seconds in ((0.01, 0.0), (1.0, 0.0), (2.5, 0.0), (12.0, 11.0), (1.0, 0.0)):
        now[0] += step
        assert lost.tick() == pytest.approx(seconds)
    assert lost.total_s == pytest.approx(11.0)


def test_figures_are_those_of_the_devices_own_kernels(fake):
    """Fused attention's gradients come tokens first on a CPU: three copies that a GPU lacks."""
    text = SUITE.replace('["full-math", "kernel-relu", "low-rank", "flurka-relu"]', '"full-sdpa"')
    text = text.replace("seq_len = [128, 256]", 'seq_len = [128, 256], pass = "train"')
    records, _, _ = fake(text=text)
    for case in parse_suite(text).cases():
        entry = records[f"full-sdpa@{case.seq_len}"]
        found = {
            kind: total(lower(case, kind), "bytes_read") + total(lower(case, kind), "bytes_written")
            for kind in ("cpu", "cuda")
        }
        assert entry["bytes"] == found["cpu"] != found["cuda"]


def test_what_the_predictions_rest_on_is_kept_with_the_run(fake, tmp_path):
    for source in ({"sha256": "one", "profile": "a"}, {"sha256": "two", "profile": "b"}):
        for _ in range(2):
            fake(predicted_from=source)
            path = tmp_path / "run" / "measurements.jsonl"
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    meta = read_run(tmp_path / "run").meta
    assert [source["sha256"] for source in meta["predicted_from"]] == ["one", "two"]
    assert [session["predicted_from"] for session in meta["sessions"]] == ["one"] * 2 + ["two"] * 2


def test_a_run_that_was_stopped_goes_on_with_a_budget_of_its_own(fake, tmp_path):
    fake({"cost_s": 0.01}, budget_s=20)
    lines = (tmp_path / "run" / "measurements.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "measurements.jsonl").write_text("".join(lines[:4]))
    meta = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(meta | {"wall_s": 1e6}))
    records, _, _ = fake({"cost_s": 0.01}, budget_s=20)
    assert len(records) == 8 and {entry["status"] for entry in records.values()} == {"ok"}


def test_another_suite_device_or_seed_is_refused(fake):
    fake()
    with pytest.raises(RequestError, match="another suite"):
        fake(text=SUITE.replace("128, 256", "128, 512"))
    with pytest.raises(RequestError, match="another seed"):
        fake(seed=3, text=SUITE)


def test_a_worker_that_cannot_start_says_why(fake):
    with pytest.raises(
        RequestError,
        match="did not start on cpu: the worker ended with status 1; it last said: no torch today"
        r" \(3 attempts\)",
    ):
        fake({"start": "fail"})
    with pytest.raises(RequestError, match="device 'cuda:7' is not here"):
        fake(device="cuda:7")


def test_a_worker_that_refuses_is_asked_once(fake, monkeypatch):
    started = []
    monkeypatch.setattr(
        executor, "Worker", lambda *arguments: started.append(1) or Worker(*arguments)
    )
    with pytest.raises(RequestError, match="device 'cuda:7' is not here"):
        fake(device="cuda:7")
    assert len(started) == 1


def test_runner_and_worker_agree_on_cases():
    for case in parse_suite(SUITE.replace("fake", "x")).cases():
        assert case_of(json.loads(json.dumps(case.as_record()))) == case


@pytest.mark.parametrize(
    ("error", "memory", "poisoned"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            True,
            False,
        ),
        (MemoryError(), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"
            ),
            True,
            False,
        ),
        (
            RuntimeError("CUDA error: operation not permitted when stream is capturing"),
            False,
            False,
        ),
        (RuntimeError("shapes cannot be multiplied"), False, False),
        (ValueError("out of memory"), False, False),
    ],
)
def test_errors_are_told_apart(error, memory, poisoned):
    assert (is_out_of_memory(error), is_poisoned(error)) == (memory, poisoned)


@pytest.mark.parametrize("request_", ["cpu", "auto"])
def test_the_cpu_is_always_found(request_, monkeypatch):
    monkeypatch.setattr("flurka_bench.devices.probe.cuda_device_names", list)
    assert find_device(request_).kind == "cpu"


def test_devices_by_name(monkeypatch):
    monkeypatch.setattr("flurka_bench.devices.probe.cuda_device_names", lambda: ["GPU A", "GPU B"])
    monkeypatch.setattr("flurka_bench.devices.probe._torch_is_cpu_only", lambda: False)
    assert find_device("auto").device == "cuda:0" and find_device("cuda:1").name == "GPU B"
    assert find_device("gpu") == find_device("cuda") == find_device("CUDA:0")
    assert find_device("GPU:1") == find_device("cuda:1")
    for wrong in ("gpu:²", "gpux", "gpu:"):
        with pytest.raises(RequestError, match="unknown device"):
            find_device(wrong)
    with pytest.raises(RequestError, match=r"cuda:0 \(GPU A\), cuda:1 \(GPU B\); use --device cpu"):
        find_device("cuda:2")
    with pytest.raises(RequestError, match=r"unknown device 'cdua' \(did you mean 'cuda'\?\)"):
        find_device("cdua")


class Clock:
    """A device whose calls take what they say, on a clock of its own."""

    name, is_queue, cache_bytes = "cpu", False, 0

    def __init__(self):
        self.now = 0.0

    def now_ns(self):
        return int(self.now * 1e9)

    def synchronize(self):
        pass

    def reading(self):
        from flurka_bench.devices.device import Reading

        return Reading()

    def peak_memory_bytes(self, call):
        call()
        return 1


class Timed:
    def __init__(self, clock, seconds, noise, log):
        self.clock, self.seconds, self.noise, self.log, self.random = (
            clock,
            seconds,
            noise,
            log,
            random.Random(seconds),
        )

    def check(self):
        self.run()

    def run(self):
        self.log.append(self.seconds)
        self.clock.now += self.seconds * (1 + self.noise * self.random.random())


def race(monkeypatch, costs, *, noise=0.001, **options):
    """Outcomes of a group whose mechanisms cost what ``costs`` says, on a fake clock."""
    clock, log, said = Clock(), [], []
    monkeypatch.setattr("flurka_bench.kinds.timing.group.time.monotonic", lambda: clock.now)
    tools = Tools(
        device=clock, build=lambda case, seed: Timed(clock, costs[case.mechanism], noise, log), resident_bytes=lambda built: 0,
        incorrect=(), unsupported=(),
    )  # fmt: skip
    names = ", ".join(f'"{name}"' for name in costs)
    cases = parse_suite(f"axes = {{mechanism = [{names}], rank = 8, num_features = 8}}").cases()
    GroupRun(tools, Options(**options), said.append, lambda index: None).measure(cases)
    outcomes = {
        cases[message["index"]].mechanism: message
        for message in said
        if message["say"] == "outcome"
    }
    return outcomes, log


def test_steady_competitors_stop_at_the_target(monkeypatch):
    outcomes, _ = race(
        monkeypatch,
        {"full-math": 0.1, "low-rank": 0.02, "flurka-relu": 0.01},
        budget_s=100,
        case_time_s=10,
    )
    assert {entry["stop_reason"] for entry in outcomes.values()} == {"interval"}
    assert all(entry["ratio_error"] < 0.02 for entry in outcomes.values())
    assert outcomes["flurka-relu"]["median_s"] == pytest.approx(0.01, rel=0.01)


def test_slow_baselines_leave_early_and_close_rivals_go_on(monkeypatch):
    costs = {"full-math": 1.0, "low-rank": 0.011, "flurka-relu": 0.01}
    outcomes, _ = race(monkeypatch, costs, budget_s=60, case_time_s=6, noise=0.1, target=1e-3)
    counts = {name: len(entry["samples_s"]) for name, entry in outcomes.items()}
    assert 5 <= counts["full-math"] < 15 and counts["low-rank"] > 100
    assert outcomes["full-math"]["stop_reason"] == "budget" and outcomes["full-math"][
        "reference"
    ].startswith("flurka")


def test_the_order_within_rounds_is_drawn_anew(monkeypatch):
    costs = {"full-math": 0.003, "low-rank": 0.002, "flurka-relu": 0.001}
    _, log = race(monkeypatch, costs, budget_s=3, case_time_s=100, noise=0.5, target=1e-4)
    timed = log[-300:]
    rounds = [tuple(timed[start : start + 3]) for start in range(0, 300, 3)]
    whole = {entry for entry in rounds if len(set(entry)) == 3}
    assert len(whole) == 6  # all orders of three


@pytest.mark.parametrize("every", [2, 1])
def test_throttled_samples_are_counted_and_do_not_count(monkeypatch, every):
    """Every second (or each) reading is throttled."""
    from flurka_bench.devices.device import Reading

    readings = itertools.count()
    monkeypatch.setattr(
        Clock,
        "reading",
        lambda clock: Reading(reasons=("hardware thermal",) if next(readings) % every == 0 else ()),
    )
    outcomes, _ = race(monkeypatch, {"flurka-relu": 0.01}, budget_s=3, case_time_s=1)
    entry = outcomes["flurka-relu"]
    if every == 1:
        assert (
            entry["status"] == "invalid"
            and "hardware thermal" in entry["error"]
            and "median_s" not in entry
        )
    else:
        assert (
            abs(entry["num_dropped"] - len(entry["samples_s"])) <= 1 and entry["num_dropped"] >= 3
        )
        assert len(entry["round_ids"]) == len(entry["samples_s"]) and all(
            round_id % 2 for round_id in entry["round_ids"]
        )
    assert len(entry["dropped_s"]) == len(entry["dropped_round_ids"]) == entry["num_dropped"]
    assert (
        entry["dropped_s"][0] == pytest.approx(0.01, rel=0.01)
        and "hardware thermal" in entry["drop_reason"]
    )
    assert every == 1 or not any(round_id % 2 for round_id in entry["dropped_round_ids"])


def test_all_samples_are_kept(monkeypatch):
    """What the calls took is in the outcome, each once: gate and first call apart, in order."""
    outcomes, log = race(monkeypatch, {"flurka-relu": 0.01}, budget_s=3, case_time_s=1, noise=0.3)
    entry = outcomes["flurka-relu"]
    assert (
        len(log) == 2 + len(entry["warmup_s"]) + len(entry["samples_s"]) and entry["num_calls"] == 1
    )
    assert 0 <= entry["overhead_fraction"] < 1e-3 and entry["dropped_s"] == []
    assert len(set(entry["warmup_s"] + entry["samples_s"])) == len(log) - 2


def test_the_slowest_are_skipped_and_rounds_are_cut_at_the_deadline(monkeypatch):
    costs = {"flurka-relu": 0.01, "low-rank": 0.02, "full-math": 1.0}
    outcomes, _ = race(monkeypatch, costs, budget_s=4, deadline_s=8, case_time_s=2)
    assert {entry["status"] for entry in outcomes.values()} == {
        "ok"
    }  # five rounds of full-math end in time
    costs["kernel-relu"] = 0.9
    outcomes, _ = race(monkeypatch, costs, budget_s=4, deadline_s=8, case_time_s=2)
    assert (
        outcomes["kernel-relu"]["error"] == "skipped: time budget"
        and outcomes["full-math"]["status"] == "ok"
    )
    outcomes, _ = race(monkeypatch, {"flurka-relu": 1.0}, budget_s=1, deadline_s=5, case_time_s=2)
    assert (
        len(outcomes["flurka-relu"]["samples_s"]) == 2
        and outcomes["flurka-relu"]["stop_reason"] == "budget"
    )


def test_no_flurka_is_no_trouble(monkeypatch):
    outcomes, _ = race(
        monkeypatch, {"full-math": 0.05, "full-sdpa": 0.02}, budget_s=10, case_time_s=2
    )
    assert {entry["reference"].partition(".")[0] for entry in outcomes.values()} == {"full-sdpa"}
    outcomes, _ = race(monkeypatch, {"full-math": 0.05}, budget_s=10, case_time_s=2)
    assert outcomes["full-math"]["stop_reason"] == "interval"


class Launched:
    """Two kernels on the simulated GPU; it may refuse to be captured in a graph."""

    def __init__(self, gpu, arithmetic_s, capturable):
        self.gpu, self.arithmetic_s, self.capturable = gpu, arithmetic_s, capturable

    def check(self):
        self.run()

    def run(self):
        if self.gpu.captured is not None and not self.capturable:
            self.gpu.captured = None
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        self.gpu.allocate(5000)
        self.gpu.kernel(self.arithmetic_s / 2)
        self.gpu.kernel(self.arithmetic_s / 2)
        self.gpu.free(5000)


def on_fake_gpu(monkeypatch, gpu, device, **options):
    """Outcomes by mechanism of three cases with two kernels each."""
    monkeypatch.setattr("flurka_bench.kinds.timing.group.time.monotonic", lambda: gpu.host_s)
    arithmetic = {"full-math": 2e-3, "kernel-relu": 3e-6, "flurka-relu": 1e-3}
    tools = Tools(
        device=device, build=lambda case, seed: Launched(gpu, arithmetic[case.mechanism], case.mechanism != "full-math"),
        resident_bytes=lambda built: 700, incorrect=(), unsupported=(),
    )  # fmt: skip
    said = []
    cases = parse_suite(
        'axes = {mechanism = ["full-math", "kernel-relu", "flurka-relu"], rank = 8, num_features = 8}'
    ).cases()
    GroupRun(
        tools, Options(budget_s=5, case_time_s=1, **options), said.append, lambda index: None
    ).measure(cases)
    return {
        cases[message["index"]].mechanism: message
        for message in said
        if message["say"] == "outcome"
    }


def test_a_gpu_case_carries_three_latencies(monkeypatch):
    from fake_cuda import open_fake

    outcomes = on_fake_gpu(monkeypatch, *open_fake(monkeypatch))
    assert {entry["status"] for entry in outcomes.values()} == {"ok"}
    assert outcomes["full-math"]["graph_s"] is None and outcomes["full-math"][
        "device_s"
    ] == pytest.approx(2e-3, rel=0.05)
    small = outcomes["kernel-relu"]  # its launches cost more than its work, which a graph hides
    assert small["median_s"] > 1.3 * small["graph_s"] and small["graph_s"] == pytest.approx(
        small["device_s"], rel=0.05
    )
    assert small["peak_memory_bytes"] == 5700 and small["timer"] == "eager, cold cache"


@pytest.mark.parametrize(("cache", "flushed"), [("cold", True), ("warm", False)])
def test_the_three_latencies_are_of_one_cache(monkeypatch, cache, flushed):
    """Graph and device time of a warm case must be warm too, or the verdict compares two things."""
    from fake_cuda import open_fake

    gpu, device = open_fake(monkeypatch)
    flushes = []
    flush = device.flush_cache
    monkeypatch.setattr(device, "flush_cache", lambda: (flushes.append(1), flush()))
    outcomes = on_fake_gpu(monkeypatch, gpu, device, cache=cache)
    assert (
        outcomes["flurka-relu"]["timer"] == f"eager, {cache} cache"
        and outcomes["flurka-relu"]["graph_s"] > 0
    )
    assert bool(flushes) is flushed


def test_throttled_samples_are_in_no_latency(monkeypatch):
    from fake_cuda import open_fake

    from flurka_bench.devices.device import Reading

    gpu, device = open_fake(monkeypatch)
    prepare = ProfilerTimer.prepare

    def throttle(timer, *arguments, **options):
        monkeypatch.setattr(device, "reading", lambda: Reading(reasons=("hardware thermal",)))
        return prepare(timer, *arguments, **options)

    monkeypatch.setattr(
        ProfilerTimer, "prepare", throttle
    )  # the first case's device time is the first thing throttled
    outcomes = on_fake_gpu(monkeypatch, gpu, device)
    assert outcomes["full-math"]["status"] == "ok" and outcomes["full-math"]["device_s"] is None
    assert outcomes["flurka-relu"]["graph_s"] is None


def test_the_runner_and_the_probe_import_no_torch():
    modules = "flurka_bench.kinds.timing.kind, flurka_bench.bench.loop, flurka_bench.devices.probe, flurka_bench.cli.run"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS.parent, check=True
    ).stdout
    assert output.strip() == "False"


def test_what_the_cache_may_hold_need_not_come_from_memory():
    """q, k, v of 8 x 1,024 x 64 float32 are 6.29 MB in a millisecond: too much for 1 GB/s, but not
    for a cache that may still hold 6 MB of them."""
    outcome = {"status": "ok", "median_s": 1e-3, "samples_s": [1e-3], "round_ids": [0]}
    peaks = Peaks(flops_per_s=1e18, bandwidth_bytes_per_s=1e9, margin=1.0)

    def status(cache_bytes):
        record = make_record(
            Case(mechanism="full-sdpa"),
            outcome,
            place=Place(kind="cpu", device="d", cache_bytes=cache_bytes),
            seed=0,
            predict=None,
            peaks=lambda case: peaks,
        )
        return record["status"]

    assert (status(0), status(6_000_000)) == ("invalid", "ok")


def test_nobody_leaves_before_the_first_look(monkeypatch):
    """However steady the first samples: an interval over fewer than 24 rounds is narrow by luck."""
    costs = {"low-rank": 0.02, "flurka-relu": 0.01}
    outcomes, _ = race(monkeypatch, costs, noise=1e-6, budget_s=100, case_time_s=10)
    assert {len(entry["samples_s"]) for entry in outcomes.values()} == {24}


def test_a_look_pairs_rounds_by_their_ids():
    """Twice the reference's time in every round both have: no width, whichever rounds were dropped."""
    times = [1.0, 1.5, 1.1, 1.9, 1.2, 1.7, 1.0, 1.4, 1.3, 1.6, 1.8, 1.05]

    def competitor(ids, factor):
        return SimpleNamespace(
            samples_s=[factor * times[each] for each in ids], round_ids=list(ids), ratio_error=0.0
        )

    slow = competitor(range(3, 12), 2.0)
    _look(slow, competitor(range(12), 1.0), Options())
    assert slow.ratio_error == pytest.approx(0, abs=1e-9)
