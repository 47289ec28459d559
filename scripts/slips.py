"""Plausible slips, one at a time in a copy of the tree: which tests notice, and which slips live.

    python scripts/slips.py                 # all; about ten seconds each
    python scripts/slips.py --room cost     # one room
    python scripts/slips.py --match softmax # those whose file or text holds a word
    python scripts/slips.py --anchors       # only whether each text is still there, once

Not part of ``make test``. A slip is killed when one of its tests fails; an entry whose text is no
longer found exactly once is an error, because it tests nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("flurka_bench", "tests", "scripts", "suites", "pyproject.toml")
LINKED = ("results", "docs", "README.md")
TIMEOUT_S = 240
TARGET = 0.95  # of the slips, to be killed


@dataclass(frozen=True, slots=True)
class Slip:
    """One change of the package, and the tests (ids, or files) that should see it."""

    room: str
    file: str  # below flurka_bench/
    old: str
    new: str
    tests: tuple[str, ...]


# Of a file, the tests that state one figure each: tried first, because a slip seen there costs
# seconds, and the rest of a file may take a minute.
QUICK = {
    "test_cost_cpu.py": "line_is_read or two_products or block_of_keys or streams_slower or woken or own_each_way",
    "test_cost_kernels.py": "walks_its_rows or split_writes or own_efficiency or keeps_part",
    "test_cost_matmul.py": "draw_power_too",
    "test_cost_predict.py": "wide_below or reaches_its_model or partly_in_quadrature or sum_of_bands or warm_is or scale_cancels",
    "test_statistics.py": "paired_by or of_95 or by_hand or drawn_apart",
    "test_attention.py": "any_sequence or orthogonal_in_blocks or orders_agree or no_direction",
    "test_oplists.py": "by_hand or by_tensor or matrices_of_their_own or compiled_list or designs",
    "test_suite.py": "each_key or reaches_its_end",
    "test_results.py": "on_the_disk or dropped_rounds",
    "test_hardware.py": "bus_times",
    "test_quality_runs.py": "named_for",
    "test_quality_bounds.py": "by_hand",
    "test_run.py": "cache_may_hold or look_pairs or first_look or whole_run or goes_on or drawn_anew or share_rounds",
}


def slip(room: str, file: str, old: str, new: str, *tests: str) -> Slip:
    return Slip(room, file, old, new, tuple(f"tests/{test}" for test in tests))


def pin(*names: str) -> tuple[str, ...]:
    return tuple(f"test_pins.py::test_nothing_pinned_has_moved[{name}]" for name in names)


CPU_HAND = "test_cost_cpu.py"
KERNELS_HAND = "test_cost_kernels.py"
STATS = "test_statistics.py"
OPTIONS = "test_options.py"
RACE = "test_run.py"
SUITE = "test_suite.py"
BYTES = "test_oplists.py"
OOM = "test_faults.py::test_larger_cases_of_an_oom_family_are_skipped_and_smaller_ones_are_not"

SLIPS = [
    # attention
    slip("attention", "attention/modules.py", "and now._version == version", "and True",
         "test_attention.py"),
    slip("attention", "attention/modules.py", "and not torch.is_grad_enabled()", "",
         "test_attention.py"),
    slip("attention", "attention/modules.py", "if self.compression.shared else", "if True else",
         "test_attention.py"),
    slip("attention", "attention/similarity.py", "v).mul_(1 / phi_k.shape[-2])",
         "v).mul_(1 / phi_k.shape[-1])", "test_attention.py"),
    slip("attention", "attention/similarity.py", "* norms).to(device)", ").to(device)",
         "test_attention.py"),
    slip("attention", "attention/similarity.py", "upper.diagonal().sign()",
         "upper.diagonal().abs().sign()", "test_attention.py"),
    slip("attention", "kinds/timing/workbench.py", '{self.seed}/{name}', '{name}',
         "test_attention_workbench.py"),
    slip("attention", "kinds/timing/workbench.py", 'prefix + "omega"', '"omega"',
         "test_attention_workbench.py"),
    # mechanisms: bytes and FLOPs
    slip("mechanisms", "lowering/builder.py", '(*lead, rows), dtype="float32")',
         "(*lead, rows))", BYTES),
    slip("mechanisms", "lowering/builder.py", "matmul_flops=4 * product", "matmul_flops=5 * product",
         BYTES),
    slip("mechanisms", "lowering/builder.py", "recomputed_flops=product",
         "recomputed_flops=2 * product", BYTES),
    slip("mechanisms", "lowering/builder.py", "2 * self.size(*lead, rows, inner, cols)\n        whole",
         "self.size(*lead, rows, inner, cols)\n        whole", BYTES),
    slip("mechanisms", "lowering/compression.py",
         "folded = tape.view(x, h, n, width) if is_one(b) else", "folded = tape.view(x, h, n, width) if True else",
         BYTES),
    slip("mechanisms", "lowering/fusion.py", "if readers.get(tensor.name) != {index}", "if True",
         "test_oplists_kernels.py", BYTES),
    slip("mechanisms", "lowering/fusion.py", "if tensor.name not in made}", "}",
         "test_oplists_kernels.py", BYTES),
    slip("mechanisms", "lowering/memory.py", "results -= {tensor.name for tensor in op.reads}",
         "pass", "test_mechanisms_memory.py"),
    slip("mechanisms", "cases/registry.py", "4 * case.model_dim", "2 * case.model_dim",
         "test_mechanisms_names.py", *pin("predict-h100")),
    slip("mechanisms", "cases/registry.py",
         'idle |= dict.fromkeys(MODEL_KNOBS, f"has none at level {level}")', "pass",
         "test_mechanisms_names.py"),
    # cost
    slip("cost", "cost/cpu.py", "op.bytes_read + op.bytes_written + sum(tensor.bytes for tensor in _new(op))",
         "op.bytes_read + op.bytes_written", CPU_HAND),
    slip("cost", "cost/cpu.py", "products, efficiency = 5,", "products, efficiency = 4,", CPU_HAND),
    slip("cost", "cost/cpu.py", 'c.matmul_stream if op.kind == "matmul" else 1.0', "1.0", CPU_HAND),
    slip("cost", "cost/cpu.py", "np.ceil(keys / real(KEY_BLOCK))", "keys / real(KEY_BLOCK)", CPU_HAND),
    slip("cost", "cost/cpu.py", "real(c.parallel_s), real(0)", "real(0), real(0)", CPU_HAND),
    slip("cost", "cost/cpu.py", "real(c.matmul_shared), real(1)", "real(1), real(1)", CPU_HAND),
    slip("cost", "cost/cpu.py", "else c.softmax_backward_cycles", "else c.softmax_cycles", CPU_HAND),
    slip("cost", "cost/attention.py", "8 * c.combine_traffic", "4 * c.combine_traffic", KERNELS_HAND),
    slip("cost", "cost/attention.py", "(c.backward_efficiency if backward else 1.0)", "1.0",
         KERNELS_HAND),
    slip("cost", "cost/softmax.py", "(read * walks + written)", "(read + written)", KERNELS_HAND),
    slip("cost", "cost/softmax.py", "(walks - 1) * work.miss", "walks * work.miss", KERNELS_HAND),
    slip("cost", "cost/matmul.py", "joules = joules + dram_bytes", "joules = joules + 0 * dram_bytes",
         "test_cost_matmul.py"),
    slip("cost", "cost/terms.py", "min(efficiency * profile.memory_usable_share, 1.0)",
         "min(efficiency, 1.0)", KERNELS_HAND),
    slip("cost", "cost/gpu.py", "products=(op.matmul_flops + op.recomputed_flops)",
         "products=op.matmul_flops", "test_cost_predict.py", *pin("predict-h100")),
    slip("cost", "cost/gpu.py", "passes=3 if", "passes=2 if", "test_cost_predict.py",
         *pin("predict-h100")),
    slip("cost", "cost/predict.py", 'warm=cache == "warm"', "warm=True", "test_cost_predict.py"),
    slip("cost", "cost/uncertainty.py", "np.hypot(scale, shape)", "np.hypot(scale, 0 * shape)",
         "test_cost_predict.py"),
    slip("cost", "cost/uncertainty.py", "return seconds / width, seconds * width",
         "return seconds / np.sqrt(width), seconds * width", "test_cost_predict.py"),
    slip("cost", "cost/uncertainty.py", "(1 - SHAPE_CORRELATION) * self._squares", "self._squares",
         "test_cost_predict.py"),
    slip("cost", "cost/uncertainty.py", "abs(scales[0] - scales[1])", "scales[0] + scales[1]",
         "test_cost_predict.py"),
    # hardware and units
    slip("hardware", "hardware/profiles/l40s.toml", "864e9", "846e9", "test_hardware.py"),
    slip("hardware", "hardware/profiles/h100-sxm-80gb.toml", "3.352e12", "3.532e12",
         "test_hardware.py"),
    slip("hardware", "hardware/detect.py", "float(highest) * 1e3", "float(highest) * 1e6",
         "test_hardware.py"),
    slip("hardware", "hardware/detect.py", "float(megahertz) * 1e6", "float(megahertz) * 1e3",
         "test_hardware.py"),
    slip("units", "words/units.py", '"kB": 1e3,', '"kB": 2**10,', OPTIONS),
    slip("units", "words/units.py", '"MiB": 2**20', '"MiB": 1e6', OPTIONS),
    slip("units", "words/units.py", '"min": 60.0', '"min": 1e-3', OPTIONS),
    slip("units", "words/units.py", '(1e3, "kB")', '(1e3, "KiB")', OPTIONS),
    # suite
    slip("suite", "cases/suite.py", 'in whole.texts("exclude")', 'in general.texts("exclude")', SUITE),
    slip("suite", "cases/suite.py", 'tuple(whole.texts("baselines"))',
         'tuple(general.texts("baselines"))', SUITE),
    slip("suite", "cases/suite.py", 'own.reader("budget").over(general.reader("budget"))',
         'general.reader("budget").over(own.reader("budget"))', SUITE),
    slip("suite", "words/toml.py", "{**general.table, **self.table}",
         "{**self.table, **general.table}", SUITE),
    slip("suite", "words/toml.py", "range(steps + 1)", "range(max(steps, 1))", SUITE),
    slip("suite", "words/toml.py", "math.log(factor) + 1e-9", "math.log(factor)", SUITE),
    # measure: the statistics
    slip("measure", "words/statistics.py", "\nCONFIDENCE = 0.95", "\nCONFIDENCE = 0.90", STATS),
    slip("measure", "words/statistics.py", "left = dict(zip(baseline_rounds,",
         "left = dict(zip(candidate_rounds if len(baseline_rounds) == len(candidate_rounds) else baseline_rounds,",
         STATS),
    slip("measure", "words/statistics.py", "[tail, 1 - tail]", "[tail, 1 - 2 * tail]", STATS),
    slip("measure", "words/verdict.py", "if high < 1 / (1 + MARGIN)", "if high < 1", STATS),
    slip("measure", "words/statistics.py", "num_resamples, seed + 1", "num_resamples, seed", STATS),
    slip("measure", "kinds/timing/judging.py", "found.resident_bytes - cache_bytes", "found.resident_bytes",
         RACE),
    slip("measure", "kinds/timing/judging.py", "_size(case, name) >= _size(other, name)",
         "_size(case, name) > _size(other, name)", OOM),
    # results
    slip("results", "results/writing.py", '*(record.get("dropped_round_ids") or ())', "",
         "test_results.py"),
    slip("results", "results/writing.py", "os.fsync(self._file.fileno())\n        except", "pass\n        except",
         "test_results.py"),
    slip("results", "words/files.py", "os.fsync(descriptor)\n        finally", "pass\n        finally",
         "test_files.py", "test_results.py"),
    # analysis
    slip("analysis", "cost/uncertainty.py", "np.hypot(scales[0] - scales[1]",
         "np.hypot(scales[0] + scales[1]", "test_analysis.py", *pin("regions-layer")),
    slip("analysis", "answers/ratio.py", "ratio - down, ratio + up", "ratio - up, ratio + down",
         "test_analysis.py", *pin("regions-layer")),
    slip("analysis", "answers/ratio.py", "paired_ratio(other, own, other_rounds, own_rounds",
         "paired_ratio(other, own, None, None", "test_analysis.py", *pin("regions-layer")),
    # quality
    slip("quality", "kinds/error/bench.py", "rank, at.seq_len, at.seed)\n        E, F",
         "rank, at.seq_len)\n        E, F",
         "test_quality_runs.py"),
    slip("quality", "kinds/error/bench.py", "wanted.num_features, at.seed)", "wanted.num_features)",
         "test_quality_runs.py"),
    slip("quality", "kinds/error/bounds.py", "math.log(4 * num_products / delta) / rank",
         "math.log(2 * num_products / delta) / rank", "test_quality_bounds.py"),
    slip("quality", "kinds/error/bounds.py", "(rank - p) / (p - 1)", "(rank - p) / p",
         "test_quality_bounds.py"),
    slip("quality", "kinds/error/bounds.py", "y = (2 * moments.normaliser", "y = (moments.normaliser",
         "test_quality_bounds.py"),
    # cli
    slip("cli", "cli/predict.py", "profile, launch=launch, cache=cache)",
         "profile, launch=launch)", OPTIONS),
    slip("cli", "cli/predict.py", "profile, launch=launch, cache=cache)",
         "profile, cache=cache)", OPTIONS),
    slip("cli", "cli/recommend.py", '"launch": launch,',
         '"launch": "eager",', OPTIONS),
    slip("cli", "cli/regions.py", "predicted_frame(targets, own, launch,",
         'predicted_frame(targets, own, "eager",', OPTIONS),
    slip("cli", "cli/run.py", "            cache=cache,\n            stages", "            stages", OPTIONS),
    slip("cli", "cli/run.py", "seed=seed,", "seed=0,", OPTIONS),
    # the race and the plan
    slip("measure", "kinds/timing/race.py", "\n_FIRST_LOOK = FEW_ROUNDS", "\n_FIRST_LOOK = 5", RACE),
    slip("measure", "kinds/timing/race.py", "options.first_round + num_rounds)", "num_rounds)", RACE),
    slip("measure", "kinds/timing/race.py", "shared = dict(zip(reference.round_ids, reference.samples_s))",
         "shared = dict(zip(round_ids, reference.samples_s))", RACE),
    slip("measure", "kinds/timing/race.py", "rng.sample(racing, len(racing))", "racing", RACE),
    slip("measure", "bench/loop.py", "in groups[number:])", "in groups)", RACE),
    slip("measure", "kinds/timing/kind.py", "[first_round + each for each", "[each for each", RACE),
]  # fmt: skip


def misplaced(root: Path) -> list[str]:
    """Entries whose text is not in its file exactly once, in a line each."""
    lines = []
    for each in SLIPS:
        path = root / "flurka_bench" / each.file
        count = path.read_text(encoding="utf-8").count(each.old) if path.is_file() else -1
        if count != 1:
            found = "no such file" if count < 0 else f"found {count} times, not once"
            lines.append(f"{each.room}: {each.file}: {found}: {each.old!r}")
    return lines


def copy_tree(place: Path) -> Path:
    """The tree to change: code copied, what is large and only read linked."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
            shutil.copytree(source, place / name, ignore=ignore, symlinks=True)
        else:
            shutil.copy(source, place / name)
    for name in LINKED:
        (place / name).symlink_to(ROOT / name)
    return place


def run_tests(tree: Path, tests: Sequence[str], *only: str) -> tuple[bool, str]:
    """(whether all passed, the first failure or what pytest said last)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",  # a change within a second would not be seen
        "OMP_NUM_THREADS": "1",
    }
    options = (*only, "-x", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=line")
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"no end within {TIMEOUT_S} s"
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    failed = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "")
    if result.returncode not in (0, 1, 2, 5):  # 2: not even collected; 5: none chosen
        raise SystemExit(f"pytest could not run {' '.join(tests)}:\n{result.stdout}{result.stderr}")
    return result.returncode in (0, 5), failed or (lines[-1] if lines else "")


def apply(tree: Path, each: Slip, *, quick: bool = False) -> tuple[bool, str]:
    path = tree / "flurka_bench" / each.file
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(each.old, each.new), encoding="utf-8")
    try:
        files = [test for test in each.tests if Path(test).name in QUICK]
        words = " or ".join(QUICK[Path(test).name] for test in files)
        passed, said = run_tests(tree, files, "-k", words) if files else (True, "")
        return (passed, said) if not passed or (quick and files) else run_tests(tree, each.tests)
    finally:
        path.write_text(before, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--room", help="only slips of this room")
    parser.add_argument("--quick", action="store_true", help="only the quick tests of each file")
    parser.add_argument("--match", default="", help="only slips whose file or text holds this")
    parser.add_argument("--anchors", action="store_true", help="only look for the texts")
    options = parser.parse_args()
    wrong = misplaced(ROOT)
    for line in wrong:
        print(f"error: {line}")
    if options.anchors or wrong:
        print(f"{len(SLIPS)} slips, {len(wrong)} whose text must be mended")
        if options.anchors:
            return 1 if wrong else 0
    chosen = [
        each
        for each in SLIPS
        if options.room in (None, each.room)
        and options.match in f"{each.file} {each.old} {each.new}"
        and not any(f"{each.file}: " in line and repr(each.old) in line for line in wrong)
    ]
    lived = []
    with tempfile.TemporaryDirectory() as temporary:
        tree = copy_tree(Path(temporary))
        for each in chosen:
            passed, said = apply(tree, each, quick=options.quick)
            change = f"{each.room}: {each.file}: {each.old!r} -> {each.new!r}"
            print(f"{'LIVED' if passed else 'killed'}  {change}  [{said}]", flush=True)
            if passed:
                lived.append(change)
    share = 1 - len(lived) / len(chosen) if chosen else 1.0
    print(f"\n{len(chosen) - len(lived)} of {len(chosen)} killed ({share:.0%})")
    for change in lived:
        print(f"  lived: {change}")
    return 1 if wrong or share < TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
