"""Speedups, crossovers and agreement against answers known by hand, and the shapes of data that
break such code."""

import math

import numpy as np
import pandas as pd
import pytest
import synthetic

from flurka_bench.answers import (
    agreement,
    answer,
    crossover,
    leading,
    ratio,
    sources,
    speedup,
    stages,
)
from flurka_bench.answers.baselines import (
    BASELINES,
    FAMILY_OF,
    baseline,
    knobs,
    subject_mechanisms,
)
from flurka_bench.cases.case import Case
from flurka_bench.words.errors import RequestError


def measured(cells):
    return sources.of(cells, "measured").reset_index(drop=True)


def predicted(cells):
    return sources.of(cells, "predicted").reset_index(drop=True)


def cell(cells, **at):
    for name, value in at.items():
        cells = cells[cells[name] == value]
    assert len(cells) == 1
    return cells.iloc[0]


@pytest.fixture(scope="module")
def frame():
    return synthetic.frame()


def test_a_speedup_is_baseline_over_subject_of_the_right_records(frame):
    cells = measured(speedup.speedups(frame, "flurka-relu", "paper-low-rank"))
    one = cell(cells, seq_len=4096, rank=128, num_features=32)
    by_id = frame.set_index("case_id")["median_s"]
    own = [
        by_id[i]
        for i in by_id.index
        if i.startswith("flurka-relu.") and ".n4096." in i and ".k128.m32" in i
    ]
    paper = by_id["low-rank.layer.forward.project_first.eager.float32.b1.h8.n4096.d64.k128"]
    assert one["subject_s"] == min(own) and one["baseline_s"] == paper
    assert one["ratio"] == pytest.approx(
        paper / min(own), rel=0.02
    )  # the paired median, not the medians' ratio
    assert one["low"] < one["ratio"] < one["high"] and one["verdict"] == "FASTER"


@pytest.mark.parametrize("name", BASELINES)
def test_each_baseline_faces_the_fastest_of_its_kind(frame, name):
    cells = measured(speedup.speedups(frame, "flurka-relu", name))
    assert len(cells) == 5 * 16 - 0 and (cells["baseline_row"] >= 0).all()
    for one in cells.sample(12, random_state=1).to_dict("records"):
        rivals = []
        for record in frame.to_dict("records"):
            allowed = baseline(name).mechanisms("flurka-relu")
            if record["mechanism"] not in allowed or record["seq_len"] != one["seq_len"]:
                continue
            if any(
                record[knob] != one[knob]
                for knob in knobs(record["mechanism"])
                if knob in ("rank", "num_features")
            ):
                continue
            if not name.startswith("paper") or (record["backend"], record["order"]) == (
                "eager",
                "project_first",
            ):
                rivals.append(record["median_s"])
        assert one["baseline_s"] == min(rivals)


def test_the_best_of_all_others_is_never_easier_than_a_parent(frame):
    views = speedup.Cells(speedup.prepare(frame)).views("flurka-relu")
    hardest = predicted(views["best-other"])["ratio"]
    for name in set(BASELINES) - {"best-other"}:
        assert (hardest <= predicted(views[name])["ratio"] + 1e-12).all()


def test_a_subject_without_a_knob_takes_the_opponents(frame):
    cells = measured(speedup.speedups(frame, "kernel-relu", "low-rank-sdpa"))
    assert len(cells) == 5 * 4 * 4 and set(cells["rank"]) == {64, 128, 256, 512}


def test_a_mechanism_against_itself_is_one_and_the_reverse_is_the_inverse(frame):
    same = speedup.speedups(frame, "kernel-relu", "kernel-relu")
    assert (same["ratio"] == 1).all() and set(same["verdict"]) == {"SAME"}
    place = ["source", "seq_len", "num_features"]
    there = speedup.speedups(frame, "kernel-relu", "full-sdpa").sort_values(place)
    back = speedup.speedups(frame, "full-sdpa", "kernel-relu").sort_values(place)
    assert np.allclose(there["ratio"], 1 / back["ratio"])


def test_a_failure_is_a_cell_that_says_why():
    failures = {("full-math", 8192): ("oom", "wanted 9 GB"), ("full-sdpa", 8192): ("timeout", None)}
    every = speedup.speedups(synthetic.frame(failures=failures), "flurka-relu", "paper-full")
    cells = measured(every)
    gone = cells[cells["seq_len"] == 8192]
    assert set(gone["missing"]) == {"full-math: oom (wanted 9 GB)"} and set(gone["verdict"]) == {
        "MISSING"
    }
    assert (
        predicted(every)["ratio"].notna().all()
        and cells.loc[cells["seq_len"] < 8192, "missing"].isna().all()
    )
    absent = measured(
        speedup.speedups(synthetic.frame(mechanisms=("flurka-relu",)), "flurka-relu", "strong-full")
    )
    assert set(absent["missing"]) == {"strong-full: not in this run"}


def test_two_runs_on_one_device_stay_apart():
    one = synthetic.frame(seq_lens=(512,), ranks=(64,), features=(16,))
    both = pd.concat(
        [
            one.assign(run="a", run_id="1"),
            one.assign(run="b", run_id="2", median_s=one["median_s"] / 9),
        ]
    )
    cells = speedup.speedups(both, "flurka-relu", "strong-full")
    assert sorted(measured(cells)["device"]) == ["cpu: Test CPU [a]", "cpu: Test CPU [b]"]


@pytest.mark.parametrize(
    "rows",
    [
        synthetic.EMPTY,
        synthetic.frame(mechanisms=("flurka-relu",), seq_lens=(512,), ranks=(64,), features=(16,)),
    ],
)
def test_empty_and_single_frames_give_empty_answers(rows):
    cells = speedup.speedups(rows)
    assert not cells["ratio"].notna().any()
    assert len(crossover.crossovers(cells, "seq_len", "rank")) == 0
    assert 2 * len(leading.summary(rows)) == len(cells)
    found = agreement.agreement(rows, "flurka", {"best-other": cells})
    assert found.signs["decided"].sum() == 0 and len(found.worst) == 0


def test_unknown_names_offer_the_nearest(frame):
    with pytest.raises(RequestError, match="strong-kernel"):
        speedup.speedups(frame, "flurka", "strong-kernl")
    with pytest.raises(RequestError, match="flurka-relu"):
        subject_mechanisms("flurka-rel")
    with pytest.raises(RequestError, match="seq_len"):
        crossover.crossovers(speedup.speedups(frame), "seqlen")


def test_crossing_interpolates_in_logs():
    axis = np.array([1024.0, 4096.0])

    def place(curve, rising):
        low, high = crossover.crossing(axis, np.array(curve), rising)[:, 0]
        assert low == high
        return low

    assert place([-1.0, 1.0], rising=True) == pytest.approx(2048)
    assert place([-1.0, 3.0], rising=True) == pytest.approx(1024 * 4**0.25)
    assert place([1.0, 2.0], rising=True) == 0
    assert place([-2.0, -1.0], rising=True) == math.inf
    assert place([1.0, -1.0], rising=False) == pytest.approx(2048)
    torn = np.array([True])
    assert list(crossover.crossing(axis, np.array([1.0, -1.0]), False, torn)[:, 0]) == [1024, 4096]
    assert list(crossover.crossing(axis, np.array([1.0, 2.0]), True, torn)[:, 0]) == [0, 0]


@pytest.mark.parametrize("source", sources.SOURCES)
def test_no_crossover_is_read_off_between_two_different_forms(source):
    """FLuRKA is slower at m = 16 and 32, where relu stands, and faster at 64, which is elu's alone:
    the bracket of the grid is all that is known. With relu at 64 the line goes on."""
    times = {"flurka-relu": 3.0, "flurka-elu": 1.0, "kernel-relu": 2.0, "kernel-elu": 2.0}
    rows = synthetic.frame(seq_lens=(512,), ranks=(64,), features=(16, 32), noise=0.001,
                           mechanisms=tuple(times), orders=("project_first",))  # fmt: skip

    def timed(rows):
        seconds = rows["mechanism"].map(times) * np.where(
            rows["mechanism"].str.startswith("flurka"), 32 / rows["num_features"], 1
        )
        rows["samples_s"] = [[s * (1 + 0.001 * i) for i in range(8)] for s in seconds]
        rows["median_s"] = [float(np.median(samples)) for samples in rows["samples_s"]]
        for name, factor in (("", 1), ("_low", 1 / 1.05), ("_high", 1.05)):
            rows[f"predicted{name}_s"] = seconds * factor
        return sources.of(speedup.speedups(rows, "flurka", "strong-kernel"), source)

    found = crossover.crossovers(timed(rows), "num_features").iloc[0]
    assert found["wins"] == "from" and np.isnan(found["crossing"])
    assert (found["between_low"], found["between_high"]) == (32, 64)
    assert found["crossing_low"] == 32 and found["crossing_high"] == 64
    told = crossover.in_words(found)
    assert told == "starting between m = 32 and m = 64 (the form changes there)"
    relu = synthetic.frame(seq_lens=(512,), ranks=(64,), features=(16, 32, 64), noise=0.001,
                           mechanisms=("flurka-relu", "kernel-relu"), orders=("project_first",))  # fmt: skip
    found = crossover.crossovers(timed(relu), "num_features").iloc[0]
    assert 32 < found["crossing"] < 64 and np.isnan(found["between_low"])
    assert found["crossing"] == pytest.approx(48, rel=0.02)  # 3 * 32 / m = 2


def test_every_interpolated_crossing_has_one_pair_of_forms_on_both_sides(frame):
    """Over all baselines and axes; and both kinds occur."""
    kinds = {source: set() for source in sources.SOURCES}
    for name in ("best-other", "strong-kernel", "paper-low-rank"):
        cells = speedup.speedups(frame, "flurka", name)
        for row in crossover.crossovers(cells, "rank", "num_features", "seq_len").to_dict(
            "records"
        ):
            axis = row["axis"]
            same = [n for n in speedup.CELL if n != axis]
            own = sources.of(cells, row["source"])
            line = own[(own[same] == [row[n] for n in same]).all(axis=1)].sort_values(axis)
            place, start = row["crossing"], row["between_low"]
            if row["wins"] not in ("from", "up to", "in part"):
                continue
            at = start if np.isnan(place) else place
            points = line[axis].to_numpy()
            after = int(np.searchsorted(points, at, side="right"))
            numbers = crossover.forms(line)
            if (after < len(points) and at != points[after - 1]) or np.isnan(place):
                same_forms = numbers[after - 1] == numbers[after]
                assert same_forms != np.isnan(place)
                kinds[row["source"]].add(bool(same_forms))
    assert all(seen == {True, False} for seen in kinds.values())


def test_a_known_crossover_lies_in_its_interval_and_noise_widens_it():
    def true_crossing():
        for k in range(64, 512):
            ours = synthetic.true_seconds("flurka-relu", "compress_first", 512, k, 16, 8, 64, 1)
            if ours > synthetic.true_seconds("kernel-relu", "project_first", 512, 0, 16, 8, 64, 1):
                return k
        raise AssertionError

    widths = []
    for noise in (0.005, 0.05):
        rows = synthetic.frame(
            seq_lens=(512,),
            ranks=(32, 64, 128, 256, 320, 384, 448, 512),
            features=(16,),
            noise=noise,
            rounds=15,
        )
        found = crossover.crossovers(
            speedup.speedups(rows, "flurka-relu", "strong-kernel"), "rank"
        ).iloc[0]
        assert found["wins"] == "up to" and found["crossing_low"] <= true_crossing() * 1.02
        assert found["crossing_high"] >= true_crossing() * 0.98
        widths.append(found["crossing_high"] - found["crossing_low"])
    assert widths[1] > 2 * widths[0]


def test_predictions_share_the_devices_scale():
    pairs = np.array([[0, 1]])
    seconds, shape, scale = np.array([1.0, 2.0]), 0.1, 0.5
    low, high = (
        seconds * np.exp(-math.hypot(shape, scale)),
        seconds * np.exp(math.hypot(shape, scale)),
    )

    def over(scale, pairs=pairs):
        return ratio.predicted(seconds, scale, *ratio.shapes(seconds, low, high, scale), pairs)[0]

    known = over(np.array([scale, scale]))
    assert known[0] == pytest.approx(2) and known[2] == pytest.approx(
        2 * math.exp(math.hypot(shape, shape))
    )
    assert over(np.zeros(2))[2] > known[2]
    assert (over(np.zeros(2), np.array([[0, 0]])) == 1).all()


def test_the_own_part_of_a_band_is_recorded_or_what_the_band_leaves():
    """New records say it; of older ones it is the band less the shared scale, by quadrature."""
    rows = synthetic.frame(seq_lens=(512,), ranks=(64,), features=(16,))
    rows["predicted_log_scale"] = 0.1
    left = speedup.prepare(rows)
    expected = math.sqrt(math.log(1.2) ** 2 - 0.1**2)
    assert np.allclose(left[["shape_below", "shape_above"]], expected)
    rows["predicted_log_shape"] = [None, *[0.05] * (len(rows) - 1)]
    told = speedup.prepare(rows)
    assert told["shape_below"].tolist() == pytest.approx([expected, *[0.05] * (len(rows) - 1)])
    again = speedup.prepare(told)
    pd.testing.assert_frame_equal(told, again)


def test_agreement_counts_by_hand():
    won, expected = np.array([1, 1, 1, 0, 0], bool), np.array([1, 1, 0, 1, 0], bool)
    assert agreement.overlap(won, expected) == pytest.approx(2 / 4)
    assert agreement.overlap(np.zeros(3, bool), np.zeros(3, bool)) == 1
    rows = synthetic.frame(bias=0.0, noise=0.001)
    views = {name: speedup.speedups(rows, "flurka", name) for name in ("best-other", "strong-full")}
    perfect = agreement.agreement(rows, "flurka", views)
    assert (perfect.signs["iou"] == 1).all() and (perfect.signs["sign_agreement"] == 1).all()
    assert perfect.times.iloc[0]["mape"] < 0.002 and perfect.times.iloc[0]["coverage"] == 1
    biased = synthetic.frame(bias=0.3, noise=0.001)
    worse = agreement.agreement(
        biased, "flurka", {"best-other": speedup.speedups(biased, "flurka", "best-other")}
    )
    assert worse.signs.iloc[0]["iou"] < 0.8 and worse.times.iloc[0]["mape"] == pytest.approx(
        0.3, abs=0.01
    )
    assert (
        len(worse.worst) == 10 and "predicted 1.30× too slow" in worse.worst.iloc[0]["explanation"]
    )


def test_the_worst_cells_are_the_farthest_off_of_every_baseline(frame):
    rows = frame.assign(
        predicted_s=frame["predicted_s"] * np.where(frame["mechanism"] == "full-math", 3.0, 1.0)
    )
    views = speedup.Cells(speedup.prepare(rows)).views()
    worst = agreement.agreement(rows, "flurka", views).worst
    off = [
        np.exp(np.abs(np.log(predicted(cells)["ratio"] / measured(cells)["ratio"])))
        for cells in views.values()
    ]
    assert (
        worst["off"].iloc[0] == pytest.approx(max(part.max() for part in off))
        and worst["off"].is_monotonic_decreasing
    )
    assert set(worst["baseline"]) == {"paper-full"}
    assert np.allclose(
        worst["off"], np.exp(np.abs(np.log(worst["predicted_speedup"] / worst["speedup"])))
    )


def test_bottlenecks_are_confused_by_hand(frame):
    rows = frame.assign(
        limited_by=np.where(
            frame["mechanism"].str.startswith("full"), "memory-bound", "compute-bound"
        )
    )
    found = agreement.agreement(rows, "flurka", {}).bounds
    full = int(frame["mechanism"].str.startswith("full").sum())
    assert {(r["bound"], r["limited_by"]): r["count"] for r in found.to_dict("records")} == {
        ("compute", "memory"): full, ("compute", "compute"): len(frame) - full,
    }  # fmt: skip
    tables = agreement.tables(agreement.agreement(rows, "flurka", {}))
    table = next(table for table in tables if table.caption.startswith("Bottlenecks")).rows
    assert table[1][:2] == ("memory", str(full))


def test_a_crossing_is_as_uncertain_as_the_cells_beside_it(frame):
    cells = measured(speedup.speedups(frame, "flurka-relu", "strong-kernel"))
    drawn = np.exp(crossover.replicates(cells))
    inside = (cells["low"].to_numpy() <= drawn) & (drawn <= cells["high"].to_numpy())
    assert inside.mean() == pytest.approx(0.95, abs=0.01)
    few = measured(
        speedup.speedups(
            synthetic.frame(rounds=3, seq_lens=(512, 1024)), "flurka-relu", "strong-full"
        )
    )
    lines = crossover.crossovers(few, "seq_len")
    assert (lines["crossing_low"] == 0).all() and np.isinf(
        lines["crossing_high"]
    ).all()  # unknown is not certain


def test_cells_say_which_of_the_subjects_have_a_time():
    rows = synthetic.frame(seq_lens=(512,), ranks=(64,), features=(16, 32), noise=0.001)
    cells = measured(speedup.speedups(rows, "flurka", "best-other"))
    cells = cells.set_index("num_features")["subjects"]
    assert cells[64] == "flurka-elu" and cells[16] == cells[32] == "flurka-favor, flurka-relu"


def test_flop_conditions_hold_where_the_counts_say(frame):
    from flurka_bench.lowering import lower
    from flurka_bench.words.ops import total

    rows = speedup.prepare(frame)
    cells = measured(speedup.speedups(rows, "flurka", "best-other"))
    pairs = list(zip(cells["subject_row"], cells["baseline_row"]))
    told = stages.flop_conditions(rows, pairs)
    for (own, other), text in zip(pairs, told):
        counts = [
            total(lower(stages.case_of(rows.loc[index]), "cuda"), "matmul_flops")
            for index in (own, other)
        ]
        assert (
            text.endswith("(holds)" if counts[0] < counts[1] else "(does not hold)")
            and " < " in text
        )
    assert {text.rpartition(" (")[2] for text in told} == {"holds)", "does not hold)"}


def test_explanation_names_the_stage_that_is_off():
    own = pd.Series(
        {
            "mechanism": "flurka-relu",
            "predicted_s": 2.0,
            "seconds": 1.0,
            "stages_s": {"project": 0.5, "compress": 0.5},
            "predicted_stages_s": {"project": 0.5, "compress": 1.5},
        }
    )
    other = pd.Series(
        {
            "mechanism": "full-sdpa",
            "predicted_s": 1.0,
            "seconds": 1.0,
            "stages_s": None,
            "predicted_stages_s": None,
        }
    )
    told = agreement.explain(own, other)
    assert told.startswith(
        "flurka-relu predicted 2.00× too slow (mostly compress: 1.5 s predicted, 500 ms measured)"
    )


def test_answer_and_reason_in_words(frame):
    views = {"best-other": speedup.speedups(frame, "flurka", "best-other")}
    row = answer.answers(views).iloc[0]
    assert (
        row["FASTER"] + row["SLOWER"] + row["SAME"] + row["AMBIGUOUS"] + row["MISSING"]
        == row["cells"]
        == 80
    )
    assert f"in {row['FASTER']} of 80 cells" in answer.in_words(row)[0]
    records = speedup.prepare(frame)
    own = records[records["mechanism"] == "flurka-relu"].iloc[0].to_dict() | {
        "predicted_stages_s": {"project": 1e-3, "compress": 1e-3}
    }
    other = records[records["mechanism"] == "full-sdpa"].iloc[0].to_dict() | {
        "predicted_stages_s": {"project": 1e-3, "scores": 5e-3}
    }
    told = stages.reason(own, other)
    assert (
        "saves most in scores (0 ns against 5 ms, predicted)" in told
        and "compute-bound, as is the other" in told
    )
    assert "flurka-relu needs" in told


def test_a_record_gives_its_case_back_and_stages_carry_all_flops():
    case = Case(
        mechanism="flurka-relu",
        level="layer",
        order="absorbed",
        seq_len=512,
        rank=64,
        num_features=32,
    )
    assert stages.case_of(case.as_record() | {"rank": 64.0}) == case
    from flurka_bench.lowering import lower
    from flurka_bench.words.ops import total

    counts = stages.stage_counts(case, "cuda")
    assert sum(entry["flops"] for entry in counts.values()) == total(lower(case, "cuda"), "flops")


def test_families_cover_every_mechanism():
    assert len(FAMILY_OF) == 10 and {"flurka", "kernel", "low-rank", "full"} == set(
        FAMILY_OF.values()
    )
    assert baseline("strong-kernel").mechanisms("flurka-relu") == ("kernel-relu",)
