"""recommend: floors, limits, ties, the front, and a line of Python that builds what it names."""

import dataclasses
import json
import subprocess
import sys

import pytest

from flurka_bench.answers.frontier import ErrorRun
from flurka_bench.answers.recommend import (
    ASSUMED_MIN_RANK,
    Request,
    beside_floors,
    python_imports,
    python_line,
    recommend,
    space,
)
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.cost.predict import predict
from flurka_bench.hardware import load
from flurka_bench.words.errors import RequestError
from flurka_bench.words.verdict import RULE

H100 = load("h100")
SMALL = Request(
    seq_len=1024,
    model_dim=256,
    dtype="bfloat16",
    head_dims=(64,),
    backends=("eager",),
    launch="graph",
)


def keeps(case, rank=ASSUMED_MIN_RANK, features=64):
    """Read off the case itself: a knob that it has must reach its floor."""
    return (case.rank is None or case.rank >= rank) and (
        case.num_features is None or case.num_features >= features
    )


def test_the_ranking_is_the_model_s_own_and_sorted():
    answer = recommend(SMALL, H100)
    seconds = [each.prediction.seconds for each in answer.candidates]
    assert seconds == sorted(seconds)
    again = {
        each.case.case_id: each.seconds
        for each in predict(space(SMALL), H100, launch="graph")
        if keeps(each.case)
    }
    assert {
        each.prediction.case.case_id: each.prediction.seconds for each in answer.candidates
    } == pytest.approx(again)
    assert {each.prediction.case.mechanism for each in answer.candidates} == set(MECHANISMS)


def test_without_a_floor_one_is_assumed_and_said():
    assert "ASSUMED" in SMALL.floor_in_words() and str(ASSUMED_MIN_RANK) in SMALL.floor_in_words()
    cases = [each.prediction.case for each in recommend(SMALL, H100).candidates]
    assert min(case.rank for case in cases if case.rank) == ASSUMED_MIN_RANK
    assert min(case.num_features for case in cases if case.num_features) == 64
    given = dataclasses.replace(SMALL, min_rank=32, min_features=16)
    assert "ASSUMED" not in given.floor_in_words()
    cases = [each.prediction.case for each in recommend(given, H100).candidates]
    assert min(case.rank for case in cases if case.rank) == 32


def test_a_higher_floor_never_makes_the_best_approximation_faster():
    def best(rank, features):
        answer = recommend(dataclasses.replace(SMALL, min_rank=rank, min_features=features), H100)
        return min(
            each.prediction.seconds
            for each in answer.candidates
            if each.prediction.case.mechanism == "flurka-relu"
        )

    times = [best(32, 16), best(64, 16), best(64, 64), best(256, 64), best(256, 256)]
    assert times == sorted(times)


def test_the_answer_is_shown_below_and_above_the_floor():
    moved = dict(recommend(SMALL, H100).by_floor)
    ranks = [
        moved[words].prediction
        for words in ("rank >= 128", "rank >= 256 (assumed)", "rank >= 512", "rank >= 1024")
    ]
    assert [each.seconds for each in ranks] == sorted(each.seconds for each in ranks)
    assert ranks[1] == recommend(SMALL, H100).candidates[0].prediction
    for words, each in moved.items():
        factor = {"half": 0.5, "twice": 2, "four": 4}.get(
            words.rpartition("features >= ")[2].split()[0], 1
        )
        floor = int(words.split()[2].rstrip(","))
        rivals = [
            one
            for one in predict(space(SMALL), H100, launch="graph")
            if keeps(one.case, floor, 64 * factor)
        ]
        assert each.prediction.seconds == pytest.approx(min(one.seconds for one in rivals))
    assert moved["rank >= 256, features >= half of head_dim"].prediction.seconds <= ranks[1].seconds


def test_limits_hold_and_the_nearest_is_shown_where_nothing_meets_them():
    all_of_them = recommend(SMALL, H100)
    memories = sorted(each.prediction.peak_memory_bytes for each in all_of_them.candidates)
    limit = memories[len(memories) // 2]
    limited = recommend(dataclasses.replace(SMALL, max_memory_bytes=limit), H100)
    assert limited.candidates and all(
        each.prediction.peak_memory_bytes <= limit for each in limited.candidates
    )
    too_fast = recommend(dataclasses.replace(SMALL, max_latency_s=1e-9), H100)
    assert (
        not too_fast.candidates
        and too_fast.nearest.prediction.seconds == all_of_them.candidates[0].prediction.seconds
    )
    too_small = recommend(dataclasses.replace(SMALL, max_memory_bytes=1), H100)
    assert too_small.nearest.prediction.peak_memory_bytes == memories[0]


def test_verdicts_against_the_fastest_are_those_of_the_bands():
    from flurka_bench.cost.predict import speedup
    from flurka_bench.words.verdict import verdict

    answer = recommend(SMALL, H100)
    best = answer.candidates[0]
    assert best.verdict is None and not best.tied
    for each in answer.candidates[1:]:
        band = speedup(each.prediction, best.prediction)
        assert each.verdict == verdict(band.low, band.high) != "FASTER"
        assert each.tied == (each.verdict != "SLOWER")
    assert {each.verdict for each in answer.candidates[1:]} >= {"SLOWER", "AMBIGUOUS"}


@pytest.mark.parametrize("model_dim", [192, 256])
@pytest.mark.parametrize(("min_rank", "min_features"), [(None, None), (None, 256),
                                                        (100, None), (16, 32), (512, 128)])  # fmt: skip
def test_everything_recommended_keeps_to_the_floor_or_has_no_such_knob(
    model_dim, min_rank, min_features
):
    request = dataclasses.replace(
        SMALL, model_dim=model_dim, head_dims=(32, 64, 128), min_rank=min_rank,
        min_features=min_features,
    )  # fmt: skip
    answer = recommend(request, H100)
    assumed = min_rank is None and min_features is None
    rank = min_rank or (ASSUMED_MIN_RANK if assumed else 16)

    def told(each, rank, features):
        case = each.prediction.case
        words = beside_floors(case)
        assert (case.rank is not None and case.rank >= rank) or "no rank" in words
        assert (case.num_features is not None and case.num_features >= features) or (
            "no features" in words
        )
        assert not (words and case.rank and case.num_features)

    def floor(each):
        return min_features or (each.prediction.case.head_dim if assumed else 16)

    for each in (*answer.candidates, *answer.front):
        told(each, rank, floor(each))
    for words, each in answer.by_floor:
        steps = {"half": 0.5, "twice": 2, "four": 4}
        step = steps.get(words.rpartition("features >= ")[2].split()[0], 1)
        told(each, int(words.split()[2].rstrip(",")), step * floor(each))
    names = {each.prediction.case.mechanism for each in answer.candidates}
    assert names >= {name for name in MECHANISMS if not name.endswith("-elu")}


def test_elu_with_fewer_features_than_asked_for_is_not_recommended():
    """A floor of 256 features at heads of 64: elu + 1 has 64 and cannot have more."""
    answer = recommend(dataclasses.replace(SMALL, min_features=256), H100)
    names = {each.prediction.case.mechanism for each in answer.candidates}
    assert names == set(MECHANISMS) - {"kernel-elu", "flurka-elu"}
    wide = dataclasses.replace(SMALL, model_dim=512, min_features=128, head_dims=(64, 128))
    cases = [each.prediction.case for each in recommend(wide, H100).candidates]
    assert {case.head_dim for case in cases if case.mechanism.endswith("-elu")} == {128}


@pytest.mark.parametrize(("target", "pass_"), [("h100", "train"), ("cpu", "forward")])
def test_backends_that_compute_nothing_are_a_sentence(target, pass_):
    from flurka_bench.hardware.detect import detect_cpu

    profile = detect_cpu() if target == "cpu" else H100
    with pytest.raises(RequestError, match="--backend eager,compiled"):
        recommend(dataclasses.replace(SMALL, backends=("fused",), pass_=pass_), profile)


def test_nothing_on_the_front_is_beaten_and_all_else_is():
    answer = recommend(SMALL, H100)
    points = [
        (each.prediction.seconds, each.prediction.peak_memory_bytes, bool(each.error))
        for each in answer.front
    ]
    for one in points:
        assert not any(
            other[0] < one[0] and other[1] < one[1] and other[2] >= one[2] for other in points
        )
    assert any(
        each.prediction.case.mechanism.startswith("full") for each in answer.front
    )  # the only ones with an error of 0


def error_records():
    for mechanism, rank, features, error in (
        ("low-rank", 256, None, 0.1),
        ("flurka-relu", 256, 64, 0.5),
        ("flurka-relu", 512, 64, 0.3),
    ):
        for seed in range(3):
            yield {
                "status": "ok", "family": "trained", "inputs": "trained", "seq_len": 1024, "head_dim": 64, "mechanism": mechanism,
                "projection": "learned", "share_kv": False, "rank": rank, "num_features": features, "seed": seed,
                "output_error": error * (1 + 0.01 * seed),
            }  # fmt: skip


def test_an_error_bar_keeps_what_was_measured_below_it():
    errors = ErrorRun(list(error_records()))
    request = dataclasses.replace(SMALL, max_error=0.2, min_rank=256)
    answer = recommend(request, H100, errors=errors)
    assert {each.prediction.case.mechanism for each in answer.candidates} == {
        "full-math",
        "full-sdpa",
        "low-rank",
        "low-rank-sdpa",
    }
    assert all(each.error.high <= 0.2 for each in answer.candidates)
    assert answer.num_without_error > 0 == recommend(SMALL, H100, errors=errors).num_without_error
    bars = dict(answer.by_floor)
    assert bars["error <= 0.2"] == answer.candidates[0]
    assert bars["error <= 0.4"].prediction.seconds <= bars["error <= 0.1"].prediction.seconds
    looser = recommend(dataclasses.replace(request, max_error=0.4), H100, errors=errors)
    assert "flurka-relu" in {each.prediction.case.mechanism for each in looser.candidates}
    assert answer.nearest is None and looser.nearest is None and not answer.why_none


def test_where_only_exact_attention_meets_the_bar_the_nearest_approximation_is_shown():
    errors = ErrorRun(list(error_records()))
    strict = recommend(dataclasses.replace(SMALL, max_error=0.01), H100, errors=errors)
    assert {each.prediction.case.mechanism for each in strict.candidates} == {
        "full-math",
        "full-sdpa",
    }
    assert (
        strict.nearest.prediction.case.mechanism.startswith("low-rank")
        and strict.nearest.error.high > 0.1
    )
    assert "no approximation meets the error bar" in strict.why_none
    elsewhere = recommend(
        dataclasses.replace(SMALL, max_error=0.5, seq_len=4096), H100, errors=errors
    )
    assert elsewhere.nearest is None
    assert "at N = 4096" in elsewhere.why_none and "N = 1024 with d = 64" in elsewhere.why_none


def test_a_bar_needs_a_run_and_a_family_of_it():
    errors, request = ErrorRun(list(error_records())), dataclasses.replace(SMALL, max_error=0.2)
    with pytest.raises(RequestError, match="--error-run"):
        recommend(request, H100)
    with pytest.raises(RequestError, match="trained"):
        recommend(dataclasses.replace(request, inputs="traind"), H100, errors=errors)


def test_what_a_run_measured_is_not_predicted():
    slowest = recommend(SMALL, H100).candidates[-1].prediction.case
    record = {
        "status": "ok",
        "case_id": slowest.case_id,
        "samples_s": [1e-9 * (1 + 0.001 * i) for i in range(12)],
    }
    answer = recommend(
        SMALL, H100, records=[record, {"status": "oom", "case_id": "x", "samples_s": None}]
    )
    assert answer.candidates[0].prediction.case == slowest and answer.candidates[0].measured
    assert answer.candidates[0].prediction.seconds == pytest.approx(1e-9, rel=0.02)
    assert sum(each.measured for each in answer.candidates) == 1


def test_the_line_of_python_builds_the_layer():
    torch = pytest.importorskip("torch")
    import flurka_bench.attention as attention

    seen = set()
    for case in space(
        Request(
            seq_len=32,
            model_dim=32,
            head_dims=(16,),
            min_rank=8,
            min_features=8,
            backends=("eager", "compiled"),
        )
    ):
        if (case.mechanism, case.order, case.backend) in seen or (
            case.backend == "compiled" and case.mechanism != "full-sdpa"
        ):
            continue
        seen.add((case.mechanism, case.order, case.backend))
        layer = eval(python_line(case), {"torch": torch, **vars(attention)})
        module = getattr(layer, "_orig_mod", layer)
        assert module.order == case.order
        assert module(torch.randn(1, 32, 32)).shape == (1, 32, 32)
    assert {mechanism for mechanism, *_ in seen} == set(MECHANISMS)


def test_the_line_for_the_fused_kernels_is_fused():
    torch = pytest.importorskip("torch")
    from flurka_bench.attention.fused import FusedFeatures

    case = next(
        case
        for case in space(dataclasses.replace(SMALL, backends=("fused",)))
        if case.mechanism == "flurka-relu"
    )
    scope = {}
    exec(python_imports(case), scope)
    layer = eval(
        python_line(case).replace(".cuda()", ""), scope
    )  # the kernels need a GPU, the construction does not
    assert (
        isinstance(layer.similarity, FusedFeatures)
        and layer.order == case.order
        and scope["torch"] is torch
    )


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flurka_bench", *arguments], capture_output=True, text=True
    )


def test_the_command_s_json_and_errors():
    base = [
        "recommend",
        "--hardware",
        "h100",
        "--seq-len",
        "2048",
        "--model-dim",
        "256",
        "--head-dim",
        "64",
    ]
    done = command(*base, "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0 and rows
    contract = (
        "mechanism level pass backend order hardware batch num_heads seq_len head_dim rank num_features dtype flops bytes seconds"
        " seconds_low seconds_high bound python tied"
    )
    assert set(contract.split()) <= set(rows[0])
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)
    assert {row["hardware_basis"] for row in rows} == {"datasheet"}
    assert {row["drop_in"] for row in rows if "full" in row["mechanism"]} <= {True}
    assert {row["drop_in"] for row in rows if "full" not in row["mechanism"]} == {False}
    printed = command(*base).stdout
    assert max(map(len, printed.splitlines())) <= 80
    assert "Fastest: " in printed.partition("datasheet only")[0] and "Pareto" in printed
    told = " ".join(printed.split())
    assert "h100-sxm-80gb: datasheet only" in told and "'flurka-bench calibrate'" in told
    assert "no rank: all N keys" in told and "AMBIGUOUS" in told and RULE in told
    assert "already trained" in told[-260:]
    everything = command(*base, "--all").stdout
    assert "90 % band" in everything and "How the answer moves with the floor" in everything
    for wrong, text in (
        (["--hardware", "h1000"], "did you mean"),
        (["--model-dim", "100"], "--head-dim"),
        (["--min-rank", "-3"], "--min-rank"),
        (["--min-rank", "4096"], "--seq-len"),
        (["--max-memory", "lots"], "--max-memory"),
        (["--pass", "trian"], "train"),
    ):
        done = command(*base, *wrong)
        assert done.returncode == 2 and text in done.stderr and "Traceback" not in done.stderr, (
            wrong,
            done.stderr,
        )
