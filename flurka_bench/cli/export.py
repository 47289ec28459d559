"""``export``: the records of one or several runs as a table for other programs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from flurka_bench.cli import options
from flurka_bench.cli.options import FORMATS
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import write_atomically
from flurka_bench.words.text import (
    JSON,
    PLAIN,
    csv_cell,
    legible,
)
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
)

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = {
    ".csv": "csv",
    ".parquet": "parquet",
    ".json": "json",
    ".md": "markdown",
    ".markdown": "markdown",
}


def export(
    run: options.RunFolders,
    format_: Annotated[str | None, options.declared("--format")],
    out: Annotated[
        Path | None,
        options.plain(
            "--out",
            "The file to write, ending in .csv, .parquet, .json or .md [default: standard output]",
        ),
    ],
) -> None:
    """Write all records as one table; each row keeps the run and device it is from.

    CSV, Parquet and JSON hold every field; Markdown the ones a reader wants. In CSV a text that
    begins with = + - @ ' or a break has an apostrophe in front, so that no spreadsheet runs it.

    Example: flurka-bench export results/quick-cpu --format csv --out quick.csv
    """
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    format_ = _format(format_, out)
    if format_ == "parquet" and out is None:
        raise RequestError("parquet is binary: give the file to write with --out FILE.parquet")
    content = render(to_frame([read_run(folder) for folder in run]), format_)
    if out is None:
        _print(content)
        return
    write_atomically(out, content, follow_links=True)
    print(out)


def _print(content: bytes) -> None:
    """On a terminal as people read it; elsewhere the bytes that --out would write, UTF-8 whatever
    the terminal speaks."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None or sys.stdout.isatty():
        sys.stdout.write(content.decode())
        return
    sys.stdout.flush()
    buffer.write(content)
    buffer.flush()


def _format(asked: str | None, out: Path | None) -> str:
    """The format that --format and the ending of --out agree on."""
    ending = None if out is None else ENDINGS.get(out.suffix.lower())
    if asked is not None:
        if ending is not None and ending != asked:
            raise RequestError(f"--format {asked} contradicts the ending of --out {str(out)!r}")
        return asked
    if out is not None and ending is None and not out.is_dir():  # which cannot be written anyway
        raise RequestError(
            f"--out must end in {', '.join(ENDINGS)}, or give --format ({', '.join(FORMATS)});"
            f" got {str(out)!r}"
        )
    return ending or "csv"


def render(frame: "pd.DataFrame", format_: str) -> bytes:
    """A frame of records in one of ``FORMATS``. Lists and tables are nested in JSON and Parquet,
    JSON text in CSV."""
    match format_:
        case "csv":
            text = _as_text(frame).map(
                lambda cell: csv_cell(cell) if isinstance(cell, str) else cell
            )
            return str(text.to_csv(index=False, lineterminator="\n")).encode("utf-8", PLAIN)
        case "json":
            return _json(frame).encode("utf-8", JSON)
        case "markdown":
            return legible(_markdown(frame)).encode()
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise RequestError(
            "parquet needs pyarrow: pip install 'flurka-bench[parquet]', or use --format csv"
        ) from None
    # Tables (stages, stamps) have other keys in other rows: as JSON text their column has one type.
    tables = [
        name for name in frame if frame[name].map(lambda value: isinstance(value, dict)).any()
    ]
    return bytes(_as_text(frame, tables).to_parquet(None, index=False))


def _dumps(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


def _json(frame: "pd.DataFrame") -> str:
    """One list of records, null for what a record lacks; whole numbers stay whole."""
    return (
        _dumps(
            [{key: _plain(value) for key, value in row.items()} for row in frame.to_dict("records")]
        )
        + "\n"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return None
    return (
        int(value)
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        else value
    )


def _as_text(frame: "pd.DataFrame", columns: list[str] | None = None) -> "pd.DataFrame":
    frame = frame.copy()
    for name in columns if columns is not None else frame.columns:
        frame[name] = frame[name].map(
            lambda value: _dumps(value) if isinstance(value, (list, dict)) else value
        )
    if columns is None:
        whole = [name for name in frame.select_dtypes("float") if _is_whole(frame[name])]
        frame = frame.astype(dict.fromkeys(whole, "Int64"))
    return frame


def _is_whole(column: Any) -> bool:
    known = column.dropna()
    return len(known) > 0 and bool((known == known.round()).all() and (known.abs() < 2**53).all())


def _markdown(frame: "pd.DataFrame") -> str:
    """A readable table: case, device, status, time with its interval, prediction, memory."""
    from flurka_bench.words.statistics import median_interval

    lines = [
        "| case | device | status | median | interval | predicted | peak memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in frame.to_dict("records"):
        ok = row["status"] == "ok"
        _, low, high = median_interval(row["samples_s"]) if ok else (0.0, 0.0, 0.0)
        interval = f"{format_seconds(low)} to {format_seconds(high)}" if ok and low > 0 else ""
        cells = [
            f"`{row['case_id']}`",
            row["device"],
            row["status"],
            format_seconds(row["median_s"]) if ok else (row["error"] or ""),
            interval,
            format_seconds(row["predicted_s"]),
            format_bytes(row["peak_memory_bytes"]),
        ]
        lines.append(
            "| "
            + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
            + " |"
        )
    return "\n".join(lines) + "\n"
