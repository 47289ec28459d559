"""The report as PDF: a page of answers, then the pictures."""

from pathlib import Path
from textwrap import wrap

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from flurka_bench.analysis.answer import in_words
from flurka_bench.plots import curves, heatmap, model, style, tradeoff
from flurka_bench.report.content import Content
from flurka_bench.report.page import agreement_tables, answer_row, empty_words, fastest_words, slices, subtitle

_LINES = 48  # of text that fit on one page


def _text_pages(content: Content) -> list[Figure]:
    lines = [(content.title, True), (subtitle(content), False)]
    if content.predicted_only:
        lines.append(("Predictions only: nothing here was measured.", True))
    lines += [(f"! {warning}", False) for warning in content.warnings]
    if content.answer.empty:
        lines.append((empty_words(content), False))
    for key, part in slices(content.answer):
        rows = part.to_dict("records")
        lines += [
            ("", False),
            (" · ".join(map(str, key)), True),
            (" ".join([*in_words(rows[0]), fastest_words(content, key)]), False),
        ]
        for row in rows:
            label, faster, slower, same, open_, missing, median, best, at, _ = answer_row(row)
            counts = f"faster {faster}, slower {slower}, same {same}, open {open_}, no time {missing}"
            lines.append((f"  {label}: {counts}; median {median}, best {best} at {at}", False))
    if len(content.agreement.times):
        for title, head, rows, _ in agreement_tables(content)[:2]:
            lines += [("", False), (title, True)]
            lines += [("  " + ", ".join(f"{name} {value}".strip() for name, value in zip(head, row)), False) for row in rows]
    wrapped = [(part, bold) for text, bold in lines for part in (wrap(text, 108, subsequent_indent="    ") or [""])]
    pages = []
    for start in range(0, len(wrapped), _LINES):
        fig = style.figure(8.27, 11.69)
        for line, (text, bold) in enumerate(wrapped[start : start + _LINES]):
            size = 13 if start == line == 0 else 8.5
            fig.text(0.07, 0.95 - 0.0185 * line, text.replace("$", r"\$"), fontsize=size, fontweight="bold" if bold else "normal")
        pages.append(fig)
    return pages


def write_pdf(content: Content, path: Path) -> None:
    """Write the answers and the main pictures as one PDF."""
    first = content.views.get(content.subject, {})
    figures = _text_pages(content)
    for name in ("best-other", "strong-low-rank", "strong-kernel"):
        cells = first.get(name)
        if cells is not None and len(cells):
            figures.append(heatmap.heat_map(cells, *heatmap.map_axes(cells)))
    if not content.answer.empty:
        figures += [curves.scaling_curves(content.records), tradeoff.memory(content.records)]
        if len(content.agreement.times):
            figures += [model.predicted_against_measured(content.records), model.error_map(content.records)]
    with PdfPages(path, metadata={"Title": content.title, "CreationDate": None}) as pages:
        for fig in figures:
            pages.savefig(fig)
