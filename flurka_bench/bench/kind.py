"""What a kind of run says of itself. The loop, the executor and the worker know this and no kind.

A kind has two sides. In the parent a ``Plan`` says which cases there are, in which groups they are
measured, and what a record holds; it imports nothing slow. In the worker a ``Bench`` measures a
group. What passes between them is plain data, in a form that only the two know.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from flurka_bench.bench.protocol import Beat, Message, Say
from flurka_bench.results import Form, RunWriter, iter_records


class Identified(Protocol):
    """A case: what will have one record."""

    @property
    def case_id(self) -> str:
        """Readable, unique in a run, equal on every machine."""


C = TypeVar("C", bound=Identified)
Outcome = dict[str, Any]  # the worker's part of a record; ``status`` and, unless ok, ``error``


class Bench(Protocol):
    """The worker's side of a kind: what it measures with, for as long as the worker lives."""

    hello: Message  # device, environment, memory_bytes, cache_bytes, warnings
    calls_s: dict[str, float]  # seconds that the last group spent inside calls of its cases

    def run(self, group: Message, say: Say, beat: Beat) -> None:
        """Measure a group: say an outcome for each case. An exception ends the worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of run: the form of its records, the module in which the worker finds it as ``KIND``,
    and what opens its bench on a device (cpu, cuda:N)."""

    form: Form
    module: str
    open: Callable[[str], Bench]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where groups run: a device of kind cpu or cuda by its own name, with what its worker says."""

    kind: str
    device: str
    memory_bytes: float = math.inf  # that a group may take
    cache_bytes: float = 0.0
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group(Generic[C]):
    """Cases that are measured together. Their records are written in the order of ``cases``; the
    worker takes them up in that of ``queue``. ``weight`` is the share of the time it asks for."""

    title: str
    cases: tuple[C, ...]
    queue: tuple[C, ...]
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The time a group may still take, in seconds; infinite without a budget. Nothing new is begun
    after the deadline."""

    share_s: float = math.inf
    deadline_s: float = math.inf


class History:
    """What is known of a run so far: the cases with a record, those this session came too late for,
    and the records themselves."""

    def __init__(self, writer: RunWriter) -> None:
        self._writer = writer
        self.late: set[str] = set()

    def __contains__(self, case_id: str) -> bool:
        return case_id in self._writer.done or case_id in self.late

    def status(self, case_id: str) -> str | None:
        """The status of a case's record; None without one."""
        return self._writer.done.get(case_id)

    def records(self) -> Iterator[dict[str, Any]]:
        """All records, read anew from the run's folder: none is kept in memory."""
        return iter_records(self._writer.folder, form=self._writer.form)


class Plan(ABC, Generic[C]):
    """One run of a kind, as its suite asks for it.

    ``cases`` may depend on the records so far, as a search does: it is asked again when all that it
    named are measured, and by a run that goes on, which so repeats the decisions of the first.
    """

    kind: ClassVar[Kind]
    # Records of a group are written together, when its last case is done: their samples are pairs.
    writes_together: ClassVar[bool] = False

    @property
    @abstractmethod
    def suite_meta(self) -> dict[str, Any]:
        """What run.json says of the suite; a run goes on only under the same."""

    @property
    @abstractmethod
    def seed(self) -> int:
        """Of all that is drawn; a run goes on only under the same."""

    @property
    def budget_s(self) -> float | None:
        """Time for the whole run; None: no bound."""
        return None

    @property
    def timeout_s(self) -> float:
        """How long a worker may give no sign of life."""
        return math.inf

    @property
    def memory_bytes(self) -> float | None:
        """Host memory that a worker on a CPU may take; None: no bound."""
        return None

    @property
    def predicted_from(self) -> Mapping[str, Any] | None:
        """What predictions rest on: kept in run.json, named by its ``sha256`` in each session."""
        return None

    @abstractmethod
    def cases(self, history: History) -> Sequence[C]:
        """All cases that the plan knows of by now, those with a record included."""

    @abstractmethod
    def groups(self, cases: Sequence[C], place: Place) -> Iterable[Group[C]]:
        """The cases in groups, in the order in which they are measured."""

    @abstractmethod
    def message(
        self, cases: Sequence[C], allowance: Allowance, before: Mapping[str, Outcome]
    ) -> Message:
        """Cases of one group for the worker, where ``before`` holds what others of the group came
        to. An outcome's ``index`` counts these cases."""

    @abstractmethod
    def record(self, case: C, outcome: Outcome, place: Place, first_round: int) -> dict[str, Any]:
        """A case's final record; ``first_round`` is the first round id that no other group has."""

    def about(self) -> dict[str, Any]:
        """What belongs beside the environment in run.json."""
        return {}

    def reason_to_skip(self, case: C, place: Place) -> str | None:
        """Why not to try a case there."""
        return None

    def note(self, case: C, outcome: Outcome, place: Place) -> None:
        """Hear of an outcome, before the next group is begun."""

    def salvage(self, partial: Mapping[int, Outcome]) -> dict[int, Outcome]:
        """The outcomes that stand although the worker died before it could say them."""
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How to start a worker: ``device`` is cpu, cuda or cuda:N; ``memory_limit_bytes`` is the most
    host memory that it may take; ``worker_command`` starts another than the kind's own."""

    device: str = "cpu"
    memory_limit_bytes: float | None = None
    worker_command: Sequence[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(WorkerOptions):
    """How to run a plan: ``out`` is the run folder, made if it does not exist; ``budget_s``
    replaces the plan's own."""

    out: str | Path
    budget_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something to show. ``kind`` is note, warning, phase (what is being done), record, group (its
    records; ``text`` is its title) or step (of a calibration). ``left_s`` is None where unknown."""

    kind: str
    text: str = ""
    record: dict[str, Any] | None = None
    records: tuple[dict[str, Any], ...] = ()
    num_done: int = 0
    num_cases: int = 0
    left_s: float | None = None
