"""Two runs against each other: what differs around them, then each case, then each speedup.

The time of a case in run B against run A is a ratio of two occasions, so it holds whatever else
changed between them; the common part is told apart as ``common_ratio`` (the median over all cases).
A speedup is a ratio within one occasion, so its change between the runs is free of that part, and a
verdict that flips is worth more than a case that slowed.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from flurka_bench.answers import ratio
from flurka_bench.answers.sources import MEASURED, of
from flurka_bench.answers.speedup import CELL, Cells, prepare
from flurka_bench.results import Run, to_frame
from flurka_bench.words.verdict import MISSING, Estimate

# Parts of the environment that differ between any two moments, by how much (as a ratio) they may
# before it is said.
_VOLATILE = {
    "captured": math.inf, "time": math.inf, "disk_free_bytes": math.inf, "memory_available_bytes": math.inf,
    "load_1m": math.inf, "num_other_processes": 1.0, "sm_clock_mhz": 1.1, "memory_clock_mhz": 1.1, "temperature_c": 1.2,
    "power_w": math.inf, "power_capped": math.inf, "cpu_clock_mhz": 1.1,
}  # fmt: skip
_BUSY_DIFFERENCE = 0.15  # of all CPUs
_META = ("suite", "device", "device_name", "seed", "version", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same around the two runs."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseChange:
    """One case in both runs. ``ratio`` is A's time / B's: above 1, B is faster."""

    case_id: str
    status_a: str
    status_b: str
    a_s: float | None = None
    b_s: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = MISSING
    paired: bool = False
    regressed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedupChange:
    """One speedup in both runs. ``change`` is B's / A's: above 1 the subject gained on its
    baseline."""

    cell: dict[str, Any]
    subject: str
    baseline: str
    a: float
    b: float
    verdict_a: str
    verdict_b: str
    change: float
    low: float
    high: float
    verdict: str  # of the change

    @property
    def flipped(self) -> bool:
        """From FASTER to SLOWER or back: one of the two runs is wrong, or something real
        happened."""
        return {self.verdict_a, self.verdict_b} == {"FASTER", "SLOWER"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything ``compare`` says."""

    differences: list[Difference]
    cases: list[CaseChange]
    speedups: list[SpeedupChange]
    only_a: list[str]
    only_b: list[str]
    common_ratio: float | None
    regressions: list[CaseChange] = field(default_factory=list)
    nothing_compared: str = ""  # why no case could be judged; empty where one could


def compare_runs(a: Run, b: Run, *, fail: float | None = None) -> Comparison:
    """Compare two runs case by case.

    Args:
        a: the run before.
        b: the run after.
        fail: a case regressed when B is slower by more than this share (0.05: 5 %) and the interval
            of the ratio excludes 1, or when it was ok in A and no longer is. None: nothing
            regresses.
    """
    left, right = ({record["case_id"]: record for record in run.records} for run in (a, b))
    same_run = a.meta.get("run_id") is not None and a.meta.get("run_id") == b.meta.get("run_id")
    cases = [_case_change(left[key], right[key], fail, same_run) for key in left if key in right]
    ratios = [case.ratio for case in cases if case.ratio is not None]
    nothing = ""
    if not cases:
        nothing = f"the runs have no case in common (A has {len(left)}, B has {len(right)})"
    elif not ratios:
        nothing = f"none of the {len(cases)} cases in common was measured in both runs"
    return Comparison(
        differences=environment_differences(a.meta, b.meta),
        cases=cases,
        speedups=_speedup_changes(a, b),
        only_a=[key for key in left if key not in right],
        only_b=[key for key in right if key not in left],
        common_ratio=statistics.median(ratios) if ratios else None,
        regressions=[case for case in cases if case.regressed],
        nothing_compared=nothing,
    )


def _case_change(
    a: Mapping[str, Any], b: Mapping[str, Any], fail: float | None, same_run: bool
) -> CaseChange:
    left, right = (one["status"] == "ok" for one in (a, b))
    change = CaseChange(
        case_id=a["case_id"],
        status_a=a["status"],
        status_b=b["status"],
        a_s=a["median_s"] if left else None,
        b_s=b["median_s"] if right else None,
        regressed=fail is not None and left,
    )
    if not left or not right:
        return change
    # Paired where the samples are of the same rounds of the same run, else by medians.
    rounds = [one["round_ids"] if same_run else None for one in (a, b)]
    found = ratio.estimate(
        b["samples_s"], rounds[1], b["median_s"], a["samples_s"], rounds[0], a["median_s"]
    )
    too_slow = fail is not None and found.ratio < 1 / (1 + fail)
    # Without an interval the ratio alone decides.
    sure = found.high < 1 or not math.isfinite(found.high)
    return replace(
        change,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        verdict=found.verdict,
        paired=ratio.paired(*rounds),
        regressed=too_slow and sure,
    )


def _speedup_changes(a: Run, b: Run) -> list[SpeedupChange]:
    keys = [*(name for name in CELL if name != "device"), "baseline"]  # two devices may be compared
    if not a.records or not b.records:
        return []
    changes = []
    merged = _speedups(a).merge(_speedups(b), on=keys, suffixes=("_a", "_b"))
    for row in merged.to_dict("records"):
        change = _change(row)
        changes.append(
            SpeedupChange(
                cell={name: row[name] for name in keys[:-1]},
                subject=row["subject_b"],
                baseline=row["baseline"],
                a=row["ratio_a"],
                b=row["ratio_b"],
                verdict_a=row["verdict_a"],
                verdict_b=row["verdict_b"],
                change=change.ratio,
                low=change.low,
                high=change.high,
                verdict=change.verdict,
            )
        )
    return changes


def _speedups(run: Run) -> pd.DataFrame:
    """The measured speedups of FLuRKA over every baseline."""
    cells = of(pd.concat(Cells(prepare(to_frame(run))).views().values()), MEASURED)
    columns = [*CELL, "subject", "baseline", "ratio", "low", "high", "verdict"]
    return cells.loc[cells["ratio"].notna(), columns]


def _change(row: Mapping[str, Any]) -> Estimate:
    """B's speedup over A's, which are independent: half-widths in quadrature, in logs."""
    ratio = row["ratio_b"] / row["ratio_a"]
    if not all(row[f"low_{side}"] > 0 and math.isfinite(row[f"high_{side}"]) for side in "ab"):
        return Estimate(ratio=ratio, low=0.0, high=math.inf)
    below, above = (
        {side: abs(math.log(row[f"{edge}_{side}"] / row[f"ratio_{side}"])) for side in "ab"}
        for edge in ("low", "high")
    )
    down, up = math.hypot(below["b"], above["a"]), math.hypot(above["b"], below["a"])
    return Estimate(ratio=ratio, low=ratio * math.exp(-down), high=ratio * math.exp(up))


def environment_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Difference]:
    """What differs between two ``run.json``: the request first, then the machine; what always
    differs is left out."""
    found = []
    for name in _META:
        left, right = (meta.get(name) for meta in (a, b))
        if isinstance(left, dict) and isinstance(
            right, dict
        ):  # a suite: its name, and whether the text is the same
            if left.get("name") == right.get("name") and left != right:
                found.append(
                    Difference(
                        name=name, a=str(left.get("name")), b=f"{right.get('name')}, another text"
                    )
                )
                continue
            left, right = left.get("name"), right.get("name")
        if left != right:
            found.append(Difference(name=name, a=str(left), b=str(right)))
    left, right = (_flat(meta.get("environment") or {}) for meta in (a, b))
    if bool(left) != bool(right):
        words = {True: "recorded", False: "not recorded"}
        return [*found, Difference(name="environment", a=words[bool(left)], b=words[bool(right)])]
    for name in [*left, *(key for key in right if key not in left)]:
        if _differs(name.rpartition(".")[2], left.get(name), right.get(name)):
            found.append(Difference(name=name, a=_shown(left.get(name)), b=_shown(right.get(name))))
    return found


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _differs(key: str, a: Any, b: Any) -> bool:
    if a == b:
        return False
    if any(isinstance(each, str | list) for each in (a, b)):
        return not math.isinf(_VOLATILE.get(key, 0.0))
    if key in ("busy_fraction", "steal_fraction") and a is not None and b is not None:
        return bool(abs(a - b) > _BUSY_DIFFERENCE)
    limit = _VOLATILE.get(key)
    if limit is None:
        return True
    if not (a and b):
        return math.isfinite(limit)
    return math.isfinite(limit) and bool(max(a, b) / min(a, b) > limit)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
