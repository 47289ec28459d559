"""A canonical case made real: module, inputs, one pass, and the gate that its output must get
through."""

import importlib.util
import math
import zlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from flurka_bench.attention.compression import Compression, make_compression
from flurka_bench.attention.encoder import (
    Encoder,
    EncoderLayer,
)
from flurka_bench.attention.functional import compressed_attention
from flurka_bench.attention.modules import AttentionLayer
from flurka_bench.attention.similarity import (
    FeatureMap,
    Softmax,
    feature_map,
)
from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.kinds.timing.reference import (
    core_problem,
    encoder_rows,
    layer_problem,
    query_rows,
)
from flurka_bench.words.errors import FlurkaError

# How many times the low-precision reference's own error, root mean square and largest element, an
# output may be off. Over the ten mechanisms and all dtypes correct outputs come to 0.5 to 1.3 times
# either; a wrong formula is off by a good part of the result itself.
RMS_FACTOR = 4.0
LARGEST_FACTOR = 8.0


# The uneven check input: what means, constant channels and large heads look like. 4,096 summed over
# more than 16 keys leaves float16, its mean does not.
CHANNEL_MEAN = 1.0
CONSTANT_CHANNEL = 2.0
CONSTANT_VALUES = 4096.0
LARGE_HEAD = 2.0
UNEVEN_GRADIENT = 1 / 256  # E's gradient sums over channels, the large one included
# The large check input, float16 only: keys of norm above 256, and sums over keys beyond 65,504.
LARGE_INPUT = 128.0


class IncorrectOutput(FlurkaError):
    """A case's output is not what its mechanism should give; its time means nothing."""


class UnsupportedCase(FlurkaError):
    """The case is right but this device or backend cannot run it."""


class CoreAttention(nn.Module):
    """Level core as a module: q, k, v (b, h, N, d) -> (b, h, N, d)."""

    def __init__(self, similarity: Softmax | FeatureMap, compression: Compression | None) -> None:
        super().__init__()
        self.similarity, self.compression = similarity, compression

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See ``functional.compressed_attention``."""
        return compressed_attention(q, k, v, self.similarity, self.compression)


class Workbench:
    """One case, ready to run again and again. Made by ``build``."""

    def __init__(
        self, case: Case, module: nn.Module, inputs: tuple[Tensor, ...], grad_output: Tensor | None
    ) -> None:
        self.case, self.module, self.inputs = case, module, inputs
        self._grad_output = grad_output
        self._call: Callable[..., Tensor] = module
        self._optimizer: torch.optim.Optimizer | None = None
        if case.level == "model" and case.pass_ == "train":
            # a step so small that a thousand of them leave the numbers as good as new
            self._optimizer = torch.optim.AdamW(module.parameters(), lr=1e-7, fused=True)
        if case.backend == "compiled":
            # every case is a new entry under the same code object; falling back to eager would time
            # the wrong thing
            torch._dynamo.config.recompile_limit = (
                torch._dynamo.config.accumulated_recompile_limit
            ) = 100_000
            self._call = torch.compile(module, dynamic=False, fullgraph=True)

    def run(self) -> Tensor:
        """One pass, not synchronised. forward: no gradient recorded. train: also the backward pass,
        and at level model AdamW's step; gradients of the last pass are dropped first, those of this
        one stay in ``.grad``.
        """
        if self.case.pass_ == "forward":
            with torch.inference_mode():
                return self._call(*self.inputs)
        self.drop_gradients()
        out = self._call(*self.inputs)
        out.backward(self._grad_output)
        if self._optimizer is not None:
            self._optimizer.step()
        return out.detach()

    def drop_gradients(self) -> None:
        """Let go of the gradients that the last pass left in parameters and inputs."""
        self.module.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None

    def resident_bytes(self) -> int:
        """What lies in memory between calls: inputs, the given gradient, parameters, buffers,
        prepared weights, gradients and the optimizer's moments, each once."""
        tensors = [*self.module.parameters(), *self.module.buffers(), *self.inputs]
        tensors += [tensor.grad for tensor in tensors if tensor.is_leaf and tensor.grad is not None]
        if self._grad_output is not None:
            tensors.append(self._grad_output)
        for module in self.module.modules():  # what prepare_inference made is no buffer
            if isinstance(module, AttentionLayer):
                tensors += module.prepared_tensors()
        if self._optimizer is not None:
            for state in self._optimizer.state.values():
                tensors += [each for each in state.values() if isinstance(each, Tensor)]
        kept = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def check(self, num_rows: int = 64) -> None:
        """Run and compare with the float64 reference: ``num_rows`` query rows of up to two batch
        elements on the inputs that are timed, and a quarter of them, of one element, on uneven
        ones: some channels with a mean, some constant, a head of larger scale. Values, that is, of
        which sums over keys grow with the length. In float16, whose range is small, a third, large
        input must give finite numbers.

        The tolerance is ``RMS_FACTOR`` resp. ``LARGEST_FACTOR`` times the error of the same
        reference in the case's dtype. Raises IncorrectOutput for a wrong shape, NaN or Inf
        anywhere, rows beyond the tolerance, gradients missing or not finite. The gradients are
        dropped at the end: the call whose memory is measured next must not find them.
        """
        timed, grad_output = self.inputs, self._grad_output
        try:
            self._check_inputs(num_rows, 2)
            if not timed[0].is_floating_point():
                return  # tokens: a model's norms make its inputs even
            if grad_output is not None:
                self._grad_output = grad_output * UNEVEN_GRADIENT
            self.inputs, scale = self._uneven(timed)
            self._check_inputs(max(1, num_rows // 4), 1, scale)
            if self.case.dtype == "float16" and self.case.backend != "compiled":
                self.inputs = self._large(timed)
                with torch.no_grad():
                    self._check_finite("output for large inputs", self.module(*self.inputs))
        finally:
            self.inputs, self._grad_output = timed, grad_output
            self.drop_gradients()

    def _large(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Copies of ``inputs``, of which x, or at level core k, has +-``LARGE_INPUT`` added to each
        channel."""
        large = 1 if self.case.level == "core" else 0
        generator = torch.Generator().manual_seed(self.case.seq_len)
        signs = 2 * torch.randint(2, inputs[0].shape[-1:], generator=generator) - 1
        return tuple(
            tensor.detach() + LARGE_INPUT * signs.to(tensor) if i == large else tensor.detach()
            for i, tensor in enumerate(inputs)
        )

    def _uneven(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor | float]:
        """Copies of ``inputs`` whose channels have means, the first being constant, and whose first
        head, at level core, is of larger scale; and the size of each channel of the result.

        The last is 1 at level layer, where the output projection mixes channels.
        """
        generator = torch.Generator().manual_seed(self.case.seq_len)
        uneven = []
        for index, tensor in enumerate(inputs):
            means = torch.randn(tensor.shape[-1], generator=generator).to(tensor)
            copy = tensor.detach() + CHANNEL_MEAN * means
            values = self.case.level == "core" and index == 2
            copy[..., 0] = CONSTANT_VALUES if values else CONSTANT_CHANNEL
            if self.case.level == "core" and not values:
                copy[:, 0] *= LARGE_HEAD
            uneven.append(copy.requires_grad_(tensor.requires_grad))
        if self.case.level != "core":
            return tuple(uneven), 1.0
        scale = torch.ones(inputs[0].shape[-1], dtype=torch.float64, device=inputs[0].device)
        scale[0] = CONSTANT_VALUES
        return tuple(uneven), scale

    def _check_inputs(self, num_rows: int, num_batches: int, scale: Tensor | float = 1.0) -> None:
        """One pass over ``self.inputs`` against the reference, in units of ``scale`` a channel."""
        case, device = self.case, self.inputs[0].device
        generator = torch.Generator().manual_seed(case.seq_len)
        batches = torch.randperm(case.batch, generator=generator)[:num_batches].tolist()
        rows = torch.randperm(case.seq_len, generator=generator)[
            : max(1, num_rows // len(batches))
        ].to(device)
        # nothing is wider than float64, so its rounding is float32's, scaled
        dtype = getattr(torch, case.dtype)
        rough_dtype = torch.float32 if dtype == torch.float64 else dtype
        per_eps = torch.finfo(dtype).eps / torch.finfo(rough_dtype).eps
        with torch.no_grad():  # before the pass, which at level model changes the weights
            exact, rough = (
                [self._reference(i, rows, kind) for i in batches]
                for kind in (torch.float64, rough_dtype)
            )
            losses = [per_eps * (r - e) / scale for r, e in zip(rough, exact)]
        out = self.run()
        self._check_whole(out)
        for batch_index, right, loss in zip(batches, exact, losses):
            got = out[batch_index][..., rows, :].double()
            self._check_rows(got / scale, right / scale, loss, batch_index)

    def _check_whole(self, out: Tensor) -> None:
        case = self.case
        shape = (
            (*self.inputs[0].shape[:2], case.vocab_size)
            if case.vocab_size
            else tuple(self.inputs[0].shape)
        )
        if tuple(out.shape) != shape:
            raise IncorrectOutput(
                f"{case.case_id}: output has shape {tuple(out.shape)}, not {shape}"
            )
        self._check_finite("output", out)
        if case.pass_ == "train":
            inputs = [
                (f"input {i}", tensor)
                for i, tensor in enumerate(self.inputs)
                if tensor.is_floating_point()
            ]
            for name, tensor in [*self.module.named_parameters(), *inputs]:
                if tensor.grad is None:
                    raise IncorrectOutput(f"{case.case_id}: {name} got no gradient")
                self._check_finite(f"gradient of {name}", tensor.grad)

    def _check_finite(self, what: str, tensor: Tensor) -> None:
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise IncorrectOutput(
                f"{self.case.case_id}: {count} of {tensor.numel()} elements of the {what} are NaN or Inf"
            )

    def _check_rows(self, got: Tensor, exact: Tensor, loss: Tensor, batch_index: int) -> None:
        case = self.case
        for what, factor, size in (
            ("root mean square", RMS_FACTOR, _rms),
            ("largest element", LARGEST_FACTOR, _largest),
        ):
            expected = size(loss.nan_to_num(nan=math.inf)) + torch.finfo(
                getattr(torch, case.dtype)
            ).eps * size(exact)
            tolerance = min(factor * expected, size(exact) / 2)
            error = size(got - exact)
            if not error <= tolerance:
                raise IncorrectOutput(
                    f"{case.case_id}: output is off by {error:.2e} ({what} over {exact.shape[-2]} query rows of batch element"
                    f" {batch_index}), more than {tolerance:.2e} = {factor:g} x what {case.dtype} should lose"
                    f" (the result's own is {size(exact):.2e})"
                )

    def _reference(self, batch_index: int, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """What the output should be at ``rows`` of a batch element, as float64 numbers computed in
        ``dtype``."""
        module, inputs = self.module, self.inputs
        if self.case.level == "model":
            return encoder_rows(module, inputs[0], batch_index, rows, dtype).double()
        if self.case.level == "layer":
            return query_rows(layer_problem(module, inputs[0]), batch_index, rows, dtype).double()
        problem = replace(
            core_problem(module.similarity, module.compression, self.case.num_heads), qkv=inputs
        )
        return query_rows(problem, batch_index, rows, dtype).double()

    def release(self) -> None:
        """Let go of module, inputs and gradients, and of device memory held for them."""
        self.module = self._call = self._grad_output = self._optimizer = None
        self.inputs = ()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build(case: Case, *, seed: int = 0, device: str = "cpu") -> Workbench:
    """Module and inputs of a case (brought into canonical form first).

    Competitors with one seed and one workload get the same q, k, v or x and the same projections,
    each N(0, 1) resp. N(0, 1 / D); E and F are N(0, 1 / N), so that compressed keys vary as the
    keys do and the gate stays well conditioned. Raises RequestError for an impossible case and
    UnsupportedCase for one this device or backend cannot run.
    """
    case = registry.canonical(case)
    if case.backend == "fused":
        _check_fused(case, torch.device(device))
    draw = _Draws(seed, torch.device(device), getattr(torch, case.dtype))
    if case.level == "core":
        module = CoreAttention(*_choices(case, draw))
        shape = (case.batch, case.num_heads, case.seq_len, case.head_dim)
        inputs = tuple(draw(name, *shape) for name in "qkv")
    elif case.level == "layer":
        module = _layer(case, draw)
        inputs = (draw("x", case.batch, case.seq_len, case.model_dim),)
    else:
        module = _encoder(case, draw)
        shape = (case.batch, case.seq_len)
        inputs = (
            draw.tokens(case.vocab_size, *shape)
            if case.vocab_size
            else draw("x", *shape, case.model_dim),
        )
    grad_output = None
    if case.pass_ == "train":
        module.train()
        inputs = tuple(tensor.requires_grad_(tensor.is_floating_point()) for tensor in inputs)
        shape = (*inputs[0].shape, case.vocab_size) if case.vocab_size else inputs[0].shape
        grad_output = draw("gradient", *shape)
    else:
        module.eval()
        for layer in module.modules():
            if isinstance(layer, AttentionLayer):
                layer.prepare_inference()
    return Workbench(case, module, inputs, grad_output)


class _Draws:
    """Normal numbers by name: the same for the same seed, name, shape and device, whatever else is
    drawn."""

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.seed, self.options = seed, {"device": device, "dtype": dtype}

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))

    def __call__(self, name: str, *shape: int) -> Tensor:
        device = self.options["device"]
        return torch.randn(*shape, generator=self.generator(name, device), device=device).to(
            self.options["dtype"]
        )

    def tokens(self, vocab_size: int, *shape: int) -> Tensor:
        device = self.options["device"]
        return torch.randint(
            vocab_size, shape, generator=self.generator("tokens", device), device=device
        )

    @torch.no_grad()
    def fill(self, module: nn.Module, prefix: str) -> None:
        """Every matrix N(0, 1 / columns); the norms' vectors stay as they are."""
        for name, weight in module.named_parameters():
            if "norm" not in name:
                weight.copy_(self(prefix + name, *weight.shape) / math.sqrt(weight.shape[-1]))


def _choices(case: Case, draw: _Draws, prefix: str = "") -> tuple[nn.Module, Compression | None]:
    """The case's similarity and compression."""
    mechanism = registry.get(case.mechanism)
    compression = None
    if mechanism.compressed:
        shares = {"share_kv": case.share_kv, "share_heads": case.share_heads}
        sizes = {"seq_len": case.seq_len, "rank": case.rank, "num_heads": case.num_heads}
        compression = make_compression(case.compression, **sizes, **shares, **draw.options)
        draw.fill(compression, prefix)
    if not mechanism.is_kernel:
        return Softmax(sdpa=mechanism.similarity == "sdpa"), compression
    generator = draw.generator(prefix + "omega")
    similarity = feature_map(
        mechanism.similarity, case.head_dim, case.num_features, generator=generator, **draw.options
    )
    if case.backend == "fused":
        from flurka_bench.attention.fused import FusedFeatures

        similarity = FusedFeatures(similarity)
    return similarity, compression


def _layer(case: Case, draw: _Draws, prefix: str = "") -> AttentionLayer:
    layer = AttentionLayer(
        case.model_dim, case.num_heads, *_choices(case, draw), order=case.order, **draw.options
    )
    draw.fill(layer, prefix)
    return layer


def _encoder(case: Case, draw: _Draws) -> Encoder:
    layers = [
        EncoderLayer(
            _layer(case, draw, f"layers.{i}.attention."),
            case.model_dim,
            case.ffn_dim,
            **draw.options,
        )
        for i in range(case.num_layers)
    ]
    encoder = Encoder(layers, case.model_dim, case.vocab_size, **draw.options)
    for name, module in encoder.named_modules():
        if name.endswith(("ffn_in", "ffn_out", "embedding", "head")):
            draw.fill(module, f"{name}.")
    return encoder


def _check_fused(case: Case, device: torch.device) -> None:
    """Raises UnsupportedCase where this machine lacks what the fused kernels need."""
    if device.type != "cuda":
        lacks = f"an NVIDIA GPU, got device {device}"
    elif importlib.util.find_spec("triton") is None:
        lacks = "triton (pip install 'flurka-bench[gpu]')"
    else:
        return
    raise UnsupportedCase(f"{case.case_id}: the fused kernels need {lacks} (or --backend eager)")


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())
