"""``predict``: what cases would take on a target, from its figures alone."""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    check_backends,
    check_dtype,
    check_knobs,
    check_launch,
    load_targets,
    timer_cache,
)
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
)

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile


def predict(
    context: typer.Context,
    hardware: options.Hardware,
    mechanism: options.Mechanisms,
    level: options.Levels,
    pass_: options.Passes,
    backend: options.Backends,
    order: options.Orders,
    batch: options.Batches,
    num_heads: options.NumHeads,
    seq_len: options.SeqLens,
    head_dim: options.HeadDims,
    rank: options.Ranks,
    num_features: options.NumFeatures,
    dtype: options.Dtypes,
    launch: options.Launch,
    cache: Annotated[str, options.declared("--cache", default="warm")],
    json: options.Json,
) -> None:
    """Predict seconds, with a 90 % band, for cases on hardware that need not be at hand. Options
    take comma lists.

    Example: flurka-bench predict --hardware h100,a100 --mechanism full-sdpa,flurka-relu --seq-len
        4096,16384 --dtype bfloat16
    """
    from flurka_bench.hardware.basis import basis

    axes = options.axes(context)
    given = {
        name: axes[name]
        for name in ("order", "rank", "num_features")
        if options.flag_of(name) in options.given(context)
    }
    # Not refused: a script that predicts one mechanism after the other gives all the same options.
    notes = check_knobs(given, _asked(axes, given), refuse=False)
    records, bases = [], []
    for profile in load_targets(hardware):
        on = basis(profile)
        bases.append(on.line)
        own = axes | {
            "backend": check_backends(profile, backend),
            "dtype": dtype or (profile.own_dtype,),
        }
        records += [
            prediction.as_record() | {"hardware_basis": on.kind, "hardware_basis_words": on.line}
            for prediction in predictions(own, profile, launch, timer_cache(profile, cache))
        ]
        for each in own["dtype"]:
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
    axes: Mapping[str, Sequence[Any]], given: Mapping[str, Sequence[Any]]
) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Of everything asked for, the mechanism and which of the given knobs does not apply to it."""
    from flurka_bench.cases.case import Case
    from flurka_bench.cases.registry import not_applicable

    varying = {name: axes[name] for name in ("mechanism", "level", "head_dim")} | dict(given)
    for values in itertools.product(*varying.values()):
        fields = dict(zip(varying, values))
        if fields.get("order") == "best":  # at level core there is nothing to choose from
            fields["order"] = None
        yield fields["mechanism"], not_applicable(Case.of(fields))


def predictions(
    axes: Mapping[str, Sequence[Any]],
    profile: "Profile",
    launch: str = "eager",
    cache: str = "warm",
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
