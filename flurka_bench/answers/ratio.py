"""Intervals and verdicts for many speedups at once; what an interval means is
``words.statistics``' to say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flurka_bench.cost.uncertainty import ratio_half_width
from flurka_bench.words.statistics import (
    NUM_RESAMPLES,
    paired_ratio,
    unpaired_ratio,
)
from flurka_bench.words.verdict import MISSING, Estimate, verdict

# Beyond this many records a fifth of the resamples does: the interval's own noise, about 5 % of its
# width, shows on no map.
MANY_RECORDS, FEW_RESAMPLES = 2000, 200

Array = npt.NDArray[Any]
Samples = Sequence[float] | None
Rounds = Sequence[int] | None
Estimates = dict[tuple[int, int], tuple[float, float, float]]


def paired(own_rounds: Rounds, other_rounds: Rounds) -> bool:
    """Whether two cases were timed in shared rounds, so that their samples are pairs."""
    if not own_rounds or not other_rounds:
        return False
    return not set(own_rounds).isdisjoint(other_rounds)


def measured(
    samples: Array, rounds: Array, seconds: Array, pairs: Array, known: Estimates | None = None
) -> Array:
    """(cells, 3) ratio, low, high for row pairs (own, other): above 1 own is faster; nan where a
    side has no time.

    ``known`` keeps estimates from call to call over the same rows: many views share their pairs.
    """
    result = np.full((len(pairs), 3), np.nan)
    known = {} if known is None else known
    resamples = FEW_RESAMPLES if len(samples) > MANY_RECORDS else NUM_RESAMPLES
    for index in np.flatnonzero((pairs >= 0).all(axis=1)):
        pair = (int(pairs[index, 0]), int(pairs[index, 1]))
        if pair not in known:
            own, other = ((samples[i], rounds[i], float(seconds[i])) for i in pair)
            found = estimate(*own, *other, resamples)
            known[pair] = (found.ratio, found.low, found.high)
        result[index] = known[pair]
    return result


SIDE = ("samples_s", "round_ids", "seconds")  # what ``estimate`` reads of a record, in its order


def estimate(
    own: Samples,
    own_rounds: Rounds,
    own_s: float,
    other: Samples,
    other_rounds: Rounds,
    other_s: float,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """The speedup of one case over another, in every line, table and picture.

    From the pairs where the two share rounds, from the medians of their samples where not; without
    samples from the recorded medians, with the interval of no knowledge.
    """
    if own is None or other is None or len(own) == 0 or len(other) == 0:
        return Estimate(ratio=other_s / own_s, low=0.0, high=np.inf)
    if paired(own_rounds, other_rounds):
        return paired_ratio(other, own, other_rounds, own_rounds, num_resamples=num_resamples)
    return unpaired_ratio(other, own, num_resamples=num_resamples)


def shapes(seconds: Array, low: Array, high: Array, scale: Array) -> tuple[Array, Array]:
    """Half-widths (log-seconds) below and above a prediction that are the case's own, of records
    that hold its band and ``scale`` alone: what quadrature leaves of the band.

    Older records have no scale either (0), which widens the bands of their ratios.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        down, up = np.log(seconds / low), np.log(high / seconds)
    below, above = (np.sqrt(np.maximum(side**2 - scale**2, 0)) for side in (down, up))
    return below, above


def predicted(seconds: Array, scale: Array, below: Array, above: Array, pairs: Array) -> Array:
    """(cells, 3) ratio, low, high of predictions for row pairs (own, other), as
    ``cost.uncertainty.ratio_band`` gives them one at a time.

    ``scale`` is the part of a band's half-width (log-seconds) that all cases on the device share,
    ``below`` and ``above`` are the case's own parts.
    """
    result = np.full((len(pairs), 3), np.nan)
    known = (pairs >= 0).all(axis=1)
    own, other = pairs[known].T
    ratio = np.log(seconds[other]) - np.log(seconds[own])
    down, up = (
        np.where(
            own == other, 0.0, ratio_half_width((scale[own], scale[other]), (mine[own], its[other]))
        )
        for mine, its in ((above, below), (below, above))
    )
    result[known] = np.exp(np.column_stack([ratio, ratio - down, ratio + up]))
    return result


def verdicts(ratios: Array, low: Array, high: Array) -> Array:
    """FASTER, SLOWER, SAME or AMBIGUOUS for each, MISSING where there is no ratio; an unknown
    interval is AMBIGUOUS."""
    words = [
        MISSING if np.isnan(r) else verdict(float(a), float(b))
        for r, a, b in zip(ratios, low, high)
    ]
    return np.array(words, dtype=object)
