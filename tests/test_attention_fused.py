"""The Triton kernels, proven without a GPU: run by Triton's interpreter against the eager code, and
compiled for real chips.

Interpreter and compiler cannot share a process, so this file is also a script with the two modes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from flurka_bench.attention.fused.launch import (
    COMBINED_FEATURES,
    num_splits,
    tiles,
)
from flurka_bench.cases.case import Case
from flurka_bench.kinds.timing.workbench import (
    UnsupportedCase,
    build,
)
from flurka_bench.words.errors import RequestError

pytest.importorskip("triton")

DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Bytes of shared memory a program can have, and what a tensor-core instruction is called in PTX
CHIPS = {
    80: (163 * 1024, r"mma\.sync"),
    86: (99 * 1024, r"mma\.sync"),
    90: (227 * 1024, r"wgmma\.mma_async|mma\.sync"),
}
COMPILED = [  # kind, head_dim, num_features, dtype
    ("favor", 64, 64, "bfloat16"),
    ("favor", 128, 256, "float16"),
    ("relu", 256, 64, "bfloat16"),
    ("elu", 64, 64, "float16"),
    ("favor", 128, 64, "float32"),
]


def interpret():
    """Prints, case by case, the relative error of the fused and of the eager code against
    float64."""
    from flurka_bench.attention import (
        FLuRKAAttention,
        feature_map,
    )
    from flurka_bench.attention.fused import (
        FusedFeatures,
        fused_feature_attention,
        launch,
    )

    torch.manual_seed(0)
    shapes = [(2, 1, 33, 150, 16, 80, 3), (1, 2, 5, 20, 40, 16, 1)]
    for dtype in DTYPES:
        for kind in ("favor", "relu", "elu"):
            for masked in (False, True):
                for b, h, n, num_keys, d, m, splits in shapes:
                    features = feature_map(
                        kind, d, None if kind == "elu" else m, dtype=getattr(torch, dtype)
                    )
                    # tokens first in memory, as a layer's projections leave them
                    draws = (
                        torch.randn(b, rows, h, d).to(getattr(torch, dtype))
                        for rows in (n, num_keys, num_keys)
                    )
                    q, k, v = (draw.transpose(1, 2) for draw in draws)
                    keep = torch.rand(b, num_keys) < 0.5 if masked else None
                    if masked:
                        keep[:, : num_keys // 2] = (
                            False  # whole tiles, and a whole split, without a key
                        )
                    exact_features = feature_map(
                        kind, d, None if kind == "elu" else m, dtype=torch.float64
                    )
                    if kind != "elu":
                        exact_features.omega.copy_(features.omega)
                    exact = exact_features(q.double(), k.double(), v.double(), keep)
                    fused = fused_feature_attention(q, k, v, features, keep, splits=splits)
                    errors = [
                        float((out.double() - exact).norm() / exact.norm())
                        for out in (fused, features(q, k, v, keep))
                    ]
                    print(
                        json.dumps(
                            {
                                "case": [dtype, kind, masked, [b, h, n, num_keys, d, m, splits]],
                                "errors": errors,
                            }
                        )
                    )
    for kind in ("favor", "relu", "elu"):
        for splits in (1, 3):  # values and lengths whose sums leave float16
            features = feature_map(kind, 16, None if kind == "elu" else 32, dtype=torch.float16)
            q, k = torch.randn(2, 1, 1, 300, 16).half() - 2
            v = torch.full_like(k, 40_000.0)
            out = fused_feature_attention(q, k, v, features, splits=splits)
            error = float((out.double() / 40_000 - 1).abs().max())
            print(json.dumps({"case": ["v = 40,000", kind, splits], "errors": [error, 0.0]}))
    layer = FLuRKAAttention(32, 2, 40, 20, 16, similarity="relu", order="compress_first")
    x = torch.randn(2, 40, 32)
    exact, eager = layer.double()(x.double()), layer.float()(x)
    layer.similarity = FusedFeatures(layer.similarity)
    launch.num_processors = lambda device: 1  # there is no GPU to ask
    with torch.no_grad():
        errors = [float((out.double() - exact).norm() / exact.norm()) for out in (layer(x), eager)]
    print(json.dumps({"case": ["float32", "layer"], "errors": errors}))
    layer = FLuRKAAttention(32, 2, 40, 10, 16, similarity="favor", compression="mean-pool")
    layer.order = "project_first"
    keep = torch.arange(40) < torch.tensor([[18], [0]])  # within a window, and none
    exact, eager = layer.double()(x.double(), keep), layer.float()(x, keep)
    layer.similarity = FusedFeatures(layer.similarity)
    with torch.no_grad():
        assert layer(x[:0]).shape == (0, 40, 32)
        fused = layer(x, keep)
    assert (fused[1] == 0).all()
    errors = [float((out.double() - exact).norm() / exact.norm()) for out in (fused, eager)]
    print(json.dumps({"case": ["float32", "padded layer"], "errors": errors}))
    big = feature_map("favor", 16, 32, dtype=torch.float16)
    q, k, v = (
        50 * torch.nn.functional.normalize(torch.randn(1, 1, 80, 16), dim=-1).half()
        for _ in range(3)
    )
    out = fused_feature_attention(q, k, v, big, splits=1)
    print(
        json.dumps(
            {
                "case": ["|x| = 50"],
                "errors": [0.0 if torch.isfinite(out).all() else float("inf"), 0.0],
            }
        )
    )


def compile_for_chips():
    """Prints, kernel by kernel, shared memory, stack bytes (spills), tensor-core instructions."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from flurka_bench.attention.fused import kernels

    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    floats = ("half_scale", "epsilon", "out_scale")

    def compiled(kernel, chip, pointers, constants, num_warps):
        names, signature, attributes = kernel.arg_names, {}, {}
        for i, name in enumerate(names):
            if name in constants:
                signature[name] = "constexpr"
            elif name.endswith("_ptr"):
                signature[name] = pointers.get(name, "*fp32")
            else:
                signature[name] = "fp32" if name in floats else "i32"
            if (
                name.endswith("_ptr")
                or name.startswith("stride")
                or name in ("num_features", "head_dim")
            ):
                attributes[(i,)] = [["tt.divisibility", 16]]
        values = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
        result = triton.compile(
            source,
            target=GPUTarget("cuda", chip, 32),
            options={"num_warps": num_warps, "num_stages": 2},
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(result.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True
            )
        stack = int(re.search(r"STACK:(\d+)", usage.stdout + usage.stderr)[1])
        return {
            "kernel": kernel.__name__,
            "shared": result.metadata.shared,
            "stack": stack,
            "tensor_core": len(re.findall(CHIPS[chip][1], result.asm["ptx"])),
            "async_copies": len(re.findall(r"cp\.async", result.asm["ptx"])),
        }

    for chip in CHIPS:
        for kind, d, m, dtype in COMPILED:
            tile = tiles(d, m, getattr(torch, dtype))
            pointers = dict.fromkeys(
                ("k_ptr", "v_ptr", "omega_ptr", "s_ptr", "q_ptr", "out_ptr"), f"*{DTYPES[dtype]}"
            )
            pointers["keep_ptr"] = "*u8"
            common = {
                "KIND": kernels.KINDS[kind],
                "BLOCK_M": tile.features,
                "BLOCK_D": tile.head_dim,
            }
            dots = {**common, "UPCAST": False, "PRECISION": "tf32x3"}
            launches = [
                (
                    kernels.key_side,
                    {
                        **dots,
                        "BLOCK_L": tile.rows,
                        "HAS_MASK": kind == "favor",
                        "FINAL": kind != "relu",
                    },
                    tile.num_warps,
                ),
                (
                    kernels.query_side,
                    {
                        **dots,
                        "BLOCK_N": tile.rows,
                        "GROUP": tile.features if kind != "favor" else COMBINED_FEATURES,
                    },
                    tile.num_warps,
                ),
            ]
            launches += (
                [(kernels.combine, {**common, "BLOCK_M": COMBINED_FEATURES}, 4)]
                if (kind, d) == ("favor", 128)
                else []
            )
            for kernel, constants, num_warps in launches:
                facts = compiled(kernel, chip, pointers, constants, num_warps)
                print(json.dumps({"chip": chip, "case": [kind, d, m, dtype], **facts}))


def own_process(mode, **environment):
    result = subprocess.run(
        [sys.executable, __file__, mode],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_interpreted_kernels_agree_with_the_eager_code():
    results = own_process("interpret", TRITON_INTERPRET="1")
    assert len(results) == 3 * 3 * 2 * 2 + 3 * 2 + 3
    # Triton's interpreter truncates where it stores bfloat16, twice the error of rounding
    slack = {
        "float32": 3e-6,
        "float16": 1e-3,
        "bfloat16": 1.2e-2,
        "|x| = 50": 0.0,
        "v = 40,000": 1e-3,
    }
    for result in results:
        assert result["errors"][0] <= slack[result["case"][0]], result


def test_compiled_kernels_fit_their_chips_and_use_tensor_cores():
    results = own_process("compile", TRITON_INTERPRET="0")
    assert len(results) == len(CHIPS) * (2 * len(COMPILED) + 2)
    for facts in results:
        assert facts["shared"] <= CHIPS[facts["chip"]][0], facts
        assert facts["stack"] == 0, facts
        if facts["kernel"] != "combine":
            assert facts["tensor_core"] > 0, facts
            assert facts["async_copies"] > 0, facts


def test_tiles_are_powers_of_two_that_hold_a_head():
    for dtype, most in ((torch.float16, 256), (torch.bfloat16, 256), (torch.float32, 128)):
        for head_dim in (1, 16, 40, 64, 100, most):
            tile = tiles(head_dim, 24, dtype)
            assert tile.head_dim >= head_dim
            assert all(
                size >= 16 and size & (size - 1) == 0
                for size in (tile.rows, tile.features, tile.head_dim)
            )
        with pytest.raises(RequestError, match="the eager layer takes it"):
            tiles(most + 1, 24, dtype)
    with pytest.raises(RequestError, match="float64"):
        tiles(64, 24, torch.float64)


def test_keys_are_split_only_where_heads_do_not_fill_the_gpu():
    assert num_splits(512, 64, 8, 132) == 2  # FLuRKA's few keys: at least four tiles a program
    assert num_splits(65536, 64, 8, 132) == 33
    assert num_splits(65536, 64, 1000, 132) == 1
    assert num_splits(10, 64, 1, 132) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "NVIDIA GPU"),
        ({"pass_": "train"}, "no backward pass"),
        ({"level": "layer", "order": "absorbed"}, "compress_first"),
        ({"mechanism": "low-rank"}, "feature maps only"),
    ],
)
def test_fused_says_what_it_cannot_run(changes, says):
    sizes = {"seq_len": 64, "head_dim": 16, "rank": 16, "num_features": 16}
    case = Case(**{"mechanism": "flurka-relu", "backend": "fused", **sizes, **changes})
    with pytest.raises((UnsupportedCase, RequestError), match=says):
        build(case)


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_chips}[sys.argv[1]]()
