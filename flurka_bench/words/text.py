"""Text from outside (names of devices, files and runs, errors of other programs) made safe to show:
a control character could move a terminal's cursor, a lone surrogate cannot be written at all, and a
spreadsheet runs what begins like a formula."""

import codecs
import re

PLAIN = "flurka_bench.plain"  # error handlers for str.encode
JSON = "flurka_bench.json"

# C0 and C1 controls but tab and line feed, what turns the direction of text, other line separators
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_UNSAFE = re.compile(f"[{_CONTROLS}\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte of a name
_ASCII = {
    "×": "x", "²": "^2", "³": "^3", "ᵀ": "^T", "·": ".", "…": "...", "µ": "u", "μ": "u", "±": "+-",
    "–": "-", "—": "-", "−": "-", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "←": "<-", "⇔": "<=>",
    "’": "'", "‘": "'", "“": '"', "”": '"', "°": " deg", "√": "sqrt", "Ω": "Omega", "φ": "phi",
    "Φ": "Phi", "∞": "inf", "\xa0": " ",
} | dict.fromkeys("─━═╌", "-") | dict.fromkeys("│┃║", "|") | dict.fromkeys(
    "┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇┠┨", "+"
) | dict.fromkeys("█▓▒░■", "#")  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\n", "＝", "＋", "－", "＠")  # as OWASP lists them


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def legible(text: str) -> str:
    """The text with every control character but tab and line feed as ``\\x1b``, and bytes of a name
    that are not UTF-8 (Python's surrogates) as ``\\xff``."""
    if not _UNSAFE.search(text):
        return text
    text = _NO_BYTE.sub(_escaped, text)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _CONTROL.sub(_escaped, text)


def one_line(text: str) -> str:
    """``legible``, and line feeds and tabs escaped too."""
    return legible(text).replace("\n", "\\n").replace("\t", "\\t")


def json_text(text: str, encoding: str | None = None) -> str:
    """JSON text (of ``json.dumps``) with what is unsafe or beyond the encoding (UTF-8 where it is
    not known) as JSON's own escapes; surrogates of a name as ``legible`` writes them."""
    encoding = encoding or "utf-8"
    text = _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text.encode(encoding, JSON).decode(encoding)


def csv_cell(text: str) -> str:
    """A ``legible`` CSV cell that no spreadsheet takes for a formula: text (no number) that begins
    with = + - @ or a break gets an apostrophe in front. So does what begins with one: to read a
    cell back, take one leading apostrophe off."""
    text = legible(text)
    if not text.startswith((*_FORMULA, "'")):
        return text
    try:
        float(text)
    except ValueError:
        return "'" + text
    return text


def _plain(error: UnicodeError) -> tuple[str, int]:
    """ASCII that reads alike for what an output cannot show; escapes for the rest."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = legible(error.object[error.start : error.end])
    plain = (_ASCII.get(letter, letter) for letter in letters)
    return "".join(plain).encode("ascii", "backslashreplace").decode("ascii"), error.end


def _json(error: UnicodeError) -> tuple[str, int]:
    """JSON escapes for what an output cannot show."""
    import json  # rarely needed, and every command imports this module at its start

    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(legible(error.object[error.start : error.end]))[1:-1], error.end


codecs.register_error(PLAIN, _plain)
codecs.register_error(JSON, _json)
