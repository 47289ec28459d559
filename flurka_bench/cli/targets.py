"""Hardware targets as options name them."""

from typing import TYPE_CHECKING

from flurka_bench.cli.common import comma_list

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile


def load_targets(text: str, option: str = "--hardware") -> "list[Profile]":
    """A comma list of names, aliases, profile files and ``cpu`` (this machine) as profiles, each once."""
    from flurka_bench.hardware import load

    targets = [_this_machine() if name == "cpu" else load(name) for name in comma_list(text, str, option)]
    return list({target.name: target for target in targets}.values())


def _this_machine() -> "Profile":
    from flurka_bench.hardware.detect import detect_cpu  # most requests name a target and need no look at this machine

    return detect_cpu()
