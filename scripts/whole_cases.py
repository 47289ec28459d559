"""Predict the published whole cases in ../shared/data/whole_cases and print each beside its
measurement.

    python scripts/whole_cases.py ../shared/data/whole_cases

flash_paper_a100_forward is eager PyTorch of 2022. ``plain`` predicts this project's own op lists;
``as launched`` the kernels that the paper's code launches as far as it is public: full-math scales
inside the first product (``torch.baddbmm`` with alpha), so the project's scaling of q falls away;
low-rank (the public Linformer code) takes tokens first, (b, N, h, d), so that q and the result are
copied between layouts, and multiplies its scores by the scale in a kernel of its own. Softmax is a
kernel in float16; dropout is absent. transformer_models_fp32 are whole models in float32 without
TF32, predicted as this project's level model: an encoder stack with feed-forward networks, norms,
embedding and output head.
"""

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from flurka_bench.cases.case import Case
from flurka_bench.cost.model import model_of
from flurka_bench.cost.predict import (
    predict,
    predict_lowered,
)
from flurka_bench.hardware import load
from flurka_bench.lowering import lower
from flurka_bench.words.ops import (
    Op,
    Tensor,
)


def as_launched(case: Case) -> list[Op]:
    """The op list of the paper's eager code for a core forward case."""
    ops = [op for op in lower(case, "cuda") if op.name != "scale"]
    renamed = {
        tensor.name: "q" for op in lower(case, "cuda") if op.name == "scale" for tensor in op.writes
    }
    ops = [_with_reads(op, renamed) for op in ops]
    if case.mechanism == "full-math":
        return ops
    heads = case.batch * case.num_heads
    scores = Tensor(name="scores", numel=heads * case.seq_len * case.rank, dtype=case.dtype)
    tokens = Tensor(name="q", numel=heads * case.seq_len * case.head_dim, dtype=case.dtype)
    scale = _streaming(
        "scores", "elementwise", "scale_scores", scores, heads * case.seq_len, case.rank
    )
    copies = [
        _streaming("other", "copy", name, tokens, heads * case.seq_len, case.head_dim)
        for name in ("copy_q", "copy_out")
    ]
    at = next(i for i, op in enumerate(ops) if op.kind == "softmax")
    return [copies[0], *ops[:at], scale, *ops[at:], copies[1]]


def _with_reads(op: Op, renamed: dict[str, str]) -> Op:
    reads = tuple(
        replace(tensor, name=renamed.get(tensor.name, tensor.name)) for tensor in op.reads
    )
    return replace(op, reads=reads)


def _streaming(stage: str, kind: str, name: str, tensor: Tensor, rows: int, cols: int) -> Op:
    out = replace(tensor, name=f"{name}_out")
    return Op(
        stage=stage,
        kind=kind,
        name=name,
        dtype=tensor.dtype,
        rows=rows,
        cols=cols,
        vector_flops=rows * cols,
        reads=(tensor,),
        writes=(out,),
    )


def flash_paper(path: Path) -> tuple[float, float]:
    """Table 18 of arXiv 2205.14135; returns the mean absolute percentage errors, plain and as
    launched."""
    profile = load("a100-sxm-40gb").with_measured({}, {})
    errors: dict[str, list[tuple[float, float]]] = {}
    print(
        f"{'mechanism':12s} {'seq_len':>7s} {'measured':>9s} {'plain':>8s} {'as launched':>11s}   (ms; N of at least 1024 count)"
    )
    with path.open() as stream:
        for row in csv.DictReader(stream):
            if row["mechanism"] == "full-flash1":
                continue
            case = Case(
                mechanism=row["mechanism"], dtype=row["dtype"], batch=int(row["batch"]), num_heads=int(row["num_heads"]),
                seq_len=int(row["seq_len"]), head_dim=int(row["head_dim"]), rank=int(row["rank"]) if row["rank"] else None,
            )  # fmt: skip
            measured = float(row["latency_ms"])
            plain = predict([case], profile)[0].seconds * 1e3
            launched = (
                float(predict_lowered(as_launched(case), case, model_of(profile)).seconds[0]) * 1e3
            )
            print(
                f"{case.mechanism:12s} {case.seq_len:7d} {measured:9.2f} {plain:8.2f} {launched:11.2f}"
            )
            if case.seq_len >= 1024:
                errors.setdefault(case.mechanism, []).append(
                    (abs(plain / measured - 1), abs(launched / measured - 1))
                )
    for name, pairs in {**errors, "all": [pair for own in errors.values() for pair in own]}.items():
        plain, launched = 100 * np.mean(pairs, axis=0)
        print(
            f"{name}: mean absolute percentage error {plain:.1f} plain, {launched:.1f} as launched"
        )
    return plain, launched


def transformer_models(path: Path) -> None:
    """NeuSight's whole models in float32; the training rows are forward and backward without an
    optimizer step."""
    errors: dict[str, list[float]] = {}
    print(
        f"\n{'device':16s} {'model':11s} {'pass':8s} {'batch':>5s} {'measured':>9s} {'predicted':>9s}   (ms)"
    )
    with path.open() as stream:
        for row in csv.DictReader(stream):
            size = {
                name: int(row[name])
                for name in ("batch", "num_heads", "seq_len", "head_dim", "num_layers", "ffn_dim")
            }
            size["vocab_size"] = int(row["vocab"])
            case = Case(
                mechanism=row["mechanism"],
                level="model",
                pass_=row["pass"],
                dtype=row["dtype"],
                **size,
            )
            ops = [op for op in lower(case, "cuda") if op.phase != "optimizer"]
            profile = load(row["device"]).with_measured({}, {})
            predicted = float(predict_lowered(ops, case, model_of(profile)).seconds[0]) * 1e3
            measured = float(row["latency_ms"])
            errors.setdefault(row["device"], []).append(predicted / measured - 1)
            print(
                f"{row['device']:16s} {row['model']:11s} {case.pass_:8s} {case.batch:5d} {measured:9.1f} {predicted:9.1f}"
            )
    errors["all"] = [each for values in list(errors.values()) for each in values]
    for name, values in errors.items():
        print(
            f"{name}: mean absolute percentage error {100 * np.mean(np.abs(values)):.1f}, mean error {100 * np.mean(values):+.1f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with the whole-case files")
    arguments = parser.parse_args()
    flash_paper(arguments.folder / "flash_paper_a100_forward.csv")
    transformer_models(arguments.folder / "transformer_models_fp32.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
