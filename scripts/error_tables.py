"""The figures of an error run that docs/error.md quotes, as Markdown.

python scripts/error_tables.py results/reference/error --limits results/reference/error-limits
"""

import argparse
from pathlib import Path

from flurka_bench.answers.frontier import (
    ErrorRun,
    Summary,
    load_error_run,
)

ROWS = (
    ("optimal rank k", "low-rank", "optimal", None),
    ("low-rank, learned", "low-rank", "learned", None),
    ("low-rank, mean-pool", "low-rank", "mean-pool", None),
    ("low-rank, orthonormal", "low-rank", "orthonormal", None),
    ("low-rank, gaussian", "low-rank", "gaussian", None),
    ("flurka-relu, learned, m 64", "flurka-relu", "learned", 64),
    ("flurka-favor, learned, m 64", "flurka-favor", "learned", 64),
    ("flurka-elu, learned", "flurka-elu", "learned", 32),
)


def table(header: list[str], rows: list[list[str]]) -> None:
    print("\n| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def cell(item: Summary) -> str:
    low, median, high = item.error
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def trained(run: ErrorRun) -> None:
    own = [item for item in run.summaries if item.inputs == "trained"]
    found = {
        (i.mechanism, i.projection, i.rank, i.num_features): i
        for i in own
        if not (i.share_kv and i.projection != "mean-pool")
    }
    ranks = (16, 64, 256)
    rows = [
        [label, *(cell(found[name, kind, k, m]) for k in ranks)] for label, name, kind, m in ROWS
    ]
    table(["", *(f"k {k}" for k in ranks)], rows)
    rows = [
        [name, *(cell(found[name, None, None, m]) for m in ranks)]
        for name in ("kernel-relu", "kernel-favor")
    ]
    table(["", *(f"m {m}" for m in ranks)], rows)
    print(f"\nkernel-elu (m = 32): {cell(found['kernel-elu', None, None, 32])}")
    flurkas = [item for item in own if item.mechanism.startswith("flurka")]
    means = [item.means for item in flurkas]
    shares = [
        m["output_error"]
        / min(m["low_rank_error"] + m["low_rank_step"], m["kernel_error"] + m["kernel_step"])
        for m in means
    ]
    sums = [m["output_error"] / (m["low_rank_error"] + m["kernel_error"]) for m in means]
    below = {
        parent: sum(m["output_error"] < m[f"{parent}_error"] for m in means)
        for parent in ("low_rank", "kernel")
    }
    medians = [item.error.median for item in flurkas]
    print(
        f"FLuRKA, {len(flurkas)} configurations: median error {min(medians):.2f} to {max(medians):.2f}; mean error"
        f" {min(shares):.0%} to {max(shares):.0%} of the sum allowed, {min(sums):.0%} to {max(sums):.0%} of the"
        " sum of the parents' own errors;"
        f" below its kernel parent's in {below['kernel']}, below its low-rank parent's in {below['low_rank']}"
    )
    learned = [
        (
            found["low-rank", "learned", k, None].error.median,
            found["low-rank", "mean-pool", k, None].error.median,
        )
        for k in ranks
    ]
    print(
        "low-rank, learned against mean-pool:",
        ", ".join(f"{a:.3f} against {b:.3f}" for a, b in learned),
    )


def small_logits(run: ErrorRun) -> None:
    own = [item for item in run.summaries if item.inputs == "gaussian-0.5"]
    wanted = [
        item
        for item in own
        if (item.projection == "mean-pool" and item.mechanism == "low-rank")
        or item.mechanism == "kernel-elu"
        or (item.mechanism == "kernel-relu" and item.num_features >= 64)
    ]  # fmt: skip
    medians = [item.error.median for item in wanted]
    print(
        f"gaussian-0.5, mean-pool, elu + 1 and ReLU features from m = 64 on: {min(medians):.2f} to {max(medians):.2f}"
    )


def limits(run: ErrorRun) -> None:
    own = [item for item in run.summaries if item.inputs == "gaussian-1"]
    ranks = sorted({item.rank for item in own})
    rows: dict[str, dict[int, str]] = {}
    for item in own:
        tail = ", E = F" if item.share_kv and item.projection != "mean-pool" else ""
        median = item.error.median
        rows.setdefault(f"{item.projection}{tail}", {})[item.rank] = (
            "0" if median < 1e-6 else f"{median:.3g}"
        )
    table(
        ["low-rank, gaussian-1, N 256, d 64", *(f"k {k}" for k in ranks)],
        [[n, *(r[k] for k in ranks)] for n, r in rows.items()],
    )


def encoder_norms() -> None:
    """|x|² + |y|² of FAVOR+ (docs/error.md, F1) by layer and head, where the packaged encoder is
    installed."""
    from flurka_bench.kinds.error.inputs import Trained
    from flurka_bench.words.errors import RequestError

    try:
        family = Trained()
    except RequestError as error:
        print(f"no norms: {error}")
        return
    sizes = []
    for layer in family.layers:
        draw = family.draw(0, num_heads=12, seq_len=512, head_dim=32, layer=layer)
        sizes += (
            (draw.q.square().sum(-1).mean(-1) + draw.k.square().sum(-1).mean(-1)) / 32**0.5
        ).tolist()
    print(f"MiniLM: |x|² + |y|² averages {min(sizes):.0f} to {max(sizes):.0f} by head")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--limits", type=Path)
    options = parser.parse_args()
    run = load_error_run(options.run)
    print(f"{sum(item.num_records for item in run.summaries)} records ok")
    trained(run)
    small_logits(run)
    encoder_norms()
    if options.limits:
        limits(load_error_run(options.limits))


if __name__ == "__main__":
    main()
