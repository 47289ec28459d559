"""Shared by all tests: where the real timings lie that are read by path and never committed."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with ``gpu_ops/`` and ``whole_cases/``; tests that need it skip where it is
    absent."""
    shared = Path(
        os.environ.get("FLURKA_BENCH_SHARED", Path(__file__).resolve().parents[2] / "shared")
    )
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(
            "the folder of real GPU timings (../shared/data, or FLURKA_BENCH_SHARED) is not here"
        )
    return folder
