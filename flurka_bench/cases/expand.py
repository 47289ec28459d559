"""From axes to cases: the one enumerator behind suites, predictions, maps and recommendations.

*Axes* name the values that each field of a case takes, under the names that records use. What is
asked for is every combination, the last axis fastest. A key may also be a tuple of names; its
values are then tuples, so these names advance together::

    {"mechanism": ["low-rank"], ("seq_len", "rank"): [(1024, 64), (4096, 256)]}

The axis ``order`` also takes ``BEST``: each order that the mechanism has, as rivals.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

from flurka_bench.cases import registry
from flurka_bench.cases.case import Case
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import MAX_COMBINATIONS, check_combinations

Axes = Mapping[Any, Sequence[Any]]  # by a name or a tuple of names
BEST = "best"
Wanted = TypeVar("Wanted")
Found = TypeVar("Found", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """What axes come to.

    ``groups`` holds a tuple of cases for each combination: one case, or the rivals of ``BEST``.
    Each group occurs once. ``impossible`` holds the combinations that cannot be computed, as asked
    for, each with its reason. ``possible`` are the mechanisms with a case, wanted or not, and
    ``num_dropped`` counts the combinations that can be computed and are not wanted.
    """

    groups: list[tuple[Case, ...]]
    impossible: list[tuple[Case, RequestError]]
    possible: frozenset[str]
    num_dropped: int

    @property
    def cases(self) -> list[Case]:
        """The cases of all groups, each once."""
        return list(dict.fromkeys(case for group in self.groups for case in group))


def combinations(axes: Axes) -> Iterator[dict[str, Any]]:
    """Every combination of the axes as a value for each name, the last axis fastest."""
    keys = [key if isinstance(key, tuple) else (key,) for key in axes]
    columns = [
        values if isinstance(key, tuple) else [(value,) for value in values]
        for key, values in axes.items()
    ]
    for row in product(*columns):
        yield {
            name: value
            for key, entry in zip(keys, row, strict=True)
            for name, value in zip(key, entry, strict=True)
        }


def distinct(
    wanted: Iterable[Wanted], canonical: Callable[[Wanted], Found]
) -> tuple[list[Found], list[tuple[Wanted, RequestError]]]:
    """The canonical forms of what is wanted, each once; and what has none, with the reason."""
    found: dict[Found, None] = {}
    impossible = []
    for each in wanted:
        try:
            found[canonical(each)] = None
        except RequestError as error:
            impossible.append((each, error))
    return list(found), impossible


def expand(
    *blocks: Axes,
    what: str,
    mend: str,
    limit: int = MAX_COMBINATIONS,
    keep: Callable[[Case], bool] = lambda case: True,
    max_cases: int | None = None,
) -> Expansion:
    """The cases of all blocks of axes, canonical and distinct, in the order of the axes.

    Args:
        blocks: axes; each names its mechanisms.
        what: who asks, as errors name it.
        mend: what makes the combinations fewer, as errors say it.
        limit: the most combinations; they are counted before any case is made.
        keep: whether a possible case is wanted.
        max_cases: the most groups; None sets no limit.

    Raises:
        RequestError: an unknown mechanism, too many combinations or too many cases.
    """
    check_combinations(what, *(axes.values() for axes in blocks), mend=mend, limit=limit)
    groups: dict[tuple[Case, ...], None] = {}
    impossible: list[tuple[Case, RequestError]] = []
    possible: set[str] = set()
    num_dropped = 0
    for rivals in (rivals for axes in blocks for rivals in _rivals(axes)):
        found, without = distinct(rivals, registry.canonical)
        if not found:
            impossible.append(without[0])
            continue
        possible.add(found[0].mechanism)
        if all(map(keep, found)):
            groups[tuple(found)] = None
        else:
            num_dropped += 1
        if max_cases is not None and len(groups) > max_cases:  # no need to see how many more
            raise RequestError(f"{what} expands to more than {max_cases} cases ({mend})")
    return Expansion(
        groups=list(groups),
        impossible=impossible,
        possible=frozenset(possible),
        num_dropped=num_dropped,
    )


def _rivals(axes: Axes) -> Iterator[list[Case]]:
    """The cases that each combination asks for, as asked for.

    A knob that a mechanism does not have stays at its first value: other values ask for the same.
    """
    first = next(combinations({key: values[:1] for key, values in axes.items()}), {})
    alone = [key for key in axes if isinstance(key, str)]
    for fields in combinations(axes):
        idle = registry.idle_knobs(fields["mechanism"], fields.get("level", "core"))
        if any(fields[name] != first[name] for name in alone if name in idle):
            continue
        orders: Sequence[str | None] = (fields.get("order"),)
        if orders == (BEST,):
            mechanism = registry.get(fields["mechanism"])
            orders = (None,) if "order" in idle else mechanism.orders
        yield [Case.of(fields | {"order": order}) for order in orders]
