"""The error figures draw what the run says, join it with times, and say so where there is nothing
to draw."""

from pathlib import Path

import pandas as pd
import pytest

from flurka_bench.answers.frontier import ErrorRun
from flurka_bench.answers.tradeoff import (
    join_time,
    sentence,
)
from flurka_bench.cli import main
from flurka_bench.render.figures import (
    error,
    style,
)
from flurka_bench.render.figures.tradeoff import pareto


def records():
    base = {"status": "ok", "family": "trained", "inputs": "trained", "seq_len": 512, "head_dim": 32, "share_kv": False,
            "matrix_frobenius": [0.1]}  # fmt: skip
    for seed in range(3):
        for rank in (16, 64):
            low_rank = base | {"mechanism": "low-rank", "rank": rank, "num_features": None}
            yield low_rank | {"projection": "learned", "output_error": 2 / rank * (1 + 0.1 * seed)}
            yield low_rank | {"projection": "mean-pool", "share_kv": True, "output_error": 3 / rank}
            yield low_rank | {"projection": "optimal", "output_error": 1 / rank}
            for m in (32, 128):
                steps = {
                    "low_rank_error": 0.3,
                    "low_rank_step": 0.2,
                    "kernel_error": 0.25,
                    "kernel_step": 0.4,
                }
                flurka = base | {
                    "mechanism": "flurka-relu",
                    "projection": "learned",
                    "rank": rank,
                    "num_features": m,
                }
                yield flurka | steps | {"output_error": 0.4}
        for m in (32, 128):
            yield base | {
                "mechanism": "kernel-relu",
                "projection": None,
                "rank": None,
                "num_features": m,
                "output_error": 0.25,
            }


def frame():
    base = {
        "status": "ok",
        "seq_len": 512,
        "head_dim": 32,
        "compression": "dense",
        "num_features": None,
        "peak_memory_bytes": 1,
    }
    rows = [
        {"mechanism": "full-sdpa", "rank": None, "median_s": 1.0},
        {"mechanism": "low-rank", "rank": 32, "median_s": 0.5},
        {"mechanism": "low-rank", "rank": 256, "median_s": 0.9},
        {"mechanism": "flurka-relu", "rank": 64, "num_features": 64, "median_s": 0.25},
        {
            "mechanism": "kernel-relu",
            "rank": None,
            "num_features": 64,
            "median_s": 0.4,
            "status": "oom",
        },
    ]
    samples = [0.98, 0.99, 1.0, 1.0, 1.01, 1.02]
    return pd.DataFrame(
        [base | row | {"samples_s": [row["median_s"] * share for share in samples]} for row in rows]
    )


def test_time_joins_the_error_that_was_measured_and_nothing_else():
    joined = join_time(frame(), ErrorRun(list(records())), family="trained", seq_len=512)
    assert list(joined["mechanism"]) == [
        "full-sdpa",
        "low-rank",
        "flurka-relu",
    ]  # k = 256 is outside, oom has no time
    assert list(joined["error_median"]) == pytest.approx([0.0, 2.2 / 32, 0.4])
    assert list(joined["seconds"]) == [1.0, 0.5, 0.25]
    assert (joined["seconds_low"] < joined["seconds"]).all() and (
        joined["seconds"] < joined["seconds_high"]
    ).all()
    assert (joined["seconds_low"] >= 0.98 * joined["seconds"]).all()
    assert join_time(frame(), ErrorRun(list(records())), family="trained", seq_len=1024).empty


def test_figures_show_the_run(tmp_path):
    run = ErrorRun(list(records()))
    figure = error.curves(run)
    labels = [text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()]
    assert {
        "optimal rank k",
        "low-rank, learned",
        "low-rank, mean-pool",
        "kernel-relu",
        "flurka-relu, learned",
    } <= set(labels)
    bars = error.parents(run, "trained").axes[0].patches
    assert {round(bar.get_width(), 6) for bar in bars} == {0.5}  # min(0.3 + 0.2, 0.25 + 0.4)
    paths = style.save(figure, tmp_path / "curves", formats=("png",))
    assert paths[0].stat().st_size > 10_000
    joined = join_time(frame(), run, family="trained", seq_len=512)
    axis = pareto(joined.assign(peak_memory_bytes=[3, 2, 1]), third="peak_memory_bytes").axes[0]
    marks = {item.get_label(): item.get_offsets() for item in axis.collections}
    assert {"full-sdpa", "low-rank", "flurka-relu"} <= set(marks)
    assert len(marks["front of these and peak memory"]) == 3


def test_nothing_to_draw_is_said():
    empty = ErrorRun([])
    for figure in (error.curves(empty), error.parents(empty, "trained")):
        assert (
            "none of these" in figure.texts[0].get_text()
            or "no FLuRKA" in figure.texts[0].get_text()
        )


def test_the_front_of_time_error_and_memory_from_the_command_line(capsys, tmp_path):
    reference = Path(__file__).parents[1] / "results" / "reference"
    arguments = [
        "quality",
        "plot",
        str(reference / "error"),
        "--timing",
        str(reference / "error-time-cpu-1-thread"),
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--inputs", "trained", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "error-curves.png",
        "error-parents-trained.png",
        "error-time-trained-n512.png",
    }
    assert "memory" in out and "exact attention takes" in " ".join(out.split())
    for wrong, says in (
        ("--family", "did you mean 'trained'"),
        ("--inputs", "did you mean 'trained'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, wrong, "traind", "--out", str(tmp_path / "no")])
        assert ended.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--seq-len", "1024", "--inputs", "trained", "--out", str(tmp_path)])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "times nothing" in err and "N = 512 with d = 32" in err


def test_the_sentence_says_what_is_known():
    rows = join_time(frame(), ErrorRun(list(records())), family="trained", seq_len=512)
    said = sentence(rows, "trained")
    assert (
        "most accurate is low-rank (k = 32)" in said
        and "at 2.00×" in said
        and "flurka-relu (k = 64, m = 64)" in said
    )
    assert "no approximation was faster" in sentence(
        rows.assign(seconds=[0.1, 0.5, 0.25]), "trained"
    )
    assert "full-sdpa was not timed" in sentence(rows[rows["mechanism"] != "full-sdpa"], "trained")
