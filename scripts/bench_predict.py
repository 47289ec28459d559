"""How many whole cases a second the predictor answers on one core, what memory a long sweep takes,
and the shell's start.

    OMP_NUM_THREADS=1 python scripts/bench_predict.py [--cases 200000] [--long 10000000]

Cases of a mechanism differ in every size; each is lowered, predicted op by op, summed with its
band, stages, bound and peak memory. ``--long`` runs a sweep of that many cases chunk by chunk and
prints the growth of the process's memory.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cost.predict import predict_many
from flurka_bench.hardware import load

MECHANISMS = (
    "full-math",
    "full-sdpa",
    "low-rank",
    "low-rank-sdpa",
    "kernel-relu",
    "kernel-favor",
    "flurka-relu",
    "flurka-favor",
)
GOAL_PER_S = 100_000


def sweep(mechanism: str, level: str, count: int) -> Case:
    """Random cases, all sizes varying."""
    draw = np.random.default_rng(0).integers
    sizes = {
        "batch": (2, 17),
        "num_heads": (1, 33),
        "seq_len": (1024, 65_537),
        "rank": (16, 1025),
        "num_features": (16, 257),
    }
    columns = {name: draw(*bounds, count) for name, bounds in sizes.items()}
    return Case(
        mechanism=mechanism,
        level=level,
        dtype="bfloat16",
        head_dim=32 * 2 ** draw(0, 3, count),
        **columns,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=200_000, help="cases a mechanism and level")
    parser.add_argument(
        "--long", type=int, default=0, help="cases of one long sweep, for the memory"
    )
    parser.add_argument("--hardware", default="h100")
    arguments = parser.parse_args()
    profile = load(arguments.hardware)
    spent, done = 0.0, 0
    for level in ("core", "layer"):
        for mechanism in MECHANISMS:
            case = sweep(mechanism, level, arguments.cases)
            start = (
                time.process_time()
            )  # one thread: a core's seconds, whoever else is on the machine
            count = sum(len(part) for part in predict_many(case, profile))
            seconds = time.process_time() - start
            spent, done = spent + seconds, done + count
            print(f"{level:6s} {mechanism:14s} {count / seconds:12,.0f} cases a second")
    print(f"all           {done / spent:18,.0f} cases a second (goal {GOAL_PER_S:,})")
    if arguments.long:
        case = sweep("flurka-relu", "core", arguments.long)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        count = sum(len(part) for part in predict_many(case, profile))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        sizes = sum(
            array.nbytes
            for array in (
                case.batch,
                case.num_heads,
                case.seq_len,
                case.head_dim,
                case.rank,
                case.num_features,
            )
        )
        print(
            f"{count:,} cases in {time.perf_counter() - start:.1f} s; peak memory grew by {(after - before) / 1024:.0f} MiB"
            f" beyond the sizes' own {sizes / 2**20:.0f} MiB"
        )
    shell = [_best([sys.executable, "-m", "flurka_bench", "predict", "--hardware", "h100", "--mechanism", "flurka-relu"]),
             _best([sys.executable, "-c", "import numpy"])]  # fmt: skip
    print(
        f"one predict from the shell: {shell[0] * 1e3:.0f} ms, import numpy: {shell[1] * 1e3:.0f} ms,"
        f" ratio {shell[0] / shell[1]:.2f} (goal 3)"
    )
    return 0


def _best(command: list[str], runs: int = 7) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    sys.exit(main())
