"""The mechanisms as PyTorch code: algebraic identities, mostly in float64."""

import copy
import doctest
import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flurka_bench import attention
from flurka_bench.attention import (
    AttentionLayer,
    Compression,
    FLuRKAAttention,
    FullAttention,
    LinformerAttention,
    PerformerAttention,
    Softmax,
    feature_map,
    functional,
    modules,
)
from flurka_bench.attention.similarity import (
    _MeanProduct,
    orthogonal_gaussian,
)
from flurka_bench.attention.stages import profiled_stages
from flurka_bench.cases import registry
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import STAGES

NAMES = list(registry.MECHANISMS)
COMPRESSED = [name for name, mechanism in registry.MECHANISMS.items() if mechanism.compressed]
B, H, N, D_HEAD, K, M = 2, 3, 12, 4, 6, 5
VARIANTS = [  # kind, share_kv, share_heads
    ("dense", False, True),
    ("dense", True, True),
    ("dense", False, False),
    ("mean-pool", True, True),
    ("conv", False, True),
    ("conv", False, False),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def parts(
    name,
    *,
    seq_len=N,
    rank=K,
    num_features=M,
    kind="dense",
    share_kv=False,
    share_heads=True,
    dtype=torch.float64,
):
    """Similarity and compression (or None) of a mechanism."""
    mechanism = registry.get(name)
    compression = None
    if mechanism.compressed:
        shares = {"share_kv": share_kv, "share_heads": share_heads}
        compression = Compression(
            seq_len=seq_len, rank=rank, num_heads=H, kind=kind, **shares, dtype=dtype
        )
        for weight in compression.parameters():
            torch.nn.init.normal_(weight, std=0.5)
    if not mechanism.is_kernel:
        return Softmax(sdpa=mechanism.similarity == "sdpa"), compression
    return feature_map(
        mechanism.similarity, D_HEAD, num_features if mechanism.uses_features else None, dtype=dtype
    ), compression


def make_layer(name, *, dtype=torch.float64, **knobs):
    return AttentionLayer(H * D_HEAD, H, *parts(name, dtype=dtype, **knobs), dtype=dtype)


def core(name, **knobs):
    similarity, compression = parts(name, **knobs)
    return lambda q, k, v, keep=None: functional.compressed_attention(
        q, k, v, similarity, compression, keep
    )


def qkv(n=N, dtype=torch.float64):
    return [torch.randn(B, H, n, D_HEAD, dtype=dtype) for _ in range(3)]


def keep_mask(n=N):
    return torch.arange(n) < torch.tensor([[n - 3], [n - 1]])


@pytest.mark.parametrize("module", [modules, attention])
def test_docstring_examples_run(module):
    assert doctest.testmod(module).failed == 0


def test_docstrings_hold_an_example_of_each_public_layer():
    for layer in (FullAttention, LinformerAttention, PerformerAttention, FLuRKAAttention):
        assert doctest.DocTestFinder().find(layer)[0].examples


@pytest.mark.parametrize("name", NAMES)
def test_layer_orders_are_those_the_mechanism_declares(name):
    assert set(make_layer(name).orders) == set(registry.get(name).orders)


@pytest.mark.parametrize("compressed", COMPRESSED)
def test_identity_compression_gives_the_uncompressed_parent(compressed):
    mechanism = registry.get(compressed)
    similarity, compression = parts(compressed, rank=N)
    with torch.no_grad():
        for weight in compression.parameters():
            weight.copy_(torch.eye(N))
    q, k, v = qkv()
    assert not mechanism.is_kernel or similarity.name == mechanism.similarity
    parent = functional.compressed_attention(q, k, v, similarity)
    torch.testing.assert_close(
        functional.compressed_attention(q, k, v, similarity, compression), parent
    )


def test_sdpa_equals_materialised_softmax_and_the_formula():
    q, k, v = qkv()
    keep = keep_mask()
    by_hand = (
        torch.softmax(
            (q @ k.mT / math.sqrt(D_HEAD)).masked_fill(~keep[:, None, None], -math.inf), -1
        )
        @ v
    )
    for sdpa in (True, False):
        torch.testing.assert_close(
            functional.full_attention(q, k, v, sdpa=sdpa, keep_mask=keep), by_hand
        )


def test_favor_equals_the_lemma_written_out():
    q, k, v = qkv()
    features = feature_map("favor", D_HEAD, M, dtype=torch.float64)

    def phi(x):
        return torch.exp(
            x @ features.omega - x.square().sum(-1, keepdim=True) / 2 / math.sqrt(D_HEAD)
        ) / math.sqrt(M)

    weights = phi(q) @ phi(k).mT
    by_hand = weights @ v / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(functional.performer_attention(q, k, v, features), by_hand)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("name", "kind", "share_kv", "share_heads"),
    [
        (name, *variant)
        for name in NAMES
        if len(registry.get(name).orders) > 1
        for variant in (VARIANTS if name in COMPRESSED else VARIANTS[:1])
    ],
)
def test_orders_agree_in_value_and_gradients(name, kind, share_kv, share_heads, batch, masked):
    layer = make_layer(name, kind=kind, share_kv=share_kv, share_heads=share_heads)
    n = N - 1  # shorter than built for
    x = torch.randn(batch, n, H * D_HEAD, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(batch, n, H * D_HEAD, dtype=torch.float64)
    results = []
    for order in layer.orders:
        layer.order = order
        out = layer(x, keep_mask(n)[:batch] if masked else None)
        results.append(
            (out, *torch.autograd.grad((out * direction).sum(), [x, *layer.parameters()]))
        )
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * float(a.detach().abs().max()))


@pytest.mark.parametrize("order", ["project_first", "compress_first", "absorbed"])
def test_weights_prepared_for_inference_change_nothing_and_are_forgotten_in_training(order):
    layer = make_layer("flurka-relu")
    layer.order = order
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    before = layer(x).detach()
    layer.prepare_inference()
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), before)
    layer.train()
    layer.to_q.weight.data.mul_(2)
    layer.eval()
    with torch.inference_mode():
        assert not torch.allclose(layer(x), before)


EVENTS = {
    "prepare": lambda layer, step: layer.prepare_inference(),
    "redraw": lambda layer, step: layer.similarity.redraw(torch.Generator().manual_seed(step)),
    "load": lambda layer, step: layer.load_state_dict(
        {name: tensor * 0.9 for name, tensor in layer.state_dict().items()}
    ),
    "assign": lambda layer, step: layer.load_state_dict(
        {name: tensor * 1.1 for name, tensor in layer.state_dict().items()}, assign=True
    ),
    "half": lambda layer, step: layer.half(),
    "bfloat16": lambda layer, step: layer.bfloat16(),
    "double": lambda layer, step: layer.double(),
    "child": lambda layer, step: layer.to_q.double().to(layer.to_v.weight.dtype),
    "optimizer": lambda layer, step: one_step(layer),
    "fused optimizer": lambda layer, step: one_step(layer, fused=True),
    "autocast": lambda layer, step: under_autocast(layer),
    "exchange": lambda layer, step: setattr(layer, "to_q", copy.deepcopy(layer.to_v)),
    "copy": lambda layer, step: layer.load_state_dict(copy.deepcopy(layer).state_dict()),
    "data": lambda layer, step: setattr(layer.to_q.weight, "data", layer.to_q.weight.data * 0.8),
    "train": lambda layer, step: layer.train(),
}


def one_step(layer, **options):
    parameters = list(layer.parameters())
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.1)
    torch.optim.SGD(parameters, lr=0.5, **options).step()


def under_autocast(layer):
    """A call whose W_q Omega is bfloat16, as no later call's is."""
    layer.similarity.redraw()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(1, N, H * D_HEAD, dtype=layer.to_v.weight.dtype))


@given(
    kind=st.sampled_from(["flurka-relu", "flurka-favor", "kernel-relu"]),
    events=st.lists(st.sampled_from(sorted(EVENTS)), min_size=2, max_size=6),
)
@example(kind="flurka-relu", events=["prepare", *sorted(EVENTS)])
@settings(max_examples=15, deadline=None)
def test_whatever_happens_a_layer_equals_a_new_one_with_its_state(kind, events):
    """Bit by bit: W_q Omega is kept only while what it was made of is unchanged."""
    layer = make_layer(kind, dtype=torch.float32)
    layer.order = "absorbed"
    layer.prepare_inference()
    for step, event in enumerate(events):
        with torch.inference_mode():
            layer(torch.ones(1, N, H * D_HEAD, dtype=layer.to_v.weight.dtype))
        EVENTS[event](layer, step)
        dtype = layer.to_v.weight.dtype
        new = make_layer(kind, dtype=dtype)
        new.order = "absorbed"
        new.load_state_dict(layer.state_dict())
        x = torch.randn(B, N, H * D_HEAD, dtype=dtype)
        with torch.inference_mode():
            assert torch.equal(layer(x), new(x)), event
            assert torch.equal(copy.deepcopy(layer)(x), new(x)), event


def test_prepared_weights_are_computed_once_and_again_when_stale():
    """Or the cache would be right and useless."""
    layer = make_layer("flurka-relu")
    layer.prepare_inference()
    computed = []
    absorb = layer._absorb
    layer._absorb = lambda weight: computed.append(1) or absorb(weight)
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    with torch.inference_mode():
        for _ in range(3):
            layer(x)
        assert len(computed) == 0
    layer.similarity.redraw()
    with torch.no_grad():
        for _ in range(3):
            layer(x)
    assert len(computed) == 1


def test_compiled_layers_see_changed_weights():
    layer = make_layer("flurka-relu")
    layer.prepare_inference()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    with torch.inference_mode():
        compiled(x)
        layer.similarity.redraw()
        torch.testing.assert_close(compiled(x), layer(x))


class LowRankUpdate(torch.nn.Module):
    """x W^T and a low-rank term, as LoRA wraps a projection."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        width = base.in_features
        self.update = torch.nn.Parameter(torch.randn(width, width, dtype=base.weight.dtype) / 8)

    def forward(self, x):
        return self.base(x) + x @ self.update


CALLED = {  # order, heads share E: the projections that are called
    ("project_first", True): ("to_q", "to_k", "to_v", "to_out"),
    ("project_first", False): ("to_q", "to_k", "to_v", "to_out"),
    ("compress_first", True): ("to_q", "to_k", "to_v", "to_out"),
    ("compress_first", False): ("to_q", "to_out"),
    ("absorbed", True): ("to_k", "to_v"),
    ("absorbed", False): (),
}


@pytest.mark.parametrize("child", ["to_q", "to_k", "to_v", "to_out"])
@pytest.mark.parametrize(("order", "share_heads"), CALLED)
def test_projections_are_called_or_a_sentence_says_who_calls_them(order, share_heads, child):
    layer = make_layer("flurka-relu", share_heads=share_heads)
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    plain = getattr(layer, child)
    lora = LowRankUpdate(plain)
    merged = copy.deepcopy(layer)
    with torch.no_grad():
        getattr(merged, child).weight.add_(lora.update.T)
    merged.order, layer.order = "project_first", order
    setattr(layer, child, lora)
    if child in CALLED[order, share_heads]:
        torch.testing.assert_close(layer(x), merged(x))
        setattr(layer, child, plain)
        fired = []
        plain.register_forward_hook(lambda *_: fired.append(1))
        layer(x)
        assert fired == [1]
        return
    with pytest.raises(RequestError, match=f"{child} must be nn.Linear.*LowRankUpdate") as error:
        layer(x)
    accepted = str(error.value).partition("order=")[2]
    for other in layer.orders:
        if other in accepted:
            layer.order = other
            torch.testing.assert_close(layer(x), merged(x))
    assert "project_first" in accepted
    setattr(layer, child, plain)
    plain.register_forward_hook(lambda *_: None)
    layer.order = order
    with pytest.raises(RequestError, match=f"{child} must be.*with hooks"):
        layer(x)
    patched = copy.deepcopy(lora.base)
    patched._forward_hooks.clear()
    patched.forward = lambda rows: 2 * rows  # as offloading wrappers do
    setattr(layer, child, patched)
    with pytest.raises(RequestError, match=f"{child} must be.*with hooks"):
        layer(x)


@pytest.mark.parametrize("name", ["kernel-relu", "kernel-favor", "full-sdpa"])
def test_projections_of_uncompressed_mechanisms_are_called_or_refused(name):
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    for order in registry.get(name).orders:
        for child in ("to_q", "to_k", "to_v", "to_out"):
            layer = make_layer(name)
            layer.order = order
            setattr(layer, child, LowRankUpdate(getattr(layer, child)))
            if order == "project_first" or (name, child) == ("kernel-favor", "to_k"):
                layer(x)
            else:
                with pytest.raises(RequestError, match="order=project_first takes it"):
                    layer(x)


@pytest.mark.parametrize("child", ["to_k", "to_v"])
def test_a_bias_is_honoured_or_refused(child):
    layer = make_layer("low-rank")
    width = H * D_HEAD
    biased = torch.nn.Linear(width, width, dtype=torch.float64)
    setattr(layer, child, biased)
    x = torch.randn(B, N, width, dtype=torch.float64)
    layer.order = "project_first"
    keep = keep_mask()
    q, k, v = (
        p(x).unflatten(-1, (H, D_HEAD)).transpose(1, 2)
        for p in (layer.to_q, layer.to_k, layer.to_v)
    )
    for mask in (None, keep):
        attended = functional.compressed_attention(
            q, k, v, layer.similarity, layer.compression, mask
        )
        out = layer(x, mask)
        expected = layer.to_out(attended.transpose(1, 2).flatten(2))
        rows = slice(None) if mask is None else mask
        torch.testing.assert_close(out[rows], expected[rows])
    layer.order = "compress_first"
    with pytest.raises(RequestError, match=f"{child} must be.*bias=True.*order=project_first"):
        layer(x)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_batch_or_heads_commutes(name):
    attend, (q, k, v) = core(name), qkv()
    for dim, order in ((0, [1, 0]), (1, [2, 0, 1])):
        permuted = attend(*(t.index_select(dim, torch.tensor(order)) for t in (q, k, v)))
        torch.testing.assert_close(permuted, attend(q, k, v).index_select(dim, torch.tensor(order)))


@pytest.mark.parametrize(
    ("name", "order"),
    [(name, order) for name in NAMES for order in ("core", *registry.get(name).orders)],
)
def test_what_padded_keys_hold_changes_nothing_exactly(name, order):
    keep = keep_mask()
    if order == "core":
        attend, (q, *key_values) = core(name), qkv()
        others = [
            t.masked_fill(~keep[:, None, :, None], junk)
            for t, junk in zip(key_values, (1e3, math.nan))
        ]
        assert torch.equal(attend(q, *key_values, keep), attend(q, *others, keep))
        return
    layer = make_layer(name)
    layer.order = order
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)
    out = layer(x, keep)
    assert torch.equal(out, layer(x.masked_fill(~keep[..., None], math.inf), keep))
    assert not torch.allclose(out[keep], layer(x)[keep])  # so the mask does something


@pytest.mark.parametrize("kind", ["mean-pool", "conv"])
def test_windows_are_the_banded_matrix_they_stand_for(kind):
    for share_heads in (True, False):
        compression = Compression(
            seq_len=N, rank=K, num_heads=H, kind=kind, share_heads=share_heads, dtype=torch.float64
        )
        for weight in compression.parameters():
            torch.nn.init.normal_(weight)
        x = torch.randn(B, H, N, D_HEAD, dtype=torch.float64)
        for of_values, matrix in enumerate(compression.matrices()):
            torch.testing.assert_close(compression.head_rows(x, bool(of_values)), matrix @ x)
        shorter, matrix = x[:, :, :7], compression.matrices(7)[0]  # three windows and a half
        torch.testing.assert_close(compression.head_rows(shorter), matrix @ shorter)
        whole = compression.matrices()[0][..., :4, :7]
        torch.testing.assert_close(matrix[..., :3, :], whole[..., :3, :])
        torch.testing.assert_close(matrix[..., 3, :], 2 * whole[..., 3, :])  # one of two positions


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    similarity, compression = parts(name)
    tensors = [
        torch.randn(1, H, N, D_HEAD, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    weights = [] if compression is None else list(compression.parameters())
    keep = keep_mask()[:1]

    def run(q, k, v, *_weights):
        return functional.compressed_attention(q, k, v, similarity, compression, keep)

    assert torch.autograd.gradcheck(run, (*tensors, *weights))


def test_favor_tends_to_softmax_at_the_rate_of_a_monte_carlo_mean():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 4, 64, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    q, k = (
        q / 2,
        k / 2,
    )  # the variance grows as exp(|q + k|^2): small inputs reach the asymptote at small m
    exact = functional.full_attention(q, k, v)
    counts = [64, 256, 1024, 4096]
    errors = []
    for count in counts:
        draws = [
            functional.performer_attention(
                q, k, v, feature_map("favor", 8, count, generator=generator, dtype=torch.float64)
            )
            for _ in range(12)
        ]
        errors.append(torch.stack([(draw - exact).square().mean() for draw in draws]).mean().sqrt())
    logs = torch.tensor(errors).log()
    steps = torch.tensor(counts).double().log()
    slope = ((logs - logs.mean()) * (steps - steps.mean())).sum() / (
        steps - steps.mean()
    ).square().sum()
    assert -0.6 < slope < -0.4


def test_omega_is_orthogonal_in_blocks_with_gaussian_norms():
    generator = torch.Generator().manual_seed(0)
    omega = orthogonal_gaussian(16, 40, generator)
    for block in omega.split(16, dim=1):
        gram = block.T @ block
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-12, rtol=0)
    many = torch.cat([orthogonal_gaussian(16, 16, generator) for _ in range(400)], dim=1)
    assert abs(float(many.square().sum(0).mean()) - 16) < 0.3  # E chi^2 = d
    assert (
        float((many @ many.T / many.shape[1] - torch.eye(16)).abs().max()) < 0.1
    )  # columns are N(0, I)


def test_omega_prefers_no_direction():
    """Householder's QR alone would make every diagonal entry of the basis negative."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack([orthogonal_gaussian(8, 8, generator) for _ in range(400)])
    corners = draws.diagonal(dim1=1, dim2=2)  # N(0, 1) each
    assert float(corners.mean(0).abs().max()) < 5 / 400**0.5
    assert float((corners > 0).double().mean(0).sub(0.5).abs().max()) < 2.5 / 400**0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(("favor", "relu", "elu"))]
)
def test_large_inputs_neither_overflow_nor_vanish(name, dtype):
    generator = torch.Generator().manual_seed(3)

    def of_norm(norm):
        x = torch.randn(B, H, 64, D_HEAD, generator=generator)
        return (norm * x / x.norm(dim=-1, keepdim=True)).to(dtype)

    similarity, compression = parts(name, seq_len=64, rank=16, num_features=32, dtype=dtype)
    q, k, v = of_norm(50), of_norm(50), of_norm(1)
    with torch.no_grad():
        out = functional.compressed_attention(q, k, v, similarity, compression)
    assert torch.isfinite(out).all()
    assert (out != 0).any(dim=-1).all()


@pytest.mark.parametrize("name", ["kernel-relu", "kernel-elu", "kernel-favor"])
def test_half_precision_sums_over_long_inputs_do_not_overflow(name):
    similarity, _ = parts(name, num_features=256, dtype=torch.float16)
    q, k = (torch.randn(1, 1, n, D_HEAD, dtype=torch.float16) for n in (4, 70_000))
    v = torch.full_like(k, 0.5)
    out = functional.compressed_attention(q, k, v, similarity)
    torch.testing.assert_close(out, torch.full_like(out, 0.5), atol=5e-3, rtol=0)


KERNELS = ["kernel-relu", "kernel-elu", "kernel-favor"]


@pytest.mark.parametrize("n", [1, 100, 70_000])
@pytest.mark.parametrize("size", [1e-3, 1.0, 40_000.0])
@pytest.mark.parametrize("name", ["full-sdpa", *KERNELS])
def test_float16_attention_to_equal_values_gives_that_value(name, size, n):
    """Any weighted mean of one number is that number, of whatever size, at whatever length."""
    if name == "full-sdpa" and n > 100:
        n = 1000
    similarity, _ = parts(name, num_features=16, dtype=torch.float16)
    generator = torch.Generator().manual_seed(n)
    q, k = (torch.randn(1, 1, rows, D_HEAD, generator=generator).half() for rows in (3, n))
    q[..., 1], k[..., 1] = 4.0, -4.0  # a constant channel
    v = torch.full_like(k, size)
    out = functional.compressed_attention(q, k, v, similarity)
    torch.testing.assert_close(out, torch.full_like(out, size), rtol=4e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "order", "n", "mean"),
    [(name, order, 1024, 8.0) for name in NAMES for order in registry.get(name).orders]
    + [(name, "project_first", 65_536, 0.5) for name in KERNELS],
)
def test_float16_layers_take_inputs_with_a_mean(name, order, n, mean):
    layer = make_layer(name, seq_len=n, rank=64, dtype=torch.float32)
    with torch.no_grad():
        for weight in () if layer.compression is None else layer.compression.parameters():
            weight.normal_(std=n**-0.5)
    layer.order = order
    x = (torch.randn(1, n, H * D_HEAD) + mean).half()
    with torch.no_grad():
        wide = layer(x.float())
        narrow = layer.half()(x)
    assert torch.isfinite(narrow).all()
    assert float((narrow - wide).norm() / wide.norm()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gradients_through_the_smallest_features_are_exact(dtype):
    """q = k = -1: both features are the 1e-3 that relu adds, their product 1e-6. One key, so the
    output is v, and its gradient 1."""
    features = feature_map("relu", 1, 1, dtype=dtype)
    features.omega.fill_(1)
    q, k = (torch.full((1, 1, 1, 1), -1.0, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.ones(1, 1, 1, 1, dtype=dtype, requires_grad=True)
    out = functional.performer_attention(q, k, v, features)
    out.backward()
    assert (out.item(), v.grad.item(), q.grad.item(), k.grad.item()) == (1, 1, 0, 0)


@pytest.mark.parametrize("name", KERNELS)
def test_float16_gradients_are_those_of_float32_to_rounding(name):
    similarity, _ = parts(name, num_features=16, dtype=torch.float16)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 2, 600, D_HEAD, generator=generator).half() for _ in range(3)]
    direction = torch.randn(1, 2, 600, D_HEAD, generator=generator).half()

    def gradients(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        out = functional.compressed_attention(*leaves, similarity.to(dtype))
        return torch.autograd.grad(out, leaves, direction.to(dtype))

    for narrow, wide in zip(gradients(torch.float16), gradients(torch.float32)):
        assert float((narrow - wide).norm() / wide.norm()) < 0.03


def test_the_mean_product_has_the_gradients_of_its_formula():
    a, b = (torch.randn(2, 5, n, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    torch.testing.assert_close(_MeanProduct.apply(a, b), a.mT @ b / 5)
    assert torch.autograd.gradcheck(_MeanProduct.apply, (a, b))
    assert torch.autograd.gradgradcheck(_MeanProduct.apply, (a, b))


@pytest.mark.parametrize("rows", ["core", "layer"])
def test_favor_takes_float16_keys_of_any_norm(rows):
    """Above |k| = 256 the square leaves float16; keys of norm 300 to 1,200, some of them padded."""
    keep = keep_mask()
    if rows == "core":
        features = feature_map("favor", D_HEAD, 16, dtype=torch.float16)
        q, k, v = (t.half() for t in qkv(dtype=torch.float32))
        k = (k / k.norm(dim=-1, keepdim=True) * torch.linspace(300, 1200, N)[:, None]).half()
        k[1, :, -1] = 0
        for mask in (None, keep):
            out = functional.performer_attention(q, k, v, features, keep_mask=mask)
            wide = functional.performer_attention(
                q.float(), k.float(), v.float(), copy.deepcopy(features).float(),
                keep_mask=mask,
            )  # fmt: skip
            torch.testing.assert_close(out.float(), wide, atol=2e-2, rtol=0)
        return
    layer = make_layer("kernel-favor", dtype=torch.float16)
    x = 500 * torch.randn(B, N, H * D_HEAD, dtype=torch.float16)
    for order in layer.orders:
        layer.order = order
        assert torch.isfinite(layer(x, keep)[keep]).all()


@pytest.mark.parametrize("kind", ["favor", "relu"])
def test_redraw_changes_features_not_shapes(kind):
    layer = FLuRKAAttention(12, H, N, K, M, similarity=kind)
    x = torch.randn(B, N, 12)
    layer.prepare_inference()
    with torch.inference_mode():
        before, omega = layer(x), layer.similarity.omega.clone()
        layer.redraw_features()
        after = layer(x)
    assert layer.similarity.omega.shape == omega.shape
    assert not torch.allclose(layer.similarity.omega, omega)
    assert not torch.allclose(before, after)
    assert "similarity.omega" not in dict(layer.named_parameters())
    assert "similarity.omega" in layer.state_dict()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_stays_and_gradients_are_finite(name, dtype):
    for order in registry.get(name).orders:
        layer = make_layer(name, dtype=dtype)
        layer.order = order
        x = torch.randn(B, N, H * D_HEAD, dtype=dtype, requires_grad=True)
        out = layer(x)
        out.float().square().sum().backward()
        assert out.dtype == dtype
        assert all(torch.isfinite(t.grad).all() for t in (x, *layer.parameters()))


def test_stage_ranges_only_when_asked_for():
    layer = make_layer("flurka-favor")
    x = torch.randn(B, N, H * D_HEAD, dtype=torch.float64)

    def ranges():
        with torch.profiler.profile() as profile:
            layer(x)
        return {
            event.key.removeprefix("stage:")
            for event in profile.key_averages()
            if event.key.startswith("stage:")
        }

    assert ranges() == set()
    with profiled_stages():
        assert (
            ranges()
            == {"project", "compress", "features", "key_value", "output", "merge"}
            <= set(STAGES)
        )


def test_new_layers_of_all_mechanisms_give_outputs_of_one_size():
    """Within a factor of two of full attention, for every kind of compression and N / k from 2 to
    16; so mechanisms can be trained with one learning rate."""
    width, heads, n = 64, 4, 256
    x = torch.randn(4, n, width)

    def size(layer):
        with torch.no_grad():
            return float(layer(x).std())

    full = size(FullAttention(width, heads))
    sizes = {"favor": 32, "relu": 32, "elu": None}
    for kind, m in sizes.items():
        assert 0.5 < size(PerformerAttention(width, heads, m, similarity=kind)) / full < 2, kind
    for compression in ("dense", "mean-pool", "conv"):
        for rank in (16, 128):
            knobs = {"seq_len": n, "rank": rank, "compression": compression}
            layers = [LinformerAttention(width, heads, **knobs)]
            layers += [
                FLuRKAAttention(width, heads, num_features=m, similarity=kind, **knobs)
                for kind, m in sizes.items()
            ]
            for layer in layers:
                assert 0.5 < size(layer) / full < 2, (compression, rank, layer.similarity)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FullAttention(12, H, causal=True), "compression mixes positions"),
        (lambda: FullAttention(13, H), "multiple of num_heads"),
        (lambda: FullAttention(12, H, order="absorbed"), "accepted: project_first"),
        (lambda: LinformerAttention(12, H, N, N + 1), "rank must be between 1 and seq_len"),
        (lambda: LinformerAttention(12, H, N, 5, compression="conv"), "divides seq_len"),
        (
            lambda: LinformerAttention(12, H, N, K, compression="meanpool"),
            "did you mean 'mean-pool'",
        ),
        (lambda: PerformerAttention(12, H), "num_features must be a positive integer"),
        (lambda: PerformerAttention(12, H, 7, similarity="elu"), "num_features = head_dim = 4"),
        (lambda: PerformerAttention(12, H, 7, similarity="rbf"), "unknown similarity"),
        (
            lambda: LinformerAttention(12, H, N, K)(torch.randn(1, N + 1, 12)),
            "longer than the seq_len",
        ),
    ],
)
def test_wrong_requests_say_what_is_accepted(make, says):
    with pytest.raises(RequestError, match=says):
        make()


@pytest.mark.parametrize(
    "sequence", list(itertools.product(("prepare", "redraw", "step"), repeat=3))
)
def test_after_any_sequence_a_layer_equals_a_fresh_one_with_its_state(sequence):
    def make():
        return PerformerAttention(model_dim=12, num_heads=3, num_features=5, similarity="relu")

    layer, x = make(), torch.randn(2, 7, 12)
    for what in sequence:
        if what == "prepare":
            layer.prepare_inference()
        elif what == "redraw":
            layer.redraw_features()
        else:
            layer.train()
            layer.to_q.weight.data.add_(0.1)
    fresh = make()
    fresh.load_state_dict(layer.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), fresh(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("head_dim", [4, 16])
def test_an_estimate_of_favor_has_the_scale_of_softmax(head_dim):
    """phi(q) . phi(k) over exp(q . k / sqrt(d)) is one factor for all pairs of one query, in the
    mean: the scale d^-1/4 of each side is in Omega."""
    torch.manual_seed(1)
    features = feature_map("favor", head_dim, 4096, dtype=torch.float64)
    column = features.omega.norm(dim=0).square().mean()
    assert float(column) == pytest.approx(head_dim / math.sqrt(head_dim), rel=0.1)
