"""``doctor``: is this machine fit to measure on, and if not, what to do about it."""

from dataclasses import asdict

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    print_json,
    print_table,
)


def doctor(
    device: options.Device,
    json: options.Json,
) -> None:
    """Print what a measurement here would stand on, each line with a judgement and advice; exit 1
    if anything is bad.

    Example: flurka-bench doctor --device cpu
    """
    from flurka_bench.devices import environment
    from flurka_bench.devices.probe import find_device
    from flurka_bench.kinds import calibration

    captured = dict(calibration.environment_of(find_device(device).device))
    findings = environment.judge(captured)
    bad = sum(finding.judgement == "bad" for finding in findings)
    if json:
        print_json(
            {
                "ok": not bad,
                "findings": [asdict(finding) for finding in findings],
                "environment": captured,
            }
        )
    else:
        print_table(
            ("", "what", "found", "advice"),
            [
                (finding.judgement, finding.name, finding.value, finding.advice)
                for finding in findings
            ],
        )
        warned = sum(finding.judgement == "warn" for finding in findings)
        print(f"\n{len(findings) - bad - warned} ok, {warned} warn, {bad} bad")
    if bad:
        raise typer.Exit(1)
