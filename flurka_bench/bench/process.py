"""The worker as a process: started, listened to, found dead or hanging, killed. And the signals
that stop a run."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flurka_bench
from flurka_bench.bench.budget import LOOK_INTERVAL_S, LostTime
from flurka_bench.bench.outcomes import NOBODY
from flurka_bench.bench.protocol import Heartbeat, Message, encode
from flurka_bench.devices.allocator import worker_variables


class Stopper:
    """Turns SIGINT, SIGTERM and SIGHUP into a readable descriptor; a second one ends the process at
    once. A hang-up that ``nohup`` ignores stays ignored."""

    def __init__(self) -> None:
        self.count = 0
        self.on_second: Callable[[], None] = lambda: None
        self.descriptor, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopper":
        with contextlib.suppress(ValueError):  # not the main thread: signals go elsewhere
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.descriptor)
        os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Sleep, but not past a signal: raises StopError then."""
        if select.select([self.descriptor], [], [], seconds)[0]:
            raise StopError

    def _handle(self, *_: object) -> None:
        self.count += 1
        if self.count > 1:  # every record is on the disk already: nothing is lost
            self.on_second()
            os._exit(130)
        os.write(self._write, b"!")


class StopError(Exception):
    """A signal asked the run to stop."""


class WorkerDeathError(Exception):
    """The worker ended: ``status`` and ``error`` say how, ``index`` while executing which case of
    its group, if any; ``waited_s`` how long it had given no sign of life."""

    def __init__(self, status: str, error: str, index: int, waited_s: float = 0.0) -> None:
        super().__init__(error)
        self.waited_s = waited_s
        self.status, self.error, self.index = status, error, None if index == NOBODY else index


class Worker:
    """A worker process in a session of its own: signals of the terminal do not reach it, and its
    children die with it."""

    def __init__(
        self,
        command: Sequence[str],
        device: str,
        memory_limit_bytes: float | None,
        stopper: Stopper,
        lost: LostTime,
    ) -> None:
        self.lost = lost
        self.stopper, self.heartbeat, self._buffer = stopper, Heartbeat(), b""
        self.reply, reply_end = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the worker)
        package = str(Path(flurka_bench.__file__).parents[1])
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        numbers = ["--reply-fd", str(reply_end), "--heartbeat-fd", str(self.heartbeat.descriptor)]
        self.process = subprocess.Popen(
            [
                *command,
                "--device",
                device,
                *numbers,
                "--memory-limit",
                str(int(memory_limit_bytes or 0)),
            ],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            pass_fds=(reply_end, self.heartbeat.descriptor),
            start_new_session=True,
            env={**os.environ, **worker_variables(), "PYTHONPATH": path},
        )
        os.close(reply_end)

    def send(self, message: Message) -> None:
        """Give it a message to work on."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, which reading will tell
            self.process.stdin.write(encode(message))
            self.process.stdin.flush()

    def receive(self, timeout_s: float) -> Message:
        """The next message. Raises StopError for a signal, WorkerDeathError at the worker's end or
        when it stops beating."""
        beats, deadline = self.heartbeat.read(), time.monotonic() + timeout_s
        self.lost.tick()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select(
                [self.reply, self.stopper.descriptor], [], [], LOOK_INTERVAL_S
            )
            deadline += self.lost.tick()  # whoever was suspended could not beat
            if self.stopper.descriptor in ready:
                raise StopError
            if self.reply in ready:
                chunk = os.read(self.reply, 1 << 20)
                if not chunk:
                    raise self._death()
                self._buffer += chunk
            if self.heartbeat.read() != beats:
                beats, deadline = self.heartbeat.read(), time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                self.kill()
                raise WorkerDeathError(
                    "timeout",
                    f"no sign of life for {timeout_s:.3g} s (budget.timeout in the suite)",
                    beats[0],
                    waited_s=timeout_s,
                )
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: Message = json.loads(line)
        return message

    def _death(self) -> WorkerDeathError:
        index, _ = self.heartbeat.read()
        try:
            code = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            return WorkerDeathError("crashed", "the worker closed its pipe and did not end", index)
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            likely = " (often the system's out-of-memory killer)" if -code == signal.SIGKILL else ""
            return WorkerDeathError(
                "crashed", f"the worker was killed by {name}{likely}{self._tail()}", index
            )
        return WorkerDeathError(
            "crashed", f"the worker ended with status {code}{self._tail()}", index
        )

    def _tail(self) -> str:
        """The last line of what the worker printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 2000))
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        lines = [
            line for line in lines if line and not line.startswith("USDT:")
        ]  # torch's profiler marks its sessions
        return f"; it last said: {lines[-1][:200]}" if lines else ""

    def close(self, grace_s: float = 5.0) -> None:
        """Let it end by itself, or kill it."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=grace_s)
        self.kill()

    def signal_kill(self) -> None:
        """Kill its whole session and return at once: waiting here could deadlock in a signal
        handler."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill its whole session and clean up."""
        self.signal_kill()
        self.process.wait()
        if self.reply >= 0:
            os.close(self.reply)
            self.reply = -1
            self._log.close()
            self.heartbeat.close()
