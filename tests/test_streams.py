"""Outputs, signals and hostile text: no verb can be broken by where it writes, by when it is
stopped, or by what a device is called."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import CASES, write_run

from flurka_bench.cli import (
    interrupts,
    main,
    streams,
)
from flurka_bench.cli.common import (
    print_json,
    print_table,
)
from flurka_bench.words import text
from flurka_bench.words.text import (
    csv_cell,
    json_text,
    legible,
    one_line,
)

REPOSITORY = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
HOSTILE = "\x1b]0;owned\x07\x1b[31mCPU\x9b2J\u202e\r\udcff [bold]"
PREDICT = ["predict", "--hardware", "t4", "--mechanism", "flurka-relu"]
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


# --- text --------------------------------------------------------------------------------------


@given(ANY_TEXT)
def test_legible_text_drives_no_terminal_and_can_be_written(given):
    shown = legible(given)
    shown.encode()
    assert legible(shown) == shown
    assert not any(
        (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or c in "\u2028\u202e\u2066"
        for c in shown
    )
    assert "\n" not in one_line(given)


@given(ANY_TEXT)
def test_every_encoding_takes_every_text(given):
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8", "utf-16"):
        given.encode(encoding, text.PLAIN)


def test_text_that_reads_alike():
    assert "10 µs, 1.5×, R²ᵀ – é ─".encode("ascii", text.PLAIN) == b"10 us, 1.5x, R^2^T - \\xe9 -"
    assert legible("flurka\x1b[2J\nnext\tcell") == "flurka\\x1b[2J\nnext\tcell"
    assert legible("r\udcc3\udca9sultats\udcff") == "résultats\\xff"  # bytes of a name


@given(ANY_TEXT, st.sampled_from(["ascii", "latin-1", "utf-8", None]))
def test_json_stays_json_in_every_encoding(given, encoding):
    printed = json_text(json.dumps([given], ensure_ascii=False), encoding)
    printed.encode(encoding or "utf-8")
    assert legible(printed) == printed
    (back,) = json.loads(printed)
    assert legible(back) == legible(given)
    if not any("\ud800" <= letter <= "\udfff" for letter in given):
        assert back == given


@given(st.sampled_from(["", "=", "+", "-", "@", "\t", "\r", "'", "＝"]), ANY_TEXT)
def test_a_cell_is_no_formula_and_comes_back(start, rest):
    cell = csv_cell(start + rest)
    assert cell.removeprefix("'") == legible(start + rest) == legible(cell).removeprefix("'")
    if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝")):
        float(cell)  # a number, nothing that runs


def test_numbers_are_no_formulas():
    for number in ("-1.5", "+3", "-1e-9", "12"):
        assert csv_cell(number) == number
    assert csv_cell("-1+cmd|' /C calc'!A0").startswith("'-")


# --- the verbs, with hostile names and poor encodings -------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A run in a folder whose name is not UTF-8, of a suite and device with names of an
    attacker."""
    folder = tmp_path_factory.mktemp("hostile") / "r\udcff\x1b[2J×"
    suite = {"name": "=cmd()\x1b[31m×", "text": "t"}
    return write_run(folder, num_rounds=6, suite=suite, statuses={"full": "oom"})


def called(monkeypatch, words, encoding="ascii"):
    """A verb's exit code and the bytes of both streams."""
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", streams.Output(out, encoding))
    monkeypatch.setattr(sys, "stderr", streams.Output(err, encoding))
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    sys.stdout.flush()
    sys.stderr.flush()
    return ended.value.code, out.getvalue(), err.getvalue()


def is_safe(output):
    """Whether bytes hold no control character and, as UTF-8, no other trick."""
    return legible(output.decode()) == output.decode()


@pytest.mark.parametrize(
    "words",
    [
        PREDICT,
        [*PREDICT, "--json"],
        [
            "recommend",
            "--hardware",
            "t4",
            "--seq-len",
            "512",
            "--model-dim",
            "64",
            "--num-heads",
            "1",
        ],
        ["regions", "--flops", "--level", "core"],
        ["hardware", "show", "t4"],
        ["hardware", "list", "--json"],
        ["suites", "show", "quick"],
        ["export", "RUN", "--format", "markdown"],
        ["export", "RUN", "--format", "csv"],
        ["export", "RUN", "--format", "json"],
        ["validate", "RUN", "--hardware", "t4"],
        ["plot", "RUN", "--kind", "heatmap"],
        ["plot", "RUN", "--kind", "memory", "--json"],
        ["plot", "RUN", "--kind", "\x1b[2J"],
        ["report", "RUN", "--out", "\x1b.x"],
        ["plot", "--help"],
        ["\x1b[31mrun"],
    ],
    ids=lambda words: ascii(" ".join(words)),
)
def test_every_verb_writes_where_only_ascii_can_be(words, hostile, monkeypatch):
    words = [hostile if word == "RUN" else word for word in words]
    code, out, err = called(monkeypatch, words, "ascii")
    assert b"Traceback" not in err
    assert code in (0, 2) and (code == 2) == err.startswith(b"error: ")
    assert is_safe(out) and is_safe(err)
    if words[0] != "export" and "--help" not in words:  # typer prints its help as UTF-8
        (out + err).decode("ascii")
    if words[-1] in ("--json", "json"):
        json.loads(out)


def test_exported_bytes_do_not_hang_on_the_encoding(hostile, monkeypatch, tmp_path):
    for form in ("csv", "json", "markdown"):
        words = ["export", hostile, "--format", form]
        _, printed, _ = called(monkeypatch, words)
        code, _, _ = called(monkeypatch, [*words, "--out", tmp_path / form])
        assert code == 0 and (tmp_path / form).read_bytes() == printed
    frame = pd.read_csv(tmp_path / "csv")
    assert len(frame) == len(CASES)
    assert set(frame["suite"]) == {"'=cmd()\\x1b[31m×"} and set(frame["run"]) == {"r\\xff\\x1b[2J×"}


def test_reports_of_folders_that_are_not_utf8(hostile, monkeypatch):
    from flurka_bench.cli import report
    from flurka_bench.render.content import summary
    from flurka_bench.render.markdown import markdown

    texts, page = [], report._rendered

    def both(content, suffix):
        texts.append(markdown(summary(content)))
        return page(content, suffix)

    monkeypatch.setattr(report, "_rendered", both)
    code, out, err = called(monkeypatch, ["report", hostile, "--out", hostile / "x.html"])
    assert code == 0, err
    assert rb"r\xff\x1b[2Jx/x.html" in out
    assert "=cmd()" in (hostile / "x.html").read_bytes().decode()  # UTF-8
    assert legible(texts[0]) == texts[0] and "cmd" in texts[0]


def test_cells_and_titles_drive_no_terminal(monkeypatch):
    class Terminal(io.BytesIO):
        def isatty(self):
            return True

    shown = {}
    monkeypatch.setenv("TERM", "xterm-256color")
    for kind in (Terminal, io.BytesIO):
        stream = kind()
        monkeypatch.setattr(sys, "stdout", streams.Output(stream, "utf-8"))
        print_table([HOSTILE, "b"], [[HOSTILE, "x"]], title=HOSTILE)
        print(HOSTILE)
        print_json({HOSTILE: HOSTILE})
        sys.stdout.flush()
        shown[kind] = stream.getvalue()
    for told in shown.values():
        assert b"\x1b]" not in told and b"\x07" not in told and b"\x1b[31m" not in told
        assert "\x9b".encode() not in told and "\u202e".encode() not in told
        assert told.count(b"\\x1b]0;owned\\x07") >= 4 and b"[bold]" in told
    assert is_safe(shown[io.BytesIO])


# --- descriptors -------------------------------------------------------------------------------


def shell(command, **options):
    line = command.replace("BENCH", f"{sys.executable} -m flurka_bench")
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, **options
    )


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 2, "error: cannot write to standard output: Bad file descriptor"),
        (">/dev/full", 2, "error: cannot write to standard output: No space left on device"),
        (">/dev/full 2>&-", 2, ""),
        ("<&- 2>/dev/full", 0, ""),
    ],
)
def test_outputs_that_take_nothing(redirection, code, said):
    done = shell(f"BENCH {' '.join(PREDICT)} {redirection}")
    assert done.returncode == code and done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    assert ("flurka-relu" in done.stdout) == (code == 0)


def test_a_reader_that_goes_away_changes_no_exit_code(monkeypatch, capfd):
    from flurka_bench.cli import main as entry

    def answer_no(_):
        for _ in range(2000):
            print("a line of an answer that nobody reads")
        return 1

    monkeypatch.setattr(sys.modules[entry.__module__], "_run", answer_no)
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", streams._opened(writer, None))
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 1 and capfd.readouterr().err == ""
    sys.stdout.flush()
    os.close(writer)


def test_a_run_without_standard_error_gives_its_answer(tmp_path):
    axes = 'axes = {mechanism = "full-math", seq_len = 64}\nbudget = {time = "1s"}\n'
    (tmp_path / "tiny.toml").write_text(axes)
    done = shell("BENCH run tiny.toml --device cpu --out out 2>&- <&-", cwd=tmp_path)
    assert done.returncode == 0 and "1 ok in out" in done.stdout
    lines = (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["status"] == "ok"


def test_closed_descriptors_are_taken_before_files_are():
    code = (
        "import os; from flurka_bench.cli import streams; streams.prepare(); print(os.open('/', 0))"
    )
    done = shell(f'{sys.executable} -c "{code}" <&- 2>&-')
    assert int(done.stdout) > 2


# --- signals -----------------------------------------------------------------------------------

# The signal comes at the moment that a module is first asked for.
AT_IMPORT = """
import os, signal, sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder)
sys.argv = ["flurka-bench", *{words!r}]
from flurka_bench.cli import main
main()
"""


@pytest.mark.parametrize("number", interrupts.NUMBERS)
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("flurka_bench.cli.streams", ["--help"]),
        ("typer", ["--help"]),
        ("flurka_bench.cost.predict", PREDICT),
    ],
)
def test_a_signal_at_any_import_is_one_line(module, words, number):
    code = AT_IMPORT.format(module=module, number=int(number), words=words)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_entry_imports_nothing_slow_before_it_handles_signals():
    code = "import sys; old = {*sys.modules}; import flurka_bench.cli; print({*sys.modules} - old)"
    done = shell(f'{sys.executable} -S -c "{code}"')
    ours = {"flurka_bench", *(f"flurka_bench.cli{end}" for end in ("", ".main", ".interrupts"))}
    new = eval(done.stdout)
    assert {name for name in new if name.startswith("flurka")} == ours
    assert not new & {"typing", "re", "typer", "dataclasses", "inspect"}


def test_a_hang_up_that_nohup_ignores_stays_ignored():
    code = (
        "import signal; from flurka_bench.cli import interrupts; interrupts.install(); "
        "print(repr(signal.getsignal(1)))"
    )
    done = shell(f"trap '' HUP; {sys.executable} -c \"{code}\"")
    assert "SIG_IGN" in done.stdout


def test_a_terminal_gets_no_escape_sequence_of_an_error(tmp_path):
    parent, child = pty.openpty()
    name = "\x1b]0;owned\x07.toml"
    done = subprocess.run(
        [sys.executable, "-m", "flurka_bench", "suites", "show", name],
        stdin=child, stdout=child, stderr=child, env=ENVIRONMENT, cwd=tmp_path,
    )  # fmt: skip
    os.close(child)
    told = os.read(parent, 10_000)
    os.close(parent)
    assert done.returncode == 2 and b"\x1b" not in told and b"\\x1b]0;owned\\x07" in told
