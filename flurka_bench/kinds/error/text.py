"""Text for the trained encoder: what every Python installation has, or one file of the user's.

The docstrings are read by parsing the standard library's sources, not by importing it: nothing
runs, and the order is fixed by the source files. They differ a little between Python versions, so a
run records the digest of what it read.
"""

import ast
import functools
import hashlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from flurka_bench.words.errors import RequestError

# Modules with long docstrings in every supported Python; one is one document. Even places are for
# testing, odd for training.
MODULES = (
    "argparse", "asyncio.tasks", "calendar", "codecs", "collections", "concurrent.futures._base", "configparser", "csv",
    "ctypes.util", "datetime", "_pydecimal", "difflib", "doctest", "email.message", "enum", "_pydatetime", "fractions", "ftplib",
    "functools", "gettext", "heapq", "html.parser", "http.cookiejar", "imaplib", "inspect", "ipaddress", "locale", "logging",
    "logging.handlers", "mailbox", "multiprocessing.managers", "numbers", "optparse", "os", "pathlib", "pickle", "pickletools",
    "platform", "plistlib", "pprint", "random", "selectors", "shutil", "smtplib", "socket", "ssl", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tkinter", "turtle", "typing", "unittest.case", "unittest.mock",
    "urllib.parse", "urllib.request", "uuid", "weakref", "webbrowser", "xml.dom.minidom", "xmlrpc.client", "zipfile",
)  # fmt: skip


@functools.cache
def docstrings() -> tuple[str, ...]:
    """One document per module of ``MODULES`` that this Python has: its docstrings in source order,
    blank-line separated."""
    documents = []
    for name in MODULES:
        try:
            spec = find_spec(name)
        except ModuleNotFoundError:  # the parent package is absent, as tkinter in slim builds
            spec = None
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            continue
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        documents.append("\n\n".join(text for text in found if text))
    return tuple(documents)


def read_text(path: Path) -> str:
    """A user's text file. Raises RequestError where it is missing, empty or not UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{path} is not UTF-8 text (byte {error.start}); convert it, or leave --text out"
        ) from None
    except OSError as error:
        raise RequestError(f"cannot read the text file {path}: {error.strerror}") from None
    if not text.strip():
        raise RequestError(f"{path} is empty; --text takes a UTF-8 text file")
    return text


def digest(documents: Sequence[str]) -> dict[str, str | int]:
    """What identifies the text of a run in its environment: number of documents, SHA-256 and the
    Python it came from."""
    sha = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    return {
        "documents": len(documents),
        "sha256": sha,
        "python": ".".join(map(str, sys.version_info[:3])),
    }
