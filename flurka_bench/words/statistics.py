"""From samples to verdicts: paired ratios, bootstrap intervals. NumPy only.

A speedup is baseline time / candidate time: above 1 the candidate is faster. Samples of one round
are pairs; the estimate is the median of the pairs' log-ratios, which drift common to both leaves
alone and rare long samples hardly move. Its interval is a circular block bootstrap over rounds
(Politis and Romano 1992), because under load neighbouring rounds resemble each other, widened by
Student's t for the number of independent blocks that there are and by what blocks that short leave
out of the noise.

A handful of rounds inside one slow swing of the machine cannot show the swing: their noise looks
small and independent. So fewer than ``FEW_ROUNDS`` are taken to have an autocorrelation of 0.8
whatever they show, and more gradually less. Under noise this makes few rounds AMBIGUOUS, which is
what they are; a quiet machine's few rounds still tell a difference from its noise.

Share of A/A trials called FASTER or SLOWER (noise of 5 % on each side, 1,000 trials a cell), by
autocorrelation of the noise; then of trials with a true difference of 10 % called so, by the noise
of each side (autocorrelation 0.2). Printed by ``scripts/error_rates.py``:

======  ====  ====  ====  ====  =====  =====  =====  =====
rounds   0.0   0.3   0.5   0.8  0.5 %  1.0 %  2.0 %  3.0 %
======  ====  ====  ====  ====  =====  =====  =====  =====
     5   0 %   0 %   1 %   2 %   94 %   53 %   18 %    9 %
     8   0 %   0 %   1 %   4 %  100 %   92 %   47 %   20 %
    12   0 %   0 %   0 %   3 %  100 %   99 %   69 %   32 %
    20   0 %   0 %   0 %   3 %  100 %  100 %   92 %   60 %
    30   0 %   0 %   0 %   4 %  100 %  100 %  100 %   98 %
    60   0 %   0 %   0 %   1 %  100 %  100 %  100 %  100 %
======  ====  ====  ====  ====  =====  =====  =====  =====

The ratios with at least 16 rounds in the reference runs have an autocorrelation of 0.2 (quick) and
0.4 (layer) at the ninth decile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from flurka_bench.words.errors import RequestError
from flurka_bench.words.verdict import Estimate

CONFIDENCE = 0.95
NUM_RESAMPLES = 1000
_MIN_PAIRS = 5  # below, no interval narrower than everything is honest
# Before a round is seen, the noise's autocorrelation is taken to be this, with the weight of so
# many rounds ...
_PRIOR_AUTOCORRELATION, _PRIOR_ROUNDS = 0.5, 8
# ... and whatever is seen, it is taken to be at least this while there are few rounds, and
# inversely to their number beyond.
FEW_ROUNDS, _LEAST_AUTOCORRELATION = 24, 0.8


def modified_z_scores(samples: Sequence[float]) -> np.ndarray:
    """0.6745 (x - median) / MAD (Iglewicz and Hoaglin 1993); where more than half are equal, by the
    mean deviation."""
    values = np.asarray(samples, dtype=float)
    deviation = values - np.median(values)
    mad = np.median(np.abs(deviation))
    scale = mad / 0.6745 if mad > 0 else 1.2533 * np.mean(np.abs(deviation))
    return deviation / scale if scale > 0 else np.zeros_like(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioEstimate(Estimate):
    """An estimate from samples, and how many of them it rests on."""

    num_pairs: int
    paired: bool = True

    @property
    def relative_width(self) -> float:
        """(high - low) / ratio; what sampling drives down."""
        return (self.high - self.low) / self.ratio if self.ratio > 0 else math.inf


def paired_ratio(
    baseline_s: Sequence[float],
    candidate_s: Sequence[float],
    baseline_rounds: Sequence[int] | None = None,
    candidate_rounds: Sequence[int] | None = None,
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> RatioEstimate:
    """baseline / candidate by round, with a bootstrap interval.

    Args:
        baseline_s: seconds per call, one per round.
        candidate_s: the same of the candidate.
        baseline_rounds: round id of each baseline sample; None: 0, 1, 2, ...
        candidate_rounds: the same of the candidate. Samples whose round the other side lacks are
            left out.
        confidence: of the interval.
        num_resamples: bootstrap resamples.
        seed: of the bootstrap; equal seeds give equal intervals.

    Returns:
        The estimate; with fewer than five pairs its interval is (0, inf), so AMBIGUOUS.
    """
    if baseline_rounds is None:
        baseline_rounds = range(len(baseline_s))
    if candidate_rounds is None:
        candidate_rounds = range(len(candidate_s))
    left = dict(zip(baseline_rounds, baseline_s, strict=True))
    right = dict(zip(candidate_rounds, candidate_s, strict=True))
    common = sorted(left.keys() & right.keys())
    logs = _logs([left[key] for key in common]) - _logs([right[key] for key in common])
    if len(logs) < _MIN_PAIRS:
        return _too_few(logs, paired=True)
    spread = _block_bootstrap(logs, num_resamples, seed)
    num_blocks = len(logs) / block_length(logs)
    return _estimate(float(np.median(logs)), spread, num_blocks, len(logs), confidence, paired=True)


def unpaired_ratio(
    baseline_s: Sequence[float],
    candidate_s: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> RatioEstimate:
    """baseline / candidate of two runs that share no rounds: the ratio of medians, each side
    resampled by itself.

    What differed between the two occasions (clock, neighbours, temperature) is inside the ratio and
    not in its interval.
    """
    left, right = _logs(baseline_s), _logs(candidate_s)
    if min(len(left), len(right)) < _MIN_PAIRS:
        centre = np.median(left) - np.median(right) if len(left) and len(right) else math.nan
        return _too_few(np.array([centre]), paired=False)
    spread = _block_bootstrap(left, num_resamples, seed) - _block_bootstrap(
        right, num_resamples, seed + 1
    )
    num_blocks = min(len(left) / block_length(left), len(right) / block_length(right))
    centre = float(np.median(left) - np.median(right))
    return _estimate(
        centre, spread, num_blocks, min(len(left), len(right)), confidence, paired=False
    )


def median_interval(
    samples_s: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Median, low and high of one competitor's samples; (median, 0, inf) with fewer than five."""
    logs = _logs(samples_s)
    if len(logs) < _MIN_PAIRS:
        return float(np.exp(np.median(logs))) if len(logs) else math.nan, 0.0, math.inf
    spread = _block_bootstrap(logs, num_resamples, seed)
    estimate = _estimate(
        float(np.median(logs)),
        spread,
        len(logs) / block_length(logs),
        len(logs),
        confidence,
        paired=False,
    )
    return estimate.ratio, estimate.low, estimate.high


def _logs(samples_s: Sequence[float]) -> np.ndarray:
    values = np.asarray(samples_s, dtype=float)
    if values.size and not (np.isfinite(values).all() and (values > 0).all()):
        raise RequestError(
            f"samples must be finite and above 0 seconds, got {values[~(np.isfinite(values) & (values > 0))][0]}"
        )
    return np.asarray(np.log(values))


def _too_few(logs: np.ndarray, *, paired: bool) -> RatioEstimate:
    ratio = float(np.exp(np.median(logs))) if len(logs) else math.nan
    return RatioEstimate(ratio=ratio, low=0.0, high=math.inf, num_pairs=len(logs), paired=paired)


def _autocorrelation(values: np.ndarray) -> float:
    """Lag-1 autocorrelation of the ranks, corrected for its bias of about -1/n."""
    n = len(values)
    ranks = np.argsort(np.argsort(values)) - (n - 1) / 2
    return float(ranks[1:] @ ranks[:-1] / (ranks @ ranks)) + 1 / n


def block_length(values: np.ndarray) -> int:
    """Carlstein's (1986) length for an AR(1) series, from the lag-1 autocorrelation of the ranks; 1
    where there is none."""
    n, rho = len(values), _autocorrelation(values)
    if rho <= 1.0 / math.sqrt(n):
        return 1
    rho = min(rho, 0.95)
    return int(
        min(max(math.ceil((2 * rho / (1 - rho**2)) ** (2 / 3) * n ** (1 / 3)), 1), max(n // 4, 1))
    )


def _block_bootstrap(values: np.ndarray, num_resamples: int, seed: int) -> np.ndarray:
    """Medians of ``num_resamples`` circular block resamples, spread by what blocks of that length
    leave out."""
    n, length = len(values), block_length(values)
    num_blocks = -(-n // length)
    starts = np.random.default_rng(seed).integers(0, n, size=(num_resamples, num_blocks))
    index = (starts[:, :, None] + np.arange(length)).reshape(num_resamples, -1)[:, :n] % n
    centre = np.median(values)
    medians = np.median(values[index], axis=1)
    return np.asarray(centre + _left_out(values, length) * (medians - centre))


def _left_out(values: np.ndarray, length: int) -> float:
    """Standard error of an AR(1) series over what its blocks of ``length`` show of it; 1 for long
    series without memory.

    The variance of a mean of n is v = (1 + 2 sum (1 - j / n) rho^j) / n times the series', of which
    a sample of n shows only 1 - v; a block of length L holds 1 + 2 sum (1 - j / L) rho^j of n v.
    rho is the estimate shrunk towards the prior, not below what few rounds are taken to have.
    """
    n = len(values)
    rho = (n * _autocorrelation(values) + _PRIOR_ROUNDS * _PRIOR_AUTOCORRELATION) / (
        n + _PRIOR_ROUNDS
    )
    rho = min(max(rho, _LEAST_AUTOCORRELATION * min(FEW_ROUNDS / n, 1.0)), 0.95)
    share = _correlated_sum(rho, n) / n
    return math.sqrt(n * share / (1 - share) / _correlated_sum(rho, length))


def _correlated_sum(rho: float, n: int) -> float:
    """1 + 2 sum over j < n of (1 - j / n) rho^j: the variance of a sum of n over n times that of
    one."""
    lags = np.arange(1, n)
    return 1 + 2 * float(((1 - lags / n) * rho**lags).sum())


def _estimate(
    centre: float,
    resampled: np.ndarray,
    num_blocks: float,
    num_pairs: int,
    confidence: float,
    *,
    paired: bool,
) -> RatioEstimate:
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    widen = _student_factor(max(num_blocks - 1, 1.0), confidence)
    low, high = centre - widen * max(centre - low, 0.0), centre + widen * max(high - centre, 0.0)
    low, high = math.exp(low), math.exp(high)
    return RatioEstimate(
        ratio=math.exp(centre),
        low=low,
        high=high,
        num_pairs=num_pairs,
        paired=paired,
    )


def _student_factor(freedom: float, confidence: float) -> float:
    """Student's t quantile over the normal's (Cornish-Fisher; Abramowitz and Stegun 26.7.5): 1 for
    many blocks."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (z**3 + z) / 4 / freedom + (5 * z**5 + 16 * z**3 + 3 * z) / 96 / freedom**2
    return 1 + terms / z
