"""The run loop by itself: a plan that searches, a budget that several places share, what a death
leaves."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from running import Inline

from flurka_bench.bench import loop
from flurka_bench.bench.budget import Budget
from flurka_bench.bench.kind import Allowance, Group, Kind, Place, Plan, RunOptions
from flurka_bench.cases.suite import parse_suite
from flurka_bench.kinds.timing.kind import TimingPlan
from flurka_bench.results import Field, Form, read_run
from flurka_bench.words.errors import Interrupted, RequestError

FORM = Form(
    kind="toy",
    command="toy",
    fields={
        "schema": Field(kind="count", meaning="version"),
        "case_id": Field(kind="text", meaning="id"),
        "status": Field(kind="text", meaning="how it ended"),
        "at": Field(kind="count", meaning="where"),
        "above": Field(kind="flag", meaning="of the boundary"),
        "error": Field(kind="text", meaning="what went wrong"),
    },
)


class ToyBench:
    boundary, fails_at = 37, None

    def __init__(self):
        self.hello, self.calls_s = {"device": "toy", "environment": {}}, {"toy": 0.0}
        self.seen = []

    def run(self, group, say, beat):
        for index, at in enumerate(group["at"]):
            if at == self.fails_at:
                raise Interrupted("stopped")
            self.seen.append(at)
            say({"say": "outcome", "index": index, "status": "ok", "above": at > self.boundary})


@dataclass
class ToyCase:
    at: int

    @property
    def case_id(self):
        return f"at-{self.at}"


class Bisection(Plan):
    """Between 0 and 64, where does it begin to be above? Each case follows from the records."""

    kind = Kind(form=FORM, module="", open=lambda device: BENCH)
    suite_meta, seed = {"name": "toy", "text": ""}, 0

    def cases(self, history):
        found = {record["at"]: record["above"] for record in history.records()}
        low = max((at for at in found if not found[at]), default=None)
        high = min((at for at in found if found[at]), default=None)
        wanted = [*found] or [0, 64]
        if low is not None and high is not None and high - low > 1:
            wanted.append((low + high) // 2)
        return [ToyCase(at) for at in wanted]

    def groups(self, cases, place):
        yield Group(title="toy", cases=tuple(cases), queue=tuple(cases))

    def message(self, cases, allowance, before):
        return {"at": [case.at for case in cases]}

    def record(self, case, outcome, place, first_round):
        return {"case_id": case.case_id, "at": case.at, **outcome}


BENCH = ToyBench()


def search(folder):
    BENCH.seen = []
    loop.run(Bisection(), RunOptions(out=folder), executor=Inline)
    return BENCH.seen


def test_a_plan_may_follow_from_the_records(tmp_path, monkeypatch):
    """Cases come of what was seen, and a run that was stopped repeats no decision and no case."""
    whole = search(tmp_path / "whole")
    assert whole == [0, 64, 32, 48, 40, 36, 38, 37]
    monkeypatch.setattr(ToyBench, "fails_at", 40)
    with pytest.raises(Interrupted):
        search(tmp_path / "part")
    assert BENCH.seen == whole[:4]
    monkeypatch.setattr(ToyBench, "fails_at", None)
    assert search(tmp_path / "part") == whole[4:]
    assert search(tmp_path / "part") == []
    assert [each["at"] for each in read_run(tmp_path / "part", FORM).records] == whole


def test_a_refused_folder_keeps_its_accounts(tmp_path):
    """Another device's run is refused, and nothing is added to its sessions."""
    search(tmp_path)
    path = tmp_path / "run.json"
    meta = json.loads(path.read_text()) | {"device": "another"}
    path.write_text(json.dumps(meta))
    lines = (tmp_path / "measurements.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "measurements.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(RequestError, match="another device"):
        search(tmp_path)
    assert json.loads(path.read_text()) == meta


# --- The budget ---


@pytest.fixture
def clock():
    return SimpleNamespace(now=100.0)


def begun(clock, total_s, num_places=1):
    budget = Budget(total_s, num_places=num_places, now=lambda: clock.now)
    budget.begin()
    return budget


def wait(clock, budget, seconds):
    """Time that passes while the parent wakes every second."""
    for _ in range(round(seconds)):
        clock.now += 1.0
        budget.lost.tick()


def test_a_share_is_of_what_is_left_and_of_the_groups_that_wait(clock):
    budget = begun(clock, 80.0)
    first = budget.share(1.0, waiting=4.0)
    assert first.allowance() == Allowance(share_s=20.0, deadline_s=40.0)
    wait(clock, budget, 8)
    assert first.allowance() == Allowance(share_s=12.0, deadline_s=32.0)
    budget.close(first)
    second = budget.share(1.0, waiting=3.0)  # what the first left over is for the others
    assert second.allowance() == Allowance(share_s=24.0, deadline_s=48.0)
    budget.close(second)
    wait(clock, budget, 60)
    last = budget.share(1.0, waiting=1.0)  # no more than twice its share, nor than there is
    assert last.allowance() == Allowance(share_s=12.0, deadline_s=12.0)


def test_what_is_promised_to_one_place_is_not_given_to_another(clock):
    budget = begun(clock, 60.0, num_places=2)
    shares = [budget.share(1.0, waiting=waiting) for waiting in (3.0, 2.0, 1.0)]
    assert [share.left_s() for share in shares] == [40.0, 40.0, 40.0]  # 120 s of two places
    assert budget.share(1.0, waiting=1.0).left_s() == 0.0
    wait(clock, budget, 10)
    budget.close(shares[0])  # 50 s at each of two places, less 30 s each that two groups still have
    assert budget.share(1.0, waiting=1.0).left_s() == pytest.approx(40.0)


def test_lost_time_is_not_charged(clock):
    budget = begun(clock, 50.0)
    share = budget.share(1.0, waiting=1.0)
    clock.now += 31.0  # suspended: the parent sleeps a second at most
    assert share.left_s() == pytest.approx(49.0) and budget.lost.total_s == pytest.approx(30.0)


def test_without_a_bound_shares_are_infinite(clock):
    budget = begun(clock, None, num_places=3)
    for _ in range(2):
        allowance = budget.share(1.0, waiting=7.0).allowance()
        assert allowance == Allowance(share_s=math.inf, deadline_s=math.inf)


# --- What the timing plan makes of its groups, in whatever order they end ---


def timing_plan(
    text='axes = {mechanism = ["full-math", "flurka-relu"], rank = 8, num_features = 8}',
):
    return TimingPlan(suite=parse_suite(text))


def outcome(rounds, dropped=()):
    return {
        "status": "ok", "samples_s": [0.5] * len(rounds), "median_s": 0.5,
        "round_ids": list(rounds), "dropped_round_ids": list(dropped),
    }  # fmt: skip


def test_rounds_are_the_runs_own_when_they_are_written():
    """Each group counts from 0; what is raced again counts on; the run's ids start at the end."""
    plan = timing_plan()
    case, place = plan.suite.cases()[0], Place(kind="cpu", device="d")
    assert plan.message([case], Allowance(), {})["options"]["first_round"] == 0
    before = {"a": outcome(range(6), dropped=[9]), "b": {"status": "crashed", "error": "gone"}}
    assert plan.message([case], Allowance(), before)["options"]["first_round"] == 10
    record = plan.record(case, outcome([0, 2], dropped=[1]), place, 50)
    assert record["round_ids"] == [50, 52] and record["dropped_round_ids"] == [51]


def test_an_oom_prunes_where_there_is_no_more_memory():
    plan = timing_plan('axes = {mechanism = "full-math", seq_len = [64, 128]}')
    small, large = plan.suite.cases()
    seen, more = (Place(kind="cpu", device="d", memory_bytes=size) for size in (1e9, 2e9))
    plan.note(small, {"status": "oom", "error": "out of memory"}, seen)
    assert "larger than an OOM" in plan.reason_to_skip(large, seen)
    assert plan.reason_to_skip(large, more) is None


def test_samples_outlive_their_worker_only_together():
    """Five rounds each, or a reason to have stopped; else all are raced again, to be pairs."""
    plan = timing_plan()

    def seen(num_samples, stop_reason=None):
        return outcome(range(num_samples)) | {"dropped_s": [0.1], "stop_reason": stop_reason}

    kept = plan.salvage({0: seen(5), 2: seen(7, "interval"), 3: seen(1, "budget")})
    assert {index: each["stop_reason"] for index, each in kept.items()} == {
        0: "worker_died", 2: "interval", 3: "budget",
    }  # fmt: skip
    assert all(each["status"] == "ok" and each["num_dropped"] == 1 for each in kept.values())
    assert plan.salvage({0: seen(5), 1: seen(4)}) == {}
