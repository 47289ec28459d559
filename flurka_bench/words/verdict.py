"""A speedup with its interval, and what the interval allows to say: one rule, for what was measured
and what was predicted."""

import math
from dataclasses import dataclass

VERDICTS = ("FASTER", "SLOWER", "SAME", "AMBIGUOUS")
MISSING = "MISSING"  # there is no speedup to judge

# Two times within this ratio of each other are the same for anybody who has to choose between them.
MARGIN = 0.02

RULE = (
    "FASTER or SLOWER: the whole interval (95 % where measured, the model's 90 % band where"
    f" predicted) lies more than {100 * MARGIN:g} % from 1; SAME: all of it lies within;"
    " AMBIGUOUS: anything else."
)


def verdict(low: float, high: float) -> str:
    """FASTER or SLOWER where the interval lies outside the margin around 1, SAME where inside, else
    AMBIGUOUS; so is an interval that nobody knows (nan, or 0 to infinity)."""
    if not (math.isfinite(low) and low == low and high == high):
        return "AMBIGUOUS"
    if low > 1 + MARGIN:
        return "FASTER"
    if high < 1 / (1 + MARGIN):
        return "SLOWER"
    if low >= 1 / (1 + MARGIN) and high <= 1 + MARGIN:
        return "SAME"
    return "AMBIGUOUS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How many times faster one case is than another, between ``low`` and ``high``; nan where one of
    them has no time."""

    ratio: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One of ``VERDICTS``, or ``MISSING`` where there is no ratio."""
        return MISSING if math.isnan(self.ratio) else verdict(self.low, self.high)
