"""What an interval of a speedup allows to say: one rule, for what was measured and what was
predicted."""

import math

VERDICTS = ("FASTER", "SLOWER", "SAME", "AMBIGUOUS")

# Two times within this ratio of each other are the same for anybody who has to choose between them.
MARGIN = 0.02

RULE = (
    "FASTER or SLOWER: the whole interval (95 % where measured, the model's 90 % band where"
    f" predicted) lies more than {100 * MARGIN:g} % from 1; SAME: all of it lies within;"
    " AMBIGUOUS: anything else."
)


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """FASTER or SLOWER where the interval lies outside the margin around 1, SAME where inside, else
    AMBIGUOUS; so is an interval that nobody knows (nan, or 0 to infinity)."""
    if not (math.isfinite(low) and low == low and high == high):
        return "AMBIGUOUS"
    if low > 1 + margin:
        return "FASTER"
    if high < 1 / (1 + margin):
        return "SLOWER"
    if low >= 1 / (1 + margin) and high <= 1 + margin:
        return "SAME"
    return "AMBIGUOUS"
