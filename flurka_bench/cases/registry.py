"""The ten mechanisms: what each is called, which knobs it has, and the one form in which a request
is computed.

A mechanism is a compression of the keys and values (none, or to ``rank`` rows) and a similarity
(softmax or a feature map). FLuRKA (arXiv 2306.15799) is the pair with both choices made; its
parents are the two cells beside it.
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.words import parts, sizes
from flurka_bench.words.errors import RequestError, unknown
from flurka_bench.words.parts import COMPRESSIONS, SIMILARITIES, Similarity
from flurka_bench.words.sizes import Number, dtype_name

# elements: what is counted on it still fits the integers and floats that count it
LARGEST_INPUT = 2**62
COMPRESSION_KNOBS = ("rank", "compression", "share_kv", "share_heads")
MODEL_KNOBS = ("num_layers", "ffn_dim", "vocab_size")
# What some mechanisms or levels do not have.
KNOBS = (*COMPRESSION_KNOBS, "num_features", "order", *MODEL_KNOBS)
DEFAULTS = {field.name: field.default for field in fields(Case) if field.name in KNOBS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mechanism:
    """One cell of compression × similarity.

    ``orders`` are those it has at levels layer and model. ``parents`` gives the mechanisms it
    descends from under the keys "low_rank", "kernel" and "full"; None where it has no such parent.
    """

    name: str
    compressed: bool
    similarity: str
    orders: tuple[str, ...]
    parents: dict[str, str | None]

    @property
    def uses_features(self) -> bool:
        """Whether ``num_features`` is one of its knobs (elu + 1 has as many features as
        ``head_dim``: no choice)."""
        return parts.similarity(self.similarity).features == "random"

    @property
    def is_kernel(self) -> bool:
        """Whether the similarity is a feature map, so that the cost grows with N·m instead of
        N·N."""
        return parts.similarity(self.similarity).features != "none"

    @property
    def is_flurka(self) -> bool:
        """Whether both choices are made."""
        return self.compressed and self.is_kernel

    @property
    def family(self) -> str:
        """flurka, kernel, low-rank or full: which of the two choices are made."""
        if self.is_kernel:
            return "flurka" if self.compressed else "kernel"
        return "low-rank" if self.compressed else "full"


def _cell(compressed: bool, similarity: Similarity) -> Mechanism:
    kernel = similarity.features != "none"
    if kernel:
        name = f"{'flurka' if compressed else 'kernel'}-{similarity.name}"
    else:
        name = similarity.low_rank_name if compressed else similarity.full_name
    orders = ["project_first"]
    if compressed:
        orders.append("compress_first")
    if similarity.absorbs_queries:
        orders.append("absorbed")
    return Mechanism(
        name=name,
        compressed=compressed,
        similarity=similarity.name,
        orders=tuple(orders),
        parents={
            "low_rank": "low-rank" if compressed and kernel else None,
            "kernel": f"kernel-{similarity.name}" if compressed and kernel else None,
            "full": "full-math" if compressed or kernel else None,
        },
    )


MECHANISMS: dict[str, Mechanism] = {
    cell.name: cell
    for compressed in (False, True)
    for cell in (_cell(compressed, similarity) for similarity in SIMILARITIES.values())
}
# The kernel methods whose m is head_dim, no knob.
FIXED_FEATURES = tuple(
    name for name, cell in MECHANISMS.items() if cell.is_kernel and not cell.uses_features
)
# The fields of a case that are one of a few names, with those names.
CHOICES = {"mechanism": tuple(MECHANISMS), **sizes.CHOICES, "compression": tuple(COMPRESSIONS)}


def is_exact(name: object) -> bool:
    """Whether a mechanism of that name computes softmax attention itself."""
    return name in MECHANISMS and MECHANISMS[str(name)].family == "full"


def get(name: str) -> Mechanism:
    """The mechanism of that name. Raises RequestError that offers the nearest."""
    if name not in MECHANISMS:
        raise unknown("mechanism", name, MECHANISMS)
    return MECHANISMS[name]


@lru_cache
def idle_knobs(name: str, level: str) -> Mapping[str, str]:
    """The knobs that a mechanism does not have at a level, each with the reason.

    The reason goes on after the mechanism's name: "compresses nothing". Raises RequestError for an
    unknown mechanism.
    """
    mechanism = get(name)
    idle: dict[str, str] = {}
    if not mechanism.compressed:
        idle |= dict.fromkeys(COMPRESSION_KNOBS, "compresses nothing")
    if not mechanism.uses_features:
        idle["num_features"] = "has no features"
    if level == "core":
        idle["order"] = "has no projections to reorder at level core"
    elif mechanism.orders == ("project_first",):
        idle["order"] = "has one order, project_first"
    if level != "model":
        idle |= dict.fromkeys(MODEL_KNOBS, f"has none at level {level}")
    return idle


def canonical(case: Case) -> Case:
    """The form of ``case`` in which equal computations are equal cases.

    Knobs that the mechanism does not have at this level take their default (``idle_knobs``), but
    elu + 1 gets ``num_features = head_dim``, and a layer with one order names it. A
    compression without weights is always shared. Arrays are checked element by element, SymPy symbols not.

    Raises:
        RequestError: this cannot be computed; names the accepted values and the flag.
    """
    mechanism = get(case.mechanism)
    case = case.replace(dtype=dtype_name(case.dtype))
    _check_names(case)
    case = case.replace(**{
        field.name: int(value)
        for field in fields(case)
        if isinstance(value := getattr(case, field.name), np.integer)
    })  # fmt: skip
    for name in ("batch", "num_heads", "seq_len", "head_dim"):
        _check_count(name, getattr(case, name))
    num_elements = case.batch * case.num_heads * case.seq_len * case.head_dim
    if isinstance(num_elements, int) and num_elements > LARGEST_INPUT:
        raise RequestError(
            "the input would hold more than 2^62 elements"
            " (--batch, --num-heads, --seq-len, --head-dim)"
        )
    idle = idle_knobs(case.mechanism, case.level)
    changes: dict[str, Any] = {name: DEFAULTS[name] for name in idle}
    if mechanism.compressed:
        _check_rank(case)
        compression = parts.compression(case.compression)
        if compression.windows:
            _check_window(case)
        if not compression.has_weights:
            changes |= {"share_kv": True, "share_heads": True}
    if mechanism.uses_features:
        if case.num_features is None:
            raise RequestError(
                f"{case.mechanism} needs a number of random features (--num-features)"
            )
        _check_count("num_features", case.num_features)
    elif mechanism.is_kernel:
        changes["num_features"] = case.head_dim
    if case.level != "core":  # a sweep over the orders of what has one collapses to one case
        changes["order"] = "project_first" if "order" in idle else _order(case, mechanism)
    if case.backend == "fused":
        _check_fused(case.replace(order=changes["order"]), mechanism)
    if case.level == "model":
        changes |= _model_sizes(case)
    return case.replace(**changes)


def _model_sizes(case: Case) -> dict[str, Any]:
    """Checks a model's sizes; a feed-forward width of 0 stands for 4 D."""
    _check_count("num_layers", case.num_layers)
    _check_count("ffn_dim", case.ffn_dim, least=0)
    _check_count("vocab_size", case.vocab_size, least=0)
    default = isinstance(case.ffn_dim, int) and case.ffn_dim == 0
    return {"ffn_dim": 4 * case.model_dim if default else case.ffn_dim}


def not_applicable(case: Case) -> dict[str, str]:
    """The knobs that a request names and ``canonical`` drops or replaces, each with the reason.

    A knob is named where it differs from the ``Case``'s default. The reason goes on after the
    mechanism's name: "has no features".
    """
    mechanism = get(case.mechanism)
    found = {
        name: why
        for name, why in idle_knobs(case.mechanism, case.level).items()
        if getattr(case, name) != DEFAULTS[name]
    }
    if case.level != "core" and case.order in mechanism.orders:
        found.pop("order", None)
    weights = parts.compression(case.compression).has_weights
    if mechanism.compressed and not weights and not case.share_heads:
        found["share_heads"] = f"shares {case.compression}, which has no weights, across heads"
    if mechanism.is_kernel and not mechanism.uses_features:
        found.pop("num_features", None)
        if case.num_features not in (None, case.head_dim):
            found["num_features"] = f"has m = head_dim = {case.head_dim} features"
    return found


def _check_names(case: Case) -> None:
    for name, accepted in CHOICES.items():
        value = getattr(case, "pass_" if name == "pass" else name)
        if value not in accepted and not (name == "order" and value is None):
            raise unknown(name, value, accepted)
    for name in ("share_kv", "share_heads"):
        if not isinstance(getattr(case, name), bool):
            raise RequestError(
                f"{name} must be true or false, got {getattr(case, name)!r} (--{name.replace('_', '-')})"
            )


def _check_count(name: str, value: Number, least: int = 1) -> None:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, np.ndarray):
        if (
            value.dtype.kind not in "iuf"
            or not np.all(value == np.floor(value))
            or not np.all(value >= least)
        ):
            raise RequestError(f"{name} must hold integers of at least {least} ({flag})")
    elif isinstance(value, (numbers.Number, str, type(None))) and (
        isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least
    ):
        raise RequestError(f"{name} must be an integer of at least {least}, got {value!r} ({flag})")


def _check_rank(case: Case) -> None:
    if case.rank is None:
        raise RequestError(
            f"{case.mechanism} needs the rank its keys and values are compressed to (--rank)"
        )
    rank: Number = case.rank
    _check_count("rank", rank)
    if _is_plain(rank, case.seq_len) and np.any(rank > case.seq_len):
        if isinstance(rank, np.ndarray) or isinstance(case.seq_len, np.ndarray):
            raise RequestError("rank must be at most seq_len in every case (--rank, --seq-len)")
        raise RequestError(
            f"rank must be at most seq_len, got rank {rank} > seq_len {case.seq_len}"
            " (--rank, --seq-len)"
        )


def _is_plain(*values: Number) -> bool:
    """Whether values are numbers or arrays, which can be compared; symbols cannot."""
    return all(isinstance(value, (numbers.Number, np.ndarray)) for value in values)


def _check_fused(case: Case, mechanism: Mechanism) -> None:
    for wrong, why in (
        (
            not mechanism.is_kernel,
            "has no fused kernels: they are for feature maps only (kernel-*, flurka-*)",
        ),
        (
            not parts.similarity(mechanism.similarity).fused,
            "has no fused kernels: they know "
            + ", ".join(name for name, entry in SIMILARITIES.items() if entry.fused),
        ),
        (case.pass_ == "train", "cannot train with fused kernels, which have no backward pass"),
        (
            case.order == "absorbed",
            "forms no queries in the order absorbed, and fused kernels read them (--order compress_first)",
        ),
    ):
        if wrong:
            raise RequestError(f"{mechanism.name} {why} (--backend eager)")


def _order(case: Case, mechanism: Mechanism) -> str:
    if case.order is None:
        return "project_first"
    if case.order not in mechanism.orders:
        raise RequestError(
            f"{mechanism.name} has no order {case.order!r}; accepted: {', '.join(mechanism.orders)} (--order)"
        )
    return case.order


def _check_window(case: Case) -> None:
    rank: Number = case.rank
    if _is_plain(rank, case.seq_len) and np.any(case.seq_len % rank != 0):
        raise RequestError(
            f"compression {case.compression!r} needs a rank that divides seq_len, got rank {rank},"
            f" seq_len {case.seq_len} (--rank, --seq-len)"
        )


def as_floats(case: Case) -> Case:
    """The case with integer arrays as float64, so that products of large sizes round instead of
    wrapping around."""
    changes = {
        field.name: value.astype(np.float64)
        for field in fields(case)
        if isinstance(value := getattr(case, field.name), np.ndarray) and value.dtype.kind in "iu"
    }
    return case.replace(**changes) if changes else case
