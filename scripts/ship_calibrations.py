"""Write what the measured operators say of each device into the shipped profiles' [measured]
tables.

    python scripts/ship_calibrations.py ../shared/data/gpu_ops [--out FOLDER]

Each op and dtype of a device is calibrated on ROWS stratified rows (seed 0), as ``flurka-bench
calibrate --from`` does it with 20; the profile says so and states the error on the rows that were
not used.
"""

import argparse
import sys
from pathlib import Path

from flurka_bench.cost.calibration import fit
from flurka_bench.cost.fitting import (
    Rows,
    read_rows,
)
from flurka_bench.hardware import (
    load,
    write_profile,
)
from flurka_bench.hardware.files import FOLDER
from flurka_bench.words.files import write_atomically

ROWS = 80  # more than a user would measure: they are at hand


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the operator files")
    parser.add_argument(
        "--out",
        type=Path,
        default=FOLDER,
        help="where profiles are written; the package's own by default",
    )
    arguments = parser.parse_args()
    devices: dict[str, list[Rows]] = {}
    for path in sorted(arguments.folder.glob("*.csv.gz")):
        for rows in read_rows(path):
            devices.setdefault(rows.device, []).append(rows)
    for name, groups in sorted(devices.items()):
        profile, fits = fit(load(name).with_measured({}, {}), groups, ROWS)
        about = {
            "source": f"{ROWS} rows per op and dtype of published operator timings (docs/cost-model.md), stratified, seed 0"
        }
        about |= {
            f"error.{each.op}.{each.dtype}": round(each.after, 4)
            for each in fits
            if each.after is not None
        }
        profile = profile.with_measured(profile.measured, about)
        write_atomically(arguments.out / f"{name}.toml", write_profile(profile))
        print(
            name,
            ", ".join(
                f"{each.op} {each.dtype} {each.before:.1%} -> {each.after:.1%}" for each in fits
            ),
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
