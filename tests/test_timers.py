"""Timers on a CPU: a fake clock gives exact numbers, the real clock rough ones."""

import time

import pytest
import torch

from flurka_bench.devices.device import (
    CpuDevice,
    Reading,
    open_device,
)
from flurka_bench.devices.timers import (
    TIMERS,
    WallTimer,
    make_timer,
)
from flurka_bench.words.errors import RequestError


class FakeClock:
    """A clock that moves when told, and a little with each reading."""

    def __init__(self, reading_ns=50):
        self.now, self.reading_ns = 0, reading_ns

    def __call__(self):
        self.now += self.reading_ns
        return self.now

    def advance(self, seconds):
        self.now += round(seconds * 1e9)


@pytest.fixture
def clock():
    return FakeClock()


@pytest.mark.parametrize("seconds", [1e-6, 20e-6, 1e-3, 2.0])
def test_a_fake_clock_gives_exact_times(clock, seconds):
    prepared = WallTimer(CpuDevice(clock_ns=clock)).prepare(lambda: clock.advance(seconds))
    assert prepared.sample().seconds == pytest.approx(seconds, rel=1e-3)
    assert prepared.overhead_fraction <= 1.01e-3


def test_the_block_is_as_long_as_the_overhead_asks_and_no_longer(clock):
    # The clock's 50 ns are the overhead: a thousandth of 50 µs, so 50 calls of 1 µs.
    prepared = WallTimer(CpuDevice(clock_ns=clock)).prepare(lambda: clock.advance(1e-6))
    assert 50 <= prepared.num_calls <= 100
    assert (
        WallTimer(CpuDevice(clock_ns=clock), min_block_s=1e-3)
        .prepare(lambda: clock.advance(1e-6))
        .num_calls
        >= 1000
    )
    assert (
        WallTimer(CpuDevice(clock_ns=clock), max_calls=7)
        .prepare(lambda: clock.advance(1e-6))
        .num_calls
        == 7
    )


@pytest.mark.parametrize("num_slow", [0, 1, 3, 4])
def test_warm_up_ends_when_the_first_samples_are_no_outliers(clock, num_slow):
    """After ``prepare`` no sample is slow, however long the start was; a warm call costs no more
    than five samples."""
    calls = 0

    def call():
        nonlocal calls
        calls += 1
        # the first call of all, and num_slow calls after it, of which the first sizes the block
        clock.advance((0.01 if calls <= 1 + num_slow else 0.001) * (1 + 0.01 * (calls % 3)))

    prepared = WallTimer(CpuDevice(clock_ns=clock)).prepare(call)
    assert prepared.sample().seconds < 0.0011
    assert len(prepared.warmup_s) <= num_slow + 5
    assert prepared.warmup_s[-1] < 0.0011


def test_warm_up_stops_at_its_budget(clock):
    calls = 0

    def ever_faster():
        nonlocal calls
        calls += 1
        clock.advance(1.0)

    prepared = WallTimer(CpuDevice(clock_ns=clock)).prepare(ever_faster, warmup_budget_s=2.0)
    assert len(prepared.warmup_s) == 2
    assert calls == 3


def test_a_clock_that_steps_back_gives_a_dropped_sample(clock):
    device = CpuDevice(clock_ns=clock)
    prepared = WallTimer(device).prepare(lambda: clock.advance(1e-3))
    prepared.run = lambda: clock.advance(-5.0)
    assert prepared.sample().dropped == "the clock did not advance"
    prepared.run = lambda: clock.advance(1e-3)
    assert prepared.sample().dropped is None


def test_throttled_samples_are_marked(clock, monkeypatch):
    device = CpuDevice(clock_ns=clock)
    prepared = WallTimer(device).prepare(lambda: clock.advance(1e-3))
    monkeypatch.setattr(device, "reading", lambda: Reading(reasons=("power brake",)))
    assert prepared.sample().dropped == "throttled: power brake"


def test_cold_calls_are_flushed_one_by_one_outside_the_interval(clock, monkeypatch):
    device = CpuDevice(clock_ns=clock)
    warm = False

    def call():
        nonlocal warm
        clock.advance(1e-3 if warm else 3e-3)
        warm = True

    def flush():
        nonlocal warm
        clock.advance(10.0)
        warm = False

    monkeypatch.setattr(device, "flush_cache", flush)
    assert WallTimer(device, cold=True).prepare(call).sample().seconds == pytest.approx(
        3e-3, rel=1e-3
    )
    assert WallTimer(device, cold=False).prepare(call).sample().seconds == pytest.approx(
        1e-3, rel=1e-3
    )
    assert WallTimer(device).cold is False  # a CPU runs from its caches by default


def test_real_clock_and_real_sleep():
    sample = (
        make_timer("auto", CpuDevice())
        .prepare(lambda: time.sleep(0.01), warmup_budget_s=0.1)
        .sample()
    )
    assert 0.01 <= sample.seconds < 0.1


def test_a_flushed_cache_is_slower_to_read():
    device = CpuDevice()
    data = torch.ones(device.cache_bytes // 32)  # an eighth of the last level
    prepared = {cold: WallTimer(device, cold=cold).prepare(data.sum) for cold in (False, True)}
    times = {False: [], True: []}
    for _ in range(30):  # in turns: other programs slow both
        for cold, timer in prepared.items():
            times[cold].append(timer.sample().seconds)
    assert min(times[True]) > min(times[False])


def test_peak_memory_of_a_cpu_call_is_exact():
    x = torch.ones(1000, 1000)

    def call():
        first = x + 1  # 4 MB
        second = first + 1  # 8 MB
        del first
        return second.sum()

    assert 8_000_000 <= CpuDevice().peak_memory_bytes(call) < 8_001_000
    assert CpuDevice().peak_memory_bytes(lambda: None) == 0


@pytest.mark.parametrize("name", sorted(set(TIMERS) - {"wall"}))
def test_timers_that_need_a_queue_say_so(name):
    with pytest.raises(RequestError, match="needs a CUDA device, got cpu"):
        make_timer(name, CpuDevice())


def test_names():
    assert make_timer("auto", CpuDevice()).name == "wall"
    with pytest.raises(RequestError, match="did you mean 'graph'"):
        make_timer("graphs", CpuDevice())
    assert open_device("cpu").name == "cpu"
    with pytest.raises(RequestError, match=r"unknown device 'cudaa'.*accepted: auto, cpu, cuda"):
        open_device("cudaa")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_here():
    assert open_device("auto").name == "cpu"
    with pytest.raises(RequestError, match="no CUDA device; use --device cpu"):
        open_device("cuda:1")
