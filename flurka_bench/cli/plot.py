"""``plot``: the pictures of a run, and its heat map in the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli.common import (
    comma_list,
    console,
    note,
    one_of,
    print_json,
    refuse_given,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flurka_bench.hardware import Profile

KINDS = (
    "heatmap",
    "scaling",
    "predicted",
    "crossover",
    "roofline",
    "stages",
    "pareto",
    "error",
    "memory",
    "devices",
)
MAX_MAPS = 12  # heat maps of one call, largest first
# Which kinds an option has a part in.
READERS = {
    "--subject": ("heatmap", "crossover", "devices"),
    "--baseline": ("heatmap", "devices"),
    "--x": ("heatmap", "error"),
    "--y": ("heatmap", "error"),
    "--hardware": ("roofline",),
}


def plot(
    run: Annotated[list[Path], typer.Argument(help="One or several run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the pictures; RUN/plots by default.")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"all, or a comma list of {', '.join(KINDS)}.")] = "all",
    subject: Annotated[
        str | None,
        typer.Option(
            help="Whose speedup: flurka (the fastest of them, the default) or a mechanism."
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Over whom: best-other (the default), strong-…, paper-… or a mechanism."),
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", help="Axis across; by default the one with most values.")
    ] = None,
    y: Annotated[str | None, typer.Option("--y", help="Axis up.")] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Profile for the roofline; by default the run's device.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the paths as JSON and no map.")
    ] = False,
) -> None:
    """Draw a run: speedup maps, scaling, crossovers, roofline, stages, memory, and the model beside
    the clock (PNG and SVG).

    Example: flurka-bench plot results/layer-cpu --kind heatmap --baseline strong-kernel --x
        num_features --y rank
    """
    from flurka_bench.answers.speedup import (
        prepare,
        speedups,
    )
    from flurka_bench.render.figures import (
        heatmap,
        style,
        terminal,
    )
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    kinds = KINDS if kind == "all" else comma_list(kind, one_of(KINDS, "--kind"), "--kind")
    options = dict(zip(READERS, (subject, baseline, x, y, hardware)))
    for option, readers in READERS.items():
        if not set(readers) & set(kinds):
            why = f" to --kind {kind}, only to {', '.join(readers)}"
            refuse_given({option: options[option]}, why)
    subject, baseline = subject or "flurka", baseline or "best-other"
    found = [read_run(folder) for folder in run]
    frame = prepare(to_frame(found))
    cells = speedups(frame, subject, baseline)
    across, up = heatmap.map_axes(cells, x, y)
    folder = out or run[0] / "plots"
    paths = []
    for name in kinds:
        drawn = _figures(name, frame, cells, across, up, _profile(found[0].meta, hardware))
        if not drawn and kind != "all":
            note(f"no {name}: {_NOTHING.get(name, 'nothing of it is in the run')}")
        for stem, figure in drawn:
            paths += style.save(figure, folder / stem)
    if json:
        print_json([str(path) for path in paths])
        return
    if "heatmap" in kinds:
        console().print(terminal.terminal_map(cells, across, up))
    for path in paths:
        if path.suffix == ".png":
            print(path)


_NOTHING = {
    "roofline": "no time is there, or no profile knows the run's device (give --hardware)",
    "devices": "all runs are of one device",
}


def _figures(
    kind: str,
    frame: "pd.DataFrame",
    cells: "pd.DataFrame",
    x: str,
    y: str,
    profile: "Profile | None",
) -> "list[tuple[str, Figure]]":
    from flurka_bench.answers.speedup import all_speedups
    from flurka_bench.render.figures import (
        curves,
        heatmap,
        model,
        tradeoff,
    )

    subject = str(cells["subject"].iloc[0]) if len(cells) else "flurka"
    baseline = str(cells["baseline"].iloc[0]) if len(cells) else "best-other"
    match kind:
        case "heatmap":
            grids = heatmap.grids(cells, x, y)
            if len(grids) > MAX_MAPS:
                note(f"{MAX_MAPS} of {len(grids)} heat maps, the largest; 'report' has them all")
            maps = grids[:MAX_MAPS] or [None]
            stem = f"heatmap-{subject}-{baseline}"
            return [
                (stem if i == 0 else f"{stem}-{i + 1}", heatmap.heat_map(cells, x, y, which=i))
                for i in range(len(maps))
            ]
        case "scaling":
            return [("scaling", curves.scaling_curves(frame))]
        case "predicted":
            return [("predicted", model.predicted_against_measured(frame))]
        case "crossover":
            every = all_speedups(
                frame, subject, ["best-other", "strong-low-rank", "strong-kernel", "paper-low-rank"]
            )
            axes = [
                axis for axis in ("rank", "num_features", "seq_len") if every[axis].nunique() > 1
            ] or ["rank"]
            return [(f"crossover-{axis}", curves.crossover_curves(every, axis)) for axis in axes]
        case "roofline":
            rows = _typical(frame)
            if profile is None or rows.empty:
                return []
            dtype = str(rows["dtype"].iloc[0])
            peak = profile.peaks[profile.matmul_unit(dtype)].value
            roof = "calibrated" if profile.is_calibrated else "datasheet"
            title = f"{profile.title}, {dtype}; roof: {roof}"
            device = "cpu" if profile.kind == "cpu" else "cuda"
            bandwidth = profile.memory_bandwidth_bytes_per_s
            return [
                (
                    "roofline",
                    model.roofline(rows, peak, bandwidth, title, device=device),
                )
            ]
        case "stages":
            rows = _typical(frame)
            return [("stages", model.stage_bars(rows, _title(rows)))]
        case "pareto":
            rows = _workload(frame)
            return [
                ("pareto-memory", tradeoff.pareto(rows, "peak_memory_bytes", title=_title(rows)))
            ]
        case "error":
            return [("model-error", model.error_map(frame, x, y))]
        case "memory":
            return [("memory", tradeoff.memory(frame))]
        case "devices":
            return [("devices", tradeoff.devices(cells))] if frame["device"].nunique() > 1 else []
    raise AssertionError(kind)


def _workload(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The timed records of the workload with most of them; of equals the one with the longest N."""
    from flurka_bench.answers.speedup import WORKLOAD

    timed = frame[frame["seconds"].notna()]
    if timed.empty:
        return timed
    parts = [part for _, part in timed.groupby(WORKLOAD, sort=False)]
    return max(parts, key=lambda part: (len(part), part["seq_len"].iloc[0]))


def _typical(frame: "pd.DataFrame") -> "pd.DataFrame":
    """At the largest workload and the middle k and m: the fastest form of each mechanism."""
    from flurka_bench.answers.words import at_middle

    rows = _workload(frame)
    if rows.empty:
        return rows
    rows, _ = at_middle(rows)
    return rows.loc[rows.groupby("mechanism", sort=False)["seconds"].idxmin()]


def _title(rows: "pd.DataFrame") -> str:
    from flurka_bench.render.figures.heatmap import caption

    return caption(rows.iloc[0].to_dict() | {"rank": 0, "num_features": 0}) if len(rows) else ""


def _profile(meta: Mapping[str, Any], hardware: str | None) -> "Profile | None":
    """The target asked for, or the run's own device where it is known or is this machine's CPU."""
    from flurka_bench.cli.targets import (
        load_target,
        own_profile,
    )
    from flurka_bench.hardware.detect import (
        cpu_name,
        detect_cpu,
    )

    if hardware is not None:
        return load_target(hardware)
    device = str(meta.get("device", ""))
    own = own_profile(None if cpu_name() in device else device)
    threads = (meta.get("environment", {}).get("torch") or {}).get("num_threads")
    return (
        detect_cpu(threads)
        if own is not None and own.vendor == "cpu" and not own.is_calibrated
        else own
    )
