"""Measured and predicted: where a time comes from, as values of a table's column ``source``.

A tidy table has a row per thing and source. What reads it is written once, for the rows of one
source. ``spread`` is the door to JSON: there the sources stand side by side, under the names that
readers of the JSON know.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

MEASURED, PREDICTED = SOURCES = ("measured", "predicted")
SECONDS = {MEASURED: "seconds", PREDICTED: "predicted_s"}  # columns of ``prepare``'s frame
PREFIX = {MEASURED: "", PREDICTED: "predicted_"}  # of a source's columns in JSON


def of(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The rows of one source."""
    return table[table["source"] == source]


def present(table: pd.DataFrame, column: str = "ratio") -> list[str]:
    """The sources that have any value in ``column``."""
    held = set(table.loc[table[column].notna(), "source"])
    return [source for source in SOURCES if source in held]


def leading(table: pd.DataFrame, column: str = "ratio") -> str:
    """The source to speak of: measured, or predicted where nothing was measured."""
    return (present(table, column) or [MEASURED])[0]


def spread(
    table: pd.DataFrame, keys: Sequence[str], once: Sequence[str], names: Mapping[str, str]
) -> pd.DataFrame:
    """One row per ``keys``, in the order of the table: what stands ``once`` (the first source has
    it), then each source's columns, ``names`` from the table's to those of the JSON, prefixed."""
    result = table.drop_duplicates([*keys])[[*keys, *once]]
    for source in SOURCES:
        renamed = {name: PREFIX[source] + wide for name, wide in names.items()}
        own = of(table, source)[[*keys, *names]].rename(columns=renamed)
        result = result.merge(own, how="left", on=[*keys])
    return result
