"""How far this machine's predictions for whole cases lie from what it then measures, on cases drawn
at random.

Calibrates (or takes --profile), draws workloads with a few mechanisms each, times them interleaved
and compares. The cases judged take no part in calibration, which sees single operators alone. Seeds
from 1000 up were kept for judging: no figure of the model was looked at on them while it was made.

    python scripts/cpu_whole_cases.py --workloads 24 --seed 1000

Other programs ruin wall times. On a busy machine ``--cpu-clock`` counts one thread's own time
instead.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    MECHANISMS,
    canonical,
    get,
)
from flurka_bench.cost.calibration import fit
from flurka_bench.cost.cpu import REUSES
from flurka_bench.cost.fitting import (
    absolute_percentage_error,
    rows_of_records,
)
from flurka_bench.cost.predict import predict
from flurka_bench.devices import (
    allocator,
    microbenchmarks,
)
from flurka_bench.devices.device import CpuDevice
from flurka_bench.devices.timers import make_timer
from flurka_bench.hardware import (
    Profile,
    load,
)
from flurka_bench.hardware.detect import detect_cpu
from flurka_bench.kinds.timing.workbench import build
from flurka_bench.lowering import (
    lower,
    peak_memory_bytes,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.ops import total

MAX_FLOPS = 60e9  # of one pass: about a second on two cores
MAX_BYTES = 3e9
APART = 1.2  # pairs of one workload that differ by less have no right order


def draw(workloads: int, mechanisms: int, seed: int) -> list[Case]:
    """Cases, workload by workload: each with as many different mechanisms, none of them larger than
    the bounds."""
    random = np.random.default_rng(seed)
    found: list[Case] = []
    while workloads:
        workload = {
            "level": str(random.choice(["core", "layer"])),
            "pass_": str(random.choice(["forward", "forward", "train"])),
            "batch": int(random.choice([1, 1, 2, 4])),
            "num_heads": int(random.choice([4, 8, 12])),
            "head_dim": int(random.choice([32, 64, 96, 128])),
            "seq_len": int(round(np.exp(random.uniform(np.log(1024), np.log(8192))) / 64) * 64),
        }
        rank, num_features = (
            int(random.choice([32, 64, 96, 128, 256])),
            int(random.choice([16, 32, 64, 128, 192])),
        )
        cases = []
        for name in random.permutation(list(MECHANISMS)):
            mechanism = get(str(name))
            knobs = {"rank": rank} if mechanism.compressed else {}
            knobs |= {"num_features": num_features} if mechanism.uses_features else {}
            knobs |= (
                {"order": str(random.choice(mechanism.orders))}
                if workload["level"] == "layer"
                else {}
            )
            try:
                case = canonical(Case(mechanism=mechanism.name, **workload, **knobs))
            except RequestError:
                continue
            if (
                total(lower(case, "cpu"), "flops") < MAX_FLOPS
                and peak_memory_bytes(case, "cpu") < MAX_BYTES
            ):
                cases.append(case)
        if len(cases) >= mechanisms:
            found += cases[:mechanisms]
            workloads -= 1
    return found


def calibrated(device: CpuDevice, threads: int) -> Profile:
    """This machine's profile, as ``flurka-bench calibrate`` makes it."""
    found = microbenchmarks.measure(device)
    bare = detect_cpu(threads).with_measured({REUSES: found.figures["reuses_memory"]}, {})
    return fit(bare, rows_of_records(found.rows))[0]


def measure(cases: Sequence[Case], seconds: float, device: CpuDevice) -> np.ndarray:
    """Seconds of each case: the competitors of a workload take turns, the fastest fifth of their
    samples is averaged."""
    timer = make_timer("wall", device, cold=False)
    found: dict[int, float] = {}
    keys = [case.workload_key for case in cases]
    for key in dict.fromkeys(keys):
        members = [at for at, each in enumerate(keys) if each == key]
        benches = {at: build(cases[at]) for at in members}
        prepared = {
            at: timer.prepare(bench.run, warmup_budget_s=seconds / 4, max_warmups=10)
            for at, bench in benches.items()
        }
        samples: dict[int, list[float]] = {at: [] for at in members}
        end = time.monotonic() + seconds * len(members)
        while min(map(len, samples.values())) < 3 or time.monotonic() < end:
            for at in members:
                samples[at].append(prepared[at].sample().seconds)
        for at in members:
            found[at] = statistics.mean(sorted(samples[at])[: -(-len(samples[at]) // 5)])
            benches[at].release()
        allocator.give_back()
    return np.array([found[at] for at in range(len(cases))])


def report(cases: Sequence[Case], measured: np.ndarray, predicted: np.ndarray) -> None:
    """Errors by mechanism, level and pass; pairs of one workload ordered right, and the error of
    their ratio."""
    error = absolute_percentage_error(predicted, measured)
    signed = 100 * (predicted / measured - 1)
    print(f"{'':22s} {'cases':>5s} {'MAPE':>6s} {'median':>6s} {'mean error':>10s}")

    def line(name: str, chosen: np.ndarray) -> None:
        if chosen.any():
            one = error[chosen]
            print(
                f"{name:22s} {chosen.sum():5d} {one.mean():6.1f} {np.median(one):6.1f} {signed[chosen].mean():+10.1f}"
            )

    line("all", np.full(len(cases), True))
    groups: tuple[Callable[[Case], str], ...] = (
        lambda c: c.mechanism,
        lambda c: c.level,
        lambda c: c.pass_,
    )
    for group in groups:
        names = [group(case) for case in cases]
        for name in dict.fromkeys(sorted(names)):
            line(name, np.array([each == name for each in names]))
    pairs = [
        (one, two)
        for one in range(len(cases))
        for two in range(one)
        if cases[one].workload_key == cases[two].workload_key
    ]
    logs = [
        (np.log(measured[a] / measured[b]), np.log(predicted[a] / predicted[b])) for a, b in pairs
    ]
    apart = [(m, p) for m, p in logs if abs(m) > np.log(APART)]
    right = np.mean([m * p > 0 for m, p in apart])
    print(
        f"pairs of one workload more than {APART} x apart: {len(apart)}, ordered right {right:.1%}"
    )
    off = 100 * np.abs(np.expm1([p - m for m, p in logs]))
    print(
        f"speedup between two of one workload: mean error {off.mean():.1f} %, median {np.median(off):.1f} %"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--profile", type=Path, help="a calibrated profile; by default one is calibrated first"
    )
    parser.add_argument("--workloads", type=int, default=20)
    parser.add_argument("--mechanisms", type=int, default=5, help="of each workload")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.4, help="of samples a case")
    parser.add_argument(
        "--out", type=Path, help="CSV of the cases with measured and predicted seconds"
    )
    parser.add_argument(
        "--cpu-clock", action="store_true", help="one thread, timed by its own clock"
    )
    arguments = parser.parse_args()
    if variables := allocator.worker_variables():  # glibc reads them at the start only
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})
    if arguments.cpu_clock:
        torch.set_num_threads(1)
    device = CpuDevice(clock_ns=time.thread_time_ns) if arguments.cpu_clock else CpuDevice()
    profile = (
        load(str(arguments.profile))
        if arguments.profile
        else calibrated(device, torch.get_num_threads())
    )
    cases = draw(arguments.workloads, arguments.mechanisms, arguments.seed)
    measured = measure(cases, arguments.seconds, device)
    predicted = np.array([prediction.seconds for prediction in predict(cases, profile)])
    report(cases, measured, predicted)
    if arguments.out:
        lines = [
            f"{case.case_id},{m:.6g},{p:.6g}" for case, m, p in zip(cases, measured, predicted)
        ]
        arguments.out.write_text(
            "case_id,measured_s,predicted_s\n" + "\n".join(lines) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
