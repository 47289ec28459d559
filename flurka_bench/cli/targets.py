"""Hardware targets as options name them, and the profile of the device at hand."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import flurka_bench
from flurka_bench.cli.common import comma_list
from flurka_bench.errors import RequestError

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile


def load_targets(text: str, option: str = "--hardware") -> "list[Profile]":
    """A comma list of names, aliases, profile files, run folders (the profile that the run was
    predicted from) and ``cpu`` (this machine) as profiles, each once."""
    from flurka_bench.hardware import load

    targets = [
        own_profile()
        if name == "cpu"
        else profile_of_run(Path(name))
        if (Path(name) / "run.json").is_file()
        else load(name)
        for name in comma_list(text, str, option)
    ]
    return list({target.name: target for target in targets}.values())


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
            f"the run {str(folder)!r} keeps no hardware profile (it was made without predictions, or"
            " before runs kept theirs); give a profile's name or file"
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
    )  # most requests name a target: no look at this machine

    own = detect_cpu() if gpu is None else recognise(gpu)
    if own is None or not calibrated_file(own).is_file():
        return own
    return load(str(calibrated_file(own).resolve()))


def calibrated_file(profile: "Profile") -> Path:
    """Where ``calibrate`` leaves a device's profile unless told otherwise."""
    return Path(f"hardware-{profile.name}.toml")
