"""The law of requests: whatever an option is given, it is carried out, refused or noted; no option
of any verb is passed over in silence."""

import csv
import functools
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from test_compare import scaled, write_run

from flurka_bench.answers import frontier
from flurka_bench.cli.main import (
    VERBS,
    build_app,
    main,
)
from flurka_bench.hardware import (
    load,
    names,
)
from flurka_bench.words import units
from flurka_bench.words.errors import (
    RequestError,
    nearest,
)

RESULTS = Path(__file__).parents[1] / "results" / "reference"
SMALL = "--seq-len 512 --rank 64 --num-features 16"
PREDICT = f"predict --hardware h100 --mechanism flurka-relu --level layer {SMALL} --json"
CORE = f"predict --hardware h100 --mechanism full-sdpa,flurka-relu {SMALL} --json"
RECOMMEND = "recommend --hardware h100 --seq-len 512 --model-dim 128 --head-dim 64 --top 3 --json"
REGIONS = "regions --hardware h100 --seq-len 1024 --rank 64 --num-features 16 --json"
FLOPS = "regions --flops --pair flurka-relu,low-rank --level core --json"
PLAN = "run --mechanism flurka-relu,low-rank --seq-len 512 --rank 64 --device cpu --dry-run --json"
DRY = "run tiny.toml --device cpu --dry-run --json"
ERROR = "quality error error-quick --dry-run --json"
CALIBRATE = "calibrate --from rows.csv --hardware l4 --json --out base.toml"
REPORT = "report --hardware h100"
TINY = """
axes = {mechanism = ["full-math", "flurka-relu"], seq_len = 64, rank = 8, num_features = 8, num_heads = 1}
"""

# A request, and options with a value other than their default there: each must leave a trace.
TRACED: dict[str, list[str]] = {
    PREDICT: [
        "--hardware l4", "--mechanism kernel-relu,flurka-relu", "--level model", "--pass train", "--backend compiled",
        "--order project_first", "--batch 2", "--num-heads 4", "--seq-len 1k", "--head-dim 32", "--rank 32",
        "--num-features 32", "--dtype fp32", "--launch none", "--cache cold",
    ],
    PREDICT.removesuffix(" --json"): ["--json"],
    CORE: ["--order absorbed", "--rank 32", "--num-features 32"],
    RECOMMEND: [
        "--hardware l4", "--seq-len 1k", "--model-dim 256", "--pass train", "--dtype float", "--batch 2", "--head-dim 32",
        "--head-dim 64,48", "--backend eager", "--launch none", "--min-rank 512", "--min-features 128", "--max-error 0.9",
        f"--error-run {RESULTS / 'error'}", "--inputs gaussian", "--max-memory 1MB", "--max-memory 40", "--max-latency 1us",
        "--max-latency 2", f"--run {RESULTS / 'quick-cpu-1-thread'}", "--top 2",
    ],
    RECOMMEND.removesuffix(" --json"): ["--all", "--json"],
    REGIONS: [
        "--hardware l4", "--level core", "--pass train", "--dtype fp32", "--subject flurka-elu", "--baseline paper-kernel",
        "--x rank", "--y rank", "--launch none", "--model-dim 512", "--head-dim 32", "--batch 2", "--seq-len 2k",
        "--rank 32", "--rank 64,2k", "--num-features 32", "--pair flurka-relu,low-rank", "--latex",
    ],
    FLOPS: [
        "--hardware l4", "--level layer", "--pass train", "--dtype fp32", "--subject flurka-elu", "--baseline paper-kernel",
        "--x rank", "--y rank", "--launch none", "--model-dim 512", "--head-dim 32", "--batch 2", "--seq-len 2k",
        "--seq-len 1k,2k", "--rank 32", "--num-features 32", "--pair flurka-relu,kernel-relu", "--latex",
    ],
    FLOPS.removesuffix(" --json"): ["--json"],
    "regions --hardware h100 --pass forward --model-dim 64": ["--flops"],
    "regions one": [
        "--hardware l4", "--level core", "--pass train", "--dtype fp32", "--launch none", "--model-dim 512", "--head-dim 32",
        "--batch 2", "--seq-len 2k", "--rank 32", "--num-features 32", "--latex", "--flops", "--pair a,b",
        "--all",
    ],
    DRY: [
        "--device cuda:99", "--out elsewhere", "--stages", "--plot", "--hardware h100", "--seed 3", "--cache cold",
        "--budget 5s", "--budget 5", "--memory-limit 8GB", "--memory-limit 8", "--only rank<=8", "--only rnak<=8",
    ],
    PLAN: [
        "--mechanism kernel-relu", "--level core", "--pass train", "--backend compiled", "--order project_first",
        "--batch 2", "--num-heads 4", "--seq-len 1k", "--head-dim 32", "--rank 32", "--num-features 32",
        "--dtype bf16", "--only order=='absorbed'",
    ],
    "run tiny.toml --device cpu": [
        "--device cuda:99", "--out elsewhere", "--stages", "--plot", "--hardware h100", "--seed 3", "--cache cold",
        "--budget 5s", "--memory-limit 8GB", "--dry-run", "--json",
    ],
    "plot one --json": [
        "--out elsewhere", "--kind stages", "--subject flurka-elu", "--baseline paper-kernel", "--x head_dim",
        "--y head_dim", "--hardware h100",
    ],
    "plot one --kind memory": [
        "--subject flurka-elu", "--baseline paper-kernel", "--x rank", "--y rank", "--hardware h100", "--json",
    ],
    REPORT: ["--out x.md", "--hardware l4", "--dtype fp32", "--model-dim 2k", "--launch none", "--batch 2", "--title x"],
    "report one": ["--out x.yaml", "--dtype fp32", "--model-dim 2k", "--launch none", "--batch 2", "--hardware h100"],
    "compare one two": ["--fail 5%", "--all", "--json"],
    CALIBRATE: [
        "--device cpu", "--out other.toml", "--from rows.csv", "--hardware h100", "--dtype half", "--budget 5s", "--rows 5",
    ],
    CALIBRATE.replace(" --json", ""): ["--json"],
    "calibrate --device cuda:99": ["--device cpu --hardware h100", "--device cpu --rows 30", "--device cpu --dtype f31"],
    "validate rows.csv --hardware h200 --json": ["--hardware l4", "--datasheet-only", "--predictions out.csv"],
    "validate rows.csv --hardware h200": ["--json"],
    "hardware list": ["--json"],
    "hardware show cpu": ["--json"],
    "suites list": ["--json"],
    "suites show quick": ["--json", "--device gpu", "--device gqu"],
    "suites show error-quick": ["--json", "--device cpu"],
    "export one": ["--format json", "--format parquet", "--out x.json"],
    "export one --out x.csv": ["--format json"],
    "doctor --device cpu": ["--device cuda:99", "--json"],
    ERROR: [
        "--out elsewhere", "--inputs gaussian", "--mechanism low-rank", "--rank 16", "--num-features 16", "--seq-len 1k",
        "--seeds 1", "--model nowhere", "--text nowhere",
    ],
    ERROR.removesuffix(" --json"): ["--json"],
    "quality error error-quick": ["--dry-run"],
    f"quality show {RESULTS / 'error'}": ["--inputs gaussian", "--json"],
    f"quality plot {RESULTS / 'error'}": [
        "--timing one", "--inputs trained", "--family gaussian", "--seq-len 1k", "--level layer", "--out elsewhere",
    ],
    "quality bounds": ["--draws 10", "--json"],
}  # fmt: skip
load_error_run = functools.cache(frontier.load_error_run)  # it holds thousands of records
# Those that lead nowhere near the shell's own code in a test.
ELSEWHERE = {"--help", "--version"}


def parts(command, path=()):
    """Every verb of the command line as words, with its parser."""
    if hasattr(command, "commands"):
        for name, each in command.commands.items():
            yield from parts(each, (*path, name))
    else:
        yield " ".join(path), command


COMMANDS = dict(parts(typer.main.get_command(build_app())))


def test_every_option_of_every_verb_is_tried():
    tried = {
        (verb, option.split()[-2] if " " in option else option)
        for request, options in TRACED.items()
        for verb in COMMANDS
        if f"{request} ".startswith(f"{verb} ")
        for option in options
    }
    there = {
        (verb, option)
        for verb, command in COMMANDS.items()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("-") and option not in ELSEWHERE
    }
    assert there - tried == set() and {verb.split()[0] for verb, _ in there} == set(VERBS)


# Options that one verb declares otherwise than the others, each with the reason. The type of a
# value is the same everywhere.
OTHERWISE = {
    "--out": "a run writes a folder, a picture's verb a folder of pictures, others one file",
    ("predict", "--cache"): "it answers for a loop, as recommend and regions do; a run has a timer",
    ("plot", "--hardware"): "a roofline is of the device that the run was measured on",
    ("recommend", "--head-dim"): "it searches head splits",
    ("recommend", "--backend"): "it searches backends",
    ("recommend", "--inputs"): "an answer rests on one family",
    ("regions", "--baseline"): "it answers for each baseline; a picture has one",
    ("regions", "--seq-len"): "it maps a sweep",
    ("regions", "--rank"): "it maps a sweep",
    ("regions", "--num-features"): "it maps a sweep",
    ("calibrate", "--dtype"): "it measures every dtype that the device has",
    ("calibrate", "--budget"): "there is no suite to say it",
    ("quality error", "--mechanism"): "the suite's own values are narrowed or replaced",
    ("quality error", "--rank"): "the suite's own values are narrowed or replaced",
    ("quality error", "--num-features"): "the suite's own values are narrowed or replaced",
    ("quality error", "--seq-len"): "the suite's own values are narrowed or replaced",
    ("quality plot", "--seq-len"): "the suite that is timed beside errors has 512",
    ("quality plot", "--level"): "the suite that is timed beside errors times the core",
}


def test_an_option_of_one_name_is_the_same_in_every_verb():
    """One type, one help and one default, but for the exceptions, and each of these is one."""
    declared: dict[str, dict[str, tuple]] = {}
    for verb, command in COMMANDS.items():
        for option in command.params:
            if option.opts[0].startswith("--"):
                default = option.default() if callable(option.default) else option.default
                text = str(option.help).partition(" [default")[0]
                about = (
                    option.metavar or type(option.type).__name__,
                    option.multiple,
                    option.is_flag,
                )
                declared.setdefault(option.opts[0], {})[verb] = (about, text, option.help, default)
    used = set()
    for name, verbs in declared.items():
        usual = Counter(each for verb, each in verbs.items() if (verb, name) not in OTHERWISE)
        assert len({about for about, *_ in verbs.values()}) == 1, name
        for verb, each in verbs.items():
            if name not in OTHERWISE:
                assert each[1] == next(iter(verbs.values()))[1], f"{verb} {name}: another help"
            if each != usual.most_common(1)[0][0]:
                used |= {key for key in (name, (verb, name)) if key in OTHERWISE}
                assert name in OTHERWISE or (verb, name) in OTHERWISE, f"{verb} {name}: {each}"
    assert used == set(OTHERWISE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs, a suite, and rows of operators."""
    folder = tmp_path_factory.mktemp("requests")
    write_run(folder / "one")
    write_run(folder / "two", seed=1, seconds=scaled(full=2.0))
    (folder / "tiny.toml").write_text(TINY)
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["op", "dtype", "B", "M", "N", "K", "latency_ms"])
        for step in range(12):
            size = 256 * (step + 1)
            writer.writerow(["linear", "bfloat16", 1, size, 1024, 512, 0.01 * (step + 2)])
    return folder


@pytest.fixture(scope="module")
def answer():
    """A small answer of recommend."""
    from flurka_bench.answers.recommend import (
        Request,
        recommend,
    )

    request = Request(seq_len=64, model_dim=64, head_dims=(64,), backends=("eager",), min_rank=32)
    return recommend(request, load("h100"))


@functools.cache
def prepared(folder):
    """The speedups of a run."""
    from flurka_bench.answers.speedup import (
        prepare,
        speedups,
    )
    from flurka_bench.results import (
        read_run,
        to_frame,
    )

    return speedups(prepare(to_frame(read_run(folder))), "flurka", "best-other")


@pytest.fixture
def ask(monkeypatch, capsys, folder, answer):
    """A function from a request to its trace: exit code, what was printed, what was written and
    what reached the work that takes long (timing, sweeping, drawing), which is left out."""
    reached = []
    speedups = prepared(folder / "one")

    def record(target, result=None, method=False):
        def stand_in(*arguments, **options):
            arguments = arguments[method:]  # an object's address differs from call to call
            options = {name: value for name, value in options.items() if not callable(value)}
            reached.append((target, str(arguments), str(sorted(options.items()))))
            return result() if callable(result) else result

        monkeypatch.setattr(f"flurka_bench.{target}", stand_in)

    import pandas as pd

    record("bench.loop.run", SimpleNamespace(wall_s=1.0, time_in_calls_s=1.0))
    record("cli.run._print_answer", lambda: print("{}"))
    record("cli.run._draw")
    record("answers.recommend.recommend", answer)
    record("answers.predicted.predicted_frame", pd.DataFrame)
    record("cli.regions._answer")
    record("cli.regions._as_json", dict)
    record("cli.regions._print", lambda: print("{}"))
    record("cli.plot._figures", [("picture", None)])
    record("answers.speedup.speedups", speedups)
    record("answers.speedup.Cells.speedups", speedups, method=True)
    record("render.content.collect", SimpleNamespace)
    record("render.content.summary", [])
    record("render.content.pictures", [])
    record("render.page.page", "page")
    record("render.markdown.markdown", "markdown")
    record("answers.compare._speedup_changes", [])
    record("kinds.error.verification.table", [])
    record("kinds.error.kind.ErrorPlan", SimpleNamespace(all_cases=list))
    record("kinds.calibration.environment_of", {})
    record("devices.environment.judge", [])
    record("render.figures.error.curves")
    record("render.figures.error.parents")
    record("render.figures.style.save", [])
    record("render.figures.terminal.terminal_map", "map")

    # What a run that was not made would have written.
    def written(at):
        return load_error_run(at if Path(at).exists() else RESULTS / "error")

    monkeypatch.setattr(frontier, "load_error_run", written)
    monkeypatch.chdir(folder)

    def call(request):
        reached.clear()
        before = {path for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(SystemExit) as stopped:
            main(request.split())
        said = capsys.readouterr()
        new = {path for path in folder.rglob("*") if path.is_file()} - before
        for path in new:
            path.unlink()
        code = stopped.value.code
        assert code in (0, 1, 2)
        if "--json" in request.split() and code == 0:
            json.loads(said.out)  # notes are elsewhere
        assert not (code == 2 and said.out)
        return code, said.out, said.err, sorted(new), list(reached)

    return call


@pytest.mark.parametrize("request_", TRACED)
def test_an_option_leaves_a_trace(ask, request_, monkeypatch):
    if request_ == "suites list":  # what takes it long is counting the cases
        monkeypatch.setattr("flurka_bench.cases.suite.Suite.cases", lambda self: [])
    plain = ask(request_)
    for option in TRACED[request_]:
        assert ask(f"{request_} {option}") != plain, f"{option} is passed over"


@pytest.mark.parametrize("name", names())
def test_hardware_is_found_however_its_name_is_written(name):
    for alias in (name, *load(name).aliases):
        for written in (
            alias.upper(),
            alias.replace("-", "_"),
            alias.replace("-", " "),
            alias.replace("-", ""),
        ):
            assert load(written) == load(name)


@pytest.mark.parametrize("scale", [units._BYTES, units._SECONDS], ids=["bytes", "seconds"])
def test_a_quantity_needs_its_unit(scale):
    parse = units.parse_bytes if scale is units._BYTES else units.parse_seconds
    for unit, factor in scale.items():
        for written in (f"40{unit}", f"40 {unit.upper().replace('ΜS', 'µS')}", f"40{unit.lower()}"):
            assert parse(written) == pytest.approx(40 * factor, rel=1e-6, abs=1)
    for bare in ("40", "40.5", " 1e3 ", 40):
        with pytest.raises(RequestError, match=r"--limit needs a unit of .*, got"):
            parse(bare, "--limit")
    for wrong in ("", "0s", "0B", "40 parsecs", "-1s", "inf s"):
        with pytest.raises(RequestError, match="--limit"):
            parse(wrong, "--limit")


def test_sizes_count_in_powers_of_two():
    assert [units.parse_size(text) for text in ("7", "16k", "64K", "1M", " 2 k ")] == [
        7, 16384, 65536, 2**20, 2048,
    ]  # fmt: skip
    for wrong in ("0", "-1", "1.5k", "16kB", "k", "", "²", "1_000"):
        with pytest.raises(RequestError, match="16k is 16384"):
            units.parse_size(wrong)


def test_the_nearest_word_does_not_hang_on_its_case():
    assert nearest("FULL-SPDA", ["full-math", "full-sdpa"]) == "full-sdpa"
    assert nearest("zzz", ["bfloat16", "float32"]) is None


def test_two_profiles_of_one_name_are_refused(tmp_path, capsys):
    from flurka_bench.hardware import write_profile

    path = tmp_path / "mine.toml"
    path.write_text(
        write_profile(load("l4").with_measured({"microbenchmark.launch_eager_s": 1e-5}, {}))
    )
    with pytest.raises(SystemExit) as stopped:
        main(["predict", "--hardware", f"l4,{path}"])
    assert stopped.value.code == 2 and "two different profiles" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["validate", str(path), "--hardware", "l4,h100"])
    assert "takes one target" in capsys.readouterr().err
