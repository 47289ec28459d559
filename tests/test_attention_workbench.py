"""Building a case, running it, and the gate that stands before its time."""

import pytest
import torch

from flurka_bench.attention import similarity
from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.kinds.timing.workbench import (
    IncorrectOutput,
    UnsupportedCase,
    build,
)
from flurka_bench.words.errors import RequestError

SIZES = {"batch": 2, "num_heads": 2, "seq_len": 128, "head_dim": 16, "rank": 32, "num_features": 24}
EVERY = [
    (name, level, order)
    for name, mechanism in registry.MECHANISMS.items()
    for level, orders in (("core", (None,)), ("layer", mechanism.orders))
    for order in orders
]


def case_of(name, level="core", order=None, **changes):
    return Case(mechanism=name, level=level, order=order, **(SIZES | changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("pass_", ["forward", "train"])
@pytest.mark.parametrize(("name", "level", "order"), EVERY)
def test_every_case_passes_its_gate(name, level, order, pass_, dtype):
    bench = build(case_of(name, level, order, pass_=pass_, dtype=dtype), seed=3)
    bench.check()
    assert bench.run().requires_grad is False


@pytest.mark.parametrize("knobs", [
    {"share_kv": True}, {"share_heads": False}, {"compression": "mean-pool"}, {"compression": "conv", "share_heads": False},
    {"batch": 1}, {"compression": "conv", "share_kv": True},
])  # fmt: skip
@pytest.mark.parametrize(
    ("name", "level", "order"), [e for e in EVERY if e[0] in ("low-rank", "flurka-favor")]
)
def test_knobs_pass_the_gate(name, level, order, knobs):
    build(case_of(name, level, order, **knobs)).check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "level", "order"), EVERY)
def test_gate_catches_an_output_that_is_wrong(name, level, order, dtype):
    bench = build(case_of(name, level, order, dtype=dtype))
    right = bench.run()
    tenth = right.float().square().mean().sqrt().mul(0.3).to(right.dtype)
    for wrong, says in (
        (right + tenth, "off by"),
        (right.roll(1, dims=-2), "off by"),
        (torch.zeros_like(right), "off by"),
        (right.index_fill(-2, torch.tensor([5]), float("nan")), "NaN or Inf"),
        (right[..., :-1], "shape"),
    ):
        bench.run = lambda wrong=wrong: wrong
        with pytest.raises(IncorrectOutput, match=says):
            bench.check()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["flurka-relu", "kernel-favor", "low-rank"])
def test_gate_catches_a_mechanism_that_is_slightly_another(name, dtype):
    bench = build(case_of(name, dtype=dtype))
    similarity = bench.module.similarity
    if name == "low-rank":
        similarity.forward = lambda q, k, v, keep=None: (
            torch.softmax(q @ k.mT / 5, -1) @ v
        )  # sqrt(16) is 4
    else:
        noise = 0.3 * similarity.omega.float().std() * torch.randn(similarity.omega.shape)
        true_omega = similarity.omega
        wrong_omega = (true_omega + noise).to(true_omega.dtype)

        def run():
            similarity.omega = wrong_omega
            return type(bench).run(bench)

        bench.run = run
    with pytest.raises(IncorrectOutput, match="off by"):
        bench.check()


@pytest.mark.parametrize(
    ("name", "level", "dtype", "spoil", "says"),
    [
        # 1 / L after the product, as float16 sums overflow; |k|^2 in float16
        ("kernel-elu", "core", "float16", "level", "elements of the output are NaN"),
        ("flurka-relu", "core", "float16", "product", "elements of the output are NaN"),
        ("kernel-relu", "layer", "float16", "level", "output for large inputs"),
        ("kernel-favor", "core", "float16", "squares", "output for large inputs"),
        # a value mean that is left out of the result: nothing where inputs have mean zero
        ("kernel-relu", "core", "float32", "centred", "off by"),
    ],
)
def test_gate_sees_what_inputs_of_mean_zero_hide(name, level, dtype, spoil, says, monkeypatch):
    def product(phi_k, v):
        return torch.matmul(phi_k.mT, v).mul_(1 / phi_k.shape[-2])

    order = None if level == "core" else "project_first"
    bench = build(case_of(name, level, order, dtype=dtype))
    if spoil in ("level", "product"):
        monkeypatch.setattr(similarity, "mean_product", product)
    if spoil == "level":
        monkeypatch.setattr(similarity, "level_keys", lambda phi_k, rows: (phi_k, None))
    if spoil == "squares":
        monkeypatch.setattr(
            similarity._HalfSquares, "apply", lambda k, keep, rows: (k * k).sum(-1, keepdim=True)
        )
    if spoil == "centred":
        attend = bench.module.similarity.forward
        timed = bench.inputs[2].mean(-2, keepdim=True)
        bench.module.similarity.forward = lambda q, k, v, keep=None: (
            attend(q, k, v - v.mean(-2, keepdim=True)) + timed
        )
    bench._check_inputs(64, 2)  # the inputs that are timed do not show it
    with pytest.raises(IncorrectOutput, match=says):
        bench.check()


@pytest.mark.parametrize("pass_", ["forward", "train"])
def test_the_gate_leaves_inputs_and_gradients_as_they_were(pass_):
    bench = build(case_of("flurka-relu", "layer", "absorbed", pass_=pass_, dtype="float16"))
    inputs, values = bench.inputs, [tensor.clone() for tensor in bench.inputs]
    bench.check()
    assert bench.inputs is inputs
    assert all(torch.equal(a, b) for a, b in zip(inputs, values))
    assert all(parameter.grad is None for parameter in bench.module.parameters())


def test_gate_catches_bad_gradients():
    bench = build(case_of("flurka-favor", pass_="train"))
    bench.module.similarity.register_full_backward_hook(
        lambda module, into, out: (into[0] * float("nan"), *into[1:])
    )
    with pytest.raises(IncorrectOutput, match="gradient of input 0"):
        bench.check()
    bench = build(case_of("flurka-favor", "layer", "absorbed", pass_="train"))
    bench.module.to_v.weight.requires_grad_(False)
    with pytest.raises(IncorrectOutput, match=r"to_v\.weight got no gradient"):
        bench.check()


def test_competitors_share_inputs_and_projections_and_seeds_differ():
    core = [build(case_of(name), seed=7).inputs for name in ("full-sdpa", "flurka-relu")]
    assert all(torch.equal(a, b) for a, b in zip(*core))
    layers = [
        build(case_of(name, "layer", order), seed=7)
        for name, _, order in EVERY
        if name.startswith(("full", "flurka"))
    ]
    for layer in layers:
        assert torch.equal(layer.inputs[0], layers[0].inputs[0])
        assert torch.equal(layer.module.to_out.weight, layers[0].module.to_out.weight)
    assert not torch.equal(build(case_of("full-sdpa"), seed=8).inputs[0], core[0][0])
    assert torch.equal(
        build(case_of("full-sdpa", dtype="float16"), seed=7).inputs[0], core[0][0].half()
    )


@pytest.mark.parametrize("pass_", ["forward", "train"])
@pytest.mark.parametrize("name", ["full-sdpa", "flurka-relu", "kernel-favor", "low-rank"])
def test_encoder_passes_its_gate(name, pass_):
    order = registry.get(name).orders[-1]
    for extra in (
        {"num_layers": 2},
        {"num_layers": 1, "vocab_size": 50, "ffn_dim": 48, "dtype": "bfloat16"},
    ):
        bench = build(case_of(name, "model", order, pass_=pass_, **extra))
        bench.check()
        out = bench.run()
        bench.run = lambda out=out: out.roll(1, dims=1)
        with pytest.raises(IncorrectOutput, match="off by"):
            bench.check()


def test_training_an_encoder_steps_its_weights():
    bench = build(case_of("flurka-relu", "model", "absorbed", pass_="train"))
    before = bench.module.layers[0].ffn_in.weight.detach().clone()
    bench.run()
    step = (bench.module.layers[0].ffn_in.weight.detach() - before).abs().max()
    assert 0 < step < 1e-6


def test_train_leaves_one_pass_of_gradients():
    bench = build(case_of("flurka-relu", "layer", "absorbed", pass_="train"))
    bench.run()
    first = bench.module.to_q.weight.grad.clone()
    bench.run()
    torch.testing.assert_close(bench.module.to_q.weight.grad, first)
    with torch.no_grad():
        assert build(case_of("flurka-relu", "layer", "absorbed")).module.to_q.weight.grad is None


@pytest.mark.parametrize(
    ("name", "level", "order", "pass_"),
    [("flurka-favor", "layer", "absorbed", "forward"), ("kernel-relu", "core", None, "train")],
)
def test_compiled_backend_passes_the_gate(name, level, order, pass_):
    build(case_of(name, level, order, pass_=pass_, backend="compiled")).check()


def test_what_cannot_run_here_says_so():
    with pytest.raises(UnsupportedCase, match="NVIDIA GPU"):
        build(case_of("flurka-relu", backend="fused"))
    with pytest.raises(RequestError, match="rank must be at most seq_len"):
        build(case_of("low-rank", rank=129))


def test_release_lets_go():
    bench = build(case_of("low-rank"))
    bench.release()
    assert bench.module is None
    assert bench.inputs == ()
