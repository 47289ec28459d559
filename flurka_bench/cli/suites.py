"""``suites list`` and ``suites show``: what the shipped suites run.

Error suites (``quality error``) are shown from their text: the code that expands them needs torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flurka_bench.cli import options
from flurka_bench.cli.common import (
    note,
    print_json,
    print_table,
)
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)

if TYPE_CHECKING:
    from flurka_bench.cases.suite import Suite

ERROR_SUITES = Path(__file__).parents[1] / "kinds" / "error" / "suites"

_HELP = """The suites that ship with flurka-bench, and your own TOML files.

Example: flurka-bench suites show quick"""
app = typer.Typer(no_args_is_help=True, help=_HELP)


def error_suites() -> list[str]:
    """Names of the error suites that come with the package."""
    return sorted(path.stem for path in ERROR_SUITES.glob("error*.toml"))


def _error_suite(name: str) -> tuple[str, dict[str, Any]] | None:
    """Text and tables of the error suite of that name or file; None where it is none."""
    from flurka_bench.cases.suite import shipped_suites
    from flurka_bench.words.toml import parse_toml

    path = ERROR_SUITES / f"{name}.toml" if name in error_suites() else Path(name)
    if name in shipped_suites() or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read suite file {name!r}: {error}") from None
    data = parse_toml(text, f"suite {name!r}")
    return (text, data) if data.get("kind") == "error" else None


def timing_suite(name: str, device_kind: str) -> "Suite":
    """The suite that ``run`` times. Raises RequestError as ``load_suite``, and for an error
    suite."""
    from flurka_bench.cases.suite import load_suite

    if _error_suite(name) is not None:
        raise RequestError(
            f"{name!r} is an error suite, which times nothing: flurka-bench quality error {name}"
        )
    loaded = load_suite(name, device_kind)
    note_idle_axes(loaded)
    return loaded


def note_idle_axes(suite: "Suite") -> None:
    """Say which axes of a suite no mechanism of it has."""
    for axis in suite.idle_axes():
        note(f"suite {suite.name!r}: no mechanism of it has the axis {axis} as given")


@app.command("list")
def list_(json: options.Json) -> None:
    """List the shipped suites with their number of cases.

    Example: flurka-bench suites list
    """
    from flurka_bench.cases.suite import (
        load_suite,
        shipped_suites,
    )

    rows: list[dict[str, Any]] = []
    for name in shipped_suites():
        suites = {kind: load_suite(name, kind) for kind in ("cpu", "cuda")}
        cases = {f"num_cases_{kind}": len(suite.cases()) for kind, suite in suites.items()}
        rows.append({
            "name": name, "kind": "time", "description": suites["cpu"].description, **cases,
        })  # fmt: skip
    for name in error_suites():
        found = _error_suite(name)
        assert found is not None
        rows.append({
            "name": name, "kind": "error", "description": str(found[1].get("description", "")),
            "num_cases_cpu": None, "num_cases_cuda": None,
        })  # fmt: skip
    if json:
        print_json(rows)
        return
    headers = ("name", "cases on cpu", "on cuda", "what for")
    print_table(
        headers,
        [
            (
                row["name"],
                *(
                    "" if row[key] is None else row[key]
                    for key in ("num_cases_cpu", "num_cases_cuda")
                ),
                row["description"] + (" (quality error)" if row["kind"] == "error" else ""),
            )
            for row in rows
        ],
    )


@app.command()
def show(
    context: typer.Context,
    suite: Annotated[str, typer.Argument(help="A shipped suite's name or a TOML file.")],
    device: options.Device,
    json: options.Json,
) -> None:
    """Show a suite: its text, and how many cases of which mechanisms it expands to.

    Example: flurka-bench suites show quick
    """
    from flurka_bench.cases.suite import (
        load_suite,
        shipped_suites,
    )
    from flurka_bench.devices.probe import device_kind

    if (found := _error_suite(suite)) is not None:
        options.refuse(
            context, ["--device"], " to an error suite, which is the same on every device"
        )
        _show_error_suite(suite, *found, as_json=json)
        return
    every = [*shipped_suites(), *error_suites()]
    path = Path(suite)
    if suite not in every and not path.is_file() and path.suffix != ".toml" and path.name == suite:
        raise unknown("suite", suite, every)
    kind = device_kind(device)
    loaded = load_suite(suite, kind)
    cases = loaded.cases()
    note_idle_axes(loaded)
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
        title=f"{len(cases)} cases at {workloads} workloads on {kind}",
    )


def _show_error_suite(name: str, text: str, data: dict[str, Any], *, as_json: bool) -> None:
    tables = {key: data.get(key, []) for key in ("inputs", "mechanisms")}
    if as_json:
        about = {"name": data.get("name", Path(name).stem), "kind": "error"}
        print_json(about | {"description": data.get("description", "")} | tables | {"text": text})
        return
    print(f"{text.strip()}\n\nAn error suite: flurka-bench quality error {name}")
