"""What a run says at its end and while it goes on: of each workload its fastest case, and FLuRKA's
fastest beside the strong and the paper's forms.

The estimator is the paired ratio throughout: where medians name another case the fastest and the
pairs do not say that FLuRKA is slower, FLuRKA is the fastest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from flurka_bench.answers import ratio, words
from flurka_bench.answers.baselines import FAMILY_OF
from flurka_bench.answers.sources import MEASURED, PREDICTED, of
from flurka_bench.answers.speedup import CELL, SHOWN, WORKLOAD, Cells, prepare
from flurka_bench.words.units import format_ratio, format_seconds
from flurka_bench.words.verdict import Estimate

# The three opponents of the end-of-run table; each has a strong form and the paper's.
OPPONENTS = {"low-rank": "low-rank parent", "kernel": "kernel parent", "full": "full attention"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """One workload: the record of the fastest case of all and of FLuRKA's fastest (None: nothing
    has a time).

    ``behind`` is FLuRKA's speedup over the fastest, None where it is the fastest itself. ``over``
    holds its speedups by baseline and source, ``opponents`` the mechanism that stood for each
    baseline.
    """

    workload: Mapping[str, Any]
    num_ours: int  # cases of FLuRKA that there are, timed or not
    fastest: Mapping[str, Any] | None
    ours: Mapping[str, Any] | None
    behind: Estimate | None
    over: Mapping[tuple[str, str], Estimate]
    opponents: Mapping[str, str]


def _estimate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(ratio=row["ratio"], low=row["low"], high=row["high"])


def leading(frame: pd.DataFrame) -> list[Lead]:
    """One ``Lead`` per workload, in the order of the records."""
    rows = prepare(frame)
    every = pd.concat(Cells(rows).views().values(), ignore_index=True)
    found = []
    for key, part in rows.groupby(WORKLOAD, sort=False):
        timed = part[part["seconds"].notna()].sort_values("seconds", kind="stable")
        ours = timed[timed["family"] == "flurka"]
        best, own = (part.index[0] if len(part) else None for part in (timed, ours))
        behind = None
        if own is not None and own != best:
            sides = ([rows.at[row, name] for name in ratio.SIDE] for row in (own, best))
            behind = ratio.estimate(*next(sides), *next(sides))
            if behind.ratio >= 1:
                best, behind = own, None
        cells = every[every["cell"].isin(every.loc[every["subject_row"] == own, "cell"])]
        views = cells.to_dict("records")
        found.append(
            Lead(
                workload=dict(zip(WORKLOAD, key)),
                num_ours=int((part["family"] == "flurka").sum()),
                fastest=None if best is None else rows.loc[best].to_dict(),
                ours=None if own is None else rows.loc[own].to_dict(),
                behind=behind,
                over={(row["baseline"], row["source"]): _estimate(row) for row in views},
                opponents={
                    row["baseline"]: row["baseline_mechanism"]
                    for row in views
                    if row["source"] == MEASURED
                },
            )
        )
    return found


def headline(records: Sequence[Mapping[str, Any]]) -> str:
    """The news of one workload in a line: its fastest FLuRKA against the strong forms beside it,
    in the numbers of the end-of-run table."""
    if not records:
        return "nothing to measure"
    timed = [record for record in records if record["status"] == "ok"]
    ours = [record for record in timed if FAMILY_OF[record["mechanism"]] == "flurka"]
    kept = [record for record in timed if FAMILY_OF[record["mechanism"]] != "flurka"]
    if ours:  # of them the table shows the fastest; the rest would only cost time here
        kept.append(min(ours, key=lambda record: record["median_s"]))
    if not kept:
        return f"{place_words(records[0])}: none of {len(records)} cases has a time"
    (lead,) = leading(pd.DataFrame(kept))
    place = place_words(lead.workload)
    shown = lead.ours or lead.fastest
    assert shown is not None  # only records with a time are here
    if not lead.ours:
        return f"{place}: fastest {time_words(shown, sep=', ')}"
    told = f"{place}: {time_words(shown, sep=' ')}"
    against = ", ".join(
        f"{format_ratio(over.ratio)} {lead.opponents[name]} {over.verdict}"
        for name in (f"strong-{key}" for key in OPPONENTS)
        if (over := lead.over[name, MEASURED]).ratio > 0
    )
    return f"{told} = {against}" if against else told


def place_words(row: Mapping[str, Any]) -> str:
    """``"layer forward float32 b=1 h=8 N=2048 d=64"``: a workload."""
    sizes = f"b={row['batch']} h={row['num_heads']} N={row['seq_len']} d={row['head_dim']}"
    return f"{row['level']} {row['pass']} {row['dtype']} {sizes}"


def form_words(record: Mapping[str, Any]) -> str:
    """``"flurka-relu absorbed k=64 m=16"``: a prepared record in full but for its workload."""
    parts = [record["mechanism"], record["order"]]
    parts.append("" if record["backend"] == "eager" else record["backend"])
    parts += [text.replace(" ", "") for text in words.sizes(record, words.KNOBS)]
    kind = record["compression"]
    parts += ["" if kind == "dense" else kind, "E=F" if record["share_kv"] else ""]
    parts.append("" if record["share_heads"] else "E by head")
    return " ".join(part for part in parts if part)


def time_words(record: Mapping[str, Any], sep: str = ": ") -> str:
    """A prepared record's form and median time."""
    return f"{form_words(record)}{sep}{format_seconds(record['seconds'])}"


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells of a run as ``run --json`` prints them: per cell the fastest mechanism, and
    FLuRKA's speedup over its parents and full attention.

    One row per workload, rank and num_features, best lead of FLuRKA first within a workload.
    Columns: ``CELL``, ``subject_*`` and ``fastest_*`` of the cell (case_id, mechanism, order,
    backend, s), and per baseline NAME: ``NAME`` and ``NAME_predicted``, each with ``_low``,
    ``_high`` and ``_verdict``, and ``NAME_mechanism``.
    """
    result = pd.DataFrame()
    for name, cells in Cells(prepare(frame)).views().items():
        measured, predicted = (
            of(cells, source).reset_index(drop=True) for source in (MEASURED, PREDICTED)
        )
        if not len(result.columns):
            fields = (*SHOWN, "s")
            result = measured[[*CELL, *(f"subject_{field}" for field in fields)]].copy()
            ours = measured["subject_s"].notna() & ~(measured["ratio"] < 1)
            for field in fields:
                result[f"fastest_{field}"] = measured[f"subject_{field}"].where(
                    ours, measured[f"baseline_{field}"]
                )
        for column, end in (
            ("ratio", ""),
            ("low", "_low"),
            ("high", "_high"),
            ("verdict", "_verdict"),
        ):
            result[f"{name}{end}"] = measured[column]
            result[f"{name}_predicted{end}"] = predicted[column]
        result[f"{name}_mechanism"] = measured["baseline_mechanism"]
    ascending = [True] * len(WORKLOAD) + [False]
    return result.sort_values([*WORKLOAD, "best-other"], ascending=ascending, ignore_index=True)
