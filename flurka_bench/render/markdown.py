"""The report as Markdown: the answer, crossovers and agreement, for a README or an issue."""

from collections.abc import Sequence

from flurka_bench.answers.agreement import tables
from flurka_bench.answers.answer import in_words
from flurka_bench.answers.crossover import in_words as crossing_words
from flurka_bench.answers.words import SHAPE, knobs, sizes
from flurka_bench.render.content import Content
from flurka_bench.render.page import (
    ANSWER_HEAD,
    answer_row,
    empty_words,
    fastest_words,
    interval_words,
    slices,
    subtitle,
)
from flurka_bench.words.text import legible

MAX_CROSSINGS = 40
SIZES = {"num_heads": "h", "head_dim": "d", "seq_len": "N"}


def _safe(text: object) -> str:
    """Text that is neither a table's column nor HTML nor Markdown."""
    plain = legible(" ".join(str(text).split()))  # a Markdown text is read in terminals too
    return "".join(
        f"\\{letter}"
        if letter in "\\`*_[]|#"
        else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(letter, letter)
        for letter in plain
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(_safe(cell) if line is not lines[1] else cell for cell in line) + " |"
            for line in lines
        )
        + "\n"
    )


def markdown(content: Content) -> str:
    """The whole summary."""
    parts = [f"# {_safe(content.title)}\n", _safe(subtitle(content)) + "\n"]
    if content.predicted_only:
        parts.append("**Predictions only: nothing here was measured.**\n")
    parts += [f"> {_safe(warning)}\n" for warning in content.warnings]
    if content.left_out:
        parts.append(
            f"> {content.left_out} records beyond the report's limit are left out, the smallest maps first.\n"
        )
    if content.answer.empty:
        parts.append(_safe(empty_words(content)) + "\n")
    for key, part in slices(content.answer):
        rows = part.to_dict("records")
        parts += [
            f"## {_safe(' · '.join(map(str, key)))}\n",
            _safe(" ".join([*in_words(rows[0]), fastest_words(content, key)])) + "\n",
        ]
        parts.append(table(ANSWER_HEAD, [answer_row(row) for row in rows]))
    if not content.answer.empty:
        parts.append(_safe(interval_words(content)) + "\n")
    crossings = content.crossings[content.crossings["baseline"] == "best-other"]
    sides = [side for side in ("", "predicted_") if crossings[f"{side}wins"].notna().any()]
    if len(crossings):
        parts.append(f"## Crossovers: where {content.subject} beats the best of all others\n")
        head = (
            "axis",
            "device",
            "level, pass, dtype",
            "at",
            *("predicted: wins" if side else "measured: wins" for side in sides),
        )
        rows = []
        for row in crossings.head(MAX_CROSSINGS).to_dict("records"):
            at = ", ".join([*sizes(row, SHAPE[1:]), *knobs(row)])
            place = f"{row['level']} {row['pass']} {row['dtype']}"
            rows.append(
                [
                    row["axis"],
                    row["device"],
                    place,
                    at,
                    *(crossing_words(row, side) for side in sides),
                ]
            )
        parts.append(table(head, rows))
        if len(crossings) > MAX_CROSSINGS:
            parts.append(f"{len(crossings) - MAX_CROSSINGS} more are in the page (.html).\n")
    if len(content.agreement.times):
        parts.append("## Agreement of prediction and measurement\n")
        for title, head, rows, _ in tables(content.agreement):
            parts += [f"### {_safe(title)}\n", table(head, rows)]
    return "\n".join(parts)
