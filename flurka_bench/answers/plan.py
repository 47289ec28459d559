"""What a run would measure, with what the cost model says of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flurka_bench.cases.case import Case
from flurka_bench.cost.predict import predict
from flurka_bench.hardware import Profile
from flurka_bench.lowering import peak_memory_bytes


def predicted_fields(
    cases: Sequence[Case], profile: Profile, *, stages: bool, cache: str
) -> dict[str, dict[str, Any]]:
    """By case id the predictions in the fields of a record; with ``stages`` also by stage.

    Raises:
        RequestError: a case that the target cannot compute.
    """
    found = {}
    for prediction in predict(cases, profile, cache=cache):
        fields = {
            "predicted_s": prediction.seconds,
            "predicted_low_s": prediction.seconds_low,
            "predicted_high_s": prediction.seconds_high,
            "predicted_log_scale": prediction.log_scale,
            "predicted_log_shape": prediction.log_shape,
            "bound": prediction.bound,
        }
        if stages:
            fields["predicted_stages_s"] = {
                stage: float(seconds) for stage, seconds in prediction.stages.items()
            }
        found[prediction.case.case_id] = fields
    return found


def plan(
    cases: Sequence[Case], predictions: Mapping[str, Mapping[str, Any]], device_kind: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each case with its predictions and peak memory in bytes, and the totals over them:
    one call of each in seconds (None without predictions), the largest memory in bytes."""
    rows = [
        {
            "case_id": case.case_id,
            **case.as_record(),
            **predictions.get(case.case_id, {}),
            "peak_memory_bytes": int(peak_memory_bytes(case, device_kind)),
        }
        for case in cases
    ]
    seconds = [row["predicted_s"] for row in rows if row.get("predicted_s") is not None]
    return rows, {
        "num_cases": len(rows),
        "one_call_each_s": sum(seconds) if seconds else None,
        "largest_memory_bytes": max(row["peak_memory_bytes"] for row in rows),
    }
