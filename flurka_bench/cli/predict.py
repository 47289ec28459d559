"""``predict``: what cases would take on a target, from its figures alone."""

import itertools
import sys
from typing import Annotated, Any

import typer

from flurka_bench.cli.common import comma_list, one_of, positive_int, print_json, print_table
from flurka_bench.cli.targets import load_targets
from flurka_bench.errors import RequestError
from flurka_bench.units import format_bytes, format_seconds
from flurka_bench.workload import CHOICES, SIZES

# What ``predict`` computes where an option is not given: the table of a first look.
DEFAULT_MECHANISMS = (
    "full-math,full-sdpa,low-rank,low-rank-sdpa,kernel-relu,flurka-relu,kernel-favor,flurka-favor"
)


def predict(
    hardware: Annotated[
        str,
        typer.Option(
            help="Targets: names or aliases, profile files (.toml), or cpu for this machine."
        ),
    ] = "cpu",
    mechanism: Annotated[str, typer.Option(help="Mechanisms.")] = DEFAULT_MECHANISMS,
    level: Annotated[str, typer.Option(help="core, layer, model.")] = "core",
    pass_: Annotated[str, typer.Option("--pass", help="forward, train.")] = "forward",
    backend: Annotated[str, typer.Option(help="eager, compiled, fused.")] = "eager",
    order: Annotated[
        str,
        typer.Option(
            help="project_first, compress_first, absorbed, or best: the fastest that the mechanism has."
        ),
    ] = "best",
    batch: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    num_heads: Annotated[str, typer.Option(help="Numbers of heads.")] = "8",
    seq_len: Annotated[str, typer.Option(help="Sequence lengths.")] = "4096",
    head_dim: Annotated[str, typer.Option(help="Widths of a head.")] = "64",
    rank: Annotated[str, typer.Option(help="Rows that keys and values are compressed to.")] = "256",
    num_features: Annotated[str, typer.Option(help="Widths of the feature map.")] = "64",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, float64.")] = "float32",
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
    from flurka_bench.hardware.basis import basis
    from flurka_bench.mechanisms import MECHANISMS

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
    axes: dict[str, list] = {}
    for name, text in names.items():
        field = "pass_" if name == "pass" else name
        axes[field] = comma_list(text, one_of(accepted[name], f"--{name}"), f"--{name}")
    for name, text in sizes.items():
        option = f"--{name.replace('_', '-')}"
        axes[name] = comma_list(text, positive_int(option), option)
    records, bases = [], []
    for profile in load_targets(hardware):
        on = basis(profile)
        bases.append(on.line)
        records += [
            prediction.as_record() | {"hardware_basis": on.kind, "hardware_basis_words": on.line}
            for prediction in predictions(axes, profile, launch, cache)
        ]
    if json:
        print_json(records)
    else:
        _print(records)
        print("\n".join(bases))


def predictions(
    axes: dict[str, list], profile: Any, launch: str = "eager", cache: str = "warm"
) -> list[Any]:
    """The predictions of every combination that can be computed, in the axes' order; ``best`` keeps
    each one's fastest order.

    Raises:
        RequestError: no combination can be computed; the first one's reason.
    """
    from flurka_bench.cost.predict import predict as predict_cases
    from flurka_bench.mechanisms import canonical, get
    from flurka_bench.workload import Case, check_combinations

    check_combinations("predict", axes.values(), mend="give fewer values")
    wanted: dict[str, list[str]] = {}
    cases: dict[str, Case] = {}
    reasons: list[RequestError] = []
    for values in itertools.product(*axes.values()):
        fields = dict(zip(axes, values))
        orders = [fields.pop("order")]
        if orders == ["best"]:
            orders = [None] if fields["level"] == "core" else list(get(fields["mechanism"]).orders)
        try:
            rivals = [canonical(Case(order=each, **fields)) for each in orders]
        except RequestError as error:
            reasons.append(error)
            continue
        ids = list(dict.fromkeys(case.case_id for case in rivals))
        cases |= {case.case_id: case for case in rivals}
        wanted.setdefault("|".join(ids), ids)
    if not wanted:
        raise reasons[0]
    if reasons:
        print(
            f"left out {len(reasons)} combinations that cannot be computed; the first: {reasons[0]}",
            file=sys.stderr,
        )
    by_id = dict(
        zip(cases, predict_cases(list(cases.values()), profile, launch=launch, cache=cache))
    )
    return [
        min((by_id[each] for each in ids), key=lambda prediction: prediction.seconds)
        for ids in wanted.values()
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
