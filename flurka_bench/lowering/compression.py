"""Compression of N rows of keys and values to k, as ops: the three forms that
``attention.compression`` runs.

Shapes as there: E is (k, N), or (h, k, N) where heads do not share it; a convolution has one tap
vector of N / k weights (a head).
"""

from flurka_bench.cases.case import Case
from flurka_bench.lowering.builder import Tape
from flurka_bench.lowering.recorder import Var, is_one
from flurka_bench.words import parts


class Compression:
    """E and F of one case on a tape. ``of_values`` picks F where it is not E; ``any_strides`` is
    what reads the rows."""

    def __init__(self, tape: Tape, case: Case, *, any_strides: bool) -> None:
        self.tape, self.case, self.any_strides = tape, case, any_strides
        rank, whole = case.rank, isinstance(case.seq_len, int)
        assert rank is not None  # canonical cases of a compression have one
        self.window = case.seq_len // rank if whole else case.seq_len / rank
        heads = () if case.share_heads else (case.num_heads,)
        self.keys: Var | None = None
        self.values: Var | None = None
        if parts.compression(case.compression).has_weights:
            shape = {
                "dense": (*heads, case.rank, case.seq_len),
                "conv": (*heads, self.window),
            }[case.compression]
            self.keys = tape.leaf("E", *shape)
            self.values = self.keys if case.share_kv else tape.leaf("F", *shape)

    def _weight(self, of_values: bool) -> Var:
        weight = self.values if of_values else self.keys
        assert weight is not None  # what has no weights is shared across heads
        return weight

    def _name(self, of_values: bool) -> str:
        return "compress_values" if of_values else "compress_keys"

    def shared_rows(self, x: Var, of_values: bool = False) -> Var:
        """E x for an E that all heads share: (…, N, c) -> (…, k, c)."""
        tape, k = self.tape, self.case.rank
        name, channels = self._name(of_values), x.shape[-1]
        if self.keys is None:
            windows = tape.view(x, *x.shape[:-2], k, self.window, channels)
            return tape.reduce(windows, -2, name, keepdim=False, mean=True)
        if self.case.compression == "conv":
            windows = tape.view(x, *x.shape[:-2], k, self.window, channels)
            taps = tape.view(self._weight(of_values), 1, self.window)
            return tape.view(tape.matmul(taps, windows, name), *x.shape[:-2], k, channels)
        return tape.matmul(self._weight(of_values), x, name)

    def head_rows(self, x: Var, of_values: bool = False, *, tokens_first: bool = False) -> Var:
        """E_h x_h: (b, h, N, d) -> (b, h, k, d), whether heads share E or not; ``tokens_first``
        says how x lies in memory."""
        if self.case.share_heads:
            return self.shared_rows(x, of_values)
        tape, case, name = self.tape, self.case, self._name(of_values)
        b, h, n, d = x.shape
        if case.compression == "conv":
            windows = (b, h, case.rank, self.window, d)
            x = tape.copy(x, *windows) if tokens_first else tape.view(x, *windows)
            taps = tape.view(self._weight(of_values), h, 1, 1, self.window)
            return tape.view(tape.matmul(taps, x, name), b, h, case.rank, d)
        width = tape.size(b, d)
        folded = tape.view(x, h, n, width) if is_one(b) else tape.copy(x, h, n, width)
        rows = tape.matmul(self._weight(of_values), folded, name)
        shape = (b, h, case.rank, d)
        return tape.view(rows, *shape) if is_one(b) or self.any_strides else tape.copy(rows, *shape)

    def input_rows(self, x: Var, of_values: bool = False) -> Var:
        """E_h x of the layer's input: (b, N, D) -> (b, h, k, D), every head compressing all of
        x."""
        tape, case, name = self.tape, self.case, self._name(of_values)
        b, n, width = x.shape
        weight = self._weight(of_values)
        if case.compression == "conv":
            rows = tape.matmul(weight, tape.view(x, b, case.rank, self.window, width), name)
        else:
            rows = tape.matmul(tape.view(weight, tape.size(case.num_heads, case.rank), n), x, name)
        return tape.view(rows, b, case.num_heads, case.rank, width)
