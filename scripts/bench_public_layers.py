"""Our eager layers against the public ``linformer`` and ``performer-pytorch`` layers, same sizes,
same arithmetic, interleaved.

    python scripts/bench_public_layers.py [--rounds 30] [--threads 2]

Each round times every layer of a group once, in random order; a ratio is theirs / ours within one
round, so that slow phases of the machine hit both. Printed: the median ratio with its 95 %
bootstrap interval (above 1: ours is faster). Needs ``pip install linformer performer-pytorch``.
Their weights are copied into ours, and the outputs compared first: equal but for FAVOR+, where
theirs adds 1e-4 to every feature, a bias that ours does without.
"""

import argparse
import random
import time
import warnings

import numpy as np
import torch

from flurka_bench.attention import (
    LinformerAttention,
    PerformerAttention,
)
from flurka_bench.hardware.detect import cpu_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from linformer.linformer import LinformerSelfAttention
    from performer_pytorch import SelfAttention

MODEL_DIM, NUM_HEADS, RANK, NUM_FEATURES = 512, 8, 128, 64


def pairs(seq_len: int) -> dict[str, tuple[torch.nn.Module, torch.nn.Module]]:
    """By name, their layer and ours with their weights."""
    result = {}
    theirs = LinformerSelfAttention(MODEL_DIM, seq_len, k=RANK, heads=NUM_HEADS)
    ours = LinformerAttention(
        MODEL_DIM, NUM_HEADS, seq_len, RANK, sdpa=False, order="project_first"
    )
    with torch.no_grad():
        ours.compression.weight_k.copy_(theirs.proj_k.T)
        ours.compression.weight_v.copy_(theirs.proj_v.T)
    result["linformer"] = (theirs, ours)
    for name, generalized in (("favor", False), ("relu", True)):
        theirs = SelfAttention(
            MODEL_DIM,
            heads=NUM_HEADS,
            dim_head=MODEL_DIM // NUM_HEADS,
            nb_features=NUM_FEATURES,
            generalized_attention=generalized,
        )
        ours = PerformerAttention(
            MODEL_DIM, NUM_HEADS, NUM_FEATURES, similarity=name, order="project_first"
        )
        scale = (MODEL_DIM // NUM_HEADS) ** -0.25
        with torch.no_grad():
            ours.similarity.omega.copy_(theirs.fast_attention.projection_matrix.T * scale)
        result[f"performer {name}"] = (theirs, ours)
    for theirs, ours in result.values():
        with torch.no_grad():
            for name in ("to_q", "to_k", "to_v", "to_out"):
                getattr(ours, name).weight.copy_(getattr(theirs, name).weight)
            theirs.to_out.bias.zero_()  # ours has none
    return result


def one_pass(layer: torch.nn.Module, x: torch.Tensor, train: bool) -> float:
    """Seconds of one forward, or of forward and backward."""
    start = time.perf_counter()
    if train:
        layer(x).sum().backward()
    else:
        with torch.inference_mode():
            layer(x)
    seconds = time.perf_counter() - start
    layer.zero_grad(set_to_none=True)
    x.grad = None
    return seconds


def interval(ratios: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    medians = np.median(rng.choice(ratios, size=(4000, len(ratios))), axis=1)
    return tuple(np.quantile(medians, (0.025, 0.975)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seq-len", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    print(
        f"{cpu_name()}, torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds"
    )
    print(f"D {MODEL_DIM}, h {NUM_HEADS}, k {RANK}, m {NUM_FEATURES}, float32")
    print(
        "layer            pass     batch      N  theirs ms   ours ms  ratio  95 % interval   outputs differ by"
    )
    for seq_len in arguments.seq_len:
        for batch in arguments.batch:
            for name, (theirs, ours) in pairs(seq_len).items():
                for train in (False, True):
                    x = torch.randn(batch, seq_len, MODEL_DIM, requires_grad=train)
                    with torch.inference_mode():
                        difference = float((theirs(x) - ours(x)).norm() / theirs(x).norm())
                    for layer in (theirs, ours) * 2:
                        one_pass(layer, x, train)
                    times = np.empty((arguments.rounds, 2))
                    for round_id in range(arguments.rounds):
                        for i in random.sample((0, 1), 2):
                            times[round_id, i] = one_pass((theirs, ours)[i], x, train)
                    ratios = times[:, 0] / times[:, 1]
                    low, high = interval(ratios, rng)
                    medians = 1e3 * np.median(times, axis=0)
                    print(
                        f"{name:16} {'train' if train else 'forward':8} {batch:>5} {seq_len:>6}"
                        f" {medians[0]:>10.1f} {medians[1]:>9.1f} {np.median(ratios):>6.2f}"
                        f"  {low:.2f} to {high:.2f}    {difference:.1e}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
