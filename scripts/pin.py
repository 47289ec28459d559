"""Write the goldens of tests/test_pins.py again, or with --check say what moved, the worst first.

python scripts/pin.py            # all
python scripts/pin.py compare    # some, by name
python scripts/pin.py --check
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from pins.pinned import PINS, check, report, value, write  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PINS)}")
    parser.add_argument("--check", action="store_true", help="compare; write nothing")
    parser.add_argument("--most", type=int, default=20, help="differences to show of each pin")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PINS):
        parser.error(f"unknown pins {sorted(unknown)}: known are {', '.join(PINS)}")
    moved = 0
    for name in options.names or PINS:
        started = time.perf_counter()
        now = value(name)
        found = check(name, now)
        moved += bool(found)
        seconds = time.perf_counter() - started
        print(f"{name}: {len(found)} differences ({seconds:.1f} s)")
        if found:
            print("  " + report(found, options.most).replace("\n", "\n  "))
        if found and not options.check:
            path = write(name, now)
            print(f"  written: {path.relative_to(ROOT)}, {path.stat().st_size:,} bytes")
    return 1 if options.check and moved else 0


if __name__ == "__main__":
    sys.exit(main())
