"""The two parts of a mechanism, each stated once: similarities and compressions, and what all rooms
need to know of them.

An entry names the code of other rooms as ``"module:attribute"`` and imports none of it, so reading
the entries imports no torch. A package outside this one adds entries by entry points of the groups
``flurka_bench.similarities`` and ``flurka_bench.compressions``; each point is a ``Similarity`` or a
``Compression``. They are read once, when the registry is first imported.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from flurka_bench.words.errors import RequestError, unknown

OWN_PACKAGE = "flurka-bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """How queries and keys are compared.

    ``features`` says what decides the number of features m: "random" (a knob, products with Omega),
    "head_dim" (m = d) or "none" (softmax).
    ``torch`` is a subclass of ``attention.similarity.FeatureMap``; ``ops`` one of
    ``lowering.similarity.FeatureMap``, or for softmax a function (tape, q, k, v) -> output.
    ``reference`` is the float64 formula phi(x, omega, side) -> features of x (r, d), with side
    "query" or "key"; softmax needs none.
    ``absorbs_queries`` and ``absorbs_keys``: whether phi(q) needs q Omega alone, and phi(k) k Omega
    alone. ``fused``: whether the fused kernels compute it. ``line``: its line in plots.
    ``full_name`` and ``low_rank_name`` name the two mechanisms of a softmax.
    """

    name: str
    features: str
    torch: str
    ops: str
    reference: str = ""
    absorbs_queries: bool = False
    absorbs_keys: bool = False
    fused: bool = False
    line: str = "-."
    full_name: str = ""
    low_rank_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """How N keys and values become k rows.

    ``torch`` is ``attention.compression.Compression`` or a subclass, ``ops`` likewise of
    ``lowering.compression``. ``has_weights``: whether E and F are parameters; without them all
    heads, keys and values share one. ``windows``: whether k must divide N.
    ``projection`` is the projection of error runs that says its error, "" for none; one of the
    entry's own name needs ``matrix``, a function (rank, seq_len) -> E (k, N) in float64.
    """

    name: str
    torch: str
    ops: str
    has_weights: bool = True
    windows: bool = True
    projection: str = ""
    matrix: str = ""


_TORCH, _OPS = "flurka_bench.attention.similarity", "flurka_bench.lowering.similarity"
_REFERENCE = "flurka_bench.kinds.timing.reference"
_SIMILARITIES = (
    Similarity(
        name="softmax", features="none", torch=f"{_TORCH}:Softmax", ops=f"{_OPS}:softmax_attention",
        line="--", full_name="full-math", low_rank_name="low-rank",
    ),
    Similarity(
        name="sdpa", features="none", torch=f"{_TORCH}:Softmax", ops=f"{_OPS}:sdpa_attention",
        line="-", full_name="full-sdpa", low_rank_name="low-rank-sdpa",
    ),
    Similarity(
        name="favor", features="random", torch=f"{_TORCH}:FavorFeatures", ops=f"{_OPS}:Favor",
        reference=f"{_REFERENCE}:favor", absorbs_queries=True, fused=True, line="--",
    ),
    Similarity(
        name="relu", features="random", torch=f"{_TORCH}:ReluFeatures", ops=f"{_OPS}:Relu",
        reference=f"{_REFERENCE}:relu", absorbs_queries=True, absorbs_keys=True, fused=True,
        line="-",
    ),
    Similarity(
        name="elu", features="head_dim", torch=f"{_TORCH}:EluFeatures", ops=f"{_OPS}:Elu",
        reference=f"{_REFERENCE}:elu", fused=True, line=":",
    ),
)  # fmt: skip
_ROWS = "flurka_bench.attention.compression:Compression"
_ROW_OPS = "flurka_bench.lowering.compression:Compression"
_COMPRESSIONS = (
    # its error is that of the learned projection, since users train E and F
    Compression(name="dense", windows=False, projection="learned", torch=_ROWS, ops=_ROW_OPS),
    Compression(
        name="mean-pool", has_weights=False, projection="mean-pool",
        matrix="flurka_bench.kinds.error.projections:mean_pool", torch=_ROWS, ops=_ROW_OPS,
    ),
    Compression(name="conv", torch=_ROWS, ops=_ROW_OPS),
)  # fmt: skip
Entry = TypeVar("Entry", Similarity, Compression)


def resolve(place: str) -> Any:
    """What ``"module:attribute"`` names; its module is imported now."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _may_have_points(group: str) -> bool:
    """Whether an installed package may name the group. importlib.metadata takes longer to import
    than ``predict`` has, so the files are looked at first."""
    for folder in sys.path:
        if os.path.isfile(folder):  # an archive: only importlib.metadata reads it
            return True
        try:
            names = [each for each in os.listdir(folder or ".") if each.endswith("-info")]
        except OSError:
            continue
        for name in names:
            try:
                with open(os.path.join(folder, name, "entry_points.txt"), "rb") as stream:
                    if group.encode() in stream.read():
                        return True
            except OSError:
                continue
    return False


def _entries(group: str, kind: type[Entry], own: tuple[Entry, ...]) -> dict[str, Entry]:
    """Our entries and those of other packages by name.

    Raises RequestError where two packages have the same name, or a point is no entry.
    """
    found = {entry.name: (OWN_PACKAGE, entry) for entry in own}
    if not _may_have_points(group):
        return {name: entry for name, (_, entry) in found.items()}
    from importlib.metadata import entry_points

    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        package = point.dist.name if point.dist is not None else point.value
        try:
            entry = point.load()
        except Exception as error:  # another package's code may fail in any way
            raise RequestError(
                f"package {package!r} cannot be loaded for {group}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(entry, kind) or entry.name != point.name:
            raise RequestError(
                f"the entry point {point.name!r} of package {package!r} must be a {kind.__name__}"
                f" of that name from flurka_bench.words.parts, got {entry!r:.80}"
            )
        if entry.name in found:
            raise RequestError(
                f"{kind.__name__.lower()} {entry.name!r} comes from two packages,"
                f" {found[entry.name][0]!r} and {package!r}: uninstall one"
            )
        found[entry.name] = package, entry
    return {name: entry for name, (_, entry) in found.items()}


SIMILARITIES = _entries("flurka_bench.similarities", Similarity, _SIMILARITIES)
COMPRESSIONS = _entries("flurka_bench.compressions", Compression, _COMPRESSIONS)


def similarity(name: str) -> Similarity:
    """The similarity of that name. Raises RequestError that offers the nearest."""
    if name not in SIMILARITIES:
        raise unknown("similarity", name, SIMILARITIES)
    return SIMILARITIES[name]


def compression(name: str) -> Compression:
    """The compression of that name. Raises RequestError that offers the nearest."""
    if name not in COMPRESSIONS:
        raise unknown("compression", name, COMPRESSIONS)
    return COMPRESSIONS[name]
