"""A sweep of predictions in the form of a run's records, for the map of hardware that is not at
hand."""

from collections.abc import Iterable, Sequence

import pandas as pd

from flurka_bench.cases.case import Case
from flurka_bench.cases.expand import expand
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.cost.predict import (
    Prediction,
    predict,
)
from flurka_bench.hardware import Profile
from flurka_bench.words.sizes import MAX_COMBINATIONS, ORDERS

SEQ_LENS = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
RANKS = (64, 128, 256, 512, 1024)
NUM_FEATURES = (16, 32, 64, 128, 256)
BACKENDS = ("eager", "compiled")


def sweep(
    *, dtype: str, level: str = "layer", passes: Sequence[str] = ("forward", "train"), seq_lens: Sequence[int] = SEQ_LENS,
    ranks: Sequence[int] = RANKS, num_features: Sequence[int] = NUM_FEATURES, model_dim: int = 1024, head_dim: int = 64,
    batch: int = 1,
) -> list[Case]:  # fmt: skip
    """Every mechanism, order and backend over N, k and m, as canonical cases without duplicates.

    Ranks above N fall away. Raises RequestError where no case is left, with the first reason.
    """
    axes = {
        "mechanism": list(MECHANISMS), "level": [level], "pass": passes, "seq_len": seq_lens,
        "rank": ranks, "num_features": num_features, "order": ORDERS, "backend": BACKENDS,
        "dtype": [dtype], "batch": [batch], "num_heads": [model_dim // head_dim],
        "head_dim": [head_dim],
    }  # fmt: skip
    found = expand(axes, what="a map", mend="give fewer values", limit=10 * MAX_COMBINATIONS)
    if not found.cases:
        raise found.impossible[0][1]
    return found.cases


def as_record(prediction: Prediction, device: str) -> dict:
    """One prediction as a record with status ``predicted``: no samples, nothing measured."""
    values = prediction.as_record()
    moved = {"predicted_s": "seconds", "predicted_low_s": "seconds_low", "predicted_high_s": "seconds_high",
             "predicted_log_scale": "log_scale", "predicted_log_shape": "log_shape",
             "predicted_stages_s": "stages"}  # fmt: skip
    record = {name: values[source] for name, source in moved.items()}
    kept = {name: value for name, value in values.items() if name not in moved.values()}
    error = None if prediction.fits_in_memory else "does not fit into the device's memory"
    status = "predicted" if prediction.fits_in_memory else "oom"
    return (
        kept
        | record
        | {"status": status, "device": device, "case_id": prediction.case.case_id, "error": error}
    )


def strongest(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Per mechanism and sizes the fastest order and backend, and the paper's form of what it
    compares with."""
    fastest: dict[tuple, Prediction] = {}
    papers: dict[str, Prediction] = {}
    for found in predictions:
        case = found.case
        key = (case.mechanism, *case.workload_key, case.rank, case.num_features)
        if key not in fastest or found.seconds < fastest[key].seconds:
            fastest[key] = found
        if (
            case.backend == "eager"
            and case.order in (None, "project_first")
            and not MECHANISMS[case.mechanism].is_flurka
        ):
            papers[case.case_id] = found
    return list(
        {found.case.case_id: found for found in (*papers.values(), *fastest.values())}.values()
    )


def predicted_frame(
    profiles: Sequence[Profile], dtype: str | None = None, launch: str = "eager", **axes: object
) -> pd.DataFrame:
    """Predictions on every target as records (``axes``: those of ``sweep``); a case too large for
    the memory has no time."""
    rows = []
    for profile in profiles:
        cases = sweep(dtype=dtype or profile.own_dtype, **axes)  # type: ignore[arg-type]
        for found in strongest(predict(cases, profile, launch=launch)):
            record = as_record(found, profile.title)
            if record["status"] == "oom":
                record |= dict.fromkeys(("predicted_s", "predicted_low_s", "predicted_high_s"))
            rows.append(record)
    return pd.DataFrame(rows)
