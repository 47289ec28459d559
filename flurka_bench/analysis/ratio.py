"""Intervals and verdicts for many speedups at once.

The interval is that of the percentile bootstrap of the median of the paired log-ratios. For a median the bootstrap's
distribution is known in closed form (Efron 1982, section 10.3: P(median* <= x_(i)) is a binomial tail), so no resampling is
needed and a hundred thousand cells take a second.
"""

import math
from functools import cache

import numpy as np

CONFIDENCE = 0.95
NOISE_FLOOR = 0.02  # two times within 2 % of each other are the same to a user, whatever the interval says
VERDICTS = ("FASTER", "SLOWER", "SAME", "AMBIGUOUS", "MISSING")


@cache
def bootstrap_ranks(count: int, confidence: float = CONFIDENCE) -> tuple[int, int]:
    """0-based ranks of the sorted sample that bound the bootstrap percentile interval of its median."""
    middle = (count + 1) // 2
    tail = (1 - confidence) / 2

    def below(rank: int) -> float:  # P(median* <= x_(rank)), rank from 1
        p = rank / count
        return sum(math.comb(count, j) * p**j * (1 - p) ** (count - j) for j in range(middle, count + 1))

    low = next(rank for rank in range(1, count + 1) if below(rank) > tail)
    return low - 1, count - low


def log_ratios(own: list[float], own_rounds: list[int] | None, other: list[float], other_rounds: list[int] | None) -> np.ndarray | None:
    """Log-ratios other / own, one per round that both have (the round's median), or None where fewer than three pair."""
    a, b = np.log(np.asarray(own, dtype=float)), np.log(np.asarray(other, dtype=float))
    if own_rounds is None or other_rounds is None or len(own_rounds) != len(a) or len(other_rounds) != len(b):
        return None
    own_ids, other_ids = np.asarray(own_rounds), np.asarray(other_rounds)
    if len(own_ids) == len(other_ids) and (own_ids == other_ids).all() and len(np.unique(own_ids)) == len(own_ids):
        return b - a if len(a) >= 3 else None
    shared = np.intersect1d(own_ids, other_ids)
    if len(shared) < 3:
        return None
    return np.array([np.median(b[other_ids == r]) - np.median(a[own_ids == r]) for r in shared])


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    values = np.sort(values)
    low, high = bootstrap_ranks(len(values))
    return float(np.median(values)), float(values[low]), float(values[high])


def log_ratio(own: list[float], own_rounds: list[int] | None, other: list[float], other_rounds: list[int] | None) -> tuple:
    """Median and interval of log(other / own): paired by round where the rounds are known, else from the two medians."""
    paired = log_ratios(own, own_rounds, other, other_rounds)
    if paired is not None:
        return _interval(paired)
    (a, a_low, a_high), (b, b_low, b_high) = _interval(np.log(own)), _interval(np.log(other))
    return b - a, b - a - math.hypot(b - b_low, a_high - a), b - a + math.hypot(b_high - b, a - a_low)


def measured(samples: np.ndarray, rounds: np.ndarray, seconds: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(cells, 3) ratio, low, high for row pairs (own, other); nan where a side has no time, open interval where no samples."""
    result = np.full((len(pairs), 3), np.nan)
    for index, (own, other) in enumerate(pairs):
        if own < 0 or other < 0 or not (seconds[own] > 0 and seconds[other] > 0):
            continue
        a, b = samples[own], samples[other]
        if a is None or b is None or len(a) < 2 or len(b) < 2:
            result[index] = seconds[other] / seconds[own], 0, np.inf
        else:
            result[index] = np.exp(log_ratio(a, rounds[own], b, rounds[other]))
    return result


def predicted(seconds: np.ndarray, low: np.ndarray, high: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(cells, 3) ratio, low, high of predictions: the two bands' half-widths in quadrature, each on its own side."""
    own, other = pairs[:, 0], pairs[:, 1]
    result = np.full((len(pairs), 3), np.nan)
    known = (own >= 0) & (other >= 0)
    own, other = own[known], other[known]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = np.log(seconds[own]), np.log(seconds[other])
        down = np.hypot(b - np.log(low[other]), np.log(high[own]) - a)
        up = np.hypot(np.log(high[other]) - b, a - np.log(low[own]))
    result[known] = np.exp(np.column_stack([b - a, b - a - down, b - a + up]))
    return result


def verdicts(ratios: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """FASTER, SLOWER, SAME (the interval lies within the noise floor), AMBIGUOUS, or MISSING where there is no ratio."""
    faster, slower = low > 1, high < 1
    same = (low > 1 / (1 + NOISE_FLOOR)) & (high < 1 + NOISE_FLOOR)
    words = np.select([np.isnan(ratios), same, faster, slower], ["MISSING", "SAME", "FASTER", "SLOWER"], "AMBIGUOUS")
    return words.astype(object)
