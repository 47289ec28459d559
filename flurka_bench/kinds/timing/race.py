"""The race of a group's competitors: interleaved rounds, and when each competitor leaves.

In each round every competitor still in the race is sampled once, in an order drawn anew, so drift
hits all alike and samples of one round are pairs. The *reference* is the fastest FLuRKA (or the
fastest of all): it takes part in every round, and a competitor leaves when the interval of its
ratio to the reference is narrow enough, or its own time is spent. Slow baselines so cost a few
rounds, and close rivals get many.
"""

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.devices.timers import Prepared
from flurka_bench.words.statistics import (
    FEW_ROUNDS,
    median_interval,
    paired_ratio,
)

MIN_ROUNDS = 5  # fewer pairs have no interval
MAX_ROUNDS = 1000
_FIRST_LOOK = FEW_ROUNDS  # an interval over fewer rounds is too wide to stop at, but for luck
_LOOK_AGAIN = 1.2  # look at the intervals after 20 % more rounds: looking stays cheap
_STOPPING_RESAMPLES = 300  # to decide when to stop; the analysis takes its own, more


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to measure a group. Times in seconds; ``budget_s`` is the whole group's share,
    ``deadline_s`` the moment of the group after which nothing more is begun (None: never).
    """

    seed: int = 0
    budget_s: float = 10.0
    deadline_s: float | None = None
    case_time_s: float = 2.0
    target: float = 0.02
    first_round: int = 0
    cache: str = "auto"  # auto, cold, warm
    stages: bool = False


@dataclass(slots=True, kw_only=True)
class Competitor:
    """One case of a group: ``built`` and warm, with what has been seen of it."""

    index: int
    case: Case
    built: Any
    outcome: dict[str, Any]
    prepared: Prepared
    samples_s: list[float] = field(default_factory=list)
    round_ids: list[int] = field(default_factory=list)
    dropped_s: list[float] = field(default_factory=list)
    dropped_round_ids: list[int] = field(default_factory=list)
    drop_reason: str | None = None  # of the last one
    spent_s: float = 0.0
    ratio_error: float = math.inf
    stop_reason: str | None = None
    is_known: bool = False  # its outcome so far was said, and of its samples so many:
    num_told: int = 0
    num_dropped_told: int = 0

    def seen(self, *, since_last: bool = False) -> dict[str, Any]:
        """Samples and dropped samples, as a record has them; ``since_last``: only those that no
        such call has given yet."""
        first, first_dropped = 0, 0
        if since_last:
            first, self.num_told = self.num_told, len(self.samples_s)
            first_dropped, self.num_dropped_told = self.num_dropped_told, len(self.dropped_s)
        return {
            "samples_s": self.samples_s[first:],
            "round_ids": self.round_ids[first:],
            "dropped_s": self.dropped_s[first_dropped:],
            "dropped_round_ids": self.dropped_round_ids[first_dropped:],
            "drop_reason": self.drop_reason,
        }

    @property
    def block_s(self) -> float:
        """What one sample takes, by the last one of its warm-up."""
        return self.prepared.warmup_s[-1] * self.prepared.num_calls

    def sample(self, round_id: int) -> None:
        """Take one sample and keep it, for or against."""
        sample = self.prepared.sample()
        if sample.dropped:
            self.dropped_s.append(sample.seconds)
            self.dropped_round_ids.append(round_id)
            self.drop_reason = sample.dropped
            if len(self.dropped_s) >= MAX_ROUNDS:
                self.stop_reason = "max_rounds"
        else:
            self.samples_s.append(sample.seconds)
            self.round_ids.append(round_id)


def race(
    competitors: list[Competitor],
    options: Options,
    started: float,
    sample: Callable[[Competitor, int], None],
) -> None:
    """Interleaved rounds until every competitor has left with a ``stop_reason``.

    ``started`` is when the group was begun, on the monotonic clock. ``sample`` takes one sample of
    a competitor in a round; it may set a ``stop_reason`` of its own.
    """
    if not competitors:
        return
    reference = _choose_reference(competitors, competitors)
    racing = list(competitors)
    rng = random.Random(options.seed)
    num_rounds, next_look = 0, _FIRST_LOOK
    # What building and warming up left of the budget, but never so little that the preparation was
    # for nothing.
    racing_since = time.monotonic()
    budget_s = max(options.budget_s - (racing_since - started), options.budget_s / 4)
    deadline = math.inf if options.deadline_s is None else started + options.deadline_s
    while racing:
        for competitor in rng.sample(racing, len(racing)):
            sample(competitor, options.first_round + num_rounds)
        num_rounds += 1
        racing = [competitor for competitor in racing if competitor.stop_reason is None]
        if reference.stop_reason is not None and racing:  # it failed: go on without
            reference = _choose_reference(racing, competitors)
        now = time.monotonic()
        overdue = (now - racing_since > budget_s and num_rounds >= MIN_ROUNDS) or now > deadline
        if overdue or num_rounds >= MAX_ROUNDS:
            for competitor in racing:
                _look(competitor, reference, options)
                competitor.stop_reason = "budget" if overdue else "max_rounds"
                if competitor.ratio_error < options.target:
                    competitor.stop_reason = "interval"
            break
        racing = [competitor for competitor in racing if not _too_slow(competitor, racing, options)]
        if num_rounds >= next_look and racing:
            next_look = math.ceil(num_rounds * _LOOK_AGAIN)
            racing = _retire(racing, reference, options)
    _look(reference, reference, options)


def _choose_reference(racing: list[Competitor], competitors: list[Competitor]) -> Competitor:
    """The fastest FLuRKA that races, or the fastest of all; all competitors note it."""
    flurkas = [each for each in racing if registry.get(each.case.mechanism).is_flurka]
    reference = min(flurkas or racing, key=lambda competitor: min(competitor.prepared.warmup_s))
    for competitor in competitors:
        competitor.outcome["reference"] = reference.case.case_id
    return reference


def _too_slow(competitor: Competitor, racing: list[Competitor], options: Options) -> bool:
    """Whether it leaves before it has an interval: twice its own time is spent, and another goes
    on."""
    if competitor.spent_s < 2 * options.case_time_s or len(racing) == 1:
        return False
    competitor.stop_reason = "budget"
    return True


def _retire(racing: list[Competitor], reference: Competitor, options: Options) -> list[Competitor]:
    """Let those leave whose interval is narrow enough or whose time is spent; the reference leaves
    last."""
    for competitor in racing:
        if competitor is reference and len(racing) > 1:
            continue
        _look(competitor, reference, options)
        if competitor.ratio_error < options.target:
            competitor.stop_reason = "interval"
        elif competitor.spent_s >= options.case_time_s and len(competitor.samples_s) >= MIN_ROUNDS:
            competitor.stop_reason = "budget"
    rest = [competitor for competitor in racing if competitor.stop_reason is None]
    if rest == [reference] and len(racing) > 1:
        # it was only still here for the others, and leaves with the last of them
        reference.stop_reason = next(
            competitor.stop_reason for competitor in racing if competitor is not reference
        )
        rest = []
    return rest


def _look(competitor: Competitor, reference: Competitor, options: Options) -> None:
    """Update ``ratio_error``: the width of the interval over the ratio to the reference (for it:
    over its own median)."""
    samples_s, round_ids = competitor.samples_s, competitor.round_ids
    competitor.ratio_error = math.inf
    if competitor is reference:
        if samples_s:
            median, low, high = median_interval(samples_s, num_resamples=_STOPPING_RESAMPLES)
            competitor.ratio_error = (high - low) / median
        return
    shared = dict(zip(reference.round_ids, reference.samples_s))
    logs = np.log(
        [
            seconds / shared[round_id]
            for seconds, round_id in zip(samples_s, round_ids)
            if round_id in shared
        ]
    )
    if len(logs) < MIN_ROUNDS:
        return
    # Far from narrow by the normal approximation: not worth a bootstrap.
    rough = (
        2
        * 1.96
        * 1.2533
        * 1.4826
        * float(np.median(np.abs(logs - np.median(logs))))
        / math.sqrt(len(logs))
    )
    if rough > 2 * options.target:
        competitor.ratio_error = rough
        return
    ratio = paired_ratio(
        reference.samples_s,
        samples_s,
        reference.round_ids,
        round_ids,
        seed=options.seed,
        num_resamples=_STOPPING_RESAMPLES,
    )
    competitor.ratio_error = ratio.relative_width
