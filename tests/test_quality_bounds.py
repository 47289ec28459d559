"""Closed forms within their sampling error, and every bound held against a thousand draws."""

import math

import pytest
import torch
from scipy.special import hyp1f1

from flurka_bench.attention.similarity import (
    RELU_EPSILON,
    orthogonal_gaussian,
)
from flurka_bench.kinds.error import bounds
from flurka_bench.kinds.error.inputs import generator
from flurka_bench.kinds.error.verification import table


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("a", "z"), [(4, 0.0), (4, 0.3), (32, 2.0), (64, 10.0), (16, 20.0)])
def test_kummer(a, z):
    assert bounds.kummer(a, a / 2, z) == pytest.approx(hyp1f1(a, a / 2, z), rel=1e-13)


def relative_errors(x, y, num_features, orthogonal):
    """phi(x) . phi(y) / SM(x, y) - 1 for many Omega, the features as the implementation defines
    them."""
    d, source = len(x), generator("variance", num_features, orthogonal)
    if orthogonal:
        omega = torch.stack([orthogonal_gaussian(d, num_features, source) for _ in range(6000)])
    else:
        omega = torch.randn(50_000, d, num_features, generator=source, dtype=torch.float64)
    return ((x + y) @ omega - (x @ x + y @ y) / 2 - x @ y).exp().mean(-1) - 1


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize(
    "num_features", [4, 8, 12]
)  # below, at and above d, where a block is cut short
def test_favor_variance_is_met_within_its_sampling_error(num_features, orthogonal):
    x, y = torch.randn(2, 8, generator=generator("pair"), dtype=torch.float64) * 0.25
    errors = relative_errors(x, y, num_features, orthogonal)
    stated = bounds.favor_relative_variance(
        float((x + y).square().sum()), head_dim=8, num_features=num_features, orthogonal=orthogonal
    )
    squares = errors.square()
    sampling_error = float(squares.std()) / math.sqrt(len(squares))
    assert abs(float(squares.mean()) - stated) < 4 * sampling_error
    assert sampling_error < 0.1 * stated  # or the line above could not fail
    assert abs(float(errors.mean())) < 4 * math.sqrt(stated / len(errors))


def test_orthogonal_features_vary_less_and_never_negatively():
    for square in (0.01, 0.5, 2.0, 8.0):
        for count in (1, 2, 16, 32, 48):
            orthogonal, independent = (
                bounds.favor_relative_variance(
                    square, head_dim=16, num_features=count, orthogonal=o
                )
                for o in (True, False)
            )
            assert 0 < orthogonal <= independent
            assert (orthogonal == independent) == (count == 1)


def test_row_moments_are_exact():
    source = generator("moments")
    q, k, v = torch.randn(3, 24, 8, generator=source, dtype=torch.float64) * 0.35
    moments = bounds.favor_rows(q, k, v)
    A = bounds.attention(q, k)
    full = A @ v
    x, y = q * 8**-0.25, k * 8**-0.25
    outputs, normalisers = [], []
    for _ in range(3000):
        omega = torch.randn(8, 16, generator=source, dtype=torch.float64)
        phi_x, phi_y = ((z @ omega - z.square().sum(-1, keepdim=True) / 2).exp() for z in (x, y))
        delta = phi_x @ phi_y.mT / 16 / (x @ y.mT).exp() - 1
        normalisers.append((A * delta).sum(-1))
        outputs.append(
            torch.einsum("ij,ijc->ic", A * delta, v[None] - full[:, None]).square().sum(-1)
        )
    for stated, samples in (
        (moments.output, torch.stack(outputs)),
        (moments.normaliser, torch.stack(normalisers).square()),
    ):
        error = samples.std(0) / math.sqrt(len(samples))
        assert ((samples.mean(0) - stated / 16).abs() < 5 * error).all()


def test_relu_kernel_is_the_expected_one():
    source = generator("relu")
    x, y = torch.randn(2, 5, 8, generator=source, dtype=torch.float64)
    m, total = 64, []
    for _ in range(4000):
        omega = torch.randn(8, m, generator=source, dtype=torch.float64) / math.sqrt(m)
        total.append(
            ((x @ omega).clamp_min(0) + RELU_EPSILON) @ ((y @ omega).clamp_min(0) + RELU_EPSILON).mT
        )
    samples = torch.stack(total)
    error = samples.std(0) / math.sqrt(len(samples))
    assert ((samples.mean(0) - bounds.relu_kernel(x, y, m)).abs() < 5 * error).all()


def test_jl_epsilon():
    assert bounds.jl_epsilon(10, 100, 0.1) == math.inf
    epsilon = bounds.jl_epsilon(2000, 100, 0.1)
    assert 4 * 100 * math.exp(-(epsilon**2 - epsilon**3) * 2000 / 4) == pytest.approx(0.1)
    assert bounds.jl_epsilon(4000, 100, 0.1) < epsilon
    assert bounds.linformer_rank(512, 0.5) == pytest.approx(5 * math.log(512) / 0.125)


def test_spectral_tail_by_hand():
    singular = torch.tensor([4.0, 2.0, 2.0, 1.0])
    assert bounds.spectral_tail(singular, 1) == pytest.approx(3.0)
    assert bounds.spectral_tail(singular, 4) == 0
    # k = 3: p = 2 gives sqrt(1 + 1) tail(1) = 3 sqrt 2; p = 3 gives tail(0) = 5
    assert bounds.sketch_error(singular, 3) == pytest.approx(3 * math.sqrt(2))


def test_every_bound_holds_as_often_as_it_says_and_is_not_vacuous_unless_marked():
    rows = list(table(300))
    assert len(rows) >= 15
    for row in rows:
        assert row.held >= row.stated, row
        if not row.vacuous:
            assert row.factor <= row.limit, row
    # Each kind of bound says something at one of its settings at least, but for those that are
    # about projections which do not approximate at all.
    hopeless = {row.name for row in rows} - {row.name for row in rows if not row.vacuous}
    assert hopeless == {
        "Johnson-Lindenstrauss, A RᵀR v, all products",
        "Gaussian E, F independent, exact mean square",
    }


def test_a_bound_that_is_too_small_is_noticed(monkeypatch):
    monkeypatch.setattr(
        bounds, "favor_row_bound", lambda moments, m, delta: (0.3 * moments.output / m).sqrt()
    )
    rows = [row for row in table(30) if row.name == "FAVOR+ with its normaliser"]
    assert any(row.held < row.stated for row in rows)


def test_constants_of_bounds_by_hand():
    """(epsilon^2 - epsilon^3) k / 4 = ln(4 x 10 / 0.1) at k = 4,000: epsilon^2 - epsilon^3 =
    0.0059915; and Halko's sqrt(1 + k / (p - 1)) at its best p of three."""
    epsilon = bounds.jl_epsilon(4000, 10, 0.1)
    assert epsilon**2 - epsilon**3 == pytest.approx(4 * math.log(400) / 4000)
    values = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    tails = {left: math.sqrt(sum(float(x) ** 2 for x in values[left:])) for left in range(4)}
    by_p = [math.sqrt(1 + (3 - p) / (p - 1)) * tails[3 - p] for p in (2, 3)]
    assert bounds.sketch_error(values, 3) == pytest.approx(min(by_p))
    moments = bounds.FavorRows(
        output=torch.tensor([8.0], dtype=torch.float64),
        normaliser=torch.tensor([2.0], dtype=torch.float64),
    )
    # y = sqrt(2 x 2 / (100 x 0.16)) = 1/2, the numerator sqrt(2 x 8 / 16) = 1
    assert float(bounds.favor_row_bound(moments, 100, 0.16)) == pytest.approx(2.0)
