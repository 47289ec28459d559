"""Suites that no file holds: from axes as options name them, and parts of a suite.

Both have the text of a suite file, so that a run of them is recorded and resumed as any other.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flurka_bench.cases.expand import BEST
from flurka_bench.cases.suite import (
    AXES,
    Suite,
    parse_suite,
)
from flurka_bench.words.expression import Expression
from flurka_bench.words.sizes import ORDERS

_MARK = 8  # hexadecimal digits that tell requests of one name apart


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_MARK]


def suite_of_axes(
    axes: Mapping[str, Sequence[Any]], given: Collection[str], device_kind: str
) -> Suite:
    """The suite of every combination of these axes.

    Args:
        axes: values by the names of a suite's axes. The order ``BEST`` stands for all orders: a
            run measures which is the fastest.
        given: the axes that somebody asked for; the others fall away where no mechanism has them.
        device_kind: ``cpu`` or ``cuda``.

    Raises:
        RequestError: a value that its axis does not take.
    """
    values = dict(axes)
    if BEST in values.get("order", ()):
        values["order"] = ORDERS
    idle = parse_suite(_text(values), device_kind=device_kind).idle_axes()
    kept = {axis: each for axis, each in values.items() if axis in given or axis not in idle}
    return parse_suite(_text(kept), device_kind=device_kind)


def _text(axes: Mapping[str, Sequence[Any]]) -> str:
    lines = [f"{axis} = {json.dumps(list(values))}" for axis, values in axes.items()]
    table = "\n".join(["[axes]", *lines, ""])
    name = f"{'-'.join(axes['level'])}-{_mark(table)}"
    return f'name = "{name}"\ndescription = "axes given as options"\n\n{table}'


def part_of(suite: Suite, condition: str) -> Suite:
    """The suite's cases for which a condition holds (the grammar of ``exclude``), under a name of
    its own. A comparison with a knob that a case lacks does not hold.

    Raises:
        RequestError: text that is no condition over the fields of a case.
    """
    Expression(condition, AXES)  # in the words that were given
    return replace(
        suite,
        name=f"{suite.name[:40]}-only-{_mark(condition)}",
        text=f"{suite.text.rstrip()}\n\n# only: {json.dumps(condition)}\n",
        exclude=(*suite.exclude, Expression(f"not ({condition})", AXES)),
    )
