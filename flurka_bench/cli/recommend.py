"""``recommend``: which mechanism, order, backend, k, m and head split to use for one workload on one or several targets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.cli.common import comma_list, one_of, positive_int, print_json, print_table
from flurka_bench.units import format_bytes, format_ratio, format_seconds, parse_bytes, parse_seconds

if TYPE_CHECKING:
    from flurka_bench.analysis.recommend import Candidate, Recommendation


def recommend(
    seq_len: Annotated[int, typer.Option(min=1, help="N.")],
    model_dim: Annotated[int, typer.Option(min=1, help="D, the width of x.")],
    hardware: Annotated[str, typer.Option(help="Targets: names, profile files (.toml) or cpu, a comma list.")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="b.")] = 1,
    pass_: Annotated[str, typer.Option("--pass", help="forward or train.")] = "forward",
    dtype: Annotated[str | None, typer.Option(help="By default the target's 16-bit type, float32 where it has none.")] = None,
    launch: Annotated[str, typer.Option(help="eager (the host dispatches), graph, or none (device time alone).")] = "eager",
    head_dim: Annotated[str, typer.Option(help="Head splits to try: widths of a head, a comma list.")] = "32,64,128,256",
    min_rank: Annotated[int | None, typer.Option(min=1, help="Least k: a floor on quality.")] = None,
    min_features: Annotated[int | None, typer.Option(min=1, help="Least m: a floor on quality.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Most output error, as measured by an error run.")] = None,
    errors: Annotated[Path | None, typer.Option(help="Error run: adds errors to the answer.")] = None,
    inputs: Annotated[str | None, typer.Option(help="Kind of inputs of the error run.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Most peak memory, like 40GB.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Most time of one call, like 2ms.")] = None,
    run: Annotated[Path | None, typer.Option(help="Run on this target: its measurements replace predictions.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows of the table.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Rank all configurations for one workload by predicted time, at a floor on quality; say which are tied, and why.

    Example: flurka-bench recommend --hardware h100,b200,l40s --seq-len 16384 --model-dim 1024 --pass train --min-rank 256
    """
    from flurka_bench.analysis.recommend import Request, as_records, own_dtype
    from flurka_bench.analysis.recommend import recommend as search
    from flurka_bench.cli.targets import load_targets
    from flurka_bench.errors import RequestError
    from flurka_bench.workload import DTYPES, PASSES

    one_of(PASSES, "--pass")(pass_)
    if dtype is not None:
        one_of(DTYPES, "--dtype")(dtype)
    head_dims = comma_list(head_dim, positive_int("--head-dim"), "--head-dim")
    error_run = None
    if errors is not None:
        from flurka_bench.quality.frontier import load_error_run

        error_run = load_error_run(errors)
    records = []
    targets = load_targets(hardware)
    if run is not None:
        from flurka_bench.results import read_run

        if len(targets) > 1:
            raise RequestError("--run replaces the predictions of one target; give one --hardware with it")
        records = read_run(run).records
    found = [
        search(
            target,
            Request(
                seq_len=seq_len, model_dim=model_dim, batch=batch, pass_=pass_, dtype=dtype or own_dtype(target), launch=launch,
                head_dims=tuple(head_dims),
                min_rank=min_rank, min_features=min_features, max_error=max_error,
                max_memory_bytes=parse_bytes(max_memory, "--max-memory") if max_memory else None,
                max_latency_s=parse_seconds(max_latency, "--max-latency") if max_latency else None,
            ),
            records=records, errors=error_run, inputs=inputs,
        )
        for target in targets
    ]  # fmt: skip
    if json:
        print_json([record for one in found for record in as_records(one)])
        return
    if len(found) > 1:
        _print_targets(found)
    for one in found:
        _print(one, top, short=len(found) > 1)


def _knobs(candidate: "Candidate") -> list[str]:
    case = candidate.case
    return [
        str(case.order or ""),
        case.backend,
        str(case.rank or ""),
        str(case.num_features or ""),
        f"{case.num_heads} x {case.head_dim}",
    ]


def _row(candidate: "Candidate", best: "Candidate") -> list[str]:
    error = (
        f"{candidate.error[1]:.2g} ({candidate.error[0]:.2g} to {candidate.error[2]:.2g})" if candidate.error else "not measured"
    )
    return [
        candidate.case.mechanism, *_knobs(candidate), format_seconds(candidate.seconds),
        f"{format_seconds(candidate.seconds_low)} to {format_seconds(candidate.seconds_high)}", candidate.source,
        "best" if candidate is best else "tied" if candidate.tied else format_ratio(candidate.seconds / best.seconds),
        format_bytes(candidate.peak_memory_bytes), candidate.bound, error,
    ]  # fmt: skip


_HEAD = (
    "mechanism",
    "order",
    "backend",
    "k",
    "m",
    "h x d",
    "time",
    "band",
    "source",
    "against the best",
    "peak memory",
    "bound",
    "error",
)


def _print_targets(found: "list[Recommendation]") -> None:
    rows = []
    for one in found:
        best = one.ranked[0]
        tied = sorted({each.family for each in one.ranked if each.tied and each.family != best.family})
        rows.append(
            [
                one.profile.title,
                best.case.mechanism,
                *_knobs(best),
                best.case.dtype,
                format_seconds(best.seconds),
                ", ".join(tied),
            ]
        )
    head = ("hardware", "fastest", "order", "backend", "k", "m", "h x d", "dtype", "time", "tied families")
    print_table(head, rows, title="Across hardware")


def _print(found: "Recommendation", top: int, short: bool) -> None:
    from flurka_bench.analysis.recommend import python_line

    request, best = found.request, found.ranked[0]
    about = f"N = {request.seq_len}, D = {request.model_dim}, b = {request.batch}, {request.pass_}, {request.dtype}"
    print(f"\n{found.profile.title}: {about}\n")
    print_table(_HEAD, [_row(each, best) for each in found.families], title="Fastest of each family")
    print(f"\nWhy: {best.case.mechanism} is {found.reason}")
    for note in found.notes:
        print(f"Note: {note}")
    print(f"\n{python_line(best.case)}")
    if short:
        return
    print()
    print_table(
        _HEAD, [_row(each, best) for each in found.ranked[:top]], title=f"The fastest {min(top, len(found.ranked))} forms"
    )
    print()
    front = found.front[:: max(1, len(found.front) // top)][:top]
    what = "time, memory and error" if any(each.error for each in found.front) else "time, memory, k and m"
    title = f"Pareto front of {what}: {len(front)} of {len(found.front)}"
    print_table(_HEAD, [_row(each, best) for each in front], title=title)
    print()
    rows = [
        [str(k), str(m), each.case.mechanism, *_knobs(each), format_seconds(each.seconds)]
        if each
        else [str(k), str(m), "nothing"] + [""] * 6
        for k, m, each in found.moves
    ]
    head = ("least k", "least m", "fastest", "order", "backend", "k", "m", "h x d", "time")
    print_table(head, rows, title="How the answer moves with the floor")
