"""The one place where the pins touch the package: everything else they use is what this gives.

The command line is called in this process. Run as a program, this is the worker of the pinned
resumes: the fake one of the runner's tests, under the name of the device whose run goes on.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
REPOSITORY = TESTS.parent
DEVICE_VARIABLE = "FLURKA_BENCH_PIN_DEVICE"


def call(*arguments: str) -> tuple[int, str]:
    """The command line's exit code and standard output, from the repository's root; of a crash 70
    and what it was."""
    from flurka_bench.cli import main

    out = io.StringIO()
    code: Any = 0
    with (
        contextlib.chdir(REPOSITORY),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            main(list(arguments))
        except SystemExit as end:
            code = end.code
        except Exception as error:
            return 70, f"{type(error).__name__}: {error}"
    return int(code or 0), out.getvalue()


def answer(*arguments: str) -> Any:
    """What a command with ``--json`` prints; its exit code where that is not 0."""
    code, text = call(*arguments, "--json")
    if code == 70:
        return {"crashed": text}
    return json.loads(text) if code == 0 else {"exit code": code}


def error_records(folder: Path) -> list[dict[str, Any]]:
    """The records of a run of kind error, as its reader gives them."""
    from flurka_bench.results import read_run
    from flurka_bench.results.error import FORM

    return read_run(folder, FORM).records


def go_on(folder: Path, text: str, device: str) -> int:
    """Run a suite's text into a folder with the fake worker; how many cases had a record before."""
    from running import run_suite

    from flurka_bench.cases.suite import parse_suite

    before = dict(os.environ)
    paths = os.pathsep.join((str(REPOSITORY), str(TESTS)))
    os.environ.update({DEVICE_VARIABLE: device, "PYTHONPATH": paths, "FLURKA_BENCH_FAKE": "{}"})
    try:
        summary = run_suite(
            parse_suite(text, device_kind="cpu"),
            out=folder,
            worker_command=(sys.executable, str(Path(__file__).resolve())),
        )
    finally:
        os.environ.clear()
        os.environ.update(before)
    return summary.num_before


def _serve() -> int:
    from fake_worker import open_tools

    from flurka_bench.bench.worker import serve
    from flurka_bench.kinds.timing.bench import TimingBench

    def renamed(_: str, device_name: str) -> Any:
        tools, hello = open_tools(device_name)
        return TimingBench(tools, {**hello, "device": os.environ[DEVICE_VARIABLE]})

    return serve(open_bench=renamed)


if __name__ == "__main__":
    sys.exit(_serve())
