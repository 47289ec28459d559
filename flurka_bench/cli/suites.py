"""``suites list`` and ``suites show``: what the shipped suites run."""

from typing import Annotated

import typer

from flurka_bench.cli.common import one_of, print_json, print_table

_HELP = """The suites that ship with flurka-bench, and your own TOML files.

Example: flurka-bench suites show quick"""
app = typer.Typer(no_args_is_help=True, help=_HELP)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Kind = Annotated[
    str, typer.Option("--device", help="Kind of device whose cases to show: cpu or cuda.")
]


@app.command("list")
def list_(json: Json = False) -> None:
    """List the shipped suites with their number of cases.

    Example: flurka-bench suites list
    """
    from flurka_bench.suite import load_suite, shipped_suites

    rows = []
    for name in shipped_suites():
        suites = {kind: load_suite(name, kind) for kind in ("cpu", "cuda")}
        cases = {f"num_cases_{kind}": len(suite.cases()) for kind, suite in suites.items()}
        rows.append({"name": name, "description": suites["cpu"].description, **cases})
    if json:
        print_json(rows)
        return
    headers = ("name", "cases on cpu", "on cuda", "what for")
    print_table(
        headers,
        [
            (row["name"], row["num_cases_cpu"], row["num_cases_cuda"], row["description"])
            for row in rows
        ],
    )


@app.command()
def show(
    suite: Annotated[str, typer.Argument(help="A shipped suite's name or a TOML file.")],
    device: Kind = "cpu",
    json: Json = False,
) -> None:
    """Show a suite: its text, and how many cases of which mechanisms it expands to.

    Example: flurka-bench suites show quick
    """
    from flurka_bench.suite import load_suite

    loaded = load_suite(suite, one_of(("cpu", "cuda"), "--device")(device))
    cases = loaded.cases()
    if json:
        print_json({
            "name": loaded.name,
            "description": loaded.description,
            "baselines": list(loaded.baselines),
            "cases": [{"case_id": case.case_id, **case.as_record()} for case in cases],
            "text": loaded.text,
        })  # fmt: skip
        return
    print(loaded.text.strip() + "\n")
    counts: dict[tuple[str, str], int] = {}
    for case in cases:
        counts[case.level, case.mechanism] = counts.get((case.level, case.mechanism), 0) + 1
    levels = sorted({level for level, _ in counts})
    rows = [
        (name, *(counts.get((level, name), 0) for level in levels))
        for name in sorted({name for _, name in counts})
    ]
    workloads = len({case.workload_key for case in cases})
    print_table(
        ("mechanism", *levels),
        rows,
        title=f"{len(cases)} cases at {workloads} workloads on {device}",
    )
