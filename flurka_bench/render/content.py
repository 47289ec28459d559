"""What a report says, before it is a page: views of the cells, the answer, crossovers, agreement.
Computed once, drawn thrice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from flurka_bench.answers.agreement import (
    Agreement,
    agreement,
)
from flurka_bench.answers.answer import (
    answers,
    fastest_by_length,
)
from flurka_bench.answers.baselines import (
    BASELINES,
    FAMILIES,
    FAMILY_OF,
)
from flurka_bench.answers.crossover import crossovers
from flurka_bench.answers.speedup import (
    WORKLOAD,
    prepare,
    speedups,
)

# A page of more records loads slowly and says no more: whole maps are left out, the smallest first,
# and the page says so.
MAX_RECORDS = 6_000
AXES = ("seq_len", "rank", "num_features")


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
    kept, count = [], 0
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
    records = prepare(thin(everything).copy())
    records.attrs = {}
    records = prepare(records)
    views: dict[str, dict[str, pd.DataFrame]] = {}
    known: dict = {}
    for subject in subjects(records):
        views[subject] = {name: speedups(records, subject, name, known) for name in BASELINES}
    first = next(iter(views.values()), {})
    lines = [crossovers(cells, *AXES) for cells in first.values() if len(cells)]
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
        else crossovers(speedups(records), *AXES),
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
