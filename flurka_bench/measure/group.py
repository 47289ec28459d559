"""The competitors of one workload, built, checked, warmed up, and timed in interleaved rounds.

In each round every competitor still in the race is sampled once, in an order drawn anew, so drift hits all alike and samples
of one round are pairs. The *reference* is the fastest FLuRKA (or the fastest of all): it takes part in every round, and a
competitor leaves when the interval of its ratio to the reference is narrow enough, or its own time is spent. Slow
baselines so cost a few rounds, and close rivals get many.
"""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from flurka_bench import mechanisms
from flurka_bench.measure.device import Device
from flurka_bench.measure.protocol import NOBODY, is_out_of_memory, is_poisoned, one_line
from flurka_bench.measure.statistics import median_interval, paired_ratio
from flurka_bench.measure.timers import Prepared, Timer, make_timer
from flurka_bench.workload import Case

MIN_ROUNDS = 5  # fewer pairs have no interval
MAX_ROUNDS = 1000
_FIRST_LOOK = 8  # rounds before an interval is believed
_LOOK_AGAIN = 1.2  # look at the intervals after 20 % more rounds: looking stays cheap
_STOPPING_RESAMPLES = 300  # to decide when to stop; the analysis takes its own, more
_PHASE_INTERVAL_S = 0.5


class Built(Protocol):
    """What ``attention.build`` returns for a case: something to call and to check."""

    def run(self) -> Any:
        """One call of what is timed."""

    def check(self) -> None:
        """The correctness gate: raises one of ``Tools.incorrect`` for a wrong output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a worker measures with; the tests have their own."""

    device: Device
    build: Callable[[Case, int], Built]
    resident_bytes: Callable[[Built], int]  # what it holds between calls
    incorrect: tuple[type[Exception], ...]
    unsupported: tuple[type[Exception], ...]
    release: Callable[[], Any] = gc.collect  # gives memory of what is no longer held back to the device
    stamp: Callable[[], dict[str, Any]] = dict
    stages: Callable[[Built], dict[str, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure a group. Times in seconds; ``budget_s`` is the whole group's."""

    seed: int = 0
    budget_s: float = 10.0
    case_time_s: float = 2.0
    target: float = 0.02
    first_round: int = 0
    cache: str = "auto"  # auto, cold, warm
    stages: bool = False


@dataclass(slots=True, kw_only=True)
class _Competitor:
    index: int
    case: Case
    built: Built
    outcome: dict[str, Any]
    prepared: Prepared
    samples_s: list[float] = field(default_factory=list)
    round_ids: list[int] = field(default_factory=list)
    dropped: int = 0
    last_drop: str = ""
    spent_s: float = 0.0
    ratio_error: float = math.inf
    stop_reason: str | None = None


class GroupRun:
    """One group being measured. ``say`` sends a message, ``beat`` marks the case in execution."""

    def __init__(self, tools: Tools, options: Options, say: Callable[[dict], None], beat: Callable[[int], None]) -> None:
        self.tools, self.options, self.say, self.beat = tools, options, say, beat
        self.calls_s: dict[str, float] = {"gate": 0.0, "warmup": 0.0, "memory": 0.0, "timed": 0.0, "extra": 0.0}
        self._started = time.monotonic()
        self._last_phase = -math.inf
        cold = {"auto": None, "cold": True, "warm": False}[options.cache]
        self.timer: Timer = make_timer("auto", tools.device, cold=cold)

    def measure(self, cases: list[Case]) -> None:
        """Measure all cases and say an outcome for each. Lets a poisoned context's exception through."""
        competitors, again = [], []
        for index, case in enumerate(cases):
            competitor = self._enter(index, case, alone=len(cases) == 1)
            if competitor is None:
                continue
            if isinstance(competitor, _Competitor):
                competitors.append(competitor)
            else:
                again.append((index, case))
        self._race(competitors)
        for competitor in competitors:
            self._finish(competitor)
        competitors.clear()
        for index, case in again:  # what did not fit beside the others may fit alone, unpaired
            self.tools.release()
            competitor = self._enter(index, case, alone=True)
            if isinstance(competitor, _Competitor):
                self._race([competitor])
                self._finish(competitor)
        self.tools.release()
        self.beat(NOBODY)

    def _enter(self, index: int, case: Case, *, alone: bool) -> "_Competitor | str | None":
        """Build, check and warm up; None when an outcome was said, "again" when memory was short beside the others."""
        self.beat(index)
        outcome: dict[str, Any] = {}
        try:
            self._phase(case, "build")
            built = self.tools.build(case, self.options.seed)
            self._phase(case, "check")
            with self._counting("gate"):
                built.check()
            self._phase(case, "warm-up")
            with self._counting("memory"):
                held = self.tools.resident_bytes(built)
                outcome["peak_memory_bytes"] = held + self.tools.device.peak_memory_bytes(built.run)
            with self._counting("warmup"):
                prepared = self.timer.prepare(built.run, warmup_budget_s=self.options.case_time_s / 4)
        except Exception as error:
            return self._refused(index, error, outcome, alone)
        return _Competitor(index=index, case=case, built=built, outcome=outcome, prepared=prepared)

    def _refused(self, index: int, error: Exception, outcome: dict[str, Any], alone: bool) -> str | None:
        if is_poisoned(error):
            raise error
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        if is_out_of_memory(error):
            self.tools.release()
            if not alone:
                return "again"
            self._say_failure(index, "oom", one_line(error), outcome)
        elif isinstance(error, self.tools.incorrect):
            self._say_failure(index, "incorrect", str(error), outcome)
        elif isinstance(error, self.tools.unsupported):
            self._say_failure(index, "unsupported", str(error), outcome)
        else:
            self._say_failure(index, "crashed", one_line(error), outcome)
        return None

    def _race(self, competitors: list[_Competitor]) -> None:
        """Interleaved rounds until every competitor has left."""
        if not competitors:
            return
        reference = _choose_reference(competitors)
        racing = list(competitors)
        rng = random.Random(self.options.seed)
        num_rounds, next_look = 0, _FIRST_LOOK
        # What building and warming up left of the budget, but never so little that the preparation was for nothing.
        budget_s = max(self.options.budget_s - (time.monotonic() - self._started), self.options.budget_s / 4)
        started = time.monotonic()
        while racing:
            for competitor in rng.sample(racing, len(racing)):
                self._sample(competitor, self.options.first_round + num_rounds)
            num_rounds += 1
            racing = [competitor for competitor in racing if competitor.stop_reason is None]
            if reference.stop_reason is not None and racing:  # it failed: go on without
                reference = _choose_reference(racing)
            elapsed_s = time.monotonic() - started
            overdue = elapsed_s > budget_s and num_rounds >= MIN_ROUNDS
            if overdue or num_rounds >= MAX_ROUNDS:
                for competitor in racing:
                    self._look(competitor, reference)
                    competitor.stop_reason = "budget" if overdue else "max_rounds"
                    if competitor.ratio_error < self.options.target:
                        competitor.stop_reason = "interval"
                break
            racing = [competitor for competitor in racing if not self._too_slow(competitor, racing)]
            if num_rounds >= next_look and racing:
                next_look = math.ceil(num_rounds * _LOOK_AGAIN)
                racing = self._retire(racing, reference)
        self._look(reference, reference)
        for competitor in competitors:
            competitor.outcome["reference"] = reference.case.case_id

    def _sample(self, competitor: _Competitor, round_id: int) -> None:
        self.beat(competitor.index)
        self._phase(competitor.case, "timing")
        started = time.monotonic()
        try:
            sample = competitor.prepared.sample()
        except Exception as error:
            if is_poisoned(error):
                raise
            competitor.stop_reason = "failed"
            self._refused(competitor.index, error, competitor.outcome, alone=True)
            return
        spent_s = time.monotonic() - started
        self.calls_s["timed"] += spent_s
        competitor.spent_s += spent_s
        if sample.dropped:
            competitor.dropped += 1
            competitor.last_drop = sample.dropped
            if competitor.dropped >= MAX_ROUNDS:
                competitor.stop_reason = "max_rounds"
        else:
            competitor.samples_s.append(sample.seconds)
            competitor.round_ids.append(round_id)

    def _too_slow(self, competitor: _Competitor, racing: list[_Competitor]) -> bool:
        """Whether it leaves before it has an interval: twice its own time is spent, and another goes on."""
        if competitor.spent_s < 2 * self.options.case_time_s or len(racing) == 1:
            return False
        competitor.stop_reason = "budget"
        return True

    def _retire(self, racing: list[_Competitor], reference: _Competitor) -> list[_Competitor]:
        """Let those leave whose interval is narrow enough or whose time is spent; the reference leaves last."""
        for competitor in racing:
            if competitor is reference and len(racing) > 1:
                continue
            self._look(competitor, reference)
            if competitor.ratio_error < self.options.target:
                competitor.stop_reason = "interval"
            elif competitor.spent_s >= self.options.case_time_s and len(competitor.samples_s) >= MIN_ROUNDS:
                competitor.stop_reason = "budget"
        rest = [competitor for competitor in racing if competitor.stop_reason is None]
        if rest == [reference] and len(racing) > 1:
            # it was only still here for the others, and leaves with the last of them
            reference.stop_reason = next(competitor.stop_reason for competitor in racing if competitor is not reference)
            rest = []
        return rest

    def _look(self, competitor: _Competitor, reference: _Competitor) -> None:
        """Update ``ratio_error``: the width of the interval over the ratio to the reference (for it: over its own median)."""
        own = competitor.samples_s, competitor.round_ids
        if competitor is reference:
            median, low, high = median_interval(own[0], num_resamples=_STOPPING_RESAMPLES) if own[0] else (math.nan, 0, math.inf)
            competitor.ratio_error = (high - low) / median if own[0] else math.inf
            return
        # Far from narrow by the normal approximation: not worth a bootstrap.
        shared = dict(zip(reference.round_ids, reference.samples_s))
        logs = np.log([seconds / shared[round_id] for seconds, round_id in zip(*own) if round_id in shared])
        if len(logs) < MIN_ROUNDS:
            competitor.ratio_error = math.inf
            return
        rough = 2 * 1.96 * 1.2533 * 1.4826 * float(np.median(np.abs(logs - np.median(logs)))) / math.sqrt(len(logs))
        if rough > 2 * self.options.target:
            competitor.ratio_error = rough
            return
        ratio = paired_ratio(
            reference.samples_s, own[0], reference.round_ids, own[1], seed=self.options.seed, num_resamples=_STOPPING_RESAMPLES
        )
        competitor.ratio_error = ratio.relative_width

    def _finish(self, competitor: _Competitor) -> None:
        if competitor.stop_reason == "failed":
            return  # its outcome was said
        outcome = competitor.outcome
        if not competitor.samples_s:
            why = f"all {competitor.dropped} samples were dropped, the last as {competitor.last_drop}"
            self._say_failure(competitor.index, "invalid", why, outcome)
            return
        self.beat(competitor.index)
        prepared = competitor.prepared
        outcome |= {
            "samples_s": competitor.samples_s,
            "round_ids": competitor.round_ids,
            "median_s": statistics.median(competitor.samples_s),
            "timer": f"{self.timer.name}, {'cold' if self.timer.cold else 'warm'} cache",
            "num_calls": prepared.num_calls,
            "num_warmup": 1 + len(prepared.warmup_s) * prepared.num_calls,
            "num_dropped": competitor.dropped,
            "stop_reason": competitor.stop_reason,
            "ratio_error": competitor.ratio_error if math.isfinite(competitor.ratio_error) else None,
            "memory_method": "inputs, parameters and gradients, and the allocator's peak of one call above them",
            "stamp": self.tools.stamp(),
        }
        try:
            if self.tools.device.is_queue:
                outcome |= self._other_latencies(competitor)
            if self.options.stages and self.tools.stages is not None:
                with self._counting("extra"):
                    outcome["stages_s"] = self.tools.stages(competitor.built)
        except Exception as error:
            if is_poisoned(error):
                raise
            outcome["error"] = one_line(error)
        self.say({"say": "outcome", "index": competitor.index, "status": "ok", **outcome})

    def _other_latencies(self, competitor: _Competitor) -> dict[str, float | None]:
        """Graph replay and profiler device time of a call, where the device has them."""
        found: dict[str, float | None] = {}
        for key, name, num_samples in (("graph_s", "graph", 5), ("device_s", "profiler", 3)):
            try:
                with self._counting("extra"):
                    timer = make_timer(name, self.tools.device, cold=self.timer.cold)  # the verdict compares it with eager
                    prepared = timer.prepare(competitor.built.run, warmup_budget_s=0.05)
                    samples = [prepared.sample() for _ in range(num_samples)]
                kept = [sample.seconds for sample in samples if not sample.dropped]
                found[key] = statistics.median(kept) if kept else None
            except Exception as error:  # a call that cannot be captured still has its eager time
                if is_poisoned(error):
                    raise
                found[key] = None
        return found

    def _say_failure(self, index: int, status: str, error: str, outcome: dict[str, Any]) -> None:
        memory = {key: outcome[key] for key in ("peak_memory_bytes",) if key in outcome}
        self.say({"say": "outcome", "index": index, "status": status, "error": error.splitlines()[0], **memory})

    def _phase(self, case: Case, phase: str) -> None:
        now = time.monotonic()
        if phase != "timing" or now - self._last_phase > _PHASE_INTERVAL_S:
            self._last_phase = now
            self.say({"say": "phase", "case_id": case.case_id, "phase": phase})

    def _counting(self, what: str) -> "_Counting":
        return _Counting(self.calls_s, what)


class _Counting:
    """Adds the time inside its block to one entry of a table."""

    def __init__(self, table: dict[str, float], what: str) -> None:
        self.table, self.what = table, what

    def __enter__(self) -> None:
        self.started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.table[self.what] += time.monotonic() - self.started


def _choose_reference(competitors: list[_Competitor]) -> _Competitor:
    def warm_s(competitor: _Competitor) -> float:
        return min(competitor.prepared.warmup_s)

    flurkas = [competitor for competitor in competitors if mechanisms.get(competitor.case.mechanism).is_flurka]
    return min(flurkas or competitors, key=warm_s)
