"""The vocabulary of the answer: symbols of sizes, verdicts, cases and reasons in words.

Every table, sentence, picture and page takes these from here, so that one thing has one name.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from flurka_bench.cases.registry import FIXED_FEATURES
from flurka_bench.words.sizes import SIZES
from flurka_bench.words.units import (
    UNKNOWN,
    format_ratio,
    format_seconds,
)
from flurka_bench.words.verdict import MISSING

if TYPE_CHECKING:
    import pandas as pd

# The symbol of each size, in the order of SIZES, which is that of sentences.
SYMBOLS = dict(zip(SIZES, ("b", "h", "N", "d", "k", "m"), strict=True))
LONG_NAMES = {"seq_len": "sequence length"}  # of the others, the field's name is the word
WIDTHS = ("num_heads", "head_dim")
KNOBS = ("rank", "num_features")
SHAPE = ("batch", *WIDTHS, "seq_len")
# Sentences say the shape first, then the length, then what one chooses.
_SPOKEN = (*SHAPE, *KNOBS)

VERDICT_WORDS = {
    "FASTER": "faster",
    "SLOWER": "slower",
    "SAME": "the same",
    "AMBIGUOUS": "not decided",
    MISSING: "no time",
}
SIGNS = {"FASTER": "+", "SLOWER": "−", "SAME": "=", "AMBIGUOUS": "~"}
UNDECIDED = ("AMBIGUOUS", "SAME")  # neither of the two is the one to choose
FAILURES = ("oom", "timeout", "crashed", "incorrect", "invalid", "skipped", "unsupported")

IMPOSSIBLE = "k > N: impossible"  # no rank is larger than the number of keys
NOT_RUN = "not in this run"
NO_TIME = "no time"
NO_PREDICTION = "no prediction"


def axis_words(name: str) -> str:
    """``"sequence length N"``: an axis by its name and its symbol."""
    return f"{LONG_NAMES.get(name, name)} {SYMBOLS[name]}"


def sizes(row: Mapping[str, Any], names: Collection[str] = SIZES) -> list[str]:
    """``["h = 8", "d = 64", "N = 4096"]``: the sizes of a row that it has (neither 0 nor None)."""
    known = {name: row.get(name) for name in _SPOKEN if name in names}
    return [
        f"{SYMBOLS[name]} = {int(size)}"
        for name, size in known.items()
        if size and size == size  # neither 0 nor nan, which stand for "has none"
    ]


def place(cell: Mapping[str, Any]) -> str:
    """``"N = 4096, k = 128, m = 32"``: where a cell lies."""
    return ", ".join(sizes(cell, ("seq_len", *KNOBS)))


def where(row: Mapping[str, Any]) -> str:
    """``"h = 8, d = 64, N = 512, k = 64, m = 16"``: all sizes, but no batch of one."""
    return ", ".join(sizes(row, [name for name in SIZES if name != "batch" or row[name] > 1]))


def knobs(row: Mapping[str, Any]) -> list[str]:
    """``["k = 128", "m = 32", "mean-pool", "E = F"]``: what was chosen, where it applies."""
    compression = [str(row["compression"])] if row.get("compression", "dense") != "dense" else []
    return sizes(row, KNOBS) + compression + (["E = F"] if row.get("share_kv") else [])


def form(row: Mapping[Any, Any], prefix: str = "") -> str:
    """``"flurka-relu absorbed compiled"``: mechanism, order and backend of a row, where it has
    them."""
    words = (row[f"{prefix}{name}"] for name in ("mechanism", "order", "backend"))
    return " ".join(word for word in words if isinstance(word, str) and word)


def middle(values: Iterable[int]) -> int:
    """The middle one of the values tested; of an even number the upper one. 0, which stands for
    "has none", does not count; 0 where nothing else is there."""
    tested = sorted(set(values) - {0})
    return tested[len(tested) // 2] if tested else 0


def at_middle(rows: "pd.DataFrame", **chosen: int | None) -> "tuple[pd.DataFrame, dict[str, int]]":
    """The rows at the middle k and m (or the ``chosen`` ones), and these.

    Mechanisms without the knob take part as they are, and so does elu + 1, whose m is d.
    """
    fixed = rows["mechanism"].isin(FIXED_FEATURES)
    at = {knob: chosen.get(knob) or middle(rows.loc[~fixed, knob]) for knob in KNOBS}
    kept = rows["rank"].isin([0, at["rank"]])
    kept &= fixed | rows["num_features"].isin([0, at["num_features"]])
    return rows[kept], at


def interval(low: float, high: float) -> str:
    """``"1.52× to 1.57×"``; empty where nobody knows it (nan or infinity)."""
    known = high == high and high != float("inf")
    return f"{format_ratio(low)} to {format_ratio(high)}" if known else ""


def estimate(ratio: float, low: float, high: float) -> str:
    """``"1.55× (1.52× to 1.57×)"``: a speedup with its interval where it has one."""
    bracket = interval(low, high)
    return format_ratio(ratio) + (f" ({bracket})" if bracket and ratio == ratio else "")


def percent(value: float) -> str:
    """``0.123`` -> ``"12%"``; nan -> ``"n/a"``."""
    return UNKNOWN if value != value else f"{value:.1%}" if value < 0.1 else f"{value:.0%}"


def hole_label(missing: str | None) -> str | None:
    """The status of a cell without a time, in the word that fits into the cell."""
    return next((failure for failure in FAILURES if f": {failure}" in (missing or "")), None)


def hole(status: str, place: Mapping[str, Any] | None = None) -> str:
    """Why a cell is empty in a word that fits into it: the status, ``k > N`` or ``not run``."""
    if label := hole_label(status):
        return label
    impossible = place is not None and place["rank"] > place["seq_len"]
    return IMPOSSIBLE.partition(":")[0] if impossible else "not run"


def stage_reason(mine: Mapping[str, float], theirs: Mapping[str, float], suffix: str = "") -> str:
    """``"saves most in scores (0 ns against 392 µs, predicted)"`` from seconds by stage of both."""
    gap = {name: theirs.get(name, 0.0) - mine.get(name, 0.0) for name in {**mine, **theirs}}
    sign = 1 if sum(gap.values()) > 0 else -1
    stage = max(gap, key=lambda name: sign * gap[name])
    ours, other = (format_seconds(side.get(stage, 0.0)) for side in (mine, theirs))
    return f"{'saves' if sign > 0 else 'loses'} most in {stage} ({ours} against {other}{suffix})"


def bound_of(record: Mapping[Any, Any]) -> str:
    """``"launch"``: what limits a case, as measured or else predicted; empty where nobody knows."""
    known = (record.get(name) for name in ("limited_by", "bound"))
    found = next((bound for bound in known if isinstance(bound, str) and bound), "")
    return found.removesuffix("-bound")


def bound_reason(mine: str, theirs: str) -> str:
    """``"launch-bound (the other compute-bound)"`` from what limits both."""
    beside = ", as is the other" if mine == theirs else f" (the other {theirs}-bound)"
    return f"{mine}-bound{beside}"


def flop_reason(ratio: float) -> str:
    """``"needs 0.83× the FLOPs"``."""
    return f"needs {format_ratio(ratio)} the FLOPs"
