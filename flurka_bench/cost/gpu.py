"""A GPU's op lists in seconds: its constants, resolved once, and the op models that take them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flurka_bench.cost.attention import (
    attention_constants,
    attention_terms,
)
from flurka_bench.cost.elementwise import (
    elementwise_constants,
    elementwise_terms,
)
from flurka_bench.cost.matmul import (
    MatmulConstants,
    matmul_terms,
)
from flurka_bench.cost.matmul import constants_of as matmul_constants
from flurka_bench.cost.softmax import (
    softmax_constants,
    softmax_terms,
)
from flurka_bench.cost.terms import (
    Terms,
    launch_of,
)
from flurka_bench.hardware.profile import Profile
from flurka_bench.words.ops import Op
from flurka_bench.words.sizes import DTYPE_BYTES, Number

SMALLEST_MISS = 1e-4  # of a product's reads, in a list: neither all nor none of them miss


class GpuModel:
    """One target's model (see ``cost.model.Model``). An object serves one thread."""

    kernels = "cuda"
    num_threads = 0
    reads_to_write = False

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.elementwise = elementwise_constants(profile)
        self.softmax = softmax_constants(profile)
        self.host_overlap: float | None = self.elementwise.host_overlap
        self.cache = (self.elementwise.l2_low, self.elementwise.l2_high)
        # what ``calibrate`` measures: an empty op in a loop without synchronisation
        self.dispatch_s: float | None = profile.measured.figure("launch_eager_s")
        self._matmul: dict[tuple[str, str], MatmulConstants] = {}
        self._attention: dict[str, Any] = {}

    def matmul(self, dtype: str, layout: str) -> MatmulConstants:
        """The constants of a dtype and layout."""
        key = (dtype, layout)
        if key not in self._matmul:
            self._matmul[key] = matmul_constants(self.profile, *key)
        return self._matmul[key]

    def list_terms(
        self,
        ops: Sequence[Op],
        l2_shares: Sequence[np.ndarray],
        launch: str,
        length: int,
        held_until: Mapping[str, int],
    ) -> list[Terms]:
        """Terms of a list that runs again and again; what is freed is always used again."""
        return [self.terms(op, share, launch, length) for op, share in zip(ops, l2_shares)]

    def terms(self, op: Op, l2_share: np.ndarray, launch: str, length: int) -> Terms:
        """Terms of one op, of whose bytes L2 serves this share."""
        if op.kind == "matmul":
            return self._matmul_terms(op, l2_share, launch, length)
        if op.kind == "attention":
            return self._attention_terms(op, launch, length)
        if op.kind == "softmax":
            return softmax_terms(
                self.profile,
                _column(op.batch * op.rows, length),
                op.cols,
                itemsize=DTYPE_BYTES[op.dtype],
                bytes_read=_column(op.bytes_read, length),
                bytes_written=_column(op.bytes_written, length),
                passes=3 if op.phase == "forward" else 2,
                l2_share=l2_share,
                launch=launch,
                constants=self.softmax,
            )
        return elementwise_terms(
            self.profile,
            _column(op.bytes_read + op.bytes_written, length),
            vector_flops=op.vector_flops,
            special_flops=op.special_flops,
            l2_share=l2_share,
            launch=launch,
            constants=self.elementwise,
        )

    def _matmul_terms(self, op: Op, l2_share: np.ndarray, launch: str, length: int) -> Terms:
        layout = "linear" if isinstance(op.batch, int) and op.batch == 1 else "batched"
        c = self.matmul(op.dtype, layout)
        least = np.float32(SMALLEST_MISS)
        return matmul_terms(
            self.profile,
            op.dtype,
            _column(op.batch, length),
            op.rows,
            op.cols,
            op.inner,
            layout=layout,
            launch="none",
            l2_share=np.clip(l2_share, least, 1 - least),
            constants=c,
        ).launched(
            launch_of(c, launch)["launch"],
            self.elementwise.host_overlap if launch == "eager" else 0.0,
        )

    def _attention_terms(self, op: Op, launch: str, length: int) -> Terms:
        if op.dtype not in self._attention:
            self._attention[op.dtype] = attention_constants(self.profile, op.dtype)
        scores = np.asarray(op.batch * op.rows * op.cols, dtype=np.float64)
        return attention_terms(
            self.profile, op.dtype, _column(op.batch, length), op.rows, op.cols, op.inner,
            products=(op.matmul_flops + op.recomputed_flops) / (2 * scores * op.inner),
            exponentials=op.special_flops / scores, backward=op.phase == "backward",
            bytes_moved=_column(op.bytes_read + op.bytes_written, length), launch=launch,
            constants=self._attention[op.dtype], board=self.matmul(op.dtype, "linear"),
        )  # fmt: skip


def _column(value: Number, length: int) -> np.ndarray:
    column = np.asarray(value, dtype=np.float32)
    return column if column.ndim else np.full(length, column)
