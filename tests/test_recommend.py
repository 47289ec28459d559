"""Recommendations: floors hold, ties and fronts are what they say, and the line of Python builds the module."""

import json
import subprocess
import sys

import numpy as np
import pytest

from flurka_bench.analysis import recommend
from flurka_bench.analysis.recommend import Request, python_line
from flurka_bench.cost.predict import predict, speedup
from flurka_bench.errors import RequestError
from flurka_bench.hardware import load
from flurka_bench.mechanisms import MECHANISMS, canonical
from flurka_bench.quality.frontier import Interval, Summary
from flurka_bench.workload import Case

REQUEST = {"seq_len": 4096, "model_dim": 512, "dtype": "bfloat16", "head_dims": (64, 128)}


@pytest.fixture(scope="module")
def h100():
    return load("h100")


@pytest.fixture(scope="module")
def found(h100):
    return recommend.recommend(h100, Request(**REQUEST, min_rank=128, min_features=32))


def cli(*arguments):
    done = subprocess.run([sys.executable, "-m", "flurka_bench", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_first_is_the_fastest_of_all_that_meet_the_floor(h100, found):
    every = recommend.search(h100, found.request)
    allowed = [each for each in every if (each.case.rank or 128) >= 128 and (each.case.num_features or 32) >= 32]
    assert found.ranked[0].seconds == min(each.seconds for each in allowed)
    assert len({each.case.case_id for each in every}) == len(every) > 1000
    assert {each.case.mechanism for each in every} == set(MECHANISMS)
    assert {each.case.backend for each in every} == {"eager", "compiled", "fused"}
    assert all((each.case.rank or 128) >= 128 and (each.case.num_features or 32) >= 32 for each in (*found.ranked, *found.front))
    assert [each.seconds for each in found.ranked] == sorted(each.seconds for each in found.ranked)


def test_the_search_says_what_predict_says(h100, found):
    picked = found.ranked[::7]
    for candidate, own in zip(picked, predict([candidate.case for candidate in picked], h100)):
        assert candidate.seconds == pytest.approx(own.seconds, rel=1e-3)
        assert candidate.bound == own.bound and canonical(candidate.case) == candidate.case


def test_ties_are_those_whose_band_of_the_ratio_holds_one(h100, found):
    best = found.ranked[0]
    assert not best.tied
    predictions = predict([candidate.case for candidate in found.ranked], h100)
    for candidate, own in zip(found.ranked[1:], predictions[1:]):
        assert candidate.tied == (speedup(own, predictions[0]).high >= 1)


def test_families_and_front(found):
    assert sorted(each.family for each in found.families) == ["flurka", "full", "kernel", "low-rank"]
    for family in {each.family for each in found.ranked}:
        fastest = min((each for each in found.ranked if each.family == family), key=lambda each: each.seconds)
        assert fastest.family_best
    assert found.front[0] is found.ranked[0]
    for i, one in enumerate(found.front):
        for other in found.front[:i]:
            worse = (
                (other.case.rank or np.inf) < (one.case.rank or np.inf),
                (other.case.num_features or np.inf) < (one.case.num_features or np.inf),
            )
            assert other.peak_memory_bytes > one.peak_memory_bytes or any(worse)


def test_the_default_floor_is_said_and_the_answer_moves_with_it(h100):
    found = recommend.recommend(h100, Request(**REQUEST))
    assert "no quality floor was given: assumed rank k >= 256, num_features m >= 64" in found.notes[-1]
    times = [each.seconds for _, _, each in found.moves]
    assert times == sorted(times) and times[0] < times[-1]
    assert [(k, m) for k, m, _ in found.moves] == [(64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)]
    assert "--min-rank" not in recommend.recommend(h100, Request(**REQUEST, min_rank=64)).request.assumption


def test_ceilings_exclude_and_an_impossible_one_says_what_is_nearest(h100, found):
    limit = found.ranked[0].peak_memory_bytes
    lean = recommend.recommend(h100, Request(**REQUEST, min_rank=128, min_features=32, max_memory_bytes=limit))
    assert all(each.peak_memory_bytes <= limit for each in lean.ranked) and len(lean.ranked) < len(found.ranked)
    with pytest.raises(RequestError, match=r"the fastest at the floor takes .* ms"):
        recommend.recommend(h100, Request(**REQUEST, max_latency_s=1e-9))
    with pytest.raises(RequestError, match="--min-rank must be at most"):
        Request(**REQUEST, min_rank=5000)
    with pytest.raises(RequestError, match="--model-dim"):
        Request(seq_len=64, model_dim=100)


def test_measurements_replace_predictions_and_failures_are_dropped(h100, found):
    slow, gone = found.ranked[0].case, found.ranked[1].case
    records = [
        {"case_id": slow.case_id, "status": "ok", "median_s": 1.0, "samples_s": [1.0, 1.01, 0.99], "peak_memory_bytes": 5.0},
        {"case_id": gone.case_id, "status": "oom", "median_s": None, "samples_s": []},
    ]
    again = recommend.recommend(h100, Request(**REQUEST, min_rank=128, min_features=32), records=records)
    by_id = {each.case.case_id: each for each in recommend.use_measured(recommend.search(h100, found.request), records)[0]}
    assert by_id[slow.case_id].source == "measured" and by_id[slow.case_id].seconds == 1.0 and gone.case_id not in by_id
    assert again.ranked[0].case not in (slow, gone) and any("1 of" in note and "measured" in note for note in again.notes)


class FakeErrors:
    families = ("trained",)

    def __init__(self):
        error = Interval(0.1, 0.2, 0.3)
        self.summaries = [
            Summary(
                family="trained",
                inputs="trained",
                seq_len=1024,
                head_dim=64,
                mechanism="low-rank",
                projection="learned",
                share_kv=False,
                rank=64,
                num_features=None,
                num_records=1,
                error=error,
                means={},
            )
        ]

    def error_interval(self, *, mechanism, rank, num_features, seq_len, head_dim, family, compression="dense"):
        assert seq_len == 1024 and family == "trained"
        if mechanism.startswith("full"):
            return Interval(0.0, 0.0, 0.0)
        value = (1 / rank if rank else 0) + (1 / num_features if num_features else 0)
        return None if head_dim != 64 else Interval(value / 2, value, value * 2)


def test_an_error_limit_chooses_k_and_m_and_says_where_errors_are_from(h100):
    found = recommend.recommend(h100, Request(**REQUEST, max_error=0.01), errors=FakeErrors(), inputs="trained")
    for each in found.ranked:
        assert each.error is not None and each.error[1] <= 0.01
        assert not each.case.rank or each.case.rank >= 128
    assert any("N = 1024, the longest measured" in note for note in found.notes)
    with pytest.raises(RequestError, match="--errors"):
        recommend.recommend(h100, Request(**REQUEST, max_error=0.01))


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("backend", ["eager", "fused"])
def test_the_line_of_python_builds_the_module_of_the_case(mechanism, backend):
    import torch

    cell = MECHANISMS[mechanism]
    order = cell.orders[-1] if backend == "eager" else cell.orders[min(1, len(cell.orders) - 1)]
    try:
        case = canonical(
            Case(
                mechanism=mechanism,
                level="layer",
                order=order,
                backend=backend,
                num_heads=2,
                head_dim=32,
                seq_len=64,
                rank=16,
                num_features=8,
            )
        )
    except RequestError:
        pytest.skip("this mechanism has no fused kernels")
    names = {}
    line = python_line(case)
    assert "\n" not in line
    exec(line, names)
    layer = names["layer"]
    assert layer.order == case.order and layer.num_heads == 2
    if backend == "eager":
        assert layer(torch.randn(1, 64, 64)).shape == (1, 64, 64)
    if cell.compressed:
        assert layer.compression.rank == 16


def test_a_compiled_line_compiles():
    import torch

    case = canonical(
        Case(
            mechanism="flurka-relu",
            level="layer",
            order="absorbed",
            backend="compiled",
            num_heads=2,
            head_dim=32,
            seq_len=64,
            rank=16,
            num_features=8,
        )
    )
    names = {}
    exec(python_line(case), names)
    assert isinstance(names["layer"], torch._dynamo.OptimizedModule)


def test_on_the_command_line_json_is_a_list_best_first_without_torch():
    code, out, err = cli(
        "recommend", "--hardware", "h100,l40s", "--seq-len", "2048", "--model-dim", "512", "--head-dim", "64", "--json"
    )
    assert code == 0, err
    records = json.loads(out)
    first = [record for record in records if record["hardware"] == "h100-sxm-80gb"]
    assert {record["hardware"] for record in records} == {"h100-sxm-80gb", "l40s"}
    assert [record["seconds"] for record in first] == sorted(record["seconds"] for record in first)
    wanted = {
        "mechanism",
        "level",
        "pass",
        "backend",
        "order",
        "batch",
        "num_heads",
        "seq_len",
        "head_dim",
        "rank",
        "num_features",
        "dtype",
        "flops",
        "bytes",
        "seconds_low",
        "seconds_high",
        "bound",
        "python",
        "tied",
        "pareto",
        "assumption",
    }
    assert wanted <= set(first[0]) and first[0]["reason"]
    code, out, err = cli("recommend", "--hardware", "h100,l40s", "--seq-len", "2048", "--model-dim", "512")
    assert code == 0 and "Across hardware" in out and "no quality floor was given" in out and "layer = " in out
    for arguments in (
        ["--hardware", "h10"],
        ["--hardware", "h100", "--pass", "backward"],
        ["--hardware", "h100", "--model-dim", "100"],
    ):
        code, out, err = cli(
            "recommend", "--seq-len", "2048", *arguments, *(["--model-dim", "512"] if "--model-dim" not in arguments else [])
        )
        assert code == 2 and err.startswith("error:") and "Traceback" not in err


@pytest.mark.parametrize("arguments", [
    ["recommend", "--hardware", "h100", "--seq-len", "1024", "--model-dim", "512"],
    ["regions", "--hardware", "h100", "--seq-len", "1024,4096", "--rank", "64,128", "--num-features", "32"],
    ["regions", "--flops", "--baseline", "kernel-relu"],
])  # fmt: skip
def test_neither_verb_imports_torch(arguments):
    script = "import sys; from flurka_bench.cli import main\ntry: main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "AssertionError" not in done.stderr, done.stderr


def test_regions_of_a_target_on_the_command_line():
    arguments = [
        "regions",
        "--hardware",
        "h100",
        "--launch",
        "graph",
        "--seq-len",
        "1024,65536",
        "--rank",
        "64,128",
        "--num-features",
        "32",
    ]
    code, out, err = cli(*arguments, "--json", "--flops")
    assert code == 0, err
    answer = json.loads(out)
    assert len(answer["cells"]) == 4 + 4 and {"answer", "crossovers", "reasons", "conditions"} <= set(
        answer
    )  # 4 of elu, at m = d
    assert all(cell["predicted_verdict"] in ("FASTER", "SLOWER", "SAME", "AMBIGUOUS") for cell in answer["cells"])
    assert "FLOPs" in answer["reasons"][0]["reason"]
    code, out, _ = cli("regions", "--flops", "--level", "core", "--subject", "flurka-relu", "--baseline", "low-rank")
    assert code == 0 and "m*(N + k) < N*k" in out  # the condition of the first paper's section, by hand: m(N + k) < kN
    code, _, err = cli("regions")
    assert code == 2 and "--hardware" in err
    code, _, err = cli("regions", "--hardware", "h100", "--x", "rank", "--y", "rank")
    assert code == 2 and "different" in err
