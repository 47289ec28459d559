"""A device's own numbers from measured rows: the shipped constants moved as far as the rows insist,
and judged on rows that the fit did not see.

Needs NumPy alone. The datasheet is never touched; what is found goes into the profile's
``measured`` table.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from flurka_bench.cost.cpu_rows import (
    calibrate_cpu,
    features,
    op_of,
    predict_rows,
)
from flurka_bench.cost.fitting import (
    Residual,
    Rows,
    absolute_percentage_error,
    fit_log,
    stratified,
)
from flurka_bench.cost.operators import (
    OPERATORS,
    Operator,
    operator_of,
)
from flurka_bench.hardware.measured import (
    FIGURES,
    clamped,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.hardware.rows import NUM_FITTED
from flurka_bench.words.errors import RequestError

MIN_RESIDUAL_ROWS = 10
CPU_WIDENING = 8  # no CPU's rows ship, so the shipped constants say little about one


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How well one op and dtype is predicted on rows that were not fitted: mean absolute percentage
    errors (0.05: 5 %)."""

    op: str
    dtype: str
    num_fitted: int
    num_held_out: int
    before: float | None  # from what the profile held
    after: float | None
    note: str = ""


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


def forget(profile: Profile, groups: Iterable[Rows]) -> Profile:
    """The profile without what was measured before for the ops of these rows: a fit starts at the
    shared constants."""
    known = {op: operator for operator in OPERATORS for op in operator.ops}
    kept = profile.measured
    for rows in groups:
        if rows.op in known:
            kept = kept.without(*known[rows.op].group(rows))
    return profile.with_measured(kept, profile.measured_about)


def calibrated(
    profile: Profile,
    groups: Sequence[Rows],
    *,
    figures: Mapping[str, float],
    about: Mapping[str, Any],
    num_fitted: int = NUM_FITTED,
) -> tuple[Profile, list[Fit]]:
    """The profile with what rows and figures of its device say, and how well it then predicts.

    Args:
        profile: what is known so far; what it held of these rows' ops is replaced.
        groups: rows by op and dtype.
        figures: measured beside the rows (``devices.microbenchmarks``).
        about: where the rows are from; the errors are added.
        num_fitted: see ``fit``.

    Raises:
        RequestError: there are rows, and none can be fitted.
    """
    measured = profile.measured.with_group((FIGURES,), figures)
    profile = forget(profile.with_measured(measured, profile.measured_about), groups)
    profile, fits = fit(profile, groups, num_fitted)
    if fits and not any(each.num_fitted for each in fits):
        raise RequestError(f"no row of {about.get('source')} can be fitted: {fits[0].note}")
    known = {
        f"error.{each.op}.{each.dtype}": round(each.after, 4)
        for each in fits
        if each.after is not None
    }
    told = {**about, "num_rows": sum(map(len, groups)), **known}
    return profile.with_measured(profile.measured, told), fits


def fit(
    profile: Profile, groups: Iterable[Rows], num_fitted: int = NUM_FITTED, seed: int = 0
) -> tuple[Profile, list[Fit]]:
    """Calibrate the profile on rows of its device and judge it on rows that were held out.

    A GPU is fitted on up to ``num_fitted`` stratified rows of each group. Of a small group a third
    is held out; below six rows nothing is, and no error is stated. On a CPU two thirds of each op's
    rows judge the last third, then all rows are fitted. A group of an unknown op is left out, with
    a note.
    """
    known: list[Rows] = []
    fits: list[Fit] = []
    check: Callable[[Rows], object] = op_of if profile.kind == "cpu" else operator_of
    for rows in groups:
        try:
            check(rows)
        except RequestError as error:
            fits.append(
                Fit(
                    op=rows.op,
                    dtype=rows.dtype,
                    num_fitted=0,
                    num_held_out=len(rows),
                    before=None,
                    after=None,
                    note=str(error),
                )
            )
        else:
            known.append(rows)
    if profile.kind != "cpu":
        for rows in known:
            profile, one = _fit_one(profile, operator_of(rows), rows, num_fitted, seed)
            fits.append(one)
        return profile, fits
    for dtype in dict.fromkeys(rows.dtype for rows in known):
        own = [rows for rows in known if rows.dtype == dtype]
        profile, some = _fit_cpu(profile, own, seed)
        fits += some
    return profile, fits


def _fit_one(
    before: Profile, operator: Operator, rows: Rows, num_fitted: int, seed: int
) -> tuple[Profile, Fit]:
    count = len(rows)
    if count >= 6:
        count = min(num_fitted, count - math.ceil(count / 3))
    chosen = _chosen(operator.features(rows), count, seed)
    after, held_out = calibrate(before, rows.take(chosen)), rows.take(~chosen)

    def predicted(profile: Profile) -> np.ndarray:
        return operator.predict(profile, held_out, None)

    return after, _judged(rows, count, held_out, predicted, before, after)


def _fit_cpu(before: Profile, groups: Sequence[Rows], seed: int) -> tuple[Profile, list[Fit]]:
    """All ops of a dtype at once."""
    masks = [
        _chosen(features(rows), len(rows) - (len(rows) // 3 if len(rows) >= 4 else 0), seed)
        for rows in groups
    ]
    judged = calibrate_cpu(before, [rows.take(mask) for rows, mask in zip(groups, masks)])
    fits = []
    for rows, mask in zip(groups, masks):
        held_out = rows.take(~mask)
        predicted = partial(predict_rows, rows=held_out)
        fits.append(_judged(rows, len(rows), held_out, predicted, before, judged))
    return calibrate_cpu(before, groups), fits


def _chosen(shapes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Mask of ``count`` rows spread over the shapes."""
    mask = np.zeros(len(shapes), dtype=bool)
    mask[stratified(shapes, count, seed)] = True
    return mask


def _judged(
    rows: Rows,
    num_fitted: int,
    held_out: Rows,
    predicted: Callable[[Profile], np.ndarray],
    before: Profile,
    after: Profile,
) -> Fit:
    """What two profiles say of the rows held out; no error is stated where there are none."""

    def error(profile: Profile) -> float | None:
        if not len(held_out):
            return None
        return float(absolute_percentage_error(predicted(profile), held_out.seconds).mean()) / 100

    return Fit(
        op=rows.op,
        dtype=rows.dtype,
        num_fitted=num_fitted,
        num_held_out=len(held_out),
        before=error(before),
        after=error(after),
    )
