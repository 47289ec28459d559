"""The error figures draw what the run says, join it with times, and say so where there is nothing to draw."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flurka_bench.plots import error, style
from flurka_bench.plots.tradeoff import pareto
from flurka_bench.quality.frontier import ErrorRun


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
                steps = {"low_rank_error": 0.3, "low_rank_step": 0.2, "kernel_error": 0.25, "kernel_step": 0.4}
                flurka = base | {"mechanism": "flurka-relu", "projection": "learned", "rank": rank, "num_features": m}
                yield flurka | steps | {"output_error": 0.4}
        for m in (32, 128):
            yield base | {"mechanism": "kernel-relu", "projection": None, "rank": None, "num_features": m, "output_error": 0.25}


def frame():
    base = {"status": "ok", "seq_len": 512, "head_dim": 32, "compression": "dense", "num_features": None, "peak_memory_bytes": 1}
    rows = [
        {"mechanism": "full-sdpa", "rank": None, "median_s": 1.0},
        {"mechanism": "low-rank", "rank": 32, "median_s": 0.5},
        {"mechanism": "low-rank", "rank": 256, "median_s": 0.9},
        {"mechanism": "flurka-relu", "rank": 64, "num_features": 64, "median_s": 0.25},
        {"mechanism": "kernel-relu", "rank": None, "num_features": 64, "median_s": 0.4, "status": "oom"},
    ]
    return pd.DataFrame([base | row for row in rows])


def test_time_joins_the_error_that_was_measured_and_nothing_else():
    joined = error.join_time(frame(), ErrorRun(list(records())), family="trained", seq_len=512)
    assert list(joined["mechanism"]) == ["full-sdpa", "low-rank", "flurka-relu"]  # k = 256 is outside, oom has no time
    assert list(joined["error_median"]) == pytest.approx([0.0, 2.2 / 32, 0.4])
    assert list(joined["seconds"]) == [1.0, 0.5, 0.25]
    assert error.join_time(frame(), ErrorRun(list(records())), family="trained", seq_len=1024).empty


def test_figures_show_the_run(tmp_path):
    run = ErrorRun(list(records()))
    figure = error.curves(run)
    labels = [text.get_text() for axis in figure.axes for text in axis.get_legend().get_texts()]
    assert {"optimal rank k", "low-rank, learned", "low-rank, mean-pool", "kernel-relu", "flurka-relu, learned"} <= set(labels)
    bars = error.parents(run, "trained").axes[0].patches
    assert {round(bar.get_width(), 6) for bar in bars} == {0.5}  # min(0.3 + 0.2, 0.25 + 0.4)
    paths = style.save(figure, tmp_path / "curves", formats=("png",))
    assert paths[0].stat().st_size > 10_000
    joined = error.join_time(frame(), run, family="trained", seq_len=512)
    assert len(pareto(joined).axes[0].lines) >= 3


def test_nothing_to_draw_is_said():
    empty = ErrorRun([])
    for figure in (error.curves(empty), error.parents(empty, "trained")):
        assert "none of these" in figure.texts[0].get_text() or "no FLuRKA" in figure.texts[0].get_text()


def test_the_script_shows_its_use():
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "scripts/plot_error.py", "--help"], capture_output=True, text=True, cwd=root, env={"PYTHONPATH": "."}
    )
    assert done.returncode == 0 and "--timing" in done.stdout
