"""``calibrate``: a hardware profile with numbers measured on the device, or fitted to rows that
somebody else measured."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import (
    DEVICE_HELP,
    DTYPES_HELP,
    SECONDS_HELP,
    comma_list,
    dtype_of,
    print_json,
    print_table,
    refuse_given,
)
from flurka_bench.cli.progress import Progress
from flurka_bench.cli.targets import (
    HARDWARE_HELP,
    calibrated_file,
    check_device,
    load_target,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import (
    check_writable,
    write_atomically,
)
from flurka_bench.words.units import parse_seconds

if TYPE_CHECKING:
    from flurka_bench.cost.fitting import Rows
    from flurka_bench.devices.microbenchmarks import Calibration
    from flurka_bench.hardware import Profile

NUM_FITTED = 20  # rows of an op and dtype that the fit may see; the rest judge it
# prefix in the profile's [measured] of figures that people read and no fit uses
_FIGURE = "microbenchmark."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well one op and dtype is predicted on rows that were not fitted: mean absolute percentage
    errors (0.05: 5 %)."""

    op: str
    dtype: str
    num_fitted: int
    num_held_out: int
    before: float | None  # from the datasheet and shipped constants alone
    after: float | None
    note: str = ""


def calibrate(
    device: Annotated[str | None, typer.Option(help=f"{DEVICE_HELP} By default auto.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Profile to write; hardware-NAME.toml by default.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from", help="Fit these measured rows (CSV, may be gzipped) instead of measuring."
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help=f"Profile to start from, one of {HARDWARE_HELP}; the device's own by default."
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help=f"What to measure, like bfloat16,float32: {DTYPES_HELP}."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help=f"Time to measure for ({SECONDS_HELP}); 120s on a GPU, 60s on a CPU by default."
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            min=5,
            help=f"Rows that a GPU's fit may see, per op and dtype; {NUM_FITTED} by default. A CPU's sees all.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure single operators on this device and write a profile that 'predict --hardware FILE'
    takes.

    The rows are written beside the profile, so that the fit can be repeated. The report is of rows
    that were not fitted.

    Example: flurka-bench calibrate --device cpu --out this-machine.toml

    Example: flurka-bench calibrate --from linear_bf16.csv.gz --hardware h200 --out h200.toml
    """
    from flurka_bench.hardware import write_profile

    if from_ and hardware is None:
        raise RequestError("--from needs --hardware NAME|FILE: whose rows these are")
    if from_:
        idle = {"--device": device, "--dtype": dtype, "--budget": budget}
        refuse_given(idle, " to --from, which measures nothing")
    if out is not None:
        check_writable(out)  # now, not after a minute of measuring
    measured: Calibration | None = None
    if from_:
        assert hardware is not None
        profile = load_target(hardware)
        _check_rows(profile.kind == "cpu", rows)
        groups = _rows_of(profile, from_)
        about = {"source": ", ".join(path.name for path in from_)}
        written = []
    else:
        profile, measured, about = _measure(device or "auto", hardware, dtype, budget, rows)
        groups = _grouped(measured.rows)
        stem = (out or calibrated_file(profile)).with_suffix("")
        written = measured.write_rows(stem)  # before the fit: nothing measured is lost
    figures = (
        {_FIGURE + name: value for name, value in measured.figures.items()} if measured else {}
    )
    profile = profile.with_measured({**profile.measured, **figures}, profile.measured_about)
    profile, fits = fit(_forget(profile, groups), groups, rows or NUM_FITTED)
    if from_ and not any(each.num_fitted for each in fits):
        raise RequestError(f"no row of {about['source']} can be fitted: {fits[0].note}")
    about |= {"date": time.strftime("%Y-%m-%d"), "num_rows": sum(len(group) for group in groups)}
    about |= {
        f"error.{each.op}.{each.dtype}": round(each.after, 4)
        for each in fits
        if each.after is not None
    }
    profile = profile.with_measured(profile.measured, about)
    target = out or calibrated_file(profile)
    write_atomically(target, write_profile(profile), follow_links=out is not None)
    if json:
        print_json(
            {
                "profile": str(target),
                "rows": [str(path) for path in written],
                "figures": measured.figures if measured else {},
                "fits": [asdict(each) for each in fits],
                "left_out": measured.left_out if measured else [],
                "seconds": measured.seconds if measured else None,
            }
        )
        return
    _report(fits, measured)
    print(f"\nprofile: {target}" + (f"\nrows: {', '.join(map(str, written))}" if written else ""))
    print(f"use it: flurka-bench predict --hardware {target}")


def _check_rows(on_cpu: bool, rows: int | None) -> None:
    if on_cpu:
        refuse_given({"--rows": rows}, " to a CPU, whose fit sees all rows")


def fit(
    profile: "Profile", groups: "Iterable[Rows]", num_fitted: int = NUM_FITTED, seed: int = 0
) -> "tuple[Profile, list[Fit]]":
    """Calibrate the profile on up to ``num_fitted`` stratified rows of each group and judge it on
    the others.

    Of a small group a third is held out; below six rows nothing is, and no error is stated.
    """
    import numpy as np

    if profile.kind == "cpu":
        return _fit_cpu(profile, list(groups), seed)
    from flurka_bench.cost.calibration import calibrate as calibrate_rows
    from flurka_bench.cost.fitting import (
        absolute_percentage_error,
        stratified,
    )
    from flurka_bench.cost.operators import operator_of

    fits = []
    for group in groups:
        about = {"op": group.op, "dtype": group.dtype}
        try:
            operator = operator_of(group)
        except RequestError as error:
            fits.append(
                Fit(
                    **about,
                    num_fitted=0,
                    num_held_out=len(group),
                    before=None,
                    after=None,
                    note=str(error),
                )
            )
            continue
        count = (
            len(group)
            if len(group) < 6
            else min(num_fitted, len(group) - math.ceil(len(group) / 3))
        )
        chosen = np.zeros(len(group), dtype=bool)
        chosen[stratified(operator.features(group), count, seed)] = True
        before, profile = profile, calibrate_rows(profile, group.take(chosen))
        held_out = group.take(~chosen)
        errors: list[float | None] = [None, None]
        if len(held_out):
            predicted = (operator.predict(each, held_out, None) for each in (before, profile))
            errors = [
                float(np.mean(absolute_percentage_error(each, held_out.seconds))) / 100
                for each in predicted
            ]
        fits.append(
            Fit(
                **about,
                num_fitted=int(chosen.sum()),
                num_held_out=len(held_out),
                before=errors[0],
                after=errors[1],
            )
        )
    return profile, fits


def _fit_cpu(profile: "Profile", groups: "list[Rows]", seed: int) -> "tuple[Profile, list[Fit]]":
    """As ``fit``, all ops of a dtype at once: two thirds of each op's rows judge the last third,
    then all rows are fitted."""
    import numpy as np

    from flurka_bench.cost.cpu_rows import (
        calibrate_cpu,
        features,
        op_of,
        predict_rows,
    )
    from flurka_bench.cost.fitting import (
        absolute_percentage_error,
        stratified,
    )

    known, fits = [], []
    for group in groups:
        try:
            op_of(group)
            known.append(group)
        except RequestError as error:
            about = {
                "op": group.op,
                "dtype": group.dtype,
                "num_fitted": 0,
                "num_held_out": len(group),
            }
            fits.append(Fit(**about, before=None, after=None, note=str(error)))
    for dtype in dict.fromkeys(group.dtype for group in known):
        own = [group for group in known if group.dtype == dtype]
        chosen = []
        for group in own:
            chosen.append(np.zeros(len(group), dtype=bool))
            count = len(group) if len(group) < 4 else len(group) - len(group) // 3
            chosen[-1][stratified(features(group), count, seed)] = True
        before = profile
        judged = calibrate_cpu(profile, [group.take(one) for group, one in zip(own, chosen)])
        profile = calibrate_cpu(profile, own)
        for group, one in zip(own, chosen):
            held_out = group.take(~one)
            errors: list[float | None] = [None, None]
            if len(held_out):
                predicted = (predict_rows(each, held_out) for each in (before, judged))
                errors = [
                    float(np.mean(absolute_percentage_error(each, held_out.seconds))) / 100
                    for each in predicted
                ]
            numbers = {"num_fitted": len(group), "num_held_out": len(held_out)}
            fits.append(Fit(op=group.op, dtype=dtype, before=errors[0], after=errors[1], **numbers))
    return profile, fits


def _rows_of(profile: "Profile", paths: list[Path]) -> "list[Rows]":
    """The files' rows of this device: all of them where they name no device, or only one that no
    profile is known by."""
    from flurka_bench.cost.fitting import read_rows

    groups = [group for path in paths for group in read_rows(path)]
    own = {profile.name, *profile.aliases, *profile.device_names}
    mine = [group for group in groups if group.device in own]
    devices = sorted({group.device for group in groups})
    if not mine and len(devices) > 1:
        raise RequestError(
            f"no row is of {profile.name!r}; the files hold {', '.join(devices)} (choose with --hardware)"
        )
    return mine or groups


def _grouped(rows: list[dict[str, Any]]) -> "list[Rows]":
    """Rows as measured, by op and dtype."""
    import numpy as np

    from flurka_bench.cost.fitting import Rows

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["dtype"]), []).append(row)
    words = ("device", "op", "dtype", "latency_ms")
    return [
        Rows(
            op=op,
            dtype=dtype,
            device=group[0]["device"],
            columns={
                name: np.array([float(row[name]) for row in group])
                for name in group[0]
                if name not in words
            },
            seconds=np.array([row["latency_ms"] for row in group]) * 1e-3,
        )
        for (op, dtype), group in sorted(groups.items())
    ]


def _measure(
    name: str, hardware: str | None, dtype: str | None, budget: str | None, rows: int | None
) -> "tuple[Profile, Calibration, dict[str, Any]]":
    """Measure the device; the profile to start from, what was measured, and under which
    conditions."""
    dtypes = comma_list(dtype, dtype_of("--dtype"), "--dtype") if dtype else None
    budget_s = parse_seconds(budget, "--budget") if budget else None
    from flurka_bench.devices.probe import find_device

    found = find_device(name)
    _check_rows(found.kind == "cpu", rows)
    given = load_target(hardware) if hardware else None
    if given is not None:
        check_device(given, found)
    from flurka_bench.kinds import calibration

    with Progress() as progress:
        seen = calibration.measure(
            found.device, dtypes=dtypes, budget_s=budget_s, on_event=progress.show
        )
    measured = seen.calibration
    profile = _own_profile(seen.properties, measured) if given is None else given
    about = {
        "source": f"measured on {measured.device} in {measured.seconds:.0f} s",
        "torch": seen.environment["packages"]["torch"],
        "threads": seen.environment["torch"]["num_threads"],
    }
    return profile, measured, about


def _forget(profile: "Profile", groups: "list[Rows]") -> "Profile":
    """The profile without what was measured before for the ops of these rows: a fit starts at the
    shared constants."""
    from flurka_bench.cost.operators import OPERATORS

    known = {op: operator for operator in OPERATORS for op in operator.ops}
    kept = profile.measured
    for group in groups:
        if group.op in known:
            kept = kept.without(*known[group.op].group(group))
    return profile.with_measured(kept, profile.measured_about)


def _own_profile(properties: Mapping[str, Any], measured: "Calibration") -> "Profile":
    """The shipped profile of this device, or one from what it reports of itself."""
    from flurka_bench.hardware.detect import (
        detect_cpu,
        from_cuda_properties,
        recognise,
    )

    if "num_threads" in properties:
        return detect_cpu(properties["num_threads"])
    shipped = recognise(measured.device)
    if shipped is not None:
        return shipped
    if not properties["clock_hz"]:
        raise RequestError(
            f"{measured.device} does not report its clock: write a profile for it and pass"
            " --hardware FILE"
        )
    copied = measured.figures.get("copy_bandwidth_bytes_per_s", 0.0)
    reported = {
        **properties,
        "capability": tuple(properties["capability"]),
        "bandwidth_bytes_per_s": properties["bandwidth_bytes_per_s"] or copied / 0.9,
    }
    return from_cuda_properties(measured.device, **reported)


def _report(fits: list[Fit], measured: "Calibration | None") -> None:
    if measured:
        print_table(
            ("figure", "value"),
            [(name, f"{value:.4g}") for name, value in measured.figures.items()],
            title=measured.device,
        )
        for text in measured.left_out:
            print(f"left out: {text}")
        print()
    percent = [
        (each, *("" if error is None else f"{error:.1%}" for error in (each.before, each.after)))
        for each in fits
    ]
    print_table(
        ("op", "dtype", "rows fitted", "held out", "error before", "error after", "note"),
        [
            (each.op, each.dtype, each.num_fitted, each.num_held_out, before, after, each.note)
            for each, before, after in percent
        ],
        title="Mean absolute percentage error on rows that were not fitted",
    )
