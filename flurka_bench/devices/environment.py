"""What a measurement stands on: recorded once per run (``capture``), stamped per case (``stamp``),
judged (``judge``).

Everything is asked of the system and nothing assumed: what a machine does not tell is None in the
record and "not reported" in the judgement. Environment variables are recorded by name from a fixed
list, never wholesale.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

import flurka_bench
from flurka_bench.devices import allocator
from flurka_bench.devices.device import (
    THROTTLE_REASONS,
    CudaDevice,
    Device,
    Nvml,
)
from flurka_bench.hardware.detect import (
    cpu_name,
    last_level_cache_bytes,
)
from flurka_bench.words.units import format_bytes

_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY", "GOMP_CPU_AFFINITY", "LD_PRELOAD", "MALLOC_CONF",
    *allocator.VARIABLES, allocator.CHOICE,
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "TRITON_INTERPRET",
)  # fmt: skip
_PACKAGES = ("torch", "triton", "numpy", "nvidia-ml-py")
_POWER_CAP = 0x4  # nvmlClocksThrottleReasonSwPowerCap
_ALLOCATOR_ADVICE = f"page faults are timed, now more, now fewer: unset {allocator.CHOICE} and MALLOC_*, or preload jemalloc or tcmalloc"
_JUDGEMENTS = ("ok", "warn", "bad")


def _read(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    return None


def _load_1m() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def allowed_cpus() -> int:
    """CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota() -> float | None:
    """CPUs' worth of time that the control group grants (version 2, then 1), None without a
    limit."""
    text = _read("/sys/fs/cgroup/cpu.max")
    if text:
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_us = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period_us = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    return int(quota_us) / int(period_us) if quota_us and period_us and int(quota_us) > 0 else None


def _container() -> str | None:
    for path, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman")):
        if Path(path).exists():
            return name
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    return next(
        (name for name in ("docker", "kubepods", "lxc") if name in (_read("/proc/1/cgroup") or "")),
        None,
    )


def _own_seconds() -> float:
    """CPU time of this process and of the one that started it: the runner plans while its worker
    looks around."""
    total = 0.0
    with contextlib.suppress(psutil.Error, AttributeError):
        for process in (me := psutil.Process(), me.parent()):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _cpu(watch_s: float) -> dict[str, Any]:
    own_s = _own_seconds()
    before = psutil.cpu_times()
    time.sleep(watch_s)
    after = psutil.cpu_times()
    spent = {
        name: max(getattr(after, name) - getattr(before, name), 0.0)
        for name in before._fields
        if "guest" not in name
    }
    total = max(sum(spent.values()), watch_s)  # of all CPUs; guests' time is part of user time
    busy_s = (
        sum(spent.values()) - spent["idle"] - spent.get("iowait", 0.0) - (_own_seconds() - own_s)
    )  # by others
    return {
        "model": cpu_name(),
        "num_logical": os.cpu_count(),
        "num_allowed": allowed_cpus(),
        "quota": _cpu_quota(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "clock_source": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "cache_bytes": int(last_level_cache_bytes()[0]),
        "busy_fraction": round(min(max(busy_s / total, 0.0), 1.0), 3),
        "steal_fraction": round(spent.get("steal", 0.0) / total, 3),
        "load_1m": _load_1m(),
    }


def _torch() -> dict[str, Any]:
    import torch

    return {
        "cuda_build": torch.version.cuda,
        "cuda_available": torch.cuda.is_available(),
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "allow_tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "allow_bf16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "allow_fp16_reduced_precision_reduction": torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
    }


def _gpu_now(nvml: Nvml) -> dict[str, Any]:
    """Clocks, power, temperature, throttle reasons and company, now."""
    library = nvml.library
    power = nvml.ask("nvmlDeviceGetPowerUsage")
    bits = nvml.ask("nvmlDeviceGetCurrentClocksThrottleReasons") or 0
    processes = nvml.ask("nvmlDeviceGetComputeRunningProcesses")
    own = os.getpid()
    return {
        "sm_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
        "memory_clock_mhz": nvml.ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_MEM),
        "temperature_c": nvml.ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
        "power_w": power / 1e3 if power is not None else None,
        "throttle_reasons": ", ".join(text for bit, text in THROTTLE_REASONS.items() if bits & bit)
        or None,
        "power_capped": bool(bits & _POWER_CAP),
        "num_other_processes": None
        if processes is None
        else sum(process.pid != own for process in processes),
    }


def _gpu(device: Device) -> dict[str, Any] | None:
    """Properties of the CUDA device in use; what NVML knows where it is there."""
    if not isinstance(device, CudaDevice):
        return None
    torch = device.torch
    properties = torch.cuda.get_device_properties(device.index)
    found = {
        "name": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "num_sms": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": device.cache_bytes,
        "nvml": device.nvml is not None,
    }
    if device.nvml is not None:
        nvml = device.nvml
        limit, default = (
            nvml.ask("nvmlDeviceGetPowerManagementLimit"),
            nvml.ask("nvmlDeviceGetPowerManagementDefaultLimit"),
        )
        mode = nvml.ask("nvmlDeviceGetMigMode")
        with contextlib.suppress(Exception):  # as in Nvml.ask: a driver that cannot tell
            found["driver"] = nvml.library.nvmlSystemGetDriverVersion()
        found |= {
            "default_sm_clock_mhz": nvml.default_clock_mhz,
            "power_limit_w": limit / 1e3 if limit else None,
            "default_power_limit_w": default / 1e3 if default else None,
            "persistence_mode": nvml.ask("nvmlDeviceGetPersistenceMode"),
            "mig": bool(mode and mode[0]),
            **_gpu_now(nvml),
        }
    return found


def _git() -> dict[str, Any] | None:
    """Commit of the source this runs from and whether it was changed since; None outside a
    checkout."""

    def ask(*arguments: str) -> str | None:
        folder = str(Path(flurka_bench.__file__).parent)
        try:
            done = subprocess.run(
                ["git", "-C", folder, *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not ask("ls-files", "__init__.py"):
        return None  # installed into something that is a checkout of another project
    return {
        "commit": ask("rev-parse", "HEAD"),
        "dirty": bool(ask("status", "--porcelain", "--untracked-files=no")),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def capture(device: Device, *, watch_s: float = 0.3) -> dict[str, Any]:
    """All of it, once per run. Watches the CPUs for ``watch_s`` seconds to see who else is busy.
    Imports torch."""
    memory = psutil.virtual_memory()
    return {
        "captured": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "flurka_bench": flurka_bench.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device.name,
        "container": _container(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "cpu": _cpu(watch_s),
        "memory_bytes": memory.total,
        "reuses_memory": allocator.reuses_memory(),
        "memory_available_bytes": memory.available,
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "torch": _torch(),
        "gpu": _gpu(device),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "git": _git(),
    }


def introduce(device: Device) -> dict[str, Any]:
    """What a worker says first: its device by its own name, the memory and the last-level cache
    there, the environment, and what in it disturbs a measurement."""
    import torch

    if device.is_queue:
        properties = torch.cuda.get_device_properties(device.name)
        name, memory_bytes = properties.name, properties.total_memory
    else:
        name, memory_bytes = cpu_name(), psutil.virtual_memory().available
    seen = capture(device)
    return {
        "device": name,
        "memory_bytes": memory_bytes,
        "cache_bytes": device.cache_bytes,
        "environment": seen,
        "warnings": warnings(seen),
    }


def stamp(device: Device) -> dict[str, Any]:
    """What may change between two cases; a millisecond's work, one flat table."""
    now: dict[str, Any] = {
        "time": time.time(),
        "load_1m": _load_1m(),
        "memory_available_bytes": psutil.virtual_memory().available,
    }
    with contextlib.suppress(Exception):  # not on every system and architecture
        now["cpu_clock_mhz"] = round(psutil.cpu_freq().current)
    if device.nvml is not None:
        now |= _gpu_now(device.nvml)
    return now


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of ``doctor``: what, its value, ok / warn / bad, and what to do."""

    name: str
    value: str
    judgement: str = "ok"
    advice: str = ""

    def __post_init__(self) -> None:
        assert self.judgement in _JUDGEMENTS
        assert (self.judgement == "ok") or self.advice, (
            f"{self.name}: a complaint must name the next action"
        )


def _finding(name: str, value: Any, *complaints: tuple[bool, str, str]) -> Finding:
    """The first complaint (condition, judgement, advice) that holds, else ok."""
    text = "not reported" if value is None else str(value)
    for holds, judgement, advice in complaints:
        if holds:
            return Finding(name=name, value=text, judgement=judgement, advice=advice)
    return Finding(name=name, value=text)


def judge(environment: dict[str, Any]) -> list[Finding]:
    """Each part of a captured environment with a judgement and, where it is not ok, the next
    action."""
    return [*_judge_cpu(environment), *_judge_software(environment), *_judge_gpu(environment)]


def _percent(fraction: float | None) -> str | None:
    return None if fraction is None else f"{fraction:.0%}"


def _judge_cpu(environment: dict[str, Any]) -> Iterator[Finding]:
    cpu, torch = environment["cpu"], environment["torch"]
    allowed, threads = cpu["num_allowed"], torch["num_threads"]
    usable = min(allowed, cpu["quota"] or allowed)
    busy, steal, governor = cpu["busy_fraction"], cpu["steal_fraction"], cpu["governor"]
    free, total = environment["memory_available_bytes"], environment["memory_bytes"]
    stop = "stop other programs, or expect wide intervals and AMBIGUOUS verdicts"
    yield _finding("cpu", f"{cpu['model']}, {allowed} of {cpu['num_logical']} CPUs allowed")
    yield _finding(
        "other load",
        f"{_percent(busy)} of all CPUs busy",
        (busy > 0.5, "bad", stop),
        (busy > 0.15, "warn", stop),
    )
    yield _finding(
        "stolen time",
        _percent(steal),
        (
            steal > 0.02,
            "warn",
            "the host gives this virtual machine's CPUs to others: repeat the run",
        ),
    )
    yield _finding(
        "governor",
        governor,
        (
            governor not in (None, "performance", "schedutil"),
            "warn",
            "sudo cpupower frequency-set -g performance",
        ),
    )
    yield _finding(
        "threads",
        f"{threads} torch threads",
        (
            threads > usable,
            "bad",
            f"more threads than CPUs: set OMP_NUM_THREADS={max(int(usable), 1)}",
        ),
    )
    yield _finding(
        "cpu quota", f"{cpu['quota']:g} CPUs" if cpu["quota"] else "none",
        (usable < allowed, "warn", "the container is paused when it uses more than its quota: raise its CPU limit"),
    )  # fmt: skip
    source = cpu["clock_source"]
    yield _finding(
        "clock source",
        source,
        (
            source in ("hpet", "acpi_pm", "jiffies"),
            "warn",
            "a slow clock: boot with clocksource=tsc",
        ),
    )
    yield _finding(
        "memory",
        f"{format_bytes(free)} of {format_bytes(total)} free",
        (free < 0.1 * total, "warn", "close other programs: cases may run out of memory or swap"),
    )
    reuses = environment.get("reuses_memory")  # records of before do not say
    yield _finding(
        "allocator",
        None
        if reuses is None
        else "freed memory is used again"
        if reuses
        else "large results are mapped anew at each call",
        (reuses is False, "warn", _ALLOCATOR_ADVICE),
    )
    disk = environment["disk_free_bytes"]
    yield _finding(
        "disk",
        f"{format_bytes(disk)} free",
        (disk < 1e8, "bad", "make room: results are appended and synced as they are found"),
    )


def _judge_software(environment: dict[str, Any]) -> Iterator[Finding]:
    torch, packages, variables = (
        environment["torch"],
        environment["packages"],
        environment["variables"],
    )
    version = packages["torch"] or "0"
    old = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit()) < (
        2,
        6,
    )
    yield _finding(
        "python",
        environment["python"],
        (sys.version_info < (3, 11), "bad", "install Python 3.11 or newer"),
    )
    yield _finding("torch", version, (old, "bad", "pip install 'torch>=2.6'"))
    precision = torch["float32_matmul_precision"]
    override = any(
        variables.get(name) == "1"
        for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
    )
    yield _finding(
        "float32 matmuls",
        f"{precision} precision{', TF32 forced by the environment' if override else ''}",
        (
            precision != "highest" or override,
            "warn",
            "float32 is not float32: unset the TF32 override, or report these times as TF32",
        ),
    )
    yield _finding(
        "environment variables",
        ", ".join(f"{name}={value}" for name, value in variables.items()) or "none that matter",
        (
            variables.get("CUDA_LAUNCH_BLOCKING") == "1",
            "bad",
            "unset CUDA_LAUNCH_BLOCKING: it synchronises after each launch",
        ),
        (
            variables.get("TRITON_INTERPRET") == "1",
            "bad",
            "unset TRITON_INTERPRET: fused kernels would run in the interpreter",
        ),
    )
    git = environment["git"]
    value = (
        "not a checkout"
        if git is None
        else f"{(git['commit'] or 'no commit')[:12]}{', changed since' if git['dirty'] else ''}"
    )
    dirty = git is not None and git["dirty"]
    yield _finding("source", value, (dirty, "warn", "commit before a run that you will cite"))
    if environment["container"]:
        yield _finding("container", environment["container"])


def _judge_gpu(environment: dict[str, Any]) -> Iterator[Finding]:
    gpu, torch = environment["gpu"], environment["torch"]
    if gpu is None:
        driver = _read("/proc/driver/nvidia/version")
        built = torch["cuda_build"]
        unused = driver is not None and not torch["cuda_available"]
        advice = (
            "install a CUDA build of torch (pytorch.org)"
            if not built
            else "check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
        yield _finding(
            "gpu",
            "an NVIDIA driver, but torch sees no device" if unused else "none in use",
            (unused, "bad", advice),
        )
        return
    yield _finding(
        "gpu", f"{gpu['name']}, {gpu['num_sms']} SMs, {format_bytes(gpu['l2_bytes'])} L2"
    )
    triton = environment["packages"]["triton"]
    yield _finding(
        "triton",
        triton,
        (triton is None, "warn", "pip install triton: fused backends are unsupported without it"),
    )
    if not gpu["nvml"]:
        yield _finding(
            "gpu state",
            None,
            (True, "warn", "pip install nvidia-ml-py: without it throttled samples go unnoticed"),
        )
        return
    yield _finding("driver", gpu.get("driver"))
    clock, default = gpu["sm_clock_mhz"], gpu["default_sm_clock_mhz"]
    yield _finding("sm clock", f"{clock} of {default} MHz by default")
    reasons = gpu["throttle_reasons"]
    yield _finding(
        "throttling",
        reasons or "none",
        (bool(reasons), "bad", "let the device cool, check its fans and supply, then run again"),
    )
    limit, usual = gpu["power_limit_w"], gpu["default_power_limit_w"]
    lowered = bool(limit and usual and limit < 0.95 * usual)
    yield _finding(
        "power",
        f"{gpu['power_w']} W of {limit} W",
        (
            lowered,
            "warn",
            f"the power limit is below its default: sudo nvidia-smi -pl {usual or 0:.0f}",
        ),
    )
    hot = (gpu["temperature_c"] or 0) >= 83
    yield _finding(
        "temperature",
        f"{gpu['temperature_c']} °C",
        (hot, "warn", "let the device cool: it is about to throttle"),
    )
    others = gpu["num_other_processes"]
    yield _finding(
        "other processes on the gpu",
        others,
        (
            bool(others),
            "bad",
            "stop them (nvidia-smi lists them), or choose another device: --device cuda:N",
        ),
    )
    yield _finding(
        "persistence mode",
        "on" if gpu["persistence_mode"] else "off",
        (
            not gpu["persistence_mode"],
            "warn",
            "sudo nvidia-smi -pm 1: else the driver unloads between processes",
        ),
    )
    if gpu["mig"]:
        yield _finding(
            "mig",
            "on",
            (
                True,
                "warn",
                "this is a slice of the device: predictions for the whole one do not hold",
            ),
        )


def warnings(environment: dict[str, Any]) -> list[str]:
    """One line per finding that is not ok, with the next action."""
    return [
        f"{found.name}: {found.value} ({found.advice})"
        for found in judge(environment)
        if found.judgement != "ok"
    ]
