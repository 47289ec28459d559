"""What a worker says of its device without a suite: its environment, and the times of operators.

``doctor`` and ``calibrate`` ask here, because what they find must hold for a run's worker, whose
allocator is told at its start to keep what it frees (``devices.allocator``).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flurka_bench.bench.budget import Budget
from flurka_bench.bench.executor import Executor, Local
from flurka_bench.bench.kind import Bench, Event, Kind, Place, WorkerOptions
from flurka_bench.bench.process import StopError, Stopper
from flurka_bench.bench.protocol import Beat, Message, Say
from flurka_bench.results import Form
from flurka_bench.words.errors import FlurkaError, Interrupted

if TYPE_CHECKING:
    from flurka_bench.devices.device import Device
    from flurka_bench.devices.microbenchmarks import Calibration

_FORM = Form(kind="calibration", fields={}, command="flurka-bench calibrate")


class CalibrationBench:
    """See ``bench.kind.Bench``."""

    def __init__(self, device: "Device") -> None:
        from flurka_bench.devices.environment import introduce

        self._device = device
        self.hello: Message = introduce(device)
        self.calls_s: dict[str, float] = {}

    def run(self, group: Message, say: Say, beat: Beat) -> None:
        """Measure the operators of the dtypes, within the budget in seconds."""
        from flurka_bench.devices import microbenchmarks

        def step(done: int, total: int, text: str) -> None:
            say({"say": "phase", "num_done": done, "num_cases": total, "text": text})

        found = microbenchmarks.measure(self._device, **group, on_progress=step)
        outcome = {"status": "ok", "found": asdict(found), "properties": _properties(self._device)}
        say({"say": "outcome", "index": 0, **outcome})


def _open(device: str) -> Bench:
    from flurka_bench.devices.device import open_device

    return CalibrationBench(open_device(device))


KIND = Kind(form=_FORM, module=__name__, open=_open)


def _properties(device: "Device") -> dict[str, Any]:
    """What a device reports of itself, for a profile: a CPU's threads, or the arguments of
    ``hardware.detect.from_cuda_properties`` but for the name (0: not reported)."""
    import torch

    if not device.is_queue:
        return {"num_threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(device.name)
    clock_khz, memory_khz = (
        getattr(found, name, 0) for name in ("clock_rate", "memory_clock_rate")
    )
    nvml = getattr(device, "nvml", None)
    default_mhz = (nvml.default_clock_mhz or 0) if nvml else 0
    return {
        "capability": (found.major, found.minor),
        "num_sms": found.multi_processor_count,
        "clock_hz": clock_khz * 1e3 or default_mhz * 1e6,
        "memory_bytes": found.total_memory,
        "l2_bytes": device.cache_bytes,
        "bandwidth_bytes_per_s": 2 * memory_khz * 1e3 * getattr(found, "memory_bus_width", 0) / 8,
        "shared_memory_per_sm_bytes": getattr(found, "shared_memory_per_multiprocessor", 0),
    }


@contextmanager
def _worker(device: str) -> Iterator[tuple[Executor, Place]]:
    """A worker on a device (cpu, cuda:N), for as long as the block runs."""
    with Stopper() as stopper:
        options, budget = WorkerOptions(device=device), Budget(None)
        worker = Local(KIND, options, stopper=stopper, budget=budget, tell=lambda text: None)
        try:
            yield worker, worker.open()
        except StopError:
            raise Interrupted("interrupted") from None
        finally:
            worker.close(at_once=True)


def environment_of(device: str) -> Mapping[str, Any]:
    """The environment in which a worker on this device (cpu, cuda:N) finds itself. Raises
    RequestError where none starts."""
    with _worker(device) as (_, place):
        return place.environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a worker measured on its device, what the device reports of itself (``_properties``),
    and the environment."""

    calibration: "Calibration"
    properties: Mapping[str, Any]
    environment: Mapping[str, Any]


def measure(
    device: str,
    *,
    dtypes: Sequence[str] | None,
    budget_s: float | None,
    on_event: Callable[[Event], None],
) -> Measured:
    """Have a worker measure single operators (``devices.microbenchmarks.measure``).

    Raises RequestError where no worker starts, FlurkaError where it dies.
    """
    from flurka_bench.devices.microbenchmarks import Calibration

    def hear(message: Message) -> None:
        if message["say"] == "phase":
            content = {key: value for key, value in message.items() if key != "say"}
            on_event(Event(kind="step", **content))

    with _worker(device) as (worker, place):
        for warning in place.warnings:
            on_event(Event(kind="warning", text=warning))
        order = {"dtypes": dtypes, "budget_s": budget_s}
        answer = worker.submit(order, timeout_s=math.inf, hear=hear)
    if answer.death is not None:
        raise FlurkaError(f"calibration ended: {answer.death.error}")
    outcome = answer.outcomes[0]
    return Measured(
        calibration=Calibration(**outcome["found"]),
        properties=outcome["properties"],
        environment=place.environment,
    )
