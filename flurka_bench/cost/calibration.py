"""A device's own numbers from measured rows: the shipped constants moved as far as the rows insist.

Needs NumPy alone. The datasheet is never touched; what is found goes into the profile's
``measured`` table.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from flurka_bench.cost.fitting import (
    Residual,
    Rows,
    fit_log,
)
from flurka_bench.cost.operators import operator_of
from flurka_bench.hardware.measured import clamped
from flurka_bench.hardware.profile import Profile

MIN_RESIDUAL_ROWS = 10
CPU_WIDENING = 8  # no CPU's rows ship, so the shipped constants say little about one


def calibrate(profile: Profile, rows: Rows, table: Mapping[str, Any] | None = None) -> Profile:
    """The profile with the constants of one op and dtype fitted to rows of this device.

    Args:
        profile: what is known so far; its ``measured`` numbers of other ops are kept, those of this
            one replaced.
        rows: some twenty rows, spread over the shapes (``fitting.stratified``).
        table: replaces the shipped constants that the prior is centred on.
    """
    operator = operator_of(rows)
    group = operator.group(rows)
    kept = profile.measured.without(*group)
    start = operator.constants(profile.with_measured(kept, {}), rows, table)
    names = list(start)

    def at(shift: np.ndarray) -> Profile:
        moved = {}
        for name, by in zip(names, shift):
            value = float(start[name] * np.exp(by))
            moved[name] = clamped(profile.kind, ".".join((*group, name)), value)
        return profile.with_measured(kept.with_group(group, moved), profile.measured_about)

    shift, _ = fit_log(
        lambda shift: np.log(operator.predict(at(shift), rows, table) / rows.seconds),
        np.array([operator.prior_sd[name] for name in names])
        * (CPU_WIDENING if profile.kind == "cpu" else 1),
        noise=operator.noise,
    )
    fitted = at(shift)
    if not operator.has_residual or len(rows) < MIN_RESIDUAL_ROWS:
        return fitted
    left = np.log(rows.seconds / operator.predict(fitted, rows, table))
    residual = Residual.fitted(operator.features(rows), left)
    measured = fitted.measured.with_group(group, {"residual": residual.as_rows()})
    return fitted.with_measured(measured, profile.measured_about)
