"""The table of ``flurka_bench.words.statistics``: how often verdicts on simulated noise are
wrong, and how often right.

    python scripts/error_rates.py [--trials 1000]

Noise as in tests/test_statistics.py: an autoregression on each side. Takes about three minutes.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from test_statistics import error_rates

ROUNDS = (5, 8, 12, 20, 30, 60)
AUTOCORRELATIONS = (0.0, 0.3, 0.5, 0.8)
NOISE = (0.005, 0.01, 0.02, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    print(
        f"rounds  {'  '.join(f'{rho:5.1f}' for rho in AUTOCORRELATIONS)}    {'  '.join(f'{sigma:5.1%}' for sigma in NOISE)}"
    )
    for num_rounds in ROUNDS:
        wrong, right = [], []
        for rho in AUTOCORRELATIONS:
            _, verdicts = error_rates(trials=trials, num_rounds=num_rounds, autocorrelation=rho)
            wrong.append(verdicts["FASTER"] + verdicts["SLOWER"])
        for sigma in NOISE:
            _, verdicts = error_rates(
                trials=trials,
                num_rounds=num_rounds,
                autocorrelation=0.2,
                sigma=sigma,
                true_ratio=1.1,
            )
            right.append(verdicts["FASTER"])
        cells = [
            "  ".join(f"{100 * share:3.0f} %" for share in shares) for shares in (wrong, right)
        ]
        print(f"{num_rounds:6}  {cells[0]}    {cells[1]}", flush=True)


if __name__ == "__main__":
    main()
