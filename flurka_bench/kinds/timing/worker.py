"""The process that measures: it imports torch, owns the device, and may die. What it says is in
``protocol``."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from flurka_bench.bench.protocol import (
    NOBODY,
    Heartbeat,
    case_from_message,
    encode,
    one_line,
)
from flurka_bench.devices.allocator import give_back
from flurka_bench.kinds.timing.group import (
    GroupRun,
    Tools,
)
from flurka_bench.kinds.timing.race import Options
from flurka_bench.words.errors import RequestError

POISONED_EXIT = 70


def _die_with_parent() -> None:
    """Have Linux kill this process when the runner dies; elsewhere the closed pipe ends it after
    the group in hand."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig, sigkill = 1, 9
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, sigkill, 0, 0, 0)


def _limit_memory(num_bytes: int) -> None:
    """Bound the memory this process may still take. Private pages, not address space: mapped
    libraries cost nothing."""
    import resource

    with open("/proc/self/status") as status:
        used_kib = next((int(line.split()[1]) for line in status if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (used_kib * 1024 + num_bytes, resource.RLIM_INFINITY))


def torch_tools(device_name: str) -> tuple[Tools, dict[str, Any]]:
    """The real tools, and what this device and its environment are."""
    import psutil
    import torch

    from flurka_bench.devices import environment
    from flurka_bench.devices.device import open_device
    from flurka_bench.hardware.detect import cpu_name
    from flurka_bench.kinds.timing import workbench

    device = open_device(device_name)
    if device.is_queue:
        properties = torch.cuda.get_device_properties(device.name)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = cpu_name(), psutil.virtual_memory().available
    tools = Tools(
        device=device,
        build=lambda case, seed: workbench.build(case, seed=seed, device=device.name),
        resident_bytes=lambda bench: bench.resident_bytes(),
        incorrect=(workbench.IncorrectOutput,),
        unsupported=(workbench.UnsupportedCase, RequestError, NotImplementedError),
        release=lambda: _release(device),
        stamp=lambda: environment.stamp(device),
        stages=lambda bench: _stages(device, bench),
    )
    seen = environment.capture(device)
    hello = {
        "device": name,
        "memory_bytes": memory,
        "cache_bytes": device.cache_bytes,
        "environment": seen,
    }
    return tools, {**hello, "warnings": environment.warnings(seen)}


def _release(device: Any) -> None:
    gc.collect()
    if device.is_queue:
        device.torch.cuda.empty_cache()
    else:
        give_back()


def _stages(device: Any, bench: Any) -> dict[str, float]:
    from flurka_bench.kinds.timing.stages import stage_times

    return stage_times(device, bench.run)


def serve(
    open_tools: Callable[[str], tuple[Tools, dict[str, Any]]], arguments: list[str] | None = None
) -> int:
    """Answer the runner's groups until it closes the pipe; returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reply-fd", type=int, required=True)
    parser.add_argument("--heartbeat-fd", type=int, required=True)
    parser.add_argument("--memory-limit", type=int, default=0)
    options = parser.parse_args(arguments)
    _die_with_parent()
    heartbeat = Heartbeat(options.heartbeat_fd)
    with os.fdopen(options.reply_fd, "wb", buffering=0) as reply:

        def say(message: dict[str, Any]) -> None:
            reply.write(encode(message))

        try:
            tools, hello = open_tools(options.device)
        except RequestError as error:
            say({"say": "refused", "error": str(error)})
            return 2
        if options.memory_limit:
            _limit_memory(options.memory_limit)
        gc.collect()
        # torch's own million objects stay: collecting between groups need not look at them
        gc.freeze()
        say({"say": "hello", **hello})
        for line in sys.stdin.buffer:
            order = json.loads(line)
            group = GroupRun(tools, Options(**order["options"]), say, heartbeat.beat)
            try:
                group.measure([case_from_message(case) for case in order["cases"]])
            except Exception as error:
                say({"say": "fatal", "error": one_line(error), "calls_s": group.calls_s})
                return POISONED_EXIT
            heartbeat.beat(NOBODY)
            say({"say": "done", "calls_s": group.calls_s})
    return 0


if __name__ == "__main__":
    status = serve(torch_tools)
    sys.stderr.flush()
    os._exit(status)  # a poisoned context can hang in torch's own clean-up
