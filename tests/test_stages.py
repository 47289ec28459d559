"""Attribution of time to stages, on real profiles of a small forward and backward pass."""

import contextlib
import sys
import time
import types

import pytest
import torch
from torch.profiler import record_function

from flurka_bench.devices.device import CpuDevice
from flurka_bench.kinds.timing.stages import (
    attribute,
    stage_times,
)


@pytest.fixture
def ranges(monkeypatch):
    """The mechanisms' switch, standing in: ranges are recorded only while it is on."""
    active = []

    @contextlib.contextmanager
    def profiled_stages():
        active.append(True)
        yield
        active.pop()

    stages = types.ModuleType("flurka_bench.attention.stages")
    stages.profiled_stages = profiled_stages
    monkeypatch.setitem(sys.modules, "flurka_bench.attention.stages", stages)
    return lambda name: record_function(f"stage:{name}") if active else contextlib.nullcontext()


@pytest.mark.parametrize("train", [False, True])
def test_the_heavy_stage_gets_the_time_forward_and_backward(ranges, train):
    x = torch.randn(64, 64, requires_grad=train)
    heavy = torch.randn(64, 6000, requires_grad=train)

    def call():
        with ranges("project"):
            projected = x @ heavy
        with ranges("output"):
            out = (projected[:, :64] * 2).sum()
        if train:
            out.backward()

    times = stage_times(CpuDevice(), call, num_calls=4)
    assert list(times)[:2] == ["project", "output"]
    forward = times["project"]
    if train:
        assert times["project"] > 2 * times["output"]
        # The least of several looks each: other programs only add.
        both = min(
            forward, *(stage_times(CpuDevice(), call, num_calls=4)["project"] for _ in range(4))
        )
        alone = (
            stage_times(CpuDevice(), lambda: forward_only(ranges, x, heavy), num_calls=4)
            for _ in range(5)
        )
        assert both > 1.5 * min(
            times["project"] for times in alone
        )  # the backward of a matmul is two matmuls
    else:
        assert set(times) == {"project", "output"}


def test_a_slow_first_call_and_one_interruption_are_in_no_stage(ranges):
    """The profiler sets itself up during the first call, and a neighbour may take the core during
    another."""
    calls = []

    def call():
        with ranges("project"):
            calls.append(1)
            pause_s = {1: 0.2, 3: 0.1}.get(len(calls), 0.0)
            time.sleep(0.002 + pause_s)
        with ranges("output"):
            time.sleep(0.002)

    times = stage_times(CpuDevice(), call)
    assert len(calls) == 4
    assert 0.002 < times["project"] < 0.02 and 0.002 < times["output"] < 0.02


def forward_only(ranges, x, heavy):
    with ranges("project"):
        return x @ heavy


def test_nothing_without_ranges(ranges):
    x = torch.randn(8, 8, requires_grad=True)
    assert stage_times(CpuDevice(), lambda: (x @ x).sum().backward()) == {}


def event(name, start, end, *, sequence=-1, children=(), device_us=0.0, kind="DeviceType.CPU"):
    span = types.SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return types.SimpleNamespace(
        name=name,
        time_range=span,
        sequence_nr=sequence,
        cpu_children=list(children),
        device_type=kind,
        device_time_total=device_us,
    )


def test_attribution_by_hand():
    """A view in the first stage carries the number of the node that the second creates: the node is
    the second's."""
    view = event("aten::view", 1, 2, sequence=7)
    multiply = event("aten::mul", 12, 18, sequence=7, device_us=40)
    first = event("stage:project", 0, 10, children=[view], device_us=3)
    second = event("stage:output", 11, 19, children=[multiply], device_us=40)
    backward = event(
        "autograd::engine::evaluate_function: MulBackward0", 30, 36, sequence=7, device_us=80
    )
    stray = event(
        "autograd::engine::evaluate_function: torch::autograd::AccumulateGrad", 37, 38, device_us=1
    )
    kernel = event(
        "stage:output", 0, 99, device_us=1000, kind="DeviceType.CUDA"
    )  # the range's own shadow on the device
    events = [backward, second, multiply, first, view, stray, kernel]
    assert attribute(events, on_device=False) == {"project": 10, "output": 14, "other": 1}
    assert attribute(events, on_device=True) == {"project": 3, "output": 120, "other": 1}
