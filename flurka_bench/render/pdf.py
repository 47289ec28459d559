"""The report as PDF: the answers and the agreement as text, then the pictures."""

from collections.abc import Sequence
from io import BytesIO
from textwrap import wrap

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from flurka_bench.answers.agreement import tables
from flurka_bench.answers.answer import in_words
from flurka_bench.render.content import Content
from flurka_bench.render.figures import (
    curves,
    heatmap,
    model,
    style,
    tradeoff,
)
from flurka_bench.render.page import (
    ANSWER_HEAD,
    answer_row,
    empty_words,
    fastest_words,
    interval_words,
    slices,
    subtitle,
)

LINES = 48  # of text that fit on one page
MAX_MAPS = 6  # over the best of all others; over each other strong baseline the middle one
_SIZES = {"title": 13, "head": 8.5, "text": 8.5, "table": 6.2}  # of letters, by kind of line


def _text_pages(content: Content) -> list[Figure]:
    lines = [("title", content.title), ("text", subtitle(content))]
    if content.predicted_only:
        lines.append(("head", "Predictions only: nothing here was measured."))
    lines += [("text", f"! {warning}") for warning in content.warnings]
    if content.answer.empty:
        lines.append(("text", empty_words(content)))
    for key, part in slices(content.answer):
        rows = part.to_dict("records")
        lines += [("text", ""), ("head", " · ".join(map(str, key)))]
        lines.append(("text", " ".join([*in_words(rows[0]), fastest_words(content, key)])))
        lines += _columns(ANSWER_HEAD, [answer_row(row) for row in rows])
    if not content.answer.empty:
        lines += [("text", ""), ("text", interval_words(content))]
    for title, head, rows, long in tables(content.agreement):
        lines += [("text", ""), ("head", title)]
        if long:
            told = ("{}, {}: measured {}, predicted {}: {}".format(*row) for row in rows)
            lines += [("text", line) for line in told]
        else:
            lines += _columns(head, rows)
    wrapped = [(kind, part) for kind, text in lines for part in _wrap(kind, text)]
    pages = []
    for start in range(0, len(wrapped), LINES):
        fig = style.figure(8.27, 11.69)
        for line, (kind, text) in enumerate(wrapped[start : start + LINES]):
            family, weight = (
                "DejaVu Sans Mono" if kind == "table" else "DejaVu Sans",
                "bold" if kind in ("title", "head") else "normal",
            )
            place = (0.07, 0.95 - 0.0185 * line)
            fig.text(
                *place,
                style.plain(text),
                fontsize=_SIZES[kind],
                family=family,
                fontweight=weight,
            )
        pages.append(fig)
    return pages


def _wrap(kind: str, text: str) -> list[str]:
    return (
        [text]
        if kind == "table"
        else wrap(text, 78 if kind == "title" else 118, subsequent_indent="    ") or [""]
    )


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """A table as lines of letters of one width; what a first column says in brackets is left
    out."""
    cells = [
        [text.partition(" (")[0] if column == 0 else text for column, text in enumerate(row)]
        for row in (head, *rows)
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    pads = [str.ljust, *[str.rjust] * (len(head) - 1)]
    return [
        ("table", "  ".join(pad(text, width) for pad, text, width in zip(pads, row, widths)))
        for row in cells
    ]


def pdf(content: Content) -> bytes:
    """The answers and the main pictures as one PDF."""
    first = content.views.get(content.subject, {})
    figures = _text_pages(content)
    for name in ("best-other", "strong-low-rank", "strong-kernel"):
        cells = first.get(name)
        if cells is not None and len(cells):
            axes = heatmap.map_axes(cells)
            count = len(heatmap.grids(cells, *axes))
            shown = range(min(count, MAX_MAPS)) if name == "best-other" else (count // 2,)
            figures += [heatmap.heat_map(cells, *axes, which=which) for which in shown]
    if not content.answer.empty:
        figures += [curves.scaling_curves(content.records), tradeoff.memory(content.records)]
        if len(content.agreement.times):
            figures += [
                model.predicted_against_measured(content.records),
                model.error_map(content.records),
            ]
    file = BytesIO()
    with PdfPages(file, metadata={"Title": content.title, "CreationDate": None}) as pages:
        for fig in figures:
            style.make_legible(fig)
            pages.savefig(fig)
    return file.getvalue()
