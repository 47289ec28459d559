"""The clock: timers, devices, statistics, environment, microbenchmarks, the worker and the runner.

Nothing here imports the cost model: prediction and measurement are independent witnesses.
"""
