"""Files are written whole or not at all, through every verb that writes one."""

import contextlib
import errno
import os
import resource
import stat

import pytest
from test_compare import write_run

from flurka_bench.cli import main
from flurka_bench.render.figures import style
from flurka_bench.results import (
    RunWriter,
    read_run,
)
from flurka_bench.words import files
from flurka_bench.words.errors import RequestError
from flurka_bench.words.files import (
    check_writable,
    replace_file,
    write_atomically,
)

OLD = b"what was there before"


@contextlib.contextmanager
def largest_file(num_bytes):
    """As on a full disk: a write past this size stops short and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("content", [b"", b"\x00\xff", "two\nlines ×", "a name \udcff"])
def test_what_is_written_is_there_and_nothing_else(tmp_path, content):
    path = tmp_path / "x"
    write_atomically(path, content)
    expected = content if isinstance(content, bytes) else content.replace("\udcff", "\\xff")
    assert path.read_bytes() == (expected if isinstance(expected, bytes) else expected.encode())
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), SystemExit])
def test_a_failure_at_any_step_leaves_the_old_file(tmp_path, monkeypatch, step, failure):
    path = tmp_path / "x"
    path.write_bytes(OLD)

    def fail(*_):
        raise failure

    with monkeypatch.context() as patched:
        patched.setattr(os, step, fail)
        with pytest.raises(RequestError if isinstance(failure, OSError) else SystemExit):
            write_atomically(path, b"new")
    assert path.read_bytes() == OLD and os.listdir(tmp_path) == ["x"]


def test_a_write_that_stops_short_goes_on(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(os, "write", lambda file, data: whole(file, data[:3]))
    write_atomically(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    (tmp_path / "private").write_bytes(OLD)
    (tmp_path / "private").chmod(0o600)
    write_atomically(tmp_path / "private", b"")
    assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(OLD)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everything
    for call in (lambda path: write_atomically(path, b"new"), check_writable):
        with pytest.raises(RequestError, match="Permission denied"):
            call(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == OLD


def test_links(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(OLD)
    link = tmp_path / "link"
    link.symlink_to("outside/file")
    write_atomically(link, b"1", follow_links=True)
    assert link.is_symlink() and (outside / "file").read_bytes() == b"1"
    write_atomically(link, b"2")
    assert not link.is_symlink() and link.read_bytes() == b"2"
    assert (outside / "file").read_bytes() == b"1"
    (tmp_path / "dangling").symlink_to("outside/new")
    write_atomically(tmp_path / "dangling", b"3", follow_links=True)
    assert (outside / "new").read_bytes() == b"3"
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(RequestError, match="Too many levels of symbolic links"):
        write_atomically(tmp_path / "round", b"", follow_links=True)


def test_a_pipe_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", b"data", follow_links=True)
    assert os.read(reader, 10) == b"data" and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    os.close(reader)
    replace_file("/dev/null", b"data", follow_links=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    check_writable("/dev/null")


def test_a_name_of_the_longest_length_can_be_written(tmp_path):
    write_atomically(tmp_path / ("x" * 255), b"data")
    with pytest.raises(RequestError, match="File name too long"):
        write_atomically(tmp_path / ("x" * 256), b"data")
    with pytest.raises(RequestError, match="File name too long"):
        check_writable(tmp_path / ("x" * 256))


# --- the verbs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_run(folder / "run", num_rounds=6)
    rows = [f"add,float32,{2**power},1024,{0.01 * 2**power}" for power in range(8)]
    (folder / "rows.csv").write_text("\n".join(["op,dtype,B,H,latency_ms", *rows]) + "\n")
    return folder


# what to ask for, the file (or file in the folder) that is written
VERBS = {
    "report.html": ("report run --out", "x.html"),
    "report.md": ("report run --out", "x.md"),
    "report.pdf": ("report run --out", "x.pdf"),
    "plot": ("plot run --kind memory --json --out", "x/memory.svg"),
    "export": ("export run --out", "x.csv"),
    "parquet": ("export run --format parquet --out", "x.parquet"),
    "calibrate": ("calibrate --from rows.csv --hardware h200 --json --out", "x.toml"),
    "validate": ("validate rows.csv --hardware h200 --json --predictions", "x.csv"),
}


@pytest.fixture
def call(inputs, tmp_path, monkeypatch, capsys):
    # What is drawn and computed costs seconds and is not what is tested.
    picture = [("memory", style.says_nothing("nothing"))]
    monkeypatch.setattr("flurka_bench.cli.plot._figures", lambda *_: picture)
    monkeypatch.setattr("flurka_bench.render.content.collect", lambda *_: None)
    monkeypatch.setattr("flurka_bench.cli.report._rendered", lambda *_: b"a page" * 1000)
    monkeypatch.chdir(inputs)

    def run(verb, target):
        with pytest.raises(SystemExit) as ended:
            main([*VERBS[verb][0].split(), str(target)])
        return ended.value.code, *capsys.readouterr()

    return run


def target_of(verb, folder):
    """The option's value under a folder, and the file that is meant."""
    name = VERBS[verb][1]
    return folder / name.partition("/")[0], folder / name


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_leaves_the_old_file_and_says_so(verb, call, tmp_path):
    if verb == "parquet":
        pytest.importorskip("pyarrow")
    option, file = target_of(verb, tmp_path)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(OLD)
    before = sorted(tmp_path.rglob("*"))
    with largest_file(100):
        code, out, err = call(verb, option)
    assert code == 2 and out == "", err
    assert err.startswith("error: cannot write '") and "File too large" in err
    assert "Traceback" not in err and len(err.splitlines()) <= 2  # validate notes the device
    if verb != "plot":  # the picture before it is written first
        assert sorted(tmp_path.rglob("*")) == before
    assert file.read_bytes() == OLD
    code, out, err = call(verb, option)
    assert code == 0 and file.read_bytes() not in (b"", OLD)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["a file", "too long", "/proc", "a folder"])
def test_a_place_that_cannot_be_written_is_one_line(verb, place, call, tmp_path):
    (tmp_path / "file").write_bytes(OLD)
    option = {
        "a file": target_of(verb, tmp_path / "file")[0],
        "too long": target_of(verb, tmp_path)[0].with_stem("x" * 300),
        "/proc": target_of(verb, tmp_path / "../../../../../../../../proc/flurka")[0],
        "a folder": target_of(verb, tmp_path)[1],
    }[place]
    if place == "a folder":
        option.mkdir(parents=True)
        option = target_of(verb, tmp_path)[0]
    code, out, err = call(verb, option)
    assert code == 2 and out == "", (code, err)
    assert err.startswith("error: cannot ") and "Traceback" not in err
    assert len(err.splitlines()) == 1 and (tmp_path / "file").read_bytes() == OLD


def test_a_link_in_a_run_folder_leads_nowhere(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "run", num_rounds=6)
    precious = tmp_path / "precious"
    precious.write_bytes(OLD)
    (tmp_path / "run" / "report.html").symlink_to(precious)
    (tmp_path / "run" / "plots").mkdir()
    (tmp_path / "run" / "plots" / "memory.png").symlink_to(precious)
    monkeypatch.setattr("flurka_bench.render.content.collect", lambda *_: None)
    monkeypatch.setattr("flurka_bench.cli.report._rendered", lambda *_: b"a page")
    for words in (["report"], ["plot", "--kind", "memory", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*words, str(tmp_path / "run")])
        assert ended.value.code == 0, capsys.readouterr().err
    assert precious.read_bytes() == OLD
    assert (tmp_path / "run" / "plots" / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_run_json_is_never_written_through_a_link_and_survives_a_full_disk(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(OLD)
    write_run(tmp_path / "run")
    (tmp_path / "run" / ".run.json.new").symlink_to(precious)  # the name that was used once
    before = (tmp_path / "run" / "run.json").read_bytes()
    with RunWriter(tmp_path / "run") as writer:
        writer.meta["wall_s"] = 1.0
        with largest_file(50), pytest.raises(RequestError, match="File too large; 4 records"):
            writer.save_meta()
        assert (tmp_path / "run" / "run.json").read_bytes() == before
        writer.save_meta()
    assert read_run(tmp_path / "run").meta["wall_s"] == 1.0 and precious.read_bytes() == OLD


def test_pictures_of_one_figure_are_equal_files(tmp_path):
    figure = style.says_nothing("nothing")
    first, second = (style.save(figure, tmp_path / name) for name in "ab")
    assert [path.suffix for path in first] == [".png", ".svg"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_calibrate_asks_before_it_measures(tmp_path, monkeypatch, capsys):
    def measured(*_):
        raise AssertionError("measured first")

    monkeypatch.setattr("flurka_bench.cli.calibrate._measure", measured)
    for out in (".", "/", "nowhere/x.toml", str(tmp_path)):
        with pytest.raises(SystemExit) as ended:
            main(["calibrate", "--out", out])
        assert ended.value.code == 2 and "cannot write" in capsys.readouterr().err


def test_a_folder_without_fsync_is_written_all_the_same(tmp_path, monkeypatch):
    def refuses(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuses)
    files.sync_folder(tmp_path)
