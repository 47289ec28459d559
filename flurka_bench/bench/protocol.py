"""How the parent and its worker talk: JSON lines over pipes, and a heartbeat in shared memory.

The parent sends one line for each group, in a form that the kind's two sides agree on, and closes
the pipe when there is no more. The worker answers with lines that have ``say``:

- ``hello``: its device and environment; ``refused``: it cannot work on that device;
- ``phase``: what it is busy with;
- ``partial``: what is known so far of the case ``index`` of the group (see ``merge``);
- ``outcome``: one case's part of a record, which is final;
- ``done``: the group is finished; ``fatal``: it cannot go on (a poisoned context).

The heartbeat says which case is being executed even after the worker is gone, at the cost of two
stores a sample.
"""

import json
import mmap
import os
import struct
import tempfile
from collections.abc import Callable
from typing import Any

from flurka_bench.bench.outcomes import NOBODY

Message = dict[str, Any]
Say = Callable[[Message], None]
Beat = Callable[[int], None]
_LAYOUT = struct.Struct("qq")


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
        """The parent's side: (index, beats)."""
        index, beats = _LAYOUT.unpack_from(self._map, 0)
        return index, beats

    def close(self) -> None:
        """Give the memory back."""
        self._map.close()
        if self._file is not None:
            self._file.close()


def encode(message: Message) -> bytes:
    """One message as a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def merge(known: Message, news: Message) -> None:
    """Add what a ``partial`` message says to what is known: lists grow, all else is replaced."""
    for key, value in news.items():
        if isinstance(value, list):
            known.setdefault(key, []).extend(value)
        else:
            known[key] = value
