"""Hardware profiles as TOML: read, write, and the shipped ones by name.

One file a target lies under ``profiles/``; a user's own file is taken by path. Nothing here is
looked up by substring: a name or an alias matches whole, whatever its case, dashes, underscores
and spaces, or the error offers the nearest.
"""

import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from flurka_bench.hardware.measured import Measured
from flurka_bench.hardware.profile import (
    LARGEST,
    Figure,
    Profile,
    is_measured,
)
from flurka_bench.words.errors import (
    RequestError,
    short,
    unknown,
)
from flurka_bench.words.toml import (
    parse_toml,
    read_text,
)

SCHEMA = 1
FOLDER = Path(__file__).parent / "profiles"
_WORDS = ("name", "title", "vendor", "kind", "architecture", "matmul_library", "attention_kernel")
_TABLES = {
    "aliases": list,
    "device_names": list,
    "sources": dict,
    "datasheet": dict,
    "measured": dict,
    "measured_about": dict,
}


def _figures(where: str, table: Any) -> dict[str, Figure]:
    if not isinstance(table, dict):
        raise RequestError(f"{where} must be a table of figures")
    figures = {}
    for name, entry in table.items():
        here = f"{where}.{name}" if name.isprintable() else f"{where}.{name!r}"
        if not isinstance(entry, dict) or not {"value", "unit", "source"} <= set(entry) <= {
            "value",
            "unit",
            "source",
            "note",
        }:
            raise RequestError(
                f"{here} must be {{ value = …, unit = …, source = … }} (note is optional),"
                f" got {short(entry)}"
            )
        if (
            isinstance(entry["value"], bool)
            or not isinstance(entry["value"], (int, float))
            or abs(entry["value"]) > LARGEST
        ):
            raise RequestError(f"{here}: value must be a number, got {short(entry['value'])}")
        if not all(isinstance(entry.get(key, ""), str) for key in ("unit", "source", "note")):
            raise RequestError(f"{here}: unit, source and note must be text")
        figures[name] = Figure(**{**entry, "value": float(entry["value"])})
    return figures


def _as_floats(value: Any) -> Any:
    """Numbers as floats, at any depth; what is none is left for the check to refuse."""
    if isinstance(value, list):
        return [_as_floats(entry) for entry in value]
    return float(value) if is_measured(value) else value


_OVERLAY = ("measured", "measured_about")


def _overlay(data: Mapping[str, Any], where: str) -> Profile:
    """A shipped profile with the measured numbers of a file instead of its own."""
    accepted = ("schema", "base", *_OVERLAY)
    for key in data:
        if key not in accepted:
            raise unknown(f"{where}: key beside base", key, accepted)
    if data["base"] not in names():
        raise unknown(f"{where}: base", str(data["base"]), names())
    _check_tables(data, _OVERLAY, where)
    return load(data["base"]).with_measured(_measured(data), data.get("measured_about", {}))


def _check_tables(data: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in keys:
        kind = _TABLES[key]
        if not isinstance(data.get(key, kind()), kind):
            raise RequestError(
                f"{where}: {key} must be a {'list' if kind is list else 'table'}, got"
                f" {short(data[key])}"
            )


def _measured(data: Mapping[str, Any]) -> Measured:
    return Measured({name: _as_floats(value) for name, value in data.get("measured", {}).items()})


def parse_profile(text: str, where: str) -> Profile:
    """A profile from TOML text; RequestError says what is wrong and where."""
    data = parse_toml(text, where)
    if isinstance(data.get("schema"), bool) or data.get("schema") != SCHEMA:
        raise RequestError(f"{where}: schema must be {SCHEMA}, got {short(data.get('schema'))}")
    if "base" in data:
        return _overlay(data, where)
    accepted = ("schema", *_WORDS, *_TABLES)
    for key in data:
        if key not in accepted:
            raise unknown(f"{where}: key", key, accepted)
    words = {}
    for key in _WORDS:
        if not isinstance(data.get(key), str) or not data[key]:
            raise RequestError(f"{where}: {key} must be text, got {short(data.get(key))}")
        words[key] = data[key]
    _check_tables(data, _TABLES, where)
    datasheet = dict(data.get("datasheet", {}))
    peaks = _figures(f"{where}: [datasheet.peak_flops]", datasheet.pop("peak_flops", {}))
    for key in ("aliases", "device_names"):
        if not all(isinstance(alias, str) for alias in data.get(key, [])):
            raise RequestError(f"{where}: {key} must be a list of names")
    return Profile(
        **words,
        aliases=tuple(data.get("aliases", ())),
        device_names=tuple(data.get("device_names", ())),
        sources=data.get("sources", {}),
        datasheet=_figures(f"{where}: [datasheet]", datasheet),
        peaks=peaks,
        measured=_measured(data),
        measured_about=data.get("measured_about", {}),
    )


def _read(path: Path) -> Profile:
    return parse_profile(read_text(path, "hardware profile"), str(path))


@lru_cache
def _index() -> dict[str, str]:
    """Name and alias -> file stem, read from the first lines of each file so that one look-up
    parses one file."""
    index: dict[str, str] = {}
    for path in sorted(FOLDER.glob("*.toml")):
        index[path.stem] = path.stem
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("aliases"):
                for alias in tomllib.loads(line)["aliases"]:
                    assert alias not in index, (
                        f"alias {alias} of {path.stem} is taken by {index[alias]}"
                    )
                    index[alias] = path.stem
            if line.startswith("["):
                break
    return index


def names() -> list[str]:
    """The shipped targets' names, without aliases."""
    return sorted(set(_index().values()))


def _bare(name: str) -> str:
    """A name without what people write differently: ``"RTX_4090"`` -> ``"rtx4090"``."""
    return re.sub(r"[-_ ]", "", name.lower())


@lru_cache
def _bare_index() -> dict[str, str]:
    """Bare name or alias -> file stem; no two targets share one."""
    found: dict[str, str] = {}
    for name, stem in _index().items():
        assert found.setdefault(_bare(name), stem) == stem, f"{name} is also {found[_bare(name)]}"
    return found


@lru_cache
def load(name_or_path: str, also: tuple[str, ...] = ()) -> Profile:
    """A target by name or alias (``rtx4090`` is ``rtx-4090``), or by the path of a TOML file.

    ``also`` are words that the caller takes beside them, for the error.

    Raises:
        RequestError: no such target (the nearest is offered) or a file that is not a valid profile.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        return _read(Path(name_or_path))
    stem = _bare_index().get(_bare(name_or_path))
    if stem is None:
        error = unknown("hardware", name_or_path, (*_index(), *also))
        raise RequestError(
            f"{error}; or the path of a profile (.toml), as 'flurka-bench calibrate' writes it"
        )
    return _read(FOLDER / f"{stem}.toml")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(entry) for entry in value) + "]"
    escaped = "".join(
        f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c
        for c in str(value).replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'


def _number(value: float) -> str:
    """A figure as people write it: small counts as integers, large ones with an exponent of a
    multiple of three."""
    if value < 1e6:
        return f"{value:.12g}"
    exponent = 3 * int(math.log10(value) // 3)
    return f"{value / 10**exponent:.12g}e{exponent}"


def _figure_line(name: str, figure: Figure) -> str:
    note = f", note = {_toml_value(figure.note)}" if figure.note else ""
    unit, source = _toml_value(figure.unit), _toml_value(figure.source)
    key = _toml_value(name) if "." in name else name
    return f"{key} = {{ value = {_number(figure.value)}, unit = {unit}, source = {source}{note} }}"


def write_profile(profile: Profile) -> str:
    """The profile as TOML text; ``parse_profile`` reads back the same profile."""
    lines = [f"schema = {SCHEMA}"]
    for key in _WORDS:
        lines.append(f"{key} = {_toml_value(getattr(profile, key))}")
    lines.append(f"aliases = {_toml_value(profile.aliases)}")
    lines.append(f"device_names = {_toml_value(profile.device_names)}")
    lines += [
        "",
        "[sources]",
        *[f"{_toml_value(key)} = {_toml_value(text)}" for key, text in profile.sources.items()],
    ]
    lines += [
        "",
        "[datasheet]",
        *[_figure_line(name, figure) for name, figure in profile.datasheet.items()],
    ]
    lines += [
        "",
        "[datasheet.peak_flops]",
        *[_figure_line(name, figure) for name, figure in profile.peaks.items()],
    ]
    return "\n".join([*lines, *_measured_lines(profile)]) + "\n"


def write_calibration(profile: Profile) -> str:
    """The profile as TOML text: where one ships that differs in measured numbers alone, its name
    and these numbers; else the whole."""
    if profile.name in names():
        base = load(profile.name)
        if base.with_measured(profile.measured, profile.measured_about) == profile:
            lines = [f"schema = {SCHEMA}", f"base = {_toml_value(profile.name)}"]
            return "\n".join([*lines, *_measured_lines(profile)]) + "\n"
    return write_profile(profile)


def _measured_lines(profile: Profile) -> list[str]:
    """The tables of what was measured; none that is empty."""
    numbers = {
        name: value if isinstance(value, (list, tuple)) else float(value)
        for name, value in profile.measured.items()
    }
    lines: list[str] = []
    for title, table in (("measured", numbers), ("measured_about", profile.measured_about)):
        if table:
            own = [f"{_toml_value(key)} = {_toml_value(value)}" for key, value in table.items()]
            lines += ["", f"[{title}]", *own]
    return lines
