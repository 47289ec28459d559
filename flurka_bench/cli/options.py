"""The options of the command line: each name has one type, one help and one default, for all verbs.

A verb writes ``seq_len: SeqLens`` and gets what was parsed, the default included. Where a verb has
to differ in the default it says so: ``Annotated[Sizes | None, declared("--seq-len", default=None,
shown="the suite's")]``; tests/test_requests.py lists those with the reason.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from flurka_bench.words.errors import RequestError, unknown
from flurka_bench.words.sizes import (
    BACKENDS,
    DTYPES,
    LARGEST_SIZE,
    LEVELS,
    ORDERS,
    PASSES,
    SIZES,
    dtype_name,
)
from flurka_bench.words.units import (
    SIZE_FORM,
    parse_bytes,
    parse_fraction,
    parse_seconds,
    parse_size,
)

T = TypeVar("T")


class Names(tuple[str, ...]):
    """Words of a comma list. A class of its own, because typer reads a plain tuple as several
    arguments."""

    def __str__(self) -> str:
        return ",".join(self)


class Sizes(tuple[int, ...]):
    """Sizes of a comma list, as whole numbers."""

    def __str__(self) -> str:
        return ",".join(map(str, self))


def one(values: Sequence[T], flag: str) -> T:
    """The single value of an option that elsewhere takes several. RequestError for more."""
    if len(values) != 1:
        raise RequestError(f"{flag} takes one value here, got {','.join(map(str, values))}")
    return values[0]


# The pictures that plot draws.
KINDS = (
    "heatmap", "scaling", "predicted", "crossover", "roofline", "stages", "pareto", "error",
    "memory", "devices",
)  # fmt: skip


FORMATS = ("csv", "parquet", "json", "markdown")  # that export writes


# Types: each turns the text of an option into its value, or raises a RequestError with the flag


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A type of option: its word in the help, and what parses ``(text, flag)``."""

    word: str
    parse: Callable[[str, str], Any]


def _entries(text: str, flag: str) -> list[str]:
    entries = [entry.strip() for entry in text.split(",")]
    if not all(entries):
        raise RequestError(f"{flag} takes one value or a comma list without gaps, got {text!r}")
    return entries


def _size(text: str, flag: str) -> int:
    value = parse_size(text, flag)
    if value > LARGEST_SIZE:
        raise RequestError(f"{flag} must be at most 2^40, got {text!r}")
    return value


def _choice(text: str, flag: str, accepted: Iterable[str]) -> str:
    if text not in (names := tuple(accepted)):
        raise unknown(flag, text, names)
    return text


def choice(*accepted: str) -> Kind:
    """One of a few words."""
    return Kind(word="NAME", parse=lambda text, flag: _choice(text, flag, accepted))


def choices(*accepted: str) -> Kind:
    """A comma list of a few words."""

    def parse(text: str, flag: str) -> Names:
        return Names(_choice(entry, flag, accepted) for entry in _entries(text, flag))

    return Kind(word="NAMES", parse=parse)


def _mechanisms(text: str, flag: str) -> Names:
    from flurka_bench.cases.registry import MECHANISMS

    return Names(_choice(entry, flag, MECHANISMS) for entry in _entries(text, flag))


def _dtypes(text: str, flag: str) -> Names:
    return Names(_choice(dtype_name(entry), flag, DTYPES) for entry in _entries(text, flag))


NAME = Kind(word="NAME", parse=lambda text, flag: text)
NAMES = Kind(word="NAMES", parse=lambda text, flag: Names(_entries(text, flag)))
SIZE = Kind(word="SIZE", parse=_size)
SIZE_LIST = Kind(
    word="SIZES",
    parse=lambda text, flag: Sizes(_size(entry, flag) for entry in _entries(text, flag)),
)
SECONDS = Kind(word="SECONDS", parse=parse_seconds)
BYTES = Kind(word="BYTES", parse=parse_bytes)
CONDITION = Kind(word="EXPRESSION", parse=lambda text, flag: text)
FRACTION = Kind(word="FRACTION", parse=parse_fraction)
DTYPE_LIST = Kind(word="NAMES", parse=_dtypes)
MECHANISM_LIST = Kind(word="NAMES", parse=_mechanisms)

# Declarations

_SECONDS = "a number with a unit: ns, us, ms, s, min or h"
_BYTES = "a number with a unit: B, kB, MB, GB, TB, or KiB to TiB"
HARDWARE_HELP = (
    "names or aliases, profile files (.toml), folders of runs, or cpu for this machine's CPU"
)
OWN = "this machine's device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """An option: type, help without the default, the default as one would write it (None: there
    is no value), and how the help names a default that cannot be written."""

    kind: Kind
    help: str
    default: str | None = None
    shown: str | None = None


DECLARED = {
    "--hardware": Declaration(kind=NAMES, help=f"Targets: {HARDWARE_HELP}.", shown=OWN),
    "--mechanism": Declaration(kind=MECHANISM_LIST, help="Mechanisms.", shown="all ten"),
    "--level": Declaration(kind=choices(*LEVELS), help="core, layer or model.", default="layer"),
    "--pass": Declaration(kind=choices(*PASSES), help="forward or train.", default="forward"),
    "--backend": Declaration(
        kind=choices(*BACKENDS), help="eager, compiled or fused.", default="eager"
    ),
    "--order": Declaration(
        kind=choices(*ORDERS, "best"),
        help="At levels layer and model: project_first, compress_first, absorbed, or best, the"
        " fastest that the mechanism has.",
        default="best",
    ),
    "--batch": Declaration(kind=SIZE_LIST, help="Batch sizes b.", default="1"),
    "--num-heads": Declaration(kind=SIZE_LIST, help="Numbers of heads h.", default="8"),
    "--seq-len": Declaration(
        kind=SIZE_LIST, help=f"Sequence lengths N. k = 1024: {SIZE_FORM}.", default="4096"
    ),
    "--head-dim": Declaration(kind=SIZE_LIST, help="Widths d of a head.", default="64"),
    "--model-dim": Declaration(kind=SIZE_LIST, help="Widths D of the layer.", default="1024"),
    "--rank": Declaration(
        kind=SIZE_LIST,
        help="Ranks k: rows that low-rank and flurka forms compress keys and values to.",
        default="256",
    ),
    "--num-features": Declaration(
        kind=SIZE_LIST,
        help="Feature counts m: widths of the feature map. The elu forms have head_dim features.",
        default="64",
    ),
    "--dtype": Declaration(
        kind=DTYPE_LIST,
        help="float32 (fp32, float), bfloat16 (bf16), float16 (fp16, half) or float64 (double).",
        shown="what the target's matrix units take",
    ),
    "--launch": Declaration(
        kind=choice("eager", "graph", "none"),
        help="eager (the host dispatches), graph, or none (device time alone).",
        default="eager",
    ),
    "--cache": Declaration(
        kind=choice("auto", "cold", "warm"),
        help="cold (flushed before each call), warm (the case runs again and again), or auto: cold"
        " on a GPU, warm on a CPU.",
        default="auto",
    ),
    "--device": Declaration(
        kind=NAME, help="auto, cpu, cuda (or gpu) or cuda:N.", default="auto"
    ),
    "--budget": Declaration(
        kind=SECONDS, help=f"Time to measure for, like 80s: {_SECONDS}.", shown="the suite's"
    ),
    "--only": Declaration(
        kind=CONDITION,
        help="Keep the cases for which this holds, like \"rank <= 128 and order == 'absorbed'\"; no"
        " comparison with a knob that a case lacks holds.",
    ),
    "--memory-limit": Declaration(
        kind=BYTES, help=f"Most host memory the worker may take, like 8GB: {_BYTES}."
    ),
    "--subject": Declaration(
        kind=NAME, help="Whose speedup: flurka (the fastest of them) or a mechanism.",
        default="flurka",
    ),
    "--baseline": Declaration(
        kind=NAMES, help="Over whom: best-other, strong-…, paper-… or mechanisms.",
        default="best-other",
    ),
    "--x": Declaration(
        kind=choice(*SIZES), help="Axis across the map.", shown="the one with most values"
    ),
    "--y": Declaration(
        kind=choice(*SIZES), help="Axis up the map.", shown="the one with most values but --x"
    ),
    "--format": Declaration(
        kind=choice(*FORMATS), help="csv, parquet, json or markdown.",
        shown="what --out ends in, else csv",
    ),
    "--kind": Declaration(
        kind=choices("all", *KINDS), help=f"all, or some of {', '.join(KINDS)}.", default="all"
    ),
    "--min-rank": Declaration(kind=SIZE, help="Floor for the rank k."),
    "--min-features": Declaration(
        kind=SIZE, help="Floor for the feature count m (elu has as many as a head is wide)."
    ),
    "--max-memory": Declaration(kind=BYTES, help=f"Most peak memory, like 40GB: {_BYTES}."),
    "--max-latency": Declaration(
        kind=SECONDS, help=f"Most time of one pass, like 2ms: {_SECONDS}."
    ),
    "--top": Declaration(kind=SIZE, help="How many to list.", default="10"),
    "--inputs": Declaration(
        kind=NAMES, help="Families of inputs (quality show: or labels).", shown="all there are"
    ),
    "--pair": Declaration(
        kind=NAMES, help="With --flops: two mechanisms X,Y.", shown="all FLuRKA pairs"
    ),
    "--fail": Declaration(
        kind=FRACTION,
        help="Exit 1 if a case of B is slower by more than this, e.g. 5%, or if no case can be"
        " compared.",
    ),
}  # fmt: skip


class _RefusedValue(typer.BadParameter):
    """A value that an option does not take, in words that name the option already."""

    def format_message(self) -> str:
        return str(self.message)


def declared(flag: str, **changes: str | None) -> Any:
    """The option of that name for a verb; ``default`` and ``shown`` may differ there."""
    found = DECLARED[flag]
    default = changes.get("default", found.default)
    shown = changes.get("shown", default if "default" in changes else found.shown or default)

    def parse(value: Any) -> Any:
        if not isinstance(value, str):  # a default, which is parsed already
            return value
        try:
            return found.kind.parse(value, flag)
        except RequestError as error:
            raise _RefusedValue(str(error)) from None

    return typer.Option(
        flag,
        parser=parse,
        metavar=found.kind.word,
        default_factory=lambda: default if default is None else parse(default),
        show_default=False,
        help=found.help if shown is None else f"{found.help} [default: {shown}]",
    )


def flag(name: str, help_: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help_, default_factory=bool, show_default=False)


def plain(name: str, help_: str, *, default: int | None = None, least: int | None = None) -> Any:
    """An option of a type that typer itself reads: a path, a number, a text."""
    return typer.Option(
        name,
        help=help_ if default is None else f"{help_} [default: {default}]",
        default_factory=lambda: default,
        show_default=False,
        min=least,
    )


Hardware = Annotated[Names | None, declared("--hardware")]
Mechanisms = Annotated[Names | None, declared("--mechanism")]
Levels = Annotated[Names, declared("--level")]
Passes = Annotated[Names, declared("--pass")]
Backends = Annotated[Names, declared("--backend")]
Orders = Annotated[Names, declared("--order")]
Batches = Annotated[Sizes, declared("--batch")]
NumHeads = Annotated[Sizes, declared("--num-heads")]
SeqLens = Annotated[Sizes, declared("--seq-len")]
HeadDims = Annotated[Sizes, declared("--head-dim")]
ModelDims = Annotated[Sizes, declared("--model-dim")]
Ranks = Annotated[Sizes, declared("--rank")]
NumFeatures = Annotated[Sizes, declared("--num-features")]
Dtypes = Annotated[Names | None, declared("--dtype")]
Budget = Annotated[float | None, declared("--budget")]
Launch = Annotated[str, declared("--launch")]
Device = Annotated[str, declared("--device")]
Subject = Annotated[str, declared("--subject")]
AxisAcross = Annotated[str | None, declared("--x")]
AxisUp = Annotated[str | None, declared("--y")]
Inputs = Annotated[Names | None, declared("--inputs")]
Json = Annotated[bool, flag("--json", "Print JSON instead of text.")]
All = Annotated[bool, flag("--all", "Print everything, not only what comes first.")]
DryRun = Annotated[bool, flag("--dry-run", "Print the cases and measure nothing.")]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")]


# Which options were given


def given(context: typer.Context) -> dict[str, Any]:
    """The options that the command line gives, by flag, with their values: no defaults."""
    found: dict[str, Any] = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        flags = [each for each in parameter.opts if each.startswith("--")]
        if flags and source is not None and source.name != "DEFAULT":
            found[flags[0]] = context.params[name]
    return found


def refuse(context: typer.Context, flags: Iterable[str], why: str) -> None:
    """Raise RequestError where one of these options is given though nothing would read it.

    ``why`` goes on after "does not apply", as in " to --flops: ...".
    """
    named = [each for each in flags if each in given(context)]
    if named:
        does = "does" if len(named) == 1 else "do"
        raise RequestError(f"{', '.join(named)} {does} not apply{why}")


def flag_of(field: str) -> str:
    """``"num_features"`` -> ``"--num-features"``."""
    return f"--{field.replace('_', '-')}"


# The fields of a case that options give, in the order in which predictions and tables have them.
AXES = (
    "mechanism", "level", "pass", "backend", "order", "dtype", "batch", "num_heads", "seq_len",
    "head_dim", "rank", "num_features",
)  # fmt: skip


def axes(context: typer.Context) -> dict[str, Sequence[Any]]:
    """The values of each axis that a verb's options name, defaults included; the dtype's is None
    where the target decides."""
    from flurka_bench.cases.registry import MECHANISMS

    return {
        name: context.params["pass_" if name == "pass" else name]
        or (tuple(MECHANISMS) if name == "mechanism" else ())
        for name in AXES
    }
