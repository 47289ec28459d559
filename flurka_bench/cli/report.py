"""``report``: one page, Markdown text or PDF of runs, or of predictions for hardware that is not at
hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.cli import options
from flurka_bench.cli.options import one
from flurka_bench.cli.targets import (
    check_dtype,
    check_launch,
    load_targets,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import (
    make_folder,
    write_atomically,
)
from flurka_bench.words.text import one_line

if TYPE_CHECKING:
    from flurka_bench.render.content import Content

FORMATS = (".html", ".md", ".pdf")


def report(
    context: typer.Context,
    out: Annotated[
        Path | None,
        options.plain("--out", "File to write: .html, .md or .pdf [default: RUN/report.html]"),
    ],
    hardware: options.Hardware,
    dtype: options.Dtypes,
    model_dim: options.ModelDims,
    launch: options.Launch,
    batch: options.Batches,
    title: Annotated[str | None, options.plain("--title", "Of the page.")],
    run: Annotated[
        list[Path] | None,
        typer.Argument(help="Run folders; without any, predictions for --hardware are reported."),
    ] = None,
) -> None:
    """Write one self-contained page: the answer, interactive maps, crossovers, agreement,
    environment, data.

    Example: flurka-bench report results/layer-cpu --out layer.html

    Example: flurka-bench report --hardware h200,b200,l40s --out gpus.html
    """
    if run:
        options.refuse(
            context,
            ("--hardware", "--dtype", "--model-dim", "--launch", "--batch"),
            " to a run, which has its own: it is for predictions",
        )
    title = None if title is None else one_line(title)
    target = out or ((run[0] / "report.html") if run else Path("report.html"))
    if target.suffix not in FORMATS:
        raise RequestError(f"--out must end in {', '.join(FORMATS)}, got {str(target)!r}")
    content = (
        _of_runs(run, title)
        if run
        else _of_predictions(
            hardware,
            None if dtype is None else one(dtype, "--dtype"),
            launch,
            one(model_dim, "--model-dim"),
            one(batch, "--batch"),
            title,
        )
    )
    make_folder(target.parent)
    # A link that lies in a run folder, which may be a stranger's, leads nowhere.
    write_atomically(target, _rendered(content, target.suffix), follow_links=out is not None)
    print(target)


def _of_runs(run: list[Path], title: str | None) -> "Content":
    from flurka_bench.render.content import collect
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    found = [read_run(folder) for folder in run]
    warnings = [
        warning
        for each in found
        for warning in (*each.warnings, *each.meta["environment"].get("warnings", []))
    ]
    names = ", ".join(dict.fromkeys(each.meta["suite"]["name"] for each in found))
    return collect(
        to_frame(found),
        [each.meta for each in found],
        title or f"flurka-bench: {names}",
        warnings,
    )


def _of_predictions(
    hardware: options.Names | None,
    dtype: str | None,
    launch: str,
    model_dim: int,
    batch: int,
    title: str | None,
) -> "Content":
    from flurka_bench.answers.predicted import predicted_frame
    from flurka_bench.render.content import collect

    if model_dim % 64:
        raise RequestError(f"--model-dim must be a multiple of the head_dim 64, got {model_dim}")
    targets = load_targets(hardware)
    for profile in targets:
        check_dtype(profile, dtype or profile.own_dtype)
        check_launch(profile, launch)
    about = [
        {"hardware": profile.title, "calibrated": profile.is_calibrated}
        | {
            key: f"{figure.value:.12g} {figure.unit} ({figure.source})"
            for key, figure in {**profile.datasheet, **profile.peaks}.items()
        }
        | {"launch": launch}
        for profile in targets
    ]
    names = ", ".join(profile.title for profile in targets)
    frame = predicted_frame(targets, dtype, launch, model_dim=model_dim, batch=batch)
    return collect(frame, about, title or f"Predictions for {names}")


def _rendered(content: "Content", suffix: str) -> bytes | str:
    from flurka_bench.render.content import pictures, summary

    if suffix == ".pdf":
        from flurka_bench.render.pdf import pdf

        return pdf([*summary(content), *pictures(content)])
    from flurka_bench.render.markdown import markdown
    from flurka_bench.render.page import page

    return page(content) if suffix == ".html" else markdown(summary(content))
