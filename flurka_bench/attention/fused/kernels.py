"""Triton kernels of attention by features, forward: no feature and no score is ever written to
memory.

    key_side     K, V (L rows), Omega  ->  z = sum phi(K) / L (m), S = phi(K)^T V / L / f (m, d),
                 for FAVOR+ the stabiliser c (m); f is the largest z of a group of features
    combine      the same, from parts that ``key_side`` left where many keys were split over
                 programs
    query_side   Q, Omega, S, z, c  ->  ((phi(Q) f) S) / (phi(Q) . z), walking the features as
                 flash attention walks keys

A row of S is at most a weighted mean of the values, so it fits the inputs' dtype whatever L is.
Groups are the blocks of the kernel that writes S. phi(Q) f is taken relative to the head's largest
z, and rounded to that dtype.

Why FAVOR+ splits so well: its stabiliser c_j is one number per feature (see
``similarity.FavorFeatures``), so programs that hold different features share nothing, and the query
side is softmax(q Omega + c) with z for weights.

Legend: B = batch * heads; BLOCK_L, BLOCK_N rows of keys and queries, BLOCK_M features, BLOCK_D
    head_dim filled up to a
power of two. KIND 0 relu, 1 favor, 2 elu; ``epsilon`` is what relu and elu add to a feature.
Products run in the inputs' dtype (UPCAST: in float32, for the interpreter, whose bfloat16
arithmetic is wrong) and add up in float32.
"""

import triton
import triton.language as tl

RELU, FAVOR, ELU = 0, 1, 2
KINDS = {"relu": RELU, "favor": FAVOR, "elu": ELU}


@triton.jit
def _elu_plus_one(x):
    return tl.where(x > 0, x + 1, tl.exp(x))


@triton.jit
def _one_over_largest(z):
    return 1 / tl.max(tl.maximum(z, 1e-37), axis=0)


@triton.jit
def _load(pointers, mask, UPCAST: tl.constexpr):
    tile = tl.load(pointers, mask=mask, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def key_side(
    k_ptr, v_ptr, omega_ptr, keep_ptr, s_ptr, z_ptr, c_ptr,
    stride_kb, stride_kh, stride_kl, stride_vb, stride_vh, stride_vl,
    num_heads, num_keys, num_features, head_dim, keys_per_split, num_splits, half_scale, epsilon, out_scale,
    KIND: tl.constexpr, HAS_MASK: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, FINAL: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of features * splits of keys, B). Writes s (B, splits, m, d), z and c (B,
    splits, m).

    ``half_scale`` is FAVOR+'s d^-1/2 / 2 before |k|^2. ``out_scale`` is 1 / L where this is the
    only split (``FINAL``), else 1, and S is not divided by z yet.
    """
    split = tl.program_id(0) % num_splits
    offs_m = (tl.program_id(0) // num_splits) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    batch_id, head_id = head // num_heads, head % num_heads
    k_ptr += batch_id * stride_kb + head_id * stride_kh
    v_ptr += batch_id * stride_vb + head_id * stride_vh
    offs_d = tl.arange(0, BLOCK_D)
    in_d, in_m = offs_d < head_dim, offs_m < num_features
    if KIND != 2:
        omega_pointers = omega_ptr + offs_d[:, None] * num_features + offs_m[None, :]
        omega = _load(omega_pointers, in_d[:, None] & in_m[None, :], UPCAST)

    s = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    z = tl.zeros((BLOCK_M,), dtype=tl.float32)
    c = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    start = split * keys_per_split
    for first in range(start, tl.minimum(start + keys_per_split, num_keys), BLOCK_L):
        offs_l = first + tl.arange(0, BLOCK_L)
        in_l = offs_l < num_keys
        rows = offs_l.to(tl.int64)
        v = _load(
            v_ptr + rows[:, None] * stride_vl + offs_d[None, :],
            in_l[:, None] & in_d[None, :],
            UPCAST,
        )
        keep = in_l
        if HAS_MASK:
            keep = in_l & (
                tl.load(keep_ptr + batch_id * num_keys + offs_l, mask=in_l, other=0) != 0
            )
        if KIND == 2:  # phi works on k itself: the columns of this block of features
            tile = tl.load(
                k_ptr + rows[:, None] * stride_kl + offs_m[None, :],
                mask=in_l[:, None] & in_m[None, :],
                other=0.0,
            )
            phi = _elu_plus_one(tile.to(tl.float32)) + epsilon
        else:
            k = _load(
                k_ptr + rows[:, None] * stride_kl + offs_d[None, :],
                in_l[:, None] & in_d[None, :],
                UPCAST,
            )
            y = tl.dot(k, omega, input_precision=PRECISION)
            if KIND == 1:
                k_wide = k.to(tl.float32)
                y -= half_scale * tl.sum(k_wide * k_wide, axis=1)[:, None]
                y = tl.where(keep[:, None], y, float("-inf"))
                highest = tl.maximum(c, tl.max(y, axis=0))
                shift = tl.where(highest == float("-inf"), 0.0, highest)  # no key kept so far
                shrink = tl.exp(c - shift)
                s *= shrink[:, None]
                z *= shrink
                c = highest
                phi = tl.exp(y - shift[None, :])
            else:
                phi = tl.maximum(y, 0.0) + epsilon
        phi = tl.where(keep[:, None] & in_m[None, :], phi, 0.0).to(v.dtype)
        z += tl.sum(phi.to(tl.float32), axis=0)
        s += tl.dot(tl.trans(phi), v, input_precision=PRECISION)

    row = (head * num_splits + split) * num_features + offs_m
    tl.store(z_ptr + row, z * out_scale, mask=in_m)
    if KIND == 1:
        tl.store(c_ptr + row, c, mask=in_m)
    s_pointers = s_ptr + row[:, None] * head_dim + offs_d[None, :]
    if FINAL:
        s *= _one_over_largest(z)
    tl.store(s_pointers, s.to(s_ptr.dtype.element_ty), mask=in_m[:, None] & in_d[None, :])


@triton.jit
def combine(
    s_parts_ptr, z_parts_ptr, c_parts_ptr, s_ptr, z_ptr, c_ptr,
    num_splits, num_features, head_dim, out_scale,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of features, B). Adds up the parts of ``key_side``, each shrunk to the common
    stabiliser."""
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    in_m = offs_m < num_features
    inside = in_m[:, None] & (offs_d < head_dim)[None, :]
    s = tl.zeros((BLOCK_M, BLOCK_D), dtype=tl.float32)
    z = tl.zeros((BLOCK_M,), dtype=tl.float32)
    c = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    for split in range(num_splits):
        row = (head * num_splits + split) * num_features + offs_m
        s_part = tl.load(
            s_parts_ptr + row[:, None] * head_dim + offs_d[None, :], mask=inside, other=0.0
        )
        z_part = tl.load(z_parts_ptr + row, mask=in_m, other=0.0)
        if KIND == 1:
            c_part = tl.load(c_parts_ptr + row, mask=in_m, other=0.0)
            highest = tl.maximum(c, c_part)
            shift = tl.where(highest == float("-inf"), 0.0, highest)
            shrink, shrink_part = tl.exp(c - shift), tl.exp(c_part - shift)
            s = s * shrink[:, None] + s_part * shrink_part[:, None]
            z = z * shrink + z_part * shrink_part
            c = highest
        else:
            s += s_part
            z += z_part
    row = head * num_features + offs_m
    tl.store(z_ptr + row, z * out_scale, mask=in_m)
    if KIND == 1:
        tl.store(c_ptr + row, c, mask=in_m)
    tl.store(
        s_ptr + row[:, None] * head_dim + offs_d[None, :],
        (s * _one_over_largest(z)).to(s_ptr.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def query_side(
    q_ptr, omega_ptr, s_ptr, z_ptr, c_ptr, out_ptr,
    stride_qb, stride_qh, stride_qn, stride_ob, stride_oh, stride_on,
    num_heads, num_queries, num_features, head_dim, epsilon,
    KIND: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of queries, B). Walks the features in blocks; FAVOR+ with a running maximum, as
    flash attention."""
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.program_id(1).to(tl.int64)
    batch_id, head_id = head // num_heads, head % num_heads
    q_ptr += batch_id * stride_qb + head_id * stride_qh
    out_ptr += batch_id * stride_ob + head_id * stride_oh
    offs_d = tl.arange(0, BLOCK_D)
    in_n, in_d = offs_n < num_queries, offs_d < head_dim
    rows = offs_n.to(tl.int64)
    if KIND != 2:
        q = _load(
            q_ptr + rows[:, None] * stride_qn + offs_d[None, :],
            in_n[:, None] & in_d[None, :],
            UPCAST,
        )

    largest = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for first in range(0, num_features, BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M)
        row = head * num_features + offs_m
        largest = tl.maximum(largest, tl.load(z_ptr + row, mask=offs_m < num_features, other=0.0))
    share = 1 / tl.max(largest, axis=0)

    numerator = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    normaliser = tl.zeros((BLOCK_N,), dtype=tl.float32)
    highest = tl.full((BLOCK_N,), float("-inf"), dtype=tl.float32)
    for first in range(0, num_features, BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M)
        in_m = offs_m < num_features
        row = head * num_features + offs_m
        s = _load(
            s_ptr + row[:, None] * head_dim + offs_d[None, :], in_m[:, None] & in_d[None, :], UPCAST
        )
        z = tl.load(z_ptr + row, mask=in_m, other=0.0)
        grouped = tl.reshape(z, (BLOCK_M // GROUP, GROUP))
        group_largest = tl.maximum(tl.max(grouped, axis=1), 1e-37)[:, None]
        f = tl.reshape(tl.broadcast_to(group_largest, (BLOCK_M // GROUP, GROUP)), (BLOCK_M,))
        if KIND == 2:
            tile = tl.load(
                q_ptr + rows[:, None] * stride_qn + offs_m[None, :],
                mask=in_n[:, None] & in_m[None, :],
                other=0.0,
            )
            phi = _elu_plus_one(tile.to(tl.float32)) + epsilon
        else:
            omega = _load(
                omega_ptr + offs_d[:, None] * num_features + offs_m[None, :],
                in_d[:, None] & in_m[None, :],
                UPCAST,
            )
            y = tl.dot(q, omega, input_precision=PRECISION)
            if KIND == 1:
                y += tl.load(c_ptr + row, mask=in_m, other=float("-inf"))[None, :]
                higher = tl.maximum(highest, tl.max(y, axis=1))
                shrink = tl.exp(highest - higher)
                numerator *= shrink[:, None]
                normaliser *= shrink
                highest = higher
                phi = tl.exp(y - higher[:, None])
            else:
                phi = tl.maximum(y, 0.0) + epsilon
        # z of features beyond num_features is 0, and so is s
        phi = (phi * (f * share)[None, :]).to(s.dtype)
        normaliser += tl.sum(phi.to(tl.float32) * (z / f)[None, :], axis=1)
        numerator += tl.dot(phi, s, input_precision=PRECISION)
    out = (numerator / normaliser[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(
        out_ptr + rows[:, None] * stride_on + offs_d[None, :],
        out,
        mask=in_n[:, None] & in_d[None, :],
    )
