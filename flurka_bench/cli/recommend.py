"""``recommend``: the fastest configuration that meets a floor of quality, on one target or across
several."""

import sys
from collections.abc import Mapping, Sequence
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
from flurka_bench.cli.options import one
from flurka_bench.cli.targets import (
    check_backends,
    check_dtype,
    check_launch,
    load_targets,
)
from flurka_bench.words.blocks import Column
from flurka_bench.words.errors import RequestError
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
)
from flurka_bench.words.verdict import RULE

if TYPE_CHECKING:
    from flurka_bench.answers.recommend import (
        Candidate,
        Recommendation,
        Request,
    )
    from flurka_bench.hardware import Profile

ERROR_RUN = Path("results/reference/error")  # where this project's own error run lies in a checkout

# Said under every answer: the line of Python above it reads like a substitute.
NO_DROP_IN = (
    "Only exact attention (full-sdpa, full-math) can replace the attention of a model that is"
    " already trained. Every other mechanism is one to train with: dropped into a trained model,"
    " its output was far off wherever this project measured it (docs/error.md)."
)


def recommend(
    context: typer.Context,
    hardware: options.Hardware,
    seq_len: options.SeqLens,
    model_dim: options.ModelDims,
    pass_: options.Passes,
    dtype: options.Dtypes,
    batch: options.Batches,
    head_dim: Annotated[
        options.Sizes,
        options.declared(
            "--head-dim",
            default="32,64,128",
            shown="those of 32,64,128 that divide the model's width",
        ),
    ],
    backend: Annotated[
        options.Names,
        options.declared(
            "--backend",
            default="eager,compiled,fused",
            shown="those of eager,compiled,fused that the target has",
        ),
    ],
    launch: options.Launch,
    min_rank: Annotated[int | None, options.declared("--min-rank")],
    min_features: Annotated[int | None, options.declared("--min-features")],
    max_error: Annotated[
        float | None,
        options.plain("--max-error", "Bar for the relative error of the output, like 0.2."),
    ],
    inputs: Annotated[options.Names, options.declared("--inputs", default="trained")],
    error_run: Annotated[
        Path | None, options.plain("--error-run", f"Error run; {ERROR_RUN} where it is at hand.")
    ],
    max_memory: Annotated[int | None, options.declared("--max-memory")],
    max_latency: Annotated[float | None, options.declared("--max-latency")],
    run: Annotated[
        Path | None,
        options.plain("--run", "A run on this target: what it measured is not predicted."),
    ],
    top: Annotated[int, options.declared("--top")],
    all_: options.All,
    json: options.Json,
) -> None:
    """Rank every mechanism, order, backend, rank, feature count and head split for a workload, by
    time with bands.

    Example: flurka-bench recommend --hardware h100,l40s --seq-len 16384 --model-dim 1024 --pass
        train --min-rank 256
    """
    from flurka_bench.answers.recommend import Request
    from flurka_bench.answers.recommend import recommend as search
    from flurka_bench.hardware.basis import basis

    if max_error is not None and not 0 <= max_error < float("inf"):
        raise RequestError(
            f"--max-error must be a number of at least 0 (like 0.2), got {max_error}"
        )
    given = options.given(context)
    targets = load_targets(hardware)
    if run is not None and len(targets) > 1:
        raise RequestError("--run belongs to one target: give a single --hardware")
    fields: dict[str, Any] = {
        "seq_len": one(seq_len, "--seq-len"),
        "model_dim": one(model_dim, "--model-dim"),
        "batch": one(batch, "--batch"),
        "pass_": one(pass_, "--pass"),
        "inputs": one(inputs, "--inputs"),
        "launch": launch,
        "head_dims": head_dim,
        "min_rank": min_rank,
        "min_features": min_features,
        "max_error": max_error,
        "max_memory_bytes": max_memory,
        "max_latency_s": max_latency,
    }
    errors, records = _errors(error_run, max_error), _records(run, targets[0])
    if errors is None:
        options.refuse(
            context, ["--inputs"], ": no error counts without --max-error or --error-run"
        )
    found, bases = [], [basis(target) for target in targets]
    for target in targets:
        own = check_backends(target, backend) if "--backend" in given else backend
        chosen = target.own_dtype if dtype is None else one(dtype, "--dtype")
        request = Request(dtype=chosen, backends=tuple(own), **fields)
        _check(request, target, given)
        found.append(search(request, target, errors=errors, records=records))
    if run is not None and not any(each.measured for each in found[0].candidates):
        note(
            f"--run changes nothing: {run} has a time of none of the configurations that are ranked"
        )
    if json:
        options.refuse(context, ["--all"], " to --json, which leaves nothing out")
        print_json([
            each.as_record() | {"hardware_basis": on.kind, "hardware_basis_words": on.line}
            for answer, on in zip(found, bases)
            for each in answer.candidates[:top]
        ])  # fmt: skip
        return
    sizes = "" if errors is None else errors.sizes_in_words(fields["inputs"])
    for answer, on in zip(found, bases):
        _print(answer, top, everything=all_)
        _print_basis(answer, on.line, sizes=sizes, source=error_run or ERROR_RUN)
    if len(found) > 1:
        _print_across(found, everything=all_)
    if not all_:
        print_text(
            "\n--all: every column, the Pareto front of time, memory and error, and how the answer"
            " moves with the floor"
        )
    print_text(f"\n{NO_DROP_IN}")


def _check(request: "Request", target: "Profile", given: Mapping[str, Any]) -> None:
    """Say what of the request the search leaves out."""
    check_dtype(target, request.dtype)
    check_launch(target, request.launch)
    wide = [str(width) for width in request.head_dims if width not in request.splits]
    if "--head-dim" in given and wide:
        note(f"--head-dim {','.join(wide)} does not divide --model-dim {request.model_dim}")
    if "--backend" in given and "fused" in request.backends and request.pass_ == "train":
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


def _columns(*, errors: bool = False) -> list[Column]:
    """Of a table of configurations; what is extra gives way on a narrow line, but errors stay
    where they were asked for."""
    identity = ("mechanism", "order", "backend", "heads x d", "k", "m")
    return [
        *(Column(title, "word") for title in identity),
        Column("time"),
        Column("90 % band", "word", extra=True),
        Column("bound by", "word", extra=True),
        Column("peak memory", extra=True),
        Column("error", "word", extra=not errors),
        Column("against the fastest", "word", extra=errors),
        Column("floors", "word", extra=True),
    ]


def _row(each: "Candidate") -> tuple[str, ...]:
    from flurka_bench.answers.recommend import beside_floors

    found, case = each.prediction, each.prediction.case
    return (
        case.mechanism, case.order or "", case.backend, f"{case.num_heads} x {case.head_dim}",
        str(case.rank or ""), str(case.num_features or ""), format_seconds(found.seconds),
        _band(each), found.bound, format_bytes(found.peak_memory_bytes), _error(each),
        each.verdict or "", beside_floors(case),
    )  # fmt: skip


def _band(each: "Candidate") -> str:
    low, high = map(format_seconds, (each.prediction.seconds_low, each.prediction.seconds_high))
    return f"{low} to {high}" + " (measured, 95 %)" * each.measured


def _error(each: "Candidate") -> str:
    return (
        "not measured"
        if each.error is None
        else f"{each.error.median:.2g} ({each.error.low:.2g} to {each.error.high:.2g})"
    )


def _in_words(each: "Candidate") -> str:
    """``"low-rank-sdpa project_first compiled, 4 heads of 128, k = 256 (no features: softmax)"``."""
    from flurka_bench.answers.recommend import beside_floors
    from flurka_bench.answers.words import form, knobs

    case = each.prediction.case
    record = case.as_record()
    beside = beside_floors(case)
    heads = f"{case.num_heads} heads of {case.head_dim}"
    return ", ".join([form(record), heads, *knobs(record)]) + (f" ({beside})" if beside else "")


def _print(answer: "Recommendation", limit: int | None, *, everything: bool) -> None:
    """The answer as a sentence, the ranking, and the fastest of each family with the reason."""
    from flurka_bench.answers.recommend import because

    request = answer.request
    print_text(
        f"\n{answer.hardware}: N = {request.seq_len}, D = {request.model_dim}, batch {request.batch},"
        f" {request.pass_}, {request.dtype}, level layer; {answer.num_searched} configurations"
        " searched"
    )  # fmt: skip
    errors = answer.request.max_error is not None or any(
        each.error is not None and each.error.median for each in answer.candidates
    )
    columns = _columns(errors=errors)

    def show(title: str, candidates: "Sequence[Candidate]") -> None:
        print_table(columns, map(_row, candidates), title=f"\n{title}", everything=everything)

    if answer.why_none:
        met = "Only exact attention is known to meet" if answer.candidates else "Nothing meets"
        print_text(f"{met} what was asked: {answer.why_none}.")
        if answer.nearest is not None:
            show("Nearest to it", [answer.nearest])
    if not answer.candidates:
        return
    best = answer.candidates[0]
    found = best.prediction
    print_text(
        f"Fastest: {_in_words(best)}: {format_seconds(found.seconds)} ({_band(best)}),"
        f" {found.bound}-bound, peak memory {format_bytes(found.peak_memory_bytes)}, error"
        f" {_error(best)}. {_tied_words(answer)}"
    )
    show("Fastest", answer.candidates[:limit])
    families = answer.fastest_by_family()
    show("Fastest of each family", families)
    for each in families[1:]:
        print_text(because(best, each), indent="  ")
    _print_beside([*answer.candidates[:limit], *families])
    if everything:
        show("Pareto front of time, memory and error", answer.front[:limit])
        _print_floors(answer)
    _print_python(best)


def _tied_words(answer: "Recommendation") -> str:
    tied = sum(each.tied for each in answer.candidates)
    return (
        f"{tied} others cannot be told from it (AMBIGUOUS or SAME)."
        if tied
        else "Every other is SLOWER."
    )


def _print_beside(candidates: "Sequence[Candidate]") -> None:
    """Which floors say nothing of a mechanism in the tables."""
    from flurka_bench.answers.recommend import beside_floors

    cases = [each.prediction.case for each in candidates]
    told = {case.mechanism: beside_floors(case) for case in cases if beside_floors(case)}
    if told:
        print_text("floors: " + "; ".join(f"{name} ({words})" for name, words in told.items()))


def _print_floors(answer: "Recommendation") -> None:
    rows = []
    for words, each in answer.by_floor:
        row = ("nothing meets it", *[""] * 12) if each is None else _row(each)
        rows.append((words, *row[:7], row[-1]))
    columns = _columns()
    print_table(
        (Column("floor", "word"), *columns[:7], columns[-1]),
        rows,
        title="\nHow the answer moves with the floor",
        everything=True,
    )


def _print_python(best: "Candidate") -> None:
    from flurka_bench.answers.recommend import python_imports, python_line

    case = best.prediction.case
    if case.backend == "fused":
        print_text(
            "\nThe fused kernels are predicted; this project has not timed them on a GPU."
            " Without them: --backend eager,compiled"
        )
    print(f"\n{python_imports(case)}")
    print_text(f"attention = {python_line(case)}", indent="    ")


def _print_basis(answer: "Recommendation", basis: str, *, sizes: str, source: Path) -> None:
    """What the numbers rest on, and what was left out."""
    print()
    print_text(basis)
    print_text(answer.request.floor_in_words())
    print_text(
        "where nothing is compressed there is no rank, and softmax has no features: such a row meets"
        " that floor as it is"
    )
    if sizes:
        print_text(
            "errors, here and below: median (10th to 90th percentile) over layers and seeds, E and F"
            f" learned; measured at {sizes} in {source}"
        )
    if answer.num_without_error:
        print_text(
            f"{answer.num_without_error} of them are left out: no error was measured for them at"
            f" N = {answer.request.seq_len} and these head widths, and none is extrapolated"
        )
    print_text(RULE)


def _print_across(found: "list[Recommendation]", *, everything: bool) -> None:
    columns = _columns()
    print_table(
        (Column("hardware", "word"), Column("dtype", "word", extra=True), Column("fastest", "word"),
         *columns[1:7], Column("bound by", "word", extra=True)),
        [
            (answer.hardware, best.prediction.case.dtype, *_row(best)[:7], best.prediction.bound)
            for answer in found
            for best in answer.candidates[:1]
        ],
        title="\nAcross hardware",
        everything=everything,
    )  # fmt: skip
