"""The self-contained HTML page: a template, its blocks, its data, the vendored plotting library.
All text from files is escaped."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from flurka_bench.render import content as said
from flurka_bench.render.content import Content
from flurka_bench.render.payload import (
    MAX_EXACT_SAMPLES,
    embed,
    payload,
)
from flurka_bench.words.blocks import Block, Column, Figure, Heading, Table, Text, table

_ASSETS = files("flurka_bench.render")
NUM_SLICES = 12  # slices (device, level, pass, dtype) answered in full sentences; the map holds all


def page(content: Content) -> str:
    """The whole page as text."""
    agreement = said.agreement_blocks(content) or [Text(_NO_AGREEMENT)]
    parts = {
        "title": escape(content.title),
        "css": (_ASSETS / "page.css").read_text("utf-8"),
        "head": html(said.head(content)),
        "answer": html([*said.answer_blocks(content, NUM_SLICES), *said.failures(content)]),
        "warnings": html(said.warnings(content)),
        "agreement": html(agreement),
        "brackets": escape(said.brackets(content)),
        "environment": html(_environment(content.runs)),
        "data": html([Text(_data(content))]),
        "payload": embed(payload(content)),
        "plotly": (_ASSETS / "vendor" / "plotly-cartesian.min.js").read_text("utf-8"),
        "script": (_ASSETS / "page.js").read_text("utf-8"),
    }
    template = (_ASSETS / "page.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], template)


_NO_AGREEMENT = (
    "There is nothing to compare: no case here has both a measured and a predicted time."
)


def html(blocks: Iterable[Block]) -> str:
    """The blocks as HTML, escaped; pictures are left out, for the page's script draws maps."""
    return "".join(map(_element, blocks))


def _element(block: Block) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text=text, kind=kind):
            return f"<p{'' if kind == 'plain' else f' class={kind}'}>{escape(text)}</p>"
        case Table(caption="", folded=False):
            return _table(block)
        case Table(caption=caption, folded=folded):
            opened = "" if folded else " open"
            inner = f"<summary>{escape(caption)}</summary>{_table(block)}"
            return f"<details{opened}>{inner}</details>"
        case Figure():
            return ""


def _table(found: Table) -> str:
    classes = ["" if column.kind == "number" else column.kind for column in found.columns]

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{f' class={name}' if name else ''}>{escape(cell)}</{tag}>"
            for name, cell in zip(classes, cells)
        )

    rows = [line("th", [column.title for column in found.columns])]
    if classes and classes[0] == "word":
        classes[0] = "name"  # of a line: it may wrap
    rows += [line("td", row) for row in found.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="scroll"><table>{body}</table></div>'


def _environment(runs: Sequence[Mapping[str, Any]]) -> list[Block]:
    found: list[Block] = []
    for run in runs:
        name = str(run.get("suite", {}).get("name") or run.get("hardware", "run"))
        rows = list(flatten(run))  # with the suite's text, so that a page says all of its run
        columns = (Column("", "word"), Column("", "long"))
        found.append(table(columns, rows, name, folded=True))
    return found or [Text("No environment was recorded.")]


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as (dotted key, text) pairs."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{prefix}{key}", text


def _data(content: Content) -> str:
    count = sum(len(samples) for samples in content.records["samples_s"] if samples is not None)
    note = " Samples are rounded to six significant digits." if count > MAX_EXACT_SAMPLES else ""
    return f"{len(content.records)} records, one per case, with all their samples.{note}"
