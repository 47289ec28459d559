"""The process that measures: it imports torch, owns the device, and may die. It knows no kind of
run; the module that holds it is named on its command line. What it says is in ``protocol``."""

import argparse
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable

from flurka_bench.bench.kind import Bench, Kind
from flurka_bench.bench.outcomes import NOBODY, one_line
from flurka_bench.bench.protocol import Heartbeat, Message, encode
from flurka_bench.words.errors import RequestError

POISONED_EXIT = 70


def _die_with_parent() -> None:
    """Have Linux kill this process when its parent dies; elsewhere the closed pipe ends it after
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


def _open(module: str, device: str) -> Bench:
    kind: Kind = importlib.import_module(module).KIND
    return kind.open(device)


def serve(
    arguments: list[str] | None = None, open_bench: Callable[[str, str], Bench] = _open
) -> int:
    """Answer the parent's groups until it closes the pipe; returns the exit status. ``open_bench``
    takes the kind's module and the device."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reply-fd", type=int, required=True)
    parser.add_argument("--heartbeat-fd", type=int, required=True)
    parser.add_argument("--memory-limit", type=int, default=0)
    options = parser.parse_args(arguments)
    _die_with_parent()
    heartbeat = Heartbeat(options.heartbeat_fd)
    with os.fdopen(options.reply_fd, "wb", buffering=0) as reply:

        def say(message: Message) -> None:
            reply.write(encode(message))

        try:
            bench = open_bench(options.kind, options.device)
        except RequestError as error:
            say({"say": "refused", "error": str(error)})
            return 2
        if options.memory_limit:
            _limit_memory(options.memory_limit)
        gc.collect()
        # torch's own million objects stay: collecting between groups need not look at them
        gc.freeze()
        say({"say": "hello", **bench.hello})
        for line in sys.stdin.buffer:
            try:
                bench.run(json.loads(line), say, heartbeat.beat)
            except Exception as error:
                say({"say": "fatal", "error": one_line(error), "calls_s": bench.calls_s})
                return POISONED_EXIT
            heartbeat.beat(NOBODY)
            say({"say": "done", "calls_s": bench.calls_s})
    return 0


if __name__ == "__main__":
    status = serve()
    sys.stderr.flush()
    os._exit(status)  # a poisoned context can hang in torch's own clean-up
