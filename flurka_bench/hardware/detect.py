"""The device at hand as a profile: recognised by the driver's name, else put together from what the
system reports.

No torch here: whoever holds the device passes its properties in as plain numbers.
"""

import os
import platform
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flurka_bench.hardware.files import (
    FOLDER,
    load,
)
from flurka_bench.hardware.profile import (
    Figure,
    Profile,
)
from flurka_bench.words.errors import RequestError

# float32 lanes of one core: two fused multiply-add units (one where the entry says so) of the
# widest vectors. Source: uops.info and the vendors' optimisation manuals; a part with one 512-bit
# unit reaches half, which calibration finds.
_CPU_LANES = (("avx512f", 32), ("avx2", 16), ("avx", 8), ("asimd", 8))

# CUDA cores an SM by compute capability: CUDA C++ Programming Guide, "Throughput of Native
# Arithmetic Instructions".
_CUDA_LANES = {
    (6, 0): 64,
    (6, 1): 128,
    (7, 0): 64,
    (7, 5): 64,
    (8, 0): 64,
    (8, 6): 128,
    (8, 9): 128,
    (9, 0): 128,
}
_CUDA_GENERATION = {
    6: "pascal",
    7: "volta",
    8: "ampere",
    9: "hopper",
    10: "blackwell",
    12: "blackwell-rtx",
}
_ATTENTION_KERNEL = {
    "ampere": "flash2",
    "ada": "flash2",
    "hopper": "flash3",
    "blackwell": "flash4",
    "blackwell-rtx": "flash2",
}


def recognise(device_name: str) -> Profile | None:
    """The shipped profile whose driver name is exactly ``device_name``, or None."""
    for path in sorted(FOLDER.glob("*.toml")):
        if device_name in load(path.stem).device_names:
            return load(path.stem)
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(key: str) -> str:
    match = re.search(rf"^{key}\s*:\s*(.+)$", _read("/proc/cpuinfo"), flags=re.MULTILINE)
    return match[1].strip() if match else ""


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _clock_hz() -> tuple[float, str]:
    highest = _read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if highest.isdigit():
        return float(highest) * 1e3, "cpufreq's maximum"
    megahertz = _cpuinfo("cpu MHz")
    if megahertz:
        return float(megahertz) * 1e6, "/proc/cpuinfo, the clock at this moment"
    return 2.5e9, "not reported by the system: 2.5 GHz assumed, calibration corrects it"


def last_level_cache_bytes() -> tuple[float, str]:
    """The largest cache of the first CPU, and where the figure is from."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    best = 0.0
    for index in range(5):
        text = _read(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").strip()
        if text and text[-1] in units and text[:-1].isdigit():
            best = max(best, int(text[:-1]) * units[text[-1]])
    return (
        (best, "/sys/devices/system/cpu/cpu0/cache")
        if best
        else (8 * 2**20, "not reported by the system: 8 MiB assumed")
    )


@lru_cache
def detect_cpu(num_threads: int | None = None) -> Profile:
    """This machine's CPU as a profile: what the system reports, with peaks from lanes, threads and
    clock.

    ``num_threads`` is the number of threads that the benchmark uses; by default the CPUs this
    process may run on. Memory bandwidth is not reported by any system: 10 GB/s a thread stand in
    until ``calibrate`` has measured it.
    """
    threads = num_threads or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    lanes = next((count for flag, count in _CPU_LANES if flag in flags), 8)
    clock, clock_source = _clock_hz()
    cache, cache_source = last_level_cache_bytes()
    memory = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 8e9
    )
    peak = 2.0 * threads * lanes * clock

    def figure(value: float, unit: str, source: str, note: str = "") -> Figure:
        return Figure(value=float(value), unit=unit, source=source, note=note)

    return Profile(
        name="cpu",
        title=f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}",
        vendor="cpu",
        kind="cpu",
        architecture=platform.machine(),
        matmul_library="cpu",
        attention_kernel="cpu",
        sources={
            "system": "what the operating system reports",
            "flags": "/proc/cpuinfo: widest vector unit, two a core",
        },
        datasheet={
            "num_sms": figure(threads, "count", "system", "threads that the benchmark uses"),
            "vector_lanes_per_sm": figure(lanes, "count", "flags"),
            "special_per_clock_per_sm": figure(
                lanes / 16, "count", "flags", "a vector exp takes about 16 multiply-adds"
            ),
            "boost_clock_hz": figure(clock, "Hz", "system", clock_source),
            "memory_bytes": figure(max(memory, 1e9), "B", "system"),
            "memory_bandwidth_bytes_per_s": figure(
                1e10 * threads, "B/s", "system", "assumed: 10 GB/s a thread"
            ),
            "l2_bytes": figure(cache, "B", "system", cache_source),
        },
        peaks={
            "vector.float32": figure(peak, "FLOP/s", "flags"),
            "vector.float64": figure(peak / 2, "FLOP/s", "flags"),
        },
    )


def from_cuda_properties(
    name: str,
    capability: tuple[int, int],
    num_sms: int,
    clock_hz: float,
    memory_bytes: float,
    l2_bytes: float,
    bandwidth_bytes_per_s: float,
    shared_memory_per_sm_bytes: float,
) -> Profile:
    """A profile for a GPU that does not ship: from the driver's properties alone, and saying so in
    every source.

    Matrix peaks are taken at the rate of the generation's data-centre part and are corrected by
    calibration.
    """
    architecture = {(7, 5): "turing", (8, 9): "ada"}.get(capability) or _CUDA_GENERATION.get(
        capability[0], "blackwell"
    )
    lanes = _CUDA_LANES.get(capability, 128)
    rate = {
        "volta": 1024,
        "turing": 1024,
        "ampere": 2048 if capability == (8, 0) else 1024,
        "ada": 1024,
        "hopper": 4096,
        "blackwell": 8192,
        "blackwell-rtx": 1024,
    }.get(architecture)

    def figure(value: float, unit: str) -> Figure:
        return Figure(value=float(value), unit=unit, source="driver")

    tensor = {} if rate is None else {"tensor.float16": figure(num_sms * rate * clock_hz, "FLOP/s")}
    if rate is not None and capability[0] >= 8:
        tensor |= {
            "tensor.bfloat16": tensor["tensor.float16"],
            "tensor.tf32": figure(num_sms * rate * clock_hz / 2, "FLOP/s"),
        }
    return Profile(
        name=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu",
        title=name,
        vendor="nvidia",
        kind="gpu",
        architecture=architecture,
        matmul_library=architecture,
        attention_kernel=_ATTENTION_KERNEL.get(architecture, "none"),
        device_names=(name,),
        sources={
            "driver": "device properties as the driver reports them; rates an SM by compute"
            " capability"
        },
        datasheet={
            "num_sms": figure(num_sms, "count"),
            "vector_lanes_per_sm": figure(lanes, "count"),
            "special_per_clock_per_sm": figure(16, "count"),
            "boost_clock_hz": figure(clock_hz, "Hz"),
            "memory_bytes": figure(memory_bytes, "B"),
            "memory_bandwidth_bytes_per_s": figure(bandwidth_bytes_per_s, "B/s"),
            "l2_bytes": figure(l2_bytes, "B"),
            "shared_memory_per_sm_bytes": figure(shared_memory_per_sm_bytes, "B"),
        },
        peaks={"vector.float32": figure(2 * num_sms * lanes * clock_hz, "FLOP/s"), **tensor},
    )


def profile_of(name: str, properties: Mapping[str, Any], figures: Mapping[str, float]) -> Profile:
    """The shipped profile of the device of that name, or one from what it reports of itself.

    Args:
        name: the driver's, or a CPU's.
        properties: ``num_threads`` of a CPU; of a GPU the arguments of ``from_cuda_properties``.
        figures: measured on it: the bandwidth of a copy stands in where the driver reports none.

    Raises:
        RequestError: a GPU that no profile knows and that does not report its clock.
    """
    if "num_threads" in properties:
        return detect_cpu(properties["num_threads"])
    shipped = recognise(name)
    if shipped is not None:
        return shipped
    if not properties["clock_hz"]:
        raise RequestError(
            f"{name} does not report its clock: write a profile for it and pass --hardware FILE"
        )
    copied = figures.get("copy_bandwidth_bytes_per_s", 0.0)
    reported = {
        **properties,
        "capability": tuple(properties["capability"]),
        "bandwidth_bytes_per_s": properties["bandwidth_bytes_per_s"] or copied / 0.9,
    }
    return from_cuda_properties(name, **reported)
