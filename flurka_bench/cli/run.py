"""``run``: measure a suite on the device at hand, resumable, and say what came out."""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import console, one_of, print_json, print_table
from flurka_bench.errors import RequestError
from flurka_bench.text import one_line
from flurka_bench.units import (
    format_bytes,
    format_ratio,
    format_seconds,
    parse_bytes,
    parse_seconds,
)

if TYPE_CHECKING:
    import pandas as pd

    from flurka_bench.hardware import Profile
    from flurka_bench.measure.probe import FoundDevice
    from flurka_bench.measure.runner import Event, Peaks, Summary
    from flurka_bench.suite import Suite
    from flurka_bench.workload import Case

# Datasheet peaks hold at the boost clock; single boards clock a little above it. A CPU's clock is
# what its system admits, which in virtual machines is the base clock.
_PEAK_MARGIN = {"gpu": 1.05, "cpu": 2.0}
_OPPONENTS = {"low-rank": "low-rank parent", "kernel": "kernel parent", "full": "full attention"}


def run(
    suite: Annotated[
        str,
        typer.Argument(help="A shipped suite's name (quick, core, layer, paper) or a TOML file."),
    ],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Run folder; results/SUITE-DEVICE by default.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the cases with their predicted cost; measure nothing."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    stages: Annotated[
        bool, typer.Option("--stages", help="Also record the time by stage, from the profiler.")
    ] = False,
    plot: Annotated[
        bool, typer.Option("--plot", help="At the end draw the heat map, here and as a picture.")
    ] = False,
    hardware: Annotated[
        str | None, typer.Option(help="Profile to predict with; the device's own by default.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of inputs, parameters and the order of rounds.")
    ] = 0,
    cache: Annotated[
        str, typer.Option(help="auto, cold (flushed before each call) or warm.")
    ] = "auto",
    budget: Annotated[
        str | None, typer.Option(help="Time for the whole run, like 80s; replaces the suite's.")
    ] = None,
    memory_limit: Annotated[
        str | None, typer.Option(help="Most host memory the worker may take, like 8GB.")
    ] = None,
) -> None:
    """Measure a suite; the same command again goes on where it was stopped.

    Example: flurka-bench run quick --device cpu
    """
    from flurka_bench.measure.probe import find_device
    from flurka_bench.suite import load_suite

    one_of(("auto", "cold", "warm"), "--cache")(cache)
    budget_s = parse_seconds(budget, "--budget") if budget else None
    memory_limit_bytes = parse_bytes(memory_limit, "--memory-limit") if memory_limit else None
    found = find_device(device)
    loaded = load_suite(suite, found.kind)
    cases = loaded.cases()
    profile = _profile(found, hardware)
    predictions = _predictions(cases, profile, stages=stages)
    if dry_run:
        _print_plan(loaded, cases, predictions, as_json=json)
        return
    from flurka_bench.measure.runner import run_suite

    folder = (
        out
        or Path("results") / f"{loaded.name}-{found.device.removesuffix(':0').replace(':', '-')}"
    )
    with _Progress(quiet=json) as progress:
        summary = run_suite(
            loaded,
            device=found.device,
            out=folder,
            predict=lambda case: predictions.get(case.case_id, {}),
            peaks=_peaks(profile),
            on_event=progress.show,
            seed=seed,
            cache=cache,
            stages=stages,
            budget_s=budget_s,
            memory_limit_bytes=memory_limit_bytes,
        )
    _print_answer(folder, summary, as_json=json)
    if plot:
        _draw(folder)


def _profile(found: "FoundDevice", hardware: str | None) -> "Profile | None":
    """The profile asked for, or the device's own; None for a GPU that no profile describes."""
    from flurka_bench.cli.targets import load_targets, own_profile

    return own_profile(found.name) if hardware is None else load_targets(hardware)[0]


def _predictions(
    cases: "list[Case]", profile: "Profile | None", *, stages: bool
) -> dict[str, dict[str, Any]]:
    """What the cost model says of each case, in the fields of a record; nothing without a
    profile."""
    if profile is None:
        return {}
    from flurka_bench.cost.predict import predict

    cache = "warm" if profile.kind == "cpu" else "cold"
    found = {}
    try:
        predictions = predict(cases, profile, cache=cache)
    except RequestError as error:  # a clock needs no model
        print(f"note: no predictions: {error}", file=sys.stderr)
        return {}
    for prediction in predictions:
        fields = {
            "predicted_s": prediction.seconds,
            "predicted_low_s": prediction.seconds_low,
            "predicted_high_s": prediction.seconds_high,
            "predicted_log_scale": prediction.log_scale,
            "bound": prediction.bound,
        }
        if stages:
            fields["predicted_stages_s"] = {
                stage: float(seconds) for stage, seconds in prediction.stages.items()
            }
        found[prediction.case.case_id] = fields
    return found


def _peaks(profile: "Profile | None") -> "Callable[[Case], Peaks | None]":
    """What no case can exceed on this device: the datasheet's figures."""

    def peaks(case: "Case") -> "Peaks | None":
        from flurka_bench.measure.runner import Peaks

        if profile is None:
            return None
        on_cpu = profile.kind == "cpu"
        if (
            on_cpu and case.itemsize < 4
        ):  # tile units for 16-bit matrices are not in a CPU's profile
            return None
        return Peaks(
            flops_per_s=profile.peak_flops[profile.matmul_unit(case.dtype)],
            # a CPU's bandwidth stands in the profile as a guess until it is calibrated
            bandwidth_bytes_per_s=None
            if on_cpu and not profile.is_calibrated
            else profile.memory_bandwidth_bytes_per_s,
            margin=_PEAK_MARGIN[profile.kind],
        )

    return peaks


def _print_plan(
    suite: "Suite", cases: "list[Case]", predictions: dict[str, dict[str, Any]], *, as_json: bool
) -> None:
    from flurka_bench import mechanisms

    rows = []
    for case in cases:
        row = {"case_id": case.case_id, **case.as_record(), **predictions.get(case.case_id, {})}
        rows.append(row | {"peak_memory_bytes": int(mechanisms.peak_memory_bytes(case))})
    seconds = [row["predicted_s"] for row in rows if row.get("predicted_s") is not None]
    total = {
        "num_cases": len(rows),
        "one_call_each_s": sum(seconds) if seconds else None,
        "largest_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
        "budget_s": suite.budget.time_s,
    }
    if as_json:
        print_json({"suite": suite.name, "cases": rows, "total": total})
        return
    print_table(
        ("case", "predicted", "from", "to", "bound", "memory"),
        [
            (
                row["case_id"],
                *(
                    format_seconds(row.get(key))
                    for key in ("predicted_s", "predicted_low_s", "predicted_high_s")
                ),
                row.get("bound", "n/a"),
                format_bytes(row["peak_memory_bytes"]),
            )
            for row in rows
        ],
    )
    budget = (
        f"budget {format_seconds(suite.budget.time_s)}" if suite.budget.time_s else "no time budget"
    )
    print(
        f"\n{len(rows)} cases; one call of each {format_seconds(total['one_call_each_s'])}; {budget}; "
        f"largest memory {format_bytes(total['largest_memory_bytes'])}"
    )


class _Progress:
    """Shows a run's events: a bar with the case in hand on a terminal, plain lines elsewhere. Drawn
    only when something
    happens, because a bar that animates takes time from what is being timed."""  # fmt: skip

    def __init__(self, *, quiet: bool) -> None:
        self.bar: Any = None
        self.quiet = quiet

    def __enter__(self) -> "_Progress":
        if sys.stderr.isatty() and not self.quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.table import Column

            columns = (
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn(
                    "{task.description}", table_column=Column(ratio=1, no_wrap=True)
                ),  # gives way in a narrow terminal
            )
            self.bar = Progress(
                *columns,
                console=console(stderr=True),
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("starting", total=None, left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, event: "Event") -> None:
        """Draw one event."""
        lines = []
        if event.kind == "note":
            lines = [f"note: {event.text}"]
        elif event.kind == "record" and event.record and event.record["status"] != "ok":
            lines = [
                f"{event.record['status']}: {event.record['case_id']}: {event.record['error']}"
            ]
        elif event.kind == "group":
            lines = [f"[{event.num_done}/{event.num_cases}] {headline(event.records)}"]
        lines = [one_line(line) for line in lines]
        if self.bar is None:
            for line in lines if not self.quiet else []:
                print(line, file=sys.stderr, flush=True)
            return
        from rich.markup import escape

        for line in lines:
            self.bar.console.print(escape(line), highlight=False)
        left = f"{format_seconds(math.ceil(event.left_s), 2)} left" if event.left_s else ""
        case, _, phase = event.text.rpartition(
            ": "
        )  # the phase first: a narrow terminal cuts the end off
        fields = (
            {"description": escape(one_line(f"{phase} {case}"))} if event.kind == "phase" else {}
        )
        self.bar.update(
            self.task, total=event.num_cases, completed=event.num_done, left=left, **fields
        )
        self.bar.refresh()


def headline(records: "tuple[dict[str, Any], ...]") -> str:
    """The news of one workload in a line: the fastest FLuRKA against the fastest of each other
    family."""
    from flurka_bench.analysis.baselines import FAMILY_OF

    if not records:
        return "nothing to measure"
    first = records[0]
    place = f"{first['level']} {first['pass']} {first['dtype']} b={first['batch']} h={first['num_heads']} d={first['head_dim']}"
    place += f" N={first['seq_len']}"
    best: dict[str, dict[str, Any]] = {}
    for record in records:
        family = FAMILY_OF[record["mechanism"]]
        if record["status"] == "ok" and (
            family not in best or record["median_s"] < best[family]["median_s"]
        ):
            best[family] = record
    if not best:
        return f"{place}: none of {len(records)} cases has a time"
    if "flurka" not in best:
        fastest = min(best.values(), key=lambda record: record["median_s"])
        return f"{place}: fastest {fastest['mechanism']}, {format_seconds(fastest['median_s'])}"
    ours = best.pop("flurka")
    against = ", ".join(
        f"{format_ratio(theirs['median_s'] / ours['median_s'])} {theirs['mechanism']}"
        for theirs in best.values()
    )
    return f"{place}: {ours['mechanism']} {format_seconds(ours['median_s'])}" + (
        f" = {against}" if against else ""
    )


def _print_answer(folder: Path, summary: "Summary", *, as_json: bool) -> None:
    from flurka_bench.analysis.speedup import summary as best_cells
    from flurka_bench.results import read_run, to_frame

    found = read_run(folder)
    frame = to_frame(found)
    cells = best_cells(frame) if len(frame) else frame
    statuses = {str(status): int(count) for status, count in frame["status"].value_counts().items()}
    if as_json:
        print_json({
            "folder": str(folder),
            "statuses": statuses,
            "wall_s": found.meta.get("wall_s"),
            "time_in_calls_s": found.meta.get("time_in_calls_s"),
            "cells": cells.to_dict("records"),
        })  # fmt: skip
        return
    for _, cell in _leading(cells).iterrows():
        _print_workload(cell)
    told = ", ".join(f"{count} {status}" for status, count in statuses.items())
    share = (
        f"{summary.time_in_calls_s / summary.wall_s:.0%} of it inside calls"
        if summary.wall_s
        else ""
    )
    session = (
        f"this session took {format_seconds(summary.wall_s)}, {share}"
        if share
        else "nothing was left to measure"
    )
    print(f"\n{told} in {folder}; {session}")
    for warning in found.warnings:
        print(f"note: {warning}")


def _leading(cells: "pd.DataFrame") -> "pd.DataFrame":
    """Per workload the cell in which FLuRKA is fastest, with the workload's fastest mechanism of
    all beside it."""
    from flurka_bench.analysis.speedup import WORKLOAD

    if cells.empty:
        return cells
    leading = (
        cells.sort_values("subject_s", kind="stable")
        .drop_duplicates(WORKLOAD)
        .sort_index()
        .set_index(WORKLOAD)
    )
    fastest = (
        cells.sort_values("fastest_s", kind="stable").drop_duplicates(WORKLOAD).set_index(WORKLOAD)
    )
    for name in ("mechanism", "order", "backend", "s"):
        leading[f"fastest_{name}"] = fastest[f"fastest_{name}"]
    return leading.reset_index()


def _print_workload(cell: Any) -> None:
    sizes = f"b={cell['batch']} h={cell['num_heads']} N={cell['seq_len']} d={cell['head_dim']}"
    print(f"\n{cell['level']} {cell['pass']} {cell['dtype']} {sizes}")
    if _form(cell, "fastest"):
        print(f"fastest  {_form(cell, 'fastest')}: {format_seconds(cell['fastest_s'])}")
    if not _form(cell, "subject"):
        print("FLuRKA   not measured (its records say why)")
        return
    knobs = f" k={cell['rank']} m={cell['num_features']}"
    print(
        f"FLuRKA   {_form(cell, 'subject')}{knobs}: {format_seconds(cell['subject_s'])}; its speedup over"
    )

    def ratio(column: str) -> str:
        value, low, high = cell[column], cell[f"{column}_low"], cell[f"{column}_high"]
        if value != value:
            return "n/a"
        return (
            f"{format_ratio(value)} [{low:.2f}, {high:.2f}]"
            if high < 1000
            else f"{format_ratio(value)} [too few samples]"
        )

    def speedup(name: str) -> list[str]:
        return [ratio(name), ratio(f"{name}_predicted")]

    print_table(
        ("", "strong form", "predicted", "paper's form", "predicted"),
        [
            [name, *speedup(f"strong-{key}"), *speedup(f"paper-{key}")]
            for key, name in _OPPONENTS.items()
        ],
    )


def _form(cell: Any, side: str) -> str:
    order, backend = cell[f"{side}_order"], cell[f"{side}_backend"]
    parts = [cell[f"{side}_mechanism"], order, "" if backend == "eager" else backend]
    return " ".join(
        part for part in parts if part and isinstance(part, str)
    )  # nan where there is no time, None at level core


def _draw(folder: Path) -> None:
    from flurka_bench.cli.plot import plot

    plot([folder], kind="heatmap")
