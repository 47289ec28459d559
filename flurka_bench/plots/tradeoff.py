"""What speed costs: error and memory beside time; and several devices side by side."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flurka_bench.analysis.baselines import FAMILY_OF
from flurka_bench.analysis.speedup import prepare
from flurka_bench.plots import style
from flurka_bench.plots.curves import _biggest
from flurka_bench.plots.heatmap import caption
from flurka_bench.units import format_bytes


def pareto_front(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points no other point beats in both (smaller is better): a boolean array."""
    order = np.lexsort((y, x))
    least, front = np.inf, np.zeros(len(x), dtype=bool)
    for index in order:
        if y[index] < least:
            front[index], least = True, y[index]
    return front


def pareto(rows: pd.DataFrame, cost: str = "error_median", seconds: str = "seconds", title: str = "") -> Figure:
    """Time against an error or memory column, one point per row (needs ``mechanism``); the front is joined by a line."""
    known = rows[rows[seconds].notna() & rows[cost].notna() & (rows[cost] >= 0)]
    if known.empty:
        return style.says_nothing(f"No row has both {seconds} and {cost}.")
    fig = style.figure(7.2, 4.8)
    axis = fig.subplots()
    for mechanism in [name for name in style.LINES if (known["mechanism"] == name).any()]:
        part = known[known["mechanism"] == mechanism]
        line, marker = style.LINES[mechanism]
        colour = style.FAMILY_COLOURS[FAMILY_OF[mechanism]]
        axis.plot(part[seconds], part[cost], marker, color=colour, label=mechanism, markersize=6, alpha=0.8, linestyle="none",
                  markerfacecolor=colour if line == "-" else "none")  # fmt: skip
    front = known[pareto_front(known[seconds].to_numpy(), known[cost].to_numpy())].sort_values(seconds)
    axis.step(front[seconds], front[cost], where="post", color="black", linewidth=1, label="front")
    labelled = np.full((1, 2), np.inf)
    extent = np.array([np.ptp(np.log(known[seconds])), np.ptp(known[cost].rank())]) + 1e-9
    for _, row in front.iterrows():
        place = np.array([np.log(row[seconds]), known[cost].rank()[row.name]]) / extent
        if (np.abs(labelled - place).max(axis=1) < 0.08).any():
            continue  # the label would lie on its neighbour's
        labelled = np.vstack([labelled, place])
        knobs = ", ".join(
            f"{symbol} {int(row[name])}" for name, symbol in (("rank", "k"), ("num_features", "m")) if row.get(name, 0) > 0
        )
        axis.annotate(knobs, (row[seconds], row[cost]), xytext=(4, 4), textcoords="offset points", fontsize=7)
    style.seconds_axis(axis, "x")
    if (known[cost] > 0).all():
        axis.set_yscale("log")
    if cost.endswith("_bytes"):
        axis.yaxis.set_major_formatter(lambda value, _: format_bytes(value))
    axis.set_xlabel("time of one call")
    axis.set_ylabel({"peak_memory_bytes": "peak memory"}.get(cost, cost.replace("_", " ")))
    axis.grid(True, color="0.92")
    style.title(fig, "What speed costs: the lower left is better" + (f"\n{title}" if title else ""))
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def memory(frame: pd.DataFrame) -> Figure:
    """Peak memory against N, log-log, each mechanism in its leanest form at the middle rank and num_features."""
    rows = prepare(frame)
    rows = rows[rows["peak_memory_bytes"] > 0]
    if rows.empty:
        return style.says_nothing("No record has a peak memory.")
    rows = _biggest(rows, "seq_len")
    fig = style.figure(7.8, 4.8)
    axis = fig.subplots()
    fixed = {}
    for knob in ("rank", "num_features"):
        tested = sorted(set(rows.loc[~rows["mechanism"].str.endswith("-elu"), knob]) - {0})
        fixed[knob] = tested[len(tested) // 2] if tested else 0
        free = rows["mechanism"].str.endswith("-elu") if knob == "num_features" else False
        rows = rows[rows[knob].isin([0, fixed[knob]]) | free]
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
    axis.set_xlabel(style.SYMBOLS["seq_len"])
    axis.set_ylabel("peak memory of one call")
    axis.grid(True, color="0.92")
    style.title(fig, f"Peak memory\n{caption(rows.iloc[0].to_dict() | {'seq_len': 0} | fixed)}")
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def devices(cells: pd.DataFrame, axis: str = "seq_len") -> Figure:
    """The subject's median speedup per device along one axis, with the range over the other knobs; one bar group per value."""
    cells = cells.assign(shown=cells["speedup"].where(cells["speedup"].notna(), cells["predicted_speedup"]))
    cells = cells[cells["shown"].notna()]
    if len(cells):  # one level and one pass, the layer's where there is one
        level = next(name for name in ("layer", "core", "model") if (cells["level"] == name).any())
        cells = cells[cells["level"] == level]
        cells = cells[cells["pass"] == ("forward" if (cells["pass"] == "forward").any() else "train")]
    if cells.empty:
        return style.says_nothing("No cell has both sides on any device.")
    fig = style.figure(8.2, 4.2)
    plot = fig.subplots()
    names, places = list(dict.fromkeys(cells["device"])), sorted(set(cells[axis]))
    colours = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        part = cells[cells["device"] == name].groupby(axis)["shown"].agg(["median", "min", "max"]).reindex(places)
        where = np.arange(len(places)) + (number - (len(names) - 1) / 2) * width
        measured = cells.loc[cells["device"] == name, "speedup"].notna().any()
        plot.vlines(where, part["min"], part["max"], color=colours[number % 7], linewidth=2.5, alpha=0.5)
        plot.plot(where, part["median"], "o", color=colours[number % 7], markerfacecolor=None if measured else "white",
                  label=f"{name} ({'measured' if measured else 'predicted'})")  # fmt: skip
    plot.axhline(1, color="black", linewidth=0.8)
    style.ratio_axis(plot)
    plot.set_xticks(range(len(places)), [str(place) for place in places])
    plot.set_xlabel(style.SYMBOLS[axis])
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
