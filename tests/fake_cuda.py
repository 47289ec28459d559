"""A simulated GPU behind torch's own names: a queue with its own clock, an L2, an allocator,
graphs, a profiler.

``FakeGpu.torch()`` gives an object that has as much of ``torch`` as ``CudaDevice`` uses, so that
the device's own code is what the tests run. Time is simulated: the host's clock moves when the host
does something, the queue's when a kernel runs. What goes wrong on a real GPU goes wrong here by the
same mechanism:

* a call returns when its kernels are queued, so a clock read without synchronising misses their
  time;
* bytes that a kernel touched stay in L2 until newer ones push them out, and are read eight times
  faster from there;
* an allocation that the pool does not hold costs a millisecond, at each replay if it was captured;
* the clock ramps up over the first kernels, as after idling.
"""

import contextlib
import types
from collections import OrderedDict
from dataclasses import dataclass

L2_BYTES = 50_000_000
DRAM_BYTES_PER_S = 2e12
L2_BYTES_PER_S = 16e12
LAUNCH_S, EVENT_S, SYNCHRONIZE_S, CLOCK_READ_S = 5e-6, 1e-6, 2e-6, 50e-9
GRAPH_LAUNCH_S = 6e-6
ALLOCATION_S = 1e-3
NUM_RAMP_KERNELS = 6


@dataclass
class Work:
    """A kernel: seconds of arithmetic and the bytes it touches by buffer; or an allocation that a
    graph has to make."""

    arithmetic_s: float
    touched: dict[str, int]
    is_allocation: bool = False


class Event:
    """A stamp on the queue's clock."""

    gpu: "FakeGpu"

    def __init__(self, enable_timing: bool = False):
        assert enable_timing
        self.stamp_s: float | None = None

    def record(self) -> None:
        self.gpu.host_s += EVENT_S
        self.stamp_s = max(self.gpu.host_s, self.gpu.busy_until_s)

    def elapsed_time(self, end: "Event") -> float:
        if end.stamp_s > self.gpu.host_s:
            raise RuntimeError(
                "Both events must be completed before calculating elapsed time."
            )  # torch's words
        return (end.stamp_s - self.stamp_s) * 1e3


class FakeGpu:
    """The simulation; ``kernel`` and ``allocate`` are what calls are made of."""

    def __init__(self) -> None:
        self.host_s = self.busy_until_s = 0.0
        self.resident: OrderedDict[str, int] = OrderedDict()
        self.pool: set[int] = set()
        self.captured: list[Work] | None = None
        self.num_kernels = 0
        self.live_bytes = self.peak_bytes = 0
        self.profiled: list[types.SimpleNamespace] | None = None
        self.ranges: list[types.SimpleNamespace] = []

    # what a call does

    def kernel(self, arithmetic_s: float, **touched: int) -> None:
        """Queue a kernel."""
        work = Work(arithmetic_s, touched)
        if self.captured is not None:
            self.captured.append(work)
            return
        self.host_s += LAUNCH_S
        self._run(work)

    def allocate(self, num_bytes: int) -> None:
        """Take memory from the pool, or from the driver, which waits for the queue."""
        self.live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        if num_bytes in self.pool:
            return
        if self.captured is not None:
            self.captured.append(Work(ALLOCATION_S, {}, is_allocation=True))
            return
        self.synchronize()
        self.host_s += ALLOCATION_S
        self.pool.add(num_bytes)

    def free(self, num_bytes: int) -> None:
        """Give memory back to the pool."""
        self.live_bytes -= num_bytes

    # the machine

    def kernel_s(self, work: Work, *, warm: bool) -> float:
        """What the clock should say of one kernel once the clock has ramped up."""
        return work.arithmetic_s + sum(work.touched.values()) / (
            L2_BYTES_PER_S if warm else DRAM_BYTES_PER_S
        )

    def _run(self, work: Work) -> None:
        seconds = work.arithmetic_s
        for name, num_bytes in work.touched.items():
            hit = self.resident.pop(name, 0) >= num_bytes
            seconds += num_bytes / (L2_BYTES_PER_S if hit else DRAM_BYTES_PER_S)
            if num_bytes <= L2_BYTES:
                self.resident[name] = num_bytes
            else:
                self.resident.clear()
            while sum(self.resident.values()) > L2_BYTES:
                self.resident.popitem(last=False)
        self.num_kernels += not work.is_allocation
        if self.num_kernels <= NUM_RAMP_KERNELS:
            seconds *= 3
        self.busy_until_s = max(self.host_s, self.busy_until_s) + seconds
        if self.profiled is not None:
            microseconds = seconds * 1e6
            self.profiled.append(
                types.SimpleNamespace(
                    name="kernel", device_type="DeviceType.CUDA", device_time_total=microseconds
                )
            )
            for range_ in self.ranges:
                range_.device_time_total += microseconds

    def synchronize(self, index: int = 0) -> None:
        """The host waits for the queue."""
        self.host_s = max(self.host_s + SYNCHRONIZE_S, self.busy_until_s)

    def now_ns(self) -> int:
        """The host's clock."""
        self.host_s += CLOCK_READ_S
        return round(self.host_s * 1e9)

    # torch's names

    @contextlib.contextmanager
    def _graph(self, graph):
        assert self.captured is None, "captures do not nest"
        self.captured = []
        yield
        works, self.captured = self.captured, None

        def replay() -> None:
            self.host_s += GRAPH_LAUNCH_S
            for work in works:
                self._run(work)

        graph.replay = replay

    @contextlib.contextmanager
    def _profile(self, activities):
        self.profiled = []
        events = self.profiled
        yield types.SimpleNamespace(events=lambda: events)
        self.profiled = None

    @contextlib.contextmanager
    def _range(self, name):
        range_ = types.SimpleNamespace(
            name=name, device_type="DeviceType.CPU", device_time_total=0.0
        )
        self.ranges.append(range_)
        yield
        self.ranges.remove(range_)
        self.profiled.append(range_)

    def torch(self) -> types.SimpleNamespace:
        """As much of torch as the CUDA device uses."""
        gpu = self

        class BoundEvent(Event):
            pass

        BoundEvent.gpu = gpu

        def empty(num_bytes, dtype, device):
            return types.SimpleNamespace(zero_=lambda: gpu.kernel(0.0, flush_buffer=num_bytes))

        stream = types.SimpleNamespace(wait_stream=lambda other: None)
        cuda = types.SimpleNamespace(
            set_device=lambda index: None,
            is_available=lambda: True,
            device_count=lambda: 1,
            get_device_properties=lambda index: types.SimpleNamespace(
                L2_cache_size=L2_BYTES, uuid="fake"
            ),
            synchronize=gpu.synchronize,
            Event=BoundEvent,
            Stream=lambda index: stream,
            current_stream=lambda index: stream,
            stream=lambda stream: contextlib.nullcontext(),
            CUDAGraph=types.SimpleNamespace,
            graph=gpu._graph,
            memory_allocated=lambda index: gpu.live_bytes,
            reset_peak_memory_stats=lambda index: setattr(gpu, "peak_bytes", gpu.live_bytes),
            max_memory_allocated=lambda index: gpu.peak_bytes,
        )
        activities = types.SimpleNamespace(CPU="cpu", CUDA="cuda")
        profiler = types.SimpleNamespace(
            ProfilerActivity=activities, profile=gpu._profile, record_function=gpu._range
        )
        return types.SimpleNamespace(
            cuda=cuda, profiler=profiler, empty=empty, int8="int8", __version__="fake"
        )


def open_fake(monkeypatch):
    """(simulation, a real ``CudaDevice`` on top of it), torch being replaced for the test's
    duration."""
    import sys

    from flurka_bench.devices import probe
    from flurka_bench.devices.device import CudaDevice

    monkeypatch.setattr(probe, "cuda_device_names", lambda: ["fake"])
    monkeypatch.setattr(probe, "_torch_is_cpu_only", lambda: False)
    gpu = FakeGpu()
    torch = gpu.torch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch.profiler", torch.profiler)
    device = CudaDevice(0)
    device.now_ns = gpu.now_ns
    return gpu, device
