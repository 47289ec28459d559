"""``quality``: what speed costs. Measures approximation errors, shows them, and holds the bounds
against draws."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    note,
    print_json,
    print_table,
)
from flurka_bench.cli.progress import Progress
from flurka_bench.cli.targets import check_knobs

if TYPE_CHECKING:
    from flurka_bench.answers.frontier import Summary

_HELP = """What speed costs: the approximation error of each mechanism, and bounds on it.

Example: flurka-bench quality error error-quick"""
app = typer.Typer(no_args_is_help=True, help=_HELP)


@app.command("error")
def error(
    out: Annotated[Path | None, options.plain("--out", "Run folder [default: results/SUITE]")],
    inputs: options.Inputs,
    mechanism: Annotated[
        options.Names | None, options.declared("--mechanism", shown="the suite's")
    ],
    rank: Annotated[
        options.Sizes | None, options.declared("--rank", default=None, shown="the suite's")
    ],
    num_features: Annotated[
        options.Sizes | None,
        options.declared("--num-features", default=None, shown="the suite's"),
    ],
    seq_len: Annotated[
        options.Sizes | None, options.declared("--seq-len", default=None, shown="the suite's")
    ],
    seeds: Annotated[
        int | None, options.plain("--seeds", "Seeds instead of the suite's number.", least=1)
    ],
    model: Annotated[
        Path | None,
        options.plain("--model", "Folder of a BERT-family encoder for the trained inputs."),
    ],
    text: Annotated[
        Path | None,
        options.plain("--text", "UTF-8 text for the trained inputs [default: docstrings]"),
    ],
    dry_run: options.DryRun,
    json: options.Json,
    suite: Annotated[
        str, typer.Argument(help="A shipped error suite (error-quick, error) or a TOML file.")
    ] = "error-quick",
) -> None:
    """Measure errors against float64 full attention; the same command again goes on where it was
    stopped.

    Example: flurka-bench quality error error-quick
    """
    from flurka_bench.kinds.error import suite as suites

    loaded = suites.load(suite).override(
        inputs=inputs,
        mechanism=mechanism,
        rank=rank,
        num_features=num_features,
        seq_len=seq_len,
        seeds=seeds,
        model=model,
        text=text,
    )
    knobs = {"rank": rank, "num_features": num_features}
    given = {name: values for name, values in knobs.items() if values is not None}
    notes = check_knobs(
        given,
        ((item.mechanism, _without(item.mechanism)) for item in loaded.configurations),
        refuse=True,
    )
    from flurka_bench.kinds.error.kind import ErrorPlan

    plan = ErrorPlan(suite=loaded)
    if dry_run:
        notes += [] if out is None else ["--out changes nothing in a dry run"]
        cases = [case.case_id for case in plan.all_cases()]
        for each in notes:
            note(each)
        if json:
            print_json({"cases": [{"case_id": case_id} for case_id in cases]})
        else:
            print("\n".join([*cases, f"{len(cases)} cases"]))
        return
    from flurka_bench.answers.frontier import load_error_run
    from flurka_bench.bench import loop
    from flurka_bench.bench.kind import RunOptions

    folder = out or Path("results") / loaded.name
    with Progress(quiet=json) as progress:
        loop.run(plan, RunOptions(out=folder), on_event=progress.show)
    for each in notes:
        note(each)
    _print_summaries(load_error_run(folder).summaries, folder, as_json=json)


def _without(mechanism: str) -> dict[str, str]:
    """The knobs that a mechanism lacks, each with the reason."""
    from flurka_bench.cases.registry import get

    cell = get(mechanism)
    found = {} if cell.compressed else {"rank": "compresses nothing"}
    if not cell.uses_features:
        features = "has head_dim features" if cell.is_kernel else "has no features"
        found["num_features"] = features
    return found


@app.command("show")
def show(
    run: Annotated[Path, typer.Argument(help="Folder of an error run.")],
    inputs: options.Inputs,
    json: options.Json,
) -> None:
    """Show an error run: errors with their interval over layers and seeds, by family and
    configuration.

    Example: flurka-bench quality show results/error --inputs trained
    """
    from flurka_bench.answers.frontier import load_error_run
    from flurka_bench.words.errors import unknown

    summaries = load_error_run(run).summaries
    if inputs is not None:
        known = {name for item in summaries for name in (item.family, item.inputs)}
        for name in inputs:
            if name not in known:
                raise unknown("input family (--inputs)", name, known)
        summaries = [item for item in summaries if item.family in inputs or item.inputs in inputs]
    _print_summaries(summaries, run, as_json=json)


@app.command("plot")
def plot(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of an error run.")],
    timing: Annotated[
        Path | None,
        options.plain("--timing", "Folder of a timing run: adds error beside time and memory."),
    ],
    inputs: options.Inputs,
    family: Annotated[
        str | None,
        options.plain(
            "--family", "Inputs beside time and parents [default: trained where the run has them]"
        ),
    ],
    seq_len: Annotated[options.Sizes, options.declared("--seq-len", default="512")],
    level: Annotated[options.Names, options.declared("--level", default="core")],
    out: Annotated[Path | None, options.plain("--out", "Folder for the pictures [default: RUN]")],
) -> None:
    """Draw an error run: curves against k and m, FLuRKA beside its parents, and error beside time
    and memory.

    Example: flurka-bench quality plot results/error --timing results/error-time-cpu
    """
    from flurka_bench.answers.frontier import load_error_run
    from flurka_bench.render.figures import error as figures
    from flurka_bench.render.figures import style
    from flurka_bench.words.errors import unknown

    if timing is None:
        options.refuse(context, ("--seq-len", "--level"), " without --timing")
    found, folder = load_error_run(run), out or run
    asked = family
    labels = list(dict.fromkeys(item.inputs for item in found.summaries))
    for name in inputs or ():
        if name not in labels:
            raise unknown("--inputs", name, labels)
    family = family or (
        "trained" if "trained" in found.families else labels[0] if labels else "trained"
    )
    if labels and family not in found.families:
        raise unknown("input family of this error run (--family)", family, found.families)
    written = style.save(
        figures.curves(found, inputs or labels), folder / "error-curves", formats=("png",)
    )
    if any(
        "low_rank_step" in item.means and family in (item.family, item.inputs)
        for item in found.summaries
    ):
        written += style.save(
            figures.parents(found, family), folder / f"error-parents-{family}", formats=("png",)
        )
    elif timing is None and asked is not None:
        note(f"--family {family} changes nothing: the run has no parents to show and no --timing")
    if timing is not None:
        written += _beside_time(
            found,
            timing,
            family=family,
            seq_len=options.one(seq_len, "--seq-len"),
            level=options.one(level, "--level"),
            folder=folder,
        )
    for path in written:
        print(path)


def _beside_time(
    found: Any, timing: Path, *, family: str, seq_len: int, level: str, folder: Path
) -> list[Path]:
    """The front of time, error and memory: printed, said in a sentence and drawn."""
    from flurka_bench.answers.tradeoff import (
        form,
        join_time,
        pareto_front,
        sentence,
    )
    from flurka_bench.render.figures import style
    from flurka_bench.render.figures.tradeoff import pareto
    from flurka_bench.results import (
        read_run,
        to_frame,
    )
    from flurka_bench.words.errors import RequestError
    from flurka_bench.words.units import (
        format_bytes,
        format_seconds,
    )

    frame = to_frame(read_run(timing))
    rows = join_time(
        frame[(frame["level"] == level) & (frame["pass"] == "forward")],
        found,
        family=family,
        seq_len=seq_len,
    )
    if rows.empty:
        measured = found.sizes_in_words(family)
        raise RequestError(
            f"{timing} times nothing at level {level}, N = {seq_len} (--seq-len) that has an"
            f" error; errors are at {measured}"
        )
    front = rows[
        pareto_front(*(rows[name] for name in ("seconds", "error_median", "peak_memory_bytes")))
    ]
    print_table(
        (
            "on the front of time, error and memory",
            "time",
            "interval",
            "error",
            "10% to 90%",
            "peak memory",
        ),
        [
            (
                form(row),
                format_seconds(row["seconds"]),
                f"{format_seconds(row['seconds_low'])} to {format_seconds(row['seconds_high'])}",
                f"{row['error_median']:.2f}",
                f"{row['error_low']:.2f} to {row['error_high']:.2f}",
                format_bytes(row["peak_memory_bytes"]),
            )
            for _, row in front.sort_values("seconds").iterrows()
        ],
    )
    print(f"\n{sentence(rows, family)}\n")
    title = f"{level}, forward, N {seq_len}, {family} inputs"
    figure = pareto(rows, title=title, third="peak_memory_bytes")
    return style.save(figure, folder / f"error-time-{family}-n{seq_len}", formats=("png",))


@app.command("bounds")
def bounds(
    draws: Annotated[
        int,
        options.plain("--draws", "Draws that each bound is held against.", default=1000, least=10),
    ],
    json: options.Json,
) -> None:
    """Hold every bound against draws: how often it holds, how far above the error it lies, where it
    says nothing.

    Example: flurka-bench quality bounds --draws 100
    """
    from dataclasses import asdict

    from flurka_bench.kinds.error.verification import table

    rows = list(table(draws))
    if json:
        print_json([asdict(row) | {"factor": row.factor, "vacuous": row.vacuous} for row in rows])
        return
    headers = (
        "bound",
        "setting",
        "stated",
        "held",
        "bound on the relative error",
        "measured",
        "factor",
    )
    print_table(
        headers,
        [
            (
                row.name,
                row.setting,
                f"{row.stated:.0%}",
                f"{row.held:.1%}",
                ("none" if math.isinf(row.bound) else f"{row.bound:.3g}")
                + (" (vacuous)" if row.vacuous else ""),
                f"{row.measured:.3g}",
                "" if math.isinf(row.factor) else f"{row.factor:.2g}",
            )
            for row in rows
        ],
    )


def _print_summaries(summaries: "list[Summary]", folder: Path, *, as_json: bool) -> None:
    if as_json:
        print_json([_as_dict(item) for item in summaries])
        return
    headers = (
        "inputs",
        "N",
        "d",
        "mechanism",
        "E and F",
        "k",
        "m",
        "error",
        "10% to 90%",
        "matrix",
        "cosine",
        "records",
    )
    print_table(
        headers,
        [
            (
                item.inputs,
                item.seq_len,
                item.head_dim,
                item.mechanism,
                f"{item.projection or ''}{', E = F' if item.share_kv and item.projection != 'mean-pool' else ''}",
                item.rank or "",
                item.num_features or "",
                f"{item.error.median:.3f}",
                f"{item.error.low:.3f} to {item.error.high:.3f}",
                f"{item.means['matrix_frobenius']:.3f}",
                f"{item.means['output_cosine']:.3f}",
                item.num_records,
            )
            for item in summaries
        ],
    )
    print(
        f"\nerror: |O - O'|_F / |O|_F of a layer, median and 10th to 90th percentile over"
        f" layers and seeds; run: {folder}"
    )


def _as_dict(item: "Summary") -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(item)
    low, median, high = values.pop("error")
    return values | {"error_low": low, "error_median": median, "error_high": high}
