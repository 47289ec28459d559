"""The run loop, for every kind: hands out groups, writes records, survives its worker.

Whatever happens to the worker in a group, the case it was executing gets the blame and a record.
Others keep what the kind can use of them (``Plan.salvage``); the rest is measured again by a fresh
worker.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic

from flurka_bench.bench.budget import Budget, Share
from flurka_bench.bench.executor import Answer, Executor, Local
from flurka_bench.bench.kind import C, Event, Group, Outcome, Place, Plan, RunOptions
from flurka_bench.bench.outcomes import LATE
from flurka_bench.bench.process import StopError, Stopper
from flurka_bench.bench.protocol import Message
from flurka_bench.bench.session import Session, Summary
from flurka_bench.results import RunWriter
from flurka_bench.words.errors import Interrupted

_MAX_STRAY_DEATHS = 2  # deaths between cases before the rest of a group is given up


def run(
    plan: Plan[C],
    options: RunOptions,
    *,
    on_event: Callable[[Event], None] | None = None,
    executor: Callable[..., Executor] = Local,
) -> Summary:
    """Measure a plan's cases into the run folder, or go on with the run found there.

    Args:
        plan: what to measure.
        options: where, and within which bounds.
        on_event: called with everything worth showing.
        executor: who measures; takes what ``Local`` takes.

    Returns:
        What was done.

    Raises:
        RequestError: the folder is in use, of another suite or device, not writable, or the worker
            cannot start.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    limit = options.memory_limit_bytes or (plan.memory_bytes if options.device == "cpu" else None)
    options = replace(
        options,
        budget_s=plan.budget_s if options.budget_s is None else options.budget_s,
        memory_limit_bytes=limit,
    )
    budget = Budget(options.budget_s)
    with RunWriter(options.out, plan.kind.form) as writer, Stopper() as stopper:
        session = Session(plan, writer, budget, on_event)
        workers = executor(
            plan.kind,
            options,
            stopper=stopper,
            budget=budget,
            tell=lambda text: session.show("note", text=text),
        )
        return _Loop(plan, options, session, budget, workers).go(stopper)


class _Loop(Generic[C]):
    def __init__(
        self,
        plan: Plan[C],
        options: RunOptions,
        session: Session,
        budget: Budget,
        workers: Executor,
    ) -> None:
        self.plan, self.options, self.session = plan, options, session
        self.budget, self.workers = budget, workers

    def go(self, stopper: Stopper) -> Summary:
        session = self.session
        todo = self._todo()
        session.summary.num_before = session.summary.num_cases - len(todo)
        for repair in session.writer.repairs:
            session.show("note", text=repair)
        if not todo:
            session.show("group", text="nothing was left to measure")
            return session.summary
        try:
            place = self.workers.open()
            session.begin(place, self.options)
            self.budget.begin()
            while todo:
                self._measure_all(todo, place)
                todo = self._todo()
            self._tell_late()
        except StopError:
            safe = f"{len(session.writer.done)} of {session.summary.num_cases} cases"
            where = f"{safe} are in {str(session.writer.folder)!r}"
            raise Interrupted(f"stopped; {where}; the same command goes on from there") from None
        finally:
            failed = sys.exc_info()[0] is not None
            self.budget.lost.tick()
            self.workers.close(at_once=failed or stopper.count > 0)
            if self.budget.has_begun:
                session.end(failed=failed)
        return session.summary

    def _todo(self) -> list[C]:
        """The cases that neither have a record nor came too late."""
        history = self.session.history
        cases = self.plan.cases(history)
        self.session.summary.num_cases = len(cases)
        return [case for case in cases if case.case_id not in history]

    def _tell_late(self) -> None:
        if num_late := self.session.summary.num_late:
            left = "1 case was" if num_late == 1 else f"{num_late} cases were"
            self.session.show(
                "note",
                text=f"the time budget of {self.budget.total_s:.4g} s was spent, {left} not reached"
                " (the same command goes on with them)",
            )

    def _measure_all(self, todo: Sequence[C], place: Place) -> None:
        groups: list[Group[C]] = []
        for group in self.plan.groups(todo, place):
            groups.append(group)
            self.budget.lost.tick()  # the plan of a large suite is no suspension
        for number, group in enumerate(groups):
            self._measure(group, place, sum(each.weight for each in groups[number:]))

    def _measure(self, group: Group[C], place: Place, waiting: float) -> None:
        """Measure a group on its part of the time that is left, and write its records."""
        run = _GroupRun(self, group, place)
        share = self.budget.share(group.weight, waiting)
        while run.pending and share.allowance().deadline_s > 0:
            answer = run.submit(share)
            if answer.death is not None:
                # What the rest had measured may have gone with the worker: it has its share anew.
                self.budget.close(share)
                share = self.budget.share(group.weight, waiting)
        self.budget.close(share)
        run.finish()


class _GroupRun(Generic[C]):
    """One group on its way to records: ``pending`` cases have no outcome yet."""

    def __init__(self, loop: _Loop[C], group: Group[C], place: Place) -> None:
        self.plan, self.session, self.group, self.place = loop.plan, loop.session, group, place
        self.budget, self.workers = loop.budget, loop.workers
        self.outcomes: dict[str, Outcome] = {}
        self.records: list[dict[str, Any]] = []
        self.pending: list[C] = []
        self.stray_deaths = 0
        self.submitted: Sequence[C] = ()
        for case in group.queue:
            if reason := self.plan.reason_to_skip(case, place):
                self._settle(case, {"status": "skipped", "error": reason})
            else:
                self.pending.append(case)

    def submit(self, share: Share) -> Answer:
        """Have the pending cases measured; what has an outcome then is no longer pending."""
        self.submitted, lost_s = tuple(self.pending), self.budget.lost.total_s
        message = self.plan.message(self.submitted, share.allowance(), self.outcomes)
        answer = self.workers.submit(message, timeout_s=self.plan.timeout_s, hear=self._hear)
        self.session.count(answer.calls_s)
        found = answer.outcomes
        if self.budget.lost.total_s > lost_s and share.allowance().deadline_s > 0:
            # The worker, too, was suspended, and took it for its own time.
            found = {at: each for at, each in found.items() if each.get("error") != LATE}
        if answer.death is not None:
            found = self._after_death(found, answer)
        for index, outcome in found.items():
            self._settle(self.submitted[index], outcome)
        return answer

    def _after_death(self, found: dict[int, Outcome], answer: Answer) -> dict[int, Outcome]:
        """The outcomes with the blame for a death, and with what it left of the others."""
        death = answer.death
        assert death is not None
        blame = {"status": death.status, "error": death.error}
        if death.index is not None and death.index not in found:
            found = {**found, death.index: blame}
        elif not found:
            self.stray_deaths += 1
            if self.stray_deaths >= _MAX_STRAY_DEATHS:
                return dict.fromkeys(range(len(self.submitted)), blame)
        partial = {at: seen for at, seen in answer.partial.items() if at not in found}
        return {**self.plan.salvage(partial), **found}

    def _hear(self, message: Message) -> None:
        if message["say"] == "phase":
            self.session.show("phase", text=f"{message['case_id']}: {message['phase']}")
        elif not self.plan.writes_together and message.get("error") != LATE:
            outcome = {key: each for key, each in message.items() if key not in ("say", "index")}
            self._settle(self.submitted[message["index"]], outcome)

    def _settle(self, case: C, outcome: Outcome) -> None:
        """Note a case's outcome, the first time it is heard."""
        if case.case_id in self.outcomes:
            return
        self.outcomes[case.case_id] = outcome
        self.pending = [each for each in self.pending if each.case_id != case.case_id]
        self.plan.note(case, outcome, self.place)
        if not self.plan.writes_together and outcome.get("error") != LATE:
            self._write(case, self.session.writer.next_round)

    def _write(self, case: C, first_round: int) -> None:
        outcome = self.outcomes[case.case_id]
        record = self.plan.record(case, outcome, self.place, first_round)
        self.session.append(record)
        self.records.append(record)

    def finish(self) -> None:
        """Write what is not written yet; what has no time left has no record."""
        first_round = self.session.writer.next_round
        for case in self.group.cases:
            outcome = self.outcomes.get(case.case_id)
            if outcome is None or outcome.get("error") == LATE:
                self.session.leave(case.case_id)
            elif self.plan.writes_together:
                self._write(case, first_round)
        if self.records:
            self.session.show("group", text=self.group.title, records=tuple(self.records))
