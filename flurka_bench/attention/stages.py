"""Profiler ranges ``stage:<name>`` around the stages of a mechanism; nothing at all unless switched
on."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

_NOTHING = nullcontext()
_enabled = False


def stage(name: str) -> AbstractContextManager:
    """A range for one of ``workload.STAGES``. A shared no-op while ``profiled_stages`` is not
    active."""
    return torch.profiler.record_function(f"stage:{name}") if _enabled else _NOTHING


@contextmanager
def profiled_stages() -> Iterator[None]:
    """Within this context every stage is a ``torch.profiler`` range."""
    global _enabled
    before, _enabled = _enabled, True
    try:
        yield
    finally:
        _enabled = before
