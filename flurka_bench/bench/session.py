"""One session of a run: its folder, its accounts, and what there is to show of it."""

import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flurka_bench
from flurka_bench.bench.budget import Budget
from flurka_bench.bench.kind import Event, History, Place, Plan, RunOptions
from flurka_bench.results import RunWriter
from flurka_bench.words.errors import RequestError


@dataclass(slots=True, kw_only=True)
class Summary:
    """What a run did. ``wall_s`` counts from when the worker was up; ``time_in_calls_s`` is the
    part spent inside calls of the cases, of every kind: timed, warm-up and gate, for the peak
    memory, and extra (stages, graph and device time). ``lost_s`` is the part that the time budget
    is not charged with: suspensions, hangs and restarts of the worker. ``num_late`` cases were not
    reached within the budget and have no record yet.
    """

    folder: Path
    num_cases: int = 0
    num_before: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    lost_s: float = 0.0
    num_late: int = 0
    calls_s: dict[str, float] = field(default_factory=dict)

    @property
    def time_in_calls_s(self) -> float:
        """Seconds inside calls of the cases themselves."""
        return sum(self.calls_s.values())


def _add(total: dict[str, Any], name: str, amount: float) -> None:
    total[name] = total.get(name, 0) + amount


class Session:
    """Writes records and run.json, keeps the accounts, and tells ``on_event`` what happens."""

    def __init__(
        self,
        plan: Plan[Any],
        writer: RunWriter,
        budget: Budget,
        on_event: Callable[[Event], None] | None,
    ) -> None:
        self._plan, self._budget, self._on_event = plan, budget, on_event
        self.writer, self.history = writer, History(writer)
        self.summary = Summary(folder=writer.folder)
        if writer.meta:  # refuse another suite's folder before the seconds that a worker takes
            writer.start({**writer.meta, "suite": plan.suite_meta, "seed": plan.seed})

    def begin(self, place: Place, options: RunOptions) -> None:
        """The first worker is up: write run.json, or check that it is this run's."""
        plan, writer = self._plan, self.writer
        meta: dict[str, Any] = {"suite": plan.suite_meta, "device": place.device, "seed": plan.seed}
        if not writer.meta:
            meta |= {
                "device_name": options.device,
                "environment": {**place.environment, **plan.about()},
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "run_id": secrets.token_hex(8),
                "host": platform.node(),
                "version": flurka_bench.__version__,
                "sessions": [],
            }
        writer.start(meta)
        # What the predictions rest on stands beside that of earlier sessions.
        known = writer.meta.get("predicted_from", [])
        if plan.predicted_from is not None and plan.predicted_from not in known:
            writer.meta["predicted_from"] = [*known, dict(plan.predicted_from)]
            writer.save_meta()
        for warning in place.warnings:
            self.show("note", text=warning)

    def append(self, record: dict[str, Any]) -> None:
        """Write a case's final record."""
        self.writer.append(record)
        self._budget.lost.tick()
        _add(self.summary.statuses, record["status"], 1)
        self.show("record", record=record)

    def leave(self, case_id: str) -> None:
        """The budget left no time for a case: no record, so that the same command tries it."""
        self.history.late.add(case_id)
        self.summary.num_late += 1

    def count(self, calls_s: dict[str, float]) -> None:
        """Add a group's seconds inside calls."""
        for name, seconds in calls_s.items():
            _add(self.summary.calls_s, name, seconds)

    def end(self, *, failed: bool) -> None:
        """Put the accounts into run.json. ``failed``: an error is on its way already, and a folder
        that went away is no second one."""
        summary, meta = self.summary, self.writer.meta
        summary.wall_s, summary.lost_s = self._budget.wall_s(), self._budget.lost.total_s
        entry = {
            "wall_s": summary.wall_s,
            "time_in_calls_s": summary.time_in_calls_s,
            "calls_s": dict(summary.calls_s),
            "num_records": sum(summary.statuses.values()),
            "lost_s": summary.lost_s,
            "num_late": summary.num_late,
        }
        if self._plan.predicted_from is not None:
            entry["predicted_from"] = self._plan.predicted_from["sha256"]
        meta["sessions"] = [*meta.get("sessions", []), entry]
        for key in ("wall_s", "time_in_calls_s"):
            meta[key] = sum(each[key] for each in meta["sessions"])
        try:
            self.writer.check_in_place()
            self.writer.save_meta()
        except RequestError:
            if not failed:
                raise

    def show(self, kind: str, **content: Any) -> None:
        """Tell of an event."""
        if self._on_event is None:
            return
        done, total, left_s = len(self.writer.done), self.summary.num_cases, None
        if self._budget.has_begun:
            fresh = sum(self.summary.statuses.values())
            if self._budget.total_s < float("inf"):
                left_s = max(self._budget.left_s(), 0.0)
            elif fresh:
                left_s = self._budget.worked_s() / fresh * (total - done)
        event = Event(kind=kind, num_done=done, num_cases=total, left_s=left_s, **content)
        self._on_event(event)
