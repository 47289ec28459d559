"""The map of the regions: speedup over any two axes, measured and predicted side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from flurka_bench.answers import words
from flurka_bench.answers.baselines import baseline
from flurka_bench.answers.crossover import forms
from flurka_bench.answers.sources import MEASURED, PREDICTED, SOURCES, of
from flurka_bench.answers.speedup import CELL
from flurka_bench.render.figures import style
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.units import format_ratio

COLOURS = "BrBG"  # style.RAMP, by matplotlib's name
LINES = {MEASURED: "-", PREDICTED: "--"}  # of the contour where both are equally fast
LIMITS = (2, 4, 8, 16)  # where colours saturate; the figures in the cells go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """One map: per source (measured, predicted) the row of ``speedups`` at each (x, y); and what
    was held fixed."""

    x: str
    y: str
    xs: list[int]
    ys: list[int]
    cells: dict[str, dict[tuple[int, int], dict[str, Any]]]
    fixed: dict[str, object]

    @property
    def sources(self) -> list[str]:
        """The sources that have any speedup here; measured where neither has."""
        held = [
            source
            for source, rows in self.cells.items()
            if any(row["ratio"] > 0 for row in rows.values())
        ]
        return held or [MEASURED]


def axis_name(name: str) -> str:
    """An axis that a map can have. Raises RequestError naming the nearest."""
    if name not in SIZES:
        raise unknown("axis", name, SIZES)
    return name


def map_axes(cells: pd.DataFrame, x: str | None = None, y: str | None = None) -> tuple[str, str]:
    """The axes asked for; where none is, one with most values among N, k, m: those a first look
    wants to see.

    Raises RequestError for an axis that a map cannot have, and for one axis twice.
    """
    counts = {name: cells[name].nunique() for name in ("seq_len", "rank", "num_features")}
    first, second = sorted(counts, key=lambda name: -counts[name])[:2]
    if second == "seq_len":
        first, second = second, first
    x = axis_name(x or (first if first != y else second))
    y = axis_name(y or (second if second != x else first))
    if x == y:
        raise RequestError(f"--x and --y must be two different axes, got {x!r} twice")
    return x, y


def grids(cells: pd.DataFrame, x: str, y: str) -> list[Grid]:
    """Split cells into maps over x and y, one per combination of everything else; largest first."""
    axis_name(x), axis_name(y)
    fixed = [name for name in [*CELL, "subject", "baseline"] if name not in (x, y)]
    found = []
    for key, part in cells.groupby(fixed, sort=False):
        by_place: dict[str, dict[tuple[int, int], dict[str, Any]]] = {
            source: {(row[x], row[y]): row for row in of(part, source).to_dict("records")}
            for source in SOURCES
        }
        found.append(
            Grid(
                x=x,
                y=y,
                xs=sorted(set(part[x])),
                ys=sorted(set(part[y])),
                cells=by_place,
                fixed=dict(zip(fixed, key)),
            )
        )
    return sorted(found, key=lambda grid: -len(grid.cells[MEASURED]))


def thin_lines(grid: Grid) -> tuple[dict[tuple[str, int], str], str]:
    """Rows and columns that hold fewer of the subject's mechanisms than the map does: (axis, value)
    -> those; and a note."""
    held: dict[tuple[str, int], set[str]] = {}
    for (x, y), row in grid.cells[MEASURED].items():
        for line in ((grid.x, x), (grid.y, y)):
            held.setdefault(line, set()).update(filter(None, row["subjects"].split(", ")))
    thin = {
        line: ", ".join(sorted(names))
        for line, names in held.items()
        if names
        and names < set().union(*(other for (axis, _), other in held.items() if axis == line[0]))
    }
    said: dict[tuple[str, str], list[str]] = {}
    for (axis, value), names in sorted(thin.items()):
        said.setdefault((axis, names), []).append(str(value))
    told = (
        f"{words.SYMBOLS[axis]} = {', '.join(values)}: {names} only"
        for (axis, names), values in said.items()
    )
    return thin, "; ".join(told)


def heat_map(
    cells: pd.DataFrame, x: str = "seq_len", y: str = "num_features", which: int = 0
) -> Figure:
    """A map over x and y of ``cells`` = ``speedups(...)``: measured left, predicted right, both 1x
    contours in both.

    ``which`` counts the maps that ``grids`` finds, largest first. Colour is the speedup in log
    scale, white at 1; AMBIGUOUS and SAME cells are hatched; an empty cell says why it is empty. The
    contours (``even_lines``) interpolate only between cells that compare the same forms. A
    row or column with fewer of the subject's mechanisms than others has a star, and a note says
    which it has.
    """
    found = grids(cells, x, y)
    if not found:
        return style.says_nothing(
            "No cell has both the subject and the baseline: there is no map to draw."
        )
    grid = found[which]
    sources = grid.sources
    ratios = [row["ratio"] for rows in grid.cells.values() for row in rows.values()]
    limit = colour_limit([ratio for ratio in ratios if ratio > 0])
    width = 1.9 + len(sources) * max(3.2, 0.62 * len(grid.xs) + 1.0)
    thin, note = thin_lines(grid)
    fig = style.figure(max(width, 6.5), max(3.6, 0.36 * len(grid.ys) + 2.3) + (0.2 if note else 0))
    axes = fig.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    norm = LogNorm(1 / limit, limit)
    for axis, source in zip(axes, sources):
        _draw(axis, grid, source, norm, thin)
        for contour, line in LINES.items():
            _contour(axis, grid, contour, line)
    axes[0].set_ylabel(words.axis_words(y))
    bar = fig.colorbar(
        ScalarMappable(norm, COLOURS), ax=list(axes), extend="both", shrink=0.9, pad=0.02
    )
    steps = [1, 1.4, 2] if limit == 2 else [2**power for power in range(limit.bit_length())]
    ticks = {1 / step: f"1/{step:g}×" for step in reversed(steps[1:])} | {
        step: f"{step:g}×" for step in steps
    }
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()
    fixed = grid.fixed
    bar.set_label(f"← {fixed['baseline']} faster      {fixed['subject']} faster →")
    told = f"\n* {note}" if note else ""
    style.title(
        fig,
        f"Speedup of {fixed['subject']} over {baseline(str(fixed['baseline'])).label}\n{caption(fixed)}{told}",
    )
    handles = [Patch(facecolor="white", edgecolor="0.35", hatch="////", label="undecided or the same"),
               Patch(facecolor="0.88", edgecolor="0.6", label="no measurement (why: in the cell)")]  # fmt: skip
    handles += [
        Line2D([], [], color="black", linestyle=line, linewidth=1.6, label=f"1× {source}")
        for source, line in LINES.items()
    ]
    fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return fig


def colour_limit(ratios: Sequence[float]) -> int:
    """Where the colours of a map saturate: the least of LIMITS that holds nine ratios in ten."""
    most = np.quantile(np.abs(np.log2([1.0, *ratios])), 0.9)
    return next((limit for limit in LIMITS if np.log2(limit) >= most), LIMITS[-1])


def caption(fixed: dict[str, object]) -> str:
    """What a map holds fixed, in one line: device, level, pass, dtype and sizes."""
    parts = [
        str(fixed["device"]),
        f"level {fixed['level']}",
        str(fixed["pass"]),
        str(fixed["dtype"]),
    ]
    parts += words.sizes(fixed, words.SHAPE) + words.knobs(fixed)
    return " · ".join(part for part in parts if part)


def _draw(
    axis: Axes, grid: Grid, source: str, norm: LogNorm, thin: dict[tuple[str, int], str]
) -> None:
    import matplotlib

    colours = matplotlib.colormaps[COLOURS]
    for column, x in enumerate(grid.xs):
        for line, y in enumerate(grid.ys):
            row = grid.cells[source].get((x, y))
            ratio = np.nan if row is None else float(row["ratio"])
            place = (column - 0.5, line - 0.5)
            if np.isnan(ratio):
                axis.add_patch(
                    Rectangle(place, 1, 1, facecolor="0.88", edgecolor="white", linewidth=1)
                )
                axis.text(
                    column,
                    line,
                    style.plain(_hole(row, grid, x, y)),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                    color="0.35",
                )
                continue
            colour = colours(float(np.clip(norm(ratio), 0, 1)))
            axis.add_patch(Rectangle(place, 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            if row is not None and row["verdict"] in words.UNDECIDED:
                axis.add_patch(
                    Rectangle(
                        place,
                        1,
                        1,
                        fill=False,
                        edgecolor=(0.3, 0.3, 0.3, 0.45),
                        linewidth=0.0,
                        hatch="///",
                    )
                )
            dark = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] < 0.45
            axis.text(column, line, format_ratio(ratio).rstrip("×"), ha="center", va="center", fontsize=8, zorder=5,
                      color="white" if dark else "black", path_effects=[withStroke(linewidth=3, foreground=colour)])  # fmt: skip
    axis.set_xlim(-0.5, len(grid.xs) - 0.5)
    axis.set_ylim(-0.5, len(grid.ys) - 0.5)
    across, up = (
        [f"{v}*" if (name, v) in thin else str(v) for v in values]
        for name, values in ((grid.x, grid.xs), (grid.y, grid.ys))
    )
    axis.set_xticks(range(len(grid.xs)), across, rotation=45 if len(grid.xs) > 8 else 0)
    axis.set_yticks(range(len(grid.ys)), up)
    axis.set_xlabel(words.axis_words(grid.x))
    axis.set_title(source)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _hole(row: dict[str, Any] | None, grid: Grid, x: int, y: int) -> str:
    if row is None:
        place = grid.fixed | {grid.x: x, grid.y: y}
        return words.hole("", place)
    text = row["missing"] or ""
    if text == words.NO_PREDICTION:
        return "no pre-\ndiction"
    short = words.hole(text)
    return f"{text.split(':')[0].rpartition(' ')[2]}\n{short}" if short in words.FAILURES else short


def _contour(axis: Axes, grid: Grid, source: str, line: str) -> None:
    table = np.full((len(grid.ys), len(grid.xs)), np.nan)
    numbers = np.full(table.shape, -1)
    cells = grid.cells[source]
    if not cells:
        return
    pairs = forms(pd.DataFrame(list(cells.values())))
    for (x, y), pair in zip(cells, pairs):
        place = grid.ys.index(y), grid.xs.index(x)
        table[place] = np.log(cells[x, y]["ratio"])
        numbers[place] = pair
    lines = even_lines(table, numbers)
    for width, colour in ((3.2, "white"), (1.6, "black")):
        axis.add_collection(
            LineCollection(lines, colors=colour, linewidths=width, linestyles=line, zorder=2),
            autolim=False,
        )


def even_lines(table: np.ndarray, pairs: np.ndarray) -> list[list[tuple[float, float]]]:
    """Where the two are equally fast: polylines of (column, row), from a table of log speedups.

    Between cells with the same pair of forms (equal numbers in ``pairs``) the line is interpolated
    between the cells' centres (marching squares). Between cells of different pairs nothing is
    known, so it runs along their common border. Next to such a border, or to a hole, it goes
    straight through the half of the cell where it cannot be interpolated. Nothing is drawn beside
    holes, nor in a table of a single row or column, which has no inside.
    """
    rows, columns = table.shape
    if min(table.shape) < 2:
        return []
    whole = np.zeros((rows + 1, columns + 1), dtype=bool)  # four corners with one pair of forms
    for r, c in np.ndindex(rows - 1, columns - 1):
        corner = np.s_[r : r + 2, c : c + 2]
        whole[r + 1, c + 1] = np.isfinite(table[corner]).all() and len(set(pairs[corner].flat)) == 1
    lines: list[list[tuple[float, float]]] = []
    for (r, c), (dr, dc) in product(np.ndindex(rows, columns), ((0, 1), (1, 0))):
        if r + dr == rows or c + dc == columns:
            continue
        here, there = table[r, c], table[r + dr, c + dc]
        if not (np.isfinite(here) and np.isfinite(there)) or (here >= 0) == (there >= 0):
            continue
        share = here / (here - there) if pairs[r, c] == pairs[r + dr, c + dc] else 0.5
        # the squares on both sides of this edge: above or left of it, below or right of it
        squares = ((r, c + 1), (r + 1, c + 1)) if dc else ((r + 1, c), (r + 1, c + 1))
        outer = (r == 0, r == rows - 1) if dc else (c == 0, c == columns - 1)
        torn = [not whole[square] for square in squares]
        for sign, here_torn, other_torn, edge in zip((-0.5, 0.5), torn, torn[::-1], outer):
            if here_torn and (not edge or other_torn):
                ends = ((c + share, r), (c + share, r + sign)) if dc else (
                    (c, r + share), (c + sign, r + share))  # fmt: skip
                lines.append(list(ends))
    for r, c in np.argwhere(whole):
        lines += _square(table[r - 1 : r + 1, c - 1 : c + 1], float(c - 1), float(r - 1))
    return lines


def _square(corners: np.ndarray, column: float, row: float) -> list[list[tuple[float, float]]]:
    """The even line within one square of four cells' centres: none, one, or two at a saddle."""
    (a, b), (d, c) = corners  # around the square: a to b to c to d
    ring = [(a, b, (0, 0), (1, 0)), (b, c, (1, 0), (0, 1)), (c, d, (1, 1), (-1, 0)),
            (d, a, (0, 1), (0, -1))]  # fmt: skip
    met = [
        (column + x + dx * (one / (one - other)), row + y + dy * (one / (one - other)))
        for one, other, (x, y), (dx, dy) in ring
        if (one >= 0) != (other >= 0)
    ]
    if len(met) == 4 and (corners.mean() >= 0) != (a >= 0):  # b and d are joined by the middle
        met = met[-1:] + met[:-1]
    return [met[i : i + 2] for i in range(0, len(met), 2)]
