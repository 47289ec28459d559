"""What several verbs share: JSON output and tables."""

import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from flurka_bench.cli.streams import terminal
from flurka_bench.render.plain import (
    WIDTH,
    sentence,
    shown_columns,
    table_lines,
)
from flurka_bench.words.blocks import Column, table
from flurka_bench.words.text import (
    json_text,
    legible,
    one_line,
)

if TYPE_CHECKING:
    from rich.console import Console


def note(text: str) -> None:
    """Say on stderr, where no JSON is, what a request became."""
    print(f"note: {text}", file=sys.stderr)


def _plain(value: Any) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no nan
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ndarray":
        return [_plain(entry) for entry in value]
    return value


def print_json(value: Any) -> None:
    """Print a value as strict JSON (nan and infinities become null)."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    print(json_text(text, sys.stdout.encoding))


def console(*, stderr: bool = False) -> "Console":
    """rich's console on a standard stream, for text that was made ``legible``."""
    from rich.console import Console

    return Console(file=terminal(sys.stderr if stderr else sys.stdout))


def line_width() -> int:
    """How wide a printed line may be: the terminal's width, 80 columns in a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def print_text(text: str, indent: str = "") -> None:
    """Print a sentence, wrapped at blanks to the width of a line."""
    print("\n".join(sentence(text, line_width(), indent)))


def print_table(
    headers: Sequence[str | Column],
    rows: Iterable[Sequence[object]],
    title: str = "",
    *,
    everything: bool = False,
) -> bool:
    """Print a table: with rich's lines on a terminal, as aligned plain text in a pipe.

    Where it is wider than a line, its extra columns are left out (True is returned), but not with
    ``everything``.
    """
    found = table(headers, rows, title)
    width = None if everything else line_width()
    kept = shown_columns(found, width)
    if sys.stdout.isatty():
        from rich.markup import escape
        from rich.table import Table

        drawn = Table(
            *[escape(one_line(found.columns[place].title)) for place in kept],
            title=escape(legible(title)) or None,
        )
        for row in found.rows:
            drawn.add_row(*[escape(one_line(row[place])) for place in kept])
        console().print(drawn)
    else:
        print("\n".join(table_lines(found, width)))
    return len(kept) < len(found.columns)
