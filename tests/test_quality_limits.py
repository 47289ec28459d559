"""Limits that any implementation of the mechanisms must meet, on the real cores; and what only
looks like a limit."""

import math
from itertools import pairwise

import pytest
import torch

from flurka_bench.attention.functional import compressed_attention
from flurka_bench.attention.similarity import Softmax
from flurka_bench.kinds.error import (
    bounds,
    implied,
    projections,
)
from flurka_bench.kinds.error.inputs import (
    Clustered,
    Draw,
    Gaussian,
    generator,
)
from flurka_bench.kinds.error.metrics import measure

N, D = 64, 16
KERNELS = ("favor", "relu", "elu")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(seed=0, scale=0.7, seq_len=N, num_heads=2):
    return Gaussian(scale=scale).draw(seed, num_heads=num_heads, seq_len=seq_len, head_dim=D)


def features(similarity, num_features=32, seed=0):
    return implied.feature_map(
        similarity,
        head_dim=D,
        num_features=num_features,
        source=generator("test", similarity, seed),
    )


def core(inputs, similarity, E=None, F=None, **options):
    module = None if E is None else implied.compression(E, E if F is None else F, **options)
    q, k, v = (x.unsqueeze(0) for x in (inputs.q, inputs.k, inputs.v))
    return compressed_attention(q, k, v, similarity or Softmax(sdpa=False), module)[0]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("similarity", ["softmax", *KERNELS])
def test_a_permutation_of_all_keys_is_the_uncompressed_parent(similarity):
    inputs, phi = draw(), features(similarity)
    P = torch.eye(N, dtype=torch.float64)[torch.randperm(N, generator=generator("perm"))]
    assert relative(core(inputs, phi, P), core(inputs, phi)) < 1e-13
    broken = P.clone()
    broken[0] = P[1]  # one key lost, one doubled: the test can fail
    assert relative(core(inputs, phi, broken), core(inputs, phi)) > 1e-3


@pytest.mark.parametrize("similarity", ["softmax", *KERNELS])
def test_mean_pool_of_all_keys_is_the_identity(similarity):
    inputs, phi = draw(), features(similarity)
    E = projections.mean_pool(N, N)
    assert torch.equal(E, torch.eye(N, dtype=torch.float64))
    assert torch.equal(core(inputs, phi, E, kind="mean-pool"), core(inputs, phi))


@pytest.mark.parametrize("similarity", ["softmax", "relu"])
def test_mean_pool_error_falls_on_the_way_in_the_mean_over_seeds(similarity):
    ranks, seeds = (4, 8, 16, 32, 64), range(12)
    means = []
    for rank in ranks:
        E = projections.mean_pool(rank, N)
        errors = [
            relative(
                core(draw(s), features(similarity, seed=s), E, kind="mean-pool"),
                core(draw(s), features(similarity, seed=s)),
            )
            for s in seeds
        ]
        means.append(sum(errors) / len(errors))
    assert all(later < earlier for earlier, later in pairwise(means)), means
    assert means[-1] < 1e-15


def slope(counts, errors):
    x, y = (
        torch.tensor([math.log(value) for value in values], dtype=torch.float64)
        for values in (counts, errors)
    )
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("rank", [None, 16])
def test_favor_tends_to_its_softmax_parent_at_rate_one_half(rank):
    inputs = draw(scale=0.4)
    E = None if rank is None else projections.mean_pool(rank, N)
    parent = core(inputs, None, E)
    counts = (64, 256, 1024, 4096)
    errors = []
    for count in counts:
        squares = [
            relative(core(inputs, features("favor", count, seed), E), parent) ** 2
            for seed in range(10)
        ]
        errors.append(math.sqrt(sum(squares) / len(squares)))
    assert slope(counts, errors) == pytest.approx(-0.5, abs=0.06), errors
    assert errors[-1] < 0.05


def test_relu_tends_to_its_own_kernel_and_not_to_softmax():
    inputs = draw(scale=0.7, num_heads=1)
    counts, own, to_softmax = (64, 256, 1024, 4096), [], []
    for count in counts:
        target = bounds.expected_relu_attention(inputs.q[0], inputs.k[0], count) @ inputs.v[0]
        outputs = [core(inputs, features("relu", count, seed))[0] for seed in range(10)]
        own.append(math.sqrt(sum(relative(output, target) ** 2 for output in outputs) / 10))
        to_softmax.append(sum(relative(output, core(inputs, None)[0]) for output in outputs) / 10)
    assert slope(counts, own) == pytest.approx(-0.5, abs=0.06), own
    assert own[-1] < 0.04
    assert to_softmax[-1] > 0.9 * to_softmax[-2] > 5 * own[-1], (
        to_softmax
    )  # a floor, far above what randomness is left


def test_elu_is_its_own_kernel_exactly():
    inputs = draw(num_heads=1)
    expected = bounds.elu_attention(inputs.q[0], inputs.k[0]) @ inputs.v[0]
    assert relative(core(inputs, features("elu"))[0], expected) < 1e-13


@pytest.mark.parametrize("similarity", ["softmax", *KERNELS])
def test_permuting_keys_together_with_the_columns_changes_nothing(similarity):
    inputs, phi = draw(), features(similarity)
    source = generator("columns")
    E, F = projections.draw("gaussian", 16, N, source, share_kv=False)
    order = torch.randperm(N, generator=source)
    moved = Draw(inputs.q, inputs.k[:, order], inputs.v[:, order])
    assert relative(core(moved, phi, E[:, order], F[:, order]), core(inputs, phi, E, F)) < 1e-12
    assert relative(core(moved, phi, E, F), core(inputs, phi, E, F)) > 1e-2


# --- What is not a limit
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["gaussian", "orthonormal"])
@pytest.mark.parametrize("share_kv", [False, True])
def test_plain_random_projections_inside_the_softmax_do_not_become_full_attention_at_k_equals_n(
    projection, share_kv
):
    errors = []
    for seed in range(20):
        inputs = draw(seed)
        E, F = projections.draw(projection, N, N, generator(projection, seed), share_kv=share_kv)
        errors.append(relative(core(inputs, None, E, F), core(inputs, None)))
    assert min(errors) > 0.5
    if not share_kv:  # the output is zero in the mean, so the error is above that of answering zero
        assert sum(error**2 for error in errors) / 20 > 1


def test_independent_gaussian_error_is_what_the_formula_says_at_any_rank():
    inputs = draw(num_heads=1)
    q, k, v, full = inputs.q[0], inputs.k[0], inputs.v[0], core(inputs, None)[0]
    for rank in (32, 1024):
        E, _ = projections.draw("gaussian", rank, N, generator("E", rank), share_kv=False)
        C = bounds.attention(q, E @ k)
        squares = torch.tensor(
            [
                float(
                    ((C @ (projections.gaussian(rank, N, generator("F", rank, s)) @ v)) - full)
                    .square()
                    .sum()
                )
                for s in range(400)
            ]
        )
        stated = bounds.independent_root_mean_square(C, v, full)
        assert abs(float(squares.mean()) - stated**2) < 4 * float(squares.std()) / 20
        assert stated > float(full.norm())


def test_shared_gaussian_tends_to_linear_attention_without_a_softmax():
    inputs = draw(scale=0.7, num_heads=1)
    limit = bounds.shared_gaussian_limit(inputs.q[0], inputs.k[0], inputs.v[0], variance=1 / N)
    ranks, errors = (256, 1024, 4096, 16384), []
    for rank in ranks:
        squares = []
        for seed in range(8):
            E = torch.randn(
                rank, N, generator=generator("shared", rank, seed), dtype=torch.float64
            ) / math.sqrt(N)
            squares.append(
                relative(bounds.attention(inputs.q[0], E @ inputs.k[0]) @ (E @ inputs.v[0]), limit)
                ** 2
            )
        errors.append(math.sqrt(sum(squares) / len(squares)))
    assert slope(ranks, errors) == pytest.approx(-0.5, abs=0.08), errors
    assert relative(limit, core(inputs, None)[0]) > 0.5  # and that is not full attention


def test_the_theorems_scaled_projections_drawn_at_random_do_not_approximate_either():
    """Linformer's theorem 2 says that such E = delta R, F = exp(-delta) R exist; a draw of R is not
    one of them."""
    inputs = draw(num_heads=1)
    full = core(inputs, None)[0]
    for delta in (1.0, 0.1, 1 / N):
        errors = []
        for seed in range(20):
            R = projections.gaussian(N, N, generator("theorem", seed))
            errors.append(relative(core(inputs, None, delta * R, math.exp(-delta) * R)[0], full))
        assert min(errors) > 0.5
    # What its proof does use, R after the softmax, works: theorem 1.
    A, big = (
        bounds.attention(inputs.q[0], inputs.k[0]),
        projections.gaussian(64 * N, N, generator("big")),
    )
    assert relative((A @ big.mT) @ (big @ inputs.v[0]), full) < 0.2


def test_optimal_is_the_lower_limit_of_every_mechanism():
    inputs = Clustered(clusters=8, contiguous=True).draw(3, num_heads=2, seq_len=N, head_dim=D)
    reference, source = implied.reference(inputs), generator("limit")
    vectors = projections.right_singular_vectors(reference, 16, source)
    [best] = measure(reference, [implied.optimal(vectors, 16)], source, spectral=False)
    singular = torch.linalg.svdvals(next(iter(reference.blocks()))[1])
    for head in range(2):
        tail = bounds.spectral_tail(singular[head], 16) / float(singular[head].norm())
        assert float(best.matrix_frobenius[head]) == pytest.approx(tail, rel=1e-6)
    E = projections.mean_pool(16, N)
    others = [implied.uncompressed(inputs, features(name, 16)) for name in KERNELS]
    others += [
        implied.compressed(inputs, E, E, phi, kind="mean-pool")
        for phi in (None, *(features(n, 48) for n in KERNELS))
    ]
    for errors in measure(reference, others, source, spectral=False):
        assert (errors.matrix_frobenius >= best.matrix_frobenius).all()
