"""The model beside the clock: predicted against measured, its error as a map, roofline, stages."""

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from flurka_bench.answers.agreement import time_errors
from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.stages import (
    case_of,
    stage_counts,
    stage_seconds,
)
from flurka_bench.answers.words import axis_words
from flurka_bench.render.figures import style
from flurka_bench.render.figures.heatmap import axis_name
from flurka_bench.words.sizes import STAGES
from flurka_bench.words.units import format_seconds


def predicted_against_measured(frame: pd.DataFrame) -> Figure:
    """Every case as a point, log-log, with the diagonal and lines at a factor of 1.25 and 2."""
    both = time_errors(frame)
    if both.empty:
        return style.says_nothing("No case has both a measured and a predicted time.")
    fig = style.figure(6.4, 5.4)
    axis = fig.subplots()
    for mechanism, part in both.groupby("mechanism", sort=False):
        marker = style.LINES[str(mechanism)][1]
        colour = style.FAMILY_COLOURS[FAMILY_OF[str(mechanism)]]
        filled = style.LINES[str(mechanism)][0] == "-"
        axis.plot(part["seconds"], part["predicted_s"], marker, color=colour, markersize=4, alpha=0.7, label=mechanism,
                  markerfacecolor=colour if filled else "none", linestyle="none")  # fmt: skip
    ends = np.array(
        [
            min(both["seconds"].min(), both["predicted_s"].min()) / 1.3,
            max(both["seconds"].max(), both["predicted_s"].max()) * 1.3,
        ]
    )
    axis.plot(ends, ends, color="black", linewidth=1)
    for factor, line in ((1.25, "--"), (2, ":")):
        axis.plot(
            ends, ends * factor, line, color="0.5", linewidth=0.8, label=f"within {factor:g}×"
        )
        axis.plot(ends, ends / factor, line, color="0.5", linewidth=0.8)
    axis.set_xlim(*ends)
    axis.set_ylim(*ends)
    style.seconds_axis(axis, "x")
    style.seconds_axis(axis, "y")
    axis.set_xlabel("measured")
    axis.set_ylabel("predicted (above the line: predicted too slow)")
    error = both["error"].abs()
    first = both.iloc[0]
    style.title(
        fig,
        f"Predicted against measured: {len(both)} cases, mean error {error.mean():.0%}, median {error.median():.0%}\n"
        f"{first['device']}",
    )
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def error_map(frame: pd.DataFrame, x: str = "seq_len", y: str = "rank") -> Figure:
    """predicted / measured, the geometric mean over everything else, a panel per mechanism: where
    it is off, and which way."""
    axis_name(x), axis_name(y)
    both = time_errors(frame)
    if both.empty:
        return style.says_nothing("No case has both a measured and a predicted time.")
    both["log_error"] = np.log(both["error"] + 1)
    names = [name for name in style.LINES if (both["mechanism"] == name).any()]
    columns = min(4, len(names))
    fig = style.figure(1.6 + 2.7 * columns, 0.8 + 2.0 * -(-len(names) // columns))
    axes = np.atleast_1d(fig.subplots(-(-len(names) // columns), columns)).ravel()
    norm = LogNorm(0.5, 2)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes, names):
        table = both[both["mechanism"] == name].pivot_table(
            index=y, columns=x, values="log_error", aggfunc="mean"
        )
        axis.imshow(
            np.exp(table.to_numpy()), norm=norm, cmap="PuOr_r", origin="lower", aspect="auto"
        )
        for (line, column), value in np.ndenumerate(table.to_numpy()):
            if np.isfinite(value) and table.size <= 60:
                axis.text(
                    column,
                    line,
                    f"{np.exp(value):.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if abs(value) > 0.45 else "black",
                )
        axis.set_xticks(
            range(len(table.columns)), [str(v) for v in table.columns], fontsize=7, rotation=45
        )
        axis.set_yticks(
            range(len(table.index)), [str(v) if v else "–" for v in table.index], fontsize=7
        )
        axis.set_title(name, fontsize=9)
    bar = fig.colorbar(
        ScalarMappable(norm, "PuOr_r"),
        ax=list(axes),
        extend="both",
        pad=0.02,
        label="predicted / measured",
    )
    bar.set_ticks([0.5, 0.7, 1, 1.4, 2], labels=["1/2", "0.7", "1", "1.4", "2"])
    bar.minorticks_off()
    style.title(
        fig,
        f"Error of the model by {axis_words(x)} (across) and {axis_words(y)} (up; –: has none)\n{both['device'].iloc[0]}",
    )
    return fig


def roofline(
    rows: pd.DataFrame,
    peak_flops_per_s: float,
    bandwidth_bytes_per_s: float,
    title: str = "",
    *,
    device: str,
) -> Figure:
    """Each stage of each given record as a point under the machine's roof (Williams et al. 2009).

    ``rows`` are a few records with stages_s or predicted_stages_s. Intensity counts the op list's
    bytes on ``device`` ("cpu" or "cuda"), so a stage whose operands stay in the cache can lie above the memory roof.
    """
    points = []
    for _, row in rows.iterrows():
        word, seconds = stage_seconds(row.to_dict())
        counts = stage_counts(case_of(row.to_dict()), device)
        for stage, own in counts.items():
            if seconds.get(stage) and own["bytes"] and own["flops"]:
                points.append(
                    (
                        row["mechanism"],
                        stage,
                        own["flops"] / own["bytes"],
                        own["flops"] / seconds[stage],
                        word,
                    )
                )
    if not points:
        return style.says_nothing(
            "No record has a time by stage, measured or predicted: no points to draw."
        )
    fig = style.figure(7.6, 5)
    axis = fig.subplots()
    ridge = peak_flops_per_s / bandwidth_bytes_per_s
    low, high = (
        min(ridge / 20, *(p[2] / 2 for p in points)),
        max(ridge * 20, *(p[2] * 2 for p in points)),
    )
    x = np.geomspace(low, high, 200)
    axis.loglog(
        x, np.minimum(peak_flops_per_s, x * bandwidth_bytes_per_s), color="black", linewidth=1.5
    )
    axis.text(
        high,
        peak_flops_per_s * 1.08,
        f"{peak_flops_per_s / 1e12:.3g} TFLOP/s",
        ha="right",
        fontsize=8,
    )
    axis.annotate(
        f"{bandwidth_bytes_per_s / 1e9:.3g} GB/s",
        (low * 2, low * 2 * bandwidth_bytes_per_s),
        xytext=(-6, 8),
        textcoords="offset points",
        fontsize=8,
        ha="right",
    )
    for mechanism, stage, intensity, speed, word in points:
        axis.plot(intensity, speed, style.LINES[mechanism][1], color=style.STAGE_COLOURS[stage], markersize=8,
                  markeredgecolor="0.25", markeredgewidth=0.8, fillstyle="full" if word == "measured" else "left")  # fmt: skip
    for stage in [stage for stage in STAGES if any(p[1] == stage for p in points)]:
        axis.plot(
            [], [], "s", color=style.STAGE_COLOURS[stage], markeredgecolor="0.25", label=stage
        )
    for family in dict.fromkeys(FAMILY_OF[p[0]] for p in points):  # one marker a family
        marker = style.LINES[next(p[0] for p in points if FAMILY_OF[p[0]] == family)][1]
        axis.plot([], [], marker, color="white", markeredgecolor="0.25", label=family)
    axis.set_xlabel("arithmetic intensity, FLOP per byte")
    axis.set_ylabel("FLOP/s")
    axis.grid(True, which="major", color="0.92")
    words = " and ".join(sorted({p[4] for p in points}))
    style.title(fig, f"Stages under the roof ({words})" + (f"\n{title}" if title else ""))
    fig.legend(loc="outside right center", frameon=False, fontsize=8)
    return fig


def stage_total(row: pd.Series, name: str) -> float:
    """The sum of a record's stages, 0 where it has none."""
    return (
        sum(float(seconds or 0.0) for seconds in row[name].values())
        if isinstance(row.get(name), dict)
        else 0.0
    )


def stage_bars(rows: pd.DataFrame, title: str = "") -> Figure:
    """Time by stage of the given records (about ten at most), the predicted bar below the measured
    one."""
    rows = rows[
        [
            isinstance(row.get("stages_s"), dict) or isinstance(row.get("predicted_stages_s"), dict)
            for _, row in rows.iterrows()
        ]
    ]
    if rows.empty:
        return style.says_nothing("No record has a time by stage, measured or predicted.")
    fig = style.figure(8.4, 1.5 + 0.62 * len(rows))
    axis = fig.subplots()
    seen, labels = set(), []
    # A bar more than twice as long as the fifth longest is cut, so that the others can be read; its
    # figure goes on.
    lengths = sorted(
        stage_total(row, name)
        for _, row in rows.iterrows()
        for name in ("stages_s", "predicted_stages_s")
    )
    total = min(lengths[-1], 2 * lengths[max(0, len(lengths) - 5)] or lengths[-1])
    for line, (_, row) in enumerate(rows.iterrows()):
        labels.append(
            "\n".join(
                [
                    str(row["mechanism"]),
                    " ".join(str(row[name]) for name in ("order", "backend") if row.get(name)),
                ]
            )
        )
        for offset, name, hatch in ((-0.2, "stages_s", None), (0.2, "predicted_stages_s", "////")):
            table, left = row.get(name), 0.0
            if not isinstance(table, dict):
                continue
            for stage in STAGES:
                width = float(table.get(stage) or 0.0)
                if width and left < total:
                    axis.barh(
                        line + offset,
                        min(width, total - left),
                        0.36,
                        left=left,
                        color=style.STAGE_COLOURS[stage],
                        edgecolor="white",
                        hatch=hatch,
                        linewidth=0.5,
                    )
                    seen.add(stage)
                    left = min(left + width, total)
            length = stage_total(row, name)
            text = f" {'→ ' if length > total else ''}{format_seconds(length)} {'predicted' if hatch else 'measured'}"
            if (
                not hatch and not 0.8 < length / (row.get("seconds") or length) < 1.25
            ):  # the profiled call was not like the timed ones
                text += f" (the timed calls: {format_seconds(row['seconds'])})"
            axis.text(left, line + offset, text, va="center", fontsize=7)
    for stage in [stage for stage in STAGES if stage in seen]:
        axis.barh(0, 0, color=style.STAGE_COLOURS[stage], label=stage)
    axis.set_yticks(range(len(rows)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, total * 1.25)
    axis.xaxis.set_major_formatter(lambda value, _: format_seconds(value) if value else "0")
    axis.set_xlabel("time of one call (hatched: predicted; →: the bar is cut)")
    style.title(fig, "Time by stage" + (f"\n{title}" if title else ""))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    fig.legend(loc="outside lower center", ncols=9, frameon=False, fontsize=8)
    return fig
