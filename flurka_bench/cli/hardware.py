"""``hardware list`` and ``hardware show``: the targets that can be predicted, figure by figure with
its source."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    print_json,
    print_table,
    print_text,
)
from flurka_bench.cli.targets import load_target
from flurka_bench.words.units import format_bytes

if TYPE_CHECKING:
    from flurka_bench.hardware import Profile

_HELP = """The hardware targets that ship with flurka-bench, and your own profiles.

Example: flurka-bench hardware show h100"""
app = typer.Typer(no_args_is_help=True, help=_HELP)


def _summary(profile: "Profile") -> dict[str, Any]:
    peak = max(
        profile.peak_flops.get("tensor.bfloat16", 0), profile.peak_flops.get("tensor.float16", 0)
    )
    return {
        "name": profile.name,
        "aliases": list(profile.aliases),
        "title": profile.title,
        "architecture": profile.architecture,
        "num_sms": profile.num_sms,
        "float32_flops": profile.peak_flops["vector.float32"],
        "tensor_16bit_flops": peak or None,
        "memory_bytes": profile.memory_bytes,
        "memory_bandwidth_bytes_per_s": profile.memory_bandwidth_bytes_per_s,
        "l2_bytes": profile.l2_bytes,
        "tdp_w": profile.tdp_w,
        "calibrated": profile.is_calibrated,
    }


@app.command("list")
def list_(json: options.Json) -> None:
    """List the targets with their main figures.

    Example: flurka-bench hardware list
    """
    from flurka_bench.hardware import (
        load,
        names,
    )

    rows = [_summary(load(name)) for name in names()]
    if json:
        print_json(rows)
        return
    headers = (
        "name",
        "also",
        "SMs",
        "float32 TFLOP/s",
        "16-bit tensor TFLOP/s",
        "memory",
        "bandwidth",
        "L2",
        "figures",
    )
    print_table(
        headers,
        [
            (
                row["name"],
                ", ".join(row["aliases"]),
                row["num_sms"],
                f"{row['float32_flops'] / 1e12:.3g}",
                f"{row['tensor_16bit_flops'] / 1e12:.4g}" if row["tensor_16bit_flops"] else "none",
                format_bytes(row["memory_bytes"]),
                f"{format_bytes(row['memory_bandwidth_bytes_per_s'])}/s",
                format_bytes(row["l2_bytes"]),
                "calibrated" if row["calibrated"] else "datasheet",
            )
            for row in rows
        ],
    )


@app.command()
def show(
    name: Annotated[
        str,
        typer.Argument(
            help="A target's name or alias, the path of a profile (.toml), or cpu: this machine's,"
            " as calibrated in this folder or as the system reports it."
        ),
    ],
    json: options.Json,
) -> None:
    """Show every figure of one target with its unit and source, and what was measured on it.

    Example: flurka-bench hardware show h100
    """
    profile = load_target([name], "hardware")
    figures = {
        **profile.datasheet,
        **{f"peak {unit}": figure for unit, figure in profile.peaks.items()},
    }
    if json:
        record = _summary(profile)
        record["sources"] = dict(profile.sources)
        record["figures"] = {
            key: {
                "value": figure.value,
                "unit": figure.unit,
                "source": figure.source,
                "note": figure.note,
            }
            for key, figure in figures.items()
        }
        record["measured"], record["measured_about"] = (
            dict(profile.measured),
            dict(profile.measured_about),
        )
        print_json(record)
        return
    print(f"{profile.title} ({profile.name}), {profile.architecture}")
    print_table(
        ("figure", "value", "unit", "source", "note"),
        [
            (key, f"{figure.value:.6g}", figure.unit, figure.source, figure.note)
            for key, figure in figures.items()
        ],
    )
    print_text("\nSources: " + "; ".join(f"{key}: {text}" for key, text in profile.sources.items()))
    if not profile.is_calibrated:
        print_text(
            "\nNothing was measured on this target: predictions rest on the datasheet and on"
            " constants fitted on other devices."
        )
        return
    about = "; ".join(f"{key}: {value}" for key, value in profile.measured_about.items())
    print_table(
        ("measured", "value"),
        [
            (key, f"{len(value)} rows" if isinstance(value, (list, tuple)) else f"{value:.6g}")
            for key, value in profile.measured.items()
        ],
        title=f"\nCalibrated. {about}",
    )
