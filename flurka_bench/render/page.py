"""The self-contained HTML page: a template, its data, the vendored plotting library. All text from
files is escaped."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import pandas as pd

from flurka_bench import __version__
from flurka_bench.answers import words
from flurka_bench.answers.agreement import tables
from flurka_bench.answers.answer import (
    SLICE,
    fastest_in_words,
    in_words,
)
from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.speedup import CELL
from flurka_bench.render.content import Content
from flurka_bench.render.payload import (
    MAX_EXACT_SAMPLES,
    embed,
    payload,
)
from flurka_bench.words.units import format_ratio
from flurka_bench.words.verdict import MARGIN

_ASSETS = files("flurka_bench.render")
NUM_SLICES = 12  # slices (device, level, pass, dtype) answered in full sentences; the map holds all


def page(content: Content) -> str:
    """The whole page as text."""
    parts = {
        "title": escape(content.title),
        "css": (_ASSETS / "page.css").read_text("utf-8"),
        "badge": '<p class="badge">Predictions only: nothing on this page was measured</p>'
        if content.predicted_only
        else "",
        "subtitle": escape(subtitle(content)),
        "answer": _answer(content),
        "warnings": _warnings(content),
        "agreement": _agreement(content),
        "brackets": escape(_brackets(content)),
        "environment": _environment(content.runs),
        "data": _data(content),
        "payload": embed(payload(content)),
        "plotly": (_ASSETS / "vendor" / "plotly-cartesian.min.js").read_text("utf-8"),
        "script": (_ASSETS / "page.js").read_text("utf-8"),
    }
    template = (_ASSETS / "page.html").read_text("utf-8")
    return re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], template)


def subtitle(content: Content) -> str:
    """Devices, number of records by status, and who wrote the page."""
    devices = (
        ", ".join(dict.fromkeys(str(device) for device in content.records["device"])) or "no device"
    )
    counts = (
        ", ".join(f"{count} {status}" for status, count in content.counts.items()) or "no records"
    )
    return f"{devices} · {counts} · flurka-bench {__version__}"


def table(
    rows: Iterable[Sequence[Any]],
    head: Sequence[str],
    words: Sequence[int] = (0,),
    long: Sequence[int] = (),
) -> str:
    """An HTML table of escaped cells; ``words`` and ``long`` are the columns that are text."""

    def cell(tag: str, index: int, value: Any) -> str:
        kind = "long" if index in long else "word" if index in words else ""
        kind = "name" if tag == "td" and index == 0 and kind == "word" else kind
        return f"<{tag}{f' class={kind}' if kind else ''}>{escape(str(value))}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, value) for i, value in enumerate(head)) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>"
        for row in rows
    ]
    return '<div class="scroll"><table>' + "".join(lines) + "</table></div>"


def sides(content: Content) -> tuple[bool, bool]:
    """Whether the page shows speedups that were measured, and that were predicted."""
    every = [cells for views in content.views.values() for cells in views.values()]
    measured, predicted = (
        any(bool(cells[name].notna().any()) for cells in every)
        for name in ("speedup", "predicted_speedup")
    )
    return measured, predicted


def interval_words(content: Content) -> str:
    """What the intervals on the page are, and when a cell is decided by them."""
    measured, predicted = sides(content)
    kinds = ["measured intervals are 95 % confidence intervals"] * measured
    kinds += ["predicted ones are 90 % bands of the model" if measured else _BANDS] * predicted
    told = "; ".join(kinds)
    told = f"{told[0].upper()}{told[1:]}. " if told else ""
    return f"{told}A cell is decided where its interval lies more than {100 * MARGIN:g} % from 1."


_BANDS = "intervals are predicted: 90 % bands of the model, not confidence intervals"


def _brackets(content: Content) -> str:
    """What stands in brackets beside a crossover."""
    measured, predicted = sides(content)
    kinds = ["the 95 % interval (measured)"] * measured
    kinds += ["where the edges of the model's 90 % band cross (predicted)"] * predicted
    return f"In brackets {', or '.join(kinds)}." if kinds else ""


def slices(answer: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """The answer by (device, level, pass, dtype), the slices with most cells first."""
    found = [(key, part) for key, part in answer.groupby(SLICE, sort=False)]
    return sorted(found, key=lambda entry: -int(entry[1]["cells"].max()))


ANSWER_HEAD = (
    "baseline",
    "faster",
    "slower",
    "the same",
    "not decided",
    "no time",
    "median",
    "best (interval)",
    "at",
    "least",
)


def answer_row(row: Mapping[str, Any]) -> list[str]:
    """One baseline's line of the answer table, as text under ``ANSWER_HEAD``."""
    counts = [str(row[word]) for word in ("FASTER", "SLOWER", "SAME", "AMBIGUOUS", "MISSING")]
    label = BASELINES[row["baseline"]].label
    return [
        label,
        *counts,
        format_ratio(row["median"]),
        words.estimate(row["best"], row["best_low"], row["best_high"]),
        row["best_cell"],
        format_ratio(row["worst"]),
    ]


def fastest_words(content: Content, key: tuple) -> str:
    """Which mechanism is the fastest at which N, for the first shape of a slice."""
    rows = content.fastest[(content.fastest[SLICE] == list(key)).all(axis=1)]
    shapes = [part for _, part in rows.groupby(["batch", "num_heads", "head_dim"], sort=False)]
    return fastest_in_words(max(shapes, key=len)) if shapes else ""


def empty_words(content: Content) -> str:
    """What is there when there is nothing to compare."""
    if not content.counts:
        return "This run has no records yet: nothing was measured, nothing can be compared."
    counts = ", ".join(f"{count} {status}" for status, count in content.counts.items())
    return f"No two competitors have times for the same workload ({counts}), so there is no speedup to show. The records are below."


def _answer(content: Content) -> str:
    if content.answer.empty:
        return f"<p>{escape(empty_words(content))}</p>" + _records_table(content)
    parts = []
    found = slices(content.answer)
    for number, (key, part) in enumerate(found[:NUM_SLICES]):
        rows = part.to_dict("records")
        parts.append(f"<h3>{escape(' · '.join(str(word) for word in key))}</h3>")
        parts.append(
            f"<p>{escape(' '.join(in_words(rows[0])))} {escape(fastest_words(content, key))}</p>"
        )
        numbers = table((answer_row(row) for row in rows), ANSWER_HEAD, words=(0, 8))
        parts.append(
            f"<details{' open' if number == 0 else ''}><summary>Against each baseline</summary>{numbers}</details>"
        )
    if len(found) > NUM_SLICES:
        parts.append(
            f"<p>{len(found) - NUM_SLICES} more combinations of device, level, pass and dtype are in the map.</p>"
        )
    parts.append(
        '<p class="soft">A baseline is the fastest of its kind unless it is called the paper’s.'
        f" {escape(interval_words(content))} A smaller k or m is always faster: read a speedup at"
        " the k and m that your accuracy needs.</p>"
    )
    return "".join(parts) + _records_table(content)


def _records_table(content: Content) -> str:
    failed = content.records[~content.records["status"].isin(["ok", "predicted"])]
    if failed.empty:
        return ""
    rows = [
        (row["case_id"], row["status"], row["error"] or "")
        for row in failed.head(200).to_dict("records")
    ]
    more = f"<p>{len(failed) - 200} more are in the data.</p>" if len(failed) > 200 else ""
    head = ("case", "status", "why")
    body = table(rows, head, words=(0, 1), long=(2,)) + more
    return f"<details><summary>{len(failed)} cases without a time</summary>{body}</details>"


def _warnings(content: Content) -> str:
    lines = list(content.warnings)
    if content.left_out:
        held = len(content.records)
        lines.append(f"This page holds {held} of {held + content.left_out} records: whole maps, the largest first "
                     "(all of them: flurka-bench export).")  # fmt: skip
    return (
        "<ul class=warnings>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
        if lines
        else ""
    )


def _agreement(content: Content) -> str:
    if content.predicted_only or content.agreement.times.empty:
        return "<p>There is nothing to compare: no case here has both a measured and a predicted time.</p>"
    return "".join(
        f"<h3>{escape(title)}</h3>" + table(rows, head, words=(0, 1) if long else (0,), long=long)
        for title, head, rows, long in tables(content.agreement)
    )


def _environment(runs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for run in runs:
        name = str(run.get("suite", {}).get("name") or run.get("hardware", "run"))
        rows = [(key, value) for key, value in flatten(run) if key != "suite.text"]
        text = run.get("suite", {}).get("text")
        body = table(rows, ("", ""), words=(0,), long=(1,)) + (
            f"<h3>The suite</h3><pre>{escape(str(text))}</pre>" if text else ""
        )
        parts.append(f"<details><summary>{escape(name)}</summary>{body}</details>")
    return "".join(parts) or "<p>No environment was recorded.</p>"


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested tables as (dotted key, text) pairs."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield (
                f"{prefix}{key}",
                ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value),
            )


def _data(content: Content) -> str:
    count = sum(len(samples) for samples in content.records["samples_s"] if samples is not None)
    note = " Samples are rounded to six significant digits." if count > MAX_EXACT_SAMPLES else ""
    return f"<p>{len(content.records)} records, one per case, with all their samples.{note}</p>"


assert set(SLICE) <= set(CELL)
