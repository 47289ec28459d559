"""What all pictures share: names and colours of mechanisms and stages, number formats, saving. No
pyplot, no global state."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from flurka_bench.cases.registry import MECHANISMS, SIMILARITIES
from flurka_bench.words.files import (
    make_folder,
    write_atomically,
)
from flurka_bench.words.text import legible

# Okabe and Ito's palette, told apart with every common colour vision; a family has one hue, its
# members their line and marker.
FAMILY_COLOURS = {
    "full": "#555555",
    "low-rank": "#0072B2",
    "kernel": "#D55E00",
    "flurka": "#009E73",
}
# Brown to blue-green through white (ColorBrewer's BrBG, matplotlib's too): the two ends differ in hue
# and equally in lightness for every common colour vision. On a dark ground the middle is dark.
RAMP = ("#543005", "#8c510a", "#bf812d", "#dfc27d", "#f6e8c3", "#f5f5f5", "#c7eae5", "#80cdc1", "#35978f",
        "#01665e", "#003c30")  # fmt: skip
DARK_RAMP = ("#ffd99a", "#e0a850", "#b07a2c", "#785220", "#4a3a26", "#2e3236", "#21443f", "#236b63", "#35978f",
             "#6cc9be", "#b4f0e7")  # fmt: skip
STAGE_COLOURS = {"project": "#0072B2", "compress": "#E69F00", "features": "#009E73", "scores": "#D55E00", "key_value": "#CC79A7",
                 "output": "#56B4E9", "merge": "#999999", "ffn": "#b8a800", "other": "#777777"}  # fmt: skip
FAMILY_MARKERS = {"full": "s", "low-rank": "o", "kernel": "^", "flurka": "D"}
# line and marker of each mechanism, a family's members one after the other
LINES = {
    name: (SIMILARITIES[cell.similarity].line, marker)
    for family, marker in FAMILY_MARKERS.items()
    for name, cell in MECHANISMS.items()
    if cell.family == family
}
_PARAMETERS = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "svg.hashsalt": "flurka-bench",
    "font.family": "DejaVu Sans",
}


def figure(width: float, height: float) -> Figure:
    """A figure (inches) with its own Agg canvas, laid out without overlaps."""
    fig = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(fig)
    return fig


def save(fig: Figure, stem: Path, formats: Iterable[str] = ("png", "svg")) -> list[Path]:
    """Write ``stem``.png and .svg; equal figures give equal files. RequestError where the folder
    does not take them."""
    make_folder(stem.parent)
    make_legible(fig)
    paths = []
    with matplotlib.rc_context(_PARAMETERS):
        for suffix in formats:
            file = BytesIO()
            metadata = {"Date": None} if suffix == "svg" else None
            fig.savefig(file, format=suffix, dpi=150, metadata=metadata)
            paths.append(stem.with_name(f"{stem.name}.{suffix}"))
            write_atomically(paths[-1], file.getvalue())
    return paths


def make_legible(fig: Figure) -> None:
    """Escape control characters in a figure's texts, names of devices among them: no font has
    them."""
    for text in fig.findobj(Text):
        assert isinstance(text, Text)
        if (shown := legible(text.get_text())) != text.get_text():
            text.set_text(shown)


def log_axis(axis: Axes, which: str, values: np.ndarray) -> None:
    """A logarithmic axis whose ticks are the tested values themselves, as whole numbers (thinned
    where they would collide)."""
    ticks = np.unique(np.asarray(values, dtype=float))
    ticks = ticks[:: max(1, -(-len(ticks) // 10))]
    getattr(axis, f"set_{which}scale")("log", base=2)
    target = getattr(axis, f"{which}axis")
    target.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    target.set_minor_locator(matplotlib.ticker.NullLocator())


def seconds_axis(axis: Axes, which: str) -> None:
    """A logarithmic axis of times labelled 10 µs, 1 ms, ..."""
    from flurka_bench.words.units import format_seconds

    getattr(axis, f"set_{which}scale")("log")
    target = getattr(axis, f"{which}axis")
    target.set_major_formatter(
        matplotlib.ticker.FuncFormatter(lambda value, _: format_seconds(value) if value > 0 else "")
    )
    low, high = getattr(axis, f"get_{which}lim")()
    if high / low < 30:
        target.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    target.set_minor_formatter(matplotlib.ticker.NullFormatter())


def ratio_axis(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis of speedups labelled 1/2×, 1×, 1.2×, 2×, ... so that at least two labels
    show."""
    getattr(axis, f"set_{which}scale")("log", base=2)
    low, high = getattr(axis, f"get_{which}lim")()
    steps = (
        [1, 1.2, 1.5, 2]
        if high / low < 6
        else [2**power for power in range(0, 12, 1 if high / low < 500 else 2)]
    )
    ticks = {1 / step: f"1/{step:g}×" for step in steps[1:]} | {
        step: f"{step:g}×" for step in steps
    }
    ticks = {value: text for value, text in ticks.items() if low <= value <= high}
    target = getattr(axis, f"{which}axis")
    target.set_ticks(list(ticks), labels=list(ticks.values()))
    target.set_minor_locator(matplotlib.ticker.NullLocator())


def plain(text: object) -> str:
    """A text that comes from data, for matplotlib to draw as it is: two dollar signs in a device's
    name would begin and end a formula."""
    return str(text).replace("$", r"\$")


def title(fig: Figure, text: str) -> None:
    """The title over the whole figure, legend included; drawn as it is."""
    fig.suptitle(plain(text), fontsize=10)


def says_nothing(message: str) -> Figure:
    """A figure that says why there is no picture."""
    fig = figure(6, 2)
    fig.text(0.5, 0.5, plain(message), ha="center", va="center", wrap=True)
    return fig
