"""The errors users see: one line, the accepted values, what was got, and what mends it.

Every error that a wrong request, file or machine can cause is a ``FlurkaError``; the command line
prints its text and exits with its ``exit_code``. Anything else that escapes is a bug and keeps its
traceback. ``assert`` is for those.
"""

import difflib
from collections.abc import Iterable


class FlurkaError(Exception):
    """Base of the errors that end a command with one line instead of a traceback."""

    exit_code = 2


class RequestError(FlurkaError, ValueError):
    """The request was wrong: a name, a value, a file. Says how, and what would be accepted."""


class Interrupted(FlurkaError):
    """The user stopped the command; what was finished is on disk and the same command goes on from
    there."""

    exit_code = 130


def nearest(got: str, accepted: Iterable[str]) -> str | None:
    """The accepted name closest to ``got``, whatever the case of its letters; None where none is
    close."""
    names = {str(name).lower(): str(name) for name in accepted}
    close = difflib.get_close_matches(str(got).lower(), names, n=1, cutoff=0.5)
    return names[close[0]] if close else None


def unknown(what: str, got: object, accepted: Iterable[str]) -> RequestError:
    """The error for a name that is not one of a known set: names the nearest and lists all of
    them."""
    accepted = sorted(str(name) for name in accepted)
    text = got if isinstance(got, str) else short(got)
    guess = nearest(text[:200], accepted)
    hint = f" (did you mean {guess!r}?)" if guess else ""
    return RequestError(f"unknown {what} {text[:200]!r}{hint}; accepted: {', '.join(accepted)}")


def short(value: object) -> str:
    """A value as an error shows it."""
    try:
        return repr(value)[:80]
    except (
        ValueError,
        RecursionError,
    ):  # thousands of digits (from hexadecimal), or dotted keys nested too deeply
        return f"a {type(value).__name__} too long to show"
