"""The house keeps its arrows: who may import whom, what stays light, and that no second formula
grows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "flurka_bench"
# The floors, lowest first, and what each may import (docs/architecture.md holds the same table in
# words). The timing side never imports the cost model: prediction and measurement are independent.
MAY_IMPORT = {
    "words": set(),
    "cases": {"words"},
    "attention": {"words"},
    "results": {"words", "cases"},
    "lowering": {"words", "cases"},
    "hardware": {"words"},
    "cost": {"words", "cases", "lowering", "hardware"},
    "devices": {"words", "hardware"},
    "bench": {"words", "cases", "results", "devices"},
    "kinds": {
        "words",
        "cases",
        "attention",
        "results",
        "lowering",
        "hardware",
        "devices",
        "bench",
    },
    "answers": {"words", "cases", "results", "lowering", "hardware", "cost"},
    "render": {"words", "cases", "results", "lowering", "hardware", "cost", "answers"},
    "cli": None,  # everything
    "__init__": set(),
    "__main__": {"cli"},
}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if "vendor" not in path.parts)


def imports_of(path):
    """The project's modules that a file imports, wherever in the file, as dotted names below the
    package."""
    package = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [
                        *package.split(".")[: len(package.split(".")) - node.level + 1],
                        *([base] if base else []),
                    ]
                )
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name == "flurka_bench" or name.startswith("flurka_bench."):
                yield name.removeprefix("flurka_bench").lstrip(".")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_flow(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert part in MAY_IMPORT, f"{part} is new: give it a place in docs/architecture.md and here"
    allowed = MAY_IMPORT[part]
    for name in imports_of(path):
        target = name.split(".")[0]
        if allowed is None or target in ("", part, "__version__"):
            continue
        assert target in allowed, (
            f"{path.relative_to(PACKAGE)} imports {name}; {part} may import {', '.join(sorted(allowed)) or 'nothing'}"
        )


def test_the_model_and_the_clock_are_independent():
    for path in modules():
        part = path.relative_to(PACKAGE).parts[0]
        names = list(imports_of(path))
        clock = ("devices", "bench", "kinds")
        assert not (part == "cost" and any(name.startswith(clock) for name in names)), path
        assert not (part in clock and any(name.startswith("cost") for name in names)), path


def heavy_after(arguments):
    """Which of the heavy packages a command has imported when it ends."""
    code = f"""
import contextlib, io, sys
sys.argv = ["flurka-bench", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    from flurka_bench.cli import main
    main()
print(sorted({{"torch", "pandas", "matplotlib", "sympy", "scipy"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))


SHAPE = ["--seq-len", "4096", "--rank", "128", "--num-features", "64"]
PREDICT = [
    "predict",
    "--hardware",
    "h100",
    "--mechanism",
    "flurka-relu",
    "--level",
    "layer",
    *SHAPE,
    "--json",
]


@pytest.mark.parametrize("arguments", [["--help"], PREDICT], ids=["help", "predict"])
def test_light_commands_import_nothing_heavy(arguments):
    assert heavy_after(arguments) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["recommend", "--hardware", "h100", "--seq-len", "4096", "--model-dim", "512", "--json"],
        ["regions", "--flops", "--level", "layer"],
        ["hardware", "list"],
        ["suites", "list"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_answers_never_import_torch(arguments):
    assert "torch" not in heavy_after(arguments)


LINES = 60
# Kernels are one function by nature. The others wait to be cut; nothing joins them.
LONG = {
    "attention/fused/kernels.py": {"key_side", "query_side"},
    "cli/plot.py": {"_figures"},
    "devices/environment.py": {"_judge_cpu", "_judge_gpu"},
    "render/figures/curves.py": {"scaling_curves"},
    "render/figures/model.py": {"roofline", "stage_bars"},
}


def body_lines(function):
    """Lines of a function's body: neither its signature, which a verb's options make long, nor its
    docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_functions_are_short():
    long = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and body_lines(node) > LINES
            ):
                long.setdefault(path.relative_to(PACKAGE).as_posix(), set()).add(node.name)
    new = {place: names - LONG.get(place, set()) for place, names in long.items()}
    assert {place: names for place, names in new.items() if names} == {}


def test_lines_of_a_body_are_counted():
    def lines(count):
        source = "def f(\n    a,\n):\n    'Says.'\n" + "    a += 1\n" * count
        return body_lines(ast.parse(source).body[0])

    assert (lines(60), lines(61)) == (60, 61)


def test_every_verb_shows_an_example():
    from flurka_bench.cli.main import (
        VERBS,
        build_app,
    )

    app = build_app()
    texts = {command.name: command.callback.__doc__ for command in app.registered_commands}
    for group in app.registered_groups:
        texts[group.name] = group.typer_instance.info.help
        for command in group.typer_instance.registered_commands:
            texts[f"{group.name} {command.name or command.callback.__name__}"] = (
                command.callback.__doc__
            )
    assert {name.split()[0] for name in texts} == set(VERBS)
    for name, text in texts.items():
        assert text and "Example: flurka-bench" in text, f"{name} --help shows no example"
