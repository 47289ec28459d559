"""What the command says before any verb: its own help and version, and usage errors in one line."""

from typing import Annotated

import typer

from flurka_bench import __version__
from flurka_bench.words.errors import nearest
from flurka_bench.words.text import one_line

# Typer's usage errors: newer releases carry click inside, older ones import it; both are reached
# through a public name.
UsageProblem = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flurka-bench {__version__}")
        raise typer.Exit


def root(
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


def usage_message(error: BaseException) -> str:
    """What typer says of a ``UsageProblem``, or its help text."""
    return str(getattr(error, "format_message")())  # noqa: B009 (no public name says its type)


def usage_line(error: BaseException) -> str:
    """A usage error in one line, with the nearest option or verb where one is close."""
    message = one_line(" ".join(usage_message(error).split()))
    context = getattr(error, "ctx", None)
    if context is not None and "No such command" in message:
        got = message.split("'")[1]
        guess = nearest(got, context.command.list_commands(context))
        message += f" Did you mean {guess!r}?" if guess and "Did you mean" not in message else ""
    where = f" (see '{context.command_path} --help')" if context is not None else ""
    return f"error: {message}{where}"
