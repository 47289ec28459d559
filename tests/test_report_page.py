"""The page in a real headless browser, and what must hold of its text before any browser sees
it."""

import csv
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import synthetic

from flurka_bench.render.content import collect, pictures, summary
from flurka_bench.render.figures.heatmap import even_lines
from flurka_bench.render.markdown import markdown
from flurka_bench.render.page import page
from flurka_bench.render.payload import embed
from flurka_bench.render.pdf import _text_pages

HOSTILE = "<script>window.hacked = 1</script>"
RUN = {
    "suite": {"name": HOSTILE, "text": "</script>" + HOSTILE},
    "environment": {"cpu": "Test"},
    "device": "cpu",
    "started": "today",
}
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip


def frame():
    failures = {("full-math", 4096): ("oom", HOSTILE), ("flurka-relu", 512): ("timeout", "60 s")}
    found = synthetic.frame(passes=("forward", "train"), failures=failures, noise=0.02)
    found["stages_s"] = [
        {"project": s * 0.5, "scores": s * 0.5} if s == s else None for s in found["median_s"]
    ]
    found["predicted_stages_s"] = [
        {"project": s * 0.6, "scores": s * 0.4} for s in found["predicted_s"]
    ]
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(collect(frame(), [RUN], f"Run of {HOSTILE}")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page was not opened"
    )
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip(
            "no chromium on this machine (apt-get install chromium): the page was not opened"
        )
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def opened(browser, written):
    """The page, opened with the network refused; fails at the end if the console had an error or
    anything was fetched."""
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, accept_downloads=True, offline=True
    )
    tab = context.new_page()
    problems = []
    tab.on(
        "console",
        lambda message: (
            problems.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on(
        "request",
        lambda request: (
            problems.append(request.url)
            if not request.url.startswith(("file:", "blob:", "data:"))
            else None
        ),
    )
    tab.goto(written.as_uri())
    tab.wait_for_selector("#plot-measured .heatmaplayer")
    yield tab
    context.close()
    assert problems == []


def numbers(tab, side="measured"):
    return tab.evaluate(f"document.getElementById('plot-{side}').data[0].z.flat()")


def hover(tab, column, row):
    tab.locator("#plot-measured").scroll_into_view_if_needed()
    place = tab.evaluate(
        """([c, r]) => { const p = document.getElementById('plot-measured'), b = p.getBoundingClientRect(), l = p._fullLayout;
        return [b.x + l.xaxis._offset + l.xaxis.d2p(c), b.y + l.yaxis._offset + l.yaxis.d2p(r)]; }""", [column, row])  # fmt: skip
    tab.mouse.move(place[0] - 6, place[1] - 6)
    tab.mouse.move(*place)
    return place


def test_another_baseline_changes_the_map(opened):
    before = numbers(opened)
    opened.select_option("#choose-baseline", "paper-full")
    assert numbers(opened) != before
    opened.select_option("#choose-baseline", "best-other")
    assert numbers(opened) == before


def test_every_control_changes_the_map(opened):
    before = numbers(opened)
    opened.select_option("#choose-pass", "train")
    assert numbers(opened) != before
    opened.select_option("#choose-x", "num_features")
    assert (
        opened.evaluate("document.getElementById('plot-measured').layout.xaxis.title.text") == "m"
    )
    opened.select_option("#choose-subject", "flurka-favor")
    assert "flurka-favor" in opened.inner_text("#caption")


def test_hovered_cell_shows_the_records_numbers(opened):
    from flurka_bench.answers.speedup import speedups

    opened.select_option("#choose-subject", "flurka-favor")
    opened.select_option("#choose-baseline", "strong-kernel")
    hover(opened, 3, 2)
    opened.wait_for_selector("#plot-measured .hovertext", timeout=5000)
    text = opened.text_content("#plot-measured .hoverlayer")
    cells = speedups(frame(), "flurka-favor", "strong-kernel")
    one = cells[
        (cells["pass"] == "forward")
        & (cells["seq_len"] == 4096)
        & (cells["rank"] == 256)
        & (cells["num_features"] == 64)
    ].iloc[0]
    assert f"{one['ratio']:.2f}×" in text and f"{one['low']:.2f}× to {one['high']:.2f}×" in text
    assert one["verdict"] in text and "8 samples" in text and "needs" in text
    assert f"{float(f'{one.subject_s * 1e3:.3g}'):g} ms" in text


def test_a_cell_says_how_far_the_prediction_is_off_and_which_flop_condition_holds(opened):
    opened.select_option("#choose-subject", "flurka-favor")
    opened.select_option("#choose-baseline", "strong-low-rank")
    hover(opened, 3, 2)
    opened.wait_for_selector("#plot-measured .hovertext", timeout=5000)
    text = opened.text_content("#plot-measured .hoverlayer")
    assert re.search(r"predicted [\d.]+×, measured [\d.]+×: [+−][\d.]+ %", text)
    assert "fewer matmul FLOPs where" in text and "(holds)" in text


def test_rows_that_few_mechanisms_share_are_marked(opened):
    opened.select_option("#choose-y", "num_features")
    assert opened.inner_text("#thin") == "* at m = 16, 32, 128: flurka-favor, flurka-relu only"
    ticks = opened.evaluate("document.getElementById('plot-measured').layout.yaxis.ticktext")
    assert ticks == ["16*", "32*", "64", "128*"]


def test_a_missing_cell_says_why(opened):
    opened.select_option("#choose-subject", "flurka-relu")
    hover(opened, 0, 0)
    opened.wait_for_selector("#plot-measured .hovertext", timeout=5000)
    assert "timeout (60 s)" in opened.text_content("#plot-measured .hoverlayer")


def test_click_shows_stages_and_samples(opened):
    place = hover(opened, 2, 1)
    opened.mouse.click(*place)
    opened.wait_for_selector("#detail svg.samples circle")
    assert opened.locator("#detail .stages .bar").count() == 4  # two cases, measured and predicted
    assert opened.locator("#detail svg.samples").first.locator("circle").count() == 8


def test_keyboard_reaches_every_cell(opened):
    opened.locator("#map details summary").focus()
    opened.keyboard.press("Enter")
    opened.keyboard.press("Tab")
    first = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first and "k = 512" in first
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    label = opened.evaluate("document.activeElement.getAttribute('aria-label')")
    assert "N = 1024, k = 256" in label
    opened.keyboard.press("Enter")
    assert "k = 256" in opened.inner_text("#detail h3")
    counted = opened.locator("#cell-tables table").first.locator("button").count()
    assert counted == len(numbers(opened))


def test_downloads_parse_back_to_the_records(opened):
    records = {record["case_id"]: record for record in frame().to_dict("records")}
    with opened.expect_download() as waiting:
        opened.click("#download-json")
    parsed = json.loads(Path(waiting.value.path()).read_text(encoding="utf-8"))
    assert len(parsed) == len(records)
    for record in parsed:
        own = records[record["case_id"]]
        assert record["samples_s"] == own["samples_s"] and record["status"] == own["status"]
        assert record["error"] == (own["error"] if isinstance(own["error"], str) else None)
        assert record["median_s"] == (None if pd.isna(own["median_s"]) else own["median_s"])
        assert record["rank"] == (None if pd.isna(own["rank"]) else own["rank"])
    with opened.expect_download() as waiting:
        opened.click("#download-csv")
    rows = list(
        csv.DictReader(
            io.StringIO(Path(waiting.value.path()).read_bytes().decode("utf-8"), newline="")
        )
    )
    assert [row["case_id"] for row in rows] == [record["case_id"] for record in parsed]
    assert [json.loads(row["samples_s"]) for row in rows] == [
        record["samples_s"] for record in parsed
    ]
    assert {row["error"] for row in rows} == {"", HOSTILE, "60 s"}


def test_nothing_hostile_runs_and_the_phone_does_not_scroll_sideways(opened, browser, written):
    assert opened.evaluate("window.hacked") is None
    assert HOSTILE in opened.inner_text("h1")
    phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    phone.goto(written.as_uri())
    phone.wait_for_selector("#plot-measured .heatmaplayer")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    phone.close()


def test_text_from_files_is_escaped(written):
    text = written.read_text(encoding="utf-8")
    assert text.count("<script") == 3 and HOSTILE not in text
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", text.split("<script", 1)[0])
    assert (
        "<" not in embed({"a": "</script><!--"})
        and json.loads(embed({"a": "</script><!--&"}))["a"] == "</script><!--&"
    )
    assert "<script" not in markdown(summary(collect(frame(), [RUN], HOSTILE)))


def few(**options):
    return synthetic.frame(
        mechanisms=("full-sdpa", "kernel-relu", "flurka-relu"),
        seq_lens=(512, 1024),
        ranks=(64, 128),
        **options,
    )


SMALL = {
    "empty": lambda: synthetic.EMPTY,
    "one": lambda: synthetic.frame(
        mechanisms=("flurka-relu",),
        seq_lens=(512,),
        ranks=(64,),
        features=(16,),
        orders=("project_first",),
    ),
    "only failures": lambda: synthetic.frame(
        seq_lens=(512,),
        ranks=(64,),
        features=(16,),
        failures={(name, 512): ("crashed", "boom") for name in synthetic.MECHANISMS},
    ),
    "no flurka": lambda: synthetic.frame(mechanisms=("full-sdpa", "kernel-relu"), ranks=(64,)),
    "two levels": lambda: pd.concat(
        [few(level=level) for level in ("core", "layer")], ignore_index=True
    ),
    "unpredicted": lambda: synthetic.frame(
        seq_lens=(512, 1024), ranks=(64,), with_predictions=False
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_runs_give_a_page_that_says_what_is_there(name, browser, tmp_path):
    records = SMALL[name]()
    content = collect(records, [RUN], name)
    (tmp_path / "page.html").write_text(page(content), encoding="utf-8")
    tab = browser.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_timeout(300)
    text = tab.inner_text("main")
    if name == "two levels":
        assert tab.input_value("#choose-level") == "layer"
    tab.close()
    assert problems == []
    expected = {"empty": "no records yet", "one": "1 records", "only failures": "crashed", "no flurka": "kernel-relu is measured",
                "two levels": "layer",
                "unpredicted": "the predicted side is empty"}  # fmt: skip
    assert expected[name] in text
    assert f"{len(records)} records" in text and markdown(summary(content))


def test_the_summaries_hold_the_same_figures(tmp_path):
    from flurka_bench.render.pdf import pdf

    content = collect(few(), [RUN], "Run")
    text = markdown(summary(content))
    best = content.answer.iloc[0]
    assert f"in {best['FASTER']} of {best['cells'] - best['MISSING']} cells" in text
    assert "h = 8, d = 64" in text and "Bottlenecks" not in text and "Verdicts" in text
    (tmp_path / "run.pdf").write_bytes(pdf([*summary(content), *pictures(content)]))
    data = (tmp_path / "run.pdf").read_bytes()
    assert data.startswith(b"%PDF") and len(re.findall(rb"/Type /Page\b", data)) >= 8


def test_many_cases_give_a_page_that_says_what_it_holds(tmp_path):
    one = synthetic.frame(seq_lens=(512, 1024), rounds=2)
    copies = -(-10_000 // len(one))
    many = pd.concat(
        [
            one.assign(batch=copy + 1, case_id=one["case_id"] + f".copy{copy}")
            for copy in range(copies)
        ],
        ignore_index=True,
    )
    content = collect(many, [RUN], "large")
    text = page(content)
    assert len(many) >= 10_000 and len(text) < 6e6
    assert f"{len(content.records)} of {len(many)} records" in text and f"{len(many)} ok" in text


def test_a_page_names_the_kind_of_each_interval_that_it_shows():
    """A confidence interval of samples is 95 %, a band of the model 90 %: never one for the
    other."""
    small = {"seq_lens": (512,), "ranks": (64,), "features": (16,), "orders": ("project_first",),
             "mechanisms": ("full-sdpa", "kernel-relu", "flurka-relu")}  # fmt: skip
    both = synthetic.frame(**small)
    alone = synthetic.frame(with_predictions=False, **small)
    empty = {"status": "predicted", "samples_s": None, "median_s": None, "round_ids": None}
    for rows, present, absent in (
        (both, ("95 % confidence", "90 % bands"), ()),
        (alone, ("95 % confidence",), ("90 %",)),
        (both.assign(**empty), ("90 % bands",), ("95 %",)),
    ):
        content = collect(rows, [RUN], "Page")
        figures = _text_pages(summary(content))
        pages = (
            page(content).partition("<script")[0],
            markdown(summary(content)),
            " ".join(text.get_text() for figure in figures for text in figure.texts),
        )
        for text in (" ".join(each.split()) for each in pages):  # lines break anywhere
            assert all(words in text for words in present), present
            assert not any(words in text for words in absent), absent
            assert "more than 2 % from 1" in text


def test_the_page_s_contours_are_those_of_the_pictures():
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine (apt-get install nodejs): page.js was not run")
    script = (Path(__file__).parents[1] / "flurka_bench/render/page.js").read_text("utf-8")
    function = script[script.index("  function evenLines(") : script.index("  function drawMap(")]
    rng = np.random.default_rng(0)
    tables = [
        (
            np.where(rng.random((4, 5)) < 0.1, np.nan, rng.normal(size=(4, 5))),
            rng.integers(0, 2, (4, 5)),
        )
        for _ in range(40)
    ]
    given = [[[[None if v != v else v for v in row] for row in table.tolist()], pairs.tolist()]
             for table, pairs in tables]  # fmt: skip
    code = f"{function}\nconsole.log(JSON.stringify({json.dumps(given)}.map(([t, p]) => evenLines(t, p))))"
    done = subprocess.run([node, "-e", code], capture_output=True, text=True, check=True)

    def plain(lines):
        return sorted(tuple(np.round(np.ravel(line), 9)) for line in lines)

    for (table, pairs), drawn in zip(tables, json.loads(done.stdout), strict=True):
        assert plain(even_lines(table, pairs)) == plain(drawn)
