"""The competitors of one workload: built, checked, warmed up, raced (``race``), and reported.

They are entered from the one with the fewest FLOPs upwards: where the time budget does not suffice
for all, it is the slowest that are skipped.
"""

import contextlib
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from flurka_bench.bench.outcomes import (
    LATE,
    NOBODY,
    is_out_of_memory,
    is_poisoned,
    one_line,
)
from flurka_bench.bench.protocol import Beat, Say
from flurka_bench.cases.case import Case
from flurka_bench.devices.device import Device
from flurka_bench.devices.timers import (
    Timer,
    make_timer,
)
from flurka_bench.kinds.timing.race import (
    MIN_ROUNDS,
    Competitor,
    Options,
    race,
)

_PHASE_INTERVAL_S = 0.5
_MEMORY_METHOD = "inputs, parameters and gradients, and the allocator's peak of one call above them"
_KEPT_ON_FAILURE = (
    "peak_memory_bytes",
    "warmup_s",
    "num_dropped",
    "dropped_s",
    "dropped_round_ids",
    "drop_reason",
)


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
    release: Callable[[], Any] = (
        gc.collect
    )  # gives memory of what is no longer held back to the device
    stamp: Callable[[], dict[str, Any]] = dict
    stages: Callable[[Built], dict[str, float]] | None = None


class GroupRun:
    """One group being measured. ``say`` sends a message, ``beat`` marks the case in execution."""

    def __init__(
        self,
        tools: Tools,
        options: Options,
        say: Say,
        beat: Beat,
    ) -> None:
        self.tools, self.options, self.say, self.beat = tools, options, say, beat
        self.calls_s = dict.fromkeys(("gate", "warmup", "memory", "timed", "extra"), 0.0)
        self._racing: list[Competitor] = []
        self._again: list[tuple[int, Case]] = []  # did not fit in memory beside the others
        self._inner_s = 0.0
        self._started = time.monotonic()
        self._last_phase = -math.inf
        cold = {"auto": None, "cold": True, "warm": False}[options.cache]
        self.timer: Timer = make_timer("auto", tools.device, cold=cold)

    def measure(self, cases: list[Case]) -> None:
        """Measure all cases and say an outcome for each. Lets a poisoned context's exception
        through."""
        alone, last_s = len(cases) == 1, 0.0
        for index, case in enumerate(cases):
            # The next takes at least as long as the last, and what is entered must still get
            # through its rounds.
            rounds_s = MIN_ROUNDS * sum(competitor.block_s for competitor in self._racing)
            if index and self._is_late(last_s + rounds_s):
                self._say_failure(index, "skipped", LATE, {})
                continue
            entered = time.monotonic()
            self._enter(index, case, alone=alone)
            last_s = time.monotonic() - entered
        self._race()
        for index, case in self._again:
            self.tools.release()
            if self._is_late(0.0):
                self._say_failure(index, "skipped", LATE, {})
                continue
            self._enter(index, case, alone=True)
            self._race()
        self.tools.release()
        self.beat(NOBODY)

    def _race(self) -> None:
        """Time those that were entered, and let them go."""
        race(self._racing, self.options, self._started, self._sample)
        for competitor in self._racing:
            self._finish(competitor)
        self._racing.clear()

    def _is_late(self, needed_s: float) -> bool:
        """Whether what takes ``needed_s`` would end after the deadline."""
        elapsed_s = time.monotonic() - self._started
        return (
            self.options.deadline_s is not None and elapsed_s + needed_s > self.options.deadline_s
        )

    def _enter(self, index: int, case: Case, *, alone: bool) -> None:
        """Build, check and warm up. Where that fails an outcome is said, or, when memory was short
        beside the others, the case waits to be tried alone, unpaired."""
        self.beat(index)
        outcome: dict[str, Any] = {}
        device = self.tools.device
        try:
            self._phase(case, "build")
            built = self.tools.build(case, self.options.seed)
            self._phase(case, "check")
            with self._counting("gate"):
                built.check()
            self._phase(case, "warm-up")

            def first_warm_up() -> Any:
                with self._counting("warmup"):
                    return built.run()

            with self._counting("memory"):  # what watching the first warm-up call costs
                held = self.tools.resident_bytes(built)
                outcome["peak_memory_bytes"] = held + device.peak_memory_bytes(first_warm_up)
            with self._counting("warmup"):
                prepared = self.timer.prepare(
                    built.run, warmup_budget_s=self.options.case_time_s / 8, called=True
                )
        except Exception as error:
            if is_out_of_memory(error) and not alone:
                error.__traceback__ = None  # its frames hold the tensors that did not fit
                self.tools.release()
                self._again.append((index, case))
            else:
                self._refuse(index, error, outcome)
            return
        self._racing.append(
            Competitor(index=index, case=case, built=built, outcome=outcome, prepared=prepared)
        )

    def _refuse(self, index: int, error: Exception, outcome: dict[str, Any]) -> None:
        if is_poisoned(error):
            raise error
        error.__traceback__ = None  # its frames hold the tensors that did not fit
        if is_out_of_memory(error):
            self.tools.release()
            self._say_failure(index, "oom", one_line(error), outcome)
        elif isinstance(error, self.tools.incorrect):
            self._say_failure(index, "incorrect", str(error), outcome)
        elif isinstance(error, self.tools.unsupported):
            self._say_failure(index, "unsupported", str(error), outcome)
        else:
            self._say_failure(index, "crashed", one_line(error), outcome)

    def _sample(self, competitor: Competitor, round_id: int) -> None:
        self.beat(competitor.index)
        self._phase(competitor.case, "timing")
        started = time.monotonic()
        try:
            competitor.sample(round_id)
        except Exception as error:
            if is_poisoned(error):
                raise
            competitor.stop_reason = "failed"
            self._refuse(competitor.index, error, competitor.outcome)
            return
        spent_s = time.monotonic() - started
        self.calls_s["timed"] += spent_s
        competitor.spent_s += spent_s

    def _finish(self, competitor: Competitor) -> None:
        if competitor.stop_reason == "failed":
            return  # its outcome was said
        self.beat(competitor.index)
        outcome = competitor.outcome | {
            "warmup_s": competitor.prepared.warmup_s,
            "num_dropped": len(competitor.dropped_s),
            **competitor.seen(),
        }
        if not competitor.samples_s:
            why = (
                f"all {len(competitor.dropped_s)} samples were dropped,"
                f" the last as {competitor.drop_reason}"
            )
            self._say_failure(competitor.index, "invalid", why, outcome)
            return
        outcome |= {
            "median_s": statistics.median(competitor.samples_s),
            **self._facts(competitor),
            "stop_reason": competitor.stop_reason,
            "ratio_error": _finite(competitor.ratio_error),
            "memory_method": _MEMORY_METHOD,
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

    def _facts(self, competitor: Competitor) -> dict[str, Any]:
        """How the samples are taken."""
        prepared = competitor.prepared
        return {
            "timer": f"{self.timer.name}, {'cold' if self.timer.cold else 'warm'} cache",
            "num_calls": prepared.num_calls,
            "num_warmup": 1 + len(prepared.warmup_s) * prepared.num_calls,
            "overhead_fraction": _finite(prepared.overhead_fraction),
        }

    def _other_latencies(self, competitor: Competitor) -> dict[str, Any]:
        """Graph replay and profiler device time of a call, where the device has them, with their
        samples."""
        found: dict[str, Any] = {}
        for key, name, num_samples in (("graph", "graph", 5), ("device", "profiler", 3)):
            try:
                with self._counting("extra"):
                    timer = make_timer(
                        name, self.tools.device, cold=self.timer.cold
                    )  # the verdict compares it with eager
                    prepared = timer.prepare(competitor.built.run, warmup_budget_s=0.05)
                    samples = [prepared.sample() for _ in range(num_samples)]
                kept = [sample.seconds for sample in samples if not sample.dropped]
                found |= {
                    f"{key}_samples_s": kept,
                    f"{key}_s": statistics.median(kept) if kept else None,
                }
            except Exception as error:  # a call that cannot be captured still has its eager time
                if is_poisoned(error):
                    raise
                found[f"{key}_s"] = None
        return found

    def _say_failure(self, index: int, status: str, error: str, outcome: dict[str, Any]) -> None:
        kept = {key: outcome[key] for key in _KEPT_ON_FAILURE if key in outcome}
        self.say(
            {
                "say": "outcome",
                "index": index,
                "status": status,
                "error": error.splitlines()[0],
                **kept,
            }
        )

    def _phase(self, case: Case, phase: str) -> None:
        """Say what is being done; in the race not at each sample, and then also what was seen: if
        this process dies, the others keep it."""
        now = time.monotonic()
        if phase == "timing":
            if now - self._last_phase <= _PHASE_INTERVAL_S:
                return
            for competitor in self._racing:
                self._say_partial(competitor)
        self._last_phase = now
        self.say({"say": "phase", "case_id": case.case_id, "phase": phase})

    def _say_partial(self, competitor: Competitor) -> None:
        """Say what the last such message of the competitor did not."""
        news = competitor.seen(since_last=True) | {"stop_reason": competitor.stop_reason}
        if not competitor.is_known:
            competitor.is_known = True
            news |= {
                **competitor.outcome,
                "warmup_s": competitor.prepared.warmup_s,
                **self._facts(competitor),
                "memory_method": _MEMORY_METHOD,
            }
        self.say({"say": "partial", "index": competitor.index, **news})

    @contextlib.contextmanager
    def _counting(self, what: str) -> Iterator[None]:
        """Add the time inside the block to that entry of ``calls_s``, less what a block within it
        counts for itself."""
        started, outer_s = time.monotonic(), self._inner_s
        self._inner_s = 0.0
        try:
            yield
        finally:
            spent_s = time.monotonic() - started
            self.calls_s[what] += spent_s - self._inner_s
            self._inner_s = outer_s + spent_s


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
