"""TOML as people write it: parsed, or an error with the line and the column."""

import tomllib
from typing import Any

from flurka_bench.errors import RequestError

_AT_END = "(at end of document)"  # all that tomllib says where a bracket or a quote is never closed


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The file's tables. RequestError, beginning with ``what``, says where the text stops being
    TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.rstrip().splitlines() or [""]
        message = str(error).replace(
            _AT_END, f"(at line {len(lines)}, column {len(lines[-1]) + 1}, the end of the file)"
        )
    except (
        ValueError,
        RecursionError,
    ) as error:  # an integer of thousands of digits, arrays nested too deeply
        message = f"{type(error).__name__}: {error}"
    raise RequestError(f"{what} is not valid TOML: {message}")
