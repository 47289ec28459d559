"""CUDA timers against triton.testing.do_bench, on ten matmuls from 20 µs to 20 ms; run it on a
machine with a GPU.

    python scripts/bench_timers.py [--device cuda:0] [--tolerance 3%]

For each shape, in alternation and five times over, the medians of ``do_bench`` (its own 256 MB
flush) and of the ``events`` timer (the device's L2, twice over) are taken; the ratio of their
medians must lie within the tolerance. Beside them stand ``eager``, ``graph`` and ``profiler`` times
and the verdict, so that the three latencies can be read together. Exits 1 past it.
"""

import argparse
import statistics
import sys

from flurka_bench.cli.common import print_table
from flurka_bench.devices.device import (
    CudaDevice,
    open_device,
)
from flurka_bench.devices.timers import (
    EventTimer,
    diagnose,
    make_timer,
)
from flurka_bench.hardware.detect import recognise
from flurka_bench.words.errors import RequestError
from flurka_bench.words.units import (
    format_seconds,
    parse_fraction,
)

LENGTHS_S = [20e-6 * 1000 ** (step / 9) for step in range(10)]


def shapes(device: CudaDevice) -> list[tuple[int, int, int]]:
    """Bfloat16 matmuls (rows, inner, cols) that take about ``LENGTHS_S`` on this device: sized by
    one measured matmul."""
    torch = device.torch
    x = torch.randn(8192, 8192, device=device.name, dtype=torch.bfloat16)
    seconds = EventTimer(device).prepare(lambda: x @ x).sample().seconds
    rate = 2 * 8192**3 / seconds
    found = []
    for length_s in LENGTHS_S:
        side = 1024 if length_s < 100e-6 else 2048 if length_s < 1e-3 else 8192
        rows = max(128, round(length_s * rate / (2 * side * side) / 128) * 128)
        found.append((rows, side, side))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--tolerance", default="3%")
    options = parser.parse_args()
    tolerance = parse_fraction(options.tolerance)
    try:
        device = open_device(options.device)
    except RequestError as error:
        parser.error(str(error))
    if not isinstance(device, CudaDevice):
        parser.error("this script needs a CUDA device")
    from triton.testing import do_bench

    torch = device.torch
    profile = recognise(torch.cuda.get_device_name(device.index))
    rows, worst = [], 0.0
    for m, n, k in shapes(device):
        x, y = (
            torch.randn(*shape, device=device.name, dtype=torch.bfloat16)
            for shape in ((m, n), (n, k))
        )

        def call(x=x, y=y):
            return x @ y

        events = EventTimer(device, cold=True, min_block_s=20e-3).prepare(call)
        theirs, ours = [], []
        for _ in range(5):
            theirs.append(do_bench(call, warmup=25, rep=100, return_mode="median") * 1e-3)
            ours.append(events.sample().seconds)
        reference, own = statistics.median(theirs), statistics.median(ours)
        others = {
            name: make_timer(name, device).prepare(call).sample().seconds
            for name in ("eager", "graph", "profiler")
        }
        verdict = "" if profile is None else diagnose(
            eager_s=others["eager"], device_s=others["profiler"], flops=2.0 * m * n * k, num_bytes=2.0 * (m * n + n * k + m * k),
            peak_flops_per_s=profile.peak_flops[profile.matmul_unit("bfloat16")],
            peak_bandwidth_bytes_per_s=profile.memory_bandwidth_bytes_per_s,
        )  # fmt: skip
        worst = max(worst, abs(own / reference - 1))
        times = [format_seconds(value) for value in (reference, own, *others.values())]
        rows.append((f"{m} x {n} x {k}", *times, f"{own / reference - 1:+.1%}", verdict))
    print_table(
        (
            "matmul bfloat16",
            "do_bench",
            "events",
            "eager",
            "graph",
            "profiler",
            "events / do_bench",
            "verdict",
        ),
        rows,
    )
    print(
        f"\nlargest difference {worst:.1%} (goal: at most {tolerance:.0%}) on {torch.cuda.get_device_name(device.index)}"
    )
    return int(worst > tolerance)


if __name__ == "__main__":
    sys.exit(main())
