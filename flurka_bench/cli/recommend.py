"""``recommend``: the fastest configuration that meets a floor of quality, on one target or across
several."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import (
    BYTES_HELP,
    DTYPES_HELP,
    SECONDS_HELP,
    SIZES_HELP,
    comma_list,
    dtype_of,
    note,
    one_of,
    positive_int,
    print_json,
    print_table,
    refuse_given,
)
from flurka_bench.cli.targets import (
    HARDWARE_HELP,
    check_backends,
    check_dtype,
    check_launch,
    load_targets,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)
from flurka_bench.words.verdict import RULE

if TYPE_CHECKING:
    from flurka_bench.answers.recommend import (
        Candidate,
        Recommendation,
        Request,
    )
    from flurka_bench.hardware import Profile

HEAD_DIMS = "32,64,128"
ERROR_RUN = Path("results/reference/error")  # where this project's own error run lies in a checkout

# Said under every answer: the line of Python above it reads like a substitute.
NO_DROP_IN = (
    "Only exact attention (full-sdpa, full-math) can replace the attention of a model that is"
    " already trained. Every other mechanism is one to train with: dropped into a trained model,"
    " its output was far off wherever this project measured it (docs/error.md)."
)


def recommend(
    hardware: Annotated[str, typer.Option(help=f"Targets: {HARDWARE_HELP}.")] = "cpu",
    seq_len: Annotated[str, typer.Option(help=f"Sequence length N. {SIZES_HELP}")] = "4096",
    model_dim: Annotated[str, typer.Option(help="Width D of the layer.")] = "512",
    pass_: Annotated[str, typer.Option("--pass", help="forward or train.")] = "forward",
    dtype: Annotated[
        str | None,
        typer.Option(help=f"{DTYPES_HELP}; by default what the target's matrix units take."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch size.")] = "1",
    head_dim: Annotated[
        str | None,
        typer.Option(
            help="Head widths to consider; those of 32,64,128 that divide the model's by default."
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Backends to consider; eager,compiled,fused where the target has them."),
    ] = None,
    launch: Annotated[str, typer.Option(help="eager, graph or none.")] = "eager",
    min_rank: Annotated[str | None, typer.Option(help="Floor for the rank k.")] = None,
    min_features: Annotated[
        str | None,
        typer.Option(
            help="Floor for the number of features m (elu has as many as a head is wide)."
        ),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Bar for the relative error of the output, like 0.2.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            help="Family of inputs whose error counts, with --max-error or --error-run; trained by default."
        ),
    ] = None,
    error_run: Annotated[
        Path | None, typer.Option(help=f"Error run; {ERROR_RUN} where it is at hand.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help=f"Most peak memory, like 40GB: {BYTES_HELP}.")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help=f"Most time of one pass, like 2ms: {SECONDS_HELP}.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="A run on this target: what it measured is not predicted.")
    ] = None,
    top: Annotated[str, typer.Option(help="How many to list.")] = "10",
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the ranking, best first.")
    ] = False,
) -> None:
    """Rank every mechanism, order, backend, rank, feature count and head split for a workload, by
    time with bands.

    Example: flurka-bench recommend --hardware h100,l40s --seq-len 16384 --model-dim 1024 --pass
        train --min-rank 256
    """
    from flurka_bench.answers.recommend import (
        BACKENDS,
        Request,
    )
    from flurka_bench.answers.recommend import recommend as search
    from flurka_bench.cost.terms import LAUNCHES
    from flurka_bench.hardware.basis import basis
    from flurka_bench.words.sizes import PASSES

    def count(text: str | None, option: str) -> int | None:
        return None if text is None else positive_int(option)(text)

    if max_error is not None and not 0 <= max_error < float("inf"):
        raise RequestError(
            f"--max-error must be a number of at least 0 (like 0.2), got {max_error}"
        )
    targets = load_targets(hardware)
    if run is not None and len(targets) > 1:
        raise RequestError("--run belongs to one target: give a single --hardware")
    widths = comma_list(head_dim or HEAD_DIMS, positive_int("--head-dim"), "--head-dim")
    backends = comma_list(backend or ",".join(BACKENDS), one_of(BACKENDS, "--backend"), "--backend")
    fields = {
        "seq_len": count(seq_len, "--seq-len"), "model_dim": count(model_dim, "--model-dim"), "batch": count(batch, "--batch"),
        "pass_": one_of(PASSES, "--pass")(pass_), "launch": one_of(LAUNCHES, "--launch")(launch),
        "head_dims": tuple(widths),
        "min_rank": count(min_rank, "--min-rank"), "min_features": count(min_features, "--min-features"),
        "max_error": max_error, "inputs": inputs or "trained",
        "max_memory_bytes": None if max_memory is None else parse_bytes(max_memory, "--max-memory"),
        "max_latency_s": None if max_latency is None else parse_seconds(max_latency, "--max-latency"),
    }  # fmt: skip
    limit = count(top, "--top")
    errors, records = _errors(error_run, max_error), _records(run, targets[0])
    if errors is None:
        refuse_given({"--inputs": inputs}, ": no error counts without --max-error or --error-run")
    found, bases = [], [basis(target) for target in targets]
    for target in targets:
        chosen = dtype_of("--dtype")(dtype) if dtype else target.own_dtype
        own = check_backends(target, backends) if backend else backends
        request = Request(dtype=chosen, backends=tuple(own), **fields)
        _check(request, target, head_dim=head_dim, backend=backend)
        found.append(search(request, target, errors=errors, records=records))
    if run is not None and not any(each.measured for each in found[0].candidates):
        note(
            f"--run changes nothing: {run} has a time of none of the configurations that are ranked"
        )
    if json:
        print_json([
            each.as_record() | {"hardware_basis": on.kind, "hardware_basis_words": on.line}
            for answer, on in zip(found, bases)
            for each in answer.candidates[:limit]
        ])  # fmt: skip
        return
    sizes = "" if errors is None else errors.sizes_in_words(inputs or "trained")
    for answer, on in zip(found, bases):
        _print(answer, limit, on.line, sizes=sizes, source=error_run or ERROR_RUN)
    if len(found) > 1:
        _print_across(found)
    print(f"\n{NO_DROP_IN}")


def _check(
    request: "Request", target: "Profile", *, head_dim: str | None, backend: str | None
) -> None:
    """Say what of the request the search leaves out."""
    check_dtype(target, request.dtype)
    check_launch(target, request.launch)
    wide = [str(width) for width in request.head_dims if width not in request.splits]
    if head_dim is not None and wide:
        note(f"--head-dim {','.join(wide)} does not divide --model-dim {request.model_dim}")
    if backend is not None and "fused" in request.backends and request.pass_ == "train":
        text = "fused kernels have no backward pass: --backend fused does not apply to --pass train"
        if request.backends == ("fused",):
            raise RequestError(f"{text}; accepted: eager, compiled")
        note(text)


def _errors(folder: Path | None, max_error: float | None) -> Any:
    from flurka_bench.answers.frontier import load_error_run

    if folder is not None:
        return load_error_run(folder)
    return load_error_run(ERROR_RUN) if max_error is not None and ERROR_RUN.is_dir() else None


def _records(folder: Path | None, target: Any) -> list[dict[str, Any]]:
    if folder is None:
        return []
    from flurka_bench.results import read_run

    records = list(read_run(folder).records)
    devices = {record["device"] for record in records} - {
        *target.device_names,
        target.title,
        target.title.split(",")[0],
    }
    if devices:
        print(
            f"note: {folder} was measured on {', '.join(sorted(devices))}, and the target is {target.title}",
            file=sys.stderr,
        )
    return records


_HEADERS = (
    "mechanism", "order", "backend", "heads x d", "k", "m", "time", "90 % band", "bound by",
    "peak memory", "error", "against the fastest", "floors",
)  # fmt: skip


def _row(each: "Candidate") -> tuple[str, ...]:
    from flurka_bench.answers.recommend import beside_floors

    found, case = each.prediction, each.prediction.case
    error = (
        "not measured"
        if each.error is None
        else f"{each.error.median:.2g} ({each.error.low:.2g} to {each.error.high:.2g})"
    )
    return (
        case.mechanism, case.order or "", case.backend, f"{case.num_heads} x {case.head_dim}", str(case.rank or ""),
        str(case.num_features or ""), format_seconds(found.seconds),
        f"{format_seconds(found.seconds_low)} to {format_seconds(found.seconds_high)}"
        + " (measured, 95 %)" * each.measured,
        found.bound, format_bytes(found.peak_memory_bytes), error, each.verdict or "",
        beside_floors(case),
    )  # fmt: skip


def _short(each: "Candidate") -> tuple[str, ...]:
    row = _row(each)
    return (*row[:7], row[-1])


def _print(answer: "Recommendation", limit: int, basis: str, *, sizes: str, source: Path) -> None:
    from flurka_bench.answers.recommend import (
        because,
        python_imports,
        python_line,
    )

    request = answer.request
    print(f"\n{answer.hardware}: N = {request.seq_len}, D = {request.model_dim}, batch {request.batch}, {request.pass_},"
          f" {request.dtype}, level layer; {answer.num_searched} configurations searched")  # fmt: skip
    print(basis)
    print(request.floor_in_words())
    print(
        "where nothing is compressed there is no rank, and softmax has no features: such a row meets"
        " that floor as it is, and says so"
    )
    if sizes:
        print("errors, here and below: median (10th to 90th percentile) over layers and seeds, E and F learned;"
              f" measured at {sizes} in {source}")  # fmt: skip
    if answer.num_without_error:
        print(
            f"{answer.num_without_error} of them are left out: no error was measured for them at N = {request.seq_len} and these"
            " head widths, and none is extrapolated"
        )
    if answer.why_none:
        met = "Only exact attention is known to meet" if answer.candidates else "Nothing meets"
        print(f"{met} what was asked: {answer.why_none}.")
        if answer.nearest is not None:
            print_table(_HEADERS, [_row(answer.nearest)])
    if not answer.candidates:
        return
    best = answer.candidates[0]
    tied = sum(each.tied for each in answer.candidates)
    print_table(_HEADERS, [_row(each) for each in answer.candidates[:limit]], title="\nFastest")
    print(
        f"{tied} others cannot be told from the fastest (AMBIGUOUS or SAME)."
        if tied
        else "Every other is SLOWER than the fastest."
    )
    print(RULE)
    families = answer.fastest_by_family()
    print_table(_HEADERS, [_row(each) for each in families], title="\nFastest of each family")
    for each in families[1:]:
        print(because(best, each))
    print_table(
        _HEADERS,
        [_row(each) for each in answer.front[:limit]],
        title="\nPareto front of time, memory and error",
    )
    print_table(
        ("floor", *_HEADERS[:7], _HEADERS[-1]),
        [
            (words, *(_short(each) if each is not None else ("nothing meets it", *[""] * 7)))
            for words, each in answer.by_floor
        ],
        title="\nHow the answer moves with the floor",
    )
    if best.prediction.case.backend == "fused":
        print(
            "\nThe fused kernels are predicted; this project has not timed them on a GPU. Without them: --backend eager,compiled"
        )
    print(
        f"\n{python_imports(best.prediction.case)}\nattention = {python_line(best.prediction.case)}"
    )


def _print_across(found: "list[Recommendation]") -> None:
    rows = []
    for answer in found:
        for each in answer.candidates[:1]:
            case = each.prediction.case
            form = (
                case.dtype,
                case.mechanism,
                case.order or "",
                case.backend,
                f"{case.num_heads} x {case.head_dim}",
            )
            knobs = (str(case.rank or ""), str(case.num_features or ""))
            rows.append(
                (
                    answer.hardware,
                    *form,
                    *knobs,
                    format_seconds(each.prediction.seconds),
                    each.prediction.bound,
                )
            )
    headers = (
        "hardware",
        "dtype",
        "fastest",
        "order",
        "backend",
        "heads x d",
        "k",
        "m",
        "time",
        "bound by",
    )
    print_table(headers, rows, title="\nAcross hardware")
