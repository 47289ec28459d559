"""Blocks as Markdown, for a README or an issue."""

from collections.abc import Iterable

from flurka_bench.words.blocks import Block, Figure, Heading, Table, Text
from flurka_bench.words.text import legible

_AROUND = {"warning": "> {}", "badge": "**{}.**"}


def _safe(text: object) -> str:
    """Text that is neither a table's column nor HTML nor Markdown."""
    plain = legible(" ".join(str(text).split()))  # a Markdown text is read in terminals too
    return "".join(
        f"\\{letter}"
        if letter in "\\`*_[]|#"
        else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(letter, letter)
        for letter in plain
    )


def _table(found: Table) -> str:
    lines = [[column.title for column in found.columns], *found.rows]
    head, *rows = ["| " + " | ".join(map(_safe, line)) + " |" for line in lines]
    rule = "| " + " | ".join(["---"] * len(found.columns)) + " |"
    return "\n".join([head, rule, *rows])


def markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown; pictures are left out."""
    parts = []
    for block in blocks:
        match block:
            case Heading(text=text, level=level):
                parts.append(f"{'#' * level} {_safe(text)}")
            case Text(text=text, kind=kind):
                parts.append(_AROUND.get(kind, "{}").format(_safe(text)))
            case Table(caption=caption):
                parts += [f"{_safe(caption)}:"] if caption else []
                parts.append(_table(block))
            case Figure():
                continue
    return "\n\n".join(parts) + "\n"
