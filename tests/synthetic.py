"""Records with known answers: exactly the columns that ``results.to_frame`` gives, from a formula
instead of a clock."""

import itertools

import numpy as np
import pandas as pd

from flurka_bench.cases.case import Case

MECHANISMS = ("full-math", "full-sdpa", "low-rank", "low-rank-sdpa", "kernel-favor", "kernel-relu", "kernel-elu",
              "flurka-favor", "flurka-relu", "flurka-elu")  # fmt: skip
RATE = 1e11
LAUNCH_S = 2e-5


def true_seconds(mechanism, order, n, k, m, h, d, b):
    """Layer forward by FLOPs alone, E = F, plus a softmax term per score and a launch time
    (DESIGN's closed forms)."""
    D = h * d
    if mechanism.startswith("full"):
        flops = 8 * n * D**2 + 4 * n * n * D
        extra = (8 if mechanism == "full-math" else 1) * n * n * h * 5
    elif mechanism.startswith("low-rank"):
        project = 8 * n * D**2 if order == "project_first" else 4 * n * D**2 + 4 * k * D**2
        flops = project + 4 * n * k * D + 4 * n * k * D
        extra = (8 if mechanism == "low-rank" else 1) * n * k * h * 5
    elif mechanism.startswith("kernel"):
        flops, extra = 8 * n * D**2 + 8 * n * m * D, n * m * h * 10
    else:
        project = 8 * n * D**2 if order == "project_first" else 4 * n * D**2 + 4 * k * D**2
        flops, extra = project + 2 * n * k * D + 4 * n * m * D + 4 * k * m * D, n * m * h * 10
    return b * (flops + extra) / RATE + 8 * LAUNCH_S


def records(
    *,
    mechanisms=MECHANISMS,
    seq_lens=(512, 1024, 2048, 4096, 8192),
    ranks=(64, 128, 256, 512),
    features=(16, 32, 64, 128),
    orders=("project_first", "compress_first"),
    level="layer",
    passes=("forward",),
    dtypes=("float32",),
    device="cpu: Test CPU",
    num_heads=8,
    head_dim=64,
    batch=1,
    rounds=8,
    noise=0.01,
    bias=0.1,
    failures=(),
    with_predictions=True,
    seed=0,
):
    """A list of records. ``failures`` maps (mechanism, seq_len) -> (status, error)."""
    rng = np.random.default_rng(seed)
    failures = dict(failures)
    out, seen = [], set()
    for mechanism, n, k, m, order, pass_, dtype in itertools.product(
        mechanisms, seq_lens, ranks, features, orders, passes, dtypes
    ):
        compressed = mechanism.startswith(("low-rank", "flurka"))
        featured = mechanism.startswith(("kernel", "flurka"))
        if order == "compress_first" and not compressed:
            continue
        k_ = k if compressed else None
        m_ = (
            (head_dim if mechanism.endswith("elu") and not mechanism.endswith("relu") else m)
            if featured
            else None
        )
        if compressed and k > n:
            continue
        case = Case(mechanism=mechanism, level=level, pass_=pass_, order=order if level == "layer" else None,
                    dtype=dtype, batch=batch, num_heads=num_heads, seq_len=n, head_dim=head_dim,
                    rank=k_, num_features=m_)  # fmt: skip
        if case.case_id in seen:
            continue
        seen.add(case.case_id)
        seconds = true_seconds(
            mechanism, order, n, k_ or 0, m_ or 0, num_heads, head_dim, batch
        ) * (3 if pass_ == "train" else 1)
        status, error = failures.get((mechanism, n), ("ok", None))
        samples = (
            (seconds * np.exp(rng.normal(0, noise, rounds))).tolist() if status == "ok" else []
        )
        predicted = seconds * (1 + bias * (1 if compressed else -1))
        record = {
            "schema": 1, "case_id": case.case_id, "status": status, "device": device, "seed": 0,
            **{name: value for name, value in case.as_record().items()},
            "samples_s": samples, "round_ids": list(range(len(samples))),
            "median_s": float(np.median(samples)) if samples else None,
            "flops": seconds * RATE, "bytes": n * num_heads * head_dim * 4 * 10, "peak_memory_bytes": n * (k_ or n) * 4.0,
            "error": error, "warnings": [],
            "predicted_s": predicted if with_predictions else None,
            "predicted_low_s": predicted / 1.2 if with_predictions else None,
            "predicted_high_s": predicted * 1.2 if with_predictions else None,
            "bound": "compute" if with_predictions else None,
        }  # fmt: skip
        out.append(record)
    return out


def frame(**options):
    """The same as a DataFrame."""
    return pd.DataFrame(records(**options))


EMPTY = frame().iloc[:0]
