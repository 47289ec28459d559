"""The input families on which errors are measured: queries, keys and values (h, N, d) in float64.

A family draws as many inputs as there are seeds. Seeds for training a compression never meet those
for testing it: a synthetic family shifts the seed, the trained family keeps two disjoint sets of
documents.
"""

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from flurka_bench.kinds.error import text as texts
from flurka_bench.kinds.error.encoder import Encoder
from flurka_bench.words.errors import (
    RequestError,
    short,
    unknown,
)

_TRAIN_SEEDS = 1_000_000  # training seeds are these and up


@dataclass(frozen=True, slots=True)
class Draw:
    """Queries, keys and values of one layer, each (h, N, d) float64."""

    q: Tensor
    k: Tensor
    v: Tensor


class Family(Protocol):
    """A source of inputs. ``label`` names it with its parameters in records; ``layers`` is (None,)
    for synthetic ones."""

    label: str
    layers: tuple[int | None, ...]

    def draw(
        self,
        seed: int,
        *,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        layer: int | None = None,
        train: bool = False,
    ) -> Draw:
        """One input; ``train`` draws from inputs that no test seed ever gives."""
        ...


def generator(*parts: object) -> torch.Generator:
    """A generator that depends on its parts alone: the same on every machine, and unrelated for
    unrelated parts."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, parts)).encode()))


def _normal(shape: tuple[int, ...], source: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=source, dtype=torch.float64)


class _Synthetic:
    layers: ClassVar = (None,)
    label: str

    def draw(
        self,
        seed: int,
        *,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        layer: int | None = None,
        train: bool = False,
    ) -> Draw:
        """See ``Family.draw``."""
        source = generator("inputs", self.label, seq_len, head_dim, seed + _TRAIN_SEEDS * train)
        return Draw(*self._tensors((num_heads, seq_len, head_dim), source))

    def _tensors(
        self, shape: tuple[int, ...], source: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian(_Synthetic):
    """Independent N(0, scale^2) entries: logits then have standard deviation scale^2, whatever d
    is."""

    scale: float = 1.0
    label: str = field(init=False)

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        object.__setattr__(self, "label", f"gaussian-{self.scale:g}")

    def _tensors(
        self, shape: tuple[int, ...], source: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (_normal(shape, source) * self.scale for _ in "qkv")
        return q, k, v


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPlusNoise(_Synthetic):
    """Keys and queries in one subspace with singular values i^-decay (i = 1...d), plus noise;
    values likewise in their own.

    The signal has ``scale`` as its root-mean-square entry and the noise ``noise`` times that.
    ``decay`` 0 is a flat spectrum.
    """

    decay: float = 1.0
    scale: float = 1.0
    noise: float = 0.1
    label: str = field(init=False)

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        if self.noise < 0 or self.decay < 0:
            raise RequestError(
                "low-rank inputs: noise and decay must be at least 0, got noise"
                f" {self.noise}, decay {self.decay}"
            )
        object.__setattr__(
            self, "label", f"low-rank-{self.decay:g}-noise-{self.noise:g}-scale-{self.scale:g}"
        )

    def _tensors(
        self, shape: tuple[int, ...], source: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, _, d = shape
        spectrum = torch.arange(1, d + 1, dtype=torch.float64) ** -self.decay
        spectrum *= (d / spectrum.square().sum()).sqrt() * self.scale
        key_basis, value_basis = (torch.linalg.qr(_normal((h, d, d), source))[0] for _ in range(2))

        def signal(basis: Tensor) -> Tensor:
            return (_normal(shape, source) * spectrum) @ basis.mT + _normal(
                shape, source
            ) * self.noise * self.scale

        return signal(key_basis), signal(key_basis), signal(value_basis)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clustered(_Synthetic):
    """Positions fall into ``clusters`` groups that share a query, a key and a value, plus noise
    ``spread`` times as large.

    ``contiguous`` lays each cluster in one run of positions, as topics lie in a text; otherwise
    they are mixed.
    """

    clusters: int = 32
    scale: float = 1.0
    spread: float = 0.2
    contiguous: bool = False
    label: str = field(init=False)

    def __post_init__(self) -> None:
        _positive("scale", self.scale)
        if self.clusters < 1 or self.spread < 0:
            raise RequestError(
                "clustered inputs: clusters at least 1 and spread at least 0, got"
                f" {self.clusters} and {self.spread}"
            )
        tail = "-contiguous" if self.contiguous else ""
        object.__setattr__(
            self,
            "label",
            f"clustered-{self.clusters}-spread-{self.spread:g}-scale-{self.scale:g}{tail}",
        )

    def _tensors(
        self, shape: tuple[int, ...], source: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, N, d = shape
        member = torch.randint(self.clusters, (N,), generator=source)
        member = member.sort().values if self.contiguous else member
        centres = (_normal((h, self.clusters, d), source)[:, member] for _ in "qkv")
        q, k, v = (
            self.scale * (centre + self.spread * _normal(shape, source)) for centre in centres
        )
        return q, k, v


class Trained:
    """Every layer of a trained encoder on N tokens of text.

    Without ``text`` a document is a standard-library module's docstrings, and even documents test
    where odd ones train. With a file, its even stretches of N tokens test and its odd ones train.
    ``seed`` counts through the documents.
    """

    def __init__(
        self, *, model: str | None = None, text: str | None = None, layers: list[int] | None = None
    ) -> None:
        """Load the encoder. Raises RequestError where the model, the text or a layer is not
        there."""
        self.label = "trained"
        self.documents = (
            (texts.read_text(Path(text)),) if text else texts.docstrings()
        )  # before the model, which takes seconds
        self.encoder = Encoder(model)
        self.source = str(text) if text else "standard library docstrings"
        num_layers = self.encoder.config.num_layers
        self.layers = tuple(range(num_layers) if layers is None else layers)
        bad = [layer for layer in self.layers if not 0 <= layer < num_layers]
        if bad:
            raise RequestError(
                f"layer {bad[0]} is not one of the encoder's {num_layers} (0 to {num_layers - 1})"
            )
        self._tokens: list[list[int]] | None = None
        self._cache: dict[tuple[int, bool, int], list[tuple[Tensor, Tensor, Tensor]]] = {}

    def pieces(self, seq_len: int, *, train: bool) -> list[list[int]]:
        """The stretches of ``seq_len`` tokens that this side of the split may use, one per document
        (per stretch of a file)."""
        if self._tokens is None:
            self._tokens = [self.encoder.tokens(document) for document in self.documents]
        if len(self._tokens) == 1:
            whole = self._tokens[0]
            pieces = [
                whole[at : at + seq_len] for at in range(0, len(whole) - seq_len + 1, seq_len)
            ]
        else:
            pieces = [tokens[:seq_len] if len(tokens) >= seq_len else [] for tokens in self._tokens]
        return [piece for piece in pieces[int(train) :: 2] if piece]

    def check(self, *, seq_len: int, seed: int | None) -> None:
        """Raise RequestError where the model or the text is too short for this size and test seed
        (None: for training)."""
        if seq_len > self.encoder.config.max_seq_len:
            raise RequestError(
                f"the encoder takes up to {self.encoder.config.max_seq_len} tokens, got"
                f" seq_len {seq_len}"
            )
        num_pieces, needed = (
            len(self.pieces(seq_len, train=seed is None)),
            1 if seed is None else seed + 1,
        )
        if num_pieces < needed:
            side = "training" if seed is None else "testing"
            raise RequestError(
                f"the text ({self.source}) has {num_pieces} stretches of {seq_len} tokens"
                f" for {side}, and {needed} are needed; "
                "give a longer --text, a smaller --seq-len or fewer --seeds"
            )

    def draw(
        self,
        seed: int,
        *,
        num_heads: int,
        seq_len: int,
        head_dim: int,
        layer: int | None = None,
        train: bool = False,
    ) -> Draw:
        """See ``Family.draw``. Raises RequestError where the sizes are not the model's, or the text
        is too short."""
        config = self.encoder.config
        if (num_heads, head_dim) != (config.num_heads, self.encoder.head_dim):
            raise RequestError(
                f"trained inputs come with {config.num_heads} heads of {self.encoder.head_dim}, "
                f"got {num_heads} heads of {head_dim}"
            )
        self.check(seq_len=seq_len, seed=None if train else seed)
        pieces = self.pieces(seq_len, train=train)
        key = (seq_len, train, seed % len(pieces))
        if key not in self._cache:
            self._cache = dict(
                list(self._cache.items())[-11:]
            )  # a few encodings: the training set and the seeds in turn
            self._cache[key] = self.encoder.queries_keys_values(pieces[seed % len(pieces)])
        assert layer is not None, "trained inputs are of a layer"
        return Draw(*self._cache[key][layer])


FAMILIES: dict[str, Any] = {
    "gaussian": Gaussian,
    "low-rank": LowRankPlusNoise,
    "clustered": Clustered,
    "trained": Trained,
}


def family(name: str, **parameters: Any) -> Family:
    """The family of that name. Raises RequestError for an unknown name or parameter, naming those
    accepted."""
    if name not in FAMILIES:
        raise unknown("input family", name, FAMILIES)
    kind = FAMILIES[name]
    accepted = (
        ("model", "text", "layers")
        if kind is Trained
        else [n for n in kind.__dataclass_fields__ if n != "label"]
    )
    for parameter in parameters:
        if parameter not in accepted:
            raise unknown(f"parameter of the {name} inputs", parameter, accepted)
    for parameter, value in parameters.items():
        _check_parameter(name, parameter, value, kind)
    found: Family = kind(**parameters)
    return found


LARGEST_PARAMETER = 1e6  # of scales and spreads, whose logits are their squares
LARGEST_COUNT = 2**20  # clusters: each has a row of its own


def _check_parameter(name: str, parameter: str, value: Any, kind: Any) -> None:
    """Raise RequestError unless a parameter has the type of its default, and is in range."""
    if kind is Trained:
        if parameter == "layers":
            good = isinstance(value, list) and all(type(layer) is int for layer in value)
            wanted = "a list of whole numbers"
        else:
            good, wanted = isinstance(value, str) and "\0" not in value, "a text"
    elif isinstance(default := kind.__dataclass_fields__[parameter].default, bool):
        good, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        good = type(value) is int and 1 <= value <= LARGEST_COUNT
        wanted = f"a whole number from 1 to {LARGEST_COUNT}"
    else:
        good = type(value) in (int, float) and 0 <= value <= LARGEST_PARAMETER
        wanted = f"a number from 0 to {LARGEST_PARAMETER:g}"
    if not good:
        raise RequestError(f"{parameter} of the {name} inputs must be {wanted}, got {short(value)}")


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise RequestError(f"{name} of the inputs must be above 0, got {value}")
