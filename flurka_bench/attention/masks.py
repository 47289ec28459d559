"""Masks of keys, checked and brought to one meaning: bool (b, N), True = keep.

Everything below the layers and the functional cores sees this meaning alone.
"""

import torch
from torch import Tensor

from flurka_bench.words.errors import RequestError

_CONVERSIONS = {
    "keep_mask": "one that is 1 where a key is kept: mask.bool();"
    " an additive one, 0 where a key is kept: mask == 0",
    "key_padding_mask": "one that is 1, or -inf, where a key is padding: mask.bool();"
    " one that is 1 where a key is kept: pass keep_mask=mask.bool()",
}
_MEANINGS = {"keep_mask": "True = keep", "key_padding_mask": "True = padding"}


def kept_keys(
    keep_mask: Tensor | None, key_padding_mask: Tensor | None, keys: Tensor, num_positions: int
) -> Tensor | None:
    """The keys to keep, (b, N) with True = keep, or None for all of them.

    ``keep_mask`` is True where a key is kept, ``key_padding_mask`` where it is padding, as in
    ``nn.MultiheadAttention``. ``keys`` gives the batch, its first dimension, and the device.
    Raises RequestError for both at once, for another dtype, shape or device than
    bool (b, N) beside ``keys``, and for keys without a position.
    """
    if num_positions < 1:
        raise RequestError(
            f"attention needs at least one key, got an input of shape {tuple(keys.shape)}"
        )
    if keep_mask is not None and key_padding_mask is not None:
        raise RequestError(
            "got keep_mask (True = keep) and key_padding_mask (True = padding) at once; give one"
        )
    if keep_mask is not None:
        return _checked("keep_mask", keep_mask, keys, num_positions)
    if key_padding_mask is not None:
        return ~_checked("key_padding_mask", key_padding_mask, keys, num_positions)
    return None


def attended_keys(keep: Tensor | None) -> Tensor | None:
    """``keep``, but all keys of a sequence that keeps none.

    Such a sequence then attends evenly to values that its caller has set to zero. So its output is
    zero, and so is every gradient through it, without a 0 / 0 on the way.
    """
    return None if keep is None else keep | ~keep.any(-1, keepdim=True)


def zero_padding(rows: Tensor, keep: Tensor) -> Tensor:
    """Rows (..., N, c) with zeros where a position is not kept; ``keep`` (..., N) broadcasts.
    What padded rows held, NaN too, is gone from values and gradients."""
    return rows.masked_fill(~keep[..., None], 0)


def _checked(name: str, mask: Tensor, keys: Tensor, num_positions: int) -> Tensor:
    batch = keys.shape[0]
    accepted = f"{name} must be bool (b, N), {_MEANINGS[name]}: here ({batch}, {num_positions})"
    if not isinstance(mask, Tensor):
        raise RequestError(f"{accepted}, a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise RequestError(f"{accepted}, got {mask.dtype}; convert {_CONVERSIONS[name]}")
    if tuple(mask.shape) != (batch, num_positions):
        raise RequestError(f"{accepted}, got shape {tuple(mask.shape)}")
    if mask.device != keys.device:
        raise RequestError(f"{accepted} on {keys.device}, got one on {mask.device}")
    return mask
