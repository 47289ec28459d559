"""CSV files that somebody else wrote, as cells of text with their place.

Each fault is one line with the file, the line, the column, what was expected and what was got.
"""

import csv
import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from flurka_bench.hardware.profile import Profile
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import LARGEST_SIZE

MAX_ROWS = 1_000_000
MAX_LINE = 100_000  # characters; a file without line ends is never read whole
MAX_CELL = 1000  # the longest kernel names have some hundred
# Of one call: what is shorter than a clock tick or longer than eleven days was no call of an
# operator.
LATENCY_MS = (1e-6, 1e9)

# Nothing but ASCII: int() and float() also take digits of other scripts and underscores. Tables
# with holes are often written with sizes as 128.0.
_WHOLE = re.compile(r"([0-9]{1,15})(?:\.0+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells under a header; ``lines`` holds the number of the line in the file on which
    each row begins."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """The cells under a name of the header."""
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    @property
    def devices(self) -> list[str]:
        """The device of each row; empty text where the file names none."""
        return self.column("device") if "device" in self.header else [""] * len(self.rows)

    def wrong(self, row: int, name: str, expected: str, got: str) -> RequestError:
        """The error for a cell, by its row's place in ``rows``."""
        return RequestError(
            f"{self.path}, line {self.lines[row]}, column {name}: expected {expected}, got"
            f" {_short(got)}"
        )

    def size(self, row: int, name: str, text: str) -> int:
        """A size of a shape. RequestError unless it is a whole number of ASCII digits in range."""
        found = _WHOLE.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= LARGEST_SIZE:
            raise self.wrong(row, name, "a whole number from 1 to 2^40", text)
        return int(found[1])

    def seconds(self, row: int, name: str, text: str) -> float:
        """Seconds of a latency in milliseconds. RequestError unless it is a number in range."""
        low, high = LATENCY_MS
        value = float(text) if len(text) <= 100 and _NUMBER.fullmatch(text) else math.nan
        if not low <= value <= high:
            raise self.wrong(row, name, f"milliseconds from {low:g} to {high:g}", text)
        return value * 1e-3


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _listed(header: list[str]) -> str:
    """The names of a header, as an error shows them."""
    shown = [name if name.isprintable() and name else repr(name) for name in header[:40]]
    names = ", ".join(name[:40] for name in shown) + (", ..." if len(header) > 40 else "")
    return names or "none"


def read_table(path: str | Path) -> Table:
    """A CSV file, gzipped where its name ends in .gz; UTF-8, with or without a byte order mark.

    Raises:
        RequestError: the file cannot be read, is damaged or no text, has no rows, a header with a
            name twice, or a row of another length than its header.
    """
    path = Path(path)
    rows: list[list[str]] = []
    lines: list[int] = []
    number = 0
    try:
        with closing(_open(path)) as stream:
            reader = csv.reader(_text_lines(path, stream), strict=True)
            for row in reader:
                first, number = number + 1, reader.line_num
                if not row:
                    continue
                if any(len(cell) > MAX_CELL for cell in row):
                    raise RequestError(
                        f"{path}, line {first}: expected cells of at most {MAX_CELL} characters,"
                        f" got one of {max(map(len, row))}"
                    )
                if rows and len(row) != len(rows[0]):
                    raise RequestError(
                        f"{path}, line {first}: expected {len(rows[0])} columns as in the header,"
                        f" got {len(row)}"
                    )
                if len(rows) > MAX_ROWS:
                    raise RequestError(f"{path} has more than {MAX_ROWS} rows")
                rows.append(row)
                lines.append(first)
    except csv.Error as error:
        raise RequestError(f"{path}, line {number + 1}: no CSV: {error}") from None
    except EOFError:
        raise RequestError(f"cannot read {path}: the gzipped file is cut short") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise RequestError(f"cannot read {path}: no whole gzipped file: {error}") from None
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}") from None
    if len(rows) < 2:
        found = f" below its header ({_listed(rows[0])})" if rows else ": it is empty"
        raise RequestError(f"{path} has no rows{found}")
    header = rows[0]
    for place, name in enumerate(header):
        if name in header[:place]:
            raise RequestError(
                f"{path}, line {lines[0]}: expected every column once, got {_short(name)} as"
                f" columns {header.index(name) + 1} and {place + 1}"
            )
    return Table(path=path, header=header, rows=rows[1:], lines=lines[1:])


def of_device(profile: Profile, devices: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Mask of the rows to take: this device's where any is named so, all where one other device or
    none is; and that other device.

    Raises:
        RequestError: several devices, and none of them this one.
    """
    own = {profile.name, *profile.aliases, *profile.device_names}
    mine = np.array([device in own for device in devices])
    found = sorted(set(devices))
    if mine.any():
        return mine, None
    if len(found) > 1:
        shown = ", ".join(repr(name[:60]) for name in found[:20])
        raise RequestError(
            f"no row is of {profile.name!r}; the rows are of {shown} (choose one with --hardware)"
        )
    return np.ones(len(devices), dtype=bool), found[0] or None


def lacks(table: Table, names: str) -> RequestError:
    """The error for a table that lacks ``names`` (in words)."""
    return RequestError(f"{table.path} lacks {names}; it has {_listed(table.header)}")


def _open(path: Path) -> IO[str]:
    """The text, with what is no UTF-8 escaped so that a line number can be given for it."""
    binary = gzip.GzipFile(path) if path.suffix == ".gz" else io.FileIO(path)
    return io.TextIOWrapper(
        io.BufferedReader(binary), encoding="utf-8-sig", errors="surrogateescape"
    )


def _text_lines(path: Path, stream: IO[str]) -> Iterator[str]:
    """The lines, each checked to be text and of bounded length."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise RequestError(f"{path}, line {number}: a line of more than {MAX_LINE} characters")
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - 0xDC00
                packed = " (a gzipped file? its name must end in .gz)" if number == 1 else ""
                raise RequestError(
                    f"{path}, line {number}, character {error.start + 1}: expected UTF-8 text, got"
                    f" the byte 0x{byte:02x}{packed}"
                ) from None
        if "\0" in line:
            raise RequestError(
                f"{path}, line {number}: expected text, got a zero byte (save it as UTF-8)"
            )
        yield line
