"""TOML as people write it: parsed, or an error with the line and the column; and tables read with
their types, ranges and choices."""

import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flurka_bench.words.errors import RequestError, short, unknown
from flurka_bench.words.sizes import LARGEST_SIZE
from flurka_bench.words.units import parse_size

_AT_END = "(at end of document)"  # all that tomllib says where a bracket or a quote is never closed
MAX_BYTES = 4_000_000  # of a file; the longest shipped one has 15,000
LONGEST_RANGE = 10_000
_REQUIRED: Final = object()


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
    except (ValueError, RecursionError) as error:  # thousands of digits, arrays nested too deeply
        message = f"{type(error).__name__}: {error}"
    raise RequestError(f"{what} is not valid TOML: {message}")


class Reader:
    """One table of a TOML file, read key by key.

    Every method takes a key, returns its value checked, and raises RequestError for another value.
    Errors name the key, with ``label`` in front of it, say what is accepted and show what was got.
    ``where`` is the table as the file writes it, like ``[axes]``. A default is returned as it is
    where the key is missing; a key without a default must be there.
    """

    def __init__(self, table: Mapping[str, Any], where: str = "", *, label: str = "") -> None:
        self.table, self.where, self.label = table, where, label

    def __contains__(self, key: str) -> bool:
        return key in self.table

    def only(self, accepted: Iterable[str], noun: str = "key") -> "Reader":
        """The reader itself, where the table has no other key. ``noun`` is what a key is called."""
        accepted = tuple(accepted)
        for key in self.table:
            if key not in accepted:
                raise unknown(f"{noun} in {self.where}" if self.where else noun, key, accepted)
        return self

    def values(self, key: str, default: Any = _REQUIRED) -> list[Any]:
        """A list as it is, anything else as a list of one. An empty list is an error."""
        value = self._get(key, default)
        found = list(value) if isinstance(value, list) else [value]
        if not found:
            raise RequestError(f"{self.label}{key} has no values")
        return found

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A text."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, "must be a text", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, least: float, most: float) -> float:
        """A number from ``least`` to ``most``."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, f"must be a number from {least:g} to {most:g}", value)
        if not least <= value <= most:
            raise self._wrong(key, f"must be a number from {least:g} to {most:g}", value)
        return value

    def count(
        self, key: str, default: Any = _REQUIRED, *, least: int = 1, most: int = LARGEST_SIZE
    ) -> int:
        """A whole number from ``least`` to ``most``; sizes may be texts (``"16k"`` is 16384)."""
        return self._count(key, self._get(key, default), least, most)

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        """true or false."""
        return self._flag(key, self._get(key, default))

    def choice(self, key: str, accepted: Iterable[str], default: Any = _REQUIRED) -> str:
        """One of a few names."""
        return self._choice(key, self._get(key, default), accepted)

    def counts(self, key: str, default: Any = _REQUIRED, *, least: int = 1) -> list[int]:
        """Whole numbers: one, a list, or a range ``{from, to, factor}`` or ``{from, to, num}``."""
        value = self._get(key, default)
        if isinstance(value, dict):
            return Reader(value, f"the range of {key}", label=f"{self.label}{key}: ")._range(value)
        found = self.values(key, default)
        return [self._count(key, each, least, LARGEST_SIZE) for each in found]

    def flags(self, key: str, default: Any = _REQUIRED) -> list[bool]:
        """true and false: one or a list."""
        return [self._flag(key, value) for value in self.values(key, default)]

    def choices(self, key: str, accepted: Iterable[str], default: Any = _REQUIRED) -> list[str]:
        """Some of a few names: one or a list."""
        accepted = tuple(accepted)
        return [self._choice(key, value, accepted) for value in self.values(key, default)]

    def texts(self, key: str) -> list[str]:
        """A list of texts; a missing key is an empty list."""
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(key, "must be a list of texts", value)
        return value

    def reader(self, key: str) -> "Reader":
        """A table's own reader; a missing key is an empty table."""
        value = self.table.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, "must be a table", value)
        return Reader(value, f"[{key}]")

    def readers(self, key: str) -> "list[Reader]":
        """A reader for each of a list of tables; a missing key is an empty list."""
        value = self.table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise self._wrong(key, "must be a list of tables", value)
        return [Reader(each, f"[[{key}]]") for each in value]

    def over(self, general: "Reader") -> "Reader":
        """This table laid over another, key by key."""
        return Reader({**general.table, **self.table}, self.where, label=self.label)

    def _get(self, key: str, default: Any) -> Any:
        value = self.table.get(key, default)
        if value is _REQUIRED:
            raise RequestError(f"{self.where or 'the file'} needs {self.label}{key}")
        return value

    def _wrong(self, key: str, what: str, value: Any) -> RequestError:
        return RequestError(f"{self.label}{key} {what}, got {short(value)}")

    def _count(self, key: str, value: Any, least: int, most: int) -> int:
        size = parse_size(value, f"{self.label}{key}") if isinstance(value, str) else value
        if isinstance(size, bool) or not isinstance(size, int) or not least <= size <= most:
            end = "2^40" if most == LARGEST_SIZE else most
            raise self._wrong(key, f"must be a whole number from {least} to {end}", value)
        return size

    def _flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._wrong(key, "must be true or false", value)
        return value

    def _choice(self, key: str, value: Any, accepted: Iterable[str]) -> str:
        accepted = tuple(accepted)
        if value not in accepted:
            raise unknown(key, value, accepted)
        return str(value)

    def _range(self, table: dict[str, Any]) -> list[int]:
        """Sizes from ``from`` to at most ``to``, rounded, each once."""
        self.only(("from", "to", "factor", "num"))
        if not {"from", "to"} <= table.keys() or ("factor" in table) == ("num" in table):
            raise RequestError(
                f"{self.label}a range is {{from, to, factor}} or {{from, to, num}},"
                f" got {short(table)}"
            )
        first, last = self.count("from"), self.count("to")
        if last < first:
            raise RequestError(f"{self.label}'to' must be at least 'from', got {short(table)}")
        if "num" in table:
            num = self.count("num", least=2, most=LONGEST_RANGE)
            values = [round(first * (last / first) ** (step / (num - 1))) for step in range(num)]
        else:
            factor = self.number("factor", least=1.001, most=LARGEST_SIZE)
            steps = math.floor(math.log(last / first) / math.log(factor) + 1e-9)
            values = [round(first * factor**step) for step in range(steps + 1)]
        return list(dict.fromkeys(values))
