"""regions: closed forms agree with the counts, maps with their cells, and errors are one line."""

import json
import subprocess
import sys

import pytest

from flurka_bench.cases.case import Case
from flurka_bench.cost.regions import holds
from flurka_bench.words.verdict import RULE


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "flurka_bench", "regions", *arguments],
        capture_output=True,
        text=True,
    )


def test_flop_conditions_say_what_the_op_lists_count():
    shape = {"seq_len": 4096, "rank": 128, "num_features": 32}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in shape.items()]
    for level in ("core", "layer"):
        rows = json.loads(
            command(
                "--flops", "--level", level, *options, "--model-dim=512", "--head-dim=64", "--json"
            ).stdout
        )
        assert {(row["x"], row["y"]) for row in rows} >= {
            ("flurka-relu", "low-rank"),
            ("flurka-relu", "kernel-relu"),
        }
        for row in rows:
            one, other = (
                Case(
                    mechanism=row[side],
                    level=level,
                    order=row[f"order_{side}"],
                    num_heads=8,
                    head_dim=64,
                    **shape,
                )
                for side in "xy"
            )
            assert row["holds"] == bool(holds(one, other)), row


def test_launch_and_shapes_are_taken():
    small = [
        "--hardware=h100",
        "--seq-len=1024,2048",
        "--rank=128,256",
        "--num-features=32,64",
        "--baseline=best-other",
        "--json",
    ]
    maps = {
        launch: json.loads(command(*small, "--model-dim=512", f"--launch={launch}").stdout)[
            "cells"
        ]["best-other"]
        for launch in ("eager", "none")
    }
    assert len(maps["eager"]) == len(maps["none"]) and maps["eager"] != maps["none"]
    found = json.loads(
        command(
            *small,
            "--model-dim=256,512",
            "--head-dim=32,64",
            "--batch=1,2",
            "--x=head_dim",
            "--y=num_heads",
        ).stdout
    )
    cells = found["cells"]["best-other"]
    assert {(cell["num_heads"], cell["head_dim"], cell["batch"]) for cell in cells} == {
        (width // head, head, batch)
        for width in (256, 512)
        for head in (32, 64)
        for batch in (1, 2)
    }
    assert {row["axis"] for row in found["crossovers"]["best-other"]} == {"head_dim", "num_heads"}


def test_design_s_condition_comes_out_and_as_latex():
    rows = json.loads(
        command("--flops", "--level", "core", "--pair", "flurka-relu,low-rank", "--json").stdout
    )
    assert rows[0]["inequality"] == "m*(N + k) < N*k" and rows[0]["holds"] is None
    rows = json.loads(
        command(
            "--flops", "--level", "core", "--pair", "flurka-relu,low-rank", "--latex", "--json"
        ).stdout
    )
    assert rows[0]["inequality"] == "m \\left(N + k\\right) < N k"


def test_a_predicted_map_has_cells_crossovers_and_a_reason():
    options = [
        "--hardware",
        "h100",
        "--seq-len",
        "4096,16384",
        "--rank",
        "128,256",
        "--num-features",
        "32,64",
        "--model-dim",
        "512",
    ]
    found = json.loads(command(*options, "--baseline", "best-other,paper-full", "--json").stdout)
    assert found["kind"] == "predicted" and found["agreement"] is None
    assert [on["kind"] for on in found["basis"]] == ["datasheet"]
    cells = found["cells"]["best-other"]
    assert {(cell["seq_len"], cell["rank"]) for cell in cells} >= {
        (n, k) for n in (4096, 16384) for k in (128, 256)
    }
    for cell in cells:
        assert (
            cell["predicted_speedup_low"]
            <= cell["predicted_speedup"]
            <= cell["predicted_speedup_high"]
        )
        assert (
            cell["predicted_verdict"] in ("FASTER", "SLOWER", "SAME", "AMBIGUOUS")
            and cell["verdict"] == "MISSING"
        )
    assert {row["axis"] for row in found["crossovers"]["paper-full"]} == {
        "seq_len",
        "rank",
        "num_features",
    }
    printed = command(*options, "--baseline", "paper-full").stdout
    text = " ".join(printed.split())
    assert "saves most in" in text and "fewer matmul FLOPs where" in text
    assert "h100-sxm-80gb: datasheet only" in text and RULE in text
    assert "flurka is predicted to be faster than" in text.partition("datasheet only")[0]
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--hardware", "h100", "--baseline", "strong-ful"], "strong-full"),
        (["--hardware", "h100", "--subject", "flurk"], "flurka"),
        (["--x", "rnk"], "rank"),
        (["--level", "model"], "layer"),
        (["--launch", "graphs"], "graph"),
        (["--flops", "--head-dim", "32,64"], "--head-dim with --flops takes one value"),
        (["--flops", "--pair", "flurka-relu"], "two mechanisms"),
        (["--flops", "--pair", "flurka-relu,lowrank"], "low-rank"),
        (["--model-dim", "100"], "--head-dim"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_a_wrong_request_is_one_line(arguments, text):
    done = command(*arguments)
    assert (
        done.returncode == 2 and text in done.stderr and len(done.stderr.strip().splitlines()) == 1
    ), done.stderr
