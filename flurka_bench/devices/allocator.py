"""The host's memory allocator: freed memory kept for reuse, as a CUDA device's caching allocator
keeps it.

glibc maps a large result afresh at each call and unmaps it when freed, or not, by what the process
held before; the kernel then clears every page at first touch. The same call takes 6 ms in one
process and 29 ms in another. PyTorch's tuning guide recommends allocators that keep their pages
(jemalloc, tcmalloc); glibc does the same when told to.
"""

import contextlib
import ctypes
import os
import sys

VARIABLES = (
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
)
CHOICE = "FLURKA_BENCH_ALLOCATOR"  # "system" leaves the system's own way

# Never map a single result, never give back the heap's top, one heap for all threads. And no caches
# of small pieces: the few bytes before an aligned result would go there, and the result's own
# memory then be too small for the next of its size.
_TUNABLES = {"mmap_max": 0, "trim_threshold": 2**64 - 1, "arena_max": 1, "tcache_count": 0}
_PROBE_BYTES = (
    2**26
)  # past the size from which glibc always maps (DEFAULT_MMAP_THRESHOLD_MAX, 32 MiB)


def _ours() -> bool:
    """Whether the allocator is glibc's and the user has said nothing about it."""
    preloaded, chosen = (
        os.environ.get("LD_PRELOAD", ""),
        [name for name in VARIABLES if name in os.environ],
    )
    if (
        sys.platform != "linux"
        or "malloc" in preloaded
        or chosen
        or os.environ.get(CHOICE) == "system"
    ):
        return False
    with contextlib.suppress(ValueError):  # another libc knows no such name
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    return False


def worker_variables() -> dict[str, str]:
    """Environment variables with which a new process keeps what it frees; none where the user chose
    otherwise."""
    settings = ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())
    return {"GLIBC_TUNABLES": settings} if _ours() else {}


def give_back() -> None:
    """Return free pages to the system, as ``torch.cuda.empty_cache`` does: what follows starts from
    the same heap."""
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)


def reuses_memory() -> bool | None:
    """Whether a large result gets memory that an earlier one freed, seen by page faults; None where
    they are not counted."""
    try:
        import resource
    except ImportError:
        return None
    import torch

    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(_PROBE_BYTES, dtype=torch.uint8)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return faults * resource.getpagesize() < _PROBE_BYTES / 2
