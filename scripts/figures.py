"""Every picture, page and table that the README and the docs show, from results/reference and
the model.

    python scripts/figures.py              # all of it: a few minutes
    python scripts/figures.py blocks       # the tables alone; also: pictures, pages

A table stands between ``<!-- figures: NAME -->`` and ``<!-- end -->``, once in the README or in
docs/, and is printed as it is replaced.
"""

import shutil
import subprocess
import sys
import textwrap
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

from flurka_bench.answers import (
    answer,
    recommend,
)
from flurka_bench.answers.agreement import agreement
from flurka_bench.answers.baselines import BASELINES
from flurka_bench.answers.speedup import (
    Cells,
    prepare,
    speedups,
)
from flurka_bench.answers.words import percent
from flurka_bench.cli.main import build_app
from flurka_bench.cli.plot import draw
from flurka_bench.cli.run import _print_answer
from flurka_bench.cost.predict import speedup
from flurka_bench.hardware import load
from flurka_bench.render.figures import (
    heatmap,
    style,
)
from flurka_bench.results import (
    read_run,
    to_frame,
)
from flurka_bench.words.files import write_atomically
from flurka_bench.words.units import (
    format_ratio,
    format_seconds,
)

REFERENCE = Path("results/reference")
LAYER, QUICK, PROFILE = (
    REFERENCE / "layer-cpu-1-thread",
    REFERENCE / "quick-cpu-1-thread",
    REFERENCE / "cpu-1-thread.toml",
)
IMAGES = Path("docs/images")
GPUS = "h100,h200,b200,l40s"
TARGETS = ("h100", "b200", "l40s", str(PROFILE))


def pictures() -> None:
    """docs/images, and the plots folders of the reference runs."""
    cells = speedups(to_frame([read_run(LAYER)]), "flurka", "best-other")
    maps = heatmap.grids(cells, "seq_len", "rank")
    place = next(
        i
        for i, grid in enumerate(maps)
        if (grid.fixed["num_heads"], grid.fixed["num_features"]) == (8, 64)
    )
    style.save(
        heatmap.heat_map(cells, "seq_len", "rank", which=place), IMAGES / "layer-heatmap", ["png"]
    )
    with redirect_stdout(StringIO()):
        draw([QUICK], ["heatmap", "scaling", "predicted"], folder=QUICK / "plots")
    error = REFERENCE / "error"
    for arguments in (
        [error, "--timing", REFERENCE / "error-time-cpu-1-thread"],
        [REFERENCE / "error-limits"],
    ):
        subprocess.run(
            [sys.executable, "-m", "flurka_bench", "quality", "plot", *arguments], check=True
        )
    shutil.copy(error / "error-time-trained-n512.png", IMAGES / "error-time.png")
    subprocess.run(
        [sys.executable, "scripts/plot_limits.py", "--out", IMAGES / "not-a-limit.png"], check=True
    )


def pages() -> None:
    """The page of the layer run, and that of predictions for GPUs that this project has not run
    on."""
    page = str(REFERENCE / "predicted-four-gpus.html")
    for words in ([str(LAYER)], ["--out", page, "--hardware", GPUS]):
        build_app("report")(["report", *words], standalone_mode=False)


def quick_block() -> str:
    """What ``run quick`` says at its end, of the largest layer."""
    run, text = read_run(QUICK), StringIO()
    with redirect_stdout(text):
        _print_answer(
            QUICK,
            SimpleNamespace(
                wall_s=run.meta["wall_s"], time_in_calls_s=run.meta["time_in_calls_s"], num_late=0
            ),
            as_json=False,
        )
    start = text.getvalue().rindex("\nlayer forward")
    return f"```text\n{text.getvalue()[start:].strip()}\n```"


def layer_block() -> str:
    """The table of the layer run: how often FLuRKA wins, by how much, and how well that was
    predicted."""
    rows = prepare(to_frame([read_run(LAYER)]))
    views = Cells(rows).views()
    judged = agreement(rows, "flurka", views)
    signs = judged.signs.set_index("baseline")
    lines = [
        "| | faster in | slower in | undecided | median speedup | best | predicted winning region (IoU) |",
        "| --- " * 7 + "|",
    ]
    for row in answer.answers(views).to_dict("records"):
        best = f"{format_ratio(row['best'])} [{row['best_low']:.2f}, {row['best_high']:.2f}] at {row['best_cell']}"
        best = (
            best
            if row["best_high"] < 1e6
            else f"{format_ratio(row['best'])} (too few samples for an interval)"
        )
        counts = (str(row[word]) for word in ("FASTER", "SLOWER", "AMBIGUOUS"))
        label = BASELINES[row["baseline"]].label
        lines.append(
            f"| {label} | {' | '.join(counts)} | {format_ratio(row['median'])} | {best} | {signs.iou[row['baseline']]:.2f} |"
        )
    every = judged.times.iloc[0]
    told = (
        f"The predictions rest on one minute of calibration, with none of these cases in it. They were "
        f"off by {percent(every['mape'])} in the mean (median {percent(every['median_ape'])}). IoU is "
        "the overlap of the predicted and the measured winning region, over the cells that differ by "
        "more than the noise."
    )
    return "\n".join([*lines, "", *textwrap.wrap(told, 100)])


def recommend_block() -> str:
    """The table across hardware: the fastest configuration, why, and what another floor would
    give."""
    lines = [
        "| target | fastest | time | why, against the fastest of each other family | at other floors |",
        "| --- " * 5 + "|",
    ]
    for name in TARGETS:
        profile = load(name)
        request = recommend.Request(seq_len=16384, model_dim=1024, dtype=profile.own_dtype)
        found = recommend.recommend(request, profile)
        best, *others = found.fastest_by_family()
        why = []
        for other in others:
            band = speedup(best.prediction, other.prediction)
            told = f"{format_ratio(band.ratio)} ({band.low:.2f} to {band.high:.2f}) {other.prediction.case.mechanism}"
            why.append(told + ("" if band.verdict == "FASTER" else f", {band.verdict}"))
        reason = recommend.because(best, others[0]).partition(": it ")[2]
        moved = [
            f"{words.replace(' (assumed)', '')}: {_form(each)}, {format_seconds(each.prediction.seconds)}"
            for words, each in found.by_floor
            if each is not None
            and words.startswith(("rank >= 128", "rank >= 512", "rank >= 256, features >= half"))
        ]
        title = "this CPU, one thread" if profile.kind == "cpu" else profile.name
        time = format_seconds(best.prediction.seconds)
        why = f"{'; '.join(why)}. Against {others[0].prediction.case.mechanism} it {reason}"
        lines.append(
            f"| {title}, {request.dtype} | {_form(best)} | {time} | {why} | {'; '.join(moved)} |"
        )
    return "\n".join(lines)


def _form(each: recommend.Candidate) -> str:
    case = each.prediction.case
    knobs = [
        f"{symbol} = {value}"
        for symbol, value in (("k", case.rank), ("m", case.num_features))
        if value
    ]
    told = ", ".join(
        [f"{case.mechanism} {case.order}", f"{case.num_heads} × {case.head_dim}", *knobs]
    )
    words = recommend.beside_floors(case)  # as `recommend` says it in the row
    return f"{told} ({words})" if words else told


BLOCKS = {"quick": quick_block, "layer": layer_block, "recommend": recommend_block}
PAGES = (Path("README.md"), *sorted(Path("docs").glob("*.md")))


def blocks() -> None:
    """Replace the tables of the README and the docs, each where it stands."""
    for name, block in BLOCKS.items():
        mark = f"<!-- figures: {name} -->\n"
        places = [path for path in PAGES if mark in path.read_text(encoding="utf-8")]
        assert len(places) == 1, f"block {name!r} stands in {len(places)} pages, not one"
        told = block()
        print(told, end="\n\n")
        head, found, rest = places[0].read_text(encoding="utf-8").partition(mark)
        write_atomically(places[0], head + found + told + rest[rest.index("\n<!-- end -->") :])


if __name__ == "__main__":
    parts = {"blocks": blocks, "pictures": pictures, "pages": pages}
    for part in sys.argv[1:] or parts:
        parts[part]()
