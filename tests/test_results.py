"""Run folders: what is written comes back, what is torn is repaired, what is wrong is refused in
one line."""

import gc
import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flurka_bench import results
from flurka_bench.answers.compare import environment_differences
from flurka_bench.answers.speedup import (
    prepare,
    speedups,
)
from flurka_bench.cases.case import Case
from flurka_bench.render.figures import (
    curves,
    heatmap,
    model,
    terminal,
    tradeoff,
)
from flurka_bench.render.page import _environment, html
from flurka_bench.results import (
    FIELDS,
    RunWriter,
    check_record,
    iter_records,
    read_run,
    to_frame,
)
from flurka_bench.results.index import CaseIndex
from flurka_bench.results.reading import (
    check_kind,
    read_meta,
)
from flurka_bench.words.errors import RequestError
from flurka_bench.words.sizes import WORKLOAD

FIXTURES = Path(__file__).parent / "fixtures"
META = {
    "suite": {"name": "s", "text": "t"},
    "environment": {},
    "device": "a device",
    "started": "now",
    "seed": 0,
    "run_id": "r1",
}


def record(case_id="a", **changes):
    case = Case(mechanism="flurka-relu", rank=64, num_features=16)
    return {
        **case.as_record(), "case_id": case_id, "status": "ok", "device": "a device", "seed": 0, "samples_s": [1e-3, 2e-3],
        "round_ids": [0, 1], "median_s": 1.5e-3, "flops": 1e9, "bytes": 1e6, "peak_memory_bytes": 10, **changes,
    }  # fmt: skip


def write(folder, *records, meta=META):
    with RunWriter(folder) as writer:
        writer.start(meta)
        for entry in records:
            writer.append(entry)
    return folder / results.RECORDS_NAME


def test_what_is_written_comes_back(tmp_path):
    written = [
        record("a"),
        record("b", status="oom", samples_s=[], round_ids=[], median_s=None, error="no room"),
    ]
    write(tmp_path / "run", *written)
    run = read_run(tmp_path / "run")
    assert (
        run.records == [{"schema": results.SCHEMA, **entry} for entry in written]
        and run.warnings == []
    )
    assert run.meta["suite"]["name"] == "s"


def test_going_on_knows_what_is_done_and_which_rounds_are_taken(tmp_path):
    write(tmp_path, record("a", round_ids=[7, 9]))
    with RunWriter(tmp_path) as writer:
        assert writer.done.get("a") == "ok" and len(writer.done) == 1 and writer.next_round == 10
        writer.start(META)
        writer.append(record("b"))
        with pytest.raises(RequestError, match="already has a record"):
            writer.append(record("a"))
    assert [entry["case_id"] for entry in read_run(tmp_path).records] == ["a", "b"]


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_torn_last_line_is_repaired_and_said(tmp_path, cut):
    path = write(tmp_path, record("a"), record("b"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    if cut > 1:  # without its newline alone the record is whole
        assert [entry["case_id"] for entry in read_run(tmp_path).records] == ["a"]
        assert "torn" in read_run(tmp_path).warnings[0]
    with RunWriter(tmp_path) as writer:
        assert [name in writer.done for name in "ab"] == [True, cut == 1]
        assert bool(writer.repairs) == (cut > 1)
        writer.start(META)
        if cut > 1:
            writer.append(record("b"))
    assert path.read_bytes() == whole


def test_damage_elsewhere_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path, record("a"), record("b"), record("c"))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:50] + b"\n" + lines[2])
    with pytest.raises(RequestError, match="line 2: not JSON"):
        read_run(tmp_path)
    path.write_bytes(lines[0] + lines[0])
    with pytest.raises(RequestError, match="line 2: a second record of case 'a'"):
        read_run(tmp_path)
    path.write_bytes(lines[0].replace(b"0.001", b"NaN") + lines[1])
    with pytest.raises(RequestError, match="line 1: not JSON: NaN"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "fine"}, "'status' must be one of ok, oom"),
        ({"median_s": float("inf")}, "'median_s' must be a number of at least 0"),
        ({"median_s": -1.0}, "'median_s' must be"),
        ({"samples_s": [1.0, "x"]}, "'samples_s' must be a numbers"),
        ({"seq_len": 1.5}, "'seq_len' must be a count"),
        ({"seq_len": True}, "'seq_len' must be a count"),
        ({"rank": 0}, "'rank' must be a count of at least 1"),
        ({"device": None}, "must have 'device'"),
        ({"round_ids": [1]}, "2 samples_s but 1 round_ids"),
        ({"samples_s": [], "round_ids": []}, "status ok must have samples_s"),
        (
            {"sampels_s": []},
            r"unknown field of a record 'sampels_s' \(did you mean 'samples_s'\?\)",
        ),
        ({"stages_s": {"project": [1]}}, "'stages_s' must be a table"),
    ],
)
def test_a_wrong_record_is_never_written(tmp_path, changes, message):
    with RunWriter(tmp_path) as writer:
        writer.start(META)
        with pytest.raises(RequestError, match=message):
            writer.append(record(**changes))
    assert (tmp_path / results.RECORDS_NAME).read_bytes() == b""


def test_every_field_says_what_it_is():
    assert all(spec.meaning and spec.kind in results_kinds() for spec in FIELDS.values())
    assert all(spec.unit == "s" for name, spec in FIELDS.items() if name.endswith("_s"))
    assert all(spec.unit == "B" for name, spec in FIELDS.items() if name.endswith("bytes"))
    check_record({"schema": results.SCHEMA, **record()}, strict=True)


def results_kinds():
    return {"text", "count", "number", "flag", "numbers", "counts", "table", "table of numbers"}


@pytest.mark.parametrize("schema", range(1, results.SCHEMA + 1))
def test_runs_of_every_schema_still_read(schema):
    run = read_run(FIXTURES / f"run-schema-{schema}")
    assert [entry["schema"] for entry in run.records] == [results.SCHEMA] * 2
    first, second = run.records
    assert (first["mechanism"], first["rank"], first["median_s"], len(first["samples_s"])) == (
        "flurka-relu",
        64,
        0.002,
        3,
    )
    assert (second["status"], second["error"], second["compression"]) == (
        "oom",
        "out of memory",
        "dense",
    )
    frame = to_frame(run)
    assert set(FIELDS) <= set(frame.columns) and list(frame["share_heads"]) == [True, True]


def test_a_newer_schema_is_refused(tmp_path):
    path = write(tmp_path, record("a"))
    path.write_text(path.read_text().replace('"schema":3', '"schema":4'))
    with pytest.raises(RequestError, match=r"schema 4; this flurka-bench reads up to 3"):
        read_run(tmp_path)
    meta = tmp_path / results.META_NAME
    meta.write_text(meta.read_text().replace('"schema": 3', '"schema": 99'))
    with pytest.raises(RequestError, match="schema 99"):
        RunWriter(tmp_path)


def test_what_is_not_a_run(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "file": "it is a file",
        "empty": "it has no run.json",
        "absent": "it does not exist",
    }.items():
        with pytest.raises(RequestError, match=message):
            read_run(tmp_path / name)
    with pytest.raises(RequestError, match="is a file; --out must be a folder"):
        RunWriter(tmp_path / "file")
    (tmp_path / "empty" / results.RECORDS_NAME).write_text("{}\n")
    with pytest.raises(RequestError, match=r"but no run.json: not a run"):
        RunWriter(tmp_path / "empty")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": {"name": "other", "text": "t"}}, "another suite: 's', not 'other'"),
        (
            {"suite": {"name": "s", "text": "edited"}},
            "another suite: a different text of the same suite",
        ),
        ({"device": "b device"}, "another device: 'a device', not 'b device'"),
        ({"seed": 1}, "another seed: 0, not 1"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, changes, message):
    write(tmp_path, record("a"))
    with RunWriter(tmp_path) as writer, pytest.raises(RequestError, match=message):
        writer.start({**META, **changes})


def test_the_second_writer_is_refused_and_told_of_the_first(tmp_path):
    with (
        RunWriter(tmp_path),
        pytest.raises(
            RequestError, match=rf"being written by process {os.getpid()} on .+, started 2"
        ),
    ):
        RunWriter(tmp_path)
    RunWriter(tmp_path).close()  # and let in when the first is gone


def test_records_do_not_follow_a_link_out_of_the_folder(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / results.RECORDS_NAME).symlink_to(outside)
    with RunWriter(tmp_path / "run") as writer, pytest.raises(RequestError, match="cannot write"):
        writer.start(META)
    assert outside.read_text() == ""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_results import META, RunWriter, record
from flurka_bench.words.errors import RequestError
with RunWriter({str(tmp_path)!r}) as writer:
    writer.start(META)
    writer.append(record("a"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
    try:
        for name in "bcd":
            writer.append(record(name))
    except RequestError as error:
        print(error)
"""
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert (
        "File too large; 2 records are safe there" in output.stdout
        and output.stdout.count("\n") == 1
    )
    assert [entry["case_id"] for entry in read_run(tmp_path).records] == ["a", "b"] and read_run(
        tmp_path
    ).warnings == []


def test_devices_stay_apart_in_one_frame(tmp_path):
    write(tmp_path / "one", record("a"))
    write(
        tmp_path / "two",
        record("a", device="b device"),
        meta={**META, "run_id": "r2", "device": "b device"},
    )
    frame = to_frame([read_run(tmp_path / "one"), read_run(tmp_path / "two")])
    assert list(zip(frame["run"], frame["run_id"], frame["device"])) == [
        ("one", "r1", "a device"),
        ("two", "r2", "b device"),
    ]


def test_a_parent_stays_as_small_as_it_began(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    num_records = 2000
    with RunWriter(tmp_path) as writer:
        writer.start(META)
        for index in range(200):
            writer.append(record(f"warm-{index}"))
        tracemalloc.start()
        for index in range(num_records):
            writer.append(record(f"case-{index}"))
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert grown < num_records  # a byte a record: a name would be 50, a float alone 24
    assert sum(1 for _ in iter_records(tmp_path)) == 200 + num_records


def test_a_case_index_is_a_dict_of_statuses():
    index, expected = CaseIndex(num_slots=4), {}  # small: it must double and wrap around on the way
    rng = random.Random(0)
    for _ in range(3000):
        case_id, status = f"case-{rng.randrange(2000)}", rng.choice(results.STATUSES)
        assert index.get(case_id) == expected.get(case_id) and (case_id in index) == (
            case_id in expected
        )
        index.add(case_id, status)
        expected[case_id] = status
    assert len(index) == len(expected) and all(
        index.get(name) == status for name, status in expected.items()
    )
    assert "case-2000" not in index and index.get("") is None


LINES = [json.dumps({"schema": results.SCHEMA, **record(name)}) for name in "ab"]
JUNK = st.sampled_from(
    [
        "NaN",
        "1e999",
        "null",
        "true",
        "-5",
        "[]",
        "{}",
        '""',
        '"x"',
        "[[[[",
        '{"schema": 7}',
        "\x00",
        "\udc80",
        "9" * 5000,
        "\n",
        ",",
    ]
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mangled_records_give_clean_errors(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "mangled"
    if not folder.exists():
        write(folder, record("a"))
    lines = list(LINES)
    where = data.draw(st.integers(0, 1))
    start = data.draw(st.integers(0, len(lines[where])))
    end = start + data.draw(st.integers(0, 30))
    lines[where] = lines[where][:start] + data.draw(JUNK) + lines[where][end:]
    text = "\n".join(lines) + data.draw(st.sampled_from(["", "\n", "\n\n"]))
    (folder / results.RECORDS_NAME).write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        run = read_run(folder)
    except RequestError as error:
        assert "\n" not in str(error)
    else:
        for entry in run.records:
            check_record(entry)


REFERENCE = Path(__file__).parents[1] / "results" / "reference" / "quick-cpu-1-thread"
WRONG = [
    None, True, 0, -1, 1, 1.5, 1e-300, 1e9, 1e30, 2**40, 2**53, 2**64, int("9" * 400), "", "x",
    "$$", "\ud800", "\u2028", [], [0.0], ["x"], [[1]], {}, {"project": 0.0}, {"x": "\udfff"},
]  # fmt: skip


def committed():
    """run.json of a committed run, and a workload's records of four mechanisms with few samples."""
    lines = (REFERENCE / results.RECORDS_NAME).read_text().splitlines()
    every = [json.loads(line) for line in lines]
    first = next(entry for entry in every if entry["mechanism"] == "flurka-relu")
    few = [
        entry | {"samples_s": entry["samples_s"][:4], "round_ids": entry["round_ids"][:4]}
        for entry in every
        if entry["mechanism"] in ("flurka-relu", "low-rank", "kernel-relu", "full-sdpa")
        and all(entry[name] == first[name] for name in WORKLOAD)
    ]
    return json.loads((REFERENCE / "run.json").read_text()), few


def damaged_run(folder, meta, records):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(meta))
    lines = (json.dumps(entry) + "\n" for entry in records)
    (folder / results.RECORDS_NAME).write_text("".join(lines))
    return folder


def test_each_field_is_held_to_its_type_and_range_and_named(tmp_path):
    meta, few = committed()
    refused = 0
    for name in FIELDS:
        damage = []
        for value in WRONG:
            entry = {"schema": results.SCHEMA, **few[0], name: value}
            try:
                check_record(entry)
                assert json.dumps(entry, ensure_ascii=False).encode()
            except RequestError as error:
                said = str(error)
                assert "\n" not in said and len(said) < 400 and said.encode()
                assert name in said, said
                damage.append(value)
        refused += len(damage)
        run = damaged_run(tmp_path / "run", meta, [few[0] | {name: damage[-1]}])
        with pytest.raises(RequestError, match=name) as caught:
            read_run(run)
        assert str(caught.value).startswith(f"{run / results.RECORDS_NAME}, line 1")
    assert refused > len(FIELDS) * len(WRONG) / 2


def places(table, prefix=()):
    for key, value in table.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from places(value, (*prefix, key))


def test_each_field_of_run_json_is_read_or_named(tmp_path):
    meta, few = committed()
    meta["environment"]["warnings"] = ["a warning"]
    extra = [("sessions",), ("kind",), ("environment", "unknown")]
    other = read_meta(damaged_run(tmp_path / "other", meta, few[:1]))
    for place in [*places(meta), *extra]:
        for value in [-1, 1.5, 2**64, int("9" * 400), "", "\ud800", [[1]], {}, [{"wall_s": "x"}]]:
            changed = json.loads(json.dumps(meta))
            table = changed
            for key in place[:-1]:
                table = table[key]
            table[place[-1]] = value
            run = damaged_run(tmp_path / "run", changed, [])
            try:
                found = read_meta(run)
                check_kind(run, found, results.TIMING)
            except RequestError as error:
                assert "\n" not in str(error) and len(str(error)) < 400
                assert str(run) in str(error) and str(error).encode()
                continue
            environment_differences(found, other)
            environment_differences(other, found)
            assert all(isinstance(each, str) for each in found["environment"].get("warnings") or [])
            sum(each["wall_s"] for each in found.get("sessions", []))
            html(_environment([found])).encode()


EXTREMES = {
    "least": [-1e9, 0, 1e-300, 1],
    "most": [1e30, 1e9, 2**53, 2**40],
    "text": ["$$", ""],
    "empty": [None, [], {}],
}


@pytest.mark.parametrize("end", EXTREMES)
@pytest.mark.filterwarnings("ignore")
def test_what_the_check_lets_through_no_reader_falls_over(end, tmp_path):
    """Every field has the first of the extreme values that it takes, each in another record."""
    meta, few = committed()
    damaged = [{"schema": results.SCHEMA, **entry} for entry in few]
    changed = []
    for number, name in enumerate(name for name in FIELDS if name not in ("case_id", "schema")):
        entry = damaged[number % len(damaged)]
        kept = entry.get(name)
        for value in EXTREMES[end]:
            try:
                entry[name] = value
                check_record(entry)
                changed.append(name)
                break
            except RequestError:
                entry[name] = kept
    assert changed
    frame = prepare(to_frame(read_run(damaged_run(tmp_path / "run", meta, damaged))))
    cells = speedups(frame, "flurka", "best-other")
    across, up = heatmap.map_axes(cells, None, None)
    terminal.terminal_map(cells, across, up)
    figures = [
        heatmap.heat_map(cells, across, up), curves.scaling_curves(frame), model.error_map(frame),
        model.predicted_against_measured(frame), model.stage_bars(frame), tradeoff.memory(frame),
    ]  # fmt: skip
    assert all(figures)


def test_each_record_is_on_the_disk_before_the_next(tmp_path, monkeypatch):
    """The recorded system calls: a sync of the records' file after each record, and of run.json
    before it takes its name."""
    calls = []

    def named(descriptor):
        return os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))

    def fsync(descriptor, real=os.fsync):
        calls.append(("sync", named(descriptor)))
        real(descriptor)

    def replace(source, target, real=os.replace):
        calls.append(("replace", os.path.basename(target)))
        real(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with RunWriter(tmp_path) as writer:
        writer.start(META)
        place = calls.index(("replace", "run.json"))
        assert calls[place - 1][0] == "sync" and calls[place - 1][1] != tmp_path.name
        assert ("sync", tmp_path.name) in calls[place:]  # the name itself
        for number in range(3):
            calls.clear()
            writer.append(record(f"case {number}"))
            assert ("sync", results.RECORDS_NAME) in calls


def test_ids_of_dropped_rounds_are_taken_too(tmp_path):
    write(tmp_path, record("a", round_ids=[0, 1], dropped_round_ids=[5], dropped_s=[1.0]))
    with RunWriter(tmp_path) as writer:
        assert writer.next_round == 6


def test_a_run_of_before_the_seed_was_kept_goes_on_with_seed_0(tmp_path):
    write(tmp_path / "run", record("a"))
    path = tmp_path / "run" / "run.json"
    meta = json.loads(path.read_text())
    del meta["seed"]
    path.write_text(json.dumps({**meta, "schema": 1}))
    write(tmp_path / "run", record("b"))
    assert len(read_run(tmp_path / "run").records) == 2
    with pytest.raises(RequestError, match="another seed: 0, not 1"):
        write(tmp_path / "run", record("c"), meta={**META, "seed": 1})


@pytest.mark.parametrize("lack", [{0}, {0, 1}])
def test_predictions_without_the_shared_scale_have_a_ratio(tmp_path, lack):
    """Records of before it was kept, alone and among later ones: the wide side, no traceback."""
    bands = {"predicted_s": 2e-3, "predicted_low_s": 1e-3, "predicted_high_s": 4e-3}
    rows = [
        record(name, mechanism=name, **bands, **({} if i in lack else {"predicted_log_scale": 0.1}))
        for i, name in enumerate(("flurka-relu", "low-rank-sdpa"))
    ]
    write(tmp_path / "run", *rows)
    cells = speedups(prepare(to_frame(read_run(tmp_path / "run"))), "flurka", "strong-low-rank")
    (cell,) = cells[cells["source"] == "predicted"].to_dict("records")
    assert cell["ratio"] == pytest.approx(1)
    assert cell["low"] < 0.5 < 2 < cell["high"]
