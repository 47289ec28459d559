"""The form of an error run's records (see ``results``): one per configuration, input, layer and
seed. No torch."""

from flurka_bench.results import (
    STATUSES,
    Field,
    Form,
)


def _count(meaning: str, required: bool = True, least: int = 1) -> Field:
    return Field(kind="count", meaning=meaning, required=required, least=least)


def _relative(meaning: str) -> Field:
    return Field(kind="number", meaning=meaning, least=0)


def _by_head(meaning: str) -> Field:
    return Field(kind="numbers", meaning=f"{meaning}, by head")


FIELDS: dict[str, Field] = {
    "schema": _count("version of this record's form"),
    "case_id": Field(
        kind="text", meaning="readable id, unique in a run, equal on every machine", required=True
    ),
    "status": Field(
        kind="text",
        meaning="how it ended; only ok carries errors",
        required=True,
        accepted=STATUSES,
    ),
    "mechanism": Field(kind="text", meaning="which approximation", required=True),
    "projection": Field(
        kind="text", meaning="how E and F are chosen; null where nothing is compressed"
    ),
    "share_kv": Field(kind="flag", meaning="E = F", required=True),
    "rank": _count("k; null where nothing is compressed", required=False),
    "num_features": _count("m; null for softmax", required=False),
    "family": Field(kind="text", meaning="input family", required=True),
    "inputs": Field(kind="text", meaning="family with its parameters", required=True),
    "layer": _count("of the trained encoder; null for synthetic inputs", required=False, least=0),
    "num_heads": _count("h"),
    "seq_len": _count("N"),
    "head_dim": _count("d"),
    "seed": _count("of inputs, E, F and random features", least=0),
    "output_error": _relative("|O - O'|_F / |O|_F over all heads: what the layer sees"),
    "matrix_frobenius": _by_head("|A - A'|_F / |A|_F"),
    "matrix_spectral": _by_head("|A - A'|_2 / |A|_2"),
    "kl_nats": _by_head(
        "mean over rows of KL(A || A'), where A' is a distribution; null where not"
    ),
    "output_frobenius": _by_head("|O - O'|_F / |O|_F"),
    "output_cosine": _by_head("mean over rows of cos(O, O')"),
    "low_rank_error": _relative(
        "output_error of the low-rank parent, same E and F (learned: its own F)"
    ),
    "low_rank_step": _relative("|O'_parent - O'|_F / |O|_F for the low-rank parent"),
    "kernel_error": _relative("output_error of the kernel parent, same features"),
    "kernel_step": _relative("|O'_parent - O'|_F / |O|_F for the kernel parent"),
    "factor_mismatch": _relative("between the implied matrix's output and the implementation's"),
    "error": Field(kind="text", meaning="what went wrong, in one line"),
}

FORM = Form(kind="error", fields=FIELDS, command="flurka-bench quality error")
