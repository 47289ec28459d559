"""How much of a run is spent inside calls, and how the runner's memory grows over many records.

    python scripts/bench_overhead.py [RUN ...] [--records 100000]

For each run folder: the share of its wall time, from when the worker was up, inside timed, warm-up
    and gate calls (goals:
80 % for the quick suite, 90 % for core), and inside calls of any kind: to find the peak memory, and
the extra ones for stages or for graph and device time. Without a folder, runs the quick suite into
a temporary one. Then one process appends records of 100 samples, as the runner does, and its
resident memory is read on the way (goal: flat; a minute for 100,000 records).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flurka_bench.cases.case import Case
from flurka_bench.results import (
    RunWriter,
    read_run,
)
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
)

MEASURING = ("timed", "warmup", "gate")


def show_shares(folder: Path) -> None:
    meta = read_run(folder).meta
    print(f"{folder} ({meta['suite']['name']} on {meta['device']})")
    for session in meta["sessions"]:
        parts = ", ".join(
            f"{name} {format_seconds(seconds)}" for name, seconds in session["calls_s"].items()
        )
        wall_s, calls_s = session["wall_s"], session["calls_s"]
        measuring = sum(calls_s.get(name, 0.0) for name in MEASURING) / wall_s
        without_extra = sum(calls_s.get(name, 0.0) for name in MEASURING) / (
            wall_s - calls_s.get("extra", 0.0)
        )
        print(
            f"  {measuring:.1%} of {format_seconds(wall_s)} timed, warm-up and gate ({without_extra:.1%} without the extra calls)"
        )
        print(
            f"  {session['time_in_calls_s'] / wall_s:.1%} inside calls of any kind ({parts}); {session['num_records']} records"
        )


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def show_memory(num_records: int) -> None:
    case = Case(mechanism="flurka-relu", rank=64, num_features=16)
    samples, rounds = [1.234567e-3] * 100, list(range(100))
    fields = {
        "status": "ok",
        "device": "a device",
        "seed": 0,
        "samples_s": samples,
        "round_ids": rounds,
        "median_s": 1e-3,
    }
    os.fsync = lambda descriptor: None  # the disk's patience is not what is measured
    with tempfile.TemporaryDirectory() as folder, RunWriter(folder) as writer:
        writer.start(
            {
                "suite": {"name": "s", "text": ""},
                "environment": {},
                "device": "a device",
                "started": "now",
            }
        )
        first = None
        for index in range(num_records):
            writer.append({**case.as_record(), "case_id": f"{case.case_id}.{index}", **fields})
            if (index + 1) % max(num_records // 10, 1) == 0:
                now = resident_bytes()
                first = first or now
                print(f"  {index + 1:>7} records: {format_bytes(now, 4)} resident")
        grown = resident_bytes() - first
        size = (Path(folder) / "measurements.jsonl").stat().st_size
    print(
        f"  grown by {format_bytes(grown)} over {format_bytes(size)} of records after the first tenth"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = options.runs
        if not runs:
            runs = [Path(temporary) / "quick"]
            command = [
                sys.executable,
                "-m",
                "flurka_bench",
                "run",
                "quick",
                "--device",
                "cpu",
                "--out",
                str(runs[0]),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for folder in runs:
            show_shares(folder)
    print(f"the runner over {options.records} records")
    show_memory(options.records)


if __name__ == "__main__":
    main()
