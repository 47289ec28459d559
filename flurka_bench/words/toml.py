"""TOML as people write it: parsed, or an error with the line and the column."""

import tomllib
from pathlib import Path
from typing import Any

from flurka_bench.words.errors import RequestError

_AT_END = "(at end of document)"  # all that tomllib says where a bracket or a quote is never closed


MAX_BYTES = 4_000_000  # of a file; the longest shipped one has 15,000


def read_text(path: Path, what: str) -> str:
    """The text of a small UTF-8 file, without a byte order mark. RequestError, beginning with
    ``cannot read`` and ``what``, where there is none."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise RequestError(f"cannot read {what} {str(path)!r}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise RequestError(f"cannot read {what} {str(path)!r}: it has more than {MAX_BYTES} bytes")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise RequestError(
            f"cannot read {what} {str(path)!r}: it must be UTF-8 text, got the byte"
            f" 0x{data[error.start]:02x} at line {line}, column {column} (save it as UTF-8)"
        ) from None


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """The file's tables. RequestError, beginning with ``what``, says where the text stops being
    TOML."""
    text = text.removeprefix("\ufeff")  # a byte order mark, as some editors put before UTF-8
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
