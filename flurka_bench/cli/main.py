"""The command's entry: registers the verbs, turns the project's errors into one line and an exit
code."""

import importlib
import os
import sys
from typing import Annotated

import typer

from flurka_bench import __version__
from flurka_bench.errors import FlurkaError, Interrupted, nearest
from flurka_bench.measure import allocator

# In the order of a first session: measure, look, predict, decide, then the housekeeping. Modules
# are light to import; torch, pandas, matplotlib and sympy are imported inside the functions that
# need them.
VERBS = (
    "run", "predict", "recommend", "regions", "plot", "report", "compare", "calibrate", "validate",
    "hardware", "suites", "export", "doctor", "quality",
)  # fmt: skip
# Typer's usage errors: newer releases carry click inside, older ones import it; both are reached
# through a public name.
UsageProblem = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flurka-bench {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """Which attention, with which rank and feature count, is fastest on your hardware, and what
    does it cost in accuracy?

    Measures full, low-rank, kernel and fused (FLuRKA) attention, predicts them for hardware that is
    not at hand, and maps the regions where each is fastest.

    Example: flurka-bench run quick && flurka-bench plot results/quick-cpu
    """


def build_app(only: str | None = None) -> typer.Typer:
    """The typer application with every verb, or with ``only`` the one that was asked for: importing
    the others costs time."""
    app = typer.Typer(
        name="flurka-bench",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for verb in VERBS if only is None else (only,):
        module = importlib.import_module(f"flurka_bench.cli.{verb}")
        if hasattr(module, "app"):  # a verb with verbs of its own
            app.add_typer(module.app, name=verb)
        else:
            app.command(verb)(getattr(module, verb))
    return app


def _usage_line(error: Exception) -> str:
    """A usage error in one line, with the nearest option or verb where one is close."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    if context is not None and "No such command" in message:
        got = message.split("'")[1]
        guess = nearest(got, context.command.list_commands(context))
        message += f" Did you mean {guess!r}?" if guess and "Did you mean" not in message else ""
    where = f" (see '{context.command_path} --help')" if context is not None else ""
    return f"error: {message}{where}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the answer is no, 2 the request was wrong, 130
    interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    only = (
        given[0]
        if given and given[0] in VERBS and "_FLURKA_BENCH_COMPLETE" not in os.environ
        else None
    )
    if only in ("calibrate", "doctor") and arguments is None:
        allocator.restart_reusing()  # what they find must hold for a run's worker
    try:
        code = build_app(only)(arguments, prog_name="flurka-bench", standalone_mode=False)
    except UsageProblem as error:
        # Without arguments, typer "fails" with the help text as its message: that is an answer, not
        # an error.
        no_arguments = type(error).__name__ == "NoArgsIsHelpError"
        print(error.format_message() if no_arguments else _usage_line(error), file=sys.stderr)
        code = 2
    except FlurkaError as error:
        print(error if isinstance(error, Interrupted) else f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader (head, less) went away: nothing is wrong, and Python must not complain while
        # closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code or 0)
