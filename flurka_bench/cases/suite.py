"""What to run: a suite file (TOML) becomes a list of cases.

A suite names values for *axes* (the fields of a case) and combines them::

    name = "example"
    description = "one line"
    # what speedups are shown against, where the paper's do not suffice
    baselines = ["full-sdpa", "low-rank-sdpa"]
    # cases for which any of these holds are left out
    exclude = ["rank > seq_len / 4"]

    [axes]              # shared by all blocks; a block's own value replaces a shared one
    mechanism = ["full-sdpa", "flurka-relu"]
    seq_len = {from = 1024, to = 8192, factor = 2}

    [[product]]         # every combination of its values, times the shared axes
    num_features = [32, 64]
    rank = [128, 256]

    [[zip]]             # its lists advance together, times the shared axes
    num_features = [16, 32]
    rank = [64, 128]

    [budget]            # see Budget
    time = "80s"

    [cuda]              # replaces keys of the above on that kind of device, table by table
    axes = {dtype = ["bfloat16"]}

Cases come out in canonical form (``registry.canonical``): impossible combinations fall away and
equal ones collapse, so full attention is one case and not one per rank. Files are data: expressions
are parsed and never evaluated as code.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.cases.expand import Axes, Expansion, combinations, expand
from flurka_bench.cases.registry import CHOICES, KNOBS, not_applicable
from flurka_bench.words.errors import RequestError, short, unknown
from flurka_bench.words.expression import Expression
from flurka_bench.words.sizes import dtype_name
from flurka_bench.words.toml import Reader, parse_toml, read_text
from flurka_bench.words.units import parse_bytes, parse_fraction, parse_seconds

SHIPPED = Path(__file__).parents[1] / "suites"
MAX_CASES = 10_000

FLAGS = ("share_kv", "share_heads")
AXES = tuple(field.name.rstrip("_") for field in fields(Case))
MAY_BE_ZERO = ("ffn_dim", "vocab_size")
_BLOCKS = ("product", "zip")
_OVERLAY_KEYS = ("axes", *_BLOCKS, "exclude", "budget", "baselines")
_KEYS = ("name", "description", "cpu", "cuda", *_OVERLAY_KEYS)


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
    blocks: tuple[Axes, ...]
    exclude: tuple[Expression, ...] = ()
    budget: Budget = Budget()
    baselines: tuple[str, ...] = ()

    def cases(self) -> list[Case]:
        """The cases in canonical form, each once, the competitors of a workload together, else in
        the order of the file.

        Raises RequestError if there is none or too many.
        """
        found = expand(
            *self.blocks, what=f"suite {self.name!r}", mend="shorten its axes",
            keep=self._is_kept, max_cases=MAX_CASES,
        )  # fmt: skip
        for block in self.blocks:
            self._check_ranks(block)
        self._check_possible(found)
        workloads: dict[tuple[Any, ...], list[Case]] = {}
        for case in found.cases:
            workloads.setdefault(case.workload_key, []).append(case)
        return [case for competitors in workloads.values() for case in competitors]

    def _is_kept(self, case: Case) -> bool:
        record = case.as_record()
        return not any(expression.holds(record) for expression in self.exclude)

    def _check_ranks(self, block: Axes) -> None:
        """Raise RequestError where every rank is larger than the seq_len it is combined with."""
        axes = {
            key: values
            for key, values in block.items()
            if {"mechanism", "rank", "seq_len"} & set(key if isinstance(key, tuple) else (key,))
        }
        pairs = [
            (wanted.rank, wanted.seq_len)
            for wanted in map(Case.of, combinations(axes))
            if registry.get(wanted.mechanism).compressed and wanted.rank is not None
        ]
        if pairs and all(rank > seq_len for rank, seq_len in pairs):
            rank, seq_len = min(pairs)
            raise RequestError(
                f"suite {self.name!r}: rank must be at most seq_len, and every rank is larger than"
                f" the seq_len it is combined with, as {rank} than {seq_len}"
            )

    def _check_possible(self, found: Expansion) -> None:
        """Raise RequestError where there is no case, or none of a mechanism that the suite
        names."""
        why: dict[str, str] = {}  # by mechanism, the first reason
        for wanted, error in found.impossible:
            why.setdefault(wanted.mechanism, _missing_axis(wanted) or _in_suite_words(str(error)))
        if not found.groups and not found.num_dropped:
            raise RequestError(
                f"suite {self.name!r} expands to no case: {next(iter(why.values()))}"
            )
        if not found.groups:
            raise RequestError(
                f"suite {self.name!r} expands to no case:"
                f" all {found.num_dropped} possible ones are excluded"
            )
        for name, reason in why.items():
            if name not in found.possible:
                raise RequestError(f"suite {self.name!r} expands to no case of {name}: {reason}")

    def idle_axes(self) -> list[str]:
        """The axes with a value that no mechanism of the suite has at any of its levels."""
        named: dict[str, None] = {}
        used: set[str] = set()
        plain = Case(mechanism="full-math")
        for block in self.blocks:
            axes = _singly(block)
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
    reader = Reader(parse_toml(text, f"suite {name!r}")).only(_KEYS)
    parsed = {kind: _overlay(reader, kind) for kind in ("cpu", "cuda")}  # both, whichever runs
    return Suite(
        name=suite_name(reader, name),
        description=reader.text("description", ""),
        text=text,
        device_kind=device_kind,
        **parsed[device_kind],
    )


def suite_name(reader: Reader, default: str) -> str:
    """What a suite's file calls it; it becomes the name of a folder."""
    name = reader.text("name", default)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise RequestError(
            f"a suite's name has up to 64 letters, digits, '-', '_' and '.', got {short(name)}"
        )
    return name


def _overlay(general: Reader, device_kind: str) -> dict[str, Any]:
    """The parts of a suite with the device kind's own table laid over the general ones."""
    own = general.reader(device_kind).only(_OVERLAY_KEYS)
    shared = _axes(own.reader("axes").over(general.reader("axes")))
    blocks = []
    for kind in _BLOCKS:
        for table in (own if any(key in own for key in _BLOCKS) else general).readers(kind):
            axes = _axes(table)
            rest = {axis: values for axis, values in shared.items() if axis not in axes}
            blocks.append((_zipped(axes) if kind == "zip" else axes) | rest)
    blocks = blocks or [shared]
    if not all("mechanism" in _singly(block) for block in blocks):
        raise RequestError("a suite must name its mechanisms (axes.mechanism)")
    whole = own.over(general)
    baselines = tuple(whole.texts("baselines"))
    for baseline in baselines:
        registry.get(baseline)
    return {
        "blocks": tuple(blocks),
        "exclude": tuple(Expression(entry, AXES) for entry in whole.texts("exclude")),
        "budget": _budget(own.reader("budget").over(general.reader("budget"))),
        "baselines": baselines,
    }


def _axes(table: Reader) -> dict[str, list[Any]]:
    """Each axis as its list of values."""
    table.only(AXES, "axis")
    axes = Reader(table.table, table.where, label="axis ")
    found: dict[str, list[Any]] = {}
    for axis in table.table:
        if axis == "dtype":
            found[axis] = [dtype_name(value) for value in axes.values(axis)]
            Reader(found).choices(axis, CHOICES[axis])
        elif axis in CHOICES:
            found[axis] = axes.choices(axis, CHOICES[axis])
        elif axis in FLAGS:
            found[axis] = axes.flags(axis)
        else:
            found[axis] = axes.counts(axis, least=0 if axis in MAY_BE_ZERO else 1)
    return found


def _zipped(axes: dict[str, list[Any]]) -> dict[str | tuple[str, ...], list[Any]]:
    """Lists that advance together, as one axis; a single value goes with all."""
    lengths = {axis: len(values) for axis, values in axes.items() if len(values) > 1}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"the lists of a [[zip]] must be equally long, got {lengths}")
    length = max(lengths.values(), default=1)
    rows = [values if len(values) > 1 else values * length for values in axes.values()]
    return {tuple(axes): list(zip(*rows, strict=True))} if axes else {}


def _singly(block: Axes) -> dict[str, list[Any]]:
    """A block's axes with the values of each."""
    found: dict[str, list[Any]] = {}
    for key, values in block.items():
        if isinstance(key, str):
            found[key] = list(values)
        else:
            found |= {axis: list(each) for axis, each in zip(key, zip(*values, strict=True))}
    return found


def _budget(table: Reader) -> Budget:
    parsers: dict[str, tuple[str, Callable[[Any, str], float]]] = {
        "time": ("time_s", parse_seconds),
        "case_time": ("case_time_s", parse_seconds),
        "timeout": ("timeout_s", parse_seconds),
        "memory": ("memory_bytes", parse_bytes),
        "target": ("target", parse_fraction),
    }
    table.only(parsers)
    found: dict[str, Any] = {}
    for key, value in table.table.items():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise RequestError(
                f"budget {key} takes a quantity like '80s' or '8GB', got {short(value)}"
            )
        field, parse = parsers[key]
        found[field] = parse(value, f"budget {key}")
    return Budget(**found)
