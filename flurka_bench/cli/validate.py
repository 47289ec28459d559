"""``validate``: how far the model's predictions lie from measured times, by op or mechanism."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    note,
    print_json,
    print_table,
)
from flurka_bench.cli.targets import load_target
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import write_atomically

if TYPE_CHECKING:
    from flurka_bench.cost.validation import Validation
    from flurka_bench.hardware import Profile

MOST_REASONS = 10  # for which rows are left out, that are printed


def validate(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Measured rows (CSV, may be gzipped) or the folder of a run."
        ),
    ],
    hardware: options.Hardware,
    datasheet_only: Annotated[
        bool, options.flag("--datasheet-only", "Leave out what was measured on the device.")
    ],
    predictions: Annotated[
        Path | None,
        options.plain(
            "--predictions", "Write every row of FILE with its predicted_ms to this CSV."
        ),
    ],
    json: options.Json,
) -> None:
    """Compare predictions with measured times: operators, whole cases, or a run. Errors are
    percentages.

    Operator files have the columns op, dtype, latency_ms and the op's sizes; whole-case files
    mechanism, level, pass, dtype, the case's sizes and latency_ms. Where a column device names
    several, only the rows of --hardware count.

    Example: flurka-bench validate linear_bf16.csv.gz --hardware h200 --predictions predicted.csv
    """
    from flurka_bench.cost.tables import read_table
    from flurka_bench.cost.validation import (
        predictions_csv,
        run_table,
    )
    from flurka_bench.cost.validation import validate as validate_table
    from flurka_bench.results import (
        RECORDS_NAME,
        read_run,
    )

    profile = load_target(hardware)
    if datasheet_only:
        profile = profile.with_measured({}, {})
    if source.is_dir():
        table = run_table(source / RECORDS_NAME, read_run(source).records)
    else:
        table = read_table(source)
    found = validate_table(table, profile)
    _tell(found, profile)
    if not found.groups:
        raise RequestError(f"{source} has no row that can be predicted for {profile.name}")
    if predictions:
        text = predictions_csv(table, found.groups)
        write_atomically(predictions, text, option="--predictions", follow_links=True)
    records = [group.as_record() for group in found.groups]
    if json:
        print_json(records)
        return
    known = "calibrated" if profile.is_calibrated else "datasheet only"
    errors = ("mape", "median_ape", "p90_ape")
    print_table(
        ("op", "dtype", "rows", "mean error", "median", "90 % within"),
        [
            (r["op"], r["dtype"], r["count"], *(f"{r[key]:.1f} %" for key in errors))
            for r in records
        ],
        title=f"Absolute error of predictions for {profile.name} ({known})",
    )


def _tell(found: "Validation", profile: "Profile") -> None:
    """Say on stderr which rows were taken for another device's or left out."""
    if found.other_device is not None:
        note(f"the rows say {found.other_device!r}, predictions are for {profile.name}")
    for reason, lines in list(found.left_out.items())[:MOST_REASONS]:
        where = f"line {lines[0]}" + (" and others" if len(lines) > 1 else "")
        print(f"left out {len(lines)} rows: {reason} ({where})", file=sys.stderr)
    if len(found.left_out) > MOST_REASONS:
        more = sum(map(len, list(found.left_out.values())[MOST_REASONS:]))
        print(f"left out {more} rows for other reasons", file=sys.stderr)
