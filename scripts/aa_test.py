"""A/A test: a mechanism against itself must not be called FASTER or SLOWER in more than 5 % of
trials.

    python scripts/aa_test.py [--trials 200] [--load 0|1] [--budget 0.3] [--threads 1] [--out
    results/reference/aa.json]

Each trial hands the worker's own code a group of one case twice over: two competitors with tensors
of their own, gated, warmed up, sampled in interleaved rounds until the interval is narrow or the
budget spent. Then it asks for the verdict. With ``--load 1`` another process keeps a core busy in
bursts of random length meanwhile, which is worse than a steady load because it leaves and returns
within a trial. Prints the verdicts, by what stopped the trial and how far the ratios were from 1;
``--out`` keeps that in a JSON file beside the answer for the other load. 200 trials take about four
minutes. Exits 1 above 5 %.
"""

import argparse
import collections
import json
import multiprocessing
import random
import sys
import time
from pathlib import Path

import numpy as np

from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.hardware.detect import cpu_name
from flurka_bench.kinds.timing.bench import torch_tools
from flurka_bench.kinds.timing.group import (
    GroupRun,
    Tools,
)
from flurka_bench.kinds.timing.race import Options
from flurka_bench.words.statistics import (
    RatioEstimate,
    paired_ratio,
)


def burn(longest_burst_s: float) -> None:
    """Keep one core busy, in bursts with pauses a third as long."""
    rng, work = random.Random(1), np.random.default_rng(0).standard_normal((300, 300))
    while True:
        end = time.monotonic() + rng.uniform(0.01, longest_burst_s)
        while time.monotonic() < end:
            work @ work
        time.sleep(rng.uniform(0.0, longest_burst_s / 3))


def trial(tools: Tools, case: Case, budget_s: float, seed: int) -> tuple[RatioEstimate, str]:
    """One group of the case twice over: what the runner would have measured, and the verdict on the
    two."""
    outcomes: dict[int, dict] = {}

    def say(message: dict) -> None:
        if message["say"] == "outcome":
            outcomes[message["index"]] = message

    options = Options(seed=seed, budget_s=2 * budget_s, case_time_s=budget_s)
    GroupRun(tools, options, say, lambda index: None).measure([case, case])
    left, right = outcomes[0], outcomes[1]
    estimate = paired_ratio(
        left["samples_s"], right["samples_s"], left["round_ids"], right["round_ids"], seed=seed
    )
    return estimate, left["stop_reason"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument(
        "--load", type=int, choices=(0, 1), default=0, help="keep another core busy meanwhile"
    )
    parser.add_argument(
        "--budget", type=float, default=0.3, help="seconds of sampling per competitor"
    )
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: all")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    tools, _ = torch_tools("cpu")
    case = registry.canonical(
        Case(
            mechanism="flurka-relu",
            num_heads=4,
            seq_len=options.seq_len,
            head_dim=64,
            rank=64,
            num_features=32,
        )
    )
    burner = multiprocessing.get_context("spawn").Process(target=burn, args=(0.5,), daemon=True)
    if options.load:
        burner.start()
    verdicts, stops, errors, num_rounds = collections.Counter(), collections.Counter(), [], []
    started = time.monotonic()
    try:
        for number in range(options.trials):
            estimate, reason = trial(tools, case, options.budget, seed=number)
            verdicts[estimate.verdict] += 1
            stops[reason] += 1
            errors.append(abs(estimate.ratio - 1))
            num_rounds.append(estimate.num_pairs)
            if estimate.verdict in ("FASTER", "SLOWER"):
                print(f"trial {number}: {reason} {estimate}")
    finally:
        if options.load:
            burner.terminate()
            burner.join()
    share = (verdicts["FASTER"] + verdicts["SLOWER"]) / options.trials
    found = {
        "trials": options.trials,
        "budget_s": options.budget,
        "threads": torch.get_num_threads(),
        "device": cpu_name(),
        "verdicts": dict(verdicts),
        "stopped_by": dict(stops),
        "called_different": share,
        "median_rounds": float(np.median(num_rounds)),
        "error_median": round(float(np.median(errors)), 5),
        "error_p95": round(float(np.quantile(errors, 0.95)), 5),
        "error_largest": round(max(errors), 5),
        "wall_s": round(time.monotonic() - started, 1),
    }
    print(f"load {options.load}: {json.dumps(found)}")
    print(f"called different: {share:.1%} (goal: at most 5 %)")
    if options.out:
        before = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(
            json.dumps(before | {"loaded" if options.load else "idle": found}, indent=1) + "\n"
        )
    return int(share > 0.05)


if __name__ == "__main__":
    sys.exit(main())
