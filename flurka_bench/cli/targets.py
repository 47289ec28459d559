"""Hardware targets as options name them, and the profile of the device at hand."""

from pathlib import Path
from typing import TYPE_CHECKING

from flurka_bench.cli.common import comma_list

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile


def load_targets(text: str, option: str = "--hardware") -> "list[Profile]":
    """A comma list of names, aliases, profile files and ``cpu`` (this machine) as profiles, each
    once."""
    from flurka_bench.hardware import load

    targets = [
        own_profile() if name == "cpu" else load(name) for name in comma_list(text, str, option)
    ]
    return list({target.name: target for target in targets}.values())


def own_profile(gpu: str | None = None) -> "Profile | None":
    """The profile of this machine's CPU, or of the GPU that the driver calls by that name; None
    where no profile knows it.

    Where ``calibrate`` has left one in this folder, that is the one.
    """
    from flurka_bench.hardware import load
    from flurka_bench.hardware.detect import (
        detect_cpu,
        recognise,
    )  # most requests name a target: no look at this machine

    own = detect_cpu() if gpu is None else recognise(gpu)
    if own is None or not calibrated_file(own).is_file():
        return own
    return load(str(calibrated_file(own).resolve()))


def calibrated_file(profile: "Profile") -> Path:
    """Where ``calibrate`` leaves a device's profile unless told otherwise."""
    return Path(f"hardware-{profile.name}.toml")
