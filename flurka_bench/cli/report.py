"""``report``: one page, Markdown text or PDF of runs, or of predictions for hardware that is not at
hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.cli.common import (
    DTYPES_HELP,
    SIZES_HELP,
    dtype_of,
    one_of,
    positive_int,
    refuse_given,
)
from flurka_bench.cli.targets import (
    HARDWARE_HELP,
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
    run: Annotated[
        list[Path] | None, typer.Argument(help="Run folders; none: give --hardware.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .html, .md or .pdf; RUN/report.html by default."),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(help=f"Targets to predict for: {HARDWARE_HELP}; without a run."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=f"Of the predictions: {DTYPES_HELP}; by default the target's 16-bit type."
        ),
    ] = None,
    model_dim: Annotated[
        str | None,
        typer.Option(help=f"D of the predictions; 1024 by default. {SIZES_HELP}"),
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(
            help="Of the predictions: eager (the host dispatches, the default), graph, or none."
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="b of the predictions; 1 by default.")] = None,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Write one self-contained page: the answer, interactive maps, crossovers, agreement,
    environment, data.

    Example: flurka-bench report results/layer-cpu --out layer.html

    Example: flurka-bench report --hardware h200,b200,l40s --out gpus.html
    """
    from flurka_bench.render.content import collect

    if bool(run) == bool(hardware):
        raise RequestError(
            "report takes one or several run folders, or --hardware for predictions without a run; not both, not neither"
        )
    title = None if title is None else one_line(title)
    target = out or ((run[0] / "report.html") if run else Path("report.html"))
    if target.suffix not in FORMATS:
        raise RequestError(f"--out must end in {', '.join(FORMATS)}, got {str(target)!r}")
    if run:
        predicted = {
            "--dtype": dtype,
            "--model-dim": model_dim,
            "--launch": launch,
            "--batch": batch,
        }
        refuse_given(predicted, " to a run, which has its own: it is for predictions (--hardware)")
        from flurka_bench.results import (
            read_run,
            to_frame,
        )

        found = [read_run(folder) for folder in run]
        warnings = [
            warning
            for one in found
            for warning in (*one.warnings, *one.meta["environment"].get("warnings", []))
        ]
        names = ", ".join(dict.fromkeys(one.meta["suite"]["name"] for one in found))
        content = collect(
            to_frame(found),
            [one.meta for one in found],
            title or f"flurka-bench: {names}",
            warnings,
        )
    else:
        from flurka_bench.answers.predicted import predicted_frame
        from flurka_bench.cost.terms import LAUNCHES

        targets = load_targets(str(hardware))
        width = positive_int("--model-dim")(model_dim or "1024")
        if width % 64:
            raise RequestError(f"--model-dim must be a multiple of the head_dim 64, got {width}")
        launch = one_of(LAUNCHES, "--launch")(launch or "eager")
        dtype = dtype_of("--dtype")(dtype) if dtype else None
        for profile in targets:
            check_dtype(profile, dtype or profile.own_dtype)
            check_launch(profile, launch)
        about = [
            {"hardware": profile.title, "calibrated": profile.is_calibrated}
            | {
                key: f"{figure.value:.12g} {figure.unit} ({figure.source})"
                for key, figure in (profile.datasheet | profile.peaks).items()
            }
            for profile in targets
        ]
        names = ", ".join(profile.title for profile in targets)
        count = positive_int("--batch")(batch or "1")
        frame = predicted_frame(targets, dtype, launch, model_dim=width, batch=count)
        about = [{**each, "launch": launch} for each in about]
        content = collect(frame, about, title or f"Predictions for {names}")
    make_folder(target.parent)
    # A link that lies in a run folder, which may be a stranger's, leads nowhere.
    write_atomically(target, _rendered(content, target.suffix), follow_links=out is not None)
    print(target)


def _rendered(content: "Content", suffix: str) -> bytes | str:
    from flurka_bench.render.content import pictures, summary

    if suffix == ".pdf":
        from flurka_bench.render.pdf import pdf

        return pdf([*summary(content), *pictures(content)])
    from flurka_bench.render.markdown import markdown
    from flurka_bench.render.page import page

    return page(content) if suffix == ".html" else markdown(summary(content))
