"""What the README, the docs and every ``--help`` show is run: commands, snippets, links, names.

A command that is not in ``COMMANDS`` fails: whoever writes one into the docs says here how it is
tried.
"""

import ast
import functools
import importlib
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_compare import write_run

from flurka_bench.cli.main import build_app, main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
COLUMNS = 100
README_LINES = 150
RUN = "results/reference/quick-cpu-1-thread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a command is tried: as written, but for these replacements and further arguments."""

    replace: tuple[tuple[str, str], ...] = ()
    add: str = ""
    exit_codes: tuple[int, ...] = (0,)
    parse_only: bool = False  # it measures for minutes: its arguments are parsed, nothing is run


def as_written(**options: object) -> Trial:
    return Trial(**options)


def instead(*pairs: tuple[str, str], add: str = "") -> Trial:
    return Trial(replace=pairs, add=add)


DRY = Trial(add="--dry-run")
PARSE = Trial(parse_only=True)
MENTION = Trial(add="--help")  # a verb named in a sentence, without its arguments
FEW = "--seq-len 1024 --rank 64 --num-features 16"

COMMANDS: dict[str, Trial] = {
    # README
    "run quick": DRY,
    "run layer": PARSE,
    "run layer --dry-run": as_written(),
    "predict --hardware h100,b200 --mechanism flurka-relu,full-sdpa --level layer"
    " --seq-len 16384 --rank 256 --num-features 64 --dtype bfloat16": as_written(),
    "recommend --hardware h200 --seq-len 16384 --model-dim 1024": instead(("16384", "2048")),
    "regions --hardware h100 --level layer": as_written(add=f"{FEW} --head-dim 64 --model-dim 512"),
    "regions results/layer-cpu": PARSE,
    "plot results/quick-cpu": as_written(add="--kind heatmap"),
    "report results/quick-cpu": as_written(),
    "compare A B --fail 5%": as_written(),
    "calibrate": PARSE,
    "validate timings.csv --hardware a100-sxm-80gb": as_written(),
    "quality error error-quick": PARSE,
    "doctor": as_written(exit_codes=(0, 1)),
    "export RUN --out data.csv": as_written(),
    # CONTRIBUTING and docs
    "run --mechanism flurka-relu,full-sdpa --seq-len 1024 --rank 128 --budget 20s": DRY,
    "run quick --only \"rank <= 64 and order == 'absorbed'\"": DRY,
    "doctor --json": PARSE,
    "report": MENTION,
    "run": MENTION,
    "compare": MENTION,
    "quality error": MENTION,
    "quality bounds": MENTION,
    "suites list": as_written(),
    "hardware list": as_written(),
    "hardware show cpu": as_written(),
    "validate RUN --hardware RUN": PARSE,
    "calibrate --from FILE --hardware NAME": instead(("FILE", "timings.csv"), ("NAME", "l4")),
    "calibrate --out my.toml": PARSE,
    "run NAME --dry-run": instead(("NAME", "tiny.toml")),
    "run error-time --device cpu": DRY,
    f"plot {RUN} --kind heatmap,scaling,predicted": instead((RUN, "results/quick-cpu"), ("heatmap,scaling", "scaling")),
    "regions results/reference/layer-cpu-1-thread --all": PARSE,
    "quality plot results/reference/error": PARSE,
    "quality plot results/reference/error --timing results/error-time-cpu": PARSE,
    "validate results/reference/layer-cpu-1-thread"
    " --hardware results/reference/cpu-1-thread.toml": as_written(),
    "recommend --hardware h100,b200,l40s,results/reference/cpu-1-thread.toml"
    " --seq-len 16384 --model-dim 1024": instead(
        ("h100,b200,l40s,", "h100,"), ("16384", "2048"), ("--model-dim 1024", "--model-dim 512")
    ),
}  # fmt: skip


def flat(text: str) -> str:
    return " ".join(text.replace("\\\n", " ").split())


def commands_of(text: str) -> list[str]:
    """The arguments of every ``flurka-bench`` command in a page: in spans, in fenced and in
    indented blocks."""
    spans = re.findall(r"(?<!`)`flurka-bench(\s[^`]+)`(?!`)", text)
    blocks = re.findall(r"^(?: {4}|\$ )?flurka-bench( (?:[^\n\\]|\\\n)+)$", fenced(text), re.M)
    return [flat(found.split(" # ")[0]) for found in (*spans, *blocks)]


def fenced(text: str) -> str:
    """Only what stands in code blocks."""
    shell = re.findall(r"^```(?:sh|bash|console|shell)\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(
        r"(?:^ {4}[^\n]*\n)+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    return "\n".join([*shell, *indented])


def examples() -> list[str]:
    """The commands of every ``Example:`` of ``--help``."""
    app = build_app()
    texts = [command.callback.__doc__ for command in app.registered_commands]
    for group in app.registered_groups:
        texts.append(group.typer_instance.info.help)
        texts += [c.callback.__doc__ for c in group.typer_instance.registered_commands]
    found = []
    for text in texts:
        for paragraph in re.findall(r"Example: (.*?)(?:\n\s*\n|\Z)", text or "", re.S):
            found += [each.removeprefix("flurka-bench ") for each in flat(paragraph).split(" && ")]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as a reader has it: the committed runs, small runs of their own, a suite, rows."""
    folder = tmp_path_factory.mktemp("docs")
    results = folder / "results"
    results.mkdir()
    (results / "reference").symlink_to(ROOT / "results" / "reference")
    write_run(folder / "A")
    for name in ("results/quick-cpu", "results/layer-cpu", "B", "RUN"):
        shutil.copytree(folder / "A", folder / name)
    (folder / "tiny.toml").write_text(
        'axes = {mechanism = ["full-math", "flurka-relu"], seq_len = 64, rank = 8, num_features = 8}'
    )
    rows = [f"linear,bfloat16,1,{256 * step},1024,512,{0.01 * step}" for step in range(2, 14)]
    (folder / "timings.csv").write_text("\n".join(["op,dtype,B,M,N,K,latency_ms", *rows]) + "\n")
    return folder


@functools.cache
def command_tree():
    import typer

    return typer.main.get_command(build_app())


def parse(arguments: list[str]) -> None:
    """Parse a command line as far as it can be without carrying it out."""
    command, names = command_tree(), []
    while hasattr(command, "commands") and arguments:
        names.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(" ".join(names), list(arguments))


def run_trial(capsys, command: str, trial: Trial) -> None:
    for old, new in trial.replace:
        assert old in command
        command = command.replace(old, new)
    arguments = shlex.split(f"{command} {trial.add}")
    if trial.parse_only:
        parse(arguments)
        return
    with pytest.raises(SystemExit) as end:
        main(arguments)
    said = capsys.readouterr()
    assert end.value.code in trial.exit_codes, said.err
    assert said.out.strip()


SHOWN = sorted({command for page in PAGES for command in commands_of(page.read_text("utf-8"))})


@pytest.mark.parametrize("command", SHOWN)
def test_a_command_of_the_docs_is_carried_out(command, folder, monkeypatch, capsys):
    assert command in COMMANDS, "say in COMMANDS how this command of the docs is tried"
    monkeypatch.chdir(folder)
    run_trial(capsys, command, COMMANDS[command])


def test_no_command_is_tried_that_no_page_shows():
    assert set(COMMANDS) - set(SHOWN) == set()


def test_examples_of_help_are_understood():
    found = examples()
    assert len(found) >= 14
    for command in found:
        parse(shlex.split(command))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_docs_runs(page):
    for snippet in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        exec(compile(snippet, page.name, "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_and_targets_of_the_docs_exist(page):
    text = page.read_text("utf-8")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for name in re.findall(r"`make ([a-z]+)", text):
        assert re.search(rf"^{name}:", makefile, re.M), f"make {name}"
    for name, arguments in re.findall(r"scripts/(\w+\.py)([^`\n]*)", text):
        source = (ROOT / "scripts" / name).read_text("utf-8")
        for option in re.findall(r"--[a-z][a-z-]*", arguments):
            assert f'"{option}"' in source, f"scripts/{name} has no {option}"
    for name in re.findall(r"`(?:flurka_bench/)?((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        places = [ROOT / name, ROOT / "flurka_bench" / name]
        assert any(place.is_file() for place in places), f"{page.name} names {name}"


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if target.startswith("http"):
            continue
        name, _, part = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{page.name} links to {target}"
        if part:
            titles = re.findall(r"^#+ (.*)$", place.read_text("utf-8"), re.M)
            assert part in map(anchor, titles), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_the_docs_are_short(page):
    text = re.sub(r"<!-- figures: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.S)
    long = [line for line in text.splitlines() if len(line) > COLUMNS and line[:1] != "|"]
    assert long == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_import_what_the_package_has(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flurka_bench"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
