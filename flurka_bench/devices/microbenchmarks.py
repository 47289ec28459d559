"""What ``calibrate`` measures on the device at hand: single operators, never the mechanisms that
will be predicted.

Two things come out. *Rows*, one per operator and shape, with the columns of published operator
files (latency_ms by device, op, dtype and shape), so that the same fitting eats them. *Figures*,
one number each, read by people and by checks of plausibility: launch time, bandwidth of memory and
cache, the cache's capacity, matmul throughput by dtype, the share of it that is sustained.

A row is timed the way the published rows of its dtype were, because the cost model's constants are
learnt from those: float32 with the host's dispatch, float16 between device events, bfloat16 as
calls with operands of their own in a replayed graph; caches warm in all three. On a CPU all are
timed by the wall clock, warm. Where the host's clock is in it, a row is the mean of the fastest
fifth of its samples, as in the float32 files: on a loaded machine the median is the scheduler's
time slice.
"""

import csv
import functools
import io
import math
import operator
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flurka_bench.devices import allocator
from flurka_bench.devices.device import CudaDevice, Device
from flurka_bench.devices.shapes import (
    Probe,
    probes_for,
)
from flurka_bench.devices.timers import (
    EventTimer,
    Timer,
    make_timer,
)
from flurka_bench.hardware.rows import (
    MATMULS,
    PROTOCOL,
    SHAPES,
    STREAMING,
)
from flurka_bench.words.files import write_atomically

_MIN_SAMPLES, _MAX_SAMPLES = 5, 50


@dataclass(kw_only=True)
class Calibration:
    """Rows and figures of one device, what was left out for lack of time or memory, and how long it
    took."""

    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def write_rows(self, stem: Path) -> list[Path]:
        """As CSV files that ``calibrate --from`` reads, one for each set of shape columns:
        STEM.matmul.csv and so on."""
        written = []
        for name, columns in SHAPES.items():
            words = {"device", "op", "dtype", "latency_ms", *columns}
            rows = [row for row in self.rows if set(row) == words]
            if rows:
                written.append(stem.with_name(f"{stem.name}.{name}.csv"))
                stream = io.StringIO(newline="")
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
                write_atomically(written[-1], stream.getvalue())
        return written


def _operands(torch: Any, device: Device, probe: Probe) -> Callable[[], Any]:
    """A call of the operator on random operands of its own."""
    functional = torch.nn.functional
    size = dict(probe.shape)

    def tensor(*shape: int) -> Any:
        return torch.randn(*shape, device=device.name, dtype=getattr(torch, probe.dtype))

    match probe.op:
        case "linear":
            x, weight = tensor(size["B"] * size["M"], size["N"]), tensor(size["K"], size["N"])
            return lambda: functional.linear(x, weight)
        case "bmm":
            left, right = (
                tensor(size["B"], size["M"], size["N"]),
                tensor(size["B"], size["N"], size["K"]),
            )
            return lambda: torch.bmm(left, right)
        case "bmm_shared":
            left, right = tensor(size["M"], size["N"]), tensor(size["B"], size["N"], size["K"])
            return lambda: torch.bmm(left.expand(size["B"], -1, -1), right)
        case "attention" | "attention_backward":
            keys = size.get("num_keys", size["seq_len"])
            q, k, v = (
                tensor(size["batch"], size["num_heads"], n, size["head_dim"])
                for n in (size["seq_len"], keys, keys)
            )
            if probe.op == "attention":
                return lambda: functional.scaled_dot_product_attention(q, k, v)
            out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
            backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            return lambda: backward(out, q, k, v, out, sums, 0.0, False)
    return _streaming(torch, probe.op, tensor, size["B"], size["H"])


def _streaming(
    torch: Any, op: str, tensor: Callable[..., Any], b: int, h: int
) -> Callable[[], Any]:
    """A call of an operator of ``hardware.rows.STREAMING`` on x (b, h); ``tensor`` makes random
    operands."""
    functional = torch.nn.functional
    known = STREAMING[op]
    x = tensor(b, h)
    shapes = {"BH": (b, h), "B": (b, 1), "H": (1, h)}
    y: Any = tensor(*shapes[known.reads[1]]) if len(known.reads) == 2 else None
    mask = x > 0 if known.reads[0] == "mask" else None
    result = torch.empty_like(x) if op == "exp_" else None
    small = y * 1e-9 if op == "sub_column_" else None  # again and again
    calls: dict[str, Callable[[], Any]] = {
        "add": lambda: torch.add(x, y),
        "mul": lambda: torch.mul(x, y),
        "div": lambda: torch.div(x, y),
        "addu": lambda: x + 1.5,
        "mulu": lambda: x * 1.5,
        "relu": lambda: torch.relu(x),
        "exp": lambda: torch.exp(x),
        "elu": lambda: functional.elu(x),
        "gelu": lambda: functional.gelu(x),
        "tanh": lambda: torch.tanh(x),
        "addu_": lambda: x.add_(1e-9),
        "exp_": lambda: torch.exp(x, out=result),  # in place again and again it would overflow
        "sub_column_": lambda: x.sub_(small),
        "mul_row": lambda: x * y,
        "div_column": lambda: x / y,
        "sum": lambda: x.sum(-1, keepdim=True),
        "amax": lambda: x.amax(-1, keepdim=True),
        "amax_columns": lambda: x.view(8, -1, x.shape[1]).amax(1, keepdim=True),
        "where": lambda: torch.where(mask, x, 0.0),
        "transpose": lambda: x.view(8, -1, x.shape[1]).transpose(0, 1).contiguous(),
        "softmax": lambda: torch.softmax(x, dim=-1),
        "softmax_backward": lambda: torch.ops.aten._softmax_backward_data(x, x, -1, x.dtype),
    }
    return calls[op]


def _call_and_timer(
    torch: Any, device: Device, probe: Probe
) -> tuple[Callable[[], Any], Timer, int]:
    """The call to time, how, and how many operator calls it holds."""
    if not device.is_queue:
        return _operands(torch, device, probe), make_timer("wall", device, cold=False), 1
    name, operand_sets = PROTOCOL[probe.dtype]
    count = operand_sets if probe.op in MATMULS else 1
    calls = [_operands(torch, device, probe) for _ in range(count)]

    def call() -> None:
        for each in calls:
            each()

    return call, make_timer(name, device, cold=False), count


def _call_s(torch: Any, device: Device, probe: Probe, budget_s: float) -> float | None:
    """Seconds of one operator call, None when all were throttled. Its tensors end with it."""
    call, timer, count = _call_and_timer(torch, device, probe)
    seconds = time_call(timer, call, budget_s)
    return None if seconds is None else seconds / count


def time_call(timer: Timer, call: Callable[[], Any], budget_s: float) -> float | None:
    """Seconds per call of samples within the budget; None when all were throttled.

    Device time's median; with the host's clock in it, the mean of the fastest fifth.
    """
    start = time.monotonic()
    prepared = timer.prepare(call, warmup_budget_s=budget_s / 4, max_warmups=10)
    samples: list[float] = []
    attempts = 0
    while attempts < _MAX_SAMPLES:
        spent_s = time.monotonic() - start
        if spent_s > budget_s and (
            attempts >= _MIN_SAMPLES or (samples and spent_s > 2 * budget_s)
        ):
            break
        sample = prepared.sample()
        attempts += 1
        if sample.dropped is None:
            samples.append(sample.seconds)
    if not samples:
        return None
    if timer.name in ("wall", "eager"):
        return statistics.mean(sorted(samples)[: math.ceil(len(samples) / 5)])
    return statistics.median(samples)


def measure(
    device: Device,
    *,
    dtypes: Sequence[str] | None = None,
    budget_s: float | None = None,
    probes: Iterable[Probe] | None = None,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Calibration:
    """Measure figures and rows within the time bound (120 s on a GPU, 60 s on a CPU).

    Probes that the bound or the memory leaves no room for are named in ``left_out``; nothing is
    measured in part.
    """
    import torch

    start = time.monotonic()
    gpu = device.is_queue
    dtypes = list(dtypes or (["bfloat16", "float16", "float32"] if gpu else ["float32"]))
    budget_s = budget_s or (120.0 if gpu else 60.0)
    waiting = list(probes if probes is not None else probes_for(device, dtypes))
    figures = list(_figure_probes(torch, device, dtypes))
    done, total = 0, len(waiting) + len(figures)
    found = Calibration(device=_device_name(torch, device))

    def left_s() -> float:
        return budget_s - (time.monotonic() - start)

    with torch.inference_mode():
        for name, measure_figure in figures:
            if on_progress:
                on_progress(done, total, name)
            found.figures |= measure_figure(min(3.0, 0.3 * budget_s / len(figures)))
            done += 1
        for index, probe in enumerate(waiting):
            if on_progress:
                on_progress(done, total, probe.text)
            done += 1
            share_s = left_s() / (len(waiting) - index)
            if share_s < 0.01:
                found.left_out.append(f"{probe.text}: time bound")
                continue
            try:
                seconds = _call_s(torch, device, probe, 0.8 * share_s)
            except (RuntimeError, MemoryError) as error:  # out of memory, a dtype without a kernel
                found.left_out.append(
                    f"{probe.text}: {str(error).splitlines()[0] or type(error).__name__}"
                )
                continue
            if seconds is None:
                found.left_out.append(f"{probe.text}: throttled throughout")
                continue
            row = {"device": found.device, "op": probe.op, "dtype": probe.dtype, **probe.shape}
            found.rows.append({**row, "latency_ms": seconds * 1e3})
    found.seconds = time.monotonic() - start
    return found


def _device_name(torch: Any, device: Device) -> str:
    from flurka_bench.hardware.detect import cpu_name

    return (
        str(torch.cuda.get_device_name(device.index))
        if isinstance(device, CudaDevice)
        else cpu_name()
    )


def _figure_probes(
    torch: Any, device: Device, dtypes: Sequence[str]
) -> Iterator[tuple[str, Callable[[float], dict[str, float]]]]:
    """(text, measurement within seconds) for each figure that is not read off the rows."""
    wall = make_timer("wall", device, cold=False)
    device_timer = EventTimer(device, cold=False) if device.is_queue else wall
    one = torch.zeros(1, device=device.name)

    def launch(budget_s: float) -> dict[str, float]:
        seconds = time_call(wall, lambda: one.add_(1), budget_s)
        return {"launch_eager_s": seconds} if seconds else {}

    def graph_launch(budget_s: float) -> dict[str, float]:
        def many() -> None:
            for _ in range(100):
                one.add_(1)

        seconds = time_call(make_timer("graph", device, cold=False), many, budget_s)
        return {"launch_graph_s": seconds / 100} if seconds else {}

    def bandwidth(budget_s: float) -> dict[str, float]:
        elements = (10**9 if device.is_queue else 2 * 10**8) // 4
        x, y = torch.ones(elements, device=device.name), torch.ones(elements, device=device.name)
        timer = EventTimer(device, cold=False) if device.is_queue else wall
        copied, added = (
            time_call(timer, call, budget_s / 2) for call in (lambda: y.copy_(x), lambda: y.add_(x))
        )
        found = {"copy_bandwidth_bytes_per_s": copied and 8 * elements / copied}
        return {
            key: value
            for key, value in {
                **found,
                "add_bandwidth_bytes_per_s": added and 12 * elements / added,
            }.items()
            if value
        }

    yield "launch of an empty op", launch
    if device.is_queue:
        yield "launch inside a graph", graph_launch
    else:
        yield "allocator", lambda budget_s: {"reuses_memory": float(allocator.reuses_memory() or 0)}
    yield "memory bandwidth", bandwidth
    yield "cache sweep", lambda budget_s: _cache_figures(torch, device, device_timer, budget_s)
    for dtype in dtypes:
        yield (
            f"large matmuls, {dtype}",
            functools.partial(_matmul_figures, torch, device, device_timer, dtype),
        )
    yield "sustained clock", lambda budget_s: _sustained(torch, device, dtypes[0], budget_s)


def _matmul_figures(
    torch: Any, device: Device, timer: Timer, dtype: str, budget_s: float
) -> dict[str, float]:
    """The best of three large square matmuls of random numbers: zeros would draw less power."""
    rates = []
    for size in (4096, 6144, 8192) if device.is_queue else (768, 1024, 1536):
        x, y = (
            torch.randn(size, size, device=device.name, dtype=getattr(torch, dtype))
            for _ in range(2)
        )
        seconds = time_call(timer, functools.partial(operator.matmul, x, y), budget_s / 3)
        rates += [2 * size**3 / seconds] if seconds else []
    return {f"matmul_flops_per_s.{dtype}": max(rates)} if rates else {}


def _sustained(torch: Any, device: Device, dtype: str, budget_s: float) -> dict[str, float]:
    """Matmul throughput of the last third of a loop over that of its fastest tenth, and the clock
    at its end."""
    size = 8192 if device.is_queue else 1024
    x, y = (
        torch.randn(size, size, device=device.name, dtype=getattr(torch, dtype)) for _ in range(2)
    )
    seconds: list[float] = []
    start = time.monotonic()
    while time.monotonic() - start < budget_s or len(seconds) < 10:
        began = device.now_ns()
        x @ y
        device.synchronize()
        seconds.append((device.now_ns() - began) * 1e-9)
    fastest, late = np.quantile(seconds, 0.05), np.median(seconds[-(len(seconds) // 3) :])
    found = {"sustained_fraction": float(min(fastest / late, 1.0))}
    fraction = device.reading().clock_fraction
    return found | ({"sustained_clock_fraction": fraction} if fraction else {})


def _cache_figures(torch: Any, device: Device, timer: Timer, budget_s: float) -> dict[str, float]:
    """Additions in place over growing footprints, 1 to 200 MB and past the cache; outputs of their
    own would time page faults."""
    sweep = []
    footprints = np.geomspace(
        min(1e6, device.cache_bytes / 8), max(200e6, 4 * device.cache_bytes), 12
    )
    for footprint in footprints:
        x, y = (torch.ones(int(footprint) // 8, device=device.name) for _ in range(2))
        seconds = time_call(timer, functools.partial(x.add_, y), budget_s / len(footprints))
        if seconds:
            sweep.append((8 * x.numel(), 12 * x.numel() / seconds))
    return knee(*zip(*sweep)) if len(sweep) >= 4 else {}


def knee(footprints: Sequence[float], rates: Sequence[float]) -> dict[str, float]:
    """Bandwidth of the cache and its capacity: the largest footprint whose rate is nearer to the
    best than to the last."""
    cache, memory = max(rates), float(np.median(rates[-2:]))
    found = {"cache_bandwidth_bytes_per_s": float(cache)}
    if cache > 1.2 * memory:  # else no knee shows
        inside = [
            footprint
            for footprint, rate in zip(footprints, rates)
            if rate > math.sqrt(cache * memory)
        ]
        found["cache_capacity_bytes"] = float(max(inside))
    return found
