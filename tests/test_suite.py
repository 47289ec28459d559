"""Suites: what a file says becomes canonical cases, or one clear line."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flurka_bench.cases import registry
from flurka_bench.cases.asked import part_of, suite_of_axes
from flurka_bench.cases.suite import (
    AXES,
    load_suite,
    parse_suite,
    shipped_suites,
)
from flurka_bench.cli.main import main
from flurka_bench.words import sizes
from flurka_bench.words.errors import RequestError
from flurka_bench.words.expression import Expression
from flurka_bench.words.sizes import ORDERS
from flurka_bench.words.units import format_seconds

REPOSITORY = Path(__file__).parents[1]

BASIC = """
name = "basic"
[axes]
mechanism = ["full-sdpa", "low-rank", "flurka-relu"]
seq_len = {from = 1024, to = 4096, factor = 2}
rank = [128, 256]
num_features = [32, 64]
"""


def test_equal_computations_are_one_case():
    cases = parse_suite(BASIC).cases()
    by_mechanism = {
        name: [case for case in cases if case.mechanism == name]
        for name in {case.mechanism for case in cases}
    }
    # 3 lengths; full attention knows neither rank nor features, low-rank no features
    assert {name: len(group) for name, group in by_mechanism.items()} == {
        "full-sdpa": 3,
        "low-rank": 6,
        "flurka-relu": 12,
    }
    assert len({case.case_id for case in cases}) == len(cases)


def test_competitors_of_a_workload_stand_together():
    keys = [case.workload_key for case in parse_suite(BASIC).cases()]
    assert len({key for key in keys}) == sum(
        1 for left, right in zip([None, *keys], keys) if left != right
    )


def test_zip_advances_together_and_multiplies_the_shared_axes():
    text = """
    axes = {mechanism = "flurka-relu", seq_len = [512, 1024], head_dim = 64}
    [[zip]]
    rank = [64, 128, 256]
    num_features = [16, 32, 64]
    compression = "conv"
    """
    pairs = [
        (case.seq_len, case.rank, case.num_features, case.compression)
        for case in parse_suite(text).cases()
    ]
    assert sorted(pairs) == [
        (n, k, m, "conv") for n in (512, 1024) for k, m in ((64, 16), (128, 32), (256, 64))
    ]


def test_a_block_replaces_a_shared_axis_and_blocks_add_up():
    text = """
    axes = {mechanism = ["full-math"], seq_len = [512]}
    [[product]]
    head_dim = [32, 64]
    [[product]]
    seq_len = [1024, 2048]
    """
    assert [(case.seq_len, case.head_dim) for case in parse_suite(text).cases()] == [
        (512, 32),
        (512, 64),
        (1024, 64),
        (2048, 64),
    ]


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("{from = 1, to = 16, factor = 4}", [1, 4, 16]),
        ("{from = 100, to = 1000, factor = 3}", [100, 300, 900]),
        ("{from = 64, to = 1024, num = 3}", [64, 256, 1024]),
        ("{from = 2, to = 4, num = 9}", [2, 3, 4]),  # rounded values occur once
        ("{from = 7, to = 7, factor = 2}", [7]),
        ("5", [5]),
    ],
)
def test_ranges(written, values):
    cases = parse_suite(f'axes = {{mechanism = "full-math", seq_len = {written}}}').cases()
    assert [case.seq_len for case in cases] == values


def test_exclusions_see_the_canonical_case():
    cases = parse_suite(
        'exclude = ["rank > seq_len / 8", "num_features == 64 and pass == \'forward\'"]' + BASIC
    ).cases()
    assert any(
        case.mechanism == "full-sdpa" for case in cases
    )  # it has no rank, so nothing is known against it
    assert all(case.rank is None or case.rank <= case.seq_len / 8 for case in cases)
    assert {case.num_features for case in cases} == {None, 32}


def test_device_tables_replace_key_by_key():
    text = (
        BASIC
        + '[budget]\ntime = "80s"\nmemory = "4GB"\n[cuda]\naxes = {dtype = ["bfloat16"]}\nbudget = {time = "20s"}\n'
    )
    cpu, cuda = parse_suite(text), parse_suite(text, device_kind="cuda")
    assert {case.dtype for case in cpu.cases()} == {"float32"} and {
        case.dtype for case in cuda.cases()
    } == {"bfloat16"}
    assert len(cpu.cases()) == len(cuda.cases())
    assert (cpu.budget.time_s, cuda.budget.time_s, cuda.budget.memory_bytes) == (80, 20, 4 * 10**9)


MISTAKES = {
    'nmae = "x"\n' + BASIC: r"unknown key 'nmae' \(did you mean 'name'\?\)",
    BASIC.replace("flurka-relu", "flurka-rleu"): r"unknown mechanism 'flurka-rleu' \(did you mean 'flurka-relu'\?\)",
    BASIC.replace("seq_len", "seqlen"): r"unknown axis in \[axes\] 'seqlen' \(did you mean 'seq_len'\?\)",
    BASIC.replace("[128, 256]", "[128, -1]"): r"rank must be a whole number from 1 to 2\^40, got -1",
    BASIC.replace("[128, 256]", "[12.5]"): r"rank must be a whole number .* got 12.5",
    BASIC.replace("[128, 256]", "[true]"): r"rank must be a whole number .* got True",
    BASIC.replace("[128, 256]", "[]"): r"rank has no values",
    BASIC.replace("[128, 256]", "[8192, 16384]"): r"every rank is larger than the seq_len",
    BASIC + "head_dim = 0": r"head_dim must be a whole number from 1 .* got 0",
    BASIC + "dtype = 'fp31'": r"unknown dtype 'fp31'",
    BASIC + "head_dim = '16kk'": r"head_dim must be a whole number .*16k is 16384.* got '16kk'",
    BASIC + "backend = [['eager']]": r"unknown backend",
    'exclude = ["seq_len > 1"]' + BASIC: r"expands to no case: all \d+ possible ones are excluded",
    'axes = {mechanism = "flurka-elu", level = "layer", order = "absorbed", rank = 64}': r"expands to no case: .*has no order",
    'axes = {mechanism = "low-rank"}': r"expands to no case: low-rank needs the axis rank",
    'axes = {mechanism = ["full-math", "kernel-relu"]}':
        r"expands to no case of kernel-relu: kernel-relu needs the axis num_features",
    'axes = {seq_len = 5}': r"must name its mechanisms",
    'axes = {mechanism = "full-math", seq_len = {from = 1, to = 200000, num = 10000}, batch = [1, 2]}':
        r"expands to more than 10000 cases",
    'axes = {mechanism = "full-math", seq_len = {from = 1, to = 900000, num = 9000}, batch = {from = 1, to = 900, num = 100}}':
        r"asks for \d+ combinations; the limit is 50000",
    'axes = {mechanism = "full-math", seq_len = {from = 8, to = 4, factor = 2}}': r"'to' must be at least 'from'",
    'axes = {mechanism = "full-math", seq_len = {from = 8, to = 16, factor = 1}}': r"factor must be a number from 1.001",
    'axes = {mechanism = "full-math", seq_len = {from = 8, to = 16}}': r"a range is",
    BASIC.replace('"basic"', '"../up"'): r"a suite's name has up to 64 letters",
    BASIC + "[[zip]]\nbatch = [1, 2]\nnum_heads = [1, 2, 3]": r"must be equally long",
    BASIC + "[budget]\ntime = '80 parsecs'": r"budget time must be a positive number with a unit",
    BASIC + "[budget]\ntime = '80'": r"budget time needs a unit of s, ms,.* got '80'",
    BASIC + "[budget]\ntime = 80": r"budget time needs a unit of s, ms,.* got 80",
    BASIC + "[budget]\nmemory = 40": r"budget memory needs a unit of B, kB,.* got 40",
    BASIC + "[budget]\ntme = '80s'": r"unknown key in \[budget\] 'tme' \(did you mean 'time'\?\)",
    BASIC + "[cuda]\naxes = {dtype = 'fp8'}": r"unknown dtype 'fp8'",
    'exclude = ["rnk > 5"]' + BASIC: r"unknown name in the expression .* \(did you mean 'rank'\?\)",
    'exclude = ["__import__(\'os\')"]' + BASIC: r"got Call",
    'exclude = ["rank.real > 1"]' + BASIC: r"got Attribute",
    'exclude = ["rank >"]' + BASIC: r"cannot read the expression",
    'exclude = ["rank > \'a\'"]' + BASIC: r"cannot be computed",
    'exclude = ["seq_len / 0 > 1"]' + BASIC: r"cannot be computed",
    'exclude = ["rank"]' + BASIC: r"is not a condition",
    'exclude = ["9 ** 9 ** 9 > rank"]' + BASIC: r"got BinOp",
    'exclude = "rank > 5"' + BASIC: r"exclude must be a list of texts",
    'baselines = ["ful-math"]' + BASIC: r"unknown mechanism 'ful-math' \(did you mean 'full-math'\?\)",
    "axes = 5": r"axes must be a table",
    "name = 'a'\naxes = {mechanism = [}": r"not valid TOML: .*line 2, column 22",
    "name = 'a'\n[axes]\nseq_len = [128\n\n": r"not valid TOML: .*line 3, column 15",
    "a = " + "[" * 5000: r"not valid TOML",
    "a = " + "9" * 5000: r"not valid TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_gets_one_line(text):
    with pytest.raises(RequestError, match=MISTAKES[text]) as caught:
        parse_suite(text).cases()
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)  # a file is to blame, and it has no options


def test_sizes_and_dtypes_in_the_words_people_use():
    cases = parse_suite(
        'axes = {mechanism = "full-math", seq_len = ["2k", 1024], dtype = ["bf16", "half", "float"]}'
    ).cases()
    assert {case.seq_len for case in cases} == {2048, 1024}
    assert {case.dtype for case in cases} == {"bfloat16", "float16", "float32"}
    ranged = 'axes = {mechanism = "full-math", seq_len = {from = "1k", to = "4K", factor = 2}}'
    assert [case.seq_len for case in parse_suite(ranged).cases()] == [1024, 2048, 4096]


@pytest.mark.parametrize(
    ("axes", "idle"),
    [
        ('mechanism = "flurka-elu", rank = 8, num_features = [16, 32]', ["num_features"]),
        ('mechanism = "flurka-elu", rank = 8, num_features = [16, 64]', []),
        ('mechanism = "flurka-elu", rank = 8, num_features = 16, head_dim = [32, 16]', []),
        ('mechanism = "kernel-relu", rank = 8, num_features = 16', ["rank"]),
        ('mechanism = ["full-math", "low-rank"], rank = 8, order = "compress_first"', ["order"]),
        (
            'mechanism = "low-rank", rank = 8, order = "compress_first", level = ["core", "layer"]',
            [],
        ),
        ('mechanism = "full-sdpa", share_kv = true, num_layers = 2', ["share_kv", "num_layers"]),
    ],
)
def test_an_axis_that_nothing_has_is_known(axes, idle):
    assert parse_suite(f"axes = {{{axes}}}").idle_axes() == idle


def test_shipped_suites_have_no_idle_axes():
    for name in shipped_suites():
        for kind in ("cpu", "cuda"):
            assert load_suite(name, kind).idle_axes() == []


def test_unknown_suites_and_unreadable_files(tmp_path):
    with pytest.raises(RequestError, match=r"unknown suite 'quikc' \(did you mean 'quick'\?\)"):
        load_suite("quikc")
    with pytest.raises(RequestError, match="no suite file at"):
        load_suite(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match="cannot read suite file"):
        load_suite(tmp_path / "binary.toml")


HUGE = {axis: list(range(1, 40_000)) for axis in sizes.SIZES} | {
    axis: list(accepted) * 9_000 for axis, accepted in sizes.CHOICES.items() if axis != "mechanism"
}


def never(*_):
    raise AssertionError("a case was made before the cases were counted")


def table(head, axes):
    return f"{head}\n" + "".join(f"{axis} = {values}\n" for axis, values in axes.items())


@pytest.mark.parametrize("axis", HUGE)
@pytest.mark.parametrize("head", ["[axes]", "[[product]]", "[[zip]]", "[cuda.axes]"])
def test_products_are_counted_before_they_are_expanded(axis, head, monkeypatch):
    monkeypatch.setattr(registry, "canonical", never)
    shared, own = (
        {"mechanism": ["low-rank"], "seq_len": [8, 16], "rank": [1, 2]},
        {axis: HUGE[axis]},
    )
    tables = [("[axes]", shared | own)] if head == "[axes]" else [("[axes]", shared), (head, own)]
    text = "".join(table(*each) for each in tables)
    with pytest.raises(RequestError, match=r"asks for \d+ combinations; the limit is 50000"):
        parse_suite(text, device_kind="cuda").cases()


def test_a_suite_is_expanded_no_further_than_the_limit_of_cases(monkeypatch):
    made = []
    canonical = registry.canonical
    monkeypatch.setattr(registry, "canonical", lambda case: made.append(case) or canonical(case))
    sizes = list(range(1, 2000))
    with pytest.raises(RequestError, match="more than 10000 cases"):
        parse_suite(
            table("[axes]", {"mechanism": ["full-math"], "batch": sizes[:20], "head_dim": sizes})
        ).cases()
    assert len(made) == 10_001


@pytest.mark.parametrize("command", [
    "predict --hardware h100 --mechanism full-sdpa --seq-len {} --rank {}",
    "regions --hardware h100 --seq-len {} --rank {} --num-features {}",
    "recommend --hardware h100 --seq-len 1024 --model-dim 512 --head-dim {}",
])  # fmt: skip
def test_options_are_counted_before_they_are_expanded(command, monkeypatch, capsys):
    monkeypatch.setattr(registry, "canonical", never)
    many = ",".join(map(str, range(1, 300)))
    with pytest.raises(SystemExit, match="2"):
        main([part.format(many) for part in command.split()])
    said = capsys.readouterr().err
    assert "combinations; the limit is" in said or "takes at most 32 values" in said
    assert said.count("\n") == 1


def test_a_byte_order_mark_is_no_part_of_a_suite(tmp_path):
    path = tmp_path / "basic.toml"
    path.write_bytes(b"\xef\xbb\xbf" + BASIC.replace("\n", "\r\n").encode())
    assert load_suite(path).cases() == parse_suite(BASIC).cases()
    assert parse_suite("\ufeff" + BASIC).cases() == parse_suite(BASIC).cases()
    for text in (BASIC.encode("utf-16"), b"\x00" * 100, b"#" * 5_000_000):
        path.write_bytes(text)
        with pytest.raises(RequestError, match=r"basic") as caught:
            load_suite(path)
        assert "\n" not in str(caught.value)


def test_shipped_suites_hold_what_they_promise():
    assert {"quick", "core", "layer", "paper"} <= set(shipped_suites())
    for name in shipped_suites():
        for device_kind in ("cpu", "cuda"):
            suite = load_suite(name, device_kind)
            assert suite.name == name and suite.description and 0 < len(suite.cases()) <= 2000
    quick = load_suite("quick").cases()
    assert {case.mechanism for case in quick} == set(registry.MECHANISMS)
    assert {"core", "layer"} <= {case.level for case in quick}


def test_suites_lie_in_the_package_and_at_the_top():
    assert {path.name for path in (REPOSITORY / "suites").glob("*.toml")} == {
        f"{name}.toml" for name in shipped_suites()
    }


@pytest.mark.parametrize(
    ("text", "record", "holds"),
    [
        ("rank > seq_len / 4", {"rank": 300, "seq_len": 1000}, True),
        ("rank > seq_len / 4", {"rank": None, "seq_len": 1000}, False),
        ("not rank > seq_len", {"rank": 5, "seq_len": 1000}, True),
        ("64 <= rank < 256 and rank % 64 == 0", {"rank": 128}, True),
        ("64 <= rank < 256", {"rank": 256}, False),
        (
            "mechanism in ['full-math', 'low-rank'] or rank == -1",
            {"mechanism": "low-rank", "rank": 2},
            True,
        ),
        ("pass == 'train'", {"pass": "train"}, True),
        ("rank * num_features // 2 - 1 != 63", {"rank": 8, "num_features": 16}, False),
    ],
)
def test_expressions(text, record, holds):
    assert Expression(text, AXES).holds(record) is holds


FRAGMENTS = st.sampled_from(
    [*AXES, *registry.MECHANISMS, "[axes]", "[[zip]]", "[[product]]", "[cuda]", "[budget]", "exclude", "=", "[", "]", "{", "}",
     ",", '"', "'", "\n", "from", "to", "factor", "num", "1024", "-1", "1e400", "nan", "true", " > ", "80s", "and", "\x00", "é"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mangled_suites_give_clean_errors(data):
    lines = BASIC.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(lines) - 1))
        column = data.draw(st.integers(0, len(lines[where])))
        lines[where] = (
            lines[where][:column]
            + "".join(data.draw(st.lists(FRAGMENTS, max_size=4)))
            + lines[where][column + 2 :]
        )
    try:
        cases = parse_suite("".join(lines)).cases()
    except RequestError as error:
        assert not re.search(r"\n|Traceback", str(error))
    else:
        assert cases


def test_loading_a_suite_imports_neither_torch_nor_pandas():
    code = (
        "import sys; from flurka_bench.cases.suite import load_suite; load_suite('quick').cases()"
    )
    code += "; print('torch' in sys.modules, 'pandas' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    ).stdout
    assert output.split() == ["False", "False"]


def test_names_in_an_expression_are_offered_as_suites_write_them():
    with pytest.raises(RequestError, match=r"did you mean 'pass'") as error:
        Expression("pas == 'train'", ("pass", "rank"))
    assert "pass_" not in str(error.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (119, "119 s"),
        (185, "3 min 5 s"),
        (3 * 3600 + 300, "3 h 5 min"),
        (86400 * 3.5, "3.5 days"),
        (float("nan"), "n/a"),
    ],
)
def test_long_times_read_as_people_say_them(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (115, "115 s"),
        (0.31, "310 ms"),
        (0.996, "1 s"),
        (9.97e-4, "1 ms"),
        (1.24e-5, "12 µs"),
        (0, "0 ns"),
    ],
)
def test_no_quantity_is_shown_with_an_exponent(seconds, text):
    assert format_seconds(seconds, digits=2) == text


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_each_key_of_a_device_table_stands_over_the_general_one(kind):
    """exclude, baselines, budget and axes, on the device kind whose table it is and on no other."""
    general = (
        'exclude = ["rank == 32"]\nbaselines = ["full-math"]\n'
        'axes = {mechanism = ["full-math", "low-rank"], seq_len = 256, rank = [16, 32, 64]}\n'
        'budget = {time = "80s", case_time = "3s"}\n'
    )
    own = (
        f'[{kind}]\nexclude = ["rank == 64"]\nbaselines = ["full-sdpa"]\n'
        'axes = {seq_len = 512}\nbudget = {time = "20s"}\n'
    )
    for device in ("cpu", "cuda"):
        suite = parse_suite(general + own, device_kind=device)
        cases = suite.cases()
        ranks = {case.rank for case in cases} - {None}
        mine = device == kind
        assert ranks == ({16, 32} if mine else {16, 64})
        assert suite.baselines == (("full-sdpa",) if mine else ("full-math",))
        assert {case.seq_len for case in cases} == {512 if mine else 256}
        assert (suite.budget.time_s, suite.budget.case_time_s) == (20 if mine else 80, 3)


@pytest.mark.parametrize("factor", [1.5, 2, 3, 10])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_range_reaches_its_end(factor, steps):
    end = round(64 * factor**steps)
    if round(64 * factor**steps) != 64 * factor**steps:
        pytest.skip("the end is no whole number")
    axis = f"{{from = 64, to = {end}, factor = {factor}}}"
    suite = parse_suite(f'axes = {{mechanism = "full-math", seq_len = {axis}}}')
    sizes = [case.seq_len for case in suite.cases()]
    assert sizes == [round(64 * factor**step) for step in range(steps + 1)]


AXES_ASKED = {
    "mechanism": ("flurka-relu", "full-sdpa"), "level": ("layer",), "pass": ("forward",),
    "order": ("best",), "seq_len": (256,), "rank": (32, 64), "num_features": (16,),
}  # fmt: skip


def test_axes_given_as_options_are_a_suite_like_any_other():
    suite = suite_of_axes(AXES_ASKED, ["mechanism", "rank"], "cpu")
    again = parse_suite(suite.text)
    assert (again.name, again.cases()) == (suite.name, suite.cases())
    ours = [case for case in suite.cases() if case.mechanism == "flurka-relu"]
    assert {(case.order, case.rank) for case in ours} == set(itertools.product(ORDERS, (32, 64)))
    assert len(suite.cases()) == len(ours) + 1
    other = suite_of_axes(AXES_ASKED | {"rank": (32,)}, ["mechanism"], "cpu")
    assert other.name != suite.name  # and so another folder
    exact = suite_of_axes(AXES_ASKED | {"mechanism": ("full-sdpa",)}, ["seq_len"], "cpu")
    assert "rank" not in exact.text and exact.idle_axes() == []  # nobody asked for a rank


def test_a_part_of_a_suite_holds_the_condition_and_says_so():
    whole = load_suite("quick")
    part = part_of(whole, "rank <= 64 and pass == 'forward'")
    wanted = [
        case
        for case in whole.cases()
        if case.rank is not None and case.rank <= 64 and case.pass_ == "forward"
    ]
    assert part.cases() == wanted and 0 < len(wanted) < len(whole.cases())
    assert part.name != whole.name and part.text != whole.text
    assert {part_of(whole, text).name for text in ("rank < 9", "rank < 8")}.isdisjoint({part.name})
    for wrong in ("rank", "rnak < 3", "rank <"):
        with pytest.raises(RequestError, match=wrong):
            part_of(whole, wrong)
