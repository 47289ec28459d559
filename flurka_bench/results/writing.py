"""The one writer of a run folder."""

import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from flurka_bench.results.index import CaseIndex
from flurka_bench.results.reading import (
    META_NAME,
    RECORDS_NAME,
    check_kind,
    iter_records,
    loads,
    numbered_lines,
    read_meta,
)
from flurka_bench.results.records import (
    SCHEMA,
    TIMING,
    Form,
    check_record,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import (
    replace_file,
    sync_folder,
)
from flurka_bench.words.text import JSON

LOCK_NAME = "run.lock"


class RunWriter:
    """The one writer of a run folder: locks it, repairs it, appends to it.

    Raises RequestError if another process writes there, if the folder holds the run of another
    suite or device, or cannot be written.
    """

    def __init__(self, folder: str | Path, form: Form = TIMING) -> None:
        self.folder = Path(folder)
        self.form = form
        self.done = CaseIndex()
        self.next_round = 0  # the first round id that no sample of this run has
        self.repairs: list[str] = []
        self.meta: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise RequestError(f"{str(self.folder)!r} is a file; --out must be a folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(
                self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644
            )
        except OSError as error:
            raise self._cannot_write(error) from None
        try:
            self._take_lock()
            self._read_existing()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_lock(self) -> None:
        import fcntl  # released by the system when this process ends, however it ends

        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = (
                os.pread(self._lock, 1000, 0).decode("utf-8", "replace").strip()
                or "another process"
            )
            raise RequestError(
                f"{str(self.folder)!r} is being written by {holder}; wait for it, or give another --out"
            ) from None
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        try:
            os.ftruncate(self._lock, 0)
            os.pwrite(
                self._lock,
                f"process {os.getpid()} on {socket.gethostname()}, started {started}\n".encode(),
                0,
            )
        except OSError as error:
            raise self._cannot_write(error) from None

    def _read_existing(self) -> None:
        path = self.folder / RECORDS_NAME
        if (self.folder / META_NAME).exists():
            self.meta = read_meta(self.folder)
            check_kind(self.folder, self.meta, self.form)
        elif path.exists() and path.stat().st_size:
            raise RequestError(
                f"{str(self.folder)!r} has {RECORDS_NAME} but no {META_NAME}: not a run (give another --out)"
            )
        self._repair(path)
        for record in iter_records(self.folder, form=self.form):
            self._note(record)

    def _repair(self, path: Path) -> None:
        """Cut off what follows the last whole record: a crash can only have torn the end."""
        good, line = 0, b""
        for _, line, is_last in numbered_lines(path):
            good += 0 if is_last else len(line)
        if not line:
            return
        try:
            loads(line)
            ending = b"" if line.endswith(b"\n") else b"\n"
            good += len(line)
        except ValueError:
            ending = b""
            self.repairs.append(
                f"{path}: the last line was torn ({len(line)} bytes) and is removed; its case is measured again"
            )
        if ending or good != path.stat().st_size:
            try:
                with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+b") as file:
                    file.truncate(good)
                    file.seek(good)
                    file.write(ending)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise self._cannot_write(error) from None

    def start(self, meta: Mapping[str, Any]) -> None:
        """Write run.json, or check that the run found here is of the same suite, device and seed,
        to be taken up again."""
        if self.meta:
            for key, what in {"suite": "suite", "device": "device", "seed": "seed"}.items():
                # Runs of before the seed was kept had no choice of it.
                was = self.meta.get(key, 0 if key == "seed" else None)
                wanted = meta.get(key)
                if was != wanted:
                    names = [
                        each["name"] if key == "suite" and each else each for each in (was, wanted)
                    ]
                    detail = (
                        "a different text of the same suite"
                        if names[0] == names[1]
                        else f"{names[0]!r}, not {names[1]!r}"
                    )
                    raise RequestError(
                        f"{str(self.folder)!r} holds a run of another {what}: {detail} (give another --out)"
                    )
        else:
            self.meta = {"schema": SCHEMA, "kind": self.form.kind, **meta}
            self.save_meta()
        if self._file is not None:
            return
        try:
            descriptor = os.open(
                self.folder / RECORDS_NAME,
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW,
                0o644,
            )
            self._file = os.fdopen(descriptor, "ab", buffering=0)
            sync_folder(self.folder)
        except OSError as error:
            raise self._cannot_write(error) from None

    def save_meta(self) -> None:
        """Replace run.json in one step."""
        text = json.dumps(self.meta, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            replace_file(self.folder / META_NAME, text.encode("utf-8", JSON))
        except OSError as error:
            raise self._cannot_write(error) from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one final record and have it on the disk. RequestError for a malformed or second
        record, or a full disk."""
        assert self._file is not None, "append before start"
        record = {"schema": SCHEMA, **record}
        check_record(record, strict=True, form=self.form)
        if record["case_id"] in self.done:
            raise RequestError(
                f"case {record['case_id']!r} already has a record in {str(self.folder)!r}"
            )
        line = (
            json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(
                "utf-8", JSON
            )
            + b"\n"
        )
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(
                line
            ):  # an unbuffered write may stop short, at a full disk or a file size limit
                written += self._file.write(line[written:])
            os.fsync(self._file.fileno())
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)
            raise self._cannot_write(error) from None
        self.check_in_place()
        self._note(record)

    def check_in_place(self) -> None:
        """That the files written to are still those in the folder: an unlinked file takes records
        without an error, and they are gone with it. RequestError if not."""
        if self._file is None:
            return
        for name in (RECORDS_NAME, META_NAME):
            path = self.folder / name
            try:
                found = os.lstat(path)
            except OSError:
                found = None
            same = found is not None and (
                name == META_NAME or os.path.samestat(found, os.fstat(self._file.fileno()))
            )
            if not same:
                what = "removed" if found is None else "replaced"
                raise RequestError(
                    f"{str(path)!r} was {what} while the run was writing there, so the run stops;"
                    " the same command measures what the folder lacks"
                )

    def _note(self, record: Mapping[str, Any]) -> None:
        self.done.add(record["case_id"], record["status"])
        rounds = [*record.get("round_ids", ()), *(record.get("dropped_round_ids") or ())]
        self.next_round = max(self.next_round, *(round_id + 1 for round_id in rounds), 0)

    def close(self) -> None:
        """Close the files and let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
        os.close(self._lock)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cannot_write(self, error: OSError) -> RequestError:
        done = (
            f"; {len(self.done)} records are safe there, and the same command goes on from them"
            if self.done
            else ""
        )
        return RequestError(
            f"cannot write to {str(self.folder)!r}: {error.strerror or error}{done} (mend it or give another --out)"
        )
