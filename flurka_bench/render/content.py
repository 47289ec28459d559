"""What a report says, before it is a page: views of the cells, and headings, sentences and tables
as blocks. Computed once, shown as a page, as Markdown and as PDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from flurka_bench import __version__
from flurka_bench.answers import words
from flurka_bench.answers.agreement import Agreement, agreement, tables
from flurka_bench.answers.answer import (
    SLICE,
    answer_columns,
    answer_row,
    answers,
    fastest_by_length,
    fastest_in_words,
    in_words,
    slices,
)
from flurka_bench.answers.baselines import (
    FAMILIES,
    FAMILY_OF,
)
from flurka_bench.answers.crossover import crossovers
from flurka_bench.answers.crossover import told as told_crossings
from flurka_bench.answers.sources import MEASURED, PREDICTED, SOURCES, present
from flurka_bench.answers.speedup import (
    WORKLOAD,
    Cells,
    prepare,
)
from flurka_bench.words.blocks import Block, Column, Figure, Heading, Text, table
from flurka_bench.words.verdict import MARGIN

# A page of more records loads slowly and says no more: whole maps are left out, the smallest first,
# and the page says so.
MAX_RECORDS = 6_000
AXES = ("seq_len", "rank", "num_features")
MAX_CROSSINGS = 40
MAX_FAILURES = 200
MAX_MAPS = 6  # over the best of all others; over each other strong baseline the middle one


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Everything a report shows.

    ``records`` is the prepared frame that the page holds, ``counts`` the number of records by
    status in all of it, ``views`` the speedups by subject and baseline, ``left_out`` how many
    records the page does not hold.
    """

    title: str
    predicted_only: bool
    runs: Sequence[Mapping[str, Any]]
    records: pd.DataFrame
    counts: Mapping[str, int]
    views: Mapping[str, Mapping[str, pd.DataFrame]]
    answer: pd.DataFrame
    fastest: pd.DataFrame
    crossings: pd.DataFrame
    agreement: Agreement
    left_out: int = 0
    warnings: Sequence[str] = field(default_factory=tuple)

    @property
    def subject(self) -> str:
        """The first subject: FLuRKA where the run has it."""
        return next(iter(self.views), "flurka")


def subjects(rows: pd.DataFrame) -> list[str]:
    """What the page can be asked about: the FLuRKA family and its members; in a run without FLuRKA,
    what there is."""
    present = [name for name in FAMILY_OF if (rows["mechanism"] == name).any()]
    ours = [name for name in present if name in FAMILIES["flurka"]]
    return (
        ["flurka", *ours] if ours else [name for name in present if FAMILY_OF[name] != "full"][:4]
    )


def thin(rows: pd.DataFrame, most: int = MAX_RECORDS) -> pd.DataFrame:
    """Whole maps (all N, k, m of one device, level, pass, dtype and shape), largest first, until
    ``most`` records are reached."""
    if len(rows) <= most:
        return rows
    keys = [
        name for name in [*WORKLOAD, "compression", "share_kv", "share_heads"] if name != "seq_len"
    ]
    workloads = [name for name in WORKLOAD if name != "seq_len"]
    sizes = rows.groupby(workloads, sort=False)["case_id"].transform("size")
    order = rows.assign(_size=sizes).sort_values(
        ["_size", *keys], ascending=[False] + [True] * len(keys), kind="stable"
    )
    kept: list[pd.Index] = []
    count = 0
    for _, part in order.groupby(["_size", *workloads], sort=False):
        if count + len(part) > most and kept:
            continue
        kept.append(part.index[:most])  # one map larger than the limit is cut, and said to be
        count += len(part)
        if count >= most:
            break
    return rows.loc[sorted(index for part in kept for index in part)]


def collect(
    frame: pd.DataFrame, runs: Sequence[Mapping[str, Any]], title: str, warnings: Sequence[str] = ()
) -> Content:
    """Analyse once what the report shows. ``runs`` are run.json's contents (or {"hardware": ...}
    for predictions)."""
    everything = prepare(frame)
    records = thin(everything).reset_index(drop=True)
    cells = Cells(records)
    views = {subject: cells.views(subject) for subject in subjects(records)}
    first = next(iter(views.values()), {})
    lines = [crossovers(each, *AXES) for each in first.values() if len(each)]
    return Content(
        title=title,
        predicted_only=bool(
            (everything["status"] == "predicted").any() and everything["seconds"].isna().all()
        ),
        runs=runs,
        records=records,
        counts={
            str(status): int(count) for status, count in everything["status"].value_counts().items()
        },
        views=views,
        answer=answers(first),
        fastest=fastest_by_length(records),
        crossings=pd.concat(lines, ignore_index=True)
        if lines
        else crossovers(cells.speedups(), *AXES),
        agreement=agreement(records, next(iter(views), "flurka"), first),
        left_out=len(everything) - len(records),
        warnings=[*warnings, *noticed(everything)],
    )


def noticed(rows: pd.DataFrame) -> list[str]:
    """What a reader must know about these records before believing them."""
    found = []
    timed = rows[rows["status"] == "ok"]
    if len(timed):
        few = int(
            (
                timed["samples_s"].map(lambda samples: len(samples) if samples is not None else 0)
                < 5
            ).sum()
        )
        if few:
            found.append(
                f"{few} of {len(timed)} cases have fewer than five samples: their speedups are AMBIGUOUS (give more time)."
            )
        if "num_dropped" in timed and (
            dropped := int(pd.to_numeric(timed["num_dropped"]).fillna(0).sum())
        ):
            found.append(
                f"{dropped} samples were dropped: the device was throttled, or its clock stepped back."
            )
        if not timed["predicted_s"].notna().any():
            found.append("No record carries a prediction: the predicted side is empty.")
    for status, count in (
        rows.loc[~rows["status"].isin(["ok", "predicted"]), "status"].value_counts().items()
    ):
        found.append(f"{count} cases ended as {status}; the cells they leave empty say so.")
    return found


BADGE = "Predictions only: nothing here was measured"


def head(content: Content) -> list[Block]:
    """Title, devices, number of records by status and who wrote this; what to know before
    believing it."""
    devices = ", ".join(dict.fromkeys(map(str, content.records["device"]))) or "no device"
    told = f"{devices} · {_counted(content) or 'no records'} · flurka-bench {__version__}"
    badge = [Text(BADGE, "badge")] if content.predicted_only else []
    return [Heading(content.title, 1), *badge, Text(told, "soft")]


def warnings(content: Content) -> list[Block]:
    """What a reader must know before believing the rest."""
    lines = list(content.warnings)
    if content.left_out:
        held = len(content.records)
        lines.append(
            f"This report holds {held} of {held + content.left_out} records: whole maps, the"
            " largest first (all of them: flurka-bench export)."
        )
    return [Text(line, "warning") for line in lines]


def _counted(content: Content) -> str:
    return ", ".join(f"{count} {status}" for status, count in content.counts.items())


def interval_words(content: Content) -> str:
    """What the intervals are, and when a cell is decided by them."""
    measured, predicted = sides(content)
    kinds = ["measured intervals are 95 % confidence intervals"] * measured
    kinds += ["predicted ones are 90 % bands of the model" if measured else _BANDS] * predicted
    told = "; ".join(kinds)
    told = f"{told[0].upper()}{told[1:]}. " if told else ""
    return f"{told}A cell is decided where its interval lies more than {100 * MARGIN:g} % from 1."


_BANDS = "intervals are predicted: 90 % bands of the model, not confidence intervals"


def brackets(content: Content) -> str:
    """What stands in brackets behind a crossover."""
    measured, predicted = sides(content)
    kinds = ["the 95 % interval (measured)"] * measured
    kinds += ["where the edges of the model's 90 % band cross (predicted)"] * predicted
    return f"In brackets {', or '.join(kinds)}." if kinds else ""


def sides(content: Content) -> tuple[bool, bool]:
    """Whether there are speedups that were measured, and that were predicted."""
    every = [cells for views in content.views.values() for cells in views.values()]
    held = {source for cells in every for source in present(cells)}
    return MEASURED in held, PREDICTED in held


def _fastest(content: Content, key: tuple[Any, ...]) -> str:
    """Which mechanism is the fastest at which N, for the first shape of a slice."""
    rows = content.fastest[(content.fastest[SLICE] == list(key)).all(axis=1)]
    shapes = [part for _, part in rows.groupby(["batch", "num_heads", "head_dim"], sort=False)]
    return fastest_in_words(max(shapes, key=len)) if shapes else ""


def answer_blocks(content: Content, most: int | None = None) -> list[Block]:
    """The answer by slice, at most so many: in sentences, and in a table against each baseline."""
    if content.answer.empty:
        return [Text(_nothing(content))]
    found: list[Block] = []
    every = slices(content.answer)
    for number, (key, part) in enumerate(every[:most]):
        rows = part.to_dict("records")
        found += [
            Heading(" · ".join(map(str, key)), 3),
            Text(" ".join([*in_words(rows[0]), _fastest(content, key)])),
            table(
                answer_columns(), map(answer_row, rows), "Against each baseline", folded=number > 0
            ),
        ]
    if len(every[:most]) < len(every):
        left = len(every) - len(every[:most])
        found.append(
            Text(f"{left} more combinations of device, level, pass and dtype are in the map.")
        )
    return [*found, Text(
        "A baseline is the fastest of its kind unless it is called the paper’s."
        f" {interval_words(content)} A smaller k or m is always faster: read a speedup at"
        " the k and m that your accuracy needs.", "soft",
    )]  # fmt: skip


def _nothing(content: Content) -> str:
    """What is there when there is nothing to compare."""
    if not content.counts:
        return "This run has no records yet: nothing was measured, nothing can be compared."
    return (
        f"No two competitors have times for the same workload ({_counted(content)}), so there is"
        " no speedup to show. The records are below."
    )


def failures(content: Content) -> list[Block]:
    """The cases without a time, and why."""
    failed = content.records[~content.records["status"].isin(["ok", "predicted"])]
    if failed.empty:
        return []
    shown = table(
        (Column("case", "word"), Column("status", "word"), Column("why", "long")),
        [
            (row["case_id"], row["status"], row["error"] or "")
            for row in failed.head(MAX_FAILURES).to_dict("records")
        ],
        f"{len(failed)} cases without a time",
        folded=True,
    )
    left = len(failed) - len(shown.rows)
    return [shown, *([Text(f"{left} more are in the data.")] if left else [])]


def crossing_blocks(content: Content) -> list[Block]:
    """Where the subject beats the best of all others, line by line."""
    rows = told_crossings(content.crossings[content.crossings["baseline"] == "best-other"])
    if rows.empty:
        return []
    told = [source for source in SOURCES if source in rows]
    shown = [
        (row["axis"], row["device"], f"{row['level']} {row['pass']} {row['dtype']}",
         ", ".join([*words.sizes(row, words.SHAPE[1:]), *words.knobs(row)]),
         *(row[source] for source in told))
        for row in rows.head(MAX_CROSSINGS).to_dict("records")
    ]  # fmt: skip
    titles = ("axis", "device", "level, pass, dtype", "at", *(f"{source}: wins" for source in told))
    left = len(rows) - len(shown)
    return [
        Heading(f"Crossovers: where {content.subject} beats the best of all others"),
        table([Column(title, "long" if "wins" in title else "word") for title in titles], shown),
        *([Text(f"{left} more are in the page (.html).")] if left else []),
    ]


def agreement_blocks(content: Content) -> list[Block]:
    """How far the prediction can be trusted; nothing where nothing has both times."""
    known = not content.predicted_only and not content.agreement.times.empty
    return list(tables(content.agreement)) if known else []


def summary(content: Content) -> list[Block]:
    """The whole report but its maps."""
    judged = agreement_blocks(content)
    return [
        *head(content),
        *warnings(content),
        *answer_blocks(content),
        *crossing_blocks(content),
        *([Heading("Agreement of prediction and measurement"), *judged] if judged else []),
    ]


def pictures(content: Content) -> list[Figure]:
    """The maps over the strong baselines (over the best of all others the largest few), and the
    main curves."""
    from flurka_bench.render.figures import curves, heatmap, model, tradeoff

    found = []
    for name in ("best-other", "strong-low-rank", "strong-kernel"):
        cells = content.views.get(content.subject, {}).get(name)
        if cells is None or cells.empty:
            continue
        axes = heatmap.map_axes(cells)
        count = len(heatmap.grids(cells, *axes))
        shown = range(min(count, MAX_MAPS)) if name == "best-other" else (count // 2,)
        found += [(f"Map over {name}", partial(heatmap.heat_map, cells, *axes, which=which))
                  for which in shown]  # fmt: skip
    rows = content.records
    if not content.answer.empty:
        found += [("Time against N", partial(curves.scaling_curves, rows)),
                  ("Memory against N", partial(tradeoff.memory, rows))]  # fmt: skip
        if len(content.agreement.times):
            found += [
                ("Predicted against measured", partial(model.predicted_against_measured, rows)),
                ("Error of the model", partial(model.error_map, rows)),
            ]
    return [Figure(caption=caption, draw=draw) for caption, draw in found]
