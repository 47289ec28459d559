"""Freed memory is used again: counted in page faults of a real process, and left alone where the
user chose otherwise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flurka_bench.devices import allocator

CALLS = """
import resource, torch
from flurka_bench.devices import allocator
def faulted(call):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize()
def calls(megabytes):
    x = torch.ones(megabytes * 2**18, requires_grad=True)
    def train():
        x.grad = None
        (x * 2).exp().sum().backward()
    return [lambda: x.detach() + 1, train]
found = [[faulted(call) for _ in range(6)] for size in (40, 100) for call in calls(size)]
print(max(max(each[1:]) for each in found), found[0][-1], allocator.reuses_memory())
allocator.give_back()
"""
linux = pytest.mark.skipif(
    not allocator.worker_variables(), reason="not glibc, or the environment sets its allocator"
)


def counted(**variables):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@linux
def test_a_worker_keeps_what_it_frees():
    """Results of 40 and 100 MB, forward and backward: no page is touched afresh after the first
    call."""
    most, _, reuses = counted(**allocator.worker_variables())
    assert int(most) < 2**20 and reuses == "True"
    _, last, reuses = (
        counted()
    )  # the same calls as glibc does them by itself: every page at every call
    assert int(last) > 0.9 * 40 * 2**20 and reuses == "False"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
        ("MALLOC_MMAP_MAX_", "65536"),
        (allocator.CHOICE, "system"),
    ],
)
def test_what_the_user_set_is_left_alone(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert allocator.worker_variables() == {}


@linux
def test_doctor_starts_as_a_worker_does():
    """Three times, because by chance a process that was not restarted reuses memory, too."""
    command = [sys.executable, "-m", "flurka_bench", "doctor", "--device", "cpu", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    for _ in range(3):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert json.loads(done.stdout)["environment"]["reuses_memory"] is True
