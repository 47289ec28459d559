"""The worker's side of the kind "timing": the real tools, and a group's way through them."""

import gc
from typing import Any

from flurka_bench.bench.protocol import Beat, Message, Say
from flurka_bench.cases.case import Case
from flurka_bench.devices.allocator import give_back
from flurka_bench.kinds.timing.group import GroupRun, Tools
from flurka_bench.kinds.timing.race import Options
from flurka_bench.words.errors import RequestError


class TimingBench:
    """See ``bench.kind.Bench``."""

    def __init__(self, tools: Tools, hello: Message) -> None:
        self.tools, self.hello = tools, hello
        self.calls_s: dict[str, float] = {}

    def run(self, group: Message, say: Say, beat: Beat) -> None:
        """Time a group that ``TimingPlan.message`` made."""
        run = GroupRun(self.tools, Options(**group["options"]), say, beat)
        self.calls_s = run.calls_s
        run.measure([case_of(record) for record in group["cases"]])


def case_of(record: Message) -> Case:
    """The inverse of ``Case.as_record``."""
    return Case.of(record)


def open_bench(device: str) -> TimingBench:
    """The bench of a device. Raises RequestError for one that is not here."""
    return TimingBench(*torch_tools(device))


def torch_tools(device_name: str) -> tuple[Tools, Message]:
    """The real tools, and what this device and its environment are."""
    from flurka_bench.devices import environment
    from flurka_bench.devices.device import open_device
    from flurka_bench.kinds.timing import workbench

    device = open_device(device_name)
    tools = Tools(
        device=device,
        build=lambda case, seed: workbench.build(case, seed=seed, device=device.name),
        resident_bytes=_resident_bytes,
        incorrect=(workbench.IncorrectOutput,),
        unsupported=(workbench.UnsupportedCase, RequestError, NotImplementedError),
        release=lambda: _release(device),
        stamp=lambda: environment.stamp(device),
        stages=lambda bench: _stages(device, bench),
    )
    return tools, environment.introduce(device)


def _release(device: Any) -> None:
    gc.collect()
    if device.is_queue:
        device.torch.cuda.empty_cache()
    else:
        give_back()


def _resident_bytes(built: Any) -> int:
    held: int = built.resident_bytes()
    return held


def _stages(device: Any, bench: Any) -> dict[str, float]:
    from flurka_bench.kinds.timing.stages import stage_times

    return stage_times(device, bench.run)
