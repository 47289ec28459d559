"""Fitting constants to measured rows, with NumPy alone: a robust least-squares fit in log space
with a prior.

Two fits use it. The global one (scripts/fit_cost_model.py) finds the shipped constants from many
devices. The device's own one (``calibrate``) moves a handful of them for one device from some
twenty rows, held by a prior toward the shipped values, and then explains what is left by a smooth
function of the shape (``Residual``).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.cost.tables import (
    Table,
    lacks,
    read_table,
)
from flurka_bench.hardware.rows import SHAPES
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import DTYPES

NOISE = 0.06  # log-seconds: scale of residuals beyond which a row counts as an outlier


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Measured rows of one op and dtype: named columns of one length, and the seconds measured."""

    op: str
    dtype: str
    device: str
    columns: Mapping[str, np.ndarray]
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, index: np.ndarray) -> "Rows":
        """The rows at an index array or mask, in its order."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return Rows(
            op=self.op,
            dtype=self.dtype,
            device=self.device,
            columns=columns,
            seconds=self.seconds[index],
        )


SHAPE = frozenset(name for columns in SHAPES.values() for name in columns)


def read_rows(path: str | Path) -> list[Rows]:
    """Operator files (columns as in data/gpu_ops: device, op, dtype, shape columns, latency_ms), by
    op, dtype and device.

    ``columns["line"]`` is each row's place among the file's rows, from 0. Columns that are no shape
    (``SHAPE``) are not read.

    Raises:
        RequestError: the file cannot be read, a needed column is missing, or a value is not what
            its column holds; says the line and the column.
    """
    return rows_of(read_table(path))


def rows_of(table: Table) -> list[Rows]:
    """As ``read_rows``, of a file that was read."""
    missing = [name for name in ("op", "dtype", "latency_ms") if name not in table.header]
    if missing:
        raise lacks(table, f"the columns {', '.join(missing)}")
    cells = {name: table.column(name) for name in table.header}
    places: dict[tuple[str, str, str], list[int]] = {}
    for place, key in enumerate(zip(cells["op"], cells["dtype"], table.devices)):
        if key[1] not in DTYPES:
            raise table.wrong(place, "dtype", f"one of {', '.join(DTYPES)}", key[1])
        places.setdefault(key, []).append(place)
    groups = []
    for (op, dtype, device), own in sorted(places.items()):
        columns = {}
        for name in (name for name in table.header if name in SHAPE):
            # A file of several ops leaves the sizes that an op does not have empty.
            if any(cells[name][place] for place in own):
                sizes = [table.size(place, name, cells[name][place]) for place in own]
                columns[name] = np.array(sizes, dtype=float)
        latencies = cells["latency_ms"]
        seconds = [table.seconds(place, "latency_ms", latencies[place]) for place in own]
        groups.append(
            Rows(
                op=op,
                dtype=dtype,
                device=device,
                columns=columns | {"line": np.array(own)},
                seconds=np.array(seconds),
            )
        )
    return groups


def rows_of_records(records: Iterable[Mapping[str, Any]]) -> list[Rows]:
    """Rows as ``calibrate`` measures them (the columns of operator files), by op and dtype."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["op"], record["dtype"]), []).append(record)
    found = []
    for (op, dtype), group in sorted(groups.items()):
        names = [name for name in group[0] if name in SHAPE]
        columns = {name: np.array([float(each[name]) for each in group]) for name in names}
        seconds = np.array([each["latency_ms"] for each in group]) * 1e-3
        device = group[0]["device"]
        found.append(Rows(op=op, dtype=dtype, device=device, columns=columns, seconds=seconds))
    return found


def fit_log(
    residual: Callable[[np.ndarray], np.ndarray],
    prior_sd: np.ndarray,
    *,
    noise: float = NOISE,
    max_steps: int = 30,
) -> tuple[np.ndarray, np.ndarray]:
    """Levenberg-Marquardt on log-parameters, soft-L1 loss on the residuals, a Gaussian prior around
    zero.

    Args:
        residual: log-parameters' shift x (p,) -> log(predicted / measured) (n,).
        prior_sd: (p,) standard deviation of each shift before any row is seen.
        noise: residuals well beyond this scale count linearly, not squared.

    Returns:
        The shift (p,) and its posterior covariance (p, p) in the Gaussian approximation.

    Raises:
        RequestError: a residual is not finite where the fit begins.
    """
    prior_sd = np.asarray(prior_sd, dtype=float)
    x = np.zeros(len(prior_sd))

    def loss(x: np.ndarray, r: np.ndarray) -> float:
        return float(np.sum(2 * (np.sqrt(1 + (r / noise) ** 2) - 1)) + np.sum((x / prior_sd) ** 2))

    r = residual(x)
    if not np.isfinite(r).all():
        raise RequestError("rows cannot be fitted: a shape is too large for a predicted time")
    value, damping = loss(x, r), 1e-2
    for _ in range(max_steps):
        step = 1e-3
        jacobian = np.stack(
            [(residual(x + step * unit) - r) / step for unit in np.eye(len(x))], axis=1
        )
        weight = 1 / np.sqrt(1 + (r / noise) ** 2) / noise**2
        hessian = (jacobian * weight[:, None]).T @ jacobian + np.diag(prior_sd**-2)
        gradient = jacobian.T @ (weight * r) + x / prior_sd**2
        improved = 0.0
        for _ in range(8):
            trial = x - np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), gradient)
            trial = np.clip(
                trial, x - 0.7, x + 0.7
            )  # constants halve or double in one step at most
            trial_r = residual(trial)
            trial_value = loss(trial, trial_r)
            if np.isfinite(trial_value) and trial_value < value:
                improved = value - trial_value
                x, r, value, damping = trial, trial_r, trial_value, damping / 3
                break
            damping *= 4
        if improved < 1e-5 * value:
            break
    return x, np.linalg.inv(hessian)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """What a device's fitted constants leave unexplained, as a smooth function of the shape: a
    Gaussian process.

    The log-residuals of the calibration rows are taken for samples of a function whose values at
    two shapes go together as exp(-d^2 / 2), d the distance of the logs of their sizes over
    ``LENGTH``; away from all rows it returns to zero. Its four hyperparameters are the same for
    every device and op.
    """

    anchors: np.ndarray  # (n, f) logs of the calibration rows' sizes
    weights: np.ndarray  # (n,)

    AMPLITUDE = 0.1  # log units: how far whole regions of shapes are off
    LENGTH = 1.5  # e-folds of a size after which neighbours know little of each other
    OFFSET = 0.03  # log units common to all shapes
    # log units of a single row: measurement and the tile steps that no smooth function follows
    NOISE = 0.12
    LIMIT = 0.4  # a row further off is taken for this far
    LARGEST = 3.0  # log units: what is fitted to rows within LIMIT overshoots far less

    @classmethod
    def fitted(cls, anchors: np.ndarray, log_residuals: np.ndarray) -> "Residual":
        """Condition the process on log(measured / predicted) (n,) at anchors (n, f)."""
        one = cls(anchors=anchors, weights=np.zeros(len(anchors)))
        covariance = one._covariance(anchors) + cls.NOISE**2 * np.eye(len(anchors))
        return cls(
            anchors=anchors,
            weights=np.linalg.solve(covariance, np.clip(log_residuals, -cls.LIMIT, cls.LIMIT)),
        )

    def _covariance(self, features: np.ndarray) -> np.ndarray:
        real = features.dtype.type
        x, y = features * real(1 / self.LENGTH), (self.anchors / self.LENGTH).astype(features.dtype)
        exponent = x @ y.T - real(0.5) * ((x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1))
        found: np.ndarray = np.exp(exponent) * real(self.AMPLITUDE**2) + real(self.OFFSET**2)
        return found

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Factor (m,) on the predicted seconds at features (m, f).

        Raises:
            RequestError: a factor that no fit gives; the weights were not found by ``fitted``.
        """
        logs = self._covariance(features) @ self.weights.astype(features.dtype)
        if np.abs(logs).max(initial=0.0) > self.LARGEST:
            raise RequestError(
                "the residual in the profile's [measured] table moves a prediction by a factor of"
                f" more than {math.exp(self.LARGEST):.0f}: calibrate writes no such one"
            )
        factor: np.ndarray = np.exp(logs)
        return factor

    def as_rows(self) -> list[list[float]]:
        """Anchors with their weights, as a profile stores them: f + 1 numbers a row."""
        return [
            [float(f"{value:.5g}") for value in row]
            for row in np.column_stack([self.anchors, self.weights])
        ]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[float]]) -> "Residual":
        """The inverse of ``as_rows``."""
        table = np.asarray(rows, dtype=float)
        return cls(anchors=table[:, :-1], weights=table[:, -1])


def stratified(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of ``count`` rows spread over the features (n, f): one at random from each of
    ``count`` cells.

    Cells are made by halving the rows again and again at the median of the feature that varies most
    in them, so they hold as many rows each as can be; no measured time is looked at.

    Raises:
        RequestError: fewer rows than asked for.
    """
    if count > len(features):
        raise RequestError(f"asked for {count} calibration rows, but there are {len(features)}")
    cells = [np.arange(len(features))]
    while len(cells) < count:
        largest = max(range(len(cells)), key=lambda at: len(cells[at]))
        cell = cells.pop(largest)
        widest = np.ptp(features[cell], axis=0).argmax()
        order = cell[np.argsort(features[cell, widest], kind="stable")]
        cells += [order[: len(order) // 2], order[len(order) // 2 :]]
    random = np.random.default_rng(seed)
    return np.sort(np.array([random.choice(cell) for cell in cells]))


def absolute_percentage_error(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """|predicted / measured - 1| x 100, row by row."""
    error: np.ndarray = 100 * np.abs(np.asarray(predicted) / np.asarray(measured) - 1)
    return error


def order_right(
    predicted: np.ndarray, measured: np.ndarray, ratio: float, *, pairs: int = 20_000, seed: int = 0
) -> float:
    """Share of random pairs that differ by more than ``ratio`` in which the prediction names the
    faster one; nan if none."""
    random = np.random.default_rng(seed)
    one, two = random.integers(0, len(measured), (2, pairs))
    apart = np.abs(np.log(measured[one] / measured[two])) > np.log(ratio)
    right = (predicted[one] < predicted[two]) == (measured[one] < measured[two])
    return float(right[apart].mean()) if apart.any() else float("nan")
