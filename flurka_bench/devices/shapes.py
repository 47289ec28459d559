"""Which operators ``calibrate`` times, at which shapes: spread over what attention asks for, the
same on every machine."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flurka_bench.devices.device import Device
from flurka_bench.hardware.rows import (
    CPU_ROWS,
    STREAMING,
)
from flurka_bench.words.sizes import DTYPE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One operator at one shape. ``shape`` maps the op's columns to sizes."""

    op: str
    dtype: str
    shape: Mapping[str, int]

    @property
    def text(self) -> str:
        """For progress lines."""
        return f"{self.op} {self.dtype} " + " x ".join(str(size) for size in self.shape.values())

    @property
    def num_bytes(self) -> int:
        """Operands and result of one call."""
        size = dict(self.shape)
        match tuple(size):
            case ("B", "M", "N", "K"):
                weight = size["N"] * size["K"] * (1 if self.op == "linear" else size["B"])
                count = size["B"] * size["M"] * (size["N"] + size["K"]) + weight
            case ("B", "H"):
                count = size["B"] * size["H"] * (STREAMING[self.op].reads.count("BH") + 1)
            case _:
                rows = size["seq_len"] + size.get("num_keys", size["seq_len"])
                count = 2 * size["batch"] * size["num_heads"] * size["head_dim"] * rows
        return count * DTYPE_BYTES[self.dtype]


def _log_uniform(rng: np.random.Generator, low: int, high: int, multiple: int) -> int:
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return max(multiple, round(value / multiple) * multiple)


def _stratified(
    candidates: list[Probe], cost: Callable[[Probe], float], low: float, high: float, count: int
) -> list[Probe]:
    """``count`` of the candidates whose cost lies between the bounds, evenly spaced by rank of
    cost."""
    fitting = sorted((probe for probe in candidates if low <= cost(probe) <= high), key=cost)
    picks = np.unique(np.linspace(0, len(fitting) - 1, count).round().astype(int))
    return [fitting[pick] for pick in picks]


def matmul_probes(dtype: str, *, max_flops: float, count: int, seed: int = 0) -> list[Probe]:
    """Linear and batched matmuls as attention has them: long in rows, with head dims, ranks and
    widths on the other sides."""
    rng = np.random.default_rng(seed)
    linear, batched = [], []
    for _ in range(400):
        inner, cols = (int(rng.choice([64, 128, 256, 512, 1024, 2048, 4096])) for _ in range(2))
        rows = _log_uniform(rng, 64, 16384, 16)
        linear.append(
            Probe(op="linear", dtype=dtype, shape={"B": 1, "M": rows, "N": inner, "K": cols})
        )
        heads, head_dim = int(rng.choice([1, 4, 8, 16, 32])), int(rng.choice([32, 64, 128]))
        other = int(rng.choice([16, 32, 64, 128, 256, 512]))
        length = _log_uniform(rng, 128, 16384, 16)
        # (N, d) @ (d, k or m), (N, k or m) @ (k or m, d), (k or m, N) @ (N, d)
        m, n, k = [(length, head_dim, other), (length, other, head_dim), (other, length, head_dim)][
            int(rng.integers(3))
        ]
        batched.append(Probe(op="bmm", dtype=dtype, shape={"B": heads, "M": m, "N": n, "K": k}))

    return [
        *_stratified(linear, _flops, max_flops / 2000, max_flops, count),
        *_stratified(batched, _flops, max_flops / 2000, max_flops, count),
    ]


def streaming_probes(
    dtype: str, *, cache_bytes: int, large_bytes: int, count: int, seed: int = 0
) -> list[Probe]:
    """Elementwise and softmax rows: footprints through the cache's capacity and up to
    ``large_bytes``."""
    rng = np.random.default_rng(seed)
    itemsize = DTYPE_BYTES[dtype]
    probes = []
    for footprint in np.geomspace(min(1e6, cache_bytes / 8), max(200e6, 2 * cache_bytes), count):
        elements = max(1024, int(footprint / 3 / itemsize) // 1024 * 1024)
        probes.append(Probe(op="add", dtype=dtype, shape={"B": elements // 1024, "H": 1024}))
    for op in ("mul", "addu", "relu", "exp", "tanh", "gelu", "softmax"):
        for footprint in np.geomspace(64e3, large_bytes / 4, 8):
            width = int(rng.choice([64, 128, 256, 512, 1024, 4096]))
            probes.append(
                Probe(
                    op=op,
                    dtype=dtype,
                    shape={"B": max(1, int(footprint / 2 / itemsize / width)), "H": width},
                )
            )
    return probes


def attention_probes(dtype: str, *, max_flops: float, count: int) -> list[Probe]:
    """Fused attention from short to long, two head dims."""
    candidates = [
        Probe(
            op="attention",
            dtype=dtype,
            shape={"batch": batch, "num_heads": heads, "seq_len": length, "head_dim": width},
        )
        for batch in (1, 4)
        for heads in (4, 8, 16)
        for length in (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
        for width in (64, 128)
    ]
    return _stratified(candidates, _attention_flops, max_flops / 2000, max_flops, count)


def _attention_flops(probe: Probe) -> float:
    size = probe.shape
    return 4.0 * size["batch"] * size["num_heads"] * size["seq_len"] ** 2 * size["head_dim"]


def cpu_probes(dtype: str, seed: int = 0) -> list[Probe]:
    """What a CPU's model asks for: products with short sides, rows that broadcast, in place or into
    fresh memory, and keys shorter than the queries. Operands reach past the cache, and past the
    size from which an allocator may map results anew.
    """
    rng = np.random.default_rng(seed)
    found = _cpu_products(rng, dtype)
    for op in CPU_ROWS:
        widths: tuple[int, ...] = (16, 24, 64) if op == "amax_columns" else (16, 32, 64, 128)
        if op.startswith("softmax"):
            widths = (32, 64, 128, 256, 1024, 4096)
        # Small only as far as calls in attention are; the fourth leaves the cache, the last is
        # mapped.
        for footprint in np.array([2e5, 3e6, 1e7, 2.3e7, 6e7]) * rng.uniform(0.7, 1.3, 5):
            width = _pick(rng, *widths)
            rows = max(16, int(footprint / DTYPE_BYTES[dtype] / width) // 16 * 16)
            found.append(Probe(op=op, dtype=dtype, shape={"B": rows, "H": width}))
    for op, count in (("attention", 14), ("attention_backward", 6)):
        for at in range(count):
            length = _log_uniform(rng, 256, 8192 if at % 2 else 1500, 16)
            shape = {
                "batch": _pick(rng, 1, 2),
                "num_heads": _pick(rng, 2, 4, 8),
                "seq_len": length,
                "head_dim": _pick(rng, 32, 64, 96, 128),
                "num_keys": _pick(rng, 32, 64, 128, 256) if at % 2 else length,
            }
            found.append(Probe(op=op, dtype=dtype, shape=shape))
    return found


def _pick(rng: np.random.Generator, *choices: int) -> int:
    return int(rng.choice(choices))


def _flops(probe: Probe) -> float:
    return 2.0 * math.prod(probe.shape.values())


def _cpu_products(rng: np.random.Generator, dtype: str) -> list[Probe]:
    """Products spread by their FLOPs, and some with few features or a small head: there what
    streams from memory decides, where the others are bound by arithmetic."""
    candidates = [probe for _ in range(600) for probe in _one_heads_products(rng, dtype)]
    # equal costs: any of the forms
    candidates = [candidates[index] for index in rng.permutation(len(candidates))]
    found: list[Probe] = []
    for op, count in (("bmm", 52), ("bmm_shared", 10), ("linear", 24)):
        own = [probe for probe in candidates if probe.op == op and probe.num_bytes < 4e8]
        found += _stratified(own, _flops, 2e5, 6e9, count)
    skinny = [
        probe
        for probe in candidates
        if min(probe.shape[side] for side in "MNK") <= 64 and _flops(probe) < 2e9
    ]
    skinny = [probe for probe in skinny if probe.op != "bmm_shared" and probe not in found]
    return found + _stratified(skinny, lambda probe: probe.num_bytes, 1e7, 1.2e8, 16)


def _one_heads_products(rng: np.random.Generator, dtype: str) -> list[Probe]:
    """The products of a layer at one drawn size: in heads, of the compression, of projections."""
    heads, length = _pick(rng, 1, 2, 4, 8, 16, 32), _log_uniform(rng, 256, 8192, 16)
    width, other = _pick(rng, 32, 64, 96, 128), _pick(rng, 16, 32, 48, 64, 128, 256)
    model = _pick(rng, 128, 256, 512, 1024)
    found: list[Probe] = []

    def add(op: str, b: int, m: int, n: int, k: int) -> None:
        found.append(Probe(op=op, dtype=dtype, shape={"B": b, "M": m, "N": n, "K": k}))

    for m, n, k in (
        (length, width, other), (length, other, width), (other, length, width),
        (length, width, length), (length, length, width),
    ):  # fmt: skip
        add("bmm", heads, m, n, k)
    add("bmm_shared", max(2, heads), other, length, width)
    for m, n, k in (
        (other, length, model), (length, other * heads, model), (length, model, model),
    ):  # fmt: skip
        add("bmm", _pick(rng, 1, 2, 4), m, n, k)
    for n, k in ((model, model), (width, other), (model, other * heads)):
        add("linear", 1, length * (heads if n == width else 1), n, k)
    return found


def probes_for(device: Device, dtypes: Sequence[str]) -> list[Probe]:
    """The whole list for a device, shuffled: what the time bound cuts off is then a fair sample,
    and drift no shape's."""
    gpu = device.is_queue
    found: list[Probe] = []
    for position, dtype in enumerate(dtypes):
        if not gpu:
            found += cpu_probes(dtype)
            continue
        max_flops = 1e12 if DTYPE_BYTES[dtype] == 2 else 2e11
        found += matmul_probes(dtype, max_flops=max_flops, count=30)
        if position == 0:
            found += streaming_probes(
                dtype, cache_bytes=device.cache_bytes, large_bytes=10**9, count=14
            )
        if (
            dtype != "float32"
        ):  # on a GPU float32 attention has no fast kernel, and the model no rows of it
            found += attention_probes(dtype, max_flops=2 * max_flops, count=16)
    return [found[index] for index in np.random.default_rng(0).permutation(len(found))]
