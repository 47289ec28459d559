"""What an answer is made of before it is shown: headings, sentences, tables and pictures.

Whoever knows the answer builds a list of blocks; one small renderer a form (terminal, Markdown,
HTML, PDF) shows any such list.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading; ``level`` 1 is the title of the whole."""

    text: str
    level: int = 2


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``kind``: ``plain``, ``soft`` (a remark), ``warning`` or ``badge`` (what
    concerns everything that follows)."""

    text: str
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's title. ``kind``: ``number``, ``word`` or ``long`` (text that wraps); a column
    that is ``extra`` gives way where the table is wider than the reader's lines."""

    title: str
    kind: str = "number"
    extra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells of text under columns. ``caption`` stands over it; a ``folded`` one is closed at
    first where the form can do that."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A picture: ``draw`` makes it (a matplotlib figure) where the form shows pictures."""

    caption: str
    draw: Callable[[], Any]


Block = Heading | Text | Table | Figure


def table(
    columns: Iterable[str | Column],
    rows: Iterable[Sequence[object]],
    caption: str = "",
    *,
    folded: bool = False,
) -> Table:
    """A table from anything that can be written. A title alone makes a column of numbers where
    every cell begins like one, else of words."""
    cells = tuple(tuple(str(cell) for cell in row) for row in rows)
    named = tuple(
        title
        if isinstance(title, Column)
        else Column(title, "number" if all(_counts(row[place]) for row in cells) else "word")
        for place, title in enumerate(columns)
    )
    return Table(columns=named, rows=cells, caption=caption, folded=folded)


def _counts(cell: str) -> bool:
    return not cell or cell.lstrip("+-−")[:1].isdigit() or cell == "n/a"
