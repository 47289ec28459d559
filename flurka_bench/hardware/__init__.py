"""Hardware targets: what a device can do at most (datasheet), and what was measured on one."""

from flurka_bench.hardware.files import (
    load,
    names,
    parse_profile,
    write_calibration,
    write_profile,
)
from flurka_bench.hardware.profile import (
    Figure,
    Profile,
)

__all__ = [
    "Figure",
    "Profile",
    "load",
    "names",
    "parse_profile",
    "write_calibration",
    "write_profile",
]
