"""Faults, each caused for real: it becomes a record or a clear line, the sweep goes on, nothing is
lost or counted twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import run_suite

from flurka_bench.cases.suite import parse_suite
from flurka_bench.results import read_run
from flurka_bench.words.errors import RequestError

TESTS = Path(__file__).parent
FAKE = (sys.executable, str(TESTS / "fake_worker.py"))

SUITE = """
name = "faults"
axes = {mechanism = ["full-math", "kernel-relu", "flurka-relu"], seq_len = [128, 256, 512], rank = 32, num_features = 16}
[budget]
case_time = "0.05s"
timeout = "1.5s"
"""
NUM_CASES = 9

# What a user runs, with the fake worker in place of the real one.
PARENT = f"""
import sys
from flurka_bench.words.errors import FlurkaError
from flurka_bench.bench.kind import RunOptions
from flurka_bench.bench.loop import run
from flurka_bench.kinds.timing.kind import TimingPlan
from flurka_bench.cases.suite import load_suite
try:
    show = lambda event: print(event.kind, event.text, flush=True)
    options = RunOptions(out=sys.argv[2], worker_command={FAKE!r})
    run(TimingPlan(suite=load_suite(sys.argv[1])), options, on_event=show)
except FlurkaError as error:
    print("error:", error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Runs the suite under a plan of faults; gives its records by mechanism@seq_len."""

    def run(plan=None, text=SUITE, **options):
        monkeypatch.setenv("FLURKA_BENCH_FAKE", json.dumps(plan or {}))
        run_suite(parse_suite(text), **{"out": tmp_path / "run", "worker_command": FAKE, **options})
        records = read_run(tmp_path / "run").records
        assert len({entry["case_id"] for entry in records}) == len(records) == NUM_CASES
        return {f"{entry['mechanism']}@{entry['seq_len']}": entry for entry in records}

    return run


@pytest.fixture
def start(tmp_path):
    """Starts a parent process on the suite, in a session of its own."""
    processes = []
    (tmp_path / "faults.toml").write_text(SUITE)

    def begin(plan=None, out=tmp_path / "run"):
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path / "faults.toml"), str(out)],
            stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=TESTS.parent,
            env={**os.environ, "FLURKA_BENCH_FAKE": json.dumps(plan or {})},
        )  # fmt: skip
        processes.append(process)
        return process

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.stdout.close()
        process.wait()


def children_of(process):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    return [int(pid) for pid in found]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("fault", "status", "error"),
    [
        ("kill", "crashed", "killed by SIGKILL (often the system's out-of-memory killer)"),
        ("segfault", "crashed", "killed by SIGSEGV"),
        ("hang", "timeout", "no sign of life for 1.5 s"),
        ("raise", "crashed", "ValueError: shapes do not match"),
        ("wrong", "incorrect", "off by 7.5 tolerances"),
        ("nan", "incorrect", "NaN or Inf"),
        ("oom", "oom", "CUDA out of memory"),
        ("poison", "crashed", "an illegal memory access was encountered"),
        ("unsupported", "unsupported", "no such kernel here"),
    ],
)
def test_a_fault_is_pinned_to_its_case_and_the_others_are_measured(fake, fault, status, error):
    records = fake({"kernel-relu@256": fault})
    bad = records.pop("kernel-relu@256")
    assert bad["status"] == status and error in bad["error"] and "\n" not in bad["error"]
    assert bad["samples_s"] == [] and bad.get("median_s") is None  # no time is reported for it
    if fault == "oom":
        assert records.pop("kernel-relu@512")["status"] == "skipped"
    assert {entry["status"] for entry in records.values()} == {"ok"}
    shared = set(records["full-math@256"]["round_ids"]) & set(
        records["flurka-relu@256"]["round_ids"]
    )
    assert len(shared) >= 5  # the rest of the group is still timed together


def test_the_others_keep_their_samples_when_the_worker_dies(fake, monkeypatch):
    """Fifteen rounds of 0.1 s, then one kills the worker: the others are not raced again."""
    patient = SUITE.replace('"0.05s"', '"9s"').replace("[128, 256, 512]", "128")
    monkeypatch.setattr("test_faults.NUM_CASES", 3)
    plan = {"cost_s": 0.03, "late": 24, "kernel-relu": "kill"}
    records = fake(plan, text=patient)
    assert records["kernel-relu@128"]["status"] == "crashed"
    full, flurka = records["full-math@128"], records["flurka-relu@128"]
    for entry in (full, flurka):
        assert (entry["status"], entry["stop_reason"]) == ("ok", "worker_died")
        assert 5 <= len(entry["samples_s"]) == len(entry["round_ids"]) < 24
        assert entry["warmup_s"] and entry["peak_memory_bytes"] == 1500 and entry["num_calls"] == 1
        assert entry["reference"].startswith("flurka-relu") and entry["num_dropped"] == 0
    assert len(set(full["round_ids"]) & set(flurka["round_ids"])) >= 5


def test_every_case_of_a_group_may_fail(fake):
    records = fake(
        {
            "full-math": "segfault",
            "kernel-relu": "raise",
            "flurka-relu@512": "kill",
            "flurka-relu@128": "build-oom",
        }
    )
    assert [records[f"full-math@{n}"]["status"] for n in (128, 256, 512)] == ["crashed"] * 3
    assert (
        records["flurka-relu@512"]["status"] == "skipped"
    )  # 128 ran out of memory, 512 needs more


def test_larger_cases_of_an_oom_family_are_skipped_and_smaller_ones_are_not(fake):
    records = fake({"full-math@256": "build-oom"})
    assert (
        records["full-math@128"]["status"] == "ok" and records["full-math@256"]["status"] == "oom"
    )
    assert records["full-math@512"]["status"] == "skipped"
    assert records["full-math@512"]["error"].startswith(
        "skipped: larger than an OOM (full-math.core"
    )
    assert records["kernel-relu@512"]["status"] == records["flurka-relu@512"]["status"] == "ok"


def test_an_oom_is_remembered_when_the_run_goes_on(fake, tmp_path):
    fake({"full-math@256": "build-oom"})
    path = tmp_path / "run" / "measurements.jsonl"
    kept = [
        line for line in path.read_text().splitlines(keepends=True) if '"seq_len":512' not in line
    ]
    path.write_text("".join(kept))
    assert fake()["full-math@512"]["status"] == "skipped"


def test_host_memory_under_a_limit_is_an_oom_and_harms_nobody(fake):
    patient = SUITE.replace(
        'timeout = "1.5s"', 'timeout = "30s"'
    )  # filling memory beside other work is slow, and no hang
    records = fake({"full-math@128": "exhaust"}, text=patient, memory_limit_bytes=300 * 2**20)
    assert (
        records["full-math@128"]["status"] == "oom"
        and "MemoryError" in records["full-math@128"]["error"]
    )
    assert records["kernel-relu@128"]["status"] == "ok"


@pytest.mark.timeout(280)
def test_the_parent_killed_at_random_moments(start, tmp_path):
    rng = random.Random(0)
    path = tmp_path / "run" / "measurements.jsonl"
    started = time.monotonic()
    start(out=tmp_path / "whole").wait(timeout=60)
    whole_s = time.monotonic() - started  # moments are drawn from a run's length here and now
    kills, torn, before = 0, 0, b""
    workers = []
    while kills < 12:
        process = start()
        time.sleep(rng.uniform(0.1, 1.0) * whole_s)
        workers += children_of(process)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.wait()
        now = path.read_bytes() if path.exists() else b""
        assert now.startswith(before[: before.rfind(b"\n") + 1])  # what was whole stays as it was
        if now and rng.random() < 0.5:  # and as if the power had failed in the middle of a write
            cut = rng.randrange(1, 100)
            if not now[-cut:].strip().startswith(b"\n") and b"\n" not in now[-cut:-1]:
                path.write_bytes(now[:-cut])
                torn += 1
        before = path.read_bytes() if path.exists() else b""
        if before.count(b"\n") == NUM_CASES:  # complete: begin anew
            assert len(read_run(tmp_path / "run").records) == NUM_CASES
            for file in (tmp_path / "run").iterdir():
                file.unlink()
            before = b""
    assert torn > 0
    wait_for(lambda: not any(is_running(pid) for pid in workers))  # no worker outlives its parent
    process = start()
    process.communicate(timeout=60)
    records = read_run(tmp_path / "run").records
    assert (
        process.returncode == 0
        and len({entry["case_id"] for entry in records}) == len(records) == NUM_CASES
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_run_goes_on(start, tmp_path, number):
    process = start({"cost_s": 3e-3})
    wait_for(
        lambda: (
            (tmp_path / "run" / "measurements.jsonl").exists()
            and (tmp_path / "run" / "measurements.jsonl").read_bytes()
        )
    )
    workers = children_of(process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=20)
    assert (
        process.returncode == 130
        and "the same command goes on from there" in output.splitlines()[-1]
    )
    assert workers and not any(is_running(pid) for pid in workers)
    meta = read_run(tmp_path / "run").meta
    assert len(meta["sessions"]) == 1 and meta["wall_s"] > 0
    process = start()
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(read_run(tmp_path / "run").records) == NUM_CASES


def test_a_second_signal_ends_it_at_once(start, tmp_path):
    process = start({"flurka-relu@256": "hang"})
    wait_for(
        lambda: (
            (tmp_path / "run" / "measurements.jsonl").exists()
            and (tmp_path / "run" / "measurements.jsonl").read_bytes()
        )
    )
    workers = children_of(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    assert process.returncode == 130
    wait_for(lambda: not any(is_running(pid) for pid in workers))
    process = start()
    process.communicate(timeout=60)
    assert process.returncode == 0 and len(read_run(tmp_path / "run").records) == NUM_CASES


def test_two_runs_into_one_folder(start, tmp_path):
    first = start({"cost_s": 5e-3})
    wait_for(lambda: (tmp_path / "run" / "run.json").exists())
    second = start()
    output, _ = second.communicate(timeout=20)
    assert second.returncode == 2 and f"is being written by process {first.pid} on" in output
    first.communicate(timeout=60)
    assert first.returncode == 0 and len(read_run(tmp_path / "run").records) == NUM_CASES


def test_a_full_disk_ends_the_run_with_one_line_and_loses_nothing(fake, tmp_path):
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))
sys.argv = ["run", {str(tmp_path / "faults.toml")!r}, {str(tmp_path / "run")!r}]
{PARENT}"""
    (tmp_path / "faults.toml").write_text(SUITE)
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=TESTS.parent
    )
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert (
        "File too large" in process.stdout.splitlines()[-1]
        and "records are safe there" in process.stdout.splitlines()[-1]
    )
    safe = len(read_run(tmp_path / "run").records)
    assert 0 < safe < NUM_CASES and read_run(tmp_path / "run").warnings == []
    assert len(fake()) == NUM_CASES


@pytest.mark.parametrize("what", ["measurements.jsonl", "run.json", "", "replaced"])
def test_a_record_that_goes_to_no_folder_stops_the_run(fake, tmp_path, what):
    def remove(event):
        if event.kind != "record" or event.num_done != 2:
            return
        if what == "replaced":
            path = tmp_path / "run" / "measurements.jsonl"
            path.rename(tmp_path / "moved")
            path.write_bytes((tmp_path / "moved").read_bytes())
        elif what:
            (tmp_path / "run" / what).unlink()
        else:
            (tmp_path / "run").rename(tmp_path / "moved")

    verb = "replaced" if what == "replaced" else "removed"
    with pytest.raises(RequestError, match=f"was {verb} while the run was writing there") as caught:
        fake(on_event=remove)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_folder_removed_after_the_last_record_is_said(fake, tmp_path):
    def remove(event):
        if event.kind == "record" and event.num_done == NUM_CASES:
            (tmp_path / "run" / "measurements.jsonl").unlink()

    with pytest.raises(RequestError, match="was removed while"):
        fake(on_event=remove)


@pytest.mark.parametrize("plan", [{}, {"kernel-relu@256": "kill"}])
def test_a_worker_that_dies_while_it_starts_is_followed_by_another(fake, tmp_path, plan):
    """At the start, and where a death in mid-run asks for another worker."""
    failing = tmp_path / "failing"
    failing.write_text("" if plan else "xx")
    notes = []

    def show(event):
        if event.kind == "note":
            notes.append(event.text)
        elif event.kind == "record" and event.num_done == 1 and plan:
            failing.write_text("xx")

    records = fake({**plan, "failing_starts": str(failing)}, on_event=show)
    counts = [entry["status"] for entry in records.values()]
    assert counts.count("ok") == NUM_CASES - len(plan)
    again = "the worker did not start, trying again: the worker was killed by SIGKILL"
    assert len(notes) == 2 and all(note.startswith(again) for note in notes)


def test_hangs_and_restarts_are_not_charged_to_the_budget(fake, tmp_path):
    """Two hangs of 1.5 s each on a budget of 2.5 s: the other cases are measured all the same."""
    records = fake({"kernel-relu@128": "hang", "full-math@256": "hang"}, budget_s=2.5)
    statuses = [entry["status"] for entry in records.values()]
    assert statuses.count("timeout") == 2 and statuses.count("ok") == NUM_CASES - 2
    assert read_run(tmp_path / "run").meta["sessions"][0]["lost_s"] >= 3.0


def test_a_suspended_run_is_not_charged_for_it(start, tmp_path):
    """Stopped with its worker, as a container or Ctrl-Z does it, for longer than any time-out."""
    process = start()
    path = tmp_path / "run" / "measurements.jsonl"
    wait_for(lambda: path.exists() and path.read_bytes())
    pids = [process.pid, *children_of(process)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4.5)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    process.communicate(timeout=60)
    run = read_run(tmp_path / "run")
    assert process.returncode == 0
    assert [entry["status"] for entry in run.records] == ["ok"] * NUM_CASES
    assert 2.0 < run.meta["sessions"][0]["lost_s"] < 6.0


def test_a_folder_that_cannot_be_written(fake):
    # /proc refuses everybody, root included
    with pytest.raises(
        RequestError, match=r"cannot write to '/proc/flurka': .+ \(mend it or give another --out\)"
    ):
        run_suite(parse_suite(SUITE), out="/proc/flurka", worker_command=FAKE)


def test_a_read_only_mount(tmp_path):
    (tmp_path / "mount").mkdir()
    mount = f"mount -t tmpfs -o ro,size=1m tmpfs {tmp_path / 'mount'}"
    (tmp_path / "faults.toml").write_text(SUITE)
    inner = f'{mount} && exec {sys.executable} -c "$PARENT" {tmp_path / "faults.toml"} {tmp_path / "mount" / "run"}'
    process = subprocess.run(
        ["unshare", "-rm", "sh", "-c", inner],
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PARENT": PARENT},
    )
    if "unshare" in process.stderr or "mount:" in process.stderr:
        pytest.skip("no private mounts here")
    assert process.returncode == 2 and "Read-only file system" in process.stdout


def test_a_clock_that_steps_backwards(fake, tmp_path, monkeypatch):
    def backwards():
        backwards.now -= 3600.0
        return backwards.now

    backwards.now = 2e9
    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setenv("FLURKA_BENCH_FAKE_CLOCK", "backwards")  # the worker's, too
    records = fake()
    assert {entry["status"] for entry in records.values()} == {"ok"}
    assert all(0 < sample < 0.1 for entry in records.values() for sample in entry["samples_s"])
    assert 0 < read_run(tmp_path / "run").meta["wall_s"] < 60
