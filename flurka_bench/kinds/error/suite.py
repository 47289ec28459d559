"""What an error run measures: a suite file with ``kind = "error"`` becomes inputs and
configurations.

::

    kind = "error"
    description = "one line"
    seeds = 3               # inputs per family, none of which trained anything
    training_inputs = 8     # other inputs of the family, for the learned projection; at least 3
    spectral = true         # the spectral norm costs about as much as everything else together

    [[inputs]]              # a family with its parameters; see ``kinds.error.inputs``
    family = "gaussian"
    scale = 1.0
    seq_len = [512]
    head_dim = [64]         # the trained family has its model's head_dim and num_heads
    num_heads = 2

    [[mechanisms]]          # every combination; impossible ones (rank > seq_len) fall away
    mechanism = ["low-rank", "flurka-relu"]
    projection = ["mean-pool", "learned"]
    rank = [32, 128]
    num_features = [64]
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flurka_bench.cases import registry
from flurka_bench.cases.expand import combinations, distinct
from flurka_bench.cases.suite import suite_name
from flurka_bench.kinds.error import projections
from flurka_bench.words.errors import RequestError, unknown
from flurka_bench.words.sizes import check_combinations
from flurka_bench.words.toml import Reader, parse_toml, read_text

# beside the code that reads them: `flurka-bench run` has its own
SHIPPED = Path(__file__).parent / "suites"
# Softmax in one kernel gives the same numbers, and full attention is what errors are measured against.
MECHANISMS = tuple(
    name
    for name, cell in registry.MECHANISMS.items()
    if cell.family != "full" and cell.similarity != "sdpa"
)
_KEYS = (
    "kind",
    "name",
    "description",
    "seeds",
    "training_inputs",
    "spectral",
    "inputs",
    "mechanisms",
)
MAX_TRAINING_INPUTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A mechanism with its knobs; ``projection`` is how E and F are chosen, None where nothing is
    compressed."""

    mechanism: str
    rank: int | None = None
    num_features: int | None = None
    projection: str | None = None
    share_kv: bool = False

    def __post_init__(self) -> None:
        if self.mechanism not in MECHANISMS:
            if registry.is_exact(self.mechanism):
                raise RequestError(
                    f"{self.mechanism} is what errors are measured against; accepted: {', '.join(MECHANISMS)}"
                )
            raise unknown("mechanism", self.mechanism, MECHANISMS)

    def canonical(self, seq_len: int, head_dim: int) -> "Configuration":
        """Knobs that do not apply dropped. Raises RequestError for what cannot be computed at this
        size."""
        cell = registry.get(self.mechanism)
        changes: dict[str, Any] = {}
        if not cell.compressed:
            changes |= {"rank": None, "projection": None, "share_kv": False}
        else:
            if self.rank is None or self.projection is None:
                raise RequestError(
                    f"{self.mechanism} needs rank and projection in its [[mechanisms]] table"
                )
            projections.check(self.projection, self.rank, seq_len)
            if self.projection == "optimal" and cell.is_kernel:
                raise RequestError(
                    "projection 'optimal' is the limit of every mechanism and belongs to mechanism low-rank alone"
                )
            changes["share_kv"] = self.projection in projections.FIXED or (
                self.share_kv and self.projection in ("gaussian", "orthonormal")
            )
        if cell.uses_features and self.num_features is None:
            raise RequestError(f"{self.mechanism} needs num_features in its [[mechanisms]] table")
        if not cell.uses_features:
            changes["num_features"] = head_dim if cell.is_kernel else None
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A family with its parameters, and the sizes at which it is drawn (None: the trained model's
    own)."""

    family: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seq_len: tuple[int, ...]
    head_dim: tuple[int | None, ...]
    num_heads: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSuite:
    """An error suite as read; ``text`` is recorded with the run, and a run resumes only under the
    same text."""

    name: str
    description: str
    text: str
    seeds: int
    training_inputs: int
    spectral: bool
    inputs: tuple[Inputs, ...]
    configurations: tuple[Configuration, ...]

    def check_size(self) -> None:
        """Raise RequestError where the suite asks for more cases than can be meant, before any is
        made. A trained encoder's layers come on top."""
        seeds = range(self.seeds)
        check_combinations(
            f"error suite {self.name!r}",
            *([item.seq_len, item.head_dim, seeds, self.configurations] for item in self.inputs),
            mend="shorten its lists, or fewer seeds",
        )
        check_combinations(
            f"error suite {self.name!r}: training_inputs", [range(self.training_inputs)],
            mend="fewer", limit=MAX_TRAINING_INPUTS,
        )  # fmt: skip

    def override(self, **changes: Any) -> "ErrorSuite":
        """The suite with command-line options laid over it.

        ``inputs`` and ``mechanism`` (lists of names) choose among the suite's; ``rank``,
        ``num_features`` and ``seq_len`` (lists) and ``seeds`` replace its values; ``model`` and
        ``text`` go to the trained inputs. None changes nothing.
        """
        given = {key: value for key, value in changes.items() if value is not None}
        if not given:
            return self
        inputs = [
            replace(item, seq_len=tuple(given.get("seq_len", item.seq_len))) for item in self.inputs
        ]
        if "inputs" in given:
            known = {item.family for item in inputs}
            for name in given["inputs"]:
                if name not in known:
                    raise unknown("input family of this suite (--inputs)", name, known)
            inputs = [item for item in inputs if item.family in given["inputs"]]
        trained = {key: str(given[key]) for key in ("model", "text") if key in given}
        if trained and not any(item.family == "trained" for item in inputs):
            raise RequestError(
                f"--{next(iter(trained))} is for the trained inputs, and this run has none"
            )
        inputs = [
            replace(item, parameters=item.parameters | trained)
            if item.family == "trained"
            else item
            for item in inputs
        ]
        configurations = list(self.configurations)
        if "mechanism" in given:
            known = {item.mechanism for item in configurations}
            for name in given["mechanism"]:
                if name not in known:
                    raise unknown("mechanism of this suite (--mechanism)", name, known)
            configurations = [
                item for item in configurations if item.mechanism in given["mechanism"]
            ]
        for knob in ("rank", "num_features"):
            if knob in given:
                option = f"--{knob.replace('_', '-')}"
                check_combinations(option, [configurations, given[knob]], mend="give fewer values")
                configurations = [
                    replace(item, **{knob: value})
                    for item in configurations
                    for value in given[knob]
                ]
        changed = replace(
            self,
            text=f"{self.text}\n# options: {json.dumps(given, sort_keys=True, default=str)}\n",
            seeds=given.get("seeds", self.seeds),
            inputs=tuple(inputs),
            configurations=tuple(dict.fromkeys(configurations)),
        )
        changed.check_size()
        return changed

    def at(self, seq_len: int, head_dim: int) -> list[Configuration]:
        """The configurations that exist at this size, each once. Raises RequestError, saying why,
        where none does."""
        found, impossible = distinct(
            self.configurations, lambda wanted: wanted.canonical(seq_len, head_dim)
        )
        if impossible and not any(item.rank for item in found):
            raise impossible[0][1]
        return found


def shipped() -> list[str]:
    """Names of the error suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("error*.toml"))


def load(name_or_path: str) -> ErrorSuite:
    """The error suite of that name or file. Raises RequestError for anything wrong in it."""
    path = Path(name_or_path)
    if name_or_path in shipped():
        path = SHIPPED / f"{name_or_path}.toml"
    elif not path.is_file():
        raise unknown("error suite", name_or_path, [*shipped(), "FILE.toml"])
    return parse(read_text(path, "suite file"), name=path.stem)


def parse(text: str, *, name: str = "error") -> ErrorSuite:
    """An error suite from its text. Raises RequestError for malformed TOML, unknown keys, names and
    values."""
    reader = Reader(parse_toml(text, f"suite {name!r}"), "an error suite").only(_KEYS)
    if reader.table.get("kind") != "error":
        raise RequestError(
            f'suite {name!r} has no kind = "error": it is for `flurka-bench run`, not for errors'
        )
    suite = ErrorSuite(
        name=suite_name(reader, name),
        description=reader.text("description", ""),
        text=text,
        seeds=reader.count("seeds", 3),
        training_inputs=reader.count("training_inputs", 8, least=3),
        spectral=reader.flag("spectral", True),
        inputs=tuple(map(_inputs, _tables(reader, "inputs"))),
        configurations=tuple(
            item for table in _tables(reader, "mechanisms") for item in _configurations(table)
        ),
    )
    suite.check_size()
    return suite


def _tables(reader: Reader, key: str) -> list[Reader]:
    tables = reader.readers(key)
    if not tables:
        raise RequestError(f"an error suite needs at least one [[{key}]] table")
    return tables


def _inputs(table: Reader) -> Inputs:
    family = table.text("family")
    trained = family == "trained"
    sizes = ("family", "seq_len") if trained else ("family", "seq_len", "head_dim", "num_heads")
    return Inputs(
        family=family,
        parameters={key: value for key, value in table.table.items() if key not in sizes},
        seq_len=tuple(table.counts("seq_len", 512, least=2)),
        head_dim=(None,) if trained else tuple(table.counts("head_dim", 64)),
        num_heads=None if trained else table.count("num_heads", 1),
    )


def _configurations(table: Reader) -> list[Configuration]:
    read: dict[str, Callable[[str], list[Any]]] = {
        "mechanism": table.values,
        "projection": lambda key: table.choices(key, projections.PROJECTIONS),
        "share_kv": table.flags,
        "rank": table.counts,
        "num_features": table.counts,
    }
    table.only(read).values("mechanism")
    axes = {key: read[key](key) for key in table.table}
    check_combinations("a [[mechanisms]] table", axes.values(), mend="shorten its lists")
    return [Configuration(**values) for values in combinations(axes)]
