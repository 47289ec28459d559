"""Each picture against a golden one, within a tolerance that a missing line exceeds; and what
breaks pictures."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic
from matplotlib.cbook import is_math_text
from matplotlib.image import imread
from matplotlib.text import Text

from flurka_bench.answers.speedup import (
    Cells,
    prepare,
    speedups,
)
from flurka_bench.answers.tradeoff import pareto_front
from flurka_bench.render.figures import (
    curves,
    heatmap,
    model,
    style,
    terminal,
    tradeoff,
)
from flurka_bench.words.errors import RequestError

GOLDENS = Path(__file__).parent / "pictures"
# root mean square difference of 255 levels on pictures shrunk fourfold: fonts may differ a little,
# lines may not
TOLERANCE = 4.0


def records(**options):
    found = prepare(
        synthetic.frame(
            noise=0.02, failures={("flurka-relu", 8192): ("oom", "out of memory")}, **options
        )
    )
    found["stages_s"] = [
        {"project": s * 0.5, "compress": s * 0.2, "scores": s * 0.3} if s == s else None
        for s in found["median_s"]
    ]
    found["predicted_stages_s"] = [
        {"project": s * 0.6, "compress": s * 0.1, "scores": s * 0.3} for s in found["predicted_s"]
    ]
    return found


def few(rows):
    picked = rows[
        (rows["seq_len"] == 4096)
        & rows["rank"].isin([0, 256])
        & rows["num_features"].isin([0, 64])
        & (rows["order"] == "project_first")
    ]
    return picked[
        picked["mechanism"].isin(["full-sdpa", "low-rank-sdpa", "kernel-relu", "flurka-relu"])
    ]


def two_devices():
    return speedups(
        pd.concat([synthetic.frame(seed=1), synthetic.frame(device="Other", bias=0.3, seed=2)]),
        "flurka",
        "best-other",
    )


PICTURES = {
    "heatmap": lambda rows: heatmap.heat_map(
        speedups(rows, "flurka-relu", "best-other"), "seq_len", "rank"
    ),
    "scaling": curves.scaling_curves,
    "crossover": lambda rows: curves.crossover_curves(
        pd.concat(
            Cells(rows)
            .views("flurka-favor", ["best-other", "strong-kernel", "paper-low-rank"])
            .values(),
            ignore_index=True,
        ),
        "rank",
    ),
    "predicted": model.predicted_against_measured,
    "error": model.error_map,
    "roofline": lambda rows: model.roofline(few(rows), 1e12, 5e10, "Test CPU", device="cpu"),
    "stages": lambda rows: model.stage_bars(few(rows), "Test"),
    "pareto": lambda rows: tradeoff.pareto(rows[rows["seq_len"] == 4096], "peak_memory_bytes"),
    "memory": tradeoff.memory,
    "devices": lambda _: tradeoff.devices(two_devices()),
}


def shrunk(path):
    image = imread(path)[..., :3]
    height, width = (size // 4 * 4 for size in image.shape[:2])
    return image[:height, :width].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3))


def difference(a, b):
    """Root mean square difference in levels of 255; infinite where the sizes differ."""
    first, second = shrunk(a), shrunk(b)
    return (
        255 * float(np.sqrt(((first - second) ** 2).mean()))
        if first.shape == second.shape
        else np.inf
    )


@pytest.mark.parametrize("name", PICTURES)
def test_picture(name, tmp_path):
    drawn = style.save(PICTURES[name](records()), tmp_path / name, ["png"])[0]
    golden = GOLDENS / f"{name}.png"
    if os.environ.get("FLURKA_BENCH_NEW_PICTURES"):
        GOLDENS.mkdir(exist_ok=True)
        golden.write_bytes(drawn.read_bytes())
    assert difference(drawn, golden) < TOLERANCE, (
        "look at the picture; FLURKA_BENCH_NEW_PICTURES=1 accepts it"
    )


def test_the_tolerance_notices_another_map(tmp_path):
    other = heatmap.heat_map(speedups(records(), "flurka-relu", "paper-full"), "seq_len", "rank")
    drawn = style.save(other, tmp_path / "other", ["png"])[0]
    assert difference(drawn, GOLDENS / "heatmap.png") > TOLERANCE


@pytest.mark.parametrize(
    "rows",
    [
        synthetic.EMPTY,
        synthetic.frame(mechanisms=("flurka-relu",), seq_lens=(512,), ranks=(64,), features=(16,)),
    ],
)
def test_empty_and_single_records_give_a_picture_that_says_so(rows, tmp_path):
    rows = prepare(rows)
    cells = speedups(rows)
    figures = [
        heatmap.heat_map(cells),
        curves.scaling_curves(rows),
        curves.crossover_curves(cells),
        model.predicted_against_measured(rows),
        model.error_map(rows),
        model.stage_bars(rows),
        model.roofline(rows, 1e12, 1e10, device="cuda"),
        tradeoff.memory(rows),
        tradeoff.devices(cells),
        tradeoff.pareto(rows, "peak_memory_bytes"),
    ]
    for number, figure in enumerate(figures):
        assert style.save(figure, tmp_path / str(number), ["svg"])[0].stat().st_size > 1000


@pytest.mark.parametrize("name", ["scaling", "predicted", "memory", "devices"])
def test_a_device_with_dollar_signs_is_no_formula(name):
    device = r"A $$ and $\frac{$"
    rows = records().assign(device=device)
    figure = (
        tradeoff.devices(two_devices().assign(device=device))
        if name == "devices"
        else PICTURES[name](rows)
    )
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert not any(is_math_text(text) for text in texts if "frac" in text)
    assert any("frac" in text for text in texts)


def test_equal_figures_give_equal_files(tmp_path):
    first, second = (
        style.save(PICTURES["heatmap"](records()), tmp_path / name)[1].read_bytes() for name in "ab"
    )
    assert first == second


def test_the_map_holds_the_numbers_and_says_why_a_cell_is_empty():
    cells = speedups(records(), "flurka-relu", "best-other")
    axis = PICTURES["heatmap"](records()).axes[0]
    texts = [text.get_text() for text in axis.texts]
    one = cells[
        (cells["seq_len"] == 512) & (cells["rank"] == 64) & (cells["num_features"] == 16)
    ].iloc[0]
    assert f"{one['ratio']:.2f}" in texts and texts.count("flurka-relu\noom") == 4


def test_rows_with_fewer_mechanisms_are_marked():
    cells = speedups(prepare(synthetic.frame(features=(16, 32, 64, 128))), "flurka", "best-other")
    cells = cells[cells["rank"] == 64]
    thin, note = heatmap.thin_lines(heatmap.grids(cells, "seq_len", "num_features")[0])
    assert thin == {
        ("num_features", m): "flurka-favor, flurka-relu" for m in (16, 32, 128)
    }  # elu + 1 has m = 64 alone
    assert note == "m = 16, 32, 128: flurka-favor, flurka-relu only"
    figure = heatmap.heat_map(cells, "seq_len", "num_features")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "16*",
        "32*",
        "64",
        "128*",
    ]
    assert note in figure.get_suptitle()


def test_terminal_map_degrades_to_signs():
    from rich.console import Console

    cells = speedups(records(), "flurka-relu", "best-other")
    plain = Console(width=120, record=True, color_system=None, file=open(os.devnull, "w"))  # noqa: SIM115
    plain.print(terminal.terminal_map(cells))
    text = plain.export_text()
    one = cells[
        (cells["seq_len"] == 4096) & (cells["rank"] == 256) & (cells["num_features"] == 16)
    ].iloc[0]
    assert f"+{one['ratio']:.2f}×" in text and "best-other" in text and "layer" in text


def test_axes_are_filled_in_and_checked():
    cells = speedups(records(), "flurka-relu", "best-other")
    assert heatmap.map_axes(cells) == ("seq_len", "rank")
    assert heatmap.map_axes(cells, "rank") == ("rank", "seq_len")
    with pytest.raises(RequestError, match="two different axes"):
        heatmap.map_axes(cells, "rank", "rank")
    with pytest.raises(RequestError, match="did you mean 'rank'"):
        heatmap.heat_map(speedups(records()), "seq_len", "ranks")


def test_pareto_front_by_hand():
    x, y = np.array([1.0, 2.0, 3.0, 2.0]), np.array([5.0, 3.0, 4.0, 6.0])
    assert pareto_front(x, y).tolist() == [True, True, False, False]
    assert pareto_front(x, y, np.array([1.0, 1.0, 0.5, 1.0])).tolist() == [True, True, True, False]
    assert pareto_front(np.ones(2), np.ones(2)).tolist() == [True, True]  # equals beat nobody


def drawn_points(lines):
    return np.array([point for line in lines for point in line]).reshape(-1, 2)


def test_a_contour_of_one_form_is_marching_squares():
    """A plane is even along a straight line; a table of one pair of forms has nothing else."""
    table = np.add.outer(np.arange(4.0), 0.5 * np.arange(5.0)) - 2.2
    lines = heatmap.even_lines(table, np.zeros(table.shape, int))
    points = drawn_points(lines)
    assert len(points) and np.allclose(points[:, 1] + 0.5 * points[:, 0], 2.2)
    assert heatmap.even_lines(table[:1], np.zeros((1, 5), int)) == []
    saddle = np.array([[1.0, -1.0], [-1.0, 3.0]])
    assert len(heatmap.even_lines(saddle, np.zeros((2, 2), int))) == 2
    holes = np.where(np.eye(4, 5) > 0, np.nan, table)
    assert np.isfinite(drawn_points(heatmap.even_lines(holes, np.zeros((4, 5), int)))).all()


def test_a_contour_never_lies_between_two_forms_but_on_their_border():
    """Interpolated places depend on the values, borders do not: scaling one form's values moves
    nothing between it and another."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        table, pairs = rng.normal(size=(4, 5)), rng.integers(0, 2, (4, 5))
        scaled = np.where(pairs == 1, 7 * table, table)
        lines = heatmap.even_lines(table, pairs)
        assert np.allclose(drawn_points(lines), drawn_points(heatmap.even_lines(scaled, pairs)))
    table = np.array([[-1.0, -3.0], [9.0, 5.0]])  # rows of unlike forms: only the border is known
    lines = heatmap.even_lines(table, np.array([[0, 0], [1, 1]]))
    points = drawn_points(lines)
    assert (points[:, 1] == 0.5).all() and (points[:, 0].min(), points[:, 0].max()) == (-0.5, 1.5)
    alone = heatmap.even_lines(table, np.arange(4).reshape(2, 2))
    assert {tuple(point) for point in drawn_points(alone)} == {tuple(point) for point in points}


def test_control_characters_in_names_are_escaped(tmp_path, recwarn):
    figure = style.says_nothing("CPU\x1b[31m\x07 \udcff")
    (page,) = style.save(figure, tmp_path / "x", ["svg"])
    assert r"CPU\x1b[31m\x07 \xff" in page.read_text(encoding="utf-8")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
