"""The one display of what a run, an error run or a calibration is doing."""

import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flurka_bench.cli.common import console
from flurka_bench.words.text import one_line
from flurka_bench.words.units import format_seconds

if TYPE_CHECKING:
    from flurka_bench.bench.kind import Event


class Progress:
    """A bar with what is in hand on a terminal, plain lines elsewhere; both on stderr.

    Drawn only when something happens, because a bar that animates takes time from what is being
    timed. ``headline`` says a group's news in a line; by default its title. ``quiet`` shows
    nothing.
    """

    def __init__(
        self, *, quiet: bool = False, headline: "Callable[[Event], str] | None" = None
    ) -> None:
        self._bar: Any = None
        self._quiet = quiet
        self._headline = headline or (lambda event: event.text)
        self._tenth = -1

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and not self._quiet:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
            from rich.table import Column

            # The last column gives way in a narrow terminal.
            columns = (
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True)),
            )
            self._bar = Progress(
                *columns,
                console=console(stderr=True),
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None, left="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: "Event") -> None:
        """Draw one event."""
        if self._quiet:
            return
        line = one_line(self._line(event))
        if self._bar is None:
            if line:
                print(line, file=sys.stderr, flush=True)
            return
        from rich.markup import escape

        if line:
            self._bar.console.print(escape(line), highlight=False)
        left = f"{format_seconds(math.ceil(event.left_s), 2)} left" if event.left_s else ""
        # The phase stands first: a narrow terminal cuts the end off.
        case, _, phase = event.text.rpartition(": ")
        busy = event.kind in ("phase", "step")
        fields = {"description": escape(one_line(f"{phase} {case}"))} if busy else {}
        self._bar.update(
            self._task, total=event.num_cases, completed=event.num_done, left=left, **fields
        )
        self._bar.refresh()

    def _line(self, event: "Event") -> str:
        """What stays on the screen; empty where nothing does."""
        place = f"[{event.num_done}/{event.num_cases}]"
        match event.kind:
            case "note" | "warning":
                return f"{event.kind}: {event.text}"
            case "record" if event.record and event.record["status"] != "ok":
                record = event.record
                return f"{record['status']}: {record['case_id']}: {record['error']}"
            case "group":
                return f"{place} {self._headline(event)}"
            case "step" if self._bar is None and event.num_cases:
                tenth = 10 * event.num_done // event.num_cases
                if tenth > self._tenth:
                    self._tenth = tenth
                    return f"{place} {event.text}"
        return ""
