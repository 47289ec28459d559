"""Blocks as lines of letters of one width, for terminals, pipes and log files."""

import re
from collections.abc import Iterable, Sequence
from textwrap import wrap

from flurka_bench.words.blocks import Block, Column, Figure, Heading, Table, Text
from flurka_bench.words.text import legible, one_line

WIDTH = 80  # of a line, where nobody says that there is more room
GAP = 2  # blanks between columns


def _broken(text: str, width: int, indent: str = "") -> list[str]:
    """The lines of a text, broken at blanks alone: a path stays whole, and so do ``k = 64`` and a
    short bracket."""
    kept = re.sub(r" = (?=\S)", "\xa0=\xa0", text)
    kept = re.sub(r"\([^()]{1,22}\)", lambda found: found[0].replace(" ", "\xa0"), kept)
    lines = wrap(
        kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\xa0", " ") for line in lines] or [""]


def sentence(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    """The lines of a text, no longer than ``width`` where its words are not."""
    return [line for part in legible(text).split("\n") for line in _broken(part, width, indent)]


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The width of each column: its longest cell; less where the table would be wider than
    ``width`` and words allow to wrap, titles first, then the widest column."""
    titles = [_longest([column.title]) for column in columns]
    cells = [_longest([row[place] for row in rows]) for place in range(len(columns))]
    wide = [max(title[1], cell[1]) for title, cell in zip(titles, cells)]
    if sum(wide) + GAP * (len(wide) - 1) <= width:
        return wide
    wide = [max(title[0], cell[1]) for title, cell in zip(titles, cells)]
    least = [
        max(title[0], cell[1 if column.kind == "number" else 0])
        for column, title, cell in zip(columns, titles, cells)
    ]
    while sum(wide) + GAP * (len(wide) - 1) > width:
        spare = [place for place in range(len(wide)) if wide[place] > least[place]]
        if not spare:
            break
        wide[max(spare, key=lambda place: wide[place])] -= 1
    return wide


def _longest(texts: Sequence[str]) -> tuple[int, int]:
    """The longest part that stays whole, and the longest text."""
    parts = [part for text in texts for part in _broken(text, 1)]
    return max(map(len, parts), default=0), max(map(len, texts), default=0)


def _row(cells: list[str], widths: list[int]) -> list[str]:
    parts = [_broken(cell, max(size, 1)) for cell, size in zip(cells, widths)]
    lines = []
    for line in range(max(map(len, parts))):
        shown = [part[line] if line < len(part) else "" for part in parts]
        lines.append(
            (" " * GAP).join(cell.ljust(size) for cell, size in zip(shown, widths)).rstrip()
        )
    return lines


def _takes(columns: list[Column], rows: list[list[str]]) -> int:
    return (
        sum(
            max(len(column.title), *(len(row[place]) for row in rows), 0) + GAP
            for place, column in enumerate(columns)
        )
        - GAP
    )


def shown_columns(found: Table, width: int | None) -> list[int]:
    """The columns that a table keeps: where it is wider than ``width``, the extra ones go, the
    last first."""
    kept = list(range(len(found.columns)))
    extra = [place for place in kept if found.columns[place].extra]
    while width is not None and extra:
        rows = [[row[place] for place in kept] for row in found.rows]
        if _takes([found.columns[place] for place in kept], rows) <= width:
            break
        kept.remove(extra.pop())
    return kept


def table_lines(found: Table, width: int | None = WIDTH) -> list[str]:
    """A table as lines, aligned; None shows every column, unwrapped."""
    kept = shown_columns(found, width)
    columns = tuple(found.columns[place] for place in kept)
    rows = [[one_line(row[place]) for place in kept] for row in found.rows]
    widths = _widths(columns, rows, width if width is not None else 10**6)
    lines = [found.caption] if found.caption else []
    lines += _row([column.title for column in columns], widths)
    lines.append((" " * GAP).join("-" * size for size in widths))
    return lines + [line for row in rows for line in _row(row, widths)]


def plain(blocks: Iterable[Block], width: int | None = WIDTH) -> str:
    """The blocks as text; pictures are left out."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Heading(text=text):
                lines += ["", *sentence(text, width or WIDTH)]
            case Text(text=text):
                lines += sentence(text, width or WIDTH)
            case Table():
                lines += ["", *table_lines(block, width)]
            case Figure():
                continue
    return "\n".join(lines)
