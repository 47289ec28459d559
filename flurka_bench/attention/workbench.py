"""A canonical case made real: module, inputs, one pass, and the gate that its output must get through."""

import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flurka_bench import mechanisms
from flurka_bench.attention.compression import Compression
from flurka_bench.attention.functional import compressed_attention
from flurka_bench.attention.modules import AttentionLayer
from flurka_bench.attention.reference import Problem, query_rows
from flurka_bench.attention.similarity import FeatureMap, Softmax, feature_map
from flurka_bench.errors import FlurkaError
from flurka_bench.workload import Case

# How many times the low-precision reference's own error, root mean square and largest element, an output may be off.
# Over the ten mechanisms and all dtypes correct outputs come to 0.5 to 1.3 times either; a wrong formula is off by a good
# part of the result itself.
RMS_FACTOR = 4.0
LARGEST_FACTOR = 8.0


class IncorrectOutput(FlurkaError):  # noqa: N818, as Interrupted: it names what happened
    """A case's output is not what its mechanism should give; its time means nothing."""


class UnsupportedCase(FlurkaError):  # noqa: N818
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

    def __init__(self, case: Case, module: nn.Module, inputs: tuple[Tensor, ...], grad_output: Tensor | None) -> None:
        self.case, self.module, self.inputs = case, module, inputs
        self._grad_output = grad_output
        self._call: Callable[..., Tensor] = module
        if case.backend == "compiled":
            # every case is a new entry under the same code object; falling back to eager would time the wrong thing
            torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = 100_000
            self._call = torch.compile(module, dynamic=False, fullgraph=True)

    def run(self) -> Tensor:
        """One pass, not synchronised. forward: no gradient recorded. train: also the backward pass; gradients of the last
        pass are dropped first, those of this one stay in ``.grad`` of parameters and inputs.
        """
        if self.case.pass_ == "forward":
            with torch.inference_mode():
                return self._call(*self.inputs)
        self.module.zero_grad(set_to_none=True)
        for tensor in self.inputs:
            tensor.grad = None
        out = self._call(*self.inputs)
        out.backward(self._grad_output)
        return out.detach()

    def check(self, num_rows: int = 64) -> None:
        """Run once and compare ``num_rows`` query rows of up to two batch elements with the float64 reference.

        The tolerance is ``RMS_FACTOR`` resp. ``LARGEST_FACTOR`` times the error of the same reference in the case's dtype.
        Raises IncorrectOutput for a wrong shape, NaN or Inf anywhere, rows beyond the tolerance, gradients missing or not
        finite.
        """
        case, out = self.case, self.run()
        shape = self.inputs[0].shape
        if out.shape != shape:
            raise IncorrectOutput(f"{case.case_id}: output has shape {tuple(out.shape)}, not {tuple(shape)}")
        self._check_finite("output", out)
        if case.pass_ == "train":
            named = [*self.module.named_parameters(), *((f"input {i}", tensor) for i, tensor in enumerate(self.inputs))]
            for name, tensor in named:
                if tensor.grad is None:
                    raise IncorrectOutput(f"{case.case_id}: {name} got no gradient")
                self._check_finite(f"gradient of {name}", tensor.grad)
        with torch.no_grad():
            self._check_rows(out, num_rows)

    def _check_finite(self, what: str, tensor: Tensor) -> None:
        if not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise IncorrectOutput(f"{self.case.case_id}: {count} of {tensor.numel()} elements of the {what} are NaN or Inf")

    def _check_rows(self, out: Tensor, num_rows: int) -> None:
        case, problem = self.case, self._problem()
        # nothing is wider than float64, so its rounding is float32's, scaled
        rough_dtype = torch.float32 if out.dtype == torch.float64 else out.dtype
        per_eps = torch.finfo(out.dtype).eps / torch.finfo(rough_dtype).eps
        generator = torch.Generator().manual_seed(case.seq_len)
        batches = torch.randperm(case.batch, generator=generator)[:2].tolist()
        rows = torch.randperm(case.seq_len, generator=generator)[: max(1, num_rows // len(batches))].to(out.device)
        for batch_index in batches:
            exact = query_rows(problem, batch_index, rows, torch.float64)
            rough = query_rows(problem, batch_index, rows, rough_dtype).double()
            got = out[batch_index][..., rows, :].double()
            for what, factor, size in (("root mean square", RMS_FACTOR, _rms), ("largest element", LARGEST_FACTOR, _largest)):
                expected = per_eps * size((rough - exact).nan_to_num(nan=math.inf)) + torch.finfo(out.dtype).eps * size(exact)
                tolerance = min(factor * expected, size(exact) / 2)
                error = size(got - exact)
                if not error <= tolerance:
                    raise IncorrectOutput(
                        f"{case.case_id}: output is off by {error:.2e} ({what} over {len(rows)} query rows of batch element"
                        f" {batch_index}), more than {tolerance:.2e} = {factor:g} x what {case.dtype} should lose"
                        f" (the result's own is {size(exact):.2e})"
                    )

    def _problem(self) -> Problem:
        similarity, compression = self.module.similarity, self.module.compression
        features = not isinstance(similarity, Softmax)
        common = {
            "similarity": similarity.name if features else "softmax",
            "num_heads": self.case.num_heads,
            "compression": None if compression is None else compression.matrices(),
            "omega": similarity.omega if features else None,
        }
        if self.case.level == "core":
            return Problem(qkv=self.inputs, **common)
        layer = self.module
        projections = (layer.to_q, layer.to_k, layer.to_v, layer.to_out)
        return Problem(x=self.inputs[0], weights=tuple(projection.weight for projection in projections), **common)

    def release(self) -> None:
        """Let go of module, inputs and gradients, and of device memory held for them."""
        self.module = self._call = self._grad_output = None
        self.inputs = ()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def build(case: Case, *, seed: int = 0, device: str = "cpu") -> Workbench:
    """Module and inputs of a case (brought into canonical form first).

    Competitors with one seed and one workload get the same q, k, v or x and the same projections, each N(0, 1) resp.
    N(0, 1 / D); E and F are N(0, 1 / N), so that compressed keys vary as the keys do and the gate stays well conditioned.
    Raises RequestError for an impossible case and UnsupportedCase for one this device or backend cannot run.
    """
    case = mechanisms.canonical(case)
    mechanism = mechanisms.get(case.mechanism)
    options = {"device": torch.device(device), "dtype": getattr(torch, case.dtype)}
    if case.backend == "fused":
        _check_fused(case, mechanism.is_kernel, torch.device(device))

    def draw(offset: int, *shape: int) -> Tensor:
        generator = torch.Generator(options["device"]).manual_seed(seed * 16 + offset)
        return torch.randn(*shape, generator=generator, device=options["device"]).to(options["dtype"])

    similarity = _similarity(mechanism.similarity, case, seed, options)
    if case.backend == "fused":
        from flurka_bench.attention.fused import FusedFeatures

        similarity = FusedFeatures(similarity)
    compression = None
    if mechanism.compressed:
        shares = {"share_kv": case.share_kv, "share_heads": case.share_heads}
        sizes = {"seq_len": case.seq_len, "rank": case.rank, "num_heads": case.num_heads}
        compression = Compression(kind=case.compression, **sizes, **shares, **options)
        with torch.no_grad():
            for offset, weight in enumerate(compression.parameters(), start=8):
                weight.copy_(draw(offset, *weight.shape) / math.sqrt(weight.shape[-1]))
    if case.level == "core":
        module = CoreAttention(similarity, compression)
        shape = (case.batch, case.num_heads, case.seq_len, case.head_dim)
        inputs = tuple(draw(offset, *shape) for offset in range(3))
    else:
        module = AttentionLayer(case.model_dim, case.num_heads, similarity, compression, order=case.order, **options)
        with torch.no_grad():
            for offset, projection in enumerate((module.to_q, module.to_k, module.to_v, module.to_out), start=4):
                projection.weight.copy_(draw(offset, *projection.weight.shape) / math.sqrt(case.model_dim))
        inputs = (draw(0, case.batch, case.seq_len, case.model_dim),)
    grad_output = None
    if case.pass_ == "train":
        module.train()
        inputs = tuple(tensor.requires_grad_() for tensor in inputs)
        grad_output = draw(3, *inputs[0].shape)
    else:
        module.eval()
        if isinstance(module, AttentionLayer):
            module.prepare_inference()
    return Workbench(case, module, inputs, grad_output)


def _similarity(name: str, case: Case, seed: int, options: dict[str, object]) -> Softmax | FeatureMap:
    if name in ("softmax", "sdpa"):
        return Softmax(sdpa=name == "sdpa")
    generator = torch.Generator().manual_seed(seed)
    return feature_map(name, case.head_dim, case.num_features, generator=generator, **options)


def _check_fused(case: Case, is_kernel: bool, device: torch.device) -> None:
    """Raises UnsupportedCase, saying which of the conditions of the fused kernels is not met."""
    reasons = (
        (not is_kernel, "there are fused kernels for feature maps only (kernel-*, flurka-*); full-sdpa is softmax's own"),
        (case.pass_ == "train", "the fused kernels have no backward pass"),
        (case.order == "absorbed", "the fused kernels form queries, the order absorbed does not (--order compress_first)"),
        (device.type != "cuda", f"the fused kernels need an NVIDIA GPU, got device {device}"),
        (importlib.util.find_spec("triton") is None, "the fused kernels need triton (pip install 'flurka-bench[gpu]')"),
    )
    for met, reason in reasons:
        if met:
            raise UnsupportedCase(f"{case.case_id}: {reason} (or --backend eager)")


def _rms(tensor: Tensor) -> float:
    return float(tensor.square().mean().sqrt())


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max())
