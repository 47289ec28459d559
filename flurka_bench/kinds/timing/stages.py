"""Time by stage of one call, from torch's profiler and the ranges ``stage:<name>`` that the
mechanisms open.

The forward pass runs inside its ranges. The backward pass does not: autograd runs each node later
and, on a GPU, on a thread of its own, so a node is booked to the stage whose forward op created it,
found by autograd's sequence number. The profiler's own cost is inside these times: they show
shares, and the case's samples show the time.
"""

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from flurka_bench.devices.device import Device
from flurka_bench.words.sizes import STAGES

_PREFIX = "stage:"
_CALL = "flurka_bench: one call"
_BACKWARD = "autograd::engine::evaluate_function"


def stage_times(device: Device, call: Callable[[], Any], *, num_calls: int = 3) -> dict[str, float]:
    """Seconds per call by stage, in the order of ``workload.STAGES``; on a GPU the kernels', on a
    CPU the ops' time.

    Each is the median over ``num_calls``. One more goes before, because the profiler sets itself up
    within its first call: four calls in all, for a case that is warm. ``other`` is what no stage
    holds (accumulating gradients, the loss). A call without ranges gives an empty table.
    """
    from torch.autograd.profiler import profile, record_function  # see CpuDevice.peak_memory_bytes

    from flurka_bench.attention.stages import profiled_stages

    with (
        profiled_stages(),
        profile(use_device="cuda" if device.is_queue else None, use_kineto=True) as profiler,
    ):
        for _ in range(num_calls + 1):
            with record_function(_CALL):
                call()
                device.synchronize()
    calls_us = [
        attribute(events, on_device=device.is_queue)
        for events in _by_call(profiler.function_events)[1:]
    ]
    medians_us = {
        stage: statistics.median(call_us.get(stage, 0.0) for call_us in calls_us)
        for stage in STAGES
    }
    return {stage: spent_us * 1e-6 for stage, spent_us in medians_us.items() if spent_us}


def _by_call(events: Iterable[Any]) -> list[list[Any]]:
    """The host events that began inside each call, on whatever thread."""
    host = [event for event in events if "CPU" in str(event.device_type)]
    spans = sorted(
        (event.time_range.start, event.time_range.end) for event in host if event.name == _CALL
    )
    return [
        [event for event in host if start <= event.time_range.start < end] for start, end in spans
    ]


def attribute(events: Iterable[Any], *, on_device: bool) -> dict[str, float]:
    """Microseconds by stage over a profile's host events; empty where there is no stage at all."""
    events = sorted(
        (event for event in events if "CPU" in str(event.device_type)),
        key=lambda event: event.time_range.start,
    )
    total_us: dict[str, float] = {}
    stage_of_node: dict[int, str] = {}

    def book(stage: str, event: Any) -> None:
        spent_us = event.device_time_total if on_device else event.time_range.elapsed_us()
        total_us[stage] = total_us.get(stage, 0.0) + spent_us

    def walk(event: Any, stage: str) -> None:
        """Note which nodes the stage's ops create; an op that creates none carries the number of
        the next that does."""
        if event.sequence_nr >= 0:
            stage_of_node[event.sequence_nr] = stage
        for child in event.cpu_children:
            walk(child, stage)

    for event in events:
        if event.name.startswith(_PREFIX):
            stage = event.name.removeprefix(_PREFIX)
            book(stage, event)
            walk(event, stage)
    if not total_us:
        return {}
    for event in events:
        if event.name.startswith(_BACKWARD):
            book(stage_of_node.get(event.sequence_nr, "other"), event)
    return total_us
