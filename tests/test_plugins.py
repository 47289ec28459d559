"""A package outside this one adds a similarity and a compression, and both are treated like ours.

Each test runs in a process of its own, with ``tests/example_package`` on its path: its dist-info
folder is what an installed package leaves behind.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_package"
POINTS = "flurka_example-1.0.dist-info/entry_points.txt"
SUITE = """
name = "example"
[axes]
mechanism = ["full-sdpa", "low-rank", "kernel-squared-relu", "flurka-squared-relu", "flurka-relu"]
level = ["core", "layer"]
seq_len = 64
head_dim = 8
num_heads = 2
rank = 16
num_features = 8
compression = "strided"
order = ["project_first", "compress_first", "absorbed"]
[budget]
time = "3s"
target = "50%"
"""
ERRORS = """
kind = "error"
seeds = 1
training_inputs = 3
[[inputs]]
family = "gaussian"
seq_len = 32
head_dim = 8
[[mechanisms]]
mechanism = ["low-rank", "flurka-squared-relu"]
projection = "strided"
rank = 8
num_features = 8
"""


def python(*arguments, package=EXAMPLE, check=True):
    """Run Python beside the example package; what it printed."""
    path = os.pathsep.join([str(ROOT), str(package)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment
    )
    assert not check or done.returncode == 0, done.stderr
    return done.stdout if check else done.stderr


def flurka(*arguments, **options):
    return python("-m", "flurka_bench", *arguments, **options)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    path = tmp_path_factory.mktemp("example") / "example.toml"
    path.write_text(SUITE)
    return path


def test_it_is_swept(suite):
    shown = json.loads(flurka("suites", "show", str(suite), "--json"))
    found = {(case["mechanism"], case["order"]) for case in shown["cases"]}
    orders = {None, "project_first", "compress_first", "absorbed"}
    assert {order for name, order in found if name == "flurka-squared-relu"} == orders
    kernel = {order for name, order in found if name == "kernel-squared-relu"}
    assert kernel == orders - {"compress_first"}
    compressed = [case for case in shown["cases"] if case["rank"]]
    assert {case["compression"] for case in compressed} == {"strided"}


def test_it_is_predicted_and_recommended():
    options = ("--hardware", "h100", "--seq-len", "4096", "--json")
    predicted = json.loads(flurka("predict", "--level", "layer", *options))
    names = {record["mechanism"] for record in predicted}
    assert names >= {"kernel-squared-relu", "flurka-squared-relu"} and len(names) == 12
    ranked = json.loads(
        flurka("recommend", "--model-dim", "512", "--backend", "eager", "--top", "500", *options)
    )
    mine = [each for each in ranked if each["mechanism"] == "flurka-squared-relu"]
    assert mine and 'similarity="squared-relu"' in mine[0]["python"]


def test_it_is_gated_and_plotted(suite, tmp_path):
    """A run checks every output against the float64 reference; none of them is incorrect."""
    run = tmp_path / "run"
    flurka("run", str(suite), "--device", "cpu", "--out", str(run))
    lines = (run / "measurements.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    mine = [record for record in records if "squared-relu" in record["mechanism"]]
    assert mine and {record["status"] for record in mine} == {"ok"}
    flurka("plot", str(run), "--kind", "stages,memory", "--out", str(tmp_path / "plots"))
    assert list((tmp_path / "plots").iterdir())


def test_its_error_is_measured(tmp_path):
    path, run = tmp_path / "errors.toml", tmp_path / "run"
    path.write_text(ERRORS)
    flurka("quality", "error", str(path), "--out", str(run))
    lines = (run / "measurements.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert {(record["mechanism"], record["projection"]) for record in records} == {
        ("low-rank", "strided"),
        ("flurka-squared-relu", "strided"),
    }
    # the matrix that E of the entry implies gives the module's own output
    assert all(0 <= record["factor_mismatch"] < 1e-6 < record["output_error"] for record in records)


def test_its_op_list_counts_its_products():
    """As many FLOPs as a FLuRKA with ReLU features whose compression takes none."""
    code = """
from flurka_bench.cases.case import Case
from flurka_bench.lowering.lower import lower
def flops(similarity, compression):
    case = Case(mechanism=f"flurka-{similarity}", seq_len=64, rank=16, num_features=8,
                head_dim=8, num_heads=2, compression=compression)
    return sum(op.matmul_flops for op in lower(case, "cuda"))
print(flops("squared-relu", "strided") == flops("relu", "mean-pool"))
"""
    assert python("-c", code).strip() == "True"


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("relu = flurka_example:SQUARED_RELU", "must be a Similarity of that name"),
        ("squared-relu = flurka_example:STRIDED", "must be a Similarity of that name"),
        ("squared-relu = flurka_example:ABSENT", "cannot be loaded for flurka_bench.similarities"),
    ],
)
def test_a_point_that_is_no_entry_is_one_line(point, says, tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "package")
    (tmp_path / "package" / POINTS).write_text(f"[flurka_bench.similarities]\n{point}\n")
    said = flurka("predict", "--hardware", "h100", package=tmp_path / "package", check=False)
    assert says in said and "flurka-example" in said and said.count("\n") == 1


def test_a_name_of_two_packages_is_an_error_that_names_both(tmp_path):
    package = tmp_path / "package"
    shutil.copytree(EXAMPLE, package)
    other = package / "flurka_other-1.0.dist-info"
    shutil.copytree(package / "flurka_example-1.0.dist-info", other)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: flurka-other\nVersion: 1.0\n")
    said = flurka("predict", "--hardware", "h100", package=package, check=False)
    assert "'flurka-example'" in said and "'flurka-other'" in said and said.count("\n") == 1


def test_a_name_of_ours_cannot_be_taken(tmp_path):
    package = tmp_path / "package"
    shutil.copytree(EXAMPLE, package)
    source = package / "flurka_example" / "__init__.py"
    source.write_text(source.read_text().replace('name="squared-relu"', 'name="relu"'))
    (package / POINTS).write_text("[flurka_bench.similarities]\nrelu = flurka_example:SQUARED_RELU")
    said = flurka("predict", "--hardware", "h100", package=package, check=False)
    assert "'flurka-bench'" in said and "'flurka-example'" in said and said.count("\n") == 1


def test_without_a_package_importlib_metadata_stays_out():
    code = "import sys; from flurka_bench.words import parts; print(*sys.modules)"
    assert "importlib.metadata" not in python("-c", code, package=ROOT).split()


def test_the_recipe_of_the_docs_works(tmp_path):
    """The blocks of docs/recipes.md, each written to the file its first line names."""
    text = (ROOT / "docs" / "recipes.md").read_text()
    for path, block in re.findall(r"```\w+\n# ([\w./]+)[^\n]*\n(.*?)```", text, re.DOTALL):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(block)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    about = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    for group, points in project["entry-points"].items():
        lines = [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
        (about / "entry_points.txt").write_text("\n".join(lines))
    code = """
from flurka_bench.cases.case import Case
from flurka_bench.cases.registry import MECHANISMS
from flurka_bench.cost.predict import predict
from flurka_bench.hardware import load
from flurka_bench.kinds.timing.workbench import build
for order in MECHANISMS["flurka-softplus"].orders:
    case = Case(mechanism="flurka-softplus", level="layer", order=order, seq_len=64, rank=16,
                num_features=8, head_dim=8, num_heads=2, pass_="train")
    build(case).check()
    print(order, predict([case], load("h100"))[0].seconds > 0)
"""
    said = python("-c", code, package=tmp_path).split()
    assert said == ["project_first", "True", "compress_first", "True", "absorbed", "True"]
