"""Lines: time against N, speedup against k, m or N."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.crossover import (
    crossovers,
    forms,
    in_words,
)
from flurka_bench.answers.sources import MEASURED, PREDICTED, leading, of
from flurka_bench.answers.speedup import (
    CELL,
    WORKLOAD,
    prepare,
)
from flurka_bench.answers.words import at_middle, axis_words, middle
from flurka_bench.render.figures import style
from flurka_bench.render.figures.heatmap import (
    axis_name,
    caption,
)
from flurka_bench.words.sizes import SIZES


def _biggest(rows: pd.DataFrame, free: str) -> pd.DataFrame:
    """The rows of the workload (but for one axis) that most of them share."""
    keys = [name for name in WORKLOAD if name != free]
    return max((part for _, part in rows.groupby(keys, sort=False)), key=len)


def scaling_curves(
    frame: pd.DataFrame, rank: int | None = None, num_features: int | None = None
) -> Figure:
    """Median time against N, log-log: dots are measured (bars: the middle half of the samples),
    lines are the model.

    Each mechanism stands in its fastest order and backend, at one rank and num_features (the middle
    ones tested, by default).
    """
    rows = prepare(frame)
    rows = rows[rows["seconds"].notna() | rows["predicted_s"].notna()]
    if rows.empty:
        return style.says_nothing("Neither a measured nor a predicted time: nothing to draw.")
    rows = _biggest(rows, "seq_len")
    rows, at = at_middle(rows, rank=rank, num_features=num_features)
    fig = style.figure(8.2, 5.2)
    axis = fig.subplots()
    for mechanism in style.LINES:
        own = rows[rows["mechanism"] == mechanism]
        if own.empty:
            continue
        line, marker = style.LINES[mechanism]
        colour = style.FAMILY_COLOURS[FAMILY_OF[mechanism]]
        predicted = (
            own[own["predicted_s"].notna()]
            .sort_values("predicted_s")
            .drop_duplicates("seq_len")
            .sort_values("seq_len")
        )
        measured = (
            own[own["seconds"].notna()]
            .sort_values("seconds")
            .drop_duplicates("seq_len")
            .sort_values("seq_len")
        )
        if len(predicted):
            axis.plot(
                predicted["seq_len"],
                predicted["predicted_s"],
                line,
                color=colour,
                linewidth=1.3,
                alpha=0.85,
            )
        if len(measured):
            spread = [
                np.quantile(s, [0.25, 0.75]) if s is not None and len(s) else [t, t]
                for s, t in zip(measured["samples_s"], measured["seconds"])
            ]
            centre = measured["seconds"].to_numpy()
            bars = np.abs(np.array(spread).T - centre)
            axis.errorbar(measured["seq_len"], centre, bars, fmt=marker, color=colour, markersize=5, linewidth=1,
                          markerfacecolor="white" if line != "-" else colour)  # fmt: skip
        axis.plot(
            [],
            [],
            line,
            color=colour,
            marker=marker,
            markersize=5,
            markerfacecolor="white" if line != "-" else colour,
            label=mechanism,
        )
    style.log_axis(axis, "x", rows["seq_len"].to_numpy())
    style.seconds_axis(axis, "y")
    axis.set_xlabel(axis_words("seq_len"))
    axis.set_ylabel("time of one call")
    axis.grid(True, which="major", color="0.9")
    sample = rows.iloc[0].to_dict() | at | {"seq_len": 0}
    style.title(fig, f"Time against N: dots measured, lines predicted\n{caption(sample)}")
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def _torn(pairs: np.ndarray, x: np.ndarray, *columns: pd.Series) -> list[np.ndarray]:
    """``x`` and the columns with a gap (nan) wherever the number in ``pairs`` changes."""
    gaps = np.flatnonzero(np.diff(pairs)) + 1
    return [np.insert(np.asarray(values, dtype=float), gaps, np.nan) for values in (x, *columns)]


def crossover_curves(cells: pd.DataFrame, axis: str = "rank") -> Figure:
    """Speedup against one axis with its interval, one colour per baseline in ``cells``; dashed:
    predicted.

    Everything else is at the middle value tested. The legend says where the subject starts or stops
    to win; baselines for which the same case stands share a line. A line breaks where the forms that
    are compared change, as nothing was timed between two different ones.
    """
    axis_name(axis)
    known = cells.groupby(["baseline", "cell"])["ratio"].transform("count")
    cells = cells[known > 0]  # by a clock or the model
    if cells.empty:
        return style.says_nothing("No cell has both sides: nothing to draw.")
    for name in CELL:
        if name != axis and cells[name].nunique() > 1:
            keep = middle(cells[name]) if name in SIZES else cells[name].mode().iloc[0]
            cells = cells[cells[name] == keep]
    if cells.empty:
        return style.says_nothing(f"No line along {axis}.")
    fig = style.figure(8.2, 4.6)
    plot = fig.subplots()
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]
    same: dict[tuple, list[str]] = {}
    parts = {}
    for name, part in cells.groupby("baseline", sort=False):
        parts[name] = part = part.drop_duplicates([axis, "source"]).sort_values(axis)
        key = tuple(part[[axis, "source", "baseline_row"]].itertuples(index=False, name=None))
        same.setdefault(key, []).append(str(name))
    for colour, names in zip(colours * 9, same.values()):
        name, part = " = ".join(names), parts[names[0]]
        words = crossovers(of(part, leading(part)), axis)
        label = f"{name}: {in_words(words.iloc[0].to_dict())}" if len(words) else name
        own = of(part, MEASURED)
        x = own[axis].to_numpy()
        bounded = own["high"].where(np.isfinite(own["high"]), own["ratio"])
        least = own["low"].where(own["low"] > 0, own["ratio"])
        torn, *edges = _torn(forms(own), x, own["ratio"], least, bounded)
        plot.fill_between(torn, *edges[1:], color=colour, alpha=0.2, linewidth=0)
        plot.vlines(x, least, bounded, color=colour, alpha=0.35, linewidth=2)  # of lone points too
        plot.plot(torn, edges[0], "o-", color=colour, markersize=4, label=label)
        own = of(part, PREDICTED)
        torn, line = _torn(forms(own), own[axis].to_numpy(), own["ratio"])
        plot.plot(torn, line, "x--", color=colour, linewidth=1, markersize=4)
    plot.axhline(1, color="black", linewidth=0.8)
    style.ratio_axis(plot)
    style.log_axis(plot, "x", cells[axis].to_numpy())
    plot.set_xlabel(axis_words(axis))
    first = cells.iloc[0].to_dict()
    plot.set_ylabel(f"speedup of {first['subject']}")
    plot.grid(True, color="0.92")
    style.title(
        fig,
        f"Where {first['subject']} wins: solid measured (band: 95 % interval), dashed predicted;"
        f" a gap: other forms\n{caption(first | {axis: 0})}",
    )
    fig.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, title="wins")
    return fig
