"""The words of the answer are said once, and its blocks fit the lines that they are shown on."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flurka_bench.answers import words
from flurka_bench.answers.answer import SLICE
from flurka_bench.answers.speedup import CELL, KNOBS
from flurka_bench.cases.case import Case
from flurka_bench.render.figures import style
from flurka_bench.render.figures.heatmap import COLOURS, LIMITS, colour_limit
from flurka_bench.render.payload import impossible
from flurka_bench.render.plain import plain, sentence, table_lines
from flurka_bench.results.records import STATUSES
from flurka_bench.words.blocks import Column, Heading, Text, table
from flurka_bench.words.verdict import VERDICTS

PACKAGE = Path(__file__).parents[1] / "flurka_bench"


def test_a_size_has_one_symbol_and_every_word_its_place():
    assert len(set(words.SYMBOLS.values())) == len(words.SYMBOLS)
    assert set(SLICE) <= set(CELL) and {*words.KNOBS, "compression", "share_kv"} <= set(KNOBS)
    assert set(words.VERDICT_WORDS) == {*VERDICTS, "MISSING"} and set(words.SIGNS) == set(VERDICTS)
    assert set(words.FAILURES) == set(STATUSES) - {"ok"}


def test_a_place_in_words():
    case = Case(mechanism="flurka-relu", level="layer", rank=128, num_features=32, seq_len=4096)
    row = case.as_record() | {"share_kv": True, "compression": "mean-pool"}
    assert words.place(row) == "N = 4096, k = 128, m = 32"
    assert words.where(row | {"batch": 1}).startswith("h = ")
    assert words.where(row | {"batch": 2}).startswith("b = 2, h = ")
    assert words.knobs(row) == ["k = 128", "m = 32", "mean-pool", "E = F"]
    nothing = {"rank": 0, "num_features": math.nan, "share_kv": False}
    assert words.knobs(nothing) == []
    assert words.form({"mechanism": "a", "order": None, "backend": "eager"}) == "a eager"


def test_the_middle_is_a_tested_value_and_what_has_no_knob_stays():
    assert [words.middle(v) for v in ([], [0], [4, 0, 2], [1, 2, 3, 4])] == [0, 0, 4, 3]
    rows = pd.DataFrame(
        {
            "mechanism": ["flurka-relu"] * 3 + ["full-sdpa", "flurka-elu"],
            "rank": [64, 128, 256, 0, 128],
            "num_features": [16, 16, 16, 0, 64],
        }
    )
    kept, at = words.at_middle(rows)
    assert at == {"rank": 128, "num_features": 16}
    assert list(kept.index) == [1, 3, 4]
    assert list(words.at_middle(rows, rank=256)[0].index) == [2, 3]


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        ({"a": 1.0, "b": 1.0}, {"a": 3.0}, "saves most in a (1 s against 3 s)"),
        ({"a": 3.0}, {"a": 1.0, "b": 1.0}, "loses most in a (3 s against 1 s)"),
        ({}, {"b": 2e-6}, "saves most in b (0 ns against 2 µs)"),
    ],
)
def test_the_reason_names_the_stage_with_the_largest_gap(mine, theirs, told):
    assert words.stage_reason(mine, theirs) == told


def test_an_estimate_shows_its_interval_where_it_has_one():
    assert words.estimate(1.5, 1.2, 1.9) == "1.50× (1.20× to 1.90×)"
    assert words.estimate(1.5, 0, math.inf) == words.estimate(1.5, math.nan, math.nan) == "1.50×"
    assert words.estimate(math.nan, 1, 2) == "n/a"


def test_an_empty_cell_says_why_in_a_word():
    assert words.hole("full-math: oom (80 GB)") == "oom"
    assert words.hole("", {"rank": 512, "seq_len": 256}) == "k > N"
    assert words.hole("", {"rank": 256, "seq_len": 256}) == "not run"
    records = pd.DataFrame({"seq_len": [256, 512, 1024], "rank": [512, 0, 512]})
    assert impossible(records) == {512: [256]}


def test_a_table_gives_way_in_extra_columns_and_then_wraps():
    columns = (
        Column("name", "word"),
        Column("time"),
        Column("why", "long"),
        Column("more", extra=True),
    )
    rows = [("low-rank-sdpa", "101 µs", "k = 64 " * 20, "x" * 30), ("b", "2 ms", "", "y")]
    found = table(columns, rows, "caption")
    lines = table_lines(found)
    assert max(map(len, lines)) <= 80 and lines[0] == "caption"
    assert "more" not in lines[1] and not any("x" * 30 in line for line in lines)
    assert "low-rank-sdpa  101 µs" in lines[3] and not re.search(r"=$|k$", lines[3])
    whole = table_lines(found, None)
    assert len(whole) == 5 and "x" * 30 in whole[3]
    assert sum(line.count("k = 64") for line in lines) == 20


def test_blocks_as_lines():
    shown = plain([Heading("H"), Text("word " * 40), table(("", "n"), [("a", 1)])])
    assert max(map(len, shown.splitlines())) <= 80 and shown.count("word") == 40
    assert sentence("a" * 100) == ["a" * 100]  # what cannot be broken stays whole
    assert "\x1b" not in plain([Text("\x1b[2J")])


def test_the_ramp_is_the_pictures_and_every_limit_can_be_reached():
    import matplotlib

    colours = matplotlib.colormaps[COLOURS](np.linspace(0, 1, len(style.RAMP)))
    drawn = [matplotlib.colors.to_rgba(colour) for colour in style.RAMP]
    assert np.abs(colours - np.array(drawn)).max() < 0.01
    assert [colour_limit([limit, 1 / limit]) for limit in LIMITS] == list(LIMITS)
    assert colour_limit([]) == LIMITS[0] and colour_limit([1000.0] * 20) == LIMITS[-1]


def test_the_page_s_script_has_no_words_formats_or_colours_of_its_own():
    script = (PACKAGE / "render/page.js").read_text("utf-8")
    for own in (*VERDICTS, *words.FAILURES, "k > N", "toFixed", "toPrecision", "saves", "FLOPs"):
        assert own not in script, own
    assert not re.search(r"#[0-9a-fA-F]{6}\b|\brgba?\((?!0,0,0,0)", script)
