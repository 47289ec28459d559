"""Error suites, runs that resume, the torch-free reader and its interpolation, and the command
line's answers to bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from running import run_errors

from flurka_bench import results
from flurka_bench.answers import frontier
from flurka_bench.answers.frontier import (
    ErrorRun,
    Interval,
    interpolate,
    interval,
)
from flurka_bench.kinds.error import (
    bench,
    suite,
)
from flurka_bench.kinds.error.kind import ErrorPlan
from flurka_bench.results.error import FORM
from flurka_bench.words.errors import RequestError

ROOT = Path(__file__).parents[1]
SMALL = """
kind = "error"
name = "small"
seeds = 2
training_inputs = 3
[[inputs]]
family = "gaussian"
seq_len = [32]
head_dim = [8]
num_heads = 2
[[mechanisms]]
mechanism = ["low-rank"]
projection = ["gaussian", "mean-pool", "learned", "optimal"]
rank = [4, 16]
[[mechanisms]]
mechanism = ["kernel-favor", "kernel-elu", "flurka-favor", "flurka-elu"]
projection = ["mean-pool", "learned"]
rank = [4]
num_features = [8, 16]
"""


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("error") / "run"
    run_errors(suite.parse(SMALL), folder)
    return folder


def test_equal_configurations_collapse():
    found = suite.parse(SMALL).at(32, 8)
    names = [(item.mechanism, item.projection, item.rank, item.num_features) for item in found]
    assert len(names) == len(set(names)) == 8 + 2 + 1 + 4 + 2
    assert ("kernel-elu", None, None, 8) in names  # elu has d features and a kernel has no rank
    assert all(item.share_kv == (item.projection == "mean-pool") for item in found)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('kind = "error"', ""), "no kind"),
        (("seeds = 2", "seeds = 0"), "seeds must be"),
        (("seeds = 2", "sedes = 2"), "did you mean 'seeds'"),
        (('"learned"', '"leaned"'), "did you mean 'learned'"),
        (('"kernel-elu"', '"kernel-elo"'), "did you mean 'kernel-elu'"),
        (('"kernel-elu"', '"full-sdpa"'), "measured against"),
        (("rank = [4, 16]", "rank = [-4]"), "rank must be"),
        (("rank = [4, 16]", "rnak = [4]"), "did you mean 'rank'"),
        (("seq_len = [32]", 'seq_len = ["x"]'), "seq_len must be"),
        (('family = "gaussian"', ""), "needs family"),
        (("[[inputs]]", "[[inputs]"), "not valid TOML"),
        (('name = "small"', 'name = "../up"'), "a suite's name"),
        (('name = "small"', "description = 3"), "description must be a text"),
        (("seeds = 2", "seeds = 0x" + "f" * 5000), "seeds must be"),
        (("seeds = 2", "seeds = 1000000"), "asks for .* combinations"),
        (("training_inputs = 3", "training_inputs = 1000000"), "training_inputs asks for"),
        (("seq_len = [32]", f"seq_len = {list(range(2, 3000))}"), "asks for .* combinations"),
        (("head_dim = [8]", f"head_dim = {list(range(2, 3000))}"), "asks for .* combinations"),
        (("rank = [4, 16]", f"rank = {list(range(1, 20000))}"), "asks for .* combinations"),
        (("num_features = [8, 16]", f"num_features = {[8] * 9000}"), "asks for .* combinations"),
        (('["mean-pool", "learned"]', "[[1], {a = 1}]"), "unknown projection"),
        (('["low-rank"]', "[0x" + "f" * 5000 + "]"), "unknown mechanism"),
    ],
)
def test_wrong_suites_are_one_line(change, says):
    with pytest.raises(RequestError, match=says) as caught:
        suite.parse(SMALL.replace(*change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "parameter", "value", "says"),
    [
        ("gaussian", "scale", "'x'", "a number from 0"),
        ("gaussian", "scale", "nan", "a number from 0"),
        ("gaussian", "scale", "0", "above 0"),
        ("gaussian", "scale", "[1.0]", "a number from 0"),
        ("low-rank", "decay", "1e9", "a number from 0"),
        ("clustered", "clusters", "1e3", "a whole number"),
        ("clustered", "clusters", "0x" + "f" * 5000, "a whole number"),
        ("clustered", "contiguous", "1", "true or false"),
        ("trained", "layers", "3", "a list of whole numbers"),
        ("trained", "model", "3", "a text"),
    ],
)
def test_parameters_of_the_inputs_have_types_and_ranges(family, parameter, value, says):
    text = SMALL.replace('"gaussian"\nseq', f'"{family}"\n{parameter} = {value}\nseq')
    if family == "trained":
        text = text.replace("head_dim = [8]\nnum_heads = 2\n", "")
    with pytest.raises(RequestError, match=f"{parameter} of the.*{says}") as caught:
        ErrorPlan(suite=suite.parse(text))
    assert "\n" not in str(caught.value)


def test_inputs_larger_than_the_memory_are_a_record_and_not_the_end(tmp_path):
    text = SMALL.replace("seq_len = [32]", f"seq_len = [{2**40}]")
    run_errors(suite.parse(text).override(seeds=1), tmp_path / "run")
    records = results.read_run(tmp_path / "run", FORM).records
    assert records and all(each["status"] in ("oom", "crashed") for each in records)


def test_shipped_suites_load_and_are_plannable_without_a_model():
    for name in suite.shipped():
        loaded = suite.load(name)
        assert loaded.description and loaded.name == name
        assert ErrorPlan(suite=loaded.override(inputs=["gaussian"])).all_cases()


def test_options_lie_over_the_suite():
    loaded = suite.parse(SMALL)
    assert loaded.override(rank=None, seeds=None) is loaded
    changed = loaded.override(rank=[8], seeds=1, mechanism=["low-rank"])
    assert {item.rank for item in changed.configurations} == {8} and changed.seeds == 1
    assert changed.text != loaded.text  # a run under other options is another run
    with pytest.raises(RequestError, match="rank must be between"):
        ErrorPlan(suite=loaded.override(rank=[64]))
    with pytest.raises(RequestError, match="unknown input family"):
        loaded.override(inputs=["trained"])
    with pytest.raises(RequestError, match="--text is for the trained inputs"):
        loaded.override(text="x.txt")


def test_a_run_resumes_to_the_numbers_of_an_uninterrupted_one(small_run, tmp_path):
    lines = (small_run / results.RECORDS_NAME).read_text().splitlines()
    assert len(lines) == 2 * 17
    part = tmp_path / "part"
    part.mkdir()
    (part / "run.json").write_text((small_run / "run.json").read_text())
    (part / results.RECORDS_NAME).write_text(
        "\n".join(lines[:5]) + "\n" + lines[5][:40]
    )  # killed while writing
    shown = []
    run_errors(
        suite.parse(SMALL),
        part,
        on_event=lambda event: shown.append((event.num_done, event.num_cases)),
    )
    assert shown[0] == (5, 34) and shown[-1][0] == 34
    runs = [
        {record["case_id"]: record for record in results.read_run(folder, FORM).records}
        for folder in (small_run, part)
    ]
    assert runs[0].keys() == runs[1].keys()
    for case_id, record in runs[0].items():
        assert record["status"] == "ok"
        assert record["output_error"] == pytest.approx(runs[1][case_id]["output_error"], rel=1e-9)
    with pytest.raises(RequestError, match="different text"):
        run_errors(suite.parse(SMALL + "\n# changed"), part)


def test_records_hold_what_the_triangle_inequality_allows(small_run):
    records = results.read_run(small_run, FORM).records
    flurkas = [record for record in records if record["mechanism"].startswith("flurka")]
    assert len(flurkas) == 2 * 6
    by_case = {record["case_id"]: record for record in records}
    for record in flurkas:
        for parent in ("low_rank", "kernel"):
            assert (
                record["output_error"]
                <= record[f"{parent}_error"] + record[f"{parent}_step"] + 1e-12
            )
        similarity = record["mechanism"].removeprefix("flurka-")
        kernel = (
            f"kernel-{similarity}.gaussian-1.h2.n32.d8.m{record['num_features']}.s{record['seed']}"
        )
        assert record["kernel_error"] == pytest.approx(by_case[kernel]["output_error"], rel=1e-9)
        low_rank = f"low-rank.gaussian-1.h2.n32.d8.k4.{record['projection']}{'.sharekv' if record['share_kv'] else ''}.s{record['seed']}"
        assert record["low_rank_error"] == pytest.approx(
            by_case[low_rank]["output_error"], rel=1e-9
        )
        assert len(record["output_frobenius"]) == record["num_heads"] == 2
        assert (record.get("kl_nats") is not None) == (
            record["projection"] == "mean-pool"
        ) or record["projection"] == "learned"


def test_a_failed_case_is_a_record_and_not_the_end(monkeypatch, tmp_path):
    def fail(*args, **options):
        raise RuntimeError("linalg.eigh: failed to converge\nmore")

    monkeypatch.setattr("flurka_bench.kinds.error.projections.right_singular_vectors", fail)
    monkeypatch.setattr(bench, "_MAX_TOGETHER", 1)
    run_errors(suite.parse(SMALL).override(seeds=1), tmp_path / "run")
    statuses = {
        record["case_id"]: record for record in results.read_run(tmp_path / "run", FORM).records
    }
    crashed = [record for record in statuses.values() if record["status"] == "crashed"]
    assert len(crashed) == 2 and all(
        record["error"] == "linalg.eigh: failed to converge more" for record in crashed
    )
    assert sum(record["status"] == "ok" for record in statuses.values()) == 15


def test_kinds_of_runs_are_not_mistaken(small_run):
    with pytest.raises(RequestError, match="'error', not 'timing'"):
        results.read_run(small_run)


# --- The reader
# ----------------------------------------------------------------------------------------------------------


def test_interval_by_hand():
    assert interval([3.0]) == Interval(3, 3, 3)
    assert interval(range(11)) == Interval(1, 5, 9)


def test_interpolation_is_a_straight_line_in_logarithms_and_never_extrapolates():
    grid = {
        (n, k, m): Interval(*([k**-0.5 * m**-0.25 * n] * 3))
        for n in (128, 512)
        for k in (16, 64)
        for m in (8, 32)
    }
    for at in ((128, 16, 8), (128, 32, 8), (256, 32, 16), (400, 50, 20)):
        assert interpolate(grid, at) == pytest.approx([at[1] ** -0.5 * at[2] ** -0.25 * at[0]] * 3)
    for at in ((128, 8, 8), (128, 16, 64), (1024, 16, 8), (64, 16, 8)):
        assert interpolate(grid, at) is None
    del grid[512, 64, 32]
    assert interpolate(grid, (256, 32, 16)) is None  # a corner is missing
    assert interpolate(grid, (128, 32, 16)) is not None
    assert interpolate({}, (1, 1, 1)) is None


def test_what_the_reader_answers(small_run):
    run = frontier.load_error_run(small_run)
    ask = {"seq_len": 32, "head_dim": 8, "family": "gaussian"}
    assert run.families == ["gaussian", "gaussian-1"]
    low, median, high = run.error_interval(mechanism="flurka-favor", rank=4, num_features=8, **ask)
    assert 0 < low <= median <= high
    assert run.error_interval(mechanism="flurka-favor", rank=4, num_features=11, **ask) is not None
    assert run.error_interval(mechanism="flurka-favor", rank=4, num_features=64, **ask) is None
    assert (
        run.error_interval(
            mechanism="flurka-favor", rank=4, num_features=8, **ask | {"head_dim": 16}
        )
        is None
    )
    assert run.error_interval(mechanism="low-rank-sdpa", rank=8, **ask) == run.error_interval(
        mechanism="low-rank", rank=8, **ask
    )
    assert run.error_interval(mechanism="low-rank", rank=4, compression="conv", **ask) is None
    assert run.error_interval(mechanism="full-sdpa", **ask) == (0, 0, 0)
    with pytest.raises(RequestError, match="did you mean 'gaussian'"):
        run.error_interval(mechanism="low-rank", rank=4, **ask | {"family": "gausian"})
    dense, pooled = (
        run.error_interval(mechanism="low-rank", rank=4, compression=c, **ask)
        for c in ("dense", "mean-pool")
    )
    records = [
        r
        for r in results.read_run(small_run, FORM).records
        if r["mechanism"] == "low-rank" and r["rank"] == 4
    ]
    for name, found in (("learned", dense), ("mean-pool", pooled)):
        assert found == interval(r["output_error"] for r in records if r["projection"] == name)


def test_the_reader_imports_neither_torch_nor_pandas(small_run):
    code = f"""
import sys
from flurka_bench.answers.frontier import load_error_run
load_error_run({str(small_run)!r})
print(sorted({{"torch", "pandas", "numpy", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "torch" not in done.stdout and "pandas" not in done.stdout


def test_two_scales_of_a_family_must_be_told_apart():
    base = {"status": "ok", "family": "gaussian", "seq_len": 8, "head_dim": 4, "mechanism": "low-rank", "projection": "learned",
            "share_kv": False, "rank": 2, "num_features": None}  # fmt: skip
    records = [
        base | {"inputs": f"gaussian-{scale}", "output_error": scale / 4} for scale in (1, 2)
    ]
    run = ErrorRun(records)
    assert run.families == ["gaussian-1", "gaussian-2"]
    with pytest.raises(RequestError, match="did you mean 'gaussian-"):
        run.error_interval(mechanism="low-rank", rank=2, seq_len=8, head_dim=4, family="gaussian")
    assert (
        run.error_interval(
            mechanism="low-rank", rank=2, seq_len=8, head_dim=4, family="gaussian-2"
        ).median
        == 0.5
    )


# --- The command line
# ----------------------------------------------------------------------------------------------------


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "flurka_bench", "quality", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


def call(capsys, *arguments):
    """The command in this process: its exit code, output and errors."""
    from flurka_bench.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["quality", *map(str, arguments)])
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_error_and_show(capsys, tmp_path):
    path, out = tmp_path / "small.toml", tmp_path / "out"
    path.write_text(SMALL)
    code, text, _ = call(capsys, "error", path, "--out", out, "--json")
    assert code == 0
    rows = json.loads(text)
    assert len(rows) == 17 and all(
        row["error_low"] <= row["error_median"] <= row["error_high"] for row in rows
    )
    code, text, err = call(capsys, "error", path, "--out", out)  # nothing left to do
    assert code == 0 and "[34/34]" in err and "median and 10th" in text
    code, text, _ = call(capsys, "show", out, "--inputs", "gaussian", "--json")
    assert code == 0 and json.loads(text) == rows
    meta = json.loads((out / "run.json").read_text())
    assert meta["kind"] == "error" and meta["environment"]["torch"]
    code, text, _ = call(capsys, "error", path, "--dry-run", "--json")
    assert code == 0 and len(json.loads(text)["cases"]) == 34


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["error", "eror-quick"], "did you mean 'error-quick'"),
        (["error", "error-quick", "--inputs", "gausian"], "did you mean 'gaussian'"),
        (
            ["error", "error-quick", "--inputs", "gaussian", "--rank", "1024"],
            "between 1 and seq_len = 512, got 1024",
        ),
        (["error", "error-quick", "--inputs", "gaussian", "--rank", "0"], "--rank must be"),
        (
            ["error", "error-quick", "--inputs", "gaussian", "--model", "x"],
            "--model is for the trained inputs",
        ),
        (["error", "error-quick", "--model", "no-such-folder"], "no model folder"),
        (
            ["error", "error-quick", "--text", "no-such-text"],
            "cannot read the text file no-such-text",
        ),
        (["show", "no-such-run"], "is not a run"),
        (["bounds", "--draws", "3"], "--draws"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_code_2(
    capsys, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2 and says in err and err.count("\n") == 1 and not out
    assert list(tmp_path.iterdir()) == []  # nothing was started


def test_wrong_models_and_texts_are_one_line_and_exit_code_2(capsys, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    sizes = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 8,
        "max_position_embeddings": 16,
    }
    (model / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    code, _, err = call(capsys, "error", "error-quick", "--model", model)
    assert code == 2 and "has no weights" in err and err.count("\n") == 1
    text = tmp_path / "text.txt"
    for content, says in ((b"", "is empty"), (b"\xff\xfe", "not UTF-8")):
        text.write_bytes(content)
        code, _, err = call(capsys, "error", "error-quick", "--text", text)
        assert code == 2 and says in err and str(text) in err and err.count("\n") == 1


def test_every_draw_depends_on_each_thing_it_is_named_for(tmp_path, monkeypatch):
    """E and F, the random features and the inputs of two seeds share no generator."""
    drawn = {}

    def generator(*parts, real=bench.inputs.generator):
        drawn.setdefault(parts[0], set()).add(parts[1:])
        return real(*parts)

    monkeypatch.setattr(bench.inputs, "generator", generator)
    text = SMALL.replace("[4, 16]", "[4]").replace("[8, 16]", "[8]")
    text = text.replace(', "learned", "optimal"', "").replace(', "learned"', "")
    run_errors(suite.parse(text), tmp_path / "run")
    for what in ("projection", "features", "inputs"):
        assert {parts[-1] for parts in drawn[what]} >= {0, 1}, what
