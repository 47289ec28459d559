"""A worker without torch, whose cases misbehave on demand: what the runner's tests start in place
of the real one.

FLURKA_BENCH_FAKE holds JSON: {"cost_s": seconds a call takes, "<mechanism>": fault,
    "<mechanism>@<seq_len>": fault}.
"""

import ctypes
import json
import os
import signal
import sys
import time

from flurka_bench.bench.worker import serve
from flurka_bench.devices.device import CpuDevice
from flurka_bench.kinds.timing.bench import TimingBench
from flurka_bench.kinds.timing.group import Tools

PLAN = json.loads(os.environ.get("FLURKA_BENCH_FAKE", "{}"))


class WrongError(Exception):
    pass


class FakeDevice(CpuDevice):
    def peak_memory_bytes(self, call):
        call()
        return 1000


class Subject:
    def __init__(self, case):
        self.fault = PLAN.get(f"{case.mechanism}@{case.seq_len}") or PLAN.get(case.mechanism) or ""
        self.cost_s = PLAN.get("cost_s", 2e-5)
        self.calls = 0
        if self.fault == "build-oom":
            raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB")
        if self.fault == "unsupported":
            raise NotImplementedError("no such kernel here")

    def check(self):
        if self.fault == "wrong":
            raise WrongError("output is off by 7.5 tolerances")
        if self.fault == "nan":
            raise WrongError("3 of 4 elements of the output are NaN or Inf")

    def run(self):
        self.calls += 1
        late = self.calls > PLAN.get("late", 12)  # in the rounds, after warm-up
        if self.fault == "hang" and late:
            while True:
                time.sleep(60)
        if self.fault == "kill" and late:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "segfault" and late:
            ctypes.string_at(0)
        if self.fault == "raise" and late:
            raise ValueError("shapes do not match\nsecond line")
        if self.fault == "oom" and late:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.fault == "poison" and late:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.fault == "exhaust" and late:
            hoard = []
            while True:
                hoard.append(bytearray(b"x" * (16 << 20)))
        end = time.perf_counter() + self.cost_s
        while time.perf_counter() < end:
            pass


if os.environ.get("FLURKA_BENCH_FAKE_CLOCK") == "backwards":
    _wall = iter(range(2 * 10**9, 0, -3600))
    time.time = lambda: float(next(_wall))


def open_tools(device_name):
    if device_name == "cuda:7":
        from flurka_bench.words.errors import RequestError

        raise RequestError("device 'cuda:7' is not here")
    if PLAN.get("start") == "fail":
        sys.exit("no torch today")
    if "failing_starts" in PLAN:  # a file with a letter for each start that still fails
        with open(PLAN["failing_starts"], "r+") as file:
            left = file.read()
            file.truncate(max(len(left) - 1, 0))
        if left:
            os.kill(os.getpid(), signal.SIGKILL)
    tools = Tools(
        device=FakeDevice(),
        build=lambda case, seed: Subject(case),
        resident_bytes=lambda subject: 500,
        incorrect=(WrongError,),
        unsupported=(NotImplementedError,),
    )
    return tools, {
        "device": "fake device",
        "memory_bytes": 10**12,
        "cache_bytes": 0,
        "environment": {"fake": True},
    }


if __name__ == "__main__":
    sys.exit(serve(open_bench=lambda _, device: TimingBench(*open_tools(device))))
