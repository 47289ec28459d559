"""``predict``: what cases would take on a target, from its figures alone."""

import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from flurka_bench.cli.common import (
    DTYPES_HELP,
    SIZES_HELP,
    comma_list,
    dtype_of,
    note,
    one_of,
    positive_int,
    print_json,
    print_table,
    print_text,
)
from flurka_bench.cli.targets import (
    HARDWARE_HELP,
    check_backends,
    check_dtype,
    check_knobs,
    check_launch,
    load_targets,
)
from flurka_bench.words.sizes import (
    CHOICES,
    SIZES,
)
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
)

# What the knobs are where an option is not given; every mechanism that has one takes it.
DEFAULT_KNOBS = {"order": "best", "rank": "256", "num_features": "64"}


def predict(
    hardware: Annotated[str, typer.Option(help=f"Targets: {HARDWARE_HELP}.")] = "cpu",
    mechanism: Annotated[str | None, typer.Option(help="Mechanisms; all ten by default.")] = None,
    level: Annotated[str, typer.Option(help="core, layer, model.")] = "core",
    pass_: Annotated[str, typer.Option("--pass", help="forward, train.")] = "forward",
    backend: Annotated[str, typer.Option(help="eager, compiled, fused.")] = "eager",
    order: Annotated[
        str | None,
        typer.Option(
            help="At levels layer and model: project_first, compress_first, absorbed, or best, the fastest that the"
            " mechanism has; best by default."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    num_heads: Annotated[str, typer.Option(help="Numbers of heads.")] = "8",
    seq_len: Annotated[str, typer.Option(help=f"Sequence lengths. {SIZES_HELP}")] = "4096",
    head_dim: Annotated[str, typer.Option(help="Widths of a head.")] = "64",
    rank: Annotated[
        str | None,
        typer.Option(
            help="Rows that low-rank and flurka forms compress keys and values to; 256 by default."
        ),
    ] = None,
    num_features: Annotated[
        str | None,
        typer.Option(
            help="Widths of the feature map; 64 by default. The elu forms have head_dim features."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help=f"{DTYPES_HELP}.")] = "float32",
    launch: Annotated[
        str, typer.Option(help="eager (the host dispatches), graph, or none (device time alone).")
    ] = "eager",
    cache: Annotated[
        str, typer.Option(help="warm (the case runs again and again) or cold.")
    ] = "warm",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Predict seconds, with a 90 % band, for cases on hardware that need not be at hand. Options
    take comma lists.

    Example: flurka-bench predict --hardware h100,a100 --mechanism full-sdpa,flurka-relu --seq-len
        4096,16384 --dtype bfloat16
    """
    from flurka_bench.cases.registry import MECHANISMS
    from flurka_bench.cost.predict import CACHES
    from flurka_bench.cost.terms import LAUNCHES
    from flurka_bench.hardware.basis import basis

    accepted = CHOICES | {"mechanism": tuple(MECHANISMS), "order": (*CHOICES["order"], "best")}
    names = {
        "mechanism": mechanism,
        "level": level,
        "pass": pass_,
        "backend": backend,
        "order": order,
        "dtype": dtype,
    }
    sizes = dict(zip(SIZES, (batch, num_heads, seq_len, head_dim, rank, num_features)))
    every = DEFAULT_KNOBS | {"mechanism": ",".join(MECHANISMS)}
    axes: dict[str, list[Any]] = {}
    for name, text in (names | sizes).items():
        option = f"--{name.replace('_', '-')}"
        convert = (
            positive_int(option)
            if name in sizes
            else dtype_of(option)
            if name == "dtype"
            else one_of(accepted[name], option)
        )
        axes[name] = comma_list(every[name] if text is None else text, convert, option)
    given = {
        name: axes[name]
        for name, text in {"order": order, "rank": rank, "num_features": num_features}.items()
        if text is not None
    }
    one_of(LAUNCHES, "--launch")(launch)
    one_of(CACHES, "--cache")(cache)
    # Not refused: a script that predicts one mechanism after the other gives all the same options.
    notes = check_knobs(given, _asked(axes, given), refuse=False)
    records, bases = [], []
    for profile in load_targets(hardware):
        on = basis(profile)
        bases.append(on.line)
        own = axes | {"backend": check_backends(profile, axes["backend"])}
        records += [
            prediction.as_record() | {"hardware_basis": on.kind, "hardware_basis_words": on.line}
            for prediction in predictions(own, profile, launch, cache)
        ]
        for each in axes["dtype"]:
            check_dtype(profile, each)
        check_launch(profile, launch)
    for text in notes:
        note(text)
    if json:
        print_json(records)
    else:
        _print(records)
        for line in bases:
            print_text(line)


def _asked(
    axes: dict[str, list[Any]], given: dict[str, list[Any]]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Of everything asked for, the mechanism and which of the given knobs does not apply to it."""
    from flurka_bench.cases.case import Case
    from flurka_bench.cases.registry import not_applicable

    varying = {name: axes[name] for name in ("mechanism", "level", "head_dim")} | given
    for values in itertools.product(*varying.values()):
        fields = dict(zip(varying, values))
        if fields.get("order") == "best":  # at level core there is nothing to choose from
            fields["order"] = None
        yield fields["mechanism"], not_applicable(Case.of(fields))


def predictions(
    axes: dict[str, list], profile: Any, launch: str = "eager", cache: str = "warm"
) -> list[Any]:
    """The predictions of every combination that can be computed, in the axes' order; ``best`` keeps
    each one's fastest order.

    Raises:
        RequestError: no combination can be computed; the first one's reason.
    """
    from flurka_bench.cases.expand import expand
    from flurka_bench.cost.predict import predict as predict_cases

    found = expand(axes, what="predict", mend="give fewer values")
    if not found.groups:
        raise found.impossible[0][1]
    if found.impossible:
        print(
            f"left out {len(found.impossible)} combinations that cannot be computed;"
            f" the first: {found.impossible[0][1]}",
            file=sys.stderr,
        )
    predicted = predict_cases(found.cases, profile, launch=launch, cache=cache)
    by_case = dict(zip(found.cases, predicted, strict=True))
    return [
        min((by_case[case] for case in rivals), key=lambda prediction: prediction.seconds)
        for rivals in found.groups
    ]


_CATEGORIES = ("hardware", "mechanism", "level", "pass", "order", "backend", "dtype")


def _print(records: list[dict[str, Any]]) -> None:
    """A table of what varies, and in the title what does not."""
    columns = (*_CATEGORIES, *SIZES)
    varies = [
        name
        for name in columns
        if name == "mechanism" or len({record[name] for record in records}) > 1
    ]
    fixed = ", ".join(
        f"{name} {records[0][name]}"
        for name in columns
        if name not in varies and records[0][name] is not None
    )
    rows = [
        (
            *("" if record[name] is None else record[name] for name in varies),
            format_seconds(record["seconds"]),
            f"{format_seconds(record['seconds_low'])} to {format_seconds(record['seconds_high'])}",
            record["bound"],
            f"{record['flops'] / record['seconds'] / 1e12:.3g}",
            format_bytes(record["peak_memory_bytes"])
            + ("" if record["fits_in_memory"] else " (does not fit)"),
        )
        for record in records
    ]
    print_table(
        (*varies, "time", "90 % band", "bound by", "TFLOP/s", "peak memory"), rows, title=fixed
    )
