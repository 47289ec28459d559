"""Standard output and standard error that no verb can break: whatever their encoding, closed, full,
or with a reader that went away."""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

from flurka_bench.words.errors import RequestError
from flurka_bench.words.text import (
    PLAIN,
    legible,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


class Output(io.TextIOWrapper):
    """A text stream that escapes what would drive a terminal, and writes in ASCII what its encoding
    lacks (× as x, ² as ^2)."""

    def __init__(
        self,
        buffer: "io.BufferedWriter[Any] | io.BytesIO",
        encoding: str,
        *,
        line_buffering: bool = False,
    ) -> None:
        super().__init__(buffer, encoding, PLAIN, line_buffering=line_buffering)

    def write(self, text: str) -> int:
        """Write text as people read it."""
        super().write(legible(text))
        return len(text)

    def write_trusted(self, text: str) -> int:
        """Write text whose control sequences are this program's own."""
        return super().write(text)


class Terminal:
    """The same stream for a program that draws, rich: its own control sequences pass. What it draws
    must be ``legible`` before."""

    def __init__(self, stream: Output) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what was drawn."""
        return self._stream.write_trusted(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def terminal(stream: TextIO) -> TextIO:
    """The stream to draw on: control sequences pass."""
    return cast(TextIO, Terminal(stream)) if isinstance(stream, Output) else stream


class _Descriptor(io.FileIO):
    """A standard stream's descriptor. A reader that went away (head, less) is no error: what it
    does not want goes nowhere, and the command ends with its own exit code. Any other failure is
    one where the stream holds the answer."""

    def __init__(self, descriptor: int, holds_answer: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._holds_answer = holds_answer

    def write(self, data: "Buffer", /) -> int:
        """Write bytes; RequestError where the answer cannot be given."""
        try:
            return super().write(data) or 0
        except OSError as error:
            # From here on all goes nowhere: Python flushes once more at its end, and must not
            # complain.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self._holds_answer and not isinstance(error, BrokenPipeError):
                raise RequestError(
                    f"cannot write to standard output: {error.strerror} (files that the command "
                    "writes are complete)"
                ) from None
        return memoryview(data).nbytes


def prepare() -> None:
    """Make both streams safe. A closed one is opened on the null device, so that no file opened
    later gets its number: standard output for reading, where a write fails, as the answer would be
    lost without a word; standard error for writing, as notes may be."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free number: this one
    if sys.stdout is sys.__stdout__ and not isinstance(sys.stdout, Output):
        sys.stdout = _opened(1, sys.stdout)
    if sys.stderr is sys.__stderr__ and not isinstance(sys.stderr, Output):
        sys.stderr = _opened(2, sys.stderr)


def _opened(descriptor: int, before: TextIO | None) -> Output:
    if before is not None:
        with contextlib.suppress(OSError):
            before.flush()
    buffer = io.BufferedWriter(_Descriptor(descriptor, holds_answer=descriptor == 1))
    encoding = (before is not None and before.encoding) or "utf-8"
    prompt = descriptor == 2 or os.isatty(descriptor) or bool(getattr(before, "write_through", 0))
    return Output(buffer, encoding, line_buffering=prompt)
