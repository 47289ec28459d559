"""``calibrate``: a hardware profile with numbers measured on the device, or fitted to rows that
somebody else measured."""

import time
from dataclasses import asdict
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
from flurka_bench.cli.targets import (
    calibrated_file,
    check_device,
    load_target,
)
from flurka_bench.hardware.rows import NUM_FITTED
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import (
    check_writable,
    write_atomically,
)

if TYPE_CHECKING:
    from flurka_bench.cost.calibration import Fit
    from flurka_bench.cost.fitting import Rows
    from flurka_bench.devices.microbenchmarks import Calibration
    from flurka_bench.hardware import Profile


def calibrate(
    context: typer.Context,
    device: options.Device,
    out: Annotated[
        Path | None, options.plain("--out", "Profile to write [default: hardware-NAME.toml]")
    ],
    from_: Annotated[
        list[Path] | None,
        options.plain(
            "--from", "Fit these measured rows (CSV, may be gzipped) instead of measuring."
        ),
    ],
    hardware: options.Hardware,
    dtype: Annotated[options.Names | None, options.declared("--dtype", shown="all it has")],
    budget: Annotated[
        float | None, options.declared("--budget", shown="120s on a GPU, 60s on a CPU")
    ],
    rows: Annotated[
        int | None,
        options.plain(
            "--rows",
            f"Rows that a GPU's fit may see, per op and dtype [default: {NUM_FITTED}]; a CPU's"
            " sees all.",
            least=5,
        ),
    ],
    json: options.Json,
) -> None:
    """Measure single operators on this device and write a profile that 'predict --hardware FILE'
    takes.

    The rows are written beside the profile, so that the fit can be repeated. The report is of rows
    that were not fitted.

    Example: flurka-bench calibrate --device cpu --out this-machine.toml

    Example: flurka-bench calibrate --from linear_bf16.csv.gz --hardware h200 --out h200.toml
    """
    from flurka_bench.cost.fitting import rows_of_records

    if from_ and hardware is None:
        raise RequestError("--from needs --hardware NAME|FILE: whose rows these are")
    if from_:
        why = " to --from, which measures nothing"
        options.refuse(context, ("--device", "--dtype", "--budget"), why)
    if out is not None:
        check_writable(out)  # now, not after a minute of measuring
    measured: Calibration | None = None
    if from_:
        assert hardware is not None
        profile = load_target(hardware)
        _check_rows(context, profile.kind == "cpu")
        groups, about = _read(profile, from_)
    else:
        profile, measured, about = _measure(context, device, hardware, dtype, budget)
        groups = rows_of_records(measured.rows)
    _write(profile, groups, about, measured, out, rows or NUM_FITTED, json=json)


def _read(profile: "Profile", paths: list[Path]) -> "tuple[list[Rows], dict[str, Any]]":
    """The files' rows of this device, and where they are from."""
    from flurka_bench.cost.fitting import read_rows
    from flurka_bench.cost.tables import of_device

    groups = [group for path in paths for group in read_rows(path)]
    mine, other = of_device(profile, [group.device for group in groups])
    if other:
        note(f"the rows say {other!r}, the profile is of {profile.name}")
    own = [group for group, taken in zip(groups, mine) if taken]
    return own, {"source": ", ".join(path.name for path in paths)}


def _write(
    profile: "Profile",
    groups: "list[Rows]",
    about: dict[str, Any],
    measured: "Calibration | None",
    out: Path | None,
    num_fitted: int,
    *,
    json: bool,
) -> None:
    """Fit, write the profile and say what came of it; first the rows, so that nothing measured is
    lost."""
    from flurka_bench.cost.calibration import calibrated
    from flurka_bench.hardware import write_calibration

    target = out or calibrated_file(profile)
    written = measured.write_rows(target.with_suffix("")) if measured else []
    figures = measured.figures if measured else {}
    about = {**about, "date": time.strftime("%Y-%m-%d")}
    profile, fits = calibrated(profile, groups, figures=figures, about=about, num_fitted=num_fitted)
    write_atomically(target, write_calibration(profile), follow_links=out is not None)
    if json:
        print_json(
            {
                "profile": str(target),
                "rows": [str(path) for path in written],
                "figures": figures,
                "fits": [asdict(each) for each in fits],
                "left_out": measured.left_out if measured else [],
                "seconds": measured.seconds if measured else None,
            }
        )
        return
    _report(fits, measured)
    print(f"\nprofile: {target}" + (f"\nrows: {', '.join(map(str, written))}" if written else ""))
    print(f"use it: flurka-bench predict --hardware {target}")


def _check_rows(context: typer.Context, on_cpu: bool) -> None:
    if on_cpu:
        options.refuse(context, ["--rows"], " to a CPU, whose fit sees all rows")


def _measure(
    context: typer.Context,
    name: str,
    hardware: options.Names | None,
    dtypes: options.Names | None,
    budget_s: float | None,
) -> "tuple[Profile, Calibration, dict[str, Any]]":
    """Measure the device; the profile to start from, what was measured, and under which
    conditions."""
    from flurka_bench.devices.probe import find_device

    found = find_device(name)
    _check_rows(context, found.kind == "cpu")
    given = load_target(hardware) if hardware else None
    if given is not None:
        check_device(given, found)
    from flurka_bench.hardware.detect import profile_of
    from flurka_bench.kinds import calibration

    with Progress() as progress:
        seen = calibration.measure(
            found.device, dtypes=dtypes, budget_s=budget_s, on_event=progress.show
        )
    measured = seen.calibration
    profile = (
        profile_of(measured.device, seen.properties, measured.figures) if given is None else given
    )
    about = {
        "source": f"measured on {measured.device} in {measured.seconds:.0f} s",
        "torch": seen.environment["packages"]["torch"],
        "threads": seen.environment["torch"]["num_threads"],
    }
    return profile, measured, about


def _report(fits: "list[Fit]", measured: "Calibration | None") -> None:
    if measured:
        print_table(
            ("figure", "value"),
            [(name, f"{value:.4g}") for name, value in measured.figures.items()],
            title=measured.device,
        )
        for text in measured.left_out:
            print(f"left out: {text}")
        print()

    def percent(error: float | None) -> str:
        return "" if error is None else f"{error:.1%}"

    print_table(
        ("op", "dtype", "rows fitted", "held out", "error before", "error after", "note"),
        [
            (
                each.op,
                each.dtype,
                str(each.num_fitted),
                str(each.num_held_out),
                percent(each.before),
                percent(each.after),
                each.note,
            )
            for each in fits
        ],
        title="Mean absolute percentage error on rows that were not fitted",
    )
