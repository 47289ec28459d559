"""``report``: one page, Markdown text or PDF of runs, or of predictions for hardware that is not at
hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.errors import RequestError
from flurka_bench.files import make_folder, write_atomically
from flurka_bench.text import one_line

if TYPE_CHECKING:
    from flurka_bench.report.content import Content

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
        str | None, typer.Option(help="Targets to predict for, a comma list; without a run.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the predictions; by default the target's 16-bit type.")
    ] = None,
    model_dim: Annotated[int, typer.Option(min=64, help="D of the predictions.")] = 1024,
    launch: Annotated[
        str, typer.Option(help="Of the predictions: eager (the host dispatches), graph, or none.")
    ] = "eager",
    batch: Annotated[int, typer.Option(min=1, help="b of the predictions.")] = 1,
    title: Annotated[str | None, typer.Option(help="Of the page.")] = None,
) -> None:
    """Write one self-contained page: the answer, interactive maps, crossovers, agreement,
    environment, data.

    Example: flurka-bench report results/layer-cpu --out layer.html

    Example: flurka-bench report --hardware h200,b200,l40s --out gpus.html
    """
    from flurka_bench.report.content import collect

    if bool(run) == bool(hardware):
        raise RequestError(
            "report takes one or several run folders, or --hardware for predictions without a run; not both, not neither"
        )
    title = None if title is None else one_line(title)
    target = out or ((run[0] / "report.html") if run else Path("report.html"))
    if target.suffix not in FORMATS:
        raise RequestError(f"--out must end in {', '.join(FORMATS)}, got {str(target)!r}")
    if run:
        from flurka_bench.results import read_run, to_frame

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
        from flurka_bench.analysis.predicted import predicted_frame
        from flurka_bench.cli.targets import load_targets

        targets = load_targets(str(hardware))
        if model_dim % 64:
            raise RequestError(
                f"--model-dim must be a multiple of the head_dim 64, got {model_dim}"
            )
        about = [
            {"hardware": profile.title, "calibrated": profile.is_calibrated}
            | {
                key: f"{figure.value:.12g} {figure.unit} ({figure.source})"
                for key, figure in (profile.datasheet | profile.peaks).items()
            }
            for profile in targets
        ]
        names = ", ".join(profile.title for profile in targets)
        frame = predicted_frame(targets, dtype, launch, model_dim=model_dim, batch=batch)
        about = [{**each, "launch": launch} for each in about]
        content = collect(frame, about, title or f"Predictions for {names}")
    make_folder(target.parent)
    # A link that lies in a run folder, which may be a stranger's, leads nowhere.
    write_atomically(target, _rendered(content, target.suffix), follow_links=out is not None)
    print(target)


def _rendered(content: "Content", suffix: str) -> bytes | str:
    if suffix == ".pdf":
        from flurka_bench.report.pdf import pdf

        return pdf(content)
    from flurka_bench.report.markdown import markdown
    from flurka_bench.report.page import page

    return page(content) if suffix == ".html" else markdown(content)
