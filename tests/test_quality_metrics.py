"""The errors themselves: by hand, against plain dense algebra, in blocks as whole, and within their
memory."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flurka_bench.kinds.error import (
    implied,
    projections,
)
from flurka_bench.kinds.error.inputs import (
    Draw,
    Gaussian,
    generator,
)
from flurka_bench.kinds.error.metrics import (
    Candidate,
    Reference,
    measure,
    spectral_norms,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(seq_len=48, num_heads=2, head_dim=8, seed=0):
    return Gaussian(scale=1.0).draw(seed, num_heads=num_heads, seq_len=seq_len, head_dim=head_dim)


def all_candidates(inputs):
    _, N, d = inputs.q.shape
    pool = projections.mean_pool(12, N)
    E, F = projections.draw("gaussian", 10, N, generator("EF"), share_kv=False)
    maps = [
        implied.feature_map(name, head_dim=d, num_features=24, source=generator(name))
        for name in ("favor", "relu", "elu")
    ]
    made = [
        implied.compressed(inputs, pool, pool, None, kind="mean-pool"),
        implied.compressed(inputs, E, F, None),
    ]
    made += [implied.uncompressed(inputs, phi) for phi in maps]
    made += [implied.compressed(inputs, pool, pool, phi, kind="mean-pool") for phi in maps]
    return [*made, *(implied.compressed(inputs, E, F, phi) for phi in maps)]


def test_by_hand():
    """Two keys with equal scores against an approximation that sees the first only."""
    q = torch.zeros(1, 2, 1, dtype=torch.float64)
    v = torch.tensor([[[2.0], [0.0]]], dtype=torch.float64)
    first = torch.tensor([[1.0, 0.0]], dtype=torch.float64)  # R: every query attends to position 0
    candidate = Candidate(
        lambda q, _: torch.ones(1, q.shape[1], 1, dtype=torch.float64), first, is_distribution=True
    )
    [errors] = measure(Reference(q, q, v), [candidate], generator("hand"))
    assert float(errors.matrix_frobenius) == pytest.approx(
        1.0
    )  # |(-1/2, 1/2) twice| / |(1/2, 1/2) twice|
    assert float(errors.matrix_spectral) == pytest.approx(1.0)
    assert errors.output_error == pytest.approx(1.0)  # outputs 2 against 1
    assert float(errors.output_cosine) == pytest.approx(1.0)
    assert float(errors.kl_nats) == pytest.approx(
        0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 300 * math.log(10))
    )
    even = Candidate(
        candidate.left, torch.tensor([[0.75, 0.25]], dtype=torch.float64), is_distribution=True
    )
    [errors] = measure(Reference(q, q, v), [even], generator("hand"))
    assert float(errors.kl_nats) == pytest.approx(
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    )


def test_against_dense_algebra():
    inputs = draw()
    reference = implied.reference(inputs)
    A = torch.softmax(inputs.q @ inputs.k.mT / math.sqrt(8), dim=-1)
    candidates = all_candidates(inputs)
    for candidate, errors in zip(candidates, measure(reference, candidates, generator("dense"))):
        approximation = candidate.left(inputs.q, A) @ candidate.right
        difference = approximation - A
        assert torch.allclose(
            errors.matrix_frobenius, difference.norm(dim=(1, 2)) / A.norm(dim=(1, 2))
        )
        exact = torch.linalg.matrix_norm(difference, 2) / torch.linalg.matrix_norm(A, 2)
        assert torch.allclose(errors.matrix_spectral, exact, rtol=5e-3)
        assert (errors.matrix_spectral <= exact * (1 + 2e-3)).all()
        output = candidate.output(inputs.q)
        assert errors.output_error == pytest.approx(
            float((output - A @ inputs.v).norm() / (A @ inputs.v).norm())
        )
        assert errors.factor_mismatch < 1e-12
        if candidate.is_distribution:
            assert torch.allclose(approximation.sum(-1), torch.ones(2, 48, dtype=torch.float64))
            assert (approximation >= 0).all()
            kl = (A * (A / approximation).log()).sum(-1).mean(-1)
            assert torch.allclose(errors.kl_nats, kl)
        else:
            assert errors.kl_nats is None
        for error, step in errors.parents.values():  # the sum that the triangle inequality allows
            assert errors.output_error <= error + step + 1e-12
    assert (
        sum(candidate.is_distribution for candidate in candidates) == 7
    )  # all but those with Gaussian F


def test_blocks_change_nothing():
    inputs = draw(seq_len=50)
    whole, blocked = (
        Reference(inputs.q, inputs.k, inputs.v),
        Reference(inputs.q, inputs.k, inputs.v, block_bytes=4 * 2 * 50 * 8 * 7),
    )
    assert whole.fits and blocked.block_rows == 7  # the last block is a single row
    E = projections.mean_pool(10, 50)
    F = projections.gaussian(10, 50, generator("F"))
    candidates = [
        implied.compressed(inputs, E, F, phi)
        for phi in (
            None,
            implied.feature_map("favor", head_dim=8, num_features=8, source=generator("f")),
        )
    ]
    for left, right in zip(
        *(measure(reference, candidates, generator("s")) for reference in (whole, blocked))
    ):
        for name in ("matrix_frobenius", "matrix_spectral", "output_frobenius", "output_cosine"):
            assert torch.allclose(getattr(left, name), getattr(right, name), rtol=1e-9), name
    vectors = [
        projections.right_singular_vectors(reference, 5, generator("v"))
        for reference in (whole, blocked)
    ]
    exact, attained = (
        measure(whole, [implied.optimal(v, 5)], generator("s"), spectral=False)[0] for v in vectors
    )
    assert (attained.matrix_frobenius >= exact.matrix_frobenius * (1 - 1e-9)).all()
    assert torch.allclose(attained.matrix_frobenius, exact.matrix_frobenius, rtol=0.02)


def test_spectral_norm_of_a_known_matrix():
    """Full attention with equal scores is the all-1/N matrix, of norm 1."""
    inputs = Draw(
        torch.zeros(1, 30, 4, dtype=torch.float64), *torch.randn(2, 1, 30, 4, dtype=torch.float64)
    )
    assert float(spectral_norms(implied.reference(inputs), [], generator("one"))) == pytest.approx(
        1.0, rel=1e-6
    )


def test_an_implementation_that_is_not_what_it_implies_is_noticed():
    inputs = draw()
    good = all_candidates(inputs)[0]
    off = Candidate(good.left, good.right, lambda q: good.output(q) * 1.001, is_distribution=True)
    [errors] = measure(implied.reference(inputs), [off], generator("x"), spectral=False)
    assert errors.factor_mismatch > 1e-4


def test_least_squares_beats_mean_pool_on_its_own_inputs_and_recovers_a_known_one():
    inputs = [draw(seed=seed) for seed in range(3)]
    references = [implied.reference(item) for item in inputs]
    E = projections.mean_pool(12, 48)
    attend = [implied.compressed_keys(item, E, None).attention for item in inputs]
    F = projections.least_squares(references, attend, E)

    def loss(G):
        return sum(
            float((A - C(r.q) @ G).square().sum())
            for r, C in zip(references, attend)
            for _, A in r.blocks()
        )

    assert loss(F) <= loss(E)
    # If attention really were C F for one F, that F is found.
    known = projections.gaussian(12, 48, generator("known")).abs()
    for reference, C in zip(references, attend):
        reference._whole, reference._output = C(reference.q) @ known, None
    assert torch.allclose(projections.least_squares(references, attend, E), known, atol=1e-3)


def positional(seed):
    """Inputs of which half lies in the position, equal in all of them, as in an encoder with
    learned positions."""
    source, fixed = generator("positional", seed), generator("positions")
    tensors = []
    for _ in "qkv":
        position, own = (
            torch.randn(2, 64, 16, generator=g, dtype=torch.float64) for g in (fixed, source)
        )
        tensors.append(position[:, torch.randperm(64, generator=fixed)] + 0.5 * own)
    return implied.reference(Draw(*tensors))


def test_learned_projections_beat_fixed_ones_on_inputs_that_they_never_saw():
    training, unseen = (
        [positional(seed) for seed in range(8)],
        [positional(seed) for seed in range(100, 104)],
    )
    pool = projections.mean_pool(8, 64)

    def error(E, F):
        outputs = [projections._softmax_scores(item, E)(item.q) @ (F @ item.v) for item in unseen]
        return sum(
            float((o - item.output).norm() / item.output.norm()) for o, item in zip(outputs, unseen)
        ) / len(unseen)

    E, F = projections.learn(training, 8)
    only_F = projections.least_squares(
        training, [projections._softmax_scores(item, pool) for item in training], pool
    )
    drawn = projections.draw("gaussian", 8, 64, generator("drawn"), share_kv=False)
    assert error(E, F) < 0.99 * error(pool, only_F) < 0.99 * error(pool, pool) < error(*drawn)
    again = projections.learn([positional(seed) for seed in range(8)], 8)
    assert torch.equal(again[0], E) and torch.equal(again[1], F)


def test_learning_without_anything_to_learn_does_not_leave_mean_pool_far_behind():
    """Independent Gaussian inputs share nothing: what training fits does not carry over, and the
    left-out input notices."""
    training, unseen = (
        [implied.reference(draw(seq_len=64, seed=seed)) for seed in seeds]
        for seeds in (range(8), range(50, 54))
    )
    pool = projections.mean_pool(8, 64)

    def error(E, F):
        outputs = [projections._softmax_scores(item, E)(item.q) @ (F @ item.v) for item in unseen]
        return sum(
            float((o - item.output).norm() / item.output.norm()) for o, item in zip(outputs, unseen)
        ) / len(unseen)

    assert error(*projections.learn(training, 8)) < 1.02 * error(pool, pool)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="needs Linux's resettable peak of resident memory",
)
def test_a_case_at_16384_holds_no_more_than_one_block():
    """All working memory of a whole case, a Lanczos step included, against 1024 x N float64; A
    itself would be sixteen times that."""
    code = """
import json, re, torch
from flurka_bench.kinds.error import implied, metrics, projections
from flurka_bench.kinds.error.inputs import Gaussian, generator
torch.set_num_threads(2)
metrics._LANCZOS_STEPS = 1
N = 16384
draw = Gaussian(scale=1.0).draw(0, num_heads=1, seq_len=N, head_dim=8)
E = projections.mean_pool(16, N)
phi = implied.feature_map("relu", head_dim=8, num_features=16, source=generator("m"))
candidate = implied.compressed(draw, E, E, phi, kind="mean-pool")
reference = implied.reference(draw)
metrics.measure(implied.reference(Gaussian(scale=1.0).draw(0, num_heads=1, seq_len=64, head_dim=8)), [], generator("warm"))
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
[errors] = metrics.measure(reference, [candidate], generator("x"))
print(json.dumps({"extra": status("VmHWM") - before, "error": errors.output_error}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    seen = json.loads(done.stdout)
    assert 0 < seen["error"] < 2
    assert seen["extra"] <= 1024 * 16384 * 8, f"{seen['extra'] / 2**20:.0f} MiB"
    assert seen["extra"] > 0.3 * 1024 * 16384 * 8  # the measurement sees the blocks at all
