"""The CUDA timers against a simulated GPU whose true times are known, and against themselves with
one part broken.

Every negative test breaks a timer in one place and shows that the check used by the positive tests
notices.
"""

import pytest
from fake_cuda import DRAM_BYTES_PER_S, GRAPH_LAUNCH_S, L2_BYTES_PER_S, LAUNCH_S, open_fake

from flurka_bench.devices.device import (
    Reading,
    open_device,
)
from flurka_bench.devices.timers import (
    EagerTimer,
    EventTimer,
    GraphTimer,
    ProfilerTimer,
    WallTimer,
    diagnose,
    make_timer,
)
from flurka_bench.words.errors import RequestError

MEGABYTES = 32  # read by the call: they fit in L2, so warm is not cold
COLD_S, WARM_S = MEGABYTES * 1e6 / DRAM_BYTES_PER_S, MEGABYTES * 1e6 / L2_BYTES_PER_S


@pytest.fixture
def fake(monkeypatch):
    return open_fake(monkeypatch)


def call_of(gpu, *, arithmetic_s=100e-6, num_kernels=1, allocates=0):
    """A call of ``num_kernels`` kernels, the first of which reads 32 MB."""

    def call():
        if allocates:
            gpu.allocate(allocates)
        gpu.kernel(arithmetic_s / num_kernels, inputs=int(MEGABYTES * 1e6))
        for _ in range(num_kernels - 1):
            gpu.kernel(arithmetic_s / num_kernels)
        if allocates:
            gpu.free(allocates)

    return call


def check_time(timer, call, expected_s, tolerance=0.03):
    """The timer's samples say what is true of the simulated GPU."""
    prepared = timer.prepare(call, warmup_budget_s=1.0)
    for _ in range(3):
        sample = prepared.sample()
        assert sample.dropped is None
        assert sample.seconds == pytest.approx(expected_s, rel=tolerance)


# Ten lengths from 20 µs to 20 ms.
LENGTHS_S = [20e-6 * 1000 ** (step / 9) for step in range(10)]


@pytest.mark.parametrize("arithmetic_s", LENGTHS_S)
@pytest.mark.parametrize("cold", [True, False])
@pytest.mark.parametrize("kind", [EventTimer, ProfilerTimer])
def test_device_time_is_kernel_time(fake, kind, cold, arithmetic_s):
    gpu, device = fake
    expected_s = arithmetic_s + (COLD_S if cold else WARM_S)
    check_time(
        kind(device, cold=cold), call_of(gpu, arithmetic_s=arithmetic_s), expected_s, tolerance=0.06
    )


@pytest.mark.parametrize("arithmetic_s", LENGTHS_S)
def test_eager_time_holds_every_launch_that_the_device_waits_for(fake, arithmetic_s):
    gpu, device = fake
    num_kernels = 8
    each_s = arithmetic_s / num_kernels
    # The first kernel starts one launch after the start event; later ones when both they and the
    # device are ready.
    launched_s = finished_s = 0.0
    for index in range(num_kernels):
        launched_s += LAUNCH_S
        finished_s = max(launched_s, finished_s) + each_s + (COLD_S if index == 0 else 0.0)
    check_time(
        EagerTimer(device),
        call_of(gpu, arithmetic_s=arithmetic_s, num_kernels=num_kernels),
        finished_s,
    )


def test_graph_replay_pays_one_launch(fake):
    gpu, device = fake
    call = call_of(gpu, arithmetic_s=16e-6, num_kernels=16)
    check_time(
        GraphTimer(device, cold=True), call, 16e-6 + COLD_S, tolerance=0.15
    )  # the replay hides behind the flush
    check_time(EagerTimer(device), call, 16 * LAUNCH_S, tolerance=0.15)


def test_warm_graph_replay_of_a_short_call_shows_the_graph_launch(fake):
    gpu, device = fake
    check_time(
        GraphTimer(device, cold=False),
        call_of(gpu, arithmetic_s=1e-6),
        GRAPH_LAUNCH_S,
        tolerance=0.05,
    )


@pytest.mark.parametrize("cold", [True, False])
def test_wall_time_on_a_queue(fake, cold):
    gpu, device = fake
    expected_s = LAUNCH_S + 5e-3 + (COLD_S if cold else WARM_S)
    check_time(
        WallTimer(device, cold=cold), call_of(gpu, arithmetic_s=5e-3), expected_s, tolerance=0.01
    )


# Timers broken on purpose.


class WallWithoutSynchronise(WallTimer):
    def _block_ns(self, run, num_calls):
        start_ns = self.device.now_ns()
        for _ in range(num_calls):
            run()
        return self.device.now_ns() - start_ns


class EventsWithoutSynchronise(EventTimer):
    def elapsed_s(self, run, num_calls):
        start = self.device.record_event()
        for _ in range(num_calls):
            run()
        return self.device.elapsed_s(start, self.device.record_event())


class GraphWithoutWarmUp(GraphTimer):
    def set_up(self, call):
        return self.device.capture(call)


class FlushInsideTheInterval(EventTimer):
    def elapsed_s(self, run, num_calls):
        def flushed():
            self.device.flush_cache()
            run()

        self.cold = False
        return super().elapsed_s(flushed, num_calls)


class EagerOnAFullQueue(EagerTimer):
    idle_queue = False


class ProfilerThatCountsTheFlush(ProfilerTimer):
    def elapsed_s(self, run, num_calls):
        def flushed():
            self.device.flush_cache()
            run()

        return self.device.profiled_s(flushed, num_calls)


def fails(timer, call, expected_s, tolerance):
    with pytest.raises((AssertionError, RuntimeError)):
        check_time(timer, call, expected_s, tolerance)


def test_a_forgotten_synchronisation_is_noticed(fake):
    gpu, device = fake
    call = call_of(gpu, arithmetic_s=5e-3)
    check_time(WallTimer(device, cold=False), call, 5e-3, 0.01)
    fails(WallWithoutSynchronise(device, cold=False), call, 5e-3, 0.01)
    check_time(EventTimer(device, cold=False), call, 5e-3, 0.01)
    fails(EventsWithoutSynchronise(device, cold=False), call, 5e-3, 0.01)


def test_a_warm_cache_is_noticed(fake, monkeypatch):
    gpu, device = fake
    call = call_of(gpu, arithmetic_s=10e-6)
    expected_s = 10e-6 + COLD_S
    for timer in (EventTimer(device), GraphTimer(device), ProfilerTimer(device)):
        check_time(timer, call, expected_s, 0.15)
    monkeypatch.setattr(device, "flush_cache", lambda: None)
    for timer in (EventTimer(device), GraphTimer(device), ProfilerTimer(device)):
        fails(timer, call, expected_s, 0.15)


def test_a_flush_smaller_than_the_cache_is_noticed(fake):
    gpu, device = fake
    device.cache_bytes //= 8
    fails(EventTimer(device), call_of(gpu, arithmetic_s=10e-6), 10e-6 + COLD_S, 0.15)


def test_a_flush_inside_the_interval_is_noticed(fake):
    gpu, device = fake
    call = call_of(gpu)
    fails(FlushInsideTheInterval(device), call, 100e-6 + COLD_S, 0.06)
    fails(ProfilerThatCountsTheFlush(device), call, 100e-6 + COLD_S, 0.06)


def test_an_allocation_inside_the_graph_is_noticed(fake):
    gpu, device = fake
    first, second = (call_of(gpu, allocates=size) for size in (1000, 2000))
    # ``prepare`` calls once before ``set_up``, which fills the pool; a graph captured cold must be
    # seen for what it is
    broken = GraphWithoutWarmUp(device)
    run = broken.set_up(first)
    assert broken.elapsed_s(run, 1) > 1e-3
    timer = GraphTimer(device)
    run = timer.set_up(second)
    timer.elapsed_s(run, 3)
    assert timer.elapsed_s(run, 1) == pytest.approx(100e-6 + COLD_S, rel=0.06)


def test_launches_hidden_by_a_full_queue_are_noticed(fake):
    gpu, device = fake
    call = call_of(gpu, arithmetic_s=16e-6, num_kernels=16)
    check_time(EagerTimer(device), call, 16 * LAUNCH_S, 0.15)
    fails(EagerOnAFullQueue(device), call, 16 * LAUNCH_S, 0.15)


# Blocks, warm-up, throttling, memory.


def test_blocks_grow_until_the_timer_costs_under_a_thousandth(fake):
    gpu, device = fake
    prepared = WallTimer(device, cold=False).prepare(call_of(gpu, arithmetic_s=20e-6))
    assert prepared.num_calls > 50
    assert 0 < prepared.overhead_fraction < 1.1e-3
    long = WallTimer(device, cold=False).prepare(call_of(gpu, arithmetic_s=20e-3))
    assert long.num_calls == 1
    loose = WallTimer(device, cold=False, overhead_target=0.05).prepare(
        call_of(gpu, arithmetic_s=20e-6)
    )
    assert loose.num_calls < prepared.num_calls / 10


def test_throttled_samples_come_marked(fake, monkeypatch):
    gpu, device = fake
    prepared = EventTimer(device).prepare(call_of(gpu))
    readings = iter(
        [
            Reading(clock_fraction=0.76),
            Reading(clock_fraction=0.74),
            Reading(clock_fraction=1.0, reasons=("hardware thermal",)),
            Reading(),
        ]
    )
    monkeypatch.setattr(device, "reading", lambda: next(readings))
    dropped = [prepared.sample().dropped for _ in range(4)]
    assert dropped == [
        None,
        "throttled: clock at 74% of its default",
        "throttled: hardware thermal",
        None,
    ]


def test_peak_memory_is_the_peak_during_the_call(fake):
    gpu, device = fake
    gpu.allocate(10_000_000)  # lives before, does not count

    def call():
        gpu.allocate(3_000)
        gpu.allocate(4_000)
        gpu.free(3_000)
        gpu.allocate(1_000)

    assert device.peak_memory_bytes(call) == 7_000


@pytest.mark.parametrize(
    ("eager_s", "device_s", "flops", "num_bytes", "expected"),
    [
        (100e-6, 20e-6, 1e9, 1e6, "launch-bound"),
        (
            100e-6,
            95e-6,
            1e10,
            1e6,
            "compute-bound",
        ),  # 10 µs of arithmetic against 0.5 µs of traffic
        (100e-6, 95e-6, 1e9, 1e8, "memory-bound"),
        (100e-6, None, 1e9, 1e8, "memory-bound"),  # a CPU: nothing is launched
    ],
)
def test_diagnosis(eager_s, device_s, flops, num_bytes, expected):
    peaks = {"peak_flops_per_s": 1e15, "peak_bandwidth_bytes_per_s": 2e12}
    assert (
        diagnose(eager_s=eager_s, device_s=device_s, flops=flops, num_bytes=num_bytes, **peaks)
        == expected
    )


def test_devices_and_timers_by_name(fake, monkeypatch):
    _, device = fake
    assert make_timer("auto", device).name == "eager"
    assert open_device("cuda:0").name == "cuda:0"
    assert open_device("auto").name == "cuda:0"
    with pytest.raises(RequestError, match=r"the driver knows cuda:0 \(fake\)"):
        open_device("cuda:3")
    monkeypatch.setattr(
        "flurka_bench.devices.probe.cuda_device_names",
        lambda: ["fake", "one that torch cannot use"],
    )
    with pytest.raises(RequestError, match=r"'cuda:1'.*torch fake sees 1 CUDA devices"):
        open_device("cuda:1")
