"""Whom FLuRKA is compared with, by name.

A *subject* is a mechanism's name, a family (``flurka``, ``low-rank``, ``kernel``, ``full``) or
nothing more: always in its fastest order, backend and, for a family, similarity. A *baseline* is
the paper's form (materialised, ``project_first``, eager) or the strong form (the fastest of its
family, order and backend free) of one of FLuRKA's parents or of full attention; or the best of all
others; or any mechanism by name, in its fastest form.
"""

from dataclasses import dataclass

from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.words import errors

FAMILY_OF = {name: cell.family for name, cell in MECHANISMS.items()}
FAMILIES = {
    family: tuple(name for name, own in FAMILY_OF.items() if own == family)
    for family in ("full", "low-rank", "kernel", "flurka")
}
PAPER_MECHANISM = {"full": "full-math", "low-rank": "low-rank"}


def knobs(mechanism: str) -> tuple[str, ...]:
    """The columns that a user chooses for this mechanism; elu + 1 has no num_features to choose."""
    cell = MECHANISMS[mechanism]
    compressed = ("rank", "compression", "share_kv", "share_heads") if cell.compressed else ()
    return compressed + (("num_features",) if cell.uses_features else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A named opponent: which mechanisms stand for it, and in which form."""

    name: str
    label: str
    family: str | None = None  # None: every family but the subject's
    mechanism: str | None = None  # one mechanism by name, in its fastest form
    paper: bool = False

    def mechanisms(self, subject: str) -> tuple[str, ...]:
        """The mechanisms that stand for this baseline against a subject mechanism (a kernel parent
        shares its feature map)."""
        if self.mechanism:
            return (self.mechanism,)
        if self.family is None:
            return tuple(name for name, family in FAMILY_OF.items() if family != FAMILY_OF[subject])
        if self.family == "kernel":
            parent = MECHANISMS[subject].parents["kernel"]
            return (parent,) if parent else FAMILIES["kernel"]
        return (PAPER_MECHANISM[self.family],) if self.paper else FAMILIES[self.family]


# The strong ones lead, everywhere.
BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline(name="best-other", label="the best of all others"),
        Baseline(
            name="strong-low-rank",
            label="low-rank parent, strong (SDPA, best order and backend)",
            family="low-rank",
        ),
        Baseline(
            name="strong-kernel",
            label="kernel parent, strong (best order and backend)",
            family="kernel",
        ),
        Baseline(
            name="strong-full", label="full attention, strong (SDPA, best backend)", family="full"
        ),
        Baseline(
            name="paper-low-rank",
            label="low-rank parent, the paper's (eager, project_first)",
            family="low-rank",
            paper=True,
        ),
        Baseline(
            name="paper-kernel",
            label="kernel parent, the paper's (eager, project_first)",
            family="kernel",
            paper=True,
        ),
        Baseline(
            name="paper-full",
            label="full attention, the paper's (eager, materialised)",
            family="full",
            paper=True,
        ),
    )
}


def baseline(name: str) -> Baseline:
    """The baseline of that name, or the mechanism of that name in its fastest form. Raises
    RequestError naming the nearest."""
    if name in BASELINES:
        return BASELINES[name]
    if name in FAMILY_OF:
        return Baseline(name=name, label=f"{name}, best order and backend", mechanism=name)
    raise errors.unknown("baseline", name, [*BASELINES, *FAMILY_OF])


def subject_mechanisms(name: str) -> tuple[str, ...]:
    """The mechanisms a subject stands for. Raises RequestError naming the nearest."""
    if name in FAMILIES and name not in FAMILY_OF:
        return FAMILIES[name]
    if name in FAMILY_OF:
        return (name,)
    raise errors.unknown("subject", name, [*FAMILIES, *FAMILY_OF])
