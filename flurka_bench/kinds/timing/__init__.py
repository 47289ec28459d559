"""Timing: competitors of one workload, interleaved in a worker process.

Nothing here imports the cost model: prediction and measurement are independent witnesses.
"""
