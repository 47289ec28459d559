"""The example's parts as tensors."""

import torch
from torch import Tensor

from flurka_bench.attention.compression import Compression
from flurka_bench.attention.similarity import FeatureMap

EPSILON = 1e-3


class SquaredReluFeatures(FeatureMap):
    """phi(x) = relu(x Omega)^2 + 1e-3."""

    name = "squared-relu"
    absorbs_queries = True
    absorbs_keys = True

    def activate_keys(self, y: Tensor, k, keep, rows) -> tuple[Tensor, None]:
        """Kernels: relu, square, add (in place)."""
        phi = self.activate_queries(y, None)
        return phi if keep is None else phi.masked_fill(~keep, 0), None

    def activate_queries(self, y: Tensor, shift: None) -> Tensor:
        """Kernels: relu, square, add (in place)."""
        positive = y.clamp_min(0)
        return (positive * positive).add_(EPSILON)


def squared_relu(x: Tensor, omega: Tensor, side: str) -> Tensor:
    """The reference."""
    return torch.relu(x @ omega.to(x.dtype)).square() + EPSILON


class Strided(Compression):
    """The first row of every window of N/k rows."""

    def kept_rows(self, keep: Tensor | None) -> Tensor | None:
        """Whether each window's first row is kept."""
        return None if keep is None else keep[:, :: self.window]

    def shared_rows(self, x: Tensor, of_values: bool = False, keep=None) -> Tensor:
        """x (..., n, c) -> (..., rows, c). Kernels: 1 copy."""
        return x[..., :: self.window, :].contiguous()

    head_rows = shared_rows

    def matrices(self, num_positions: int | None = None) -> tuple[Tensor, Tensor]:
        """E, and F which is E."""
        E = strided(self.rank, self.seq_len)
        E = E if num_positions is None else E[: -(-num_positions // self.window), :num_positions]
        return E, E


def strided(rank: int, seq_len: int) -> Tensor:
    """E (k, N) in float64: row j picks the first position of the j-th window."""
    return torch.eye(seq_len, dtype=torch.float64)[:: seq_len // rank]
