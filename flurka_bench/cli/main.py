"""The command's entry: registers the verbs, turns the project's errors into one line and an exit
code. Light: signals are handled before anything slow is imported."""

import importlib
import os
import sys

from flurka_bench.cli import interrupts

TYPE_CHECKING = False  # type checkers know the name; importing typing takes 5 ms without handlers
if TYPE_CHECKING:
    import typer

# In the order of a first session: measure, look, predict, decide, then the housekeeping. Modules
# are light to import; torch, pandas, matplotlib and sympy are imported inside the functions that
# need them.
VERBS = (
    "run", "predict", "recommend", "regions", "plot", "report", "compare", "calibrate", "validate",
    "hardware", "suites", "export", "doctor", "quality",
)  # fmt: skip


def build_app(only: str | None = None) -> "typer.Typer":
    """The typer application with every verb, or with ``only`` the one that was asked for: importing
    the others costs time."""
    import typer

    from flurka_bench.cli.root import root

    app = typer.Typer(
        name="flurka-bench",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(root)
    for verb in VERBS if only is None else (only,):
        module = importlib.import_module(f"flurka_bench.cli.{verb}")
        if hasattr(module, "app"):  # a verb with verbs of its own
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the answer is no, 2 the request was wrong, 130
    interrupted."""
    if arguments is None:
        interrupts.install()
    try:
        from flurka_bench.cli import streams

        streams.prepare()
        code = _run(arguments)
        sys.stdout.flush()
    except BaseException as error:
        if not interrupts.asked():
            code = _fault(error)
        else:  # whatever the interrupted code made of it
            print("interrupted", file=sys.stderr)
            code = interrupts.EXIT_CODE
    interrupts.finish()
    sys.exit(code)


def _run(arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    only = (
        given[0]
        if given and given[0] in VERBS and "_FLURKA_BENCH_COMPLETE" not in os.environ
        else None
    )
    return build_app(only)(arguments, prog_name="flurka-bench", standalone_mode=False) or 0


def _fault(error: BaseException) -> int:
    """Say in one line what ended the command, and give its exit code. A bug is raised again."""
    import typer

    from flurka_bench.cli.root import (
        UsageProblem,
        usage_line,
        usage_message,
    )
    from flurka_bench.words.errors import (
        FlurkaError,
        Interrupted,
    )
    from flurka_bench.words.text import one_line

    if isinstance(error, UsageProblem):
        # Without arguments, typer "fails" with the help text as its message: that is an answer, not
        # an error.
        no_arguments = type(error).__name__ == "NoArgsIsHelpError"
        text, code = usage_message(error) if no_arguments else usage_line(error), 2
    elif isinstance(error, FlurkaError):
        line = one_line(str(error))
        text, code = line if isinstance(error, Interrupted) else f"error: {line}", error.exit_code
    elif isinstance(error, OSError) and error.filename is not None:
        # No verb foresaw it, but it is of a file: the request's, not the program's.
        file = one_line(os.fsdecode(error.filename))
        text, code = f"error: cannot use '{file}': {error.strerror}", 2
    elif isinstance(error, (KeyboardInterrupt, typer.Abort)):
        text, code = "interrupted", interrupts.EXIT_CODE
    else:
        raise error
    print(text, file=sys.stderr)
    return code
