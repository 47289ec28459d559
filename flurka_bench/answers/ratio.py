"""Intervals and verdicts for many speedups at once; what an interval means is
``words.statistics``' to say."""

from collections.abc import Sequence

import numpy as np

from flurka_bench.words.statistics import (
    paired_ratio,
    unpaired_ratio,
)
from flurka_bench.words.verdict import verdict

MISSING = "MISSING"
# Beyond this many records a fifth of the resamples does: the interval's own noise, about 5 % of its
# width, shows on no map.
MANY_RECORDS, FEW_RESAMPLES = 2000, 200


def paired(own_rounds: Sequence[int] | None, other_rounds: Sequence[int] | None) -> bool:
    """Whether two cases were timed in shared rounds, so that their samples are pairs."""
    return bool(own_rounds) and bool(other_rounds) and not set(own_rounds).isdisjoint(other_rounds)


Estimates = dict[tuple[int, int], tuple[float, float, float]]


def measured(
    samples: np.ndarray,
    rounds: np.ndarray,
    seconds: np.ndarray,
    pairs: np.ndarray,
    known: Estimates | None = None,
) -> np.ndarray:
    """(cells, 3) ratio, low, high for row pairs (own, other): above 1 own is faster; nan where a
    side has no time.

    ``known`` keeps estimates from call to call over the same rows: many views share their pairs.
    """
    result = np.full((len(pairs), 3), np.nan)
    known = {} if known is None else known
    both = np.flatnonzero((pairs >= 0).all(axis=1))
    resamples = {"num_resamples": FEW_RESAMPLES} if len(samples) > MANY_RECORDS else {}
    for index in both:
        pair = (int(pairs[index, 0]), int(pairs[index, 1]))
        if pair not in known:
            sides = (column[side] for side in pair for column in (samples, rounds, seconds))
            known[pair] = estimate(*sides, **resamples)
        result[index] = known[pair]
    return result


SIDE = ("samples_s", "round_ids", "seconds")  # what ``estimate`` reads of a record, in its order


def estimate(
    own: Sequence | None,
    own_rounds: Sequence | None,
    own_s: float,
    other: Sequence | None,
    other_rounds: Sequence | None,
    other_s: float,
    **resamples: int,
) -> tuple[float, float, float]:
    """The speedup (ratio, low, high) of one case over another, in every line, table and picture.

    From the pairs where the two share rounds, from the medians of their samples where not; without
    samples from the recorded medians, with the interval of no knowledge.
    """
    if own is None or other is None or len(own) == 0 or len(other) == 0:
        return other_s / own_s, 0.0, np.inf
    if paired(own_rounds, other_rounds):
        found = paired_ratio(other, own, other_rounds, own_rounds, **resamples)
    else:
        found = unpaired_ratio(other, own, **resamples)
    return found.ratio, found.low, found.high


def predicted(
    seconds: np.ndarray, low: np.ndarray, high: np.ndarray, scale: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
    """(cells, 3) ratio, low, high of predictions.

    ``scale`` is the part of a band's half-width (log-seconds) that all cases on the device share:
    of it only the difference remains in a ratio, as in ``cost.uncertainty.ratio_band``. The rest
    adds in quadrature, each side its own. It is 0 for records of before it was kept, which leaves
    their band on the wide side.
    """
    own, other = pairs[:, 0], pairs[:, 1]
    result = np.full((len(pairs), 3), np.nan)
    known = (own >= 0) & (other >= 0)
    own, other = own[known], other[known]
    a, b = np.log(seconds[own]), np.log(seconds[other])
    sides = (
        (b - np.log(low[other]), np.log(high[own]) - a),
        (np.log(high[other]) - b, a - np.log(low[own])),
    )
    shared = scale[own] - scale[other]
    own_rest, other_rest = scale[own] ** 2, scale[other] ** 2
    down, up = (
        np.where(
            own == other,
            0.0,
            np.sqrt(shared**2 + np.maximum(x**2 - other_rest, 0) + np.maximum(y**2 - own_rest, 0)),
        )
        for x, y in sides
    )
    result[known] = np.exp(np.column_stack([b - a, b - a - down, b - a + up]))
    return result


def verdicts(ratios: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """FASTER, SLOWER, SAME or AMBIGUOUS for each, MISSING where there is no ratio; an unknown
    interval is AMBIGUOUS."""
    words = [
        MISSING if np.isnan(r) else verdict(float(a), float(b))
        for r, a, b in zip(ratios, low, high)
    ]
    return np.array(words, dtype=object)
