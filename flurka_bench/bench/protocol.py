"""How the runner and its worker talk: JSON lines over pipes, and a heartbeat in shared memory.

The runner says ``{"do": "measure", "cases": [...], "options": {...}}`` and closes the pipe when
there is no more. The worker answers with lines that have ``say``: ``hello`` (its device and
environment), ``phase`` (what it is busy with), ``outcome`` (one case's part of a record, ``index``
into the cases), ``done`` (the group is finished), ``fatal`` (it cannot go on: a poisoned context).

The heartbeat says which case is being executed even after the worker is gone, at the cost of two
stores a sample.
"""

import json
import mmap
import os
import struct
import tempfile
from typing import Any

from flurka_bench.cases.case import Case

_LAYOUT = struct.Struct("qq")
NOBODY = -1  # no case is being executed
LATE = "skipped: time budget"  # the error of a case for which the budget left no time
_OOM_TEXTS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc", "failed to allocate", "alloc_failed",
)  # fmt: skip
_POISON_TEXTS = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "hip error",
)


class Heartbeat:
    """Index of the case in execution and a count of beats, in memory that both processes see."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._file = None
        if descriptor is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the map)
            descriptor = self._file.fileno()
            os.ftruncate(descriptor, _LAYOUT.size)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _LAYOUT.size)
        self._beats = 0

    def beat(self, index: int = NOBODY) -> None:
        """The worker's side: from now on it executes this case."""
        self._beats += 1
        _LAYOUT.pack_into(self._map, 0, index, self._beats)

    def read(self) -> tuple[int, int]:
        """The runner's side: (index, beats)."""
        return _LAYOUT.unpack_from(self._map, 0)

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        if self._file is not None:
            self._file.close()


def encode(message: dict[str, Any]) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def case_to_message(case: Case) -> dict[str, Any]:
    """A case as plain data."""
    return case.as_record()


def case_from_message(data: dict[str, Any]) -> Case:
    """The inverse of case_to_message."""
    return Case.of(data)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory, of the device or the host, did not suffice."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        text in str(error).lower() for text in _OOM_TEXTS
    )


def is_poisoned(error: BaseException) -> bool:
    """Whether an exception means that no later call on this device can succeed in this process."""
    text = str(error).lower()
    if (
        is_out_of_memory(error) or "captur" in text
    ):  # what cannot be captured in a graph ends the capture alone
        return False
    return isinstance(error, RuntimeError) and any(poison in text for poison in _POISON_TEXTS)


def one_line(error: BaseException) -> str:
    """An exception's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
