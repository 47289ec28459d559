"""Who has groups measured. ``Executor`` is what the loop asks for; ``Local`` does it with a worker
process on this machine, and replaces it when it dies."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flurka_bench.bench.budget import Budget
from flurka_bench.bench.kind import Kind, Outcome, Place, WorkerOptions
from flurka_bench.bench.process import Stopper, Worker, WorkerDeathError
from flurka_bench.bench.protocol import Message, Say, merge
from flurka_bench.words.errors import RequestError

_START_TIMEOUT_S = 180.0
_START_ATTEMPTS = 3
_START_PAUSE_S = 0.5  # before the second attempt, doubled before the third


@dataclass(slots=True, kw_only=True)
class Answer:
    """What a worker said of a group, by the index of the case: final outcomes, what else was known
    when it ended, seconds inside calls, and how the worker died if it did."""

    outcomes: dict[int, Outcome] = field(default_factory=dict)
    partial: dict[int, Outcome] = field(default_factory=dict)
    calls_s: dict[str, float] = field(default_factory=dict)
    death: WorkerDeathError | None = None


class Executor(Protocol):
    """Has groups measured somewhere. Raises StopError when a signal asks the run to stop."""

    def open(self) -> Place:
        """Where groups will run. Raises RequestError where they cannot."""

    def submit(self, group: Message, *, timeout_s: float, hear: Say) -> Answer:
        """Have a group measured. ``hear`` is told each outcome and phase as it comes; without a
        sign of life for ``timeout_s`` the worker counts as dead."""

    def close(self, *, at_once: bool) -> None:
        """End what runs: at once, or when it has ended by itself."""


def worker_command(kind: Kind) -> Sequence[str]:
    """What starts a worker of that kind."""
    return (sys.executable, "-P", "-m", "flurka_bench.bench.worker", "--kind", kind.module)


def place_of(options: WorkerOptions, hello: Message) -> Place:
    """The place that a worker's first message describes."""
    return Place(
        kind=options.device.partition(":")[0],
        device=hello["device"],
        memory_bytes=options.memory_limit_bytes or hello.get("memory_bytes") or math.inf,
        cache_bytes=float(hello.get("cache_bytes", 0)),
        environment=hello["environment"],
        warnings=tuple(hello.get("warnings", ())),
    )


class Local:
    """One worker process on this machine. One that died is replaced when the next group comes; the
    time that takes, and that it hung before, is lost time of the budget."""

    def __init__(
        self,
        kind: Kind,
        options: WorkerOptions,
        *,
        stopper: Stopper,
        budget: Budget,
        tell: Callable[[str], None],
    ) -> None:
        self._command = options.worker_command or worker_command(kind)
        self._options = options
        self._stopper, self._budget, self._tell = stopper, budget, tell
        self._worker: Worker | None = None

    def open(self) -> Place:
        """Start the worker. Raises RequestError if it refuses the device or dies three times."""
        return place_of(self._options, self._start()[1])

    def _start(self) -> tuple[Worker, Message]:
        """A worker that is up, and its first message. One that dies meanwhile (of memory that
        others hold for a moment, of a driver that is busy) is followed by another."""
        for attempt in range(1, _START_ATTEMPTS + 1):
            worker = self._worker = Worker(
                self._command,
                self._options.device,
                self._options.memory_limit_bytes,
                self._stopper,
                self._budget.lost,
            )
            self._stopper.on_second = worker.signal_kill
            try:
                message = worker.receive(_START_TIMEOUT_S)
                break
            except WorkerDeathError as death:
                self._bury()
                if attempt == _START_ATTEMPTS:
                    raise RequestError(
                        f"the worker process did not start on {self._options.device}: {death.error}"
                        f" ({attempt} attempts)"
                    ) from None
                self._tell(f"the worker did not start, trying again: {death.error}")
                self._stopper.wait(_START_PAUSE_S * 2 ** (attempt - 1))
        if message["say"] == "refused":
            raise RequestError(message["error"])
        return worker, message

    def _restart(self) -> Worker:
        started, lost_s = time.monotonic(), self._budget.lost.total_s
        worker, _ = self._start()
        # A suspension meanwhile is in there already.
        suspended_s = self._budget.lost.total_s - lost_s
        self._budget.lost.total_s += time.monotonic() - started - suspended_s
        return worker

    def _bury(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def submit(self, group: Message, *, timeout_s: float, hear: Say) -> Answer:
        """See ``Executor``."""
        worker, answer = self._worker or self._restart(), Answer()
        worker.send(group)
        while True:
            try:
                message = worker.receive(timeout_s)
            except WorkerDeathError as death:
                self._bury()
                self._budget.lost.total_s += death.waited_s
                answer.death = death
                return answer
            match message["say"]:
                case "partial":
                    merge(answer.partial.setdefault(message["index"], {}), _content(message))
                case "outcome":
                    answer.outcomes[message["index"]] = _content(message)
                    hear(message)
                case "phase":
                    hear(message)
                case "done" | "fatal" as end:
                    answer.calls_s = message["calls_s"]
                    if end == "fatal":
                        index, _ = worker.heartbeat.read()
                        self._bury()
                        answer.death = WorkerDeathError("crashed", message["error"], index)
                    return answer

    def close(self, *, at_once: bool) -> None:
        """See ``Executor``."""
        if self._worker is not None and not at_once:
            self._worker.close()
            self._worker = None
        self._bury()


def _content(message: Message) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in ("say", "index")}
