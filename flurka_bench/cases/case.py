"""A case: one thing to time or to predict."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from flurka_bench.words.sizes import DTYPE_BYTES, WORKLOAD, Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One mechanism with its knobs at one workload.

    ``order`` is None at level core (there is nothing to reorder). ``rank`` is None where keys and
    values are not compressed, ``num_features`` where the similarity is softmax; elu + 1 has
    ``num_features == head_dim``. ``registry.canonical`` brings a requested combination into this
    form, or says why it is impossible.
    """

    mechanism: str
    level: str = "core"
    pass_: str = "forward"
    order: str | None = None
    backend: str = "eager"
    dtype: str = "float32"
    batch: Number = 1
    num_heads: Number = 8
    seq_len: Number = 1024
    head_dim: Number = 64
    rank: Number | None = None
    num_features: Number | None = None
    # how E and F are made: a learned dense matrix, mean-pool, strided convolution
    compression: str = "dense"
    share_kv: bool = False  # E = F: one compression serves keys and values
    share_heads: bool = True  # one E (and F) for all heads
    num_layers: Number = 1  # level model only, as are the next two
    ffn_dim: Number = 0
    vocab_size: Number = 0

    @property
    def model_dim(self) -> Number:
        """D = h * d, the width of x (b, N, D)."""
        return self.num_heads * self.head_dim

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def workload_key(self) -> tuple[Any, ...]:
        """Its values of ``WORKLOAD``."""
        return tuple(getattr(self, "pass_" if name == "pass" else name) for name in WORKLOAD)

    @property
    def case_id(self) -> str:
        """A readable id, unique per case and the same on every machine; knobs at their default are
        left out."""
        parts = [self.mechanism, self.level, self.pass_]
        if self.order is not None:
            parts.append(self.order)
        parts += [
            self.backend,
            self.dtype,
            f"b{self.batch}",
            f"h{self.num_heads}",
            f"n{self.seq_len}",
            f"d{self.head_dim}",
        ]
        parts += [f"k{self.rank}"] if self.rank is not None else []
        parts += [f"m{self.num_features}"] if self.num_features is not None else []
        parts += [self.compression] if self.compression != "dense" else []
        parts += ["sharekv"] if self.share_kv else []
        parts += ["perhead"] if not self.share_heads else []
        if self.level == "model":
            parts += [f"l{self.num_layers}", f"f{self.ffn_dim}", f"v{self.vocab_size}"]
        return ".".join(parts)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Case":
        """The case with these values, under the names that ``as_record`` gives them."""
        return cls(**{"pass_" if name == "pass" else name: each for name, each in values.items()})

    def replace(self, **changes: Any) -> "Case":
        """A copy with some fields changed."""
        return replace(self, **changes)

    def as_record(self) -> dict[str, Any]:
        """The case's fields under the names that records, tables and command-line options use
        (``pass``, not ``pass_``)."""
        return {field.name.rstrip("_"): getattr(self, field.name) for field in fields(self)}
