"""How long the command takes to start, as ratios taken in one interleaved run.

    python scripts/bench_startup.py [--rounds 15]

Prints the median of each command's wall time and the median of its pairwise ratio to its yardstick,
with the limit that the project holds itself to: ``--help`` within 3x of importing typer and rich,
``predict`` within 3x of importing NumPy.
"""

import argparse
import statistics
import subprocess
import sys
import time

SHAPE = ["--seq-len", "4096", "--rank", "128", "--num-features", "64"]
PREDICT = [
    "predict",
    "--hardware",
    "h100",
    "--mechanism",
    "flurka-relu",
    "--level",
    "layer",
    *SHAPE,
]
COMMANDS = {
    "import typer, rich": [sys.executable, "-c", "import typer, rich"],
    "import numpy": [sys.executable, "-c", "import numpy"],
    "flurka-bench --help": [sys.executable, "-m", "flurka_bench", "--help"],
    "flurka-bench predict": [sys.executable, "-m", "flurka_bench", *PREDICT],
    "flurka-bench predict --json": [sys.executable, "-m", "flurka_bench", *PREDICT, "--json"],
}
YARDSTICKS = {
    "flurka-bench --help": ("import typer, rich", 3.0),
    "flurka-bench predict": ("import numpy", 3.0),
    "flurka-bench predict --json": ("import numpy", 3.0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    times = {name: [] for name in COMMANDS}
    for index in range(rounds + 1):  # the first round fills the file cache and is not counted
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if index:
                times[name].append(time.perf_counter() - start)
    for name, samples in times.items():
        line = f"{name:30} {statistics.median(samples) * 1e3:7.1f} ms"
        if name in YARDSTICKS:
            yardstick, limit = YARDSTICKS[name]
            ratio = statistics.median(own / other for own, other in zip(samples, times[yardstick]))
            line += f"   {ratio:.2f} x '{yardstick}' (limit {limit:g} x)"
        print(line)


if __name__ == "__main__":
    main()
