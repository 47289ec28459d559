"""The parent of a run: hands out groups, writes records, survives its worker. Imports no torch.

One *group* is all competitors of one workload (of what memory holds at once). Whatever happens to
the worker in a group, the case it was executing gets the blame and a record, and the others are
measured again by a fresh worker.
"""

import math
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import flurka_bench
from flurka_bench.bench.process import (
    LostTime,
    StopError,
    Stopper,
    Worker,
    WorkerDeathError,
)
from flurka_bench.bench.protocol import (
    LATE,
    case_to_message,
)
from flurka_bench.cases.case import Case
from flurka_bench.cases.suite import Suite
from flurka_bench.kinds.timing.judging import (
    Peaks,
    figures,
    make_record,
    reason_to_skip,
    weight,
)
from flurka_bench.results import RunWriter
from flurka_bench.words.errors import (
    Interrupted,
    RequestError,
)

WORKER_COMMAND = (sys.executable, "-P", "-m", "flurka_bench.kinds.timing.worker")
_START_TIMEOUT_S = 180.0
_START_ATTEMPTS = 3
_START_PAUSE_S = 0.5  # before the second attempt, doubled before the third
_MAX_STRAY_DEATHS = 2  # deaths between cases before the rest of a group is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to show: ``kind`` is note, phase, record or group (its records). ``left_s`` is None
    where unknown."""

    kind: str
    text: str = ""
    record: dict[str, Any] | None = None
    records: tuple[dict[str, Any], ...] = ()
    num_done: int = 0
    num_cases: int = 0
    left_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run did. ``wall_s`` counts from when the worker was up; ``time_in_calls_s`` is the
    part spent inside calls of the cases, of every kind: timed, warm-up and gate, for the peak
    memory, and extra (stages, graph and device time). ``lost_s`` is the part that the time budget
    is not charged with: suspensions, hangs and restarts of the worker. ``num_late`` cases were not
    reached within the budget and have no record yet.
    """

    folder: Path
    num_cases: int
    num_before: int
    statuses: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    lost_s: float = 0.0
    num_late: int = 0
    calls_s: dict[str, float] = field(default_factory=dict)

    @property
    def time_in_calls_s(self) -> float:
        """Seconds inside calls of the cases themselves."""
        return sum(self.calls_s.values())


def run_suite(
    suite: Suite,
    *,
    device: str = "cpu",
    out: str | Path,
    predict: Callable[[Case], dict[str, Any]] | None = None,
    peaks: Callable[[Case], Peaks | None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    seed: int = 0,
    cache: str = "auto",
    stages: bool = False,
    budget_s: float | None = None,
    memory_limit_bytes: int | None = None,
    predicted_from: Mapping[str, Any] | None = None,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> Summary:
    """Measure a suite's cases into the run folder ``out``, or go on with the run found there.

    Args:
        suite: what to run.
        device: cpu, cuda or cuda:N, as the worker opens it.
        out: the run folder; made if it does not exist.
        predict: gives a case's fields predicted_s, predicted_low_s, predicted_high_s, bound (and
            predicted_stages_s).
        peaks: gives what the device cannot exceed; faster cases are recorded as invalid. None: not
            checked.
        on_event: called with everything worth showing.
        seed: of inputs, parameters and the order of rounds.
        cache: auto, cold or warm; see ``devices.timers``.
        stages: also record the time by stage.
        budget_s: replaces the suite's own time budget.
        memory_limit_bytes: most host memory that the worker may take.
        predicted_from: what ``predict`` rests on, kept in run.json: at least ``sha256``, the
            key under which a session names it.
        worker_command: what to start as the worker.

    Returns:
        What was done.

    Raises:
        RequestError: the folder is in use, of another suite or device, not writable, or the worker
            cannot start.
        Interrupted: stopped by a signal; the same call goes on from there.
    """
    with RunWriter(out) as writer, Stopper() as stopper:
        run = _Run(
            suite=suite,
            device=device,
            writer=writer,
            stopper=stopper,
            predict=predict,
            peaks=peaks,
            on_event=on_event,
            seed=seed,
            cache=cache,
            stages=stages,
            budget_s=budget_s or suite.budget.time_s,
            memory_limit=memory_limit_bytes
            or (suite.budget.memory_bytes if device == "cpu" else None),
            predicted_from=predicted_from,
            command=worker_command,
        )
        return run.go()


@dataclass(slots=True, kw_only=True)
class _Run:
    suite: Suite
    device: str
    writer: RunWriter
    stopper: Stopper
    predict: Callable[[Case], dict[str, Any]] | None
    peaks: Callable[[Case], Peaks | None] | None
    on_event: Callable[[Event], None] | None
    seed: int
    cache: str
    stages: bool
    budget_s: float | None
    memory_limit: int | None
    predicted_from: Mapping[str, Any] | None
    command: Sequence[str]
    lost: LostTime = field(default_factory=LostTime)
    worker: Worker | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    summary: Summary = field(init=False)
    too_large: list[Case] = field(default_factory=list)  # cases that ran out of memory
    up_since: float | None = None

    @property
    def device_kind(self) -> str:
        """cpu or cuda, whose kernels a case's op list is of."""
        return self.device.partition(":")[0]

    def go(self) -> Summary:
        cases = self.suite.cases()
        for repair in self.writer.repairs:
            self._show("note", text=repair)
        todo = [case for case in cases if case.case_id not in self.writer.done]
        self.too_large = [case for case in cases if self.writer.done.get(case.case_id) == "oom"]
        self.summary = Summary(
            folder=self.writer.folder, num_cases=len(cases), num_before=len(cases) - len(todo)
        )
        if self.writer.meta:
            self._check_suite()
        if not todo:
            return self.summary
        try:
            self._start_worker()
            self._measure_all(todo)
        except StopError:
            where = (
                f"{len(self.writer.done)} of {len(cases)} cases are in {str(self.writer.folder)!r}"
            )
            raise Interrupted(f"stopped; {where}; the same command goes on from there") from None
        finally:
            self._end()
        return self.summary

    def _check_suite(self) -> None:
        """Refuse another suite's folder before the seconds that starting a worker takes."""
        self.writer.start({**self.writer.meta, "suite": self._suite_meta(), "seed": self.seed})

    def _suite_meta(self) -> dict[str, Any]:
        return {
            "name": self.suite.name,
            "text": self.suite.text,
            "device_kind": self.suite.device_kind,
        }

    def _start_worker(self) -> Worker:
        """A worker that is up. One that dies meanwhile (of memory that others hold for a moment, of
        a driver that is busy) is followed by another; one that refuses the device is not."""
        started, lost_s = time.monotonic(), self.lost.total_s
        for attempt in range(1, _START_ATTEMPTS + 1):
            worker = self.worker = Worker(
                self.command, self.device, self.memory_limit, self.stopper, self.lost
            )
            self.stopper.on_second = worker.signal_kill
            try:
                message = worker.receive(_START_TIMEOUT_S)
                break
            except WorkerDeathError as death:
                worker.kill()
                self.worker = None
                if attempt == _START_ATTEMPTS:
                    raise RequestError(
                        f"the worker process did not start on {self.device}: {death.error}"
                        f" ({attempt} attempts)"
                    ) from None
                self._show("note", text=f"the worker did not start, trying again: {death.error}")
                self.stopper.wait(_START_PAUSE_S * 2 ** (attempt - 1))
        if self.up_since is not None:  # a suspension meanwhile is in lost_s already
            suspended_s = self.lost.total_s - lost_s
            self.lost.total_s += time.monotonic() - started - suspended_s
        if message["say"] == "refused":
            raise RequestError(message["error"])
        self.hello = message
        if self.up_since is None:
            self.up_since, self.lost = time.monotonic(), LostTime()
            worker.lost = self.lost
            meta = {"suite": self._suite_meta(), "device": message["device"], "seed": self.seed}
            if not self.writer.meta:
                meta |= {
                    "device_name": self.device,
                    "environment": message["environment"],
                    "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                    "run_id": secrets.token_hex(8),
                    "host": platform.node(),
                    "version": flurka_bench.__version__,
                    "sessions": [],
                }
            self.writer.start(meta)
            self._keep_prediction_source()
            for warning in message.get("warnings", []):
                self._show("note", text=warning)
        return worker

    def _keep_prediction_source(self) -> None:
        """Put what the predictions rest on into run.json, beside that of earlier sessions."""
        known = self.writer.meta.get("predicted_from", [])
        if self.predicted_from is not None and self.predicted_from not in known:
            self.writer.meta["predicted_from"] = [*known, dict(self.predicted_from)]
            self.writer.save_meta()

    def _end(self) -> None:
        """Close the worker and put the accounts into run.json, whatever happened before."""
        self.lost.tick()
        if self.worker is not None:
            if self.stopper.count or sys.exc_info()[0] is not None:
                self.worker.kill()
            else:
                self.worker.close()
            self.worker = None
        if self.up_since is None:
            return
        self.summary.wall_s = time.monotonic() - self.up_since
        self.summary.lost_s = self.lost.total_s
        meta = self.writer.meta
        session = {
            "wall_s": self.summary.wall_s,
            "time_in_calls_s": self.summary.time_in_calls_s,
            "calls_s": dict(self.summary.calls_s),
            "num_records": sum(self.summary.statuses.values()),
            "lost_s": self.summary.lost_s,
            "num_late": self.summary.num_late,
        }
        if self.predicted_from is not None:
            session["predicted_from"] = self.predicted_from["sha256"]
        meta["sessions"] = [*meta.get("sessions", []), session]
        for key in ("wall_s", "time_in_calls_s"):
            meta[key] = sum(entry[key] for entry in meta["sessions"])
        failed = sys.exc_info()[0] is not None
        try:
            self.writer.check_in_place()
            self.writer.save_meta()
        except RequestError:
            if not failed:  # else the record that did not fit has said it already
                raise

    def _measure_all(self, todo: list[Case]) -> None:
        groups = [
            chunk
            for _, group in groupby(todo, key=lambda case: case.workload_key)
            for chunk in self._chunks(list(group))
        ]
        weights = []
        for group in groups:
            weights.append(weight(group, self.device_kind))
            self.lost.tick()  # the plan of a large suite is no suspension
        for number, group in enumerate(groups):
            self._measure_group(group, weights[number] / sum(weights[number:]))
        if num_late := self.summary.num_late:
            left = "1 case was" if num_late == 1 else f"{num_late} cases were"
            self._show(
                "note",
                text=f"the time budget of {self.budget_s:.4g} s was spent, {left} not reached"
                " (the same command goes on with them)",
            )

    def _worked_s(self) -> float:
        """Seconds since the first worker was up, less what was lost: the budget's clock."""
        assert self.up_since is not None
        self.lost.tick()
        return time.monotonic() - self.up_since - self.lost.total_s

    def _left_s(self) -> float:
        """What is left of the run's time budget; infinite without one."""
        return math.inf if self.budget_s is None else self.budget_s - self._worked_s()

    def _chunks(self, group: list[Case]) -> Iterator[list[Case]]:
        """Split a group where its parameters and inputs, and the largest working set, would not fit
        in memory together."""
        memory = self.memory_limit or self.hello.get("memory_bytes") or math.inf
        chunk: list[Case] = []
        resident, peak = 0.0, 0.0
        for case in group:
            found = figures(case, self.device_kind)
            working = found.peak_bytes - found.resident_bytes
            own = found.resident_bytes * (2 if case.pass_ == "train" else 1)  # gradients stay, too
            if chunk and resident + own + max(peak, working) > 0.8 * memory:
                yield chunk
                chunk, resident, peak = [], 0.0, 0.0
            chunk.append(case)
            resident, peak = resident + own, max(peak, working)
        yield chunk

    def _measure_group(self, group: list[Case], fraction: float) -> None:
        """Measure a group on ``fraction`` of the time that is left.

        Where gate, warm-up and the fewest rounds take more, it may take twice its share: beyond,
        cases are late. They get no record, so that the next call of the same command tries them.
        """
        outcomes: dict[Case, dict[str, Any]] = {}
        kind, memory_bytes = self.device_kind, self.suite.budget.memory_bytes
        pending = []
        for case in sorted(group, key=lambda case: figures(case, kind).flops):
            if reason := reason_to_skip(case, self.too_large, memory_bytes, kind):
                outcomes[case] = {"status": "skipped", "error": reason}
            else:
                pending.append(case)
        stray_deaths, started = 0, self._worked_s()
        share_s = self._left_s() * fraction
        latest = started + min(2 * share_s, self._left_s())
        while pending:
            deadline_s = latest - self._worked_s()
            if deadline_s <= 0:
                break
            lost_s = self.lost.total_s
            found, death = self._exchange(
                pending, share_s - (self._worked_s() - started), deadline_s
            )
            late = {index for index, outcome in found.items() if outcome.get("error") == LATE}
            if late and self.lost.total_s > lost_s and latest > self._worked_s():
                # the worker, too, was suspended, and took it for its own time
                found = {index: found[index] for index in found if index not in late}
            if death is not None:
                self.worker = None
                self.lost.total_s += death.waited_s
                # What the group had measured went with the worker: it has its share anew.
                started = self._worked_s()
                share_s = self._left_s() * fraction
                latest = started + min(2 * share_s, self._left_s())
                if death.index is not None and death.index not in found:
                    found[death.index] = {"status": death.status, "error": death.error}
                elif not found:
                    stray_deaths += 1
                    if stray_deaths >= _MAX_STRAY_DEATHS:
                        found = {
                            index: {"status": death.status, "error": death.error}
                            for index in range(len(pending))
                        }
            outcomes |= {pending[index]: outcome for index, outcome in found.items()}
            self.too_large += [
                pending[index] for index, outcome in found.items() if outcome["status"] == "oom"
            ]
            pending = [case for index, case in enumerate(pending) if index not in found]
        records = []
        for case in group:
            if case not in outcomes or outcomes[case].get("error") == LATE:
                self.summary.num_late += 1
                continue
            record = make_record(
                case,
                outcomes[case],
                device=kind,
                hello=self.hello,
                seed=self.seed,
                predict=self.predict,
                peaks=self.peaks,
            )
            self.writer.append(record)
            self.lost.tick()
            records.append(record)
            self.summary.statuses[record["status"]] = (
                self.summary.statuses.get(record["status"], 0) + 1
            )
            self._show("record", record=record)
        if records:
            self._show("group", records=tuple(records))

    def _exchange(
        self, pending: list[Case], share_s: float, deadline_s: float
    ) -> tuple[dict[int, dict], WorkerDeathError | None]:
        """Have a group measured: outcomes by index, and how the worker died if it did."""
        worker = self.worker or self._start_worker()
        budget = self.suite.budget
        options = {
            "seed": self.seed,
            "budget_s": max(share_s, 0.0)
            if math.isfinite(share_s)
            else budget.case_time_s * len(pending) + 1.0,
            "deadline_s": deadline_s if math.isfinite(deadline_s) else None,
            "case_time_s": budget.case_time_s,
            "target": budget.target,
            "first_round": self.writer.next_round,
            "cache": self.cache,
            "stages": self.stages,
        }
        outcomes: dict[int, dict] = {}
        worker.send(
            {
                "do": "measure",
                "cases": [case_to_message(case) for case in pending],
                "options": options,
            }
        )
        while True:
            try:
                message = worker.receive(budget.timeout_s)
            except WorkerDeathError as death:
                worker.kill()
                return outcomes, death
            match message.pop("say"):
                case "outcome":
                    outcomes[message.pop("index")] = message
                case "phase":
                    self._show("phase", text=f"{message['case_id']}: {message['phase']}")
                case "done":
                    self._count(message)
                    return outcomes, None
                case "fatal":
                    self._count(message)
                    index, _ = worker.heartbeat.read()
                    worker.kill()
                    return outcomes, WorkerDeathError("crashed", message["error"], index)

    def _count(self, message: dict[str, Any]) -> None:
        for key, seconds in message["calls_s"].items():
            self.summary.calls_s[key] = self.summary.calls_s.get(key, 0.0) + seconds

    def _show(self, kind: str, **content: Any) -> None:
        if self.on_event is None:
            return
        done, total, left_s = (
            len(self.writer.done),
            self.summary.num_cases if hasattr(self, "summary") else 0,
            None,
        )
        if self.up_since is not None:
            elapsed_s, fresh = self._worked_s(), sum(self.summary.statuses.values())
            if self.budget_s is not None:
                left_s = max(self.budget_s - elapsed_s, 0.0)
            elif fresh:
                left_s = elapsed_s / fresh * (total - done)
        self.on_event(Event(kind=kind, num_done=done, num_cases=total, left_s=left_s, **content))
