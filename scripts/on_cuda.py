"""Everything that only a machine with a CUDA device can prove or measure, in one command: ``make
cuda``.

    python scripts/on_cuda.py [--device cuda:0] [--out results/reference/DEVICE] [--quick]

In this order, each step with its own time limit, a failed step reported and the rest carried on:
the correctness tests on the device, timers against ``triton.testing.do_bench``, ``calibrate``, then
the suites ``quick``, ``core``, ``layer`` and ``paper`` with the new profile, and the report over
all of them. ``--quick`` leaves out core and paper.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        sys.exit(
            "error: PyTorch finds no CUDA device here; install a CUDA build of torch and check 'nvidia-smi'"
        )
    slug = torch.cuda.get_device_name(options.device).lower().replace(" ", "-")
    out = options.out or ROOT / "results" / "reference" / slug
    out.mkdir(parents=True, exist_ok=True)
    profile = out / "profile.toml"
    bench = [sys.executable, "-m", "flurka_bench"]
    suites = ["quick", "layer"] if options.quick else ["quick", "core", "layer", "paper"]
    steps = [
        (
            "correctness on the device",
            [sys.executable, "-m", "pytest", "-q", "tests/test_cuda.py"],
            900,
        ),
        ("timers against do_bench", [sys.executable, "scripts/bench_timers.py"], 300),
        (
            "calibrate",
            [*bench, "calibrate", "--device", options.device, "--out", str(profile)],
            300,
        ),
    ]
    for suite in suites:
        hardware = ["--hardware", str(profile)]
        steps.append(
            (
                f"suite {suite}",
                [
                    *bench,
                    "run",
                    suite,
                    "--device",
                    options.device,
                    "--out",
                    str(out / suite),
                    *hardware,
                ],
                5400,
            )
        )
        steps.append((f"pictures of {suite}", [*bench, "plot", str(out / suite)], 300))
    steps.append(
        (
            "report",
            [
                *bench,
                "report",
                *[str(out / suite) for suite in suites],
                "--out",
                str(out / "report.html"),
            ],
            600,
        )
    )

    failed = []
    for name, command, limit in steps:
        print(f"== {name}: {' '.join(command)}", flush=True)
        start = time.perf_counter()
        try:
            code = subprocess.run(command, cwd=ROOT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            code = f"no end after {limit} s"
        print(
            f"== {name}: {'done' if code == 0 else f'FAILED ({code})'} in {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        failed += [] if code == 0 else [name]
    print(
        f"\n{len(steps) - len(failed)} passed, {len(failed)} failed"
        + (f": {', '.join(failed)}" if failed else "")
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
