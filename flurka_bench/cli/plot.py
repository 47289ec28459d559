"""``plot``: the pictures of a run, and its heat map in the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    console,
    note,
    print_json,
)
from flurka_bench.cli.options import KINDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flurka_bench.hardware import Profile

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
    context: typer.Context,
    run: options.RunFolders,
    out: Annotated[
        Path | None, options.plain("--out", "Folder for the pictures [default: RUN/plots]")
    ],
    kind: Annotated[options.Names, options.declared("--kind")],
    subject: options.Subject,
    baseline: Annotated[options.Names, options.declared("--baseline")],
    x: options.AxisAcross,
    y: options.AxisUp,
    hardware: Annotated[
        options.Names | None, options.declared("--hardware", shown="the run's device")
    ],
    json: options.Json,
) -> None:
    """Draw a run: speedup maps, scaling, crossovers, roofline, stages, memory, and the model beside
    the clock (PNG and SVG).

    Example: flurka-bench plot results/layer-cpu --kind heatmap --baseline strong-kernel --x
        num_features --y rank
    """
    kinds = KINDS if "all" in kind else kind
    for option, readers in READERS.items():
        if not set(readers) & set(kinds):
            options.refuse(context, [option], f" to --kind {kind}, only to {', '.join(readers)}")
    draw(
        run,
        kinds,
        folder=out or run[0] / "plots",
        subject=subject,
        baseline=options.one(baseline, "--baseline"),
        x=x,
        y=y,
        hardware=hardware,
        named="all" not in kind,
        json=json,
    )


def draw(
    run: list[Path],
    kinds: Sequence[str],
    *,
    folder: Path,
    subject: str = "flurka",
    baseline: str = "best-other",
    x: str | None = None,
    y: str | None = None,
    hardware: options.Names | None = None,
    named: bool = True,
    json: bool = False,
) -> None:
    """Write the pictures of these kinds, and print their paths and the map.

    ``named`` says that the kinds were asked for by name, so that one without a picture is told.
    """
    from flurka_bench.answers.speedup import Cells, prepare
    from flurka_bench.render.figures import (
        heatmap,
        style,
        terminal,
    )
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    found = [read_run(each) for each in run]
    frame = prepare(to_frame(found))
    cells = Cells(frame).speedups(subject, baseline)
    across, up = heatmap.map_axes(cells, x, y)
    paths = []
    for name in kinds:
        drawn = _figures(name, frame, cells, across, up, _profile(found[0].meta, hardware))
        if not drawn and named:
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
    import pandas as pd

    from flurka_bench.answers.speedup import Cells
    from flurka_bench.answers.typical import fastest_forms, largest_workload
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
            num_maps = max(1, min(MAX_MAPS, len(grids)))  # without one, a picture says so
            stem = f"heatmap-{subject}-{baseline}"
            return [
                (stem if i == 0 else f"{stem}-{i + 1}", heatmap.heat_map(cells, x, y, which=i))
                for i in range(num_maps)
            ]
        case "scaling":
            return [("scaling", curves.scaling_curves(frame))]
        case "predicted":
            return [("predicted", model.predicted_against_measured(frame))]
        case "crossover":
            names = ["best-other", "strong-low-rank", "strong-kernel", "paper-low-rank"]
            every = pd.concat(Cells(frame).views(subject, names).values(), ignore_index=True)
            axes = [
                axis for axis in ("rank", "num_features", "seq_len") if every[axis].nunique() > 1
            ] or ["rank"]
            return [(f"crossover-{axis}", curves.crossover_curves(every, axis)) for axis in axes]
        case "roofline":
            rows = fastest_forms(frame)
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
            rows = fastest_forms(frame)
            return [("stages", model.stage_bars(rows, _title(rows)))]
        case "pareto":
            rows = largest_workload(frame)
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


def _title(rows: "pd.DataFrame") -> str:
    from flurka_bench.render.figures.heatmap import caption

    return caption(rows.iloc[0].to_dict() | {"rank": 0, "num_features": 0}) if len(rows) else ""


def _profile(meta: Mapping[str, Any], hardware: options.Names | None) -> "Profile | None":
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
