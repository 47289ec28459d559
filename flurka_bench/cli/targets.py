"""Hardware targets as options name them, and the profile of the device at hand."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flurka_bench
from flurka_bench.cli.common import note
from flurka_bench.words.errors import RequestError

if TYPE_CHECKING:
    from flurka_bench.devices.probe import FoundDevice
    from flurka_bench.hardware import Profile

MOST_REASONS = 4  # that a line about options says; a sweep over head widths has one for each


def load_targets(names: Sequence[str] | None, option: str = "--hardware") -> "list[Profile]":
    """Names, aliases, profile files, run folders (the profile that the run was predicted from) and
    ``cpu`` (this machine's) as profiles, each once; for None this machine's device.

    Raises RequestError also for two different profiles of one name, which no answer tells apart.
    """
    if names is None:
        return [_own_target(option)]
    targets: dict[str, Profile] = {}
    for name in names:
        target = _load(name)
        if targets.setdefault(target.name, target) != target:
            raise RequestError(
                f"{option}: two different profiles are named {target.name!r}; give one a name of"
                " its own"
            )
    return list(targets.values())


def load_target(names: Sequence[str] | None, option: str = "--hardware") -> "Profile":
    """The one target of a verb that takes no list."""
    targets = load_targets(names, option)
    if len(targets) > 1:
        raise RequestError(f"{option} takes one target here, got {','.join(names or ())!r}")
    return targets[0]


def _own_target(option: str) -> "Profile":
    from flurka_bench.devices.probe import find_device

    found = find_device("auto")
    profile = own_profile(found.name)
    if profile is None:
        raise RequestError(
            f"no profile knows this machine's {found.name}: give {option}, or write a profile with"
            " 'flurka-bench calibrate'"
        )
    note(f"{option} is this machine's device, {profile.name}")
    return profile


def _load(name: str) -> "Profile":
    from flurka_bench.hardware import load

    if (Path(name) / "run.json").is_file():
        return profile_of_run(Path(name))
    if name.lower() != "cpu":
        return load(name, also=("cpu",))
    own = own_profile()
    assert own is not None  # every machine has a CPU
    return own


def check_device(profile: "Profile", found: "FoundDevice", option: str = "--hardware") -> None:
    """Refuse a profile of another kind of device than the one that is timed; say where it is of
    another model."""
    from flurka_bench.hardware.detect import cpu_name

    kinds = {"cpu": "a CPU", "gpu": "a GPU"}
    kind = "cpu" if found.kind == "cpu" else "gpu"
    if profile.kind != kind:
        raise RequestError(
            f"{option} {profile.name} is {kinds[profile.kind]}, and what is timed here is"
            f" {kinds[kind]}"
            f" ({found.device}): give a profile of this device, or leave {option} out"
        )
    here = found.name or cpu_name()
    named = (profile.title, *profile.device_names)
    if not any(here in name if kind == "cpu" else here == name for name in named):
        note(f"{option} {profile.name} describes {profile.title}; the device here is {here}")


def check_dtype(profile: "Profile", dtype: str) -> None:
    """Say where a target has no units of its own for a dtype. Raises RequestError where it cannot
    compute with it at all."""
    if dtype == "float64" and not {"vector.float64", "tensor.float64"} & set(profile.peaks):
        raise RequestError(
            f"{profile.name} has no float64 units; accepted there: float32, bfloat16,"
            " float16 (--dtype)"
        )
    if dtype == "float32" or profile.matmul_unit(dtype) != "vector.float32":
        return
    if profile.kind == "gpu":
        note(
            f"{profile.name} has no {dtype} units; predicted at the float32 rate, at which"
            " libraries emulate it"
            + (f" (it has units for {profile.own_dtype})" if profile.own_dtype != "float32" else "")
        )
    elif not profile.measured.knows("cpu", dtype):
        note(
            f"nothing is known of {dtype} on {profile.name}; predicted at the float32 rate"
            f" (flurka-bench calibrate --dtype float32,{dtype} measures it)"
        )


def check_launch(profile: "Profile", launch: str) -> None:
    """Say that a CPU has no graphs: there ``graph`` is ``eager``."""
    if launch == "graph" and profile.kind == "cpu":
        note(f"{profile.name} is a CPU, which has no graphs: --launch graph is eager there")


def check_backends(profile: "Profile", backends: Iterable[str]) -> list[str]:
    """The backends that a target has: fused kernels are Triton's, for NVIDIA GPUs.

    Says which one falls away. Raises RequestError if none is left.
    """
    wanted = list(backends)
    left = [name for name in wanted if name != "fused" or profile.vendor == "nvidia"]
    if not left:
        raise RequestError(
            f"fused kernels are for NVIDIA GPUs, and {profile.name} is none; accepted there:"
            " eager, compiled (--backend)"
        )
    if left != wanted:
        note(f"fused kernels are for NVIDIA GPUs: none on {profile.name}")
    return left


def check_knobs(
    given: Mapping[str, Sequence[Any]],
    requests: "Iterable[tuple[str, Mapping[str, str]]]",
    *,
    refuse: bool,
) -> list[str]:
    """A note of each option for whom it does not apply.

    Args:
        given: the values of each option that was given, by the field of a case.
        requests: of everything asked for, the mechanism and what of it does not apply
            (``cases.registry.not_applicable``).
        refuse: raise RequestError for an option that applies to nothing asked for.
    """
    reasons: dict[str, dict[str, list[str]]] = {field: {} for field in given}
    used: set[str] = set()
    notes = []
    for mechanism, refused in requests:
        for field in given:
            if field not in refused:
                used.add(field)
            elif mechanism not in (names := reasons[field].setdefault(refused[field], [])):
                names.append(mechanism)
    for field, why in reasons.items():
        values = ",".join(map(str, given[field]))
        told = [f"{', '.join(names)} ({reason})" for reason, names in why.items()]
        if len(told) > MOST_REASONS:
            told = [*told[:MOST_REASONS], "…"]
        text = f"--{field.replace('_', '-')} {values} does not apply to {'; '.join(told)}"
        if why and refuse and field not in used:
            raise RequestError(f"{text}; leave it out")
        if why:
            notes.append(text)
    return notes


def prediction_source(profile: "Profile", cache: str) -> dict[str, str]:
    """What a run's predictions rest on, as run.json keeps it: enough to predict them again."""
    from flurka_bench.hardware import write_profile

    text = write_profile(profile)
    return {
        "hardware": profile.name,
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "cache": cache,
        "version": flurka_bench.__version__,  # the cost model's own constants come with it
        "profile": text,
    }


def profile_of_run(folder: Path) -> "Profile":
    """The profile from which a run was predicted, the last session's. RequestError for a run that
    kept none."""
    from flurka_bench.hardware import parse_profile
    from flurka_bench.results import read_meta

    kept = read_meta(folder).get("predicted_from")
    last = kept[-1] if isinstance(kept, list) and kept else None
    text = last.get("profile") if isinstance(last, dict) else None
    if not isinstance(text, str):
        raise RequestError(
            f"the run {str(folder)!r} keeps no hardware profile (it was made without"
            " predictions, or before runs kept theirs); give a profile's name or file"
        )
    return parse_profile(text, f"{folder / 'run.json'} (predicted_from)")


def own_profile(gpu: str | None = None) -> "Profile | None":
    """The profile of this machine's CPU, or of the GPU that the driver calls by that name; None
    where no profile knows it.

    Where ``calibrate`` has left one in this folder, that is the one.
    """
    from flurka_bench.hardware import load
    from flurka_bench.hardware.detect import (
        detect_cpu,
        recognise,
    )

    own = detect_cpu() if gpu is None else recognise(gpu)
    if own is None or not calibrated_file(own).is_file():
        return own
    return load(str(calibrated_file(own).resolve()))


def calibrated_file(profile: "Profile") -> Path:
    """Where ``calibrate`` leaves a device's profile unless told otherwise."""
    return Path(f"hardware-{profile.name}.toml")


def timer_cache(profile: "Profile", cache: str) -> str:
    """``auto`` as the timer of this target finds the cache: warm on a CPU, cold on a GPU."""
    if cache != "auto":
        return cache
    return "warm" if profile.kind == "cpu" else "cold"
