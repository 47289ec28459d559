"""Hardware targets: what a device can do at most (datasheet), and what was measured on one."""

from flurka_bench.hardware.profile import Figure, Profile, load, names, write_profile

__all__ = ["Figure", "Profile", "load", "names", "write_profile"]
