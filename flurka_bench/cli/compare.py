"""``compare``: is run B faster or slower than run A, case by case and speedup by speedup?"""

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    print_json,
    print_table,
    print_text,
)
from flurka_bench.words.units import (
    format_ratio,
    format_seconds,
)

if TYPE_CHECKING:
    from flurka_bench.answers.compare import (
        CaseChange,
        Comparison,
        SpeedupChange,
    )

_SHOWN = 30


def compare(
    run_a: Annotated[Path, typer.Argument(help="The run before: a folder that 'run' wrote.")],
    run_b: Annotated[Path, typer.Argument(help="The run after.")],
    fail: Annotated[float | None, options.declared("--fail")],
    all_: options.All,
    json: options.Json,
) -> None:
    """Compare two runs: what differs around them, then each case, then each speedup.

    Example: flurka-bench compare results/before results/after --fail 5%
    """
    from flurka_bench.answers.compare import compare_runs
    from flurka_bench.results import read_run

    found = compare_runs(read_run(run_a), read_run(run_b), fail=fail)
    if json:
        print_json(asdict(found))
    else:
        _print(found, all_)
    if fail is not None and found.regressions and not json:
        print(f"\n{len(found.regressions)} cases regressed past {100 * fail:.4g}%:")
        for case in found.regressions:
            how = (
                f"{1 / case.ratio - 1:+.1%} time"
                if case.ratio
                else f"{case.status_a} -> {case.status_b}"
            )
            print(f"  {case.case_id}: {how}")
    if fail is not None and found.nothing_compared:
        # a gate that saw nothing must not open: a renamed suite would pass every change
        print(f"--fail: {found.nothing_compared}, so nothing was compared", file=sys.stderr)
    if found.regressions or (fail is not None and found.nothing_compared):
        raise typer.Exit(1)


def _print(found: "Comparison", everything: bool) -> None:
    if found.differences:
        print_table(
            ("differs", "A", "B"),
            [(item.name, item.a, item.b) for item in found.differences],
            title="Around the runs",
        )
    else:
        print("Around the runs: no difference in suite, device, versions or settings")
    for name, ids in (("A", found.only_a), ("B", found.only_b)):
        if ids:
            print(f"only in {name}: {len(ids)} cases ({ids[0]}{', ...' if len(ids) > 1 else ''})")
    counts = Counter(case.verdict for case in found.cases)
    tally = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none in common"
    common = (
        f"; the median case of B takes {1 / found.common_ratio:.3f} of A's time"
        if found.common_ratio
        else ""
    )
    print_text(f"\nCases, B against A: {tally}{common}")
    _print_cases(
        [case for case in found.cases if everything or case.verdict not in ("SAME", "AMBIGUOUS")],
        everything,
    )
    flipped = [change for change in found.speedups if change.flipped]
    counts = Counter(change.verdict for change in found.speedups)
    words = {"FASTER": "grew", "SLOWER": "shrank", "SAME": "stayed", "AMBIGUOUS": "ambiguous"}
    gained = ", ".join(f"{counts[verdict]} {word}" for verdict, word in words.items())
    print_text(
        f"\nSpeedups of FLuRKA, B against A: {gained};"
        f" {len(flipped)} flipped between FASTER and SLOWER"
    )
    _print_speedups(
        [c for c in found.speedups if everything or c.flipped or c.verdict in ("FASTER", "SLOWER")],
        everything,
    )


def _print_cases(cases: "list[CaseChange]", everything: bool) -> None:
    cases = sorted(cases, key=lambda case: case.ratio or 0.0)
    shown = cases if everything else cases[:_SHOWN]
    if shown:
        print_table(
            ("case", "A", "B", "speedup of B", "interval", "verdict"),
            [
                (
                    case.case_id,
                    format_seconds(case.a_s) if case.status_a == "ok" else case.status_a,
                    format_seconds(case.b_s) if case.status_b == "ok" else case.status_b,
                    format_ratio(case.ratio),
                    f"{case.low:.3f} to {case.high:.3f}" if case.low is not None else "",
                    case.verdict,
                )
                for case in shown
            ],
            everything=everything,
        )
    if len(shown) < len(cases):
        print(f"... and {len(cases) - len(shown)} more (--all)")


def _print_speedups(changes: "list[SpeedupChange]", everything: bool) -> None:
    changes = sorted(changes, key=lambda change: (not change.flipped, change.change))
    shown = changes if everything else changes[:_SHOWN]
    if shown:
        print_table(
            ("workload", "against", "A", "B", "change", "interval", "verdicts"),
            [
                (
                    " ".join(
                        f"{name}={change.cell[name]}"
                        for name in ("level", "pass", "seq_len", "rank", "num_features")
                    ),
                    change.baseline,
                    format_ratio(change.a),
                    format_ratio(change.b),
                    f"{change.change - 1:+.1%}",
                    f"{change.low:.3f} to {change.high:.3f}",
                    f"{change.verdict_a} -> {change.verdict_b}",
                )
                for change in shown
            ],
            everything=everything,
        )
    if len(shown) < len(changes):
        print(f"... and {len(changes) - len(shown)} more (--all)")
