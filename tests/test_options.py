"""Every option does something: a value other than the default reaches the call or changes the
answer; and the units that options are written in."""

import json
from dataclasses import fields

import pytest

from flurka_bench.cli import main
from flurka_bench.words.units import (
    format_bytes,
    format_seconds,
    parse_bytes,
    parse_seconds,
)


def answer(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--json"])
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def default():
    """What a verb answers without further options, asked once."""
    return {}


def changes(capsys, default, arguments, option, value):
    if arguments not in default:
        default[arguments] = answer(capsys, *arguments)
    return answer(capsys, *arguments, option, value) != default[arguments]


PREDICT = (
    "predict", "--hardware", "h100", "--mechanism", "low-rank", "--launch", "none", "--seq-len", "512",
)  # fmt: skip
RECOMMEND = ("recommend", "--hardware", "h100", "--head-dim", "64", "--backend", "eager")
REGIONS = (
    "regions", "--hardware", "h100", "--model-dim", "512", "--seq-len", "2048", "--rank", "128",
    "--num-features", "32", "--baseline", "full-sdpa",
)  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--hardware", "a100"),
        ("--mechanism", "full-math"),
        ("--level", "core"),
        ("--pass", "train"),
        ("--backend", "compiled"),
        ("--batch", "2"),
        ("--num-heads", "4"),
        ("--seq-len", "2048"),
        ("--head-dim", "32"),
        ("--rank", "64"),
        ("--dtype", "float32"),
        ("--launch", "graph"),
        ("--launch", "eager"),
        ("--cache", "cold"),
    ],
)
def test_each_option_of_predict_changes_the_answer(capsys, default, option, value):
    assert changes(capsys, default, PREDICT, option, value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--batch", "2"),
        ("--launch", "none"),
        ("--min-rank", "512"),
        ("--top", "3"),
    ],
)
def test_each_option_of_recommend_changes_the_answer(capsys, default, option, value):
    assert changes(capsys, default, RECOMMEND, option, value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--subject", "flurka-favor"),
        ("--launch", "none"),
    ],
)
def test_each_option_of_regions_changes_the_answer(capsys, default, option, value):
    assert changes(capsys, default, REGIONS, option, value)


class ReachedError(Exception):
    pass


@pytest.mark.parametrize(
    ("written", "arrives"),
    [
        (("--cache", "cold"), {"cache": "cold"}),
        (("--seed", "7"), {"seed": 7}),
        (("--stages",), {"stages": True}),
        (("--budget", "80s"), {"budget_s": 80.0}),
        (("--memory-limit", "8GB"), {"memory_limit_bytes": 8 * 10**9}),
        (("--device", "cpu"), {"device": "cpu"}),
    ],
)
def test_each_option_of_run_reaches_the_runner(monkeypatch, tmp_path, written, arrives):
    got = {}

    def run(plan, options, **_):
        for part in (plan, options):
            got.update({each.name: getattr(part, each.name) for each in fields(part)})
        raise ReachedError

    monkeypatch.setattr("flurka_bench.bench.loop.run", run)
    suite = tmp_path / "one.toml"
    suite.write_text('axes = {mechanism = "full-math", seq_len = 64}')
    device = () if "--device" in written else ("--device", "cpu")
    with pytest.raises(ReachedError):
        main(["run", str(suite), *device, "--out", str(tmp_path / "out"), *written])
    assert {name: got.get(name) for name in arrives} == arrives


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7B", 7), ("7kB", 7_000), ("7MB", 7_000_000), ("7GB", 7 * 10**9),
        ("7TB", 7 * 10**12), ("7KiB", 7_168), ("7MiB", 7_340_032), ("7GiB", 7_516_192_768),
        ("7TiB", 7_696_581_394_432), ("1.5 GB", 1_500_000_000), ("2e3B", 2000),
    ],
)  # fmt: skip
def test_units_of_memory(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3s", 3.0), ("3ms", 0.003), ("3us", 3e-6), ("3µs", 3e-6), ("3ns", 3e-9),
        ("3min", 180.0), ("3h", 10_800.0),
    ],
)  # fmt: skip
def test_units_of_time(text, value):
    assert parse_seconds(text) == pytest.approx(value)


def test_units_as_shown():
    shown = [format_bytes(4.2 * 10**power) for power in (0, 3, 6, 9, 12)]
    assert shown == ["4.2 B", "4.2 kB", "4.2 MB", "4.2 GB", "4.2 TB"]
    shown = [format_seconds(4.2 * 10**power) for power in (-9, -6, -3, 0)]
    assert shown == ["4.2 ns", "4.2 µs", "4.2 ms", "4.2 s"]
