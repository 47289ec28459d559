"""``regions``: where FLuRKA wins: by FLOPs in closed form, by prediction, or by a run; with
crossovers and the reason."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import comma_list, one_of, positive_int, print_json, print_table
from flurka_bench.cli.targets import load_targets
from flurka_bench.errors import RequestError
from flurka_bench.units import format_ratio
from flurka_bench.workload import SIZES

if TYPE_CHECKING:
    import pandas as pd


def regions(
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; without any, the map is predicted.")
    ] = None,
    hardware: Annotated[
        str, typer.Option(help="Targets to predict: names, profile files, or cpu.")
    ] = "h100",
    flops: Annotated[
        bool,
        typer.Option("--flops", help="The closed-form conditions by matmul FLOPs, for every pair."),
    ] = False,
    pair: Annotated[
        str | None,
        typer.Option(help="With --flops: two mechanisms X,Y; all FLuRKA pairs by default."),
    ] = None,
    level: Annotated[str, typer.Option(help="core or layer.")] = "layer",
    pass_: Annotated[str, typer.Option("--pass", help="forward or train.")] = "forward",
    dtype: Annotated[
        str | None, typer.Option(help="By default what the target's matrix units take.")
    ] = None,
    subject: Annotated[
        str, typer.Option(help="Whose region: flurka (the fastest of them) or a mechanism.")
    ] = "flurka",
    baseline: Annotated[
        str, typer.Option(help="Over whom: all, or best-other, strong-…, paper-… or a mechanism.")
    ] = "all",
    x: Annotated[str | None, typer.Option("--x", help="Axis across the map.")] = None,
    y: Annotated[str | None, typer.Option("--y", help="Axis up the map.")] = None,
    launch: Annotated[
        str, typer.Option(help="Of predictions: eager, graph or none (device time alone).")
    ] = "eager",
    model_dim: Annotated[str, typer.Option(help="Widths D to predict; with --flops one.")] = "1024",
    head_dim: Annotated[
        str, typer.Option(help="Head widths d to predict; with --flops one.")
    ] = "64",
    batch: Annotated[str, typer.Option(help="Batch sizes to predict.")] = "1",
    seq_len: Annotated[
        str | None,
        typer.Option(help="Lengths to predict; with --flops the one N to state what holds."),
    ] = None,
    rank: Annotated[str | None, typer.Option(help="Ranks k.")] = None,
    num_features: Annotated[str | None, typer.Option(help="Feature counts m.")] = None,
    latex: Annotated[
        bool, typer.Option("--latex", help="With --flops: the inequalities as LaTeX.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say where a subject beats each baseline, strong ones first: the region, the crossovers with
    intervals, and why.

    Example: flurka-bench regions --hardware h100,l40s --x rank --y num_features --baseline
        best-other
    """
    from flurka_bench.cost.terms import LAUNCHES
    from flurka_bench.workload import PASSES

    one_of(LAUNCHES, "--launch")(launch)
    one_of(("core", "layer"), "--level")(level)
    one_of(PASSES, "--pass")(pass_)
    for name, axis in (("--x", x), ("--y", y)):
        if axis is not None:
            one_of(SIZES, name)(axis)
    sizes = {
        name: None if text is None else comma_list(text, positive_int(option), option)
        for name, text, option in (
            ("seq_lens", seq_len, "--seq-len"), ("ranks", rank, "--rank"), ("num_features", num_features, "--num-features"),
        )
    }  # fmt: skip
    widths, heads, batches = (
        comma_list(text, positive_int(option), option)
        for text, option in (
            (model_dim, "--model-dim"),
            (head_dim, "--head-dim"),
            (batch, "--batch"),
        )
    )
    for width, head in product(widths, heads):
        if width % head:
            raise RequestError(f"--model-dim must be a multiple of --head-dim {head}, got {width}")
    if flops:
        if run:
            raise RequestError("--flops derives conditions from the op lists: leave the run out")
        if len(widths) > 1 or len(heads) > 1:
            raise RequestError(
                f"--flops takes one --model-dim and one --head-dim, got {model_dim} and {head_dim}"
            )
        _flops(level, pass_, pair, {"D": widths[0], "d": heads[0]}, sizes, latex, json)
        return
    if run:
        frame = _measured(run)
    else:
        axes = {name: values for name, values in sizes.items() if values} | {
            "level": level,
            "passes": (pass_,),
        }
        shapes = [
            dict(zip(("model_dim", "head_dim", "batch"), each))
            for each in product(widths, heads, batches)
        ]
        frame = _predicted(hardware, dtype, launch, axes, shapes)
    _map(frame, subject, baseline, x, y, bool(run), json)


# By FLOPs


def _pairs(pair: str | None) -> list[tuple[str, str]]:
    from flurka_bench.mechanisms import MECHANISMS, get

    if pair is not None:
        names = comma_list(pair, str, "--pair")
        if len(names) != 2:
            raise RequestError(f"--pair takes two mechanisms X,Y, got {pair!r}")
        return [(get(names[0]).name, get(names[1]).name)]
    found = []
    for name, cell in MECHANISMS.items():
        if cell.is_flurka:
            found += [(name, parent) for parent in cell.parents.values() if parent]
    return found


def _flops(
    level: str, pass_: str, pair: str | None, width: dict, sizes: dict, latex: bool, json: bool
) -> None:
    from flurka_bench.cost.regions import conditions
    from flurka_bench.mechanisms import get

    given = dict(width)
    for symbol, name in (("N", "seq_lens"), ("k", "ranks"), ("m", "num_features")):
        if sizes[name] and len(sizes[name]) == 1:
            given[symbol] = sizes[name][0]
    rows = []
    for one, other in _pairs(pair):
        orders = (
            [(None, None)]
            if level == "core"
            else [(a, b) for a in get(one).orders for b in get(other).orders]
        )
        for order_x, order_y in orders:
            found = conditions(one, other, level, order_x, order_y, pass_=pass_)
            free = {symbol.name for symbol in found.inequality.free_symbols}
            holds = found.holds(**given) if free <= set(given) else None
            rows.append({
                "x": one, "order_x": order_x, "y": other, "order_y": order_y, "level": level, "pass": pass_,
                "inequality": found.latex if latex else str(found.inequality), "solved_for_k": _text(found.solved_for_k, latex),
                "solved_for_m": _text(found.solved_for_m, latex), "flops_x": str(found.flops_x), "flops_y": str(found.flops_y),
                "holds": holds, "at": {key: given[key] for key in sorted(given)} if holds is not None else None,
            })  # fmt: skip
    if json:
        print_json(rows)
        return
    print(
        f"Matmul FLOPs at level {level}, {pass_}; N seq_len, D model_dim, d head_dim, k rank, m num_features; k <= N."
    )
    if all(row["holds"] is None for row in rows):
        print(
            "Give one --seq-len, --rank and --num-features (and --model-dim, --head-dim) to see which hold."
        )
    print_table(
        ("X", "order", "needs fewer than Y", "order", "where", "for k", "holds"),
        [
            (row["x"], row["order_x"] or "", row["y"], row["order_y"] or "", row["inequality"], row["solved_for_k"] or "",
             {True: "yes", False: "no", None: ""}[row["holds"]])
            for row in rows
        ],
    )  # fmt: skip


def _text(value: Any, latex: bool) -> str | None:
    if value is None:
        return None
    if latex:
        from sympy import latex as to_latex

        return to_latex(value)
    return str(value)


# By the clock or the model


def _measured(runs: list[Path]) -> "pd.DataFrame":
    from flurka_bench.results import read_run, to_frame

    return to_frame([read_run(folder) for folder in runs])


def _predicted(
    hardware: str, dtype: str | None, launch: str, axes: dict, shapes: list[dict[str, int]]
) -> "pd.DataFrame":
    import pandas as pd

    from flurka_bench.analysis.predicted import predicted_frame
    from flurka_bench.workload import DTYPES

    if dtype is not None:
        one_of(DTYPES, "--dtype")(dtype)
    targets = load_targets(hardware)
    return pd.concat(
        [predicted_frame(targets, dtype, launch, **axes, **shape) for shape in shapes],
        ignore_index=True,
    )


def _map(
    frame: "pd.DataFrame",
    subject: str,
    baseline: str,
    x: str | None,
    y: str | None,
    measured: bool,
    json: bool,
) -> None:
    from flurka_bench.analysis import answer
    from flurka_bench.analysis.agreement import agreement, tables
    from flurka_bench.analysis.baselines import BASELINES
    from flurka_bench.analysis.crossover import crossovers, in_words
    from flurka_bench.analysis.speedup import prepare, speedups

    rows = prepare(frame)
    names = list(BASELINES) if baseline == "all" else comma_list(baseline, str, "--baseline")
    views = {name: speedups(rows, subject, name) for name in names}
    axes = [axis for axis in dict.fromkeys((x, y)) if axis] or ["seq_len", "rank", "num_features"]
    crossed = {name: crossovers(cells, *axes) for name, cells in views.items()}
    told = answer.answers(views)
    judged = agreement(rows, subject, views) if measured else None
    if json:
        print_json({
            "kind": "measured" if measured else "predicted",
            "answer": told.to_dict("records"),
            "cells": {name: _cells(cells) for name, cells in views.items()},
            "crossovers": {name: table.to_dict("records") for name, table in crossed.items()},
            "agreement": None if judged is None else {
                name: getattr(judged, name).to_dict("records") for name in ("signs", "times", "confusion", "bounds", "worst")
            },
        })  # fmt: skip
        return
    prefix = "" if measured else "predicted_"
    for row in told.to_dict("records"):
        print(
            f"\n{row['device']}, level {row['level']}, {row['pass']}, {row['dtype']}: {' '.join(answer.in_words(row))}"
        )
    for name, cells in views.items():
        _why(rows, cells, name, prefix)
    _print_map(views, x, y)
    for name, table in crossed.items():
        table = table[table[f"{prefix}wins"].notna()] if len(table) else table
        if len(table):
            crossing = table[f"{prefix}wins"].isin(
                ["from", "up to", "in part"]
            )  # these first: the others have no crossing
            table = table.assign(_flat=~crossing).sort_values("_flat", kind="stable")
            lines = [(_where(row), in_words(row, prefix)) for row in table.to_dict("records")]
            shown = lines[:12]
            print_table(
                ("along a line with", f"{subject} beats {name}"),
                shown,
                title=f"\nCrossovers over {name}",
            )
            if len(lines) > len(shown):
                print(f"… and {len(lines) - len(shown)} lines more (--json has them all)")
    for title, head, lines, _ in [] if judged is None else tables(judged):
        print_table(head, lines, title=f"\nAgreement: {title}")


_CELL_KEYS = (
    "device", "level", "pass", "dtype", "batch", "num_heads", "seq_len", "head_dim", "rank", "num_features",
    "subject_case_id", "baseline_case_id", "speedup", "speedup_low", "speedup_high", "verdict",
    "predicted_subject_case_id", "predicted_baseline_case_id", "predicted_speedup", "predicted_speedup_low",
    "predicted_speedup_high", "predicted_verdict", "missing",
)  # fmt: skip


def _cells(cells: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{key: row[key] for key in _CELL_KEYS if key in row} for row in cells.to_dict("records")]


def _where(row: dict[str, Any]) -> str:
    symbols = {"num_heads": "h", "head_dim": "d", "seq_len": "N", "rank": "k", "num_features": "m"}
    return ", ".join(
        f"{symbol} = {row[name]}"
        for name, symbol in symbols.items()
        if row[name] and name != row["axis"]
    )


def _why(rows: "pd.DataFrame", cells: "pd.DataFrame", name: str, prefix: str) -> None:
    """The reason at the best and at the worst cell."""
    from flurka_bench.analysis.answer import place
    from flurka_bench.analysis.stages import flop_conditions, reason

    known = cells[cells[f"{prefix}speedup"].notna()]
    if not len(known):
        return
    column = f"{prefix}speedup"
    picks = {"best": known.loc[known[column].idxmax()], "worst": known.loc[known[column].idxmin()]}
    for word, cell in picks.items():
        pair = cell[f"{prefix}subject_row"], cell[f"{prefix}baseline_row"]
        own, other = (rows.loc[index] for index in pair)
        condition = flop_conditions(rows, [pair])[0]
        text = f"{format_ratio(cell[column])} over {name} at {place(cell)} ({word}): "
        text += f"{own['mechanism']} against {other['mechanism']}: "
        print(
            text
            + reason(own, other)
            + (f"; fewer matmul FLOPs where {condition}" if condition else "")
        )


def _print_map(views: "dict[str, pd.DataFrame]", x: str | None, y: str | None) -> None:
    from flurka_bench.cli.common import console
    from flurka_bench.plots.heatmap import map_axes
    from flurka_bench.plots.terminal import terminal_map

    cells = next(iter(views.values()))
    for _, part in cells.groupby("device", sort=False):
        print()
        console().print(
            terminal_map(part, *map_axes(part, x, y), which=-1)
        )  # of each device the last map: the longest sequences
