"""Ctrl-C, SIGTERM and SIGHUP from the command's first moment: exit code 130 and one line. Imports
next to nothing, so that it is in force before anything slow is imported."""

import os
import signal

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130


class _State:
    asked = False  # a signal came
    over = False  # the answer is out and Python is shutting down


def install() -> None:
    """Handle the signals; a hang-up that ``nohup`` ignores stays ignored."""
    for number in NUMBERS:
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)


def asked() -> bool:
    """Whether a signal has asked this command to stop."""
    return _State.asked


def finish() -> None:
    """From here on a signal ends the process at once: there is nothing left to clean up."""
    _State.over = True


def _handle(number: int, frame: object) -> None:
    """Unwind, so that half-written files go. SystemExit and not KeyboardInterrupt: code in between
    takes the latter for its own."""
    if _State.asked or _State.over:
        os._exit(EXIT_CODE)
    _State.asked = True
    raise SystemExit(EXIT_CODE)
