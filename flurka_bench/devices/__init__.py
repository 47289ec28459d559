"""The clock: timers, devices, statistics, environment, microbenchmarks, the worker and the runner.

Nothing here imports the cost model: prediction and measurement are independent witnesses.
"""

import os

# Read when torch is loaded: its profiler, which measures memory and stages, else writes to stderr
# at each use.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
