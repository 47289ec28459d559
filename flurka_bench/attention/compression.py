"""Compression of N keys and values to k rows: the first of a mechanism's two choices, stated once.

Shape letters as in ``workload``; E (k, N) compresses keys, F values. Every kind is linear over
positions and the same for all channels of a head, so it commutes with the projections of x: E(XW) =
(EX)W. Masked positions are told by ``keep`` (b, n), True = keep; what they hold must be zero.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flurka_bench.words import parts
from flurka_bench.words.errors import RequestError


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
    window is empty. A window that holds only some positions, because the input ends in it or
    because others are masked, is divided by what it holds: its row is multiplied by window / kept
    positions (as in partial convolutions, Liu et al. 2018, arXiv 1804.07723, equation 1). So
    mean-pool always averages, conv stays a mean where its taps are one, and padding at the end
    changes nothing. Windows stand at fixed positions: padding at the start shifts a document
    against them, unless by whole windows, and dense E against its columns.
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
        entry = parts.compression(kind)
        if not 1 <= rank <= seq_len:
            raise RequestError(f"rank must be between 1 and seq_len = {seq_len}, got {rank}")
        if entry.windows and seq_len % rank:
            raise RequestError(
                f"compression {kind!r} needs a rank that divides seq_len = {seq_len}, got {rank}"
            )
        self.seq_len, self.rank, self.num_heads, self.kind = seq_len, rank, num_heads, kind
        self.window = seq_len // rank
        self.shared = share_kv or not entry.has_weights
        self.share_heads = share_heads or not entry.has_weights
        self.weight_k: nn.Parameter | None = None
        self.weight_v: nn.Parameter | None = None
        if entry.has_weights:
            heads = () if self.share_heads else (num_heads,)
            shape = {"dense": (*heads, rank, seq_len), "conv": (*heads, self.window)}[kind]
            self.weight_k = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            if not self.shared:
                self.weight_v = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
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

    def kept_rows(self, keep: Tensor | None) -> Tensor | None:
        """Which compressed rows hold a kept position: keep (b, n) -> (b, rows), or None for all.

        A row of dense E mixes all positions, so it always counts.
        """
        if keep is None or self.kind == "dense":
            return None
        return self._kept_positions(keep) > 0

    def _kept_positions(self, keep: Tensor) -> Tensor:
        """Kept positions in each window: (b, n) -> (b, rows)."""
        return self._windows(keep[..., None])[..., 0].sum(-1)

    def _per_kept(self, rows: Tensor, n: int, keep: Tensor | None) -> Tensor:
        """Rows (b, ..., rows, c) of n positions, divided by what their windows hold.

        Kernels: none for whole windows without a mask.
        """
        if self.kind == "dense" or (keep is None and n % self.window == 0):
            return rows
        if keep is None:
            keep = torch.ones(1, n, dtype=torch.bool, device=rows.device)
        counts = self._kept_positions(keep).clamp_min(1)
        # float32 at least: float16 has no room for a long window over one position
        factors = self.window / counts.to(torch.promote_types(rows.dtype, torch.float32))
        factors = factors.view(len(keep), *(1,) * (rows.ndim - 3), rows.shape[-2], 1)
        return (rows * factors).to(rows.dtype)

    def _windows(self, x: Tensor) -> Tensor:
        """(..., n, c) -> (..., rows, window, c); the last window is filled up with zeros."""
        n = x.shape[-2]
        rows = -(-n // self.window)
        if n % self.window:
            x = nn.functional.pad(x, (0, 0, 0, rows * self.window - n))
        return x.unflatten(-2, (rows, self.window))

    def shared_rows(self, x: Tensor, of_values: bool = False, keep: Tensor | None = None) -> Tensor:
        """E x for an E that all heads share, x (b, n, c) -> (b, k, c), keep (b, n).

        Kernels: dense 1 matmul (b, k, n) @ (b, n, c), E read once; mean-pool 1 reduction; conv 1
            matmul of b * k
        products (1, window) @ (window, c).
        """
        return self._per_kept(self._shared_rows(x, of_values), x.shape[-2], keep)

    def _shared_rows(self, x: Tensor, of_values: bool) -> Tensor:
        """``shared_rows`` as if windows were whole."""
        self._check(x)
        weight = self._weight(of_values)
        if self.kind == "mean-pool":
            return self._windows(x).mean(-2)
        if self.kind == "conv":
            windows = self._windows(x)
            flat = windows.flatten(0, 1)
            return torch.bmm(weight.expand(flat.shape[0], 1, -1), flat).view(
                *windows.shape[:2], x.shape[-1]
            )
        # bmm over an expanded E, not matmul: matmul would fold the batch into rows and copy x for
        # it
        return torch.bmm(weight[:, : x.shape[-2]].expand(x.shape[0], -1, -1), x)

    def head_rows(self, x: Tensor, of_values: bool = False, keep: Tensor | None = None) -> Tensor:
        """E_h x_h for x (b, h, n, d) -> (b, h, k, d), whether heads share E or not; keep (b, n).

        Kernels: as ``shared_rows`` with B = b * h where heads share E. Else dense: a copy of x if b
            > 1, then 1 matmul
        (h, k, n) @ (h, n, b * d); conv: a copy of x if it is not contiguous, then 1 matmul of b * h
        * k products.
        """
        b, h, n, d = x.shape
        if self.share_heads:
            rows = self._shared_rows(x.reshape(b * h, n, d), of_values)
            return self._per_kept(rows.unflatten(0, (b, h)), n, keep)
        self._check(x)
        weight = self._weight(of_values)
        if self.kind == "conv":
            windows = self._windows(x)
            taps = weight[None, :, None, None].expand(b, h, windows.shape[2], 1, self.window)
            return self._per_kept(torch.matmul(taps, windows).squeeze(-2), n, keep)
        folded = x.permute(1, 2, 0, 3).reshape(h, n, b * d)
        return torch.bmm(weight[..., :n], folded).view(h, self.rank, b, d).permute(2, 0, 1, 3)

    def input_rows(self, x: Tensor, of_values: bool = False, keep: Tensor | None = None) -> Tensor:
        """E_h x of the layer's input x (b, n, D) -> (b, h, k, D): every head compresses all of x,
        once per head; keep (b, n).

        Kernels: dense 1 matmul (b, h * k, n) @ (b, n, D); conv 1 matmul of b * k products (h,
            window) @ (window, D).
        """
        self._check(x)
        weight = self._weight(of_values)
        b, n, width = x.shape
        if self.kind == "conv":
            flat = self._windows(x).flatten(0, 1)
            rows = torch.bmm(weight.expand(flat.shape[0], -1, -1), flat)
            rows = rows.view(b, -(-n // self.window), self.num_heads, width).transpose(1, 2)
            return self._per_kept(rows, n, keep)
        rows = torch.bmm(weight[..., :n].flatten(0, 1).expand(b, -1, -1), x)
        return rows.view(b, self.num_heads, self.rank, width)

    @torch.no_grad()
    def matrices(self, num_positions: int | None = None) -> tuple[Tensor, Tensor]:
        """E and F written out, each (k, N) or (h, k, N), whatever the kind: for references and for
        bounds.

        ``num_positions``: those of a shorter input, (rows, n) or (h, rows, n); None for N.
        """
        n = self.seq_len if num_positions is None else num_positions
        if self.kind == "dense":
            pair = [None if w is None else w[..., :n] for w in (self.weight_k, self.weight_v)]
        else:
            taps = [None if w is None else w.detach() for w in (self.weight_k, self.weight_v)]
            if self.kind == "mean-pool":
                taps[0] = torch.full((self.window,), 1 / self.window, dtype=torch.float64)
            pair = [None if t is None else self._banded(t, n) for t in taps]
        return pair[0], pair[0] if pair[1] is None else pair[1]

    def _banded(self, taps: Tensor, n: int) -> Tensor:
        """The matrix whose row i holds the taps from column i * window on, cut after column n."""
        rows = taps.new_zeros(*taps.shape[:-1], self.rank, self.rank, self.window)
        rows.diagonal(dim1=-3, dim2=-2).copy_(taps[..., None].expand(*taps.shape, self.rank))
        matrix = rows.flatten(-2)[..., : -(-n // self.window), :n]
        if n % self.window:
            matrix[..., -1, :] *= self.window / (n % self.window)
        return matrix

    def _check(self, x: Tensor) -> None:
        if x.shape[-2] > self.seq_len:
            raise RequestError(
                f"input of {x.shape[-2]} positions is longer than the seq_len = {self.seq_len} the compression was built for;"
                " build with a larger seq_len (shorter inputs are fine)"
            )


def make_compression(kind: str = "dense", **options: Any) -> Compression:
    """The compression of that name, ours or another package's; options as ``Compression``'s.

    Raises RequestError for an unknown name and a rank that the compression cannot have.
    """
    built: Compression = parts.resolve(parts.compression(kind).torch)(kind=kind, **options)
    return built
