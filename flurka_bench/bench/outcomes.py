"""The words in which a worker says how a case ended, and how it tells exceptions apart."""

NOBODY = -1  # no case is being executed
LATE = "skipped: time budget"  # the error of a case for which the budget left no time
_OOM_TEXTS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc",
    "failed to allocate", "alloc_failed",
)  # fmt: skip
_POISON_TEXTS = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "hip error",
)


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
    # What cannot be captured in a graph ends the capture alone.
    if is_out_of_memory(error) or "captur" in text:
        return False
    return isinstance(error, RuntimeError) and any(poison in text for poison in _POISON_TEXTS)


def one_line(error: BaseException) -> str:
    """An exception's kind and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
