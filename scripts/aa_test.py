"""A/A test: a mechanism against itself must not be called FASTER or SLOWER in more than 5 % of trials.

    python scripts/aa_test.py [--trials 200] [--load 0|1] [--budget 0.3]

Each trial builds two competitors from the same code, each with tensors of its own, samples them in interleaved rounds
under the stopping rule and asks for the verdict. With ``--load 1`` another process keeps a core busy in bursts of random
length meanwhile, which is worse than a steady load because it leaves and returns within a trial. Exits 1 above 5 %.
"""

import argparse
import collections
import multiprocessing
import random
import sys
import time

import numpy as np

from flurka_bench.measure.device import CpuDevice
from flurka_bench.measure.statistics import StoppingRule
from flurka_bench.measure.timers import WallTimer, interleave


def burn(longest_burst_s: float) -> None:
    """Keep one core busy, in bursts with pauses a third as long."""
    rng, work = random.Random(1), np.random.default_rng(0).standard_normal((300, 300))
    while True:
        end = time.monotonic() + rng.uniform(0.01, longest_burst_s)
        while time.monotonic() < end:
            work @ work
        time.sleep(rng.uniform(0.0, longest_burst_s / 3))


def attention(seq_len: int, rank: int, head_dim: int, num_heads: int, seed: int):
    """Low-rank attention over tensors of its own: small enough that a trial takes a fraction of a second."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(num_heads, seq_len, head_dim, generator=generator) for _ in range(3))
    compression = torch.randn(rank, seq_len, generator=generator)

    @torch.inference_mode()
    def call():
        keys, values = compression @ k, compression @ v
        return torch.softmax(q @ keys.transpose(1, 2) * head_dim**-0.5, dim=-1) @ values

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--load", type=int, choices=(0, 1), default=0, help="keep another core busy meanwhile")
    parser.add_argument("--budget", type=float, default=0.3, help="seconds of sampling per trial")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: all")
    options = parser.parse_args()
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    timer = WallTimer(CpuDevice())
    rule = StoppingRule(budget_s=options.budget)
    burner = multiprocessing.get_context("spawn").Process(target=burn, args=(0.5,), daemon=True)
    if options.load:
        burner.start()
    verdicts, stops, errors = collections.Counter(), collections.Counter(), []
    try:
        for trial in range(options.trials):
            calls = {name: attention(options.seq_len, 64, 64, 4, seed) for seed, name in enumerate("ab")}
            prepared = {name: timer.prepare(call, warmup_budget_s=0.1) for name, call in calls.items()}
            rounds = interleave(prepared, baseline="a", rule=rule, seed=trial)
            estimate = rounds.ratios["b"]
            verdicts[estimate.verdict] += 1
            stops[rounds.stop_reason] += 1
            errors.append(abs(estimate.ratio - 1))
            if estimate.verdict in ("FASTER", "SLOWER"):
                print(f"trial {trial}: {rounds.stop_reason} {estimate}")
    finally:
        if options.load:
            burner.terminate()
            burner.join()
    wrong = verdicts["FASTER"] + verdicts["SLOWER"]
    print(f"load {options.load}, {options.trials} trials: {dict(verdicts)}; stopped by {dict(stops)}")
    print(
        f"|ratio - 1|: median {np.median(errors):.2%}, 95th percentile {np.quantile(errors, 0.95):.2%}, largest {max(errors):.2%}"
    )
    print(f"called different: {wrong / options.trials:.1%} (goal: at most 5 %)")
    return int(wrong > 0.05 * options.trials)


if __name__ == "__main__":
    sys.exit(main())
