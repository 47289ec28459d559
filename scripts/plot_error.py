"""Figures of an error run: curves against k and m, FLuRKA beside its parents and, with a timing run, error against time.

    python scripts/plot_error.py results/error --out results/error
    python scripts/plot_error.py results/error --timing results/error-time-cpu --seq-len 512 --out results/error

Prints the sentence that goes with error against time: what is fastest at which error, from the data alone.
"""

import argparse
from pathlib import Path

from flurka_bench.plots import error, style
from flurka_bench.plots.tradeoff import pareto
from flurka_bench.quality.frontier import load_error_run
from flurka_bench.results import read_run, to_frame
from flurka_bench.units import format_ratio, format_seconds


def sentence(rows, family: str) -> str:
    """The honest sentence: the exact baseline, and the least error among what is faster."""
    strong = rows[rows["mechanism"] == "full-sdpa"]["seconds"].min()
    faster = rows[(rows["seconds"] < strong) & (rows["error_median"] > 0)]
    size = f"N = {int(rows['seq_len'].iloc[0])}, d = {int(rows['head_dim'].iloc[0])}, {family} inputs"
    if faster.empty:
        return f"At {size}, no approximation was faster than exact attention by full-sdpa ({format_seconds(strong)})."
    best, quickest = faster.loc[faster["error_median"].idxmin()], faster.loc[faster["seconds"].idxmin()]

    def name(row) -> str:
        knobs = ", ".join(
            f"{s} = {int(row[n])}" for n, s in (("rank", "k"), ("num_features", "m")) if row[n] == row[n] and row[n]
        )
        pooled = "mean-pool, " if row["rank"] > 0 and row["compression"] == "mean-pool" else ""
        low, middle, high = (f"{row[f'error_{part}']:.2f}" for part in ("low", "median", "high"))
        return f"{row['mechanism']} ({pooled}{knobs}) with a relative output error of {middle} ({low} to {high})"

    return (
        f"At {size}, exact attention takes {format_seconds(strong)} (full-sdpa); of what is faster, the most accurate is "
        f"{name(best)} at {format_ratio(strong / best['seconds'])}, and the fastest is {name(quickest)} at "
        f"{format_ratio(strong / quickest['seconds'])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of an error run")
    parser.add_argument("--timing", type=Path, help="folder of a timing run")
    parser.add_argument("--inputs", help="only the curves of these inputs, as a comma list of labels")
    parser.add_argument("--family", default="trained")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--level", default="core")
    parser.add_argument("--out", type=Path, help="folder for the pictures; the error run's by default")
    options = parser.parse_args()
    run, out = load_error_run(options.run), options.out or options.run
    written = style.save(error.curves(run, options.inputs and options.inputs.split(",")), out / "error-curves", formats=("png",))
    if options.family in run.families:
        written += style.save(error.parents(run, options.family), out / f"error-parents-{options.family}", formats=("png",))
    if options.timing is not None:
        frame = to_frame(read_run(options.timing))
        frame = frame[(frame["level"] == options.level) & (frame["pass"] == "forward")]
        rows = error.join_time(frame, run, family=options.family, seq_len=options.seq_len)
        title = f"{options.level}, forward, N {options.seq_len}, {options.family} inputs"
        written += style.save(
            pareto(rows, title=title), out / f"error-time-{options.family}-n{options.seq_len}", formats=("png",)
        )
        if not rows.empty:
            print(sentence(rows, options.family))
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
