"""Files written whole or not at all: a full disk or a kill leaves an older file as it was."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from flurka_bench.words.errors import RequestError
from flurka_bench.words.text import PLAIN


def write_atomically(
    path: Path, content: bytes | str, *, option: str = "--out", follow_links: bool = False
) -> None:
    """Write a file in one step; text as UTF-8, lone surrogates escaped.

    A link is replaced, or with ``follow_links`` (a file that the user named) the file that it leads
    to is. Raises RequestError that names the file, the reason and the ``option`` that mends it.
    """
    try:
        replace_file(path, content, follow_links=follow_links)
    except OSError as error:
        raise cannot_write(path, error, option) from None


def replace_file(path: Path, content: bytes | str, *, follow_links: bool = False) -> None:
    """``write_atomically`` with the system's own OSError."""
    data = content.encode("utf-8", PLAIN) if isinstance(content, str) else content
    target = Path(os.path.realpath(path)) if follow_links else Path(path)
    found = _look(path, follow_links)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if found is not None and not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        # A pipe or a device (/dev/stdout, /dev/null): it takes bytes and must stay what it is.
        with open(path, "wb", buffering=0) as device:
            _write_all(device.fileno(), data)
        return
    is_file = found is not None and stat.S_ISREG(found.st_mode)
    if is_file and not os.access(target, os.W_OK):  # replacing would get around its permissions
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    descriptor, temporary = _temporary(target.parent)
    try:
        try:
            if found is not None and is_file:
                with contextlib.suppress(OSError):  # a file system without permissions
                    os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
            _write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(target.parent)


def check_writable(path: Path, option: str = "--out") -> None:
    """RequestError where ``write_atomically`` would fail already: to be known before an hour of
    work, not after."""
    try:
        found = _look(path, True)
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if found is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if found is None or stat.S_ISREG(found.st_mode):
            descriptor, temporary = _temporary(Path(os.path.realpath(path)).parent)
            os.close(descriptor)
            temporary.unlink()
    except OSError as error:
        raise cannot_write(path, error, option) from None


def make_folder(path: Path, option: str = "--out") -> None:
    """Make a folder and those above it where they are missing. RequestError where that cannot
    be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error, option) from None


def cannot_write(path: Path, error: OSError, option: str) -> RequestError:
    """The error for a file that cannot be written, in one line."""
    missing = isinstance(error, FileNotFoundError)
    reason = "its folder does not exist" if missing else error.strerror or str(error)
    return RequestError(f"cannot write {str(path)!r}: {reason} (mend it or give another {option})")


def sync_folder(folder: Path) -> None:
    """Have a folder's new names on the disk, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _look(path: Path, follow_links: bool) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow_links)
    except FileNotFoundError:
        return None


def _temporary(folder: Path) -> tuple[int, Path]:
    """A new file under a name of its own: no link that waits there is followed, and a target's long
    name does not make this one too long."""
    path = folder / f".flurka-bench-{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o666), path


def _write_all(descriptor: int, data: bytes) -> None:
    """Every byte: a write may stop short, at a full disk or a limit of file sizes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
