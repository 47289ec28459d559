"""What random E and F inside the softmax tend to, measured beside what docs/error.md (C4) says of
it.

    python scripts/plot_limits.py --out docs/images/not-a-limit.png

Left: independent Gaussian E and F against full attention, with the exact root mean square of the
    formula; orthonormal ones, and
mean-pool, which does become full attention at k = N. Right: E = F with independent N(0, 1/N)
entries as k grows: its distance from full attention, and from the linear attention to which it
tends. Prints both, and the slope of the second.
"""

import argparse
import math
from pathlib import Path

import torch

from flurka_bench.kinds.error import (
    bounds,
    projections,
)
from flurka_bench.kinds.error.inputs import (
    Gaussian,
    generator,
)
from flurka_bench.render.figures import style

N, D, SEEDS = 256, 64, 10
RANKS, LONG_RANKS = (8, 16, 32, 64, 128, 256, 512, 1024), (64, 256, 1024, 4096, 16384)


def root_mean_square(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def left(draws: list) -> dict[str, list[tuple[int, float]]]:
    """Root-mean-square errors against full attention over the draws, by kind of projection."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for rank in RANKS:
        errors: dict[str, list[float]] = {}
        for seed, (q, k, v, full) in enumerate(draws):
            for kind in ("gaussian", "orthonormal", "mean-pool"):
                if kind != "gaussian" and rank > N:
                    continue
                E, F = projections.draw(
                    kind, rank, N, generator("limits", kind, rank, seed), share_kv=False
                )
                C = bounds.attention(q, E @ k)
                errors.setdefault(kind, []).append(float((C @ (F @ v) - full).norm() / full.norm()))
                if kind == "gaussian":
                    stated = bounds.independent_root_mean_square(C, v, full) / float(full.norm())
                    errors.setdefault("gaussian, exact formula", []).append(stated)
        for kind, values in errors.items():
            curves.setdefault(kind, []).append((rank, root_mean_square(values)))
    return curves


def right(draws: list) -> dict[str, list[tuple[int, float]]]:
    """E = F, entries of variance 1/N: distances from full attention and from the linear attention
    of the statement."""
    curves: dict[str, list[tuple[int, float]]] = {
        "from full attention": [],
        "from linear attention, (QKᵀ/√d)V/N": [],
    }
    for rank in LONG_RANKS:
        errors = {name: [] for name in curves}
        for seed, (q, k, v, full) in enumerate(draws):
            E = torch.randn(
                rank, N, generator=generator("shared", rank, seed), dtype=torch.float64
            ) / math.sqrt(N)
            output = bounds.attention(q, E @ k) @ (E @ v)
            for name, target in zip(curves, (full, bounds.shared_gaussian_limit(q, k, v, 1 / N))):
                errors[name].append(float((output - target).norm() / target.norm()))
        for name, values in errors.items():
            curves[name].append((rank, root_mean_square(values)))
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("docs/images/not-a-limit.png"))
    out = parser.parse_args().out
    draws = []
    for seed in range(SEEDS):
        inputs = Gaussian(scale=0.7).draw(seed, num_heads=1, seq_len=N, head_dim=D)
        q, k, v = inputs.q[0], inputs.k[0], inputs.v[0]
        draws.append((q, k, v, bounds.attention(q, k) @ v))
    fig = style.figure(10, 3.8)
    titles = ("Distance from full attention, E and F apart", "E = F, entries of variance 1/N")
    for axis, title, curves in zip(fig.subplots(1, 2), titles, (left(draws), right(draws))):
        for name, points in curves.items():
            line = "--" if "formula" in name else "-"
            points = [point for point in points if point[1] > 1e-12]  # mean-pool at k = N is exact
            axis.plot(
                *zip(*points), line, marker="" if line == "--" else "o", markersize=4, label=name
            )
            print(name, ", ".join(f"k {rank}: {value:.3g}" for rank, value in points))
        axis.axhline(1, color="0.6", linewidth=0.8)
        axis.set_title(title)
        axis.set_yscale("log")
        style.log_axis(axis, "x", [point[0] for points in curves.values() for point in points])
        axis.set_xlabel(f"rank k (N = {N}, d = {D})")
        axis.set_ylabel("relative distance, root mean square")
        axis.grid(True, color="0.92")
        axis.legend(frameon=False)
    last = curves["from linear attention, (QKᵀ/√d)V/N"]
    print(f"slope {math.log(last[-1][1] / last[0][1]) / math.log(last[-1][0] / last[0][0]):.3f}")
    print(*style.save(fig, out.with_suffix(""), formats=("png",)))


if __name__ == "__main__":
    main()
