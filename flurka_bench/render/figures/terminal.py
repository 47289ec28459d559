"""The speedup heat map in a terminal: colour blocks where there is colour, signs where there is
none."""

import math
from typing import Any

import pandas as pd
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from flurka_bench.answers.words import SYMBOLS, UNDECIDED
from flurka_bench.render.figures import style
from flurka_bench.render.figures.heatmap import (
    Grid,
    caption,
    grids,
    thin_lines,
)
from flurka_bench.words.text import legible
from flurka_bench.words.units import format_ratio

# The pictures' colours by steps of log2, each below so much; the darkest two take white letters.
_BELOW = (0.25, 0.5, 0.833, 1.0, 1.2, 2.0, 4.0, float("inf"))
STEPS = tuple(
    (below, colour, "white" if below in (0.25, float("inf")) else "black")
    for below, colour in zip(_BELOW, style.RAMP[1:5] + style.RAMP[6:10])
)
WIDTH = 8


def _cell(row: dict[str, Any] | None) -> Text:
    if row is None or math.isnan(row["ratio"]):
        return Text("·".center(WIDTH), style="dim")
    ratio = float(row["ratio"])
    sign = "~" if row["verdict"] in UNDECIDED else "+" if ratio > 1 else "-"
    _, background, ink = next(step for step in STEPS if ratio < step[0])
    return Text(f"{sign}{format_ratio(ratio)}".center(WIDTH), style=f"{ink} on {background}")


def _table(grid: Grid, source: str) -> Table:
    thin, _ = thin_lines(grid)
    table = Table(
        title=source, title_style="bold", box=None, padding=0, show_header=True, pad_edge=False
    )
    table.add_column(f"{SYMBOLS[grid.y]} \\ {SYMBOLS[grid.x]} ", justify="right")
    for x in grid.xs:
        table.add_column(
            f"{x}*" if (grid.x, x) in thin else str(x),
            justify="center",
            min_width=WIDTH,
            no_wrap=True,
        )
    for y in reversed(grid.ys):
        table.add_row(
            f"{y}{'*' if (grid.y, y) in thin else ' '}",
            *[_cell(grid.cells[source].get((x, y))) for x in grid.xs],
        )
    return table


def terminal_map(cells: pd.DataFrame, x: str = "seq_len", y: str = "rank", which: int = 0) -> Group:
    """Something for ``rich.print``: measured and predicted maps of ``cells``; equal to the picture
    of ``heat_map`` in content."""
    found = grids(cells, x, y)
    if not found:
        return Group(
            Text("No cell has both the subject and the baseline: there is no map to draw.")
        )
    grid = found[which]
    sources = grid.sources
    both = Table.grid(padding=(0, 4))
    both.add_row(*[_table(grid, source) for source in sources])
    wide = len(sources) * (len(grid.xs) + 1) * WIDTH <= Console().width
    over = legible(f"speedup of {grid.fixed['subject']} over {grid.fixed['baseline']}")
    head = Text(over, style="bold")
    key = Text("+ faster  - slower  ~ undecided or the same  · no measurement", style="dim")
    note = thin_lines(grid)[1]
    key = Text(f"{key.plain}\n* {note}", style="dim") if note else key
    body = [both] if wide else [_table(grid, source) for source in sources]
    return Group(head, Text(legible(caption(grid.fixed)), style="dim"), *body, key)
