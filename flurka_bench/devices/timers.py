"""Timers: how long one call takes, by five methods behind one interface.

==============
====================================================================================================
``wall``        host clock around a block of calls, synchronised before and after
``eager``       device events around each call on an idle queue: what a caller waits for, launches
                included
``events``      device events in a full queue (as ``triton.testing.do_bench``): launches hide behind
                earlier work
``graph``       device events around the replay of a captured graph: launch cost paid once
``profiler``    the sum of the kernels' own times
==============
====================================================================================================

``cold`` flushes the device's last-level cache before each call, outside the timed interval. On a
queue it is the
default: an operator in a model does not find its inputs in L2. On a CPU warm is: programs there run
    from their caches.
A fake clock is not a sixth timer but a device with another clock (``CpuDevice(clock_ns=...)``).
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flurka_bench.devices.device import Device
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.statistics import modified_z_scores

Call = Callable[[], Any]

OUTLIER_Z = 3.5  # Iglewicz and Hoaglin's threshold for the modified z-score
_WARMUP_WINDOW = 5
_CAPTURE_WARMUPS = 3  # allocations, library handles and workspaces must exist before a capture
_BUSY = 0.8  # below this share of the eager time the device waits for the host


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed block: seconds per call, and why it does not count, if it does not."""

    seconds: float
    dropped: str | None = None


@dataclass(kw_only=True)
class Prepared:
    """A call that is warm, with its block size chosen: ready to be sampled in any order with
    others."""

    timer: "Timer"
    run: Call  # the call itself, or its graph's replay
    num_calls: int
    overhead_fraction: float  # timer overhead / block time
    warmup_s: list[float] = field(default_factory=list)  # seconds per call while it was warming up

    def sample(self) -> Sample:
        """Time one block. A sample taken while throttled, or by a clock that stepped back, comes
        marked as dropped."""
        seconds = self.timer.elapsed_s(self.run, self.num_calls) / self.num_calls
        throttled = self.timer.device.reading().throttled
        if throttled:
            return Sample(seconds=seconds, dropped=f"throttled: {throttled}")
        if not (seconds > 0 and math.isfinite(seconds)):
            return Sample(seconds=seconds, dropped="the clock did not advance")
        return Sample(seconds=seconds)


class Timer:
    """Base: warm-up, block size and overhead; subclasses say how a block is timed.

    ``overhead_target`` is the largest share of a block that the timer itself may cost;
    ``min_block_s`` the shortest block worth taking; ``max_calls`` bounds it where the clock cannot
    resolve the call.
    """

    name: ClassVar[str] = ""
    needs_queue: ClassVar[bool] = False

    def __init__(
        self,
        device: Device,
        *,
        cold: bool | None = None,
        overhead_target: float = 1e-3,
        min_block_s: float = 0.0,
        max_calls: int = 100_000,
    ):
        if self.needs_queue and not device.is_queue:
            raise RequestError(
                f"the {self.name} timer needs a CUDA device, got {device.name}; use the wall timer"
            )
        self.device, self.cold = device, device.is_queue if cold is None else cold
        self.overhead_target, self.min_block_s, self.max_calls = (
            overhead_target,
            min_block_s,
            max_calls,
        )
        self._overhead_s: float | None = None  # found once: the same for every call

    def elapsed_s(self, run: Call, num_calls: int) -> float:
        """Seconds that ``num_calls`` calls took together."""
        raise NotImplementedError

    def set_up(self, call: Call) -> Call:
        """What will be timed in place of ``call``."""
        return call

    def overhead_s(self) -> float:
        """What this timer reads for a block of nothing (median of 9)."""
        return statistics.median(self.elapsed_s(_nothing, 1) for _ in range(9))

    def prepare(
        self,
        call: Call,
        *,
        warmup_budget_s: float = 1.0,
        max_warmups: int = 100,
        called: bool = False,
    ) -> Prepared:
        """Warm the call up and choose its block size. ``called``: it has been called before."""
        if not called:
            call()  # the first call compiles, allocates and loads: it belongs to no sample
            self.device.synchronize()
        run = self.set_up(call)
        if self._overhead_s is None:
            self._overhead_s = self.overhead_s()
        # Cold calls are timed one by one, so a longer block averages but does not dilute the
        # timer's cost.
        needed_s = max(
            self.min_block_s, 0.0 if self.cold else self._overhead_s / self.overhead_target
        )
        num_calls, block_s = 1, self.elapsed_s(run, 1)
        while block_s < needed_s and num_calls < self.max_calls:
            wanted = (
                math.ceil(1.2 * num_calls * needed_s / block_s) if block_s > 0 else 10 * num_calls
            )
            num_calls = min(max(wanted, num_calls + 1), 10 * num_calls, self.max_calls)
            block_s = self.elapsed_s(run, num_calls)
        warmup_s = self._warm_up(run, num_calls, block_s / num_calls, warmup_budget_s, max_warmups)
        cost_s = self._overhead_s * (num_calls if self.cold else 1)
        block_s = warmup_s[-1] * num_calls
        fraction = cost_s / block_s if block_s > 0 else math.inf
        return Prepared(
            timer=self, run=run, num_calls=num_calls, overhead_fraction=fraction, warmup_s=warmup_s
        )

    def _warm_up(
        self, run: Call, num_calls: int, first_s: float, budget_s: float, max_warmups: int
    ) -> list[float]:
        """Sample until the oldest of the last five samples is no longer an outlier among them, or
        the budget is spent.

        ``first_s`` is the sample that chose the block. Five slow calls alike pass for warm: a
        plateau cannot be told from the truth without waiting for its end.
        """
        samples = [first_s]
        while len(samples) < max_warmups and sum(samples) * num_calls < budget_s:
            samples.append(self.elapsed_s(run, num_calls) / num_calls)
            window = samples[-_WARMUP_WINDOW:]
            if len(window) == _WARMUP_WINDOW and abs(modified_z_scores(window)[0]) <= OUTLIER_Z:
                break
        return samples


def _nothing() -> None:
    pass


class WallTimer(Timer):
    """Host clock around a synchronised block."""

    name = "wall"

    def elapsed_s(self, run: Call, num_calls: int) -> float:  # noqa: D102
        if not self.cold:
            return self._block_ns(run, num_calls) * 1e-9
        total_ns = 0
        for _ in range(num_calls):
            self.device.flush_cache()
            total_ns += self._block_ns(run, 1)
        return total_ns * 1e-9

    def _block_ns(self, run: Call, num_calls: int) -> int:
        synchronize, now_ns = self.device.synchronize, self.device.now_ns
        synchronize()
        start_ns = now_ns()
        for _ in range(num_calls):
            run()
        synchronize()
        return now_ns() - start_ns


class EventTimer(Timer):
    """Device events; the queue stays full, so the host's launches hide behind the flush and the
    work before."""

    name = "events"
    needs_queue = True
    idle_queue: ClassVar[bool] = False  # wait for the queue to drain before each timed interval

    def elapsed_s(self, run: Call, num_calls: int) -> float:  # noqa: D102
        device, pairs = self.device, []
        groups, group_calls = (num_calls, 1) if self.cold else (1, num_calls)
        for _ in range(groups):
            if self.cold:
                device.flush_cache()
            if self.idle_queue:
                device.synchronize()
            start = device.record_event()
            for _ in range(group_calls):
                run()
            pairs.append((start, device.record_event()))
        device.synchronize()
        return sum(device.elapsed_s(start, end) for start, end in pairs)


class EagerTimer(EventTimer):
    """Device events on an idle queue: nothing hides the launches."""

    name = "eager"
    idle_queue = True


class GraphTimer(EventTimer):
    """Replay of a captured graph."""

    name = "graph"

    def set_up(self, call: Call) -> Call:
        """Warm up on a side stream, so that the graph holds work and no allocation, then
        capture."""
        with self.device.side_stream():
            for _ in range(_CAPTURE_WARMUPS):
                call()
        self.device.synchronize()
        return self.device.capture(call)


class ProfilerTimer(Timer):
    """Kernel time from the profiler. It has no launch gaps and no timer overhead, whatever the
    block."""

    name = "profiler"
    needs_queue = True

    def overhead_s(self) -> float:
        """Kernels carry their own stamps."""
        return 0.0

    def elapsed_s(self, run: Call, num_calls: int) -> float:  # noqa: D102
        return self.device.profiled_s(
            run, num_calls, before=self.device.flush_cache if self.cold else None
        )


TIMERS: dict[str, type[Timer]] = {
    timer.name: timer for timer in (WallTimer, EventTimer, EagerTimer, GraphTimer, ProfilerTimer)
}


def make_timer(name: str, device: Device, **options: Any) -> Timer:
    """A timer by its name in ``TIMERS``; ``auto`` is ``eager`` on a queue and ``wall`` on a CPU."""
    if name == "auto":
        name = "eager" if device.is_queue else "wall"
    if name not in TIMERS:
        raise unknown("timer", name, [*TIMERS, "auto"])
    return TIMERS[name](device, **options)


def diagnose(
    *,
    eager_s: float,
    device_s: float | None,
    flops: float,
    num_bytes: float,
    peak_flops_per_s: float,
    peak_bandwidth_bytes_per_s: float,
) -> str:
    """What bounds a case, by the clock: ``launch-bound`` where the device idles more than a fifth
    of the eager time.

    Otherwise by which of the case's FLOPs and bytes takes longer at the device's peaks.
    ``device_s`` is None where nothing is launched (a CPU).
    """
    if device_s is not None and device_s < _BUSY * eager_s:
        return "launch-bound"
    return (
        "compute-bound"
        if flops / peak_flops_per_s >= num_bytes / peak_bandwidth_bytes_per_s
        else "memory-bound"
    )
