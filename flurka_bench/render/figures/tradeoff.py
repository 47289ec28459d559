"""What speed costs: error and memory beside time; and several devices side by side."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flurka_bench.answers import words
from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.sources import MEASURED, leading
from flurka_bench.answers.speedup import CELL, prepare
from flurka_bench.answers.tradeoff import pareto_front
from flurka_bench.render.figures import style
from flurka_bench.render.figures.curves import _biggest
from flurka_bench.render.figures.heatmap import caption
from flurka_bench.words.units import format_bytes


def pareto(
    rows: pd.DataFrame,
    cost: str = "error_median",
    seconds: str = "seconds",
    title: str = "",
    third: str | None = None,
) -> Figure:
    """Time against an error or memory column, one point per row (needs ``mechanism``); the front is
    joined by a line.

    ``third`` names one more cost: markers grow with it, and rings mark the front of all three.
        Where ``rows`` has
    seconds_low, seconds_high, error_low and error_high, those on the front have their intervals
    drawn.
    """
    known = rows[rows[seconds].notna() & rows[cost].notna() & (rows[cost] >= 0)].reset_index(
        drop=True
    )
    if known.empty:
        return style.says_nothing(f"No row has both {seconds} and {cost}.")
    fig = style.figure(7.8, 5.2)
    axis = fig.subplots()
    areas = (
        pd.Series(36.0, index=known.index)
        if third is None
        else 18 + 130 * (known[third] / known[third].max())
    )
    for mechanism in [name for name in style.LINES if (known["mechanism"] == name).any()]:
        part = known[known["mechanism"] == mechanism]
        line, marker = style.LINES[mechanism]
        colour = style.FAMILY_COLOURS[FAMILY_OF[mechanism]]
        axis.scatter(part[seconds], part[cost], areas[part.index], marker=marker, label=mechanism, edgecolors=colour,
                     facecolors={"-": colour, "--": "none", ":": f"{colour}55"}[line], linewidths=1.2)  # fmt: skip
    flat = known[pareto_front(known[seconds], known[cost])].sort_values(seconds)
    label = "front" if third is None else f"front of time and {cost.split('_')[0]}"
    axis.step(flat[seconds], flat[cost], where="post", color="black", linewidth=1, label=label)
    front = flat
    if third is not None:
        front = known[pareto_front(known[seconds], known[cost], known[third])].sort_values(seconds)
        axis.scatter(front[seconds], front[cost], areas[front.index] + 110, marker="o", facecolors="none", edgecolors="black",
                     linewidths=0.8, label=f"front of these and {_NAMES.get(third, third)}")  # fmt: skip
        for share in (0.1, 1.0):
            size = share * known[third].max()
            axis.scatter(
                [],
                [],
                18 + 130 * share,
                marker="s",
                color="0.7",
                label=f"{_NAMES.get(third, third)} {format_bytes(size)}",
            )
    _intervals(axis, front, seconds, cost)
    labelled = np.full((1, 2), np.inf)
    extent = np.array([np.ptp(np.log(known[seconds])), np.ptp(known[cost].rank())]) + 1e-9
    for _, row in flat.iterrows():
        place = np.array([np.log(row[seconds]), known[cost].rank()[row.name]]) / extent
        if (np.abs(labelled - place).max(axis=1) < 0.08).any():
            continue  # the label would lie on its neighbour's
        labelled = np.vstack([labelled, place])
        knobs = ", ".join(words.sizes(row, words.KNOBS))
        axis.annotate(
            knobs, (row[seconds], row[cost]), xytext=(6, 6), textcoords="offset points", fontsize=7
        )
    style.seconds_axis(axis, "x")
    if (known[cost] > 0).all():
        axis.set_yscale("log")
    if cost.endswith("_bytes"):
        axis.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axis.set_xlabel("time of one call")
    axis.set_ylabel(_NAMES.get(cost, cost.replace("_", " ")))
    axis.set_axisbelow(True)
    axis.grid(True, color="0.92")
    style.title(fig, "What speed costs: the lower left is better" + (f"\n{title}" if title else ""))
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


_NAMES = {
    "peak_memory_bytes": "peak memory",
    "error_median": "relative output error, median and 10th to 90th percentile",
}


def _intervals(axis: Axes, front: pd.DataFrame, seconds: str, cost: str) -> None:
    """Thin bars for what ``front`` has of seconds_low, seconds_high, error_low and error_high."""
    bars = {}
    for name, column, low, high in (
        ("xerr", seconds, "seconds_low", "seconds_high"),
        ("yerr", cost, "error_low", "error_high"),
    ):
        if {low, high} <= set(front.columns) and (name == "xerr" or cost == "error_median"):
            bars[name] = [front[column] - front[low], (front[high] - front[column])]
    if bars:
        axis.errorbar(
            front[seconds],
            front[cost],
            **bars,
            linestyle="none",
            color="0.35",
            linewidth=0.7,
            zorder=0,
        )


def memory(frame: pd.DataFrame) -> Figure:
    """Peak memory against N, log-log, each mechanism in its leanest form at the middle rank and
    num_features."""
    rows = prepare(frame)
    rows = rows[rows["peak_memory_bytes"] > 0]
    if rows.empty:
        return style.says_nothing("No record has a peak memory.")
    rows = _biggest(rows, "seq_len")
    fig = style.figure(7.8, 4.8)
    axis = fig.subplots()
    rows, fixed = words.at_middle(rows)
    for mechanism in [name for name in style.LINES if (rows["mechanism"] == name).any()]:
        own = (
            rows[rows["mechanism"] == mechanism]
            .sort_values("peak_memory_bytes")
            .drop_duplicates("seq_len")
            .sort_values("seq_len")
        )
        line, marker = style.LINES[mechanism]
        colour = style.FAMILY_COLOURS[FAMILY_OF[mechanism]]
        axis.plot(own["seq_len"], own["peak_memory_bytes"], line, marker=marker, color=colour, markersize=5, label=mechanism,
                  markerfacecolor=colour if line == "-" else "white")  # fmt: skip
    style.log_axis(axis, "x", rows["seq_len"].to_numpy())
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axis.set_xlabel(words.axis_words("seq_len"))
    axis.set_ylabel("peak memory of one call")
    axis.grid(True, color="0.92")
    style.title(fig, f"Peak memory\n{caption(rows.iloc[0].to_dict() | {'seq_len': 0} | fixed)}")
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def devices(cells: pd.DataFrame, axis: str = "seq_len") -> Figure:
    """The subject's median speedup per device along one axis, with the range over the other knobs;
    one bar group per value."""
    known = cells[cells["ratio"].notna()]
    cells = known.drop_duplicates([*CELL, "subject", "baseline"])  # measured where it is
    if len(cells):  # one level and one pass, the layer's where there is one
        level = next(name for name in ("layer", "core", "model") if (cells["level"] == name).any())
        cells = cells[cells["level"] == level]
        cells = cells[
            cells["pass"] == ("forward" if (cells["pass"] == "forward").any() else "train")
        ]
    if cells.empty:
        return style.says_nothing("No cell has both sides on any device.")
    fig = style.figure(8.2, 4.2)
    plot = fig.subplots()
    names, places = list(dict.fromkeys(cells["device"])), sorted(set(cells[axis]))
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        part = (
            cells[cells["device"] == name]
            .groupby(axis)["ratio"]
            .agg(["median", "min", "max"])
            .reindex(places)
        )
        where = np.arange(len(places)) + (number - (len(names) - 1) / 2) * width
        told = leading(cells[cells["device"] == name])
        plot.vlines(
            where, part["min"], part["max"], color=colours[number % 7], linewidth=2.5, alpha=0.5
        )
        plot.plot(where, part["median"], "o", color=colours[number % 7], markerfacecolor=None if told == MEASURED else "white",
                  label=f"{style.plain(name)} ({told})")  # fmt: skip
    plot.axhline(1, color="black", linewidth=0.8)
    style.ratio_axis(plot)
    plot.set_xticks(range(len(places)), [str(place) for place in places])
    plot.set_xlabel(words.axis_words(axis))
    first = cells.iloc[0]
    plot.set_ylabel(f"speedup of {first['subject']}")
    style.title(
        fig,
        f"{first['subject']} over {first['baseline']} by device: dot median, line range over rank and num_features\n"
        f"level {first['level']} · {first['pass']} · {', '.join(dict.fromkeys(cells['dtype']))}",
    )
    plot.grid(True, axis="y", color="0.92")
    fig.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return fig
