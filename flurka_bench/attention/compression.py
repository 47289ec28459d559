"""Compression of N keys and values to k rows: the first of a mechanism's two choices, stated once.

Shape letters as in ``workload``; E (k, N) compresses keys, F values. Every kind is linear over
positions and the same for all channels of a head, so it commutes with the projections of x: E(XW) =
(EX)W. Masks are the caller's: padded rows arrive as zeros.
"""

import math

import torch
from torch import Tensor, nn

from flurka_bench.errors import RequestError, unknown
from flurka_bench.workload import COMPRESSIONS


class Compression(nn.Module):
    """Keys and values from seq_len rows to ``rank`` rows (Wang et al. 2020, arXiv 2006.04768,
    section 4).

    dense      learned E, F (k, N), initialised N(0, k/N^2): a row has norm sqrt(k/N), that of a
               mean over N/k positions, so compressed keys and values start as large as those of
               the other kinds, and a layer's output as large as full attention's. (N(0, 1/k), that
               of the paper's theorem, has rows of norm sqrt(N/k): outputs N/k times as large.)
    mean-pool  windows of N/k rows, averaged; no parameters, so E = F and all heads share.
    conv       a convolution over positions with kernel and stride N/k, one tap vector for all
               channels (so it commutes with the projections, unlike ``nn.Conv1d``), initialised to
               the mean.

    Inputs shorter than ``seq_len`` use E's first columns; mean-pool and conv drop the rows whose
    window is empty.
    ``share_kv``: E = F. ``share_heads``: one E for all heads, else E is (h, k, N).
    """

    def __init__(
        self,
        *,
        seq_len: int,
        rank: int,
        num_heads: int,
        kind: str = "dense",
        share_kv: bool = False,
        share_heads: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if kind not in COMPRESSIONS:
            raise unknown("compression", kind, COMPRESSIONS)
        if not 1 <= rank <= seq_len:
            raise RequestError(
                f"rank must be between 1 and seq_len = {seq_len}, got {rank}; lower --rank or raise --seq-len"
            )
        if kind != "dense" and seq_len % rank:
            raise RequestError(
                f"compression {kind!r} needs a rank that divides seq_len = {seq_len}, got {rank}; change --rank"
            )
        self.seq_len, self.rank, self.num_heads, self.kind = seq_len, rank, num_heads, kind
        self.window = seq_len // rank
        self.shared = share_kv or kind == "mean-pool"
        self.share_heads = share_heads or kind == "mean-pool"
        heads = () if self.share_heads else (num_heads,)
        shape = {
            "dense": (*heads, rank, seq_len),
            "conv": (*heads, self.window),
            "mean-pool": None,
        }[kind]
        options = {"device": device, "dtype": dtype}
        self.weight_k = None if shape is None else nn.Parameter(torch.empty(shape, **options))
        self.weight_v = (
            None if shape is None or self.shared else nn.Parameter(torch.empty(shape, **options))
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw E and F anew."""
        for weight in self.parameters():
            if self.kind == "dense":
                draw = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
                weight.copy_(draw * (math.sqrt(self.rank) / self.seq_len))
            else:
                weight.fill_(1 / self.window)

    def _weight(self, of_values: bool) -> Tensor | None:
        return self.weight_v if of_values and self.weight_v is not None else self.weight_k

    def _windows(self, x: Tensor) -> Tensor:
        """(..., n, c) -> (..., rows, window, c); the last window is filled up with zeros."""
        n = x.shape[-2]
        rows = -(-n // self.window)
        if n % self.window:
            x = nn.functional.pad(x, (0, 0, 0, rows * self.window - n))
        return x.unflatten(-2, (rows, self.window))

    def shared_rows(self, x: Tensor, of_values: bool = False) -> Tensor:
        """E x for an E that all heads share, x (B, n, c) -> (B, k, c). B and c are whatever the
        caller folded.

        Kernels: dense 1 matmul (B, k, n) @ (B, n, c), E read once; mean-pool 1 reduction; conv 1
            matmul of B * k
        products (1, window) @ (window, c).
        """
        self._check(x)
        weight = self._weight(of_values)
        if self.kind == "mean-pool":
            return self._windows(x).mean(-2)
        if self.kind == "conv":
            windows = self._windows(x)
            flat = windows.reshape(-1, self.window, x.shape[-1])
            return torch.bmm(weight.expand(flat.shape[0], 1, -1), flat).view(
                *x.shape[:-2], -1, x.shape[-1]
            )
        # bmm over an expanded E, not matmul: matmul would fold the batch into rows and copy x for
        # it
        return torch.bmm(weight[:, : x.shape[-2]].expand(x.shape[0], -1, -1), x)

    def head_rows(self, x: Tensor, of_values: bool = False) -> Tensor:
        """E_h x_h for x (b, h, n, d) -> (b, h, k, d), whether heads share E or not.

        Kernels: as ``shared_rows`` with B = b * h where heads share E. Else dense: a copy of x if b
            > 1, then 1 matmul
        (h, k, n) @ (h, n, b * d); conv: a copy of x if it is not contiguous, then 1 matmul of b * h
        * k products.
        """
        b, h, n, d = x.shape
        if self.share_heads:
            return self.shared_rows(x.reshape(b * h, n, d), of_values).view(b, h, -1, d)
        self._check(x)
        weight = self._weight(of_values)
        if self.kind == "conv":
            windows = self._windows(x)
            taps = weight[None, :, None, None].expand(b, h, windows.shape[2], 1, self.window)
            return torch.matmul(taps, windows).squeeze(-2)
        folded = x.permute(1, 2, 0, 3).reshape(h, n, b * d)
        return torch.bmm(weight[..., :n], folded).view(h, self.rank, b, d).permute(2, 0, 1, 3)

    def input_rows(self, x: Tensor, of_values: bool = False) -> Tensor:
        """E_h x of the layer's input x (b, n, D) -> (b, h, k, D): every head compresses all of x,
        once per head.

        Kernels: dense 1 matmul (b, h * k, n) @ (b, n, D); conv 1 matmul of b * k products (h,
            window) @ (window, D).
        """
        self._check(x)
        weight = self._weight(of_values)
        b, n, width = x.shape
        if self.kind == "conv":
            flat = self._windows(x).reshape(-1, self.window, width)
            rows = torch.bmm(weight.expand(flat.shape[0], -1, -1), flat)
            return rows.view(b, -1, self.num_heads, width).transpose(1, 2)
        rows = torch.bmm(weight[..., :n].flatten(0, 1).expand(b, -1, -1), x)
        return rows.view(b, self.num_heads, self.rank, width)

    @torch.no_grad()
    def matrices(self) -> tuple[Tensor, Tensor]:
        """E and F written out, each (k, N) or (h, k, N), whatever the kind: for references and for
        bounds."""
        if self.kind == "dense":
            pair = (self.weight_k, self.weight_v)
        else:
            taps = [None if w is None else w.detach() for w in (self.weight_k, self.weight_v)]
            if self.kind == "mean-pool":
                taps[0] = torch.full((self.window,), 1 / self.window)
            pair = [None if t is None else self._banded(t) for t in taps]
        return pair[0], pair[0] if pair[1] is None else pair[1]

    def _banded(self, taps: Tensor) -> Tensor:
        """The matrix whose row i holds the taps from column i * window on."""
        rows = taps.new_zeros(*taps.shape[:-1], self.rank, self.rank, self.window)
        rows.diagonal(dim1=-3, dim2=-2).copy_(taps[..., None].expand(*taps.shape, self.rank))
        return rows.flatten(-2)

    def _check(self, x: Tensor) -> None:
        if x.shape[-2] > self.seq_len:
            raise RequestError(
                f"input of {x.shape[-2]} positions is longer than the seq_len = {self.seq_len} the compression was built for;"
                " build with a larger seq_len (shorter inputs are fine)"
            )
