"""The kind "timing": the competitors of one workload, of what memory holds at once, are a group."""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from flurka_bench.bench.kind import Allowance, Bench, Group, History, Kind, Outcome, Place, Plan
from flurka_bench.bench.protocol import Message
from flurka_bench.cases.case import Case
from flurka_bench.cases.suite import Suite
from flurka_bench.kinds.timing.judging import (
    Peaks,
    figures,
    make_record,
    reason_to_skip,
    weight,
)
from flurka_bench.kinds.timing.race import MIN_ROUNDS, Options
from flurka_bench.results import TIMING

_ROUND_FIELDS = ("round_ids", "dropped_round_ids")
_MEMORY_SHARE = 0.8  # of the memory for what a group holds at once


def _open(device: str) -> Bench:
    from flurka_bench.kinds.timing.bench import open_bench

    return open_bench(device)


KIND = Kind(form=TIMING, module=__name__, open=_open)


@dataclass(slots=True, kw_only=True)
class TimingPlan(Plan[Case]):
    """A suite to be timed.

    ``predict`` gives a case's fields predicted_s, predicted_low_s, predicted_high_s and bound (and
    predicted_stages_s); ``peaks`` what the device cannot exceed: faster cases are recorded as
    invalid. ``seed`` is of inputs, parameters and the order of rounds; ``cache`` is auto, cold or
    warm (see ``devices.timers``); ``stages`` asks for the time by stage, too. ``predicted_from``
    is what ``predict`` rests on: at least ``sha256``.
    """

    kind = KIND
    writes_together = True
    suite: Suite
    seed: int = 0
    cache: str = "auto"
    stages: bool = False
    predict: Callable[[Case], dict[str, Any]] | None = field(default=None, repr=False)
    peaks: Callable[[Case], Peaks | None] | None = field(default=None, repr=False)
    predicted_from: Mapping[str, Any] | None = None
    _cases: tuple[Case, ...] | None = field(init=False, default=None)
    _out_of_memory: list[tuple[Case, float]] = field(init=False, default_factory=list)

    @property
    def suite_meta(self) -> dict[str, Any]:
        """See ``Plan``."""
        suite = self.suite
        return {"name": suite.name, "text": suite.text, "device_kind": suite.device_kind}

    @property
    def budget_s(self) -> float | None:
        """The suite's own."""
        return self.suite.budget.time_s

    @property
    def timeout_s(self) -> float:
        """The suite's own."""
        return self.suite.budget.timeout_s

    @property
    def memory_bytes(self) -> float | None:
        """The suite's own."""
        return self.suite.budget.memory_bytes

    def cases(self, history: History) -> Sequence[Case]:
        """The suite's, whatever was seen; the first call looks which ran out of memory before."""
        if self._cases is None:
            self._cases = tuple(self.suite.cases())
            self._out_of_memory = [
                (case, math.inf) for case in self._cases if history.status(case.case_id) == "oom"
            ]
        return self._cases

    def groups(self, cases: Sequence[Case], place: Place) -> Iterable[Group[Case]]:
        """One for each workload, or several where memory does not hold all competitors."""
        for _, competitors in groupby(cases, key=lambda case: case.workload_key):
            for chunk in _chunks(list(competitors), place):
                queue = sorted(chunk, key=lambda case: figures(case, place.kind).flops)
                yield Group(
                    title=str(chunk[0].workload_key),
                    cases=tuple(chunk),
                    queue=tuple(queue),
                    weight=weight(chunk, place.kind),
                )

    def reason_to_skip(self, case: Case, place: Place) -> str | None:
        """A smaller case of its family found no memory where there is as much, or the suite's does
        not suffice."""
        too_large = [other for other, held in self._out_of_memory if place.memory_bytes <= held]
        return reason_to_skip(case, too_large, self.memory_bytes, place.kind)

    def note(self, case: Case, outcome: Outcome, place: Place) -> None:
        """Remember what ran out of memory, and of how much."""
        if outcome["status"] == "oom":
            self._out_of_memory.append((case, place.memory_bytes))

    def message(
        self, cases: Sequence[Case], allowance: Allowance, before: Mapping[str, Outcome]
    ) -> Message:
        """The cases as plain data and the ``race.Options``. Round ids count from 0 in each group,
        and go on where ``before`` ended: ``record`` makes them the run's."""
        budget = self.suite.budget
        rounds = [each + 1 for outcome in before.values() for each in _rounds(outcome)]
        alone_s = budget.case_time_s * len(cases) + 1.0
        options = Options(
            seed=self.seed,
            budget_s=allowance.share_s if math.isfinite(allowance.share_s) else alone_s,
            deadline_s=allowance.deadline_s if math.isfinite(allowance.deadline_s) else None,
            case_time_s=budget.case_time_s,
            target=budget.target,
            first_round=max(rounds, default=0),
            cache=self.cache,
            stages=self.stages,
        )
        return {"cases": [case.as_record() for case in cases], "options": asdict(options)}

    def salvage(self, partial: Mapping[int, Outcome]) -> dict[int, Outcome]:
        """The samples of the other competitors, if each still racing has enough rounds. Otherwise
        none: what is raced again then is raced together, as only samples of one round are pairs."""
        if any(
            len(seen["samples_s"]) < MIN_ROUNDS and seen["stop_reason"] is None
            for seen in partial.values()
        ):
            return {}
        return {
            index: {
                **seen,
                "status": "ok",
                "stop_reason": seen["stop_reason"] or "worker_died",
                "median_s": statistics.median(seen["samples_s"]),
                "num_dropped": len(seen["dropped_s"]),
            }
            for index, seen in partial.items()
            if seen["samples_s"]
        }

    def record(
        self, case: Case, outcome: Outcome, place: Place, first_round: int
    ) -> dict[str, Any]:
        """The outcome with round ids of the run, the prediction beside it; invalid if it beats
        physics."""
        rounds = {
            name: [first_round + each for each in outcome[name]]
            for name in _ROUND_FIELDS
            if name in outcome
        }
        return make_record(
            case,
            outcome | rounds,
            place=place,
            seed=self.seed,
            predict=self.predict,
            peaks=self.peaks,
        )


def _rounds(outcome: Outcome) -> list[int]:
    return [each for name in _ROUND_FIELDS for each in outcome.get(name, ())]


def _chunks(group: list[Case], place: Place) -> Iterator[list[Case]]:
    """Split a group where its parameters and inputs, and the largest working set, would not fit in
    memory together."""
    chunk: list[Case] = []
    resident, peak = 0.0, 0.0
    for case in group:
        found = figures(case, place.kind)
        working = found.peak_bytes - found.resident_bytes
        own = found.resident_bytes * (2 if case.pass_ == "train" else 1)  # gradients stay, too
        if chunk and resident + own + max(peak, working) > _MEMORY_SHARE * place.memory_bytes:
            yield chunk
            chunk, resident, peak = [], 0.0, 0.0
        chunk.append(case)
        resident, peak = resident + own, max(peak, working)
    yield chunk
