"""Every form of a mechanism at levels core and layer, for tests that hold the op lists to the real
modules."""

from flurka_bench.cases.registry import MECHANISMS

FORMS = [
    (name, level, order, pass_)
    for name, cell in MECHANISMS.items()
    for level in ("core", "layer")
    for order in (cell.orders if level == "layer" else (None,))
    for pass_ in ("forward", "train")
]
