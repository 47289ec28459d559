"""The little that timers ask of a device: a clock, a queue, events, graphs, memory, a cache to
flush, a throttle reading.

``CpuDevice`` and ``CudaDevice`` implement it; the tests have a third, a simulated queue with its
own clock, in which a timer that forgets to synchronise, to flush or to warm up reads a wrong time.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flurka_bench.devices.probe import find_device
from flurka_bench.hardware.detect import last_level_cache_bytes
from flurka_bench.words.errors import RequestError

# Below this share of the default clock a sample is not the device's speed (nvbench's rule).
MIN_CLOCK_FRACTION = 0.75

# nvml.h, nvmlClocksThrottleReasons. The power cap (0x4) is not among them: small boards run into it
# on every large matmul, so it is how they are, and only shows as a clock below the fraction above.
THROTTLE_REASONS = {
    0x8: "hardware slowdown",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}

_UNCOUNTED = "flurka_bench::uncounted"  # the profiler range around what is not part of the call


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the device says of itself at one moment; None where it cannot tell."""

    clock_fraction: float | None = None  # current SM clock / default SM clock
    reasons: tuple[str, ...] = ()  # active throttle reasons

    @property
    def throttled(self) -> str | None:
        """Why a sample taken now does not count, or None."""
        if self.reasons:
            return ", ".join(self.reasons)
        if self.clock_fraction is not None and self.clock_fraction < MIN_CLOCK_FRACTION:
            return f"clock at {self.clock_fraction:.0%} of its default"
        return None


class Device(Protocol):
    """See the module's docstring. Times are nanoseconds of a monotonic host clock or seconds
    between two events."""

    name: str  # "cpu", "cuda:0"
    is_queue: bool  # calls return before their work is done; events and graphs exist
    nvml: "Nvml | None"  # what the driver tells of a GPU, where it can be asked

    @property
    def cache_bytes(self) -> int:
        """Last-level cache."""

    def now_ns(self) -> int:
        """The host's monotonic clock."""

    def synchronize(self) -> None:
        """Return when all queued work is done."""

    def record_event(self) -> Any:
        """Put a time stamp into the queue."""

    def elapsed_s(self, start: Any, end: Any) -> float:
        """Seconds between two recorded events; both must have been reached."""

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        """A stream of its own for the calls before a capture."""

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Capture one call in a graph and return its replay."""

    def flush_cache(self) -> None:
        """Queue a write over a buffer larger than the cache."""

    def reading(self) -> Reading:
        """Clock and throttle reasons now."""

    def profiled_s(
        self, call: Callable[[], Any], num_calls: int, before: Callable[[], Any] | None = None
    ) -> float:
        """Seconds the device was busy in ``num_calls`` calls, after ``before`` each, which is not
        counted."""

    def peak_memory_bytes(self, call: Callable[[], Any]) -> int:
        """Peak of live bytes during one call, above those that lived before it."""


class CpuDevice:
    """The host: calls are done when they return, so synchronising is free. ``clock_ns`` takes a
    fake clock in tests."""

    name = "cpu"
    is_queue = False
    nvml: "Nvml | None" = None

    def __init__(self, clock_ns: Callable[[], int] = time.perf_counter_ns):
        self.now_ns = clock_ns

    @functools.cached_property
    def cache_bytes(self) -> int:
        """Last-level cache."""
        return int(last_level_cache_bytes()[0])

    @functools.cached_property
    def _flush_buffer(self) -> np.ndarray:
        return np.zeros(2 * self.cache_bytes, dtype=np.uint8)

    def synchronize(self) -> None:
        """Nothing is queued."""

    def record_event(self) -> int:
        """The clock itself."""
        return self.now_ns()

    def elapsed_s(self, start: int, end: int) -> float:
        """Difference of two readings."""
        return (end - start) * 1e-9

    def side_stream(self) -> contextlib.AbstractContextManager[None]:
        """No streams."""
        return contextlib.nullcontext()

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Raises RequestError: there is no launch to save on a CPU."""
        raise RequestError("graph replay needs a CUDA device, got cpu; use the wall timer")

    def flush_cache(self) -> None:
        """Write twice the last-level cache."""
        self._flush_buffer += 1

    def reading(self) -> Reading:
        """CPUs tell nothing that holds inside containers; drift is what the pairing of samples is
        for."""
        return Reading()

    def profiled_s(
        self, call: Callable[[], Any], num_calls: int, before: Callable[[], Any] | None = None
    ) -> float:
        """Raises RequestError: on a CPU the wall clock is the device time."""
        raise RequestError("profiler device time needs a CUDA device, got cpu; use the wall timer")

    def peak_memory_bytes(self, call: Callable[[], Any]) -> int:
        """Exact, from the allocator's own events as torch's profiler sees them (resident size would
        hide reuse)."""
        from torch.autograd.profiler import (
            profile,
        )  # what torch.profiler wraps, without the seconds its first use imports for

        with profile(profile_memory=True, use_kineto=True) as profiler:
            result = call()
        del result
        live = peak = 0
        memory = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(memory, key=lambda event: event.start_ns()):
            live += event.nbytes()
            peak = max(peak, live)
        return peak


class Nvml:
    """One GPU seen through nvidia-ml-py; ``open`` gives None where the package, the driver or the
    device is missing."""

    def __init__(self, library: Any, handle: Any):
        self.library, self.handle = library, handle

    @classmethod
    def open(cls, uuid: str) -> "Nvml | None":
        """By UUID, because CUDA_VISIBLE_DEVICES renumbers devices for CUDA and not for NVML."""
        try:
            import pynvml

            pynvml.nvmlInit()
            full = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(full))
        except (
            Exception
        ):  # any failure of an optional witness means the same: it has nothing to say
            return None

    def ask(self, function: str, *arguments: Any) -> Any:
        """The answer of one NVML query, None where this device or driver does not support it."""
        try:
            return getattr(self.library, function)(self.handle, *arguments)
        except Exception:  # NVMLError of many kinds; an old binding without the function
            return None

    @functools.cached_property
    def default_clock_mhz(self) -> float | None:
        """The default application clock, or the maximum where there is none."""
        sm = self.library.NVML_CLOCK_SM
        clock = self.ask("nvmlDeviceGetDefaultApplicationsClock", sm)
        clock = clock or self.ask("nvmlDeviceGetMaxClockInfo", sm)
        return float(clock) if clock else None

    def reading(self) -> Reading:
        """Clock fraction and throttle reasons now."""
        clock = self.ask("nvmlDeviceGetClockInfo", self.library.NVML_CLOCK_SM)
        bits = self.ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
        fraction = clock / self.default_clock_mhz if clock and self.default_clock_mhz else None
        return Reading(
            clock_fraction=fraction,
            reasons=tuple(text for bit, text in THROTTLE_REASONS.items() if bits & bit),
        )


class CudaDevice:
    """One CUDA device through torch.cuda, on its current stream."""

    is_queue = True

    def __init__(self, index: int = 0):
        import torch

        self.torch, self.index, self.name = torch, index, f"cuda:{index}"
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        self.cache_bytes = int(properties.L2_cache_size)
        self.nvml = Nvml.open(str(getattr(properties, "uuid", "")))
        self.now_ns = time.perf_counter_ns

    @functools.cached_property
    def _flush_buffer(self) -> Any:
        # Twice the cache: its replacement is not strictly least-recently-used.
        return self.torch.empty(2 * self.cache_bytes, dtype=self.torch.int8, device=self.name)

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        self.torch.cuda.synchronize(self.index)

    def record_event(self) -> Any:
        """A timing event on the current stream."""
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def elapsed_s(self, start: Any, end: Any) -> float:
        """CUDA gives milliseconds, in steps of about half a microsecond."""
        return float(start.elapsed_time(end)) * 1e-3

    @contextlib.contextmanager
    def side_stream(self) -> Iterator[None]:
        """As torch's documentation of graphs asks: warm up apart from the default stream, then
        join."""
        side, current = (
            self.torch.cuda.Stream(self.index),
            self.torch.cuda.current_stream(self.index),
        )
        side.wait_stream(current)
        with self.torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A torch.cuda.CUDAGraph of one call."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            call()
        return graph.replay

    def flush_cache(self) -> None:
        """Queue a write over twice the L2."""
        self._flush_buffer.zero_()

    def reading(self) -> Reading:
        """From NVML, or an empty reading without it."""
        return self.nvml.reading() if self.nvml else Reading()

    def profiled_s(
        self, call: Callable[[], Any], num_calls: int, before: Callable[[], Any] | None = None
    ) -> float:
        """The sum of all kernels less those of ``before``; a range around ``call`` would miss
        autograd's own thread."""
        from torch.profiler import ProfilerActivity, profile, record_function

        self.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(num_calls):
                if before is not None:
                    with record_function(_UNCOUNTED):
                        before()
                call()
            self.synchronize()
        return kernel_time_s(profiler.events())

    def peak_memory_bytes(self, call: Callable[[], Any]) -> int:
        """From the caching allocator."""
        self.synchronize()
        before = self.torch.cuda.memory_allocated(self.index)
        self.torch.cuda.reset_peak_memory_stats(self.index)
        result = call()
        self.synchronize()
        del result
        return self.torch.cuda.max_memory_allocated(self.index) - before


def kernel_time_s(events: Iterable[Any]) -> float:
    """Device seconds of all kernels and copies among a profiler's events, less those launched under
    ``_UNCOUNTED``."""
    total_us = 0.0
    for event in events:
        if "CPU" not in str(event.device_type):
            total_us += (
                0.0 if getattr(event, "is_user_annotation", False) else event.device_time_total
            )
        elif event.name == _UNCOUNTED:
            total_us -= event.device_time_total
    return total_us * 1e-6


def open_device(request: str = "auto") -> Device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``. Raises RequestError for what the driver or torch
    does not have here."""
    found = find_device(request)
    if found.kind == "cpu":
        return CpuDevice()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.index >= count:
        raise RequestError(
            f"device {found.device!r} ({found.name}) is not usable: torch {torch.__version__} sees {count} CUDA devices;"
            " use --device cpu, or a torch that fits the driver"
        )
    return CudaDevice(found.index)
