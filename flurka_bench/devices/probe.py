"""Which device a request means, asked of the CUDA driver itself, so that planning a run needs no
torch."""

import ctypes
import re
from dataclasses import dataclass
from importlib import metadata

from flurka_bench.words.errors import (
    RequestError,
    unknown,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundDevice:
    """``device`` is cpu or cuda:N, ``kind`` cpu or cuda, ``name`` what the driver calls it (None
    for a CPU)."""

    device: str
    kind: str
    name: str | None = None

    @property
    def index(self) -> int:
        """N of cuda:N; 0 for a CPU."""
        return int(self.device.partition(":")[2] or 0)


def _asked(request: str) -> tuple[str, int]:
    """A request as ``auto``, ``cpu`` or ``cuda``, and the N of cuda:N (0 where it says none)."""
    match = re.fullmatch(
        r"(auto|cpu|cuda)(?::([0-9]{1,3}))?",
        re.sub(r"^gpu(?=$|:)", "cuda", request.strip().lower()),
    )
    if match is None or (match[2] and match[1] != "cuda"):
        raise unknown("device", request, ("auto", "cpu", "cuda", "cuda:0", "gpu"))
    return match[1], int(match[2] or 0)


def device_kind(request: str) -> str:
    """``cpu`` or ``cuda``, whether or not such a device is here; for auto what is here."""
    word, _ = _asked(request)
    return find_device(word).kind if word == "auto" else word


def find_device(request: str) -> FoundDevice:
    """The device that ``request`` (auto, cpu, cuda, cuda:N; gpu is cuda) means here. Raises
    RequestError if it is not here."""
    word, index = _asked(request)
    if word == "cpu":
        return FoundDevice(device="cpu", kind="cpu")
    names = [] if word == "auto" and _torch_is_cpu_only() else cuda_device_names()
    if word == "auto" and not names:
        return FoundDevice(device="cpu", kind="cpu")
    if index >= len(names):
        here = (
            ", ".join(f"cuda:{number} ({name})" for number, name in enumerate(names))
            or "no CUDA device"
        )
        raise RequestError(
            f"device {request!r} is not here: the driver knows {here}; use --device cpu or auto"
        )
    return FoundDevice(device=f"cuda:{index}", kind="cuda", name=names[index])


def _torch_is_cpu_only() -> bool:
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return True


def cuda_device_names() -> list[str]:
    """Names of the CUDA devices that this process may use, in CUDA's own order; none without a
    driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    names = []
    for index in range(count.value):
        handle, buffer = ctypes.c_int(), ctypes.create_string_buffer(256)
        if driver.cuDeviceGet(ctypes.byref(handle), index) or driver.cuDeviceGetName(
            buffer, len(buffer), handle
        ):
            break
        names.append(buffer.value.decode("utf-8", "replace"))
    return names
