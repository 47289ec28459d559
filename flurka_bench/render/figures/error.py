"""Curves of the approximation error against rank and num_features, and FLuRKA's error beside the
sums its parents allow."""

from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.frontier import (
    ErrorRun,
    Summary,
)
from flurka_bench.render.figures import style

# A projection has one line, in all panels; learned and mean-pool are what a user would run, so they
# are solid and dashed.
_PROJECTIONS = {"learned": ("-", "o"), "mean-pool": ("--", "s"), "orthonormal": ("-.", "v"), "gaussian": (":", "^"),
                "optimal": ("-", None)}  # fmt: skip


def curves(run: ErrorRun, inputs: Iterable[str] | None = None) -> Figure:
    """One row per kind of input (labels; default all), at its largest size or N 512, d 64: error
    against k, and against m.

    Bars are the 10th to 90th percentile over layers and seeds. The shaded part is below the optimal
    rank-k matrix, where no mechanism of that rank can be; above 1 an output of zeros would be
    closer.
    """
    labels = (
        list(dict.fromkeys(item.inputs for item in run.summaries))
        if inputs is None
        else list(inputs)
    )
    labels = [label for label in labels if any(item.inputs == label for item in run.summaries)]
    if not labels:
        return style.says_nothing("The error run has none of these inputs.")
    fig = style.figure(10, 2.9 * len(labels) + 0.6)
    columns = 2 if any(item.num_features for item in run.summaries) else 1
    for row, label in zip(fig.subplots(len(labels), columns, squeeze=False), labels):
        own = [item for item in run.summaries if item.inputs == label]
        sizes = {(item.seq_len, item.head_dim) for item in own}
        at = max(sizes, key=lambda size: (size == (512, 64), size))
        own = [item for item in own if (item.seq_len, item.head_dim) == at]
        row[0].set_title(f"{style.plain(label)}, N {at[0]}, d {at[1]}", fontsize=9)
        _against_rank(row[0], own)
        if columns == 2:
            _against_features(row[1], own)
        for axis in row:
            axis.axhline(1, color="0.6", linewidth=0.8)
            low, high = axis.get_ylim()
            if high > 5 * max(low, 0.01):  # a narrow range reads better without logarithms
                axis.set_yscale("log")
            axis.set_ylabel("relative output error")
            axis.grid(True, color="0.92")
            axis.legend(frameon=False, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.title(
        fig, "Approximation error: median and 10th to 90th percentile over layers and seeds"
    )
    return fig


def _against_rank(axis: Axes, own: list[Summary]) -> None:
    ranks = sorted({item.rank for item in own if item.rank})
    best = _points(own, lambda i: i.projection == "optimal", "rank")
    if best:
        axis.fill_between(
            [x for x, _ in best], [i.error.median for _, i in best], 1e-20, color="0.9", zorder=0
        )
        axis.plot(
            [x for x, _ in best],
            [i.error.median for _, i in best],
            color="0.4",
            label="optimal rank k",
        )
    for projection, (line, marker) in _PROJECTIONS.items():
        if projection != "optimal":
            for share_kv, tail, colour in (
                (True, ", E = F", "#56B4E9"),
                (False, "", style.FAMILY_COLOURS["low-rank"]),
            ):
                pooled = projection == "mean-pool"
                points = _points(
                    own,
                    lambda i, p=projection, s=share_kv or pooled: (
                        (i.mechanism, i.projection, i.share_kv) == ("low-rank", p, s)
                    ),
                    "rank",
                )
                if not (pooled and share_kv):
                    _line(axis, points, f"low-rank, {projection}{tail}", colour, line, marker)
    _flurkas(axis, own, "rank")
    style.log_axis(axis, "x", ranks)
    axis.set_xlabel("rank k (FLuRKA at its largest m)")
    if best:  # an error below 1e-4 is exact for every purpose here, and would flatten the rest
        axis.set_ylim(bottom=max(1e-4, 0.5 * min(i.error.median for _, i in best)))


def _against_features(axis: Axes, own: list[Summary]) -> None:
    features = sorted({item.num_features for item in own if item.num_features})
    for mechanism, (line, marker) in style.LINES.items():
        if FAMILY_OF[mechanism] == "kernel":
            points = _points(own, lambda i, m=mechanism: i.mechanism == m, "num_features")
            _line(axis, points, mechanism, style.FAMILY_COLOURS["kernel"], line, marker)
    _flurkas(axis, own, "num_features")
    style.log_axis(axis, "x", features)
    axis.set_xlabel("num_features m (FLuRKA at its largest k)")


def _flurkas(axis: Axes, own: list[Summary], knob: str) -> None:
    """FLuRKA with its learned projection against one knob, the other at its largest."""
    other = {"rank": "num_features", "num_features": "rank"}[knob]
    for mechanism, (line, marker) in style.LINES.items():
        mine = [i for i in own if i.mechanism == mechanism and i.projection == "learned"]
        if FAMILY_OF[mechanism] == "flurka" and mine:
            largest = max(getattr(item, other) for item in mine)
            points = _points(mine, lambda i, v=largest: getattr(i, other) == v, knob)
            _line(
                axis, points, f"{mechanism}, learned", style.FAMILY_COLOURS["flurka"], line, marker
            )


def _points(
    own: list[Summary], wanted: Callable[[Summary], bool], knob: str
) -> list[tuple[int, Summary]]:
    return sorted(
        ((getattr(item, knob), item) for item in own if wanted(item)), key=lambda point: point[0]
    )


def _line(
    axis: Axes,
    points: list[tuple[int, Summary]],
    label: str,
    colour: str,
    line: str,
    marker: str | None,
) -> None:
    if points:
        middle = [item.error.median for _, item in points]
        spread = [
            [item.error.median - item.error.low for _, item in points],
            [item.error.high - item.error.median for _, item in points],
        ]
        axis.errorbar(
            [x for x, _ in points], middle, yerr=spread, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=1.2,
            elinewidth=0.6, label=label,
        )  # fmt: skip


def parents(run: ErrorRun, inputs: str) -> Figure:
    """FLuRKA's mean error per configuration against the smaller sum that the triangle inequality
    allows, and each parent's error.

    The sums are parent error + step from parent to FLuRKA, for either parent. "low-rank + kernel",
    the sum of the two parents' own errors, is not a bound in general, since the kernel's error on N
    keys is not its error on k compressed ones; it is shown for comparison.
    """
    own = [
        i for i in run.summaries if inputs in (i.family, i.inputs) and "low_rank_step" in i.means
    ]
    if not own:
        return style.says_nothing(f"The error run has no FLuRKA on {inputs!r}.")
    own.sort(key=lambda item: item.means["output_error"])
    fig = style.figure(9, 0.17 * len(own) + 1.6)
    axis = fig.subplots()
    allowed = [
        min(
            i.means["low_rank_error"] + i.means["low_rank_step"],
            i.means["kernel_error"] + i.means["kernel_step"],
        )
        for i in own
    ]
    places = range(len(own))
    axis.barh(places, allowed, color="0.9", label="allowed by the triangle inequality")
    axis.plot(
        [i.means["output_error"] for i in own],
        places,
        "D",
        color=style.FAMILY_COLOURS["flurka"],
        markersize=4,
        label="FLuRKA",
    )
    for name, marker in (("low-rank", "o"), ("kernel", "^")):
        values = [i.means[f"{name.replace('-', '_')}_error"] for i in own]
        axis.plot(
            values,
            places,
            marker,
            color=style.FAMILY_COLOURS[name],
            markersize=4,
            markerfacecolor="none",
            label=f"{name} parent",
        )
    axis.plot([i.means["low_rank_error"] + i.means["kernel_error"] for i in own], places, "|", color="black",
              label="low-rank + kernel (no bound)")  # fmt: skip
    axis.set_yticks(
        places,
        [f"{i.mechanism}, {i.projection}, k {i.rank}, m {i.num_features}" for i in own],
        fontsize=6,
    )
    axis.set_ylim(-0.8, len(own) - 0.2)
    axis.set_xlabel("relative output error, mean over layers and seeds")
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    style.title(fig, f"FLuRKA and its parents on {inputs}")
    return fig
