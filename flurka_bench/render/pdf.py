"""Blocks as PDF: headings, sentences and tables as text, then the pictures."""

from collections.abc import Sequence
from io import BytesIO
from textwrap import wrap

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure as Drawn

from flurka_bench.render.figures import style
from flurka_bench.words.blocks import Block, Figure, Heading, Table, Text

LINES = 48  # of text that fit on one page
_SIZES = {"title": 13, "head": 8.5, "text": 8.5, "table": 6.2}  # of letters, by kind of line
_COLUMNS = {"title": 78, "head": 118, "text": 118}  # letters that fit on a line
_BEFORE = {"warning": "! "}

Line = tuple[str, str]  # its kind, a key of _SIZES, and its text


def _lines(block: Block) -> list[Line]:
    match block:
        case Heading(text=text, level=level):
            return [("title", text)] if level == 1 else [("text", ""), ("head", text)]
        case Text(text=text, kind=kind):
            told = f"{_BEFORE.get(kind, '')}{text}"
            return [("head" if kind == "badge" else "text", told)]
        case Table(caption=caption):
            return [("text", ""), *([("head", caption)] if caption else []), *_rows(block)]
        case Figure():
            return []


def _rows(found: Table) -> list[Line]:
    """A table as lines of letters of one width, or where a column is long as a sentence a row;
    what a first column says in brackets is left out."""
    titles = [column.title for column in found.columns]
    if any(column.kind == "long" for column in found.columns):
        return [
            ("text", "; ".join(f"{title} {cell}" for title, cell in zip(titles, row)))
            for row in found.rows
        ]
    cells = [[row[0].partition(" (")[0], *row[1:]] for row in (titles, *found.rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    pads = [str.ljust if column.kind == "word" else str.rjust for column in found.columns]
    return [
        ("table", "  ".join(pad(text, width) for pad, text, width in zip(pads, row, widths)))
        for row in cells
    ]


def _text_pages(blocks: Sequence[Block]) -> list[Drawn]:
    lines = [
        (kind, part)
        for block in blocks
        for kind, text in _lines(block)
        for part in (
            wrap(text, _COLUMNS[kind], subsequent_indent="    ") or [""]
            if kind in _COLUMNS
            else [text]
        )
    ]
    pages = []
    for start in range(0, len(lines), LINES):
        fig = style.figure(8.27, 11.69)
        for line, (kind, text) in enumerate(lines[start : start + LINES]):
            fig.text(
                0.07,
                0.95 - 0.0185 * line,
                style.plain(text),
                fontsize=_SIZES[kind],
                family="DejaVu Sans Mono" if kind == "table" else "DejaVu Sans",
                fontweight="bold" if kind in ("title", "head") else "normal",
            )
        pages.append(fig)
    return pages


def pdf(blocks: Sequence[Block]) -> bytes:
    """The blocks as one PDF."""
    titles = [block.text for block in blocks if isinstance(block, Heading) and block.level == 1]
    drawn = [block.draw() for block in blocks if isinstance(block, Figure)]
    file = BytesIO()
    metadata = {"Title": titles[0] if titles else None, "CreationDate": None}
    with PdfPages(file, metadata=metadata) as pages:
        for fig in [*_text_pages(blocks), *drawn]:
            style.make_legible(fig)
            pages.savefig(fig)
    return file.getvalue()
