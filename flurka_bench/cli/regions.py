"""``regions``: where one mechanism beats another, measured or predicted for a target, and which FLOP condition says so."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import comma_list, one_of, positive_int, print_json, print_table
from flurka_bench.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

_PAIRS = (("flurka-relu", "low-rank-sdpa"), ("flurka-relu", "kernel-relu"), ("flurka-relu", "full-sdpa"))


def regions(
    run: Annotated[Path | None, typer.Argument(help="Run folder; none: give --hardware, or --flops alone.")] = None,
    hardware: Annotated[str | None, typer.Option(help="Target to predict for: a name, a profile file or cpu.")] = None,
    subject: Annotated[str, typer.Option(help="X: flurka (the fastest of them) or a mechanism.")] = "flurka",
    baseline: Annotated[str, typer.Option(help="Y: best-other, strong-…, paper-… or a mechanism.")] = "best-other",
    x: Annotated[
        str, typer.Option("--x", help="Axis across: seq_len, rank, num_features, head_dim, num_heads, batch.")
    ] = "seq_len",
    y: Annotated[str, typer.Option("--y", help="Axis up.")] = "rank",
    level: Annotated[str, typer.Option(help="core or layer, of predictions and of --flops.")] = "layer",
    pass_: Annotated[str, typer.Option("--pass", help="forward or train.")] = "forward",
    dtype: Annotated[str | None, typer.Option(help="Of predictions; by default the target's 16-bit type.")] = None,
    launch: Annotated[str, typer.Option(help="Of predictions: eager, graph or none.")] = "eager",
    seq_len: Annotated[str, typer.Option(help="N of predictions.")] = "1024,2048,4096,8192,16384,32768,65536",
    rank: Annotated[str, typer.Option(help="k of predictions.")] = "64,128,256,512,1024",
    num_features: Annotated[str, typer.Option(help="m of predictions.")] = "16,32,64,128,256",
    model_dim: Annotated[int, typer.Option(min=1, help="D of predictions.")] = 1024,
    head_dim: Annotated[int, typer.Option(min=1, help="d of predictions.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="b of predictions.")] = 1,
    flops: Annotated[bool, typer.Option("--flops", help="Also the conditions by FLOPs alone, in closed form.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="The closed forms as LaTeX.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The winning region of X over Y, its edges along both axes with intervals, and the reason.

    Example: flurka-bench regions results/layer-cpu --baseline strong-kernel --x num_features --y rank

    Example: flurka-bench regions --hardware h100 --x seq_len --y rank --flops
    """
    from flurka_bench.analysis.baselines import baseline as named
    from flurka_bench.analysis.baselines import subject_mechanisms
    from flurka_bench.workload import DTYPES, PASSES

    one_of(("core", "layer"), "--level")(level)
    one_of(PASSES, "--pass")(pass_)
    one_of(DTYPES, "--dtype")(dtype) if dtype else None
    named(baseline), subject_mechanisms(subject)
    conditions = _conditions(subject, baseline, level, pass_, latex) if flops or latex else []
    if run is None and hardware is None:
        if not conditions:
            raise RequestError("regions takes a run folder, or --hardware to predict, or --flops for the closed forms alone")
        answer: dict[str, Any] = {"conditions": conditions}
    else:
        if run is not None and hardware is not None:
            raise RequestError("regions takes a run folder or --hardware, not both")
        if run is not None:
            from flurka_bench.results import read_run, to_frame

            frame = to_frame(read_run(run))
        else:
            from flurka_bench.analysis.predicted import predicted_frame
            from flurka_bench.cli.targets import load_targets

            if model_dim % head_dim:
                raise RequestError(f"--model-dim must be a multiple of --head-dim, got {model_dim} and {head_dim}")
            texts = {
                "seq_lens": (seq_len, "--seq-len"),
                "ranks": (rank, "--rank"),
                "num_features": (num_features, "--num-features"),
            }
            axes = {name: comma_list(text, positive_int(option), option) for name, (text, option) in texts.items()}
            axes |= {"level": level, "passes": (pass_,), "model_dim": model_dim, "head_dim": head_dim, "batch": batch}
            frame = predicted_frame(load_targets(str(hardware)), dtype, launch, **axes)
        answer = _answer(frame, subject, baseline, x, y) | {"conditions": conditions}
    if json:
        print_json({key: value for key, value in answer.items() if key != "cells_frame"})
        return
    _print(answer, x, y)


def _answer(frame: "pd.DataFrame", subject: str, baseline: str, x: str, y: str) -> dict[str, Any]:
    from flurka_bench.analysis.answer import answers, in_words, place
    from flurka_bench.analysis.crossover import crossovers
    from flurka_bench.analysis.crossover import in_words as crossing_words
    from flurka_bench.analysis.speedup import prepare, speedups

    rows = prepare(frame)
    if x == y:
        raise RequestError(f"--x and --y must be two different axes, got {x!r} twice")
    cells = speedups(rows, subject, baseline)
    other = baseline.replace("strong-", "paper-") if baseline.startswith("strong-") else baseline.replace("paper-", "strong-")
    views = {name: speedups(rows, subject, name) for name in dict.fromkeys(sorted((baseline, other), reverse=True))}
    told = [sentence for _, row in answers(views).iterrows() for sentence in in_words(row)]
    found = crossovers(rows, cells, x, y)
    crossings = []
    for row in found.to_dict("records"):
        at = {"seq_len": row["seq_len"], "rank": row["rank"], "num_features": row["num_features"]}
        edges = {name: row[name] for name in ("crossing", "crossing_low", "crossing_high", "predicted_crossing",
                                              "predicted_crossing_low", "predicted_crossing_high")}  # fmt: skip
        words = {"measured": crossing_words(row), "predicted": crossing_words(row, "predicted_")}
        crossings.append(
            {"axis": row["axis"], "device": row["device"], "pass": row["pass"], "dtype": row["dtype"], **at, **edges, **words}
        )
    reasons = []
    prefix = "" if cells["speedup"].notna().any() else "predicted_"
    known = cells[cells[f"{prefix}speedup"].notna()].sort_values(f"{prefix}speedup")
    from flurka_bench.analysis.stages import reason

    for cell in (known.iloc[[-1, 0]] if len(known) > 1 else known).to_dict("records"):
        pair = [rows.loc[cell[f"{prefix}{side}_row"]].to_dict() for side in ("subject", "baseline")]
        names = f"{cell[f'{prefix}subject_mechanism']} against {cell[f'{prefix}baseline_mechanism']}"
        reasons.append({"at": place(cell), "speedup": cell[f"{prefix}speedup"], "pair": names, "reason": reason(*pair)})
    kept = ["device", "level", "pass", "dtype", "seq_len", "rank", "num_features", "missing"]
    kept += [f"{p}{name}" for p in ("", "predicted_") for name in ("speedup", "speedup_low", "speedup_high", "verdict")]
    return {"subject": subject, "baseline": baseline, "answer": told, "reasons": reasons, "crossovers": crossings,
            "cells": cells[kept].to_dict("records"), "cells_frame": cells}  # fmt: skip


def _conditions(subject: str, baseline: str, level: str, pass_: str, latex: bool) -> list[dict[str, str]]:
    """The closed forms of the pair: X in its best order against Y in the paper's and in its best order."""
    from flurka_bench.analysis.baselines import FAMILIES, FAMILY_OF, PAPER_MECHANISM
    from flurka_bench.analysis.baselines import baseline as named
    from flurka_bench.cost import regions as closed
    from flurka_bench.mechanisms import MECHANISMS

    own = subject if subject in FAMILY_OF else "flurka-relu" if subject == "flurka" else FAMILIES[subject][-1]
    opponent = named(baseline)
    others = (
        [opponent.mechanism]
        if opponent.mechanism
        else list(opponent.mechanisms(own))
        if opponent.family
        else [y for _, y in _PAIRS]
    )
    # One kernel of each family stands for all; what else it costs is not in the matmul FLOPs.
    others = [name for name in others if name not in (own, PAPER_MECHANISM["full"], "kernel-favor", "kernel-elu")] or others
    found = []
    for other in others:
        orders = [(None, None)] if level == "core" else [
            (order, order_other) for order in MECHANISMS[own].orders for order_other in MECHANISMS[other].orders
        ]  # fmt: skip
        for order, order_other in orders:
            one = closed.conditions(own, other, level, order, order_other, pass_=pass_)
            found.append({
                "x": own, "y": other, "order_x": order or "", "order_y": order_other or "",
                "holds_when": one.latex if latex else str(one.inequality), "for_k": str(one.solved_for_k),
                "for_m": str(one.solved_for_m),
            })  # fmt: skip
    return found


def _print(answer: dict[str, Any], x: str, y: str) -> None:
    if "cells_frame" in answer:
        from rich import print as rich_print

        from flurka_bench.plots.terminal import terminal_map

        for sentence in answer["answer"]:
            print(sentence)
        print()
        rich_print(terminal_map(answer["cells_frame"], x, y))
        print()
        for one in answer["reasons"]:
            print(f"Why {one['speedup']:.2f}× at {one['at']} ({one['pair']}): {one['reason']}")
        print()
        head = ("axis", "device", "pass", "N", "k", "m", "measured: wins", "predicted: wins")
        rows = [
            [
                c["axis"],
                c["device"],
                c["pass"],
                *(str(c[name] or "") for name in ("seq_len", "rank", "num_features")),
                c["measured"],
                c["predicted"],
            ]
            for c in answer["crossovers"]
        ]
        print_table(
            head, rows[:60], title=f"Crossovers ({len(rows)})" + (", the first 60 (all: --json)" if len(rows) > 60 else "")
        )
    if answer["conditions"]:
        head = ("X", "order", "Y", "order", "X needs fewer matmul FLOPs when", "as a bound on k", "as a bound on m")
        rows = [
            [c["x"], c["order_x"], c["y"], c["order_y"], c["holds_when"], c["for_k"], c["for_m"]] for c in answer["conditions"]
        ]
        print_table(head, rows, title="\nBy FLOPs alone")
