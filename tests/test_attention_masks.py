"""Padding: a document gives what it gives alone, in every mechanism, order, compression and dtype."""

import math

import pytest
import torch
from test_attention import COMPRESSED, D_HEAD, NAMES, VARIANTS, H, make_layer, parts

from flurka_bench.attention import (
    Compression,
    FullAttention,
    LinformerAttention,
    functional,
)
from flurka_bench.attention.encoder import (
    Encoder,
    EncoderLayer,
)
from flurka_bench.cases import registry
from flurka_bench.kinds.timing.reference import (
    layer_problem,
    query_rows,
)
from flurka_bench.words.errors import RequestError

N, K = 12, 4  # windows of three
WIDTH = H * D_HEAD
LENGTHS = (7, 3, 12)  # in a window, at its end, whole
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
NARROW = [VARIANTS[0], ("mean-pool", True, True)]  # in every dtype; the others in float64
FORMS = [(name, order) for name in NAMES for order in ("core", *registry.get(name).orders)]
every_form = pytest.mark.parametrize(("name", "order"), FORMS)


class Core(torch.nn.Module):
    """A functional core over x as a layer's signature has it: q, k, v are thirds of its heads."""

    def __init__(self, name, **knobs):
        super().__init__()
        self.similarity, self.compression = parts(name, **knobs)

    def forward(self, x, keep_mask=None, **masks):
        q = x.unflatten(-1, (H, -1)).transpose(1, 2)
        k, v = q.flip(-1).tanh() + 0.5, q.roll(1, -1) * 2
        out = functional.compressed_attention(
            q, k, v, self.similarity, self.compression, keep_mask, **masks
        )
        return out.transpose(1, 2).flatten(2)


def modules_of(name, order):
    """Every compression that the form can have, with dtypes."""
    for variant in VARIANTS if name in COMPRESSED else VARIANTS[:1]:
        for dtype in DTYPES if variant in NARROW else DTYPES[:1]:
            yield module_of(name, order, *variant, dtype=dtype), dtype


def module_of(name, order, kind, share_kv, share_heads, dtype=torch.float64):
    torch.manual_seed(0)
    knobs = {"rank": K, "kind": kind, "share_kv": share_kv, "share_heads": share_heads}
    if order == "core":
        return Core(name, seq_len=N, dtype=dtype, **knobs)
    layer = make_layer(name, dtype=dtype, **knobs)
    layer.order = order
    return layer


def draw(batch, n=N, dtype=torch.float64):
    return torch.randn(
        batch, n, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).to(dtype)


def ends(lengths=LENGTHS):
    return torch.arange(N) < torch.tensor(lengths)[:, None]


def gradients(module, x, loss):
    return torch.autograd.grad(loss, [x, *module.parameters()])


@every_form
def test_a_document_padded_at_its_end_gives_what_it_gives_alone(name, order):
    for module, dtype in modules_of(name, order):
        x = draw(len(LENGTHS), dtype=dtype).requires_grad_()
        padded = module(x, ends())
        alone = [module(x[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
        # float16 and bfloat16 round features, sums and their quotient; float64 tells the law
        rtol = 1e-12 if dtype == torch.float64 else 16 * torch.finfo(dtype).eps
        for i, n in enumerate(LENGTHS):
            atol = rtol * float(alone[i].detach().abs().max())
            torch.testing.assert_close(padded[i, :n], alone[i][0], rtol=0, atol=atol)
        if dtype == torch.float64:
            direction = draw(len(LENGTHS)).cos()
            pairs = [
                sum((out * direction[i, :n]).sum() for i, (n, out) in enumerate(zip(LENGTHS, outs)))
                for outs in ([out[:n] for n, out in zip(LENGTHS, padded)], alone)
            ]
            for a, b in zip(*(gradients(module, x, loss) for loss in pairs)):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-11 * float(b.abs().max() + 1))


@every_form
def test_a_sequence_of_padding_alone_gives_zeros_and_zero_gradients(name, order):
    for module, dtype in modules_of(name, order):
        x, keep = draw(2, dtype=dtype), ends((0, 5))
        if order != "core":  # a core's queries hold it too, and they are not masked
            x[0, 3] = math.nan
        x.requires_grad_()
        out = module(x, keep)
        assert (out[0] == 0).all()
        for grad in gradients(module, x, out.float().square().sum()):
            assert torch.isfinite(grad).all()
        out = module(x, torch.zeros_like(keep))
        assert (out == 0).all()
        for grad in gradients(module, x, out.float().sum()):
            assert (grad == 0).all()


@pytest.mark.parametrize(("name", "order"), [form for form in FORMS if form[0] not in COMPRESSED])
def test_uncompressed_attention_sees_kept_keys_alone_wherever_they_stand(name, order):
    module = module_of(name, order, *VARIANTS[0])
    x = draw(2)
    keep = torch.rand(2, N, generator=torch.Generator().manual_seed(2)) < 0.5
    out = module(x, keep)
    for i in range(2):
        torch.testing.assert_close(out[i, keep[i]], module(x[i : i + 1, keep[i]])[0])


@pytest.mark.parametrize("kind", ["mean-pool", "conv"])
@pytest.mark.parametrize(("name", "order"), [form for form in FORMS if form[0] in COMPRESSED])
def test_padding_by_whole_windows_may_stand_before_a_document(name, order, kind):
    module = module_of(name, order, kind, False, False)
    x, start = draw(1), 2 * N // K
    keep = (torch.arange(N) >= start)[None]
    torch.testing.assert_close(module(x, keep)[:, start:], module(x[:, start:]))


@pytest.mark.parametrize("kind", ["mean-pool", "conv"])
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weighted_mean_of_ones_is_one_whatever_is_kept(name, kind, dtype):
    similarity, _ = parts(name, dtype=dtype)
    compression = Compression(seq_len=N, rank=K, num_heads=H, kind=kind, dtype=dtype)
    masks = torch.arange(1, 2**N, 37)[:, None] >> torch.arange(N) & 1
    q, k = (torch.randn(len(masks), H, N, D_HEAD).to(dtype) for _ in range(2))
    out = functional.compressed_attention(
        q, k, torch.ones_like(q), similarity, compression, masks.bool()
    )
    torch.testing.assert_close(out, torch.ones_like(out), rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_windows_are_divided_by_the_positions_they_keep():
    """keep = [1, 1, 0, 1 | 0, 0, 0, 0 | 1, end]: by hand."""
    x = torch.tensor([1.0, 2.0, 0.0, 6.0, 0.0, 0.0, 0.0, 0.0, 5.0]).view(1, 9, 1)
    keep = torch.tensor([[1, 1, 0, 1, 0, 0, 0, 0, 1]]).bool()
    pool = Compression(seq_len=12, rank=3, num_heads=1, kind="mean-pool")
    assert pool.shared_rows(x, keep=keep).flatten().tolist() == [3, 0, 5]
    assert pool.kept_rows(keep).tolist() == [[True, False, True]]
    conv = Compression(seq_len=12, rank=3, num_heads=1, kind="conv")
    with torch.no_grad():
        conv.weight_k.copy_(torch.tensor([1.0, 2.0, -4.0, 0.5]))
    expected = [(1 + 4 + 3) * 4 / 3, 0, 5 * 4]
    torch.testing.assert_close(conv.shared_rows(x, keep=keep).flatten(), torch.tensor(expected))


@every_form
def test_an_empty_batch_gives_an_empty_result(name, order):
    for module, dtype in modules_of(name, order):
        for n, keep in ((N, None), (7, torch.ones(0, 7, dtype=torch.bool))):
            x = draw(0, n, dtype).requires_grad_()
            out = module(x, keep)
            assert out.shape == (0, n, WIDTH)
            assert all((grad == 0).all() for grad in gradients(module, x, out.sum()))


def test_masks_mean_what_multi_head_attention_means_by_them():
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(WIDTH, H, bias=False, batch_first=True).double()
    ours = FullAttention(WIDTH, H, dtype=torch.float64)
    x, keep = draw(3), ends()
    with torch.no_grad():
        projections = (ours.to_q, ours.to_k, ours.to_v)
        for projection, weight in zip(projections, theirs.in_proj_weight.chunk(3)):
            projection.weight.copy_(weight)
        ours.to_out.weight.copy_(theirs.out_proj.weight)
    right, _ = theirs(x, x, x, key_padding_mask=~keep)
    for out in (ours(x, keep_mask=keep), ours(x, keep), ours(x, key_padding_mask=~keep)):
        torch.testing.assert_close(out[keep], right[keep])


@pytest.mark.parametrize("name", NAMES)
def test_a_projection_with_a_bias_leaves_padding_padded(name):
    layer = module_of(name, "project_first", *VARIANTS[0])
    for child in ("to_k", "to_v"):
        setattr(layer, child, torch.nn.Linear(WIDTH, WIDTH, dtype=torch.float64))
    x = draw(2)
    out = layer(x, ends((7, 0)))
    torch.testing.assert_close(out[:1, :7], layer(x[:1, :7]))
    assert (out[1] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_core_and_layer_takes_both_masks(name):
    keep, x = ends(), draw(3)
    for order in ("core", *registry.get(name).orders):
        module = module_of(name, order, *VARIANTS[0])
        assert torch.equal(module(x, key_padding_mask=~keep), module(x, keep_mask=keep))
        with pytest.raises(RequestError, match="give one"):
            module(x, keep, key_padding_mask=~keep)
    similarity, compression = parts(name)
    q = x.unflatten(-1, (H, -1)).transpose(1, 2)
    is_softmax = not registry.get(name).is_kernel
    core = {
        (False, True): functional.full_attention,
        (True, True): functional.linformer_attention,
        (False, False): functional.performer_attention,
        (True, False): functional.flurka_attention,
    }[compression is not None, is_softmax]
    choices = [] if compression is None else [compression]
    choices += [] if is_softmax else [similarity]
    out = core(q, q, q, *choices, keep_mask=keep)
    assert torch.equal(out, core(q, q, q, *choices, key_padding_mask=~keep))
    assert not torch.equal(out, core(q, q, q, *choices))


def test_an_encoder_passes_its_masks_on():
    torch.manual_seed(0)
    layers = [
        EncoderLayer(make_layer("flurka-relu", rank=K, kind="mean-pool"), WIDTH, 20).double()
        for _ in range(2)
    ]
    encoder = Encoder(layers, WIDTH, vocab_size=9).double()
    tokens, keep = torch.arange(N).remainder(9).expand(3, N), ends()
    out = encoder(tokens, keep)
    assert torch.equal(out, encoder(tokens, key_padding_mask=~keep))
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(out[i, :n], encoder(tokens[i : i + 1, :n])[0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda keep: keep.float(), r"got torch\.float32; convert .*mask\.bool\(\)"),
        (lambda keep: keep.long(), r"got torch\.int64; convert .*mask\.bool\(\)"),
        (lambda keep: keep.tolist(), "a torch.Tensor, got list"),
        (lambda keep: keep[:1], r"here \(3, 12\), got shape \(1, 12\)"),
        (lambda keep: keep.T, r"got shape \(12, 3\)"),
        (lambda keep: keep[:, None, None], r"got shape \(3, 1, 1, 12\)"),
        (lambda keep: keep[0], r"got shape \(12,\)"),
        (lambda keep: keep.to("meta"), "on cpu, got one on meta"),
    ],
)
def test_what_is_no_mask_is_told_what_one_is(change, says):
    modules = [module_of(name, order, *VARIANTS[0]) for name, order in FORMS]
    for module in (*modules, Encoder([], WIDTH).double()):
        for name, meaning in (("keep_mask", "True = keep"), ("key_padding_mask", "True = padding")):
            with pytest.raises(RequestError, match=rf"bool \(b, N\), {meaning}.*{says}"):
                module(draw(3), **{name: change(ends())})


@pytest.mark.parametrize("order", ["core", "project_first", "absorbed"])
def test_an_input_without_positions_is_refused(order):
    with pytest.raises(RequestError, match="at least one key"):
        module_of("kernel-relu", order, *VARIANTS[0])(draw(2, 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_knows_inputs_that_end_within_a_window(variant):
    layer = module_of("low-rank", "project_first", *variant)
    x = draw(1, 7)
    got = query_rows(layer_problem(layer, x), 0, torch.arange(7), torch.float64)
    torch.testing.assert_close(got, layer(x)[0])


def test_a_quarter_of_a_long_input_keeps_its_norm():
    layer = LinformerAttention(WIDTH, H, 512, 16, compression="mean-pool", dtype=torch.float64)
    x = draw(1, 512)
    keep = (torch.arange(512) < 128)[None]
    ratio = layer(x, keep)[:, :128].norm() / layer(x[:, :128]).norm()
    torch.testing.assert_close(ratio, torch.ones_like(ratio))
