"""``run``: measure a suite on the device at hand, resumable, and say what came out."""

import contextlib
import math
import sys
from collections.abc import Callable
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
from flurka_bench.cli.progress import Progress
from flurka_bench.cli.targets import timer_cache
from flurka_bench.words.errors import RequestError
from flurka_bench.words.units import (
    format_bytes,
    format_ratio,
    format_seconds,
)

if TYPE_CHECKING:
    from flurka_bench.answers.leading import Lead
    from flurka_bench.bench.kind import Event
    from flurka_bench.bench.session import Summary
    from flurka_bench.cases.case import Case
    from flurka_bench.cases.suite import Suite
    from flurka_bench.devices.probe import FoundDevice
    from flurka_bench.hardware import Profile
    from flurka_bench.kinds.timing.judging import Peaks
    from flurka_bench.words.verdict import Estimate

# Datasheet peaks hold at the boost clock; single boards clock a little above it. A CPU's clock is
# what its system admits, which in virtual machines is the base clock.
_PEAK_MARGIN = {"gpu": 1.05, "cpu": 2.0}


def run(
    context: typer.Context,
    device: options.Device,
    out: Annotated[
        Path | None, options.plain("--out", "Run folder [default: results/SUITE-DEVICE]")
    ],
    dry_run: options.DryRun,
    json: options.Json,
    stages: Annotated[
        bool, options.flag("--stages", "Also record the time by stage, from the profiler.")
    ],
    plot: Annotated[
        bool, options.flag("--plot", "At the end draw the heat map, here and as a picture.")
    ],
    hardware: options.Hardware,
    seed: Annotated[
        int,
        options.plain(
            "--seed", "Of inputs, parameters and the order of rounds.", default=0, least=0
        ),
    ],
    cache: Annotated[str, options.declared("--cache")],
    budget: options.Budget,
    memory_limit: Annotated[int | None, options.declared("--memory-limit")],
    only: Annotated[str | None, options.declared("--only")],
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
    suite: Annotated[
        str | None,
        typer.Argument(
            help="A shipped suite's name (quick, core, layer, paper) or a TOML file; without one,"
            " the axes that options give are measured."
        ),
    ] = None,
) -> None:
    """Measure a suite, or the cases that options name as for predict; the same command again goes
    on where it was stopped.

    Example: flurka-bench run quick --device cpu

    Example: flurka-bench run --mechanism flurka-relu,full-sdpa --seq-len 1024 --rank 128 --budget
        20s
    """
    from flurka_bench.cli.targets import check_dtype
    from flurka_bench.devices.probe import find_device

    found = find_device(device)
    if dry_run:
        options.refuse(context, ["--plot"], " to --dry-run, which measures nothing to draw")
    profile = _profile(found, hardware)
    loaded = _suite(context, suite, found.kind, profile)
    if only is not None:
        from flurka_bench.cases.asked import part_of

        loaded = part_of(loaded, only)
    cases = loaded.cases()
    if profile is not None:
        for each in sorted({case.dtype for case in cases}):
            check_dtype(profile, each)
    predictions = _predictions(cases, profile, stages=stages, cache=cache)
    if dry_run:
        idle = ("--out", "--seed", "--memory-limit")
        named = [each for each in idle if each in options.given(context)]
        if named:
            note(f"{', '.join(named)} changes nothing in a dry run")
        _print_plan(loaded, cases, predictions, kind=found.kind, as_json=json, budget_s=budget)
        return
    from flurka_bench.bench import loop
    from flurka_bench.bench.kind import RunOptions
    from flurka_bench.kinds.timing.kind import TimingPlan

    folder = (
        out
        or Path("results") / f"{loaded.name}-{found.device.removesuffix(':0').replace(':', '-')}"
    )
    if not json:  # what the lines are made with: loaded now, not in the run's own time
        import flurka_bench.answers.leading  # noqa: F401
    with Progress(quiet=json, headline=_news) as progress:
        plan = TimingPlan(
            suite=loaded,
            predict=lambda case: predictions.get(case.case_id, {}),
            peaks=_peaks(profile),
            seed=seed,
            cache=cache,
            stages=stages,
            predicted_from=_predicted_from(profile, cache) if profile and predictions else None,
        )
        limits = RunOptions(
            out=folder,
            device=found.device,
            budget_s=budget,
            memory_limit_bytes=memory_limit,
        )
        summary = loop.run(plan, limits, on_event=progress.show)
    _print_answer(folder, summary, as_json=json)
    if plot:
        _draw(folder, quiet=json)


def _suite(
    context: typer.Context, name: str | None, device_kind: str, profile: "Profile | None"
) -> "Suite":
    """The suite of that name, or that of the axes that options give."""
    from flurka_bench.cases.asked import suite_of_axes
    from flurka_bench.cli.suites import note_idle_axes, timing_suite

    flags = {options.flag_of(axis): axis for axis in options.AXES}
    if name is not None:
        why = " to a suite, which has its own (--only keeps a part of it)"
        options.refuse(context, flags, why)
        return timing_suite(name, device_kind)
    given = {flags[each] for each in options.given(context) if each in flags}
    if not given:
        raise RequestError(
            "run takes a suite (quick, core, layer, paper or a TOML file), or cases as options,"
            " like --mechanism flurka-relu,full-sdpa --seq-len 4096"
        )
    axes = options.axes(context)
    if not axes["dtype"]:
        axes["dtype"] = ("float32" if profile is None else profile.own_dtype,)
    suite = suite_of_axes(axes, given, device_kind)
    note_idle_axes(suite)
    return suite


def _profile(found: "FoundDevice", hardware: options.Names | None) -> "Profile | None":
    """The profile asked for, or the device's own; None for a GPU that no profile describes."""
    from flurka_bench.cli.targets import (
        check_device,
        load_target,
        own_profile,
    )

    if hardware is None:
        return own_profile(found.name)
    profile = load_target(hardware)
    check_device(profile, found)
    return profile


def _predicted_from(profile: "Profile", cache: str) -> dict[str, str]:
    from flurka_bench.cli.targets import prediction_source

    return prediction_source(profile, timer_cache(profile, cache))


def _predictions(
    cases: "list[Case]", profile: "Profile | None", *, stages: bool, cache: str = "auto"
) -> dict[str, dict[str, Any]]:
    """What the cost model says of each case, in the fields of a record; nothing without a
    profile."""
    if profile is None:
        return {}
    from flurka_bench.answers.plan import predicted_fields

    try:
        return predicted_fields(cases, profile, stages=stages, cache=timer_cache(profile, cache))
    except RequestError as error:  # a clock needs no model
        note(f"no predictions: {error}")
        return {}


def _peaks(profile: "Profile | None") -> "Callable[[Case], Peaks | None]":
    """What no case can exceed on this device: the datasheet's figures."""

    def peaks(case: "Case") -> "Peaks | None":
        from flurka_bench.kinds.timing.judging import Peaks

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
    suite: "Suite",
    cases: "list[Case]",
    predictions: dict[str, dict[str, Any]],
    *,
    kind: str,
    as_json: bool,
    budget_s: float | None = None,
) -> None:
    from flurka_bench.answers.plan import plan

    rows, total = plan(cases, predictions, kind)
    total["budget_s"] = budget_s or suite.budget.time_s
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
        f"budget {format_seconds(total['budget_s'])}" if total["budget_s"] else "no time budget"
    )
    print(
        f"\n{len(rows)} cases; one call of each {format_seconds(total['one_call_each_s'])};"
        f" {budget}; largest memory {format_bytes(total['largest_memory_bytes'])}"
    )


def _news(event: "Event") -> str:
    from flurka_bench.answers.leading import headline

    return headline(event.records) if event.records else event.text


def _print_answer(folder: Path, summary: "Summary", *, as_json: bool) -> None:
    from flurka_bench.answers import leading
    from flurka_bench.results import (
        read_run,
        to_frame,
    )
    from flurka_bench.words.verdict import RULE

    found = read_run(folder)
    frame = to_frame(found)
    statuses = {str(status): int(count) for status, count in frame["status"].value_counts().items()}
    if as_json:
        print_json({
            "folder": str(folder),
            "statuses": statuses,
            "num_not_reached": summary.num_late,
            "wall_s": found.meta.get("wall_s"),
            "time_in_calls_s": found.meta.get("time_in_calls_s"),
            "cells": leading.summary(frame).to_dict("records") if len(frame) else [],
        })  # fmt: skip
        return
    workloads = leading.leading(frame) if len(frame) else []
    for lead in workloads:
        _print_workload(lead)
    if any(lead.ours for lead in workloads):
        print_text(f"\n{RULE}")
    told = ", ".join(f"{count} {status}" for status, count in statuses.items())
    if summary.num_late:
        late = f"{summary.num_late} not reached in the time budget"
        told = f"{told}, {late}" if told else late
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
    if summary.num_late:
        print("the same command goes on with the cases that were not reached")
    for warning in found.warnings:
        print(f"note: {warning}")


def _print_workload(lead: "Lead") -> None:
    from flurka_bench.answers.leading import OPPONENTS, place_words, time_words
    from flurka_bench.answers.sources import SOURCES

    print(f"\n{place_words(lead.workload)}")
    if lead.fastest is None:
        print("nothing was measured (the records say why)")
        return
    behind = f"; FLuRKA's speedup over it {_speedup(lead.behind)}" if lead.behind else ""
    print(f"fastest  {time_words(lead.fastest)}{behind}")
    if lead.ours is None:
        there = "not measured (its records say why)"
        print(f"FLuRKA   {there if lead.num_ours else 'not in this run'}")
        return
    print(f"FLuRKA   {time_words(lead.ours)}; its speedup over the strong form of")
    rows = []
    for key, name in OPPONENTS.items():
        for kind, label in (("strong", name), ("paper", "  paper's form")):
            rows.append(
                [label, *(_speedup(lead.over[f"{kind}-{key}", source]) for source in SOURCES)]
            )
    print_table(("", *SOURCES), rows)


def _speedup(estimate: "Estimate") -> str:
    if math.isnan(estimate.ratio):
        return "n/a"
    low, high = estimate.low, estimate.high
    known = f"[{low:.2f}, {high:.2f}]" if high < 1000 else "[too few samples]"
    return f"{format_ratio(estimate.ratio)} {known} {estimate.verdict}"


def _draw(folder: Path, *, quiet: bool) -> None:
    """The heat map as a picture and in the terminal; on stderr with ``quiet``, where stdout holds
    JSON."""
    from flurka_bench.cli.plot import draw

    with contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext():
        draw([folder], ["heatmap"], folder=folder / "plots")
