"""``regions``: where FLuRKA wins: by FLOPs in closed form, by prediction, or by a run; with
crossovers and the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    note,
    print_json,
    print_table,
    print_text,
)
from flurka_bench.cli.targets import (
    check_dtype,
    check_launch,
    load_targets,
)
from flurka_bench.words.blocks import Column
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import check_combinations
from flurka_bench.words.units import format_ratio
from flurka_bench.words.verdict import RULE

if TYPE_CHECKING:
    import pandas as pd

    from flurka_bench.answers.agreement import Agreement


# What only predictions read, of which --flops reads what does not need a clock.
_CLOCKED = ("--hardware", "--dtype", "--launch", "--batch")
_SIZED = ("--seq-len", "--rank", "--num-features", "--model-dim", "--head-dim")
_MAPPED = ("--subject", "--baseline", "--x", "--y")


def regions(
    context: typer.Context,
    hardware: options.Hardware,
    level: options.Levels,
    pass_: options.Passes,
    dtype: options.Dtypes,
    subject: options.Subject,
    baseline: Annotated[
        options.Names | None, options.declared("--baseline", default=None, shown="all of them")
    ],
    x: options.AxisAcross,
    y: options.AxisUp,
    launch: options.Launch,
    model_dim: options.ModelDims,
    head_dim: options.HeadDims,
    batch: options.Batches,
    seq_len: Annotated[
        options.Sizes | None, options.declared("--seq-len", default=None, shown="1k to 64k")
    ],
    rank: Annotated[
        options.Sizes | None, options.declared("--rank", default=None, shown="64 to 1024")
    ],
    num_features: Annotated[
        options.Sizes | None, options.declared("--num-features", default=None, shown="16 to 256")
    ],
    flops: Annotated[
        bool,
        options.flag(
            "--flops",
            "The closed-form conditions by matmul FLOPs, for every pair; sizes, one of each, say"
            " what holds.",
        ),
    ],
    pair: Annotated[options.Names | None, options.declared("--pair")],
    latex: Annotated[bool, options.flag("--latex", "With --flops: the inequalities as LaTeX.")],
    all_: options.All,
    json: options.Json,
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; without any, the map is predicted.")
    ] = None,
) -> None:
    """Say where a subject beats each baseline, strong ones first: the region, the crossovers with
    intervals, and why.

    Example: flurka-bench regions --hardware h100,l40s --x rank --y num_features --baseline
        best-other
    """
    if not flops:
        options.refuse(context, ("--pair", "--latex"), " without --flops")
    elif run:
        raise RequestError("--flops derives conditions from the op lists: leave the run out")
    else:
        why = " to --flops, which counts matmul FLOPs of pairs (--pair X,Y) per batch"
        options.refuse(context, (*_CLOCKED, *_MAPPED), why)
    if json:
        options.refuse(context, ["--all"], " to --json, which leaves nothing out")
    if run:
        why = " to a run, which has its own: it is for predictions"
        options.refuse(context, (*_CLOCKED, *_SIZED, "--level", "--pass"), why)
        frame, bases = _measured(run)
    else:
        where = _checked_level(options.one(level, "--level")), options.one(pass_, "--pass")
        sizes = {
            "seq_lens": seq_len,
            "ranks": rank,
            "num_features": num_features,
            "model_dims": model_dim,
            "head_dims": head_dim,
        }
        _check_sizes(sizes, batch)
        if flops:
            _flops(context, *where, pair, latex, json, everything=all_)
            return
        axes = {"level": where[0], "passes": where[1:]}
        frame, bases = _predicted(hardware, dtype, launch, axes, sizes, batch)
    answer = _answer(frame, subject, baseline, x, y, bool(run))
    if json:
        print_json(_as_json(answer, bases))
    else:
        _print(answer, bases, x, y, everything=all_)


def _checked_level(level: str) -> str:
    """RequestError for level model, for which no map is swept and no condition derived."""
    if level == "model":
        raise RequestError("--level is core or layer here, got 'model'")
    return level


def _check_sizes(sizes: Mapping[str, options.Sizes | None], batch: options.Sizes) -> None:
    check_combinations(
        "regions",
        [values for values in (*sizes.values(), batch) if values],
        mend="give fewer values",
    )
    for width, head in product(sizes["model_dims"] or (), sizes["head_dims"] or ()):
        if width % head:
            raise RequestError(f"--model-dim must be a multiple of --head-dim {head}, got {width}")


def _check_ranks(asked: Sequence[int] | None, lengths: Sequence[int] | None) -> None:
    """Say which ranks no key is compressed to: those above N."""
    from flurka_bench.answers.predicted import (
        RANKS,
        SEQ_LENS,
    )

    ranks, lengths = asked or RANKS, lengths or SEQ_LENS
    over = [rank for rank in asked or () if rank > min(lengths)]
    if min(ranks) > max(lengths):
        raise RequestError(
            f"rank must be at most seq_len, and every rank is larger: {min(ranks)}"
            f" than {max(lengths)} (--rank, --seq-len)"
        )
    if over:
        at = ", ".join(f"{rank} at N < {rank}" for rank in over)
        note(f"rank must be at most seq_len: left out {at}")


# By FLOPs


def _pairs(pair: options.Names | None) -> list[tuple[str, str]]:
    from flurka_bench.cases.registry import (
        MECHANISMS,
        get,
    )

    if pair is not None:
        if len(pair) != 2:
            raise RequestError(f"--pair takes two mechanisms X,Y, got {str(pair)!r}")
        return [(get(pair[0]).name, get(pair[1]).name)]
    found = []
    for name, cell in MECHANISMS.items():
        if cell.is_flurka:
            found += [(name, parent) for parent in cell.parents.values() if parent]
    return found


# The sizes that occur in conditions, and their letters there.
_SYMBOLS = {
    "--seq-len": "N",
    "--rank": "k",
    "--num-features": "m",
    "--model-dim": "D",
    "--head-dim": "d",
}


def _flops(
    context: typer.Context,
    level: str,
    pass_: str,
    pair: options.Names | None,
    latex: bool,
    json: bool,
    *,
    everything: bool,
) -> None:
    from flurka_bench.cases.registry import get
    from flurka_bench.cost.regions import conditions

    given = {}
    for option, symbol in _SYMBOLS.items():
        values = context.params[option.removeprefix("--").replace("-", "_")]
        if values is not None:
            given[symbol] = options.one(values, f"{option} with --flops")
    rows: list[dict[str, Any]] = []
    occurring: set[str] = set()
    for one, other in _pairs(pair):
        orders = (
            [(None, None)]
            if level == "core"
            else [(a, b) for a in get(one).orders for b in get(other).orders]
        )
        for order_x, order_y in orders:
            found = conditions(one, other, level, order_x, order_y, pass_=pass_)
            free = {symbol.name for symbol in found.inequality.free_symbols}
            occurring |= free
            holds = found.holds(**given) if free <= set(given) else None
            rows.append({
                "x": one, "order_x": order_x, "y": other, "order_y": order_y, "level": level, "pass": pass_,
                "inequality": found.latex if latex else str(found.inequality), "solved_for_k": _text(found.solved_for_k, latex),
                "solved_for_m": _text(found.solved_for_m, latex), "flops_x": str(found.flops_x), "flops_y": str(found.flops_y),
                "holds": holds, "at": {key: given[key] for key in sorted(given)} if holds is not None else None,
            })  # fmt: skip
    asked = {option for option in options.given(context) if option in _SYMBOLS}
    _check_symbols(asked, occurring, decided=any(row["holds"] is not None for row in rows))
    if json:
        print_json(rows)
        return
    print_text(
        f"Matmul FLOPs at level {level}, {pass_}; N seq_len, D model_dim, d head_dim, k rank, m num_features; k <= N."
    )
    if all(row["holds"] is None for row in rows):
        print_text(
            "Give one --seq-len, --rank and --num-features (and --model-dim, --head-dim) to see which hold."
        )
    print_table(
        [
            Column(title, "word")
            for title in ("X", "order", "needs fewer than Y", "order", "where", "for k", "holds")
        ],
        [
            (row["x"], row["order_x"] or "", row["y"], row["order_y"] or "", row["inequality"], row["solved_for_k"] or "",
             {True: "yes", False: "no", None: ""}[row["holds"]])
            for row in rows
        ],
        everything=everything,
    )  # fmt: skip


def _check_symbols(asked: set[str], occurring: set[str], *, decided: bool) -> None:
    """Say which sizes given do not occur in the conditions, and which are missing to decide
    them."""
    idle = [option for option in asked if _SYMBOLS[option] not in occurring]
    if idle:
        note(f"{', '.join(sorted(idle))} does not occur in these conditions")
    if asked and not decided:
        needed = [
            option
            for option in ("--seq-len", "--rank", "--num-features")
            if option not in asked and _SYMBOLS[option] in occurring
        ]
        note(f"which conditions hold also depends on {', '.join(needed)}")


def _text(value: Any, latex: bool) -> str | None:
    if value is None:
        return None
    if latex:
        from sympy import latex as to_latex

        return str(to_latex(value))
    return str(value)


# By the clock or the model


def _measured(runs: list[Path]) -> "tuple[pd.DataFrame, list[dict[str, str]]]":
    """The runs' records, and for each run what its numbers rest on."""
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    found = [read_run(folder) for folder in runs]
    bases = [
        {
            "hardware": str(one.meta.get("device", "")),
            "kind": "measured",
            "line": f"{folder}: measured on {one.meta.get('device', 'a device it does not name')};"
            " the predictions beside are those that the run recorded",
        }
        for folder, one in zip(runs, found)
    ]
    return to_frame(found), bases


def _predicted(
    hardware: options.Names | None,
    dtype: options.Names | None,
    launch: str,
    axes: Mapping[str, Any],
    sizes: Mapping[str, options.Sizes | None],
    batches: options.Sizes,
) -> "tuple[pd.DataFrame, list[dict[str, str]]]":
    """Predictions as records, and for each target what they rest on."""
    import pandas as pd

    from flurka_bench.answers.predicted import predicted_frame
    from flurka_bench.cases.registry import FIXED_FEATURES
    from flurka_bench.hardware.basis import basis

    _check_ranks(sizes["ranks"], sizes["seq_lens"])
    heads = sizes["head_dims"] or ()
    if sizes["num_features"] and any(head not in sizes["num_features"] for head in heads):
        fixed = " and ".join(FIXED_FEATURES)
        note(f"{fixed} have m = head_dim features, whatever --num-features")
    swept = {
        name: sizes[name] for name in ("seq_lens", "ranks", "num_features") if sizes[name]
    } | dict(axes)
    own = None if dtype is None else options.one(dtype, "--dtype")
    targets = load_targets(hardware)
    for target in targets:
        check_dtype(target, own or target.own_dtype)
        check_launch(target, launch)
    frames = [
        predicted_frame(targets, own, launch, **swept, model_dim=width, head_dim=head, batch=batch)
        for width, head, batch in product(sizes["model_dims"] or (), heads, batches)
    ]
    frame = pd.concat(frames, ignore_index=True)
    found = [basis(target) for target in targets]
    return frame, [{"hardware": on.hardware, "kind": on.kind, "line": on.line} for on in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Where the subject wins: cells, answers and crossovers by baseline; ``judged`` says how far
    the prediction of a run can be trusted."""

    rows: "pd.DataFrame"
    views: "dict[str, pd.DataFrame]"
    told: "pd.DataFrame"
    crossed: "dict[str, pd.DataFrame]"
    judged: "Agreement | None"

    @property
    def source(self) -> str:
        """Of the numbers that are the answer."""
        return "predicted" if self.judged is None else "measured"


def _answer(
    frame: "pd.DataFrame",
    subject: str,
    baseline: options.Names | None,
    x: str | None,
    y: str | None,
    measured: bool,
) -> _Answer:
    from flurka_bench.answers import answer
    from flurka_bench.answers.agreement import agreement
    from flurka_bench.answers.baselines import BASELINES
    from flurka_bench.answers.crossover import crossovers
    from flurka_bench.answers.speedup import Cells, prepare

    rows = prepare(frame)
    names = list(BASELINES) if baseline in (None, ("all",)) else list(baseline or ())
    views = Cells(rows).views(subject, names)
    axes = [axis for axis in dict.fromkeys((x, y)) if axis] or ["seq_len", "rank", "num_features"]
    return _Answer(
        rows=rows,
        views=views,
        told=answer.answers(views),
        crossed={name: crossovers(cells, *axes) for name, cells in views.items()},
        judged=agreement(rows, subject, views) if measured else None,
    )


def _as_json(found: _Answer, bases: list[dict[str, str]]) -> dict[str, Any]:
    from flurka_bench.answers import crossover
    from flurka_bench.answers.speedup import side_by_side

    judged = found.judged
    return {
        "kind": found.source,
        "basis": bases,
        "answer": found.told.to_dict("records"),
        "cells": {
            name: side_by_side(cells)[_CELL_KEYS].to_dict("records")
            for name, cells in found.views.items()
        },
        "crossovers": {
            name: crossover.side_by_side(table).to_dict("records")
            for name, table in found.crossed.items()
        },
        "agreement": None if judged is None else {
            name: getattr(judged, name).to_dict("records")
            for name in ("signs", "times", "confusion", "bounds", "worst")
        },
    }  # fmt: skip


def _print(
    found: _Answer, bases: list[dict[str, str]], x: str | None, y: str | None, *, everything: bool
) -> None:
    """The answer in sentences and one table a slice; the map, the reasons and the crossovers over
    the first baseline; of the others with ``everything``."""
    from flurka_bench.answers.agreement import tables
    from flurka_bench.answers.answer import answer_columns, answer_row, in_words, slices

    for key, part in slices(found.told):
        rows = part.to_dict("records")
        print_text(f"{', '.join(map(str, key))}: {' '.join(in_words(rows[0]))}")
        print_table(
            answer_columns(short=not everything),
            [answer_row(row, short=not everything) for row in rows],
            everything=everything,
        )
        print()
    for on in bases:
        print_text(on["line"])
    print_text(RULE)
    first = next(iter(found.views))
    _print_map(found.views[first], x, y)
    for name in found.views if everything else [first]:
        _why(found, name)
        _print_crossings(found, name, everything)
    for block in [] if found.judged is None or not everything else tables(found.judged):
        print_table(block.columns, block.rows, f"\nAgreement: {block.caption}", everything=True)
    if not everything and len(found.views) > 1:
        print_text(
            "\n--all: reasons and crossovers over every baseline"
            + (", and the agreement of prediction and measurement" if found.judged else "")
        )


def _print_crossings(found: _Answer, name: str, everything: bool) -> None:
    from flurka_bench.answers.crossover import in_words
    from flurka_bench.answers.sources import of
    from flurka_bench.answers.words import where

    table = of(found.crossed[name], found.source)
    # those with a crossing first: the others win or lose throughout
    flat = ~table["wins"].isin(["from", "up to", "in part"])
    table = table.assign(_flat=flat).sort_values("_flat", kind="stable")
    lines = [(where(row), in_words(row)) for row in table.to_dict("records")]
    shown = lines if everything else lines[:12]
    if shown:
        print_table(
            (
                Column("along a line with", "word"),
                Column(f"{found.told['subject'].iloc[0]} beats {name}", "long"),
            ),
            shown,
            title=f"\nCrossovers over {name}",
            everything=everything,
        )
    if len(shown) < len(lines):
        print(f"... and {len(lines) - len(shown)} lines more (--all)")


_CELL_KEYS = [
    "device", "level", "pass", "dtype", "batch", "num_heads", "seq_len", "head_dim", "rank", "num_features",
    "subject_case_id", "baseline_case_id", "speedup", "speedup_low", "speedup_high", "verdict",
    "predicted_subject_case_id", "predicted_baseline_case_id", "predicted_speedup", "predicted_speedup_low",
    "predicted_speedup_high", "predicted_verdict", "missing",
]  # fmt: skip


def _why(found: _Answer, name: str) -> None:
    """The reason at the best and at the worst cell."""
    from flurka_bench.answers.sources import of
    from flurka_bench.answers.stages import (
        flop_conditions,
        reason,
    )
    from flurka_bench.answers.words import place

    rows, known = found.rows, of(found.views[name], found.source)
    known = known[known["ratio"].notna()]
    if not len(known):
        return
    for word, index in (("best", known["ratio"].idxmax()), ("worst", known["ratio"].idxmin())):
        cell = known.loc[index]
        pair = cell["subject_row"], cell["baseline_row"]
        own, other = (rows.loc[index] for index in pair)
        condition = flop_conditions(rows, [pair])[0]
        print_text(
            f"\n{word}: {format_ratio(cell['ratio'])} over {name} at {place(cell)}, "
            f"{own['mechanism']} against {other['mechanism']}: {reason(own, other)}"
            + (f"; fewer matmul FLOPs where {condition}" if condition else ""),
            indent="  ",
        )


def _print_map(cells: "pd.DataFrame", x: str | None, y: str | None) -> None:
    from flurka_bench.cli.common import console
    from flurka_bench.render.figures.heatmap import map_axes
    from flurka_bench.render.figures.terminal import terminal_map

    for _, part in cells.groupby("device", sort=False):
        print()
        console().print(
            terminal_map(part, *map_axes(part, x, y), which=-1)
        )  # of each device the last map: the longest sequences
