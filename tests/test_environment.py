"""The captured environment, and the judgements over it, each line of advice caused by its own
fault."""

import copy
import json
import time
from collections import namedtuple

import pytest
from typer.testing import CliRunner

from flurka_bench.cli.main import build_app
from flurka_bench.devices import environment
from flurka_bench.devices.device import (
    CpuDevice,
    Nvml,
)
from flurka_bench.devices.environment import (
    capture,
    judge,
    stamp,
    warnings,
)


@pytest.fixture(scope="module")
def here():
    return capture(CpuDevice(), watch_s=0.05)


@pytest.fixture
def quiet(here):
    """This machine as it would be at its best, with a GPU."""
    best = copy.deepcopy(here)
    best["cpu"] |= {
        "num_allowed": 2,
        "busy_fraction": 0.01,
        "steal_fraction": 0.0,
        "governor": "performance",
        "quota": None,
        "clock_source": "tsc",
    }
    best["torch"] |= {"num_threads": 1, "cuda_build": "12.8", "cuda_available": True}
    best["packages"] |= {"torch": "2.13.0", "triton": "3.7.1"}
    best |= {
        "memory_bytes": 10**10,
        "memory_available_bytes": 9 * 10**9,
        "disk_free_bytes": 10**10,
        "variables": {},
    }
    best["reuses_memory"] = True
    best["git"] = {"commit": "0" * 40, "dirty": False}
    best["gpu"] = {
        "name": "NVIDIA Test", "num_sms": 132, "l2_bytes": 50_000_000, "nvml": True, "driver": "570.1",
        "default_sm_clock_mhz": 1980, "sm_clock_mhz": 1980, "memory_clock_mhz": 2600, "temperature_c": 50, "power_w": 300.0,
        "power_limit_w": 700.0, "default_power_limit_w": 700.0, "throttle_reasons": None, "power_capped": False,
        "num_other_processes": 0, "persistence_mode": 1, "mig": False,
    }  # fmt: skip
    return best


def test_capture_is_json_and_names_what_a_reviewer_asks_for(here):
    assert json.loads(json.dumps(here, allow_nan=False)) == here
    assert here["cpu"]["model"]
    assert here["cpu"]["num_allowed"] >= 1
    assert 0 <= here["cpu"]["busy_fraction"] <= 1
    assert here["packages"]["torch"]
    assert here["torch"]["float32_matmul_precision"] == "highest"
    assert here["gpu"] is None
    assert here["git"] is None or len(here["git"]["commit"]) == 40


def test_only_listed_environment_variables_are_recorded(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    captured = capture(CpuDevice(), watch_s=0.01)
    assert captured["variables"]["OMP_PROC_BIND"] == "close"
    assert "hush" not in json.dumps(captured)


def test_stamp_is_flat():
    stamped = stamp(CpuDevice())
    assert stamped["time"] > 1e9
    assert all(isinstance(value, (str, int, float, bool, type(None))) for value in stamped.values())


def test_a_machine_at_its_best_gets_no_advice(quiet):
    assert warnings(quiet) == []
    assert {finding.judgement for finding in judge(quiet)} == {"ok"}


FAULTS = [
    ("cpu", "busy_fraction", 0.3, "other load", "warn", "stop other programs"),
    ("cpu", "busy_fraction", 0.9, "other load", "bad", "stop other programs"),
    ("cpu", "steal_fraction", 0.1, "stolen time", "warn", "repeat the run"),
    ("cpu", "governor", "powersave", "governor", "warn", "cpupower"),
    ("cpu", "clock_source", "hpet", "clock source", "warn", "tsc"),
    ("cpu", "quota", 1.5, "cpu quota", "warn", "CPU limit"),
    ("torch", "num_threads", 999, "threads", "bad", "OMP_NUM_THREADS="),
    ("torch", "float32_matmul_precision", "high", "float32 matmuls", "warn", "TF32"),
    ("packages", "torch", "2.5.1+cu121", "torch", "bad", "pip install 'torch>=2.6'"),
    ("packages", "triton", None, "triton", "warn", "pip install triton"),
    ("variables", "CUDA_LAUNCH_BLOCKING", "1", "environment variables", "bad", "unset"),
    ("variables", "TRITON_INTERPRET", "1", "environment variables", "bad", "unset"),
    ("variables", "NVIDIA_TF32_OVERRIDE", "1", "float32 matmuls", "warn", "TF32"),
    ("git", "dirty", True, "source", "warn", "commit before"),
    (None, "memory_available_bytes", 10**8, "memory", "warn", "close other programs"),
    (None, "reuses_memory", False, "allocator", "warn", "jemalloc"),
    (None, "disk_free_bytes", 10**7, "disk", "bad", "make room"),
    ("gpu", "nvml", False, "gpu state", "warn", "nvidia-ml-py"),
    ("gpu", "throttle_reasons", "hardware thermal", "throttling", "bad", "cool"),
    ("gpu", "power_limit_w", 400.0, "power", "warn", "nvidia-smi -pl 700"),
    ("gpu", "temperature_c", 90, "temperature", "warn", "cool"),
    ("gpu", "num_other_processes", 2, "other processes on the gpu", "bad", "--device cuda:N"),
    ("gpu", "persistence_mode", 0, "persistence mode", "warn", "nvidia-smi -pm 1"),
    ("gpu", "mig", True, "mig", "warn", "slice"),
]


@pytest.mark.parametrize(("part", "key", "value", "name", "judgement", "advice"), FAULTS)
def test_each_fault_gets_its_judgement_and_the_next_action(
    quiet, part, key, value, name, judgement, advice
):
    (quiet[part] if part else quiet)[key] = value
    complaints = [finding for finding in judge(quiet) if finding.judgement != "ok"]
    assert [(finding.name, finding.judgement) for finding in complaints] == [(name, judgement)]
    assert advice in complaints[0].advice
    assert warnings(quiet) == [f"{name}: {complaints[0].value} ({complaints[0].advice})"]


def test_a_gpu_that_torch_cannot_see(quiet, monkeypatch):
    quiet["gpu"], quiet["torch"]["cuda_available"], quiet["torch"]["cuda_build"] = None, False, None
    monkeypatch.setattr(
        environment,
        "_read",
        lambda path: "NVRM version" if path.startswith("/proc/driver/nvidia") else None,
    )
    assert [finding.judgement for finding in judge(quiet) if finding.name == "gpu"] == ["bad"]


class FakeNvml:
    """As much of pynvml as is asked; what is missing behaves like an old driver."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, clock_mhz=1980, bits=0):
        self.clock_mhz, self.bits = clock_mhz, bits

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        return self.clock_mhz

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):  # noqa: N802
        return 1980

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return self.bits

    def nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 250_500


@pytest.mark.parametrize(
    ("clock_mhz", "bits", "throttled"),
    [
        (1980, 0x0, None),
        (1500, 0x4, None),  # at its power cap and above three quarters: how small boards are
        (1400, 0x4, "clock at 71% of its default"),
        (1980, 0x20, "software thermal"),
        (900, 0x40 | 0x8, "hardware slowdown, hardware thermal"),
        (1980, 0x1 | 0x2, None),  # idle, application clocks: not faults
    ],
)
def test_throttling_is_read_from_clock_and_reasons(clock_mhz, bits, throttled):
    nvml = Nvml(FakeNvml(clock_mhz, bits), handle=None)
    assert nvml.reading().throttled == throttled


def test_stamp_with_a_gpu_survives_an_old_driver():
    device = CpuDevice()
    device.nvml = Nvml(FakeNvml(bits=0x40), handle=None)
    stamped = stamp(device)
    assert (stamped["sm_clock_mhz"], stamped["power_w"], stamped["temperature_c"]) == (
        1980,
        250.5,
        None,
    )
    assert stamped["throttle_reasons"] == "hardware thermal"
    assert stamped["num_other_processes"] is None


def test_nvml_is_optional():
    assert Nvml.open("GPU-none") is None


def test_doctor_exits_1_when_something_is_bad(monkeypatch, quiet):
    runner = CliRunner()
    monkeypatch.setattr("flurka_bench.kinds.calibration.environment_of", lambda device: quiet)
    done = runner.invoke(build_app(), ["doctor", "--device", "cpu", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["ok"] is True
    quiet["disk_free_bytes"] = 0
    done = runner.invoke(build_app(), ["doctor", "--device", "cpu", "--json"])
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert [finding["name"] for finding in answer["findings"] if finding["judgement"] == "bad"] == [
        "disk"
    ]
    assert "make room" in runner.invoke(build_app(), ["doctor", "--device", "cpu"]).stdout


def times(monkeypatch, **spent):
    """The CPUs' counters, of which ``spent`` seconds pass while they are watched."""
    fields = ("user", "nice", "system", "idle", "iowait", "steal", "guest")
    kind = namedtuple("times", fields)
    readings = iter([kind(*[5.0] * 7), kind(*[5.0 + spent.get(name, 0.0) for name in fields])])
    monkeypatch.setattr(environment.psutil, "cpu_times", lambda: next(readings))


@pytest.mark.parametrize(
    ("spent", "busy", "steal"),
    [
        ({"idle": 0.6}, 0.0, 0.0),  # 0.3 s of two idle CPUs: less than a second in all
        ({"idle": 0.3, "user": 0.3, "guest": 0.3}, 0.5, 0.0),
        ({"idle": 0.3, "iowait": 0.15, "steal": 0.15}, 0.25, 0.25),
    ],
)
def test_the_load_of_a_short_look(monkeypatch, spent, busy, steal):
    times(monkeypatch, **spent)
    monkeypatch.setattr(environment, "_own_seconds", lambda: 0.0)
    found = environment._cpu(0.01)
    assert (found["busy_fraction"], found["steal_fraction"]) == (busy, steal)


def test_own_work_is_no_other_load(monkeypatch):
    times(monkeypatch, user=0.4, idle=0.2)
    own = iter([10.0, 10.3])
    monkeypatch.setattr(environment, "_own_seconds", lambda: next(own))
    assert environment._cpu(0.01)["busy_fraction"] == pytest.approx(0.1 / 0.6, abs=1e-3)


def test_own_seconds_grow_with_own_work():
    before, end = environment._own_seconds(), time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert environment._own_seconds() - before > 0.05
