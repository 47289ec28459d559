"""What to run: a suite file (TOML) becomes a list of cases.

A suite names values for *axes* (the fields of a case) and combines them::

    name = "example"
    description = "one line"
    baselines = ["full-sdpa", "low-rank-sdpa"]  # what speedups are shown against, where the paper's
    do not suffice
    exclude = ["rank > seq_len / 4"]            # cases for which any of these holds are left out

    [axes]                                      # shared by all blocks; a block's own value replaces
    a shared one mechanism = ["full-sdpa", "flurka-relu"] seq_len = {from = 1024, to = 8192, factor
    = 2}

    [[product]]                                 # every combination of its values, times the shared
    axes num_features = [32, 64] rank = [128, 256]

    [[zip]]                                     # its lists advance together, times the shared axes
    num_features = [16, 32]
    rank = [64, 128]

    [budget]                                    # see Budget
    time = "80s"

    [cuda]                                      # replaces keys of the above on that kind of device,
    table by table axes = {dtype = ["bfloat16"]}

Cases come out in canonical form (``registry.canonical``): impossible combinations fall away and
equal ones collapse, so full attention is one case and not one per rank. Files are data: expressions
are parsed and never evaluated as code.
"""

import math
import re
from collections.abc import Iterator, Sized
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import (
    KNOBS,
    not_applicable,
)
from flurka_bench.words import sizes
from flurka_bench.words.errors import (
    RequestError,
    unknown,
)
from flurka_bench.words.expression import Expression
from flurka_bench.words.sizes import (
    LARGEST_SIZE,
    check_combinations,
    dtype_name,
)
from flurka_bench.words.toml import (
    parse_toml,
    read_text,
)
from flurka_bench.words.units import (
    parse_bytes,
    parse_fraction,
    parse_seconds,
    parse_size,
)

SHIPPED = Path(__file__).parents[1] / "suites"
MAX_CASES = 10_000

CHOICES = {"mechanism": tuple(registry.MECHANISMS), **sizes.CHOICES}
FLAGS = ("share_kv", "share_heads")
AXES = tuple(field.name.rstrip("_") for field in fields(Case))
_BLOCKS = ("product", "zip")
_KEYS = (
    "name",
    "description",
    "axes",
    "product",
    "zip",
    "exclude",
    "budget",
    "baselines",
    "cpu",
    "cuda",
)
_OVERLAY_KEYS = ("axes", "product", "zip", "exclude", "budget", "baselines")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much a run may take.

    ``time_s`` is shared out over the workloads and bounds the repetitions (None: as many as the
    target interval asks for); ``case_time_s`` bounds one case's; ``timeout_s`` is how long a single
    call may hang before its process is killed; ``memory_bytes`` is the most a case may need (None:
    what the device has); ``target`` is the width of a speedup's interval, relative to the speedup,
    at which sampling ends.
    """

    time_s: float | None = None
    case_time_s: float = 10.0
    timeout_s: float = 300.0
    memory_bytes: int | None = None
    target: float = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A suite for one kind of device: what its file says, and the cases that follow."""

    name: str
    description: str
    text: str  # the file as written, recorded with every run
    device_kind: str
    blocks: tuple[
        dict[str, Any], ...
    ]  # {"combine": "product" | "zip", "shared": axes, "own": axes}
    exclude: tuple[Expression, ...] = ()
    budget: Budget = Budget()
    baselines: tuple[str, ...] = ()

    def cases(self) -> list[Case]:
        """The cases in canonical form, each once, the competitors of a workload together, else in
        the order of the file.

        Raises RequestError if there is none or too many.
        """
        check_combinations(
            f"suite {self.name!r}", *map(_lists, self.blocks), mend="shorten its axes"
        )
        found: dict[Case, None] = {}
        impossible: dict[str, str] = {}  # by mechanism, the first reason
        possible: set[str] = set()
        num_excluded = 0
        for block in self.blocks:
            ranks: list[tuple[int, int]] = []  # with the seq_len each is combined with
            for values in _combinations(block):
                wanted = Case(
                    **{("pass_" if key == "pass" else key): value for key, value in values.items()}
                )
                if registry.MECHANISMS[wanted.mechanism].compressed and wanted.rank is not None:
                    ranks.append((wanted.rank, wanted.seq_len))
                try:
                    case = registry.canonical(wanted)
                except RequestError as error:
                    why = _missing_axis(wanted) or _in_suite_words(str(error))
                    impossible.setdefault(wanted.mechanism, why)
                    continue
                possible.add(case.mechanism)
                if case in found:
                    continue
                record = case.as_record()
                if any(expression.holds(record) for expression in self.exclude):
                    num_excluded += 1
                    continue
                found[case] = None
                if len(found) > MAX_CASES:  # no need to see how many more
                    raise RequestError(
                        f"suite {self.name!r} expands to more than {MAX_CASES} cases"
                        " (shorten its axes)"
                    )
            if ranks and all(rank > seq_len for rank, seq_len in ranks):
                rank, seq_len = min(ranks)
                raise RequestError(
                    f"suite {self.name!r}: rank must be at most seq_len, and every rank is larger than the seq_len it is combined"
                    f" with, as {rank} than {seq_len}"
                )
        lacking = [name for name in impossible if name not in possible]
        if not found:
            why = (
                f"all {num_excluded} possible ones are excluded"
                if num_excluded
                else next(iter(impossible.values()))
            )
            raise RequestError(f"suite {self.name!r} expands to no case: {why}")
        if lacking:
            raise RequestError(
                f"suite {self.name!r} expands to no case of {lacking[0]}: {impossible[lacking[0]]}"
            )
        workloads: dict[tuple, list[Case]] = {}
        for case in found:
            workloads.setdefault(case.workload_key, []).append(case)
        return [case for competitors in workloads.values() for case in competitors]

    def idle_axes(self) -> list[str]:
        """The axes with a value that no mechanism of the suite has at any of its levels."""
        named: dict[str, None] = {}
        used: set[str] = set()
        plain = Case(mechanism="full-math")
        for block in self.blocks:
            axes = block["shared"] | block["own"]
            widths = dict.fromkeys(axes.get("head_dim", [plain.head_dim]))
            forms = [
                Case(mechanism=mechanism, level=level)
                for mechanism in axes["mechanism"]
                for level in axes.get("level", [plain.level])
            ]
            for axis, values in axes.items():
                named[axis] = None
                for form, value in product(forms, values):
                    if axis in used or axis not in KNOBS:
                        used.add(axis)
                        break
                    width = value if value in widths else next(iter(widths))
                    if axis not in not_applicable(form.replace(head_dim=width, **{axis: value})):
                        used.add(axis)
        return [axis for axis in named if axis not in used]


def _missing_axis(wanted: Case) -> str | None:
    """The axis that a suite lacks, in words, where that is why a case is impossible."""
    cell = registry.MECHANISMS[wanted.mechanism]
    for axis, needs in (("rank", cell.compressed), ("num_features", cell.uses_features)):
        if needs and getattr(wanted, axis) is None:
            return (
                f"{cell.name} needs the axis {axis}; give it in [axes] or beside the mechanism, as"
                f" {axis} = [64]"
            )
    return None


def _in_suite_words(message: str) -> str:
    """An error in the words of a suite file: its axes in place of the command's options."""
    return re.sub(
        r"--([a-z][a-z-]*)", lambda option: f"axis {option[1].replace('-', '_')}", message
    )


def shipped_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_suite(name_or_path: str | Path, device_kind: str = "cpu") -> Suite:
    """The suite of that name or file, for ``device_kind`` "cpu" or "cuda".

    Raises RequestError for an unknown name, a file that cannot be read, malformed TOML (with line
    and column), and unknown keys, mechanisms and values.
    """
    name = str(name_or_path)
    path = Path(name)
    if name in shipped_suites():
        path = SHIPPED / f"{name}.toml"
    elif not path.is_file():
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise RequestError(
                f"no suite file at {name!r}; shipped suites: {', '.join(shipped_suites())}"
            )
        raise unknown("suite", name, shipped_suites())
    text = read_text(path, "suite file")
    return parse_suite(text, device_kind=device_kind, name=path.stem)


def parse_suite(text: str, *, device_kind: str = "cpu", name: str = "suite") -> Suite:
    """A suite from the text of its file; ``name`` serves where the text gives none. Raises
    RequestError as load_suite does."""
    data = parse_toml(text, f"suite {name!r}")
    _check_keys(data, _KEYS, "key")
    name = _text(data.get("name", name), "name")
    if not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name
    ):  # it becomes the name of a folder
        raise RequestError(
            f"a suite's name has up to 64 letters, digits, '-', '_' and '.', got {_short(name)}"
        )
    parsed = {
        kind: _overlay(data, kind) for kind in ("cpu", "cuda")
    }  # both are checked, whichever runs
    blocks, exclude, budget, baselines = parsed[device_kind]
    return Suite(
        name=name,
        description=_text(data.get("description", ""), "description"),
        text=text,
        device_kind=device_kind,
        blocks=blocks,
        exclude=exclude,
        budget=budget,
        baselines=baselines,
    )


def _overlay(
    data: dict[str, Any], device_kind: str
) -> tuple[tuple[dict[str, Any], ...], tuple[Expression, ...], Budget, tuple]:
    """The parts of a suite with the device kind's own table laid over the general ones."""
    own = _table(data, device_kind)
    _check_keys(own, _OVERLAY_KEYS, f"key in [{device_kind}]")
    axes = _parse_axes(_table(data, "axes") | _table(own, "axes"), "[axes]")
    source = own if any(kind in own for kind in _BLOCKS) else data
    blocks = [
        {"combine": kind, "shared": axes, "own": _parse_axes(block, f"[[{kind}]]")}
        for kind in _BLOCKS
        for block in _list(source, kind, dict)
    ]
    for block in blocks:
        lengths = {axis: len(values) for axis, values in block["own"].items() if len(values) > 1}
        if block["combine"] == "zip" and len(set(lengths.values())) > 1:
            raise RequestError(f"the lists of a [[zip]] must be equally long, got {lengths}")
        if not {"mechanism"} <= block["own"].keys() | axes.keys():
            raise RequestError("a suite must name its mechanisms (axes.mechanism)")
    if not blocks:
        if "mechanism" not in axes:
            raise RequestError("a suite must name its mechanisms (axes.mechanism)")
        blocks = [{"combine": "product", "shared": axes, "own": {}}]
    expressions = tuple(
        Expression(entry, AXES)
        for entry in _list(own if "exclude" in own else data, "exclude", str)
    )
    baselines = _list(own if "baselines" in own else data, "baselines", str)
    for baseline in baselines:
        registry.get(baseline)
    return (
        tuple(blocks),
        expressions,
        _parse_budget(_table(data, "budget") | _table(own, "budget")),
        tuple(baselines),
    )


def _parse_axes(table: dict[str, Any], where: str) -> dict[str, list[Any]]:
    _check_keys(table, AXES, f"axis in {where}")
    return {axis: _parse_axis(axis, values) for axis, values in table.items()}


def _parse_axis(axis: str, values: Any) -> list[Any]:
    """One axis as its list of values: a single value, a list, or a geometric range of sizes."""
    if axis in CHOICES:
        entries = values if isinstance(values, list) else [values]
        if axis == "dtype":
            entries = [dtype_name(entry) for entry in entries]
        for entry in entries:
            if entry not in CHOICES[axis]:
                raise unknown(axis, entry, CHOICES[axis])
    elif axis in FLAGS:
        entries = values if isinstance(values, list) else [values]
        if not all(isinstance(entry, bool) for entry in entries):
            raise RequestError(f"axis {axis} takes true and false, got {values!r}")
    else:
        entries = (
            _geometric(axis, values)
            if isinstance(values, dict)
            else values
            if isinstance(values, list)
            else [values]
        )
        entries = [_size(axis, entry) for entry in entries]
        least = 0 if axis in ("ffn_dim", "vocab_size") else 1
        for entry in entries:
            if (
                isinstance(entry, bool)
                or not isinstance(entry, int)
                or not least <= entry <= LARGEST_SIZE
            ):
                raise RequestError(
                    f"axis {axis} takes whole numbers from {least} to 2^40, got {_short(entry)}"
                )
    if not entries:
        raise RequestError(f"axis {axis} has no values")
    return entries


def _size(axis: str, entry: Any) -> Any:
    """``"16k"`` as the number it is; what is no text stays."""
    return parse_size(entry, f"axis {axis}") if isinstance(entry, str) else entry


def _geometric(axis: str, table: dict[str, Any]) -> list[int]:
    """``{from, to, factor}`` or ``{from, to, num}`` -> sizes from ``from`` to at most ``to``,
    rounded, each once."""
    _check_keys(table, ("from", "to", "factor", "num"), f"key in the range of {axis}")
    form = f"axis {axis}: a range is {{from, to, factor}} or {{from, to, num}}"
    if not {"from", "to"} <= table.keys() or ("factor" in table) == ("num" in table):
        raise RequestError(f"{form}, got {_short(table)}")
    first, last, factor, num = (table.get(key) for key in ("from", "to", "factor", "num"))
    first, last = _size(axis, first), _size(axis, last)
    for size in (first, last):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE:
            raise RequestError(f"{form} with whole numbers from 1 to 2^40, got {_short(table)}")
    if last < first:
        raise RequestError(f"{form} with 'to' at least 'from', got {_short(table)}")
    if num is not None:
        if isinstance(num, bool) or not isinstance(num, int) or not 2 <= num <= MAX_CASES:
            raise RequestError(f"{form} with num from 2 to {MAX_CASES}, got {_short(table)}")
        values = [round(first * (last / first) ** (step / (num - 1))) for step in range(num)]
    else:
        if (
            isinstance(factor, bool)
            or not isinstance(factor, int | float)
            or not 1.001 <= factor <= LARGEST_SIZE
        ):
            raise RequestError(f"{form} with a factor of at least 1.001, got {_short(table)}")
        steps = math.floor(math.log(last / first) / math.log(factor) + 1e-9)
        values = [round(first * factor**step) for step in range(steps + 1)]
    return list(dict.fromkeys(values))


def _parse_budget(table: dict[str, Any]) -> Budget:
    keys = ("time", "case_time", "timeout", "memory", "target")
    _check_keys(table, keys, "key in [budget]")
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RequestError(
                f"budget {key} takes a quantity like '80s' or '8GB', got {_short(value)}"
            )
    seconds = {
        f"{key}_s": parse_seconds(table[key], f"budget {key}")
        for key in ("time", "case_time", "timeout")
        if key in table
    }
    memory = (
        {"memory_bytes": parse_bytes(table["memory"], "budget memory")} if "memory" in table else {}
    )
    target = (
        {"target": parse_fraction(table["target"], "budget target")} if "target" in table else {}
    )
    return Budget(**seconds, **memory, **target)


def _lists(block: dict[str, Any]) -> list[Sized]:
    """What a block combines each with each: its axes' values, those of a [[zip]] as one."""
    own = list(block["own"].values())
    if block["combine"] == "zip":
        own = [max(own, key=len)] if own else []
    return own + [values for axis, values in block["shared"].items() if axis not in block["own"]]


def _combinations(block: dict[str, Any]) -> Iterator[dict[str, Any]]:
    own = block["own"]
    shared = {axis: values for axis, values in block["shared"].items() if axis not in own}
    if block["combine"] == "zip":
        length = max((len(values) for values in own.values()), default=1)
        rows = list(
            zip(*[values * length if len(values) == 1 else values for values in own.values()])
        ) or [()]
    else:
        rows = product(*own.values())
    for row in rows:
        for values in product(*shared.values()):
            yield dict(zip(shared, values)) | dict(zip(own, row))


def _check_keys(table: dict[str, Any], accepted: tuple[str, ...], what: str) -> None:
    for key in table:
        if key not in accepted:
            raise unknown(what, key, accepted)


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key, {})
    if not isinstance(value, dict):
        raise RequestError(f"{key} must be a table, got {_short(value)}")
    return value


def _list(data: dict[str, Any], key: str, kind: type) -> list[Any]:
    value = data.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, kind) for entry in value):
        raise RequestError(
            f"{key} must be a list of {'tables' if kind is dict else 'texts'}, got {_short(value)}"
        )
    return value


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{key} must be a text, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
