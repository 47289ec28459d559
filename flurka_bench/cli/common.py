"""What several verbs share: parsing of comma lists, JSON output, tables."""

import json
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from flurka_bench.cli.streams import terminal
from flurka_bench.render.plain import (
    WIDTH,
    sentence,
    shown_columns,
    table_lines,
)
from flurka_bench.words.blocks import Column, table
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.sizes import (
    DTYPES,
    LARGEST_SIZE,
    dtype_name,
)
from flurka_bench.words.text import (
    json_text,
    legible,
    one_line,
)
from flurka_bench.words.units import (
    SIZE_FORM,
    parse_size,
)

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

# What the help of options says of the words they take.
SIZES_HELP = f"k = 1024: {SIZE_FORM}."
DTYPES_HELP = "float32 (fp32, float), bfloat16 (bf16), float16 (fp16, half), float64 (double)"
DEVICE_HELP = "auto, cpu, cuda (or gpu) or cuda:N."
SECONDS_HELP = "a number with a unit: ns, us, ms, s, min or h"
BYTES_HELP = "a number with a unit: B, kB, MB, GB, TB, or KiB to TiB"


def comma_list(text: str, convert: Callable[[str], T], option: str) -> list[T]:
    """``"128,256"`` -> [128, 256]; RequestError names the option and the entry that does not
    fit."""
    entries = [entry.strip() for entry in str(text).split(",")]
    if not all(entries):
        raise RequestError(f"{option} takes one value or a comma list without gaps, got {text!r}")
    values = []
    for entry in entries:
        try:
            values.append(convert(entry))
        except (TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{option} takes {convert.__name__} values, got {entry!r}") from None
    return values


def positive_int(option: str) -> Callable[[str], int]:
    """A converter for sizes: a whole number from 1 to 2^40 (``16k`` is 16384), or a RequestError
    that names the option."""

    def convert(text: str) -> int:
        value = parse_size(text, option)
        if value > LARGEST_SIZE:
            raise RequestError(f"{option} must be at most 2^40, got {text!r}")
        return value

    return convert


def one_of(accepted: Sequence[str], option: str) -> Callable[[str], str]:
    """A converter for names: one of ``accepted``, or a RequestError that offers the nearest."""

    def convert(text: str) -> str:
        if text not in accepted:
            raise unknown(option, text, accepted)
        return text

    return convert


def dtype_of(option: str) -> Callable[[str], str]:
    """A converter for dtypes: their names and what else they are called (``bf16``, ``half``)."""
    check = one_of(DTYPES, option)
    return lambda text: check(dtype_name(text))


def refuse_given(options: Mapping[str, Any], why: str) -> None:
    """Refuse options that were given (neither None nor False) though nothing would read them.

    ``why`` goes on after "does not apply", as in " to --flops: ...".
    """
    named = [name for name, value in options.items() if value is not None and value is not False]
    if named:
        does = "does" if len(named) == 1 else "do"
        raise RequestError(f"{', '.join(named)} {does} not apply{why}")


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
